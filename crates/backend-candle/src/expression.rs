//! Scalar expressions, one candle op for each of their steps.

use candle_core::{DType, Device, Result, Shape, Tensor};
use onesigma_graph::expr::{BinaryOp, Expr, Step, UnaryOp};

/// The value of `expr` over `dims`, in f32. `inputs` broadcast to `dims`.
///
/// # Errors
/// Candle's; an error that names an op that this backend does not know.
pub(crate) fn eval(
    expr: &Expr,
    inputs: &[Tensor],
    dims: &[usize],
    device: &Device,
) -> Result<Tensor> {
    let shape = Shape::from(dims);
    let full = |value: f64| Tensor::full(value as f32, (), device)?.broadcast_as(&shape);
    let mut steps = expr.walk(|_, step: Step<'_, Tensor>| match step {
        Step::Input(n) => inputs[n].broadcast_as(&shape),
        Step::Const(value) => full(value),
        Step::Index(axis) => index(axis, dims, device)?.broadcast_as(&shape),
        Step::Unary(op, x) => unary(op, x),
        Step::Binary(op, a, b) => binary(op, a, b),
        Step::Select(condition, then, other) => condition.ne(&full(0.0)?)?.where_cond(then, other),
    })?;
    steps.pop().map_or_else(|| full(0.0), Ok)
}

/// The coordinate along an axis.
fn index(axis: usize, dims: &[usize], device: &Device) -> Result<Tensor> {
    let mut shape = vec![1; dims.len()];
    shape[axis] = dims[axis];
    Tensor::arange(0_u32, dims[axis] as u32, device)?.to_dtype(DType::F32)?.reshape(shape)
}

fn unary(op: UnaryOp, x: &Tensor) -> Result<Tensor> {
    match op {
        UnaryOp::Neg => x.neg(),
        UnaryOp::Abs => x.abs(),
        UnaryOp::Exp => x.exp(),
        UnaryOp::Ln => x.log(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => x.sqrt()?.recip(),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Erf => x.erf(),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Sigmoid => (x.neg()?.exp()? + 1.0)?.recip(),
        other => candle_core::bail!("no candle op for {other:?}"),
    }
}

fn binary(op: BinaryOp, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // A NaN on either side comes through: `keep` chooses b if a is a number and not the chosen one.
    let keep = |first: Tensor| a.ne(a)?.where_cond(a, &first.where_cond(a, b)?);
    let truth = |mask: Tensor| mask.to_dtype(DType::F32);
    match op {
        BinaryOp::Add => a.add(b),
        BinaryOp::Sub => a.sub(b),
        BinaryOp::Mul => a.mul(b),
        BinaryOp::Div => a.div(b),
        BinaryOp::Min => keep(a.le(b)?),
        BinaryOp::Max => keep(a.ge(b)?),
        BinaryOp::Less => truth(a.lt(b)?),
        BinaryOp::LessEqual => truth(a.le(b)?),
        BinaryOp::Equal => truth(a.eq(b)?),
        other => candle_core::bail!("no candle op for {other:?}"),
    }
}
