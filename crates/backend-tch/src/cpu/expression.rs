//! Scalar expressions as ops on whole tensors.

use onesigma_backend::Result;
use onesigma_graph::Shape;
use onesigma_graph::expr::{BinaryOp, Expr, Step, UnaryOp};
use tch::{Kind, Tensor};

use super::tensor::{DEVICE, failed, sizes};

/// The values of `expr` over `shape`; operands are f32 tensors that broadcast to it.
pub(crate) fn evaluate(expr: &Expr, operands: &[Tensor], shape: &Shape) -> Result<Tensor> {
    let mut values = expr
        .walk(|_, step: Step<'_, Tensor>| match step {
            Step::Input(n) => Ok(operands[n].shallow_clone()),
            Step::Const(value) => Tensor::f_full([0_i64; 0], value, (Kind::Float, DEVICE)),
            Step::Index(axis) => index(axis, shape),
            Step::Unary(op, a) => unary(op, a),
            Step::Binary(op, a, b) => binary(op, a, b),
            Step::Select(c, a, b) => a.f_where_self(&c.f_ne(0.0)?, b),
        })
        .map_err(failed)?;
    let result = values.pop().ok_or_else(|| failed("an empty expression"))?;
    result.f_broadcast_to(sizes(shape)).map_err(failed)
}

fn index(axis: usize, shape: &Shape) -> Result<Tensor, tch::TchError> {
    let mut dims = vec![1_i64; shape.rank()];
    dims[axis] = shape.dims()[axis] as i64;
    Tensor::f_arange(dims[axis], (Kind::Float, DEVICE))?.f_view(&dims[..])
}

fn unary(op: UnaryOp, x: &Tensor) -> Result<Tensor, tch::TchError> {
    match op {
        UnaryOp::Neg => x.f_neg(),
        UnaryOp::Abs => x.f_abs(),
        UnaryOp::Exp => x.f_exp(),
        UnaryOp::Ln => x.f_log(),
        UnaryOp::Sqrt => x.f_sqrt(),
        UnaryOp::Rsqrt => x.f_rsqrt(),
        UnaryOp::Tanh => x.f_tanh(),
        UnaryOp::Erf => x.f_erf(),
        UnaryOp::Sigmoid => x.f_sigmoid(),
        UnaryOp::Sin => x.f_sin(),
        UnaryOp::Cos => x.f_cos(),
        _ => Err(tch::TchError::Kind(format!("no kernel for {op:?}"))),
    }
}

fn binary(op: BinaryOp, a: &Tensor, b: &Tensor) -> Result<Tensor, tch::TchError> {
    let number = |condition: Result<Tensor, tch::TchError>| condition?.f_to_kind(Kind::Float);
    match op {
        BinaryOp::Add => a.f_add(b),
        BinaryOp::Sub => a.f_sub(b),
        BinaryOp::Mul => a.f_mul(b),
        BinaryOp::Div => a.f_div(b),
        BinaryOp::Min => a.f_minimum(b),
        BinaryOp::Max => a.f_maximum(b),
        BinaryOp::Less => number(a.f_lt_tensor(b)),
        BinaryOp::LessEqual => number(a.f_le_tensor(b)),
        BinaryOp::Equal => number(a.f_eq_tensor(b)),
        _ => Err(tch::TchError::Kind(format!("no kernel for {op:?}"))),
    }
}
