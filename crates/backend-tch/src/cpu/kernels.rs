//! The core ops on libtorch's CPU device; fused ops run as their decomposition.

use onesigma_backend::{Call, Caps, Kernels, Result, Support};
use onesigma_graph::expr::{BinaryOp, Expr, Instr, UnaryOp};
use onesigma_graph::{DType, Op, ReduceKind, Shape};
use tch::{IndexOp, Kind, Tensor};

use super::NAME;
use super::expression::evaluate;
use super::tensor::{codes, decoded, encoded, failed, from_codes, sizes};

/// Kernels that call libtorch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TorchKernels;

/// Whether every function of an expression has an op in libtorch.
pub(crate) fn is_supported(expr: &Expr) -> bool {
    expr.instrs().iter().all(|instr| match instr {
        Instr::Unary(op, _) => matches!(
            op,
            UnaryOp::Neg
                | UnaryOp::Abs
                | UnaryOp::Exp
                | UnaryOp::Ln
                | UnaryOp::Sqrt
                | UnaryOp::Rsqrt
                | UnaryOp::Tanh
                | UnaryOp::Erf
                | UnaryOp::Sigmoid
                | UnaryOp::Sin
                | UnaryOp::Cos
        ),
        Instr::Binary(op, ..) => matches!(
            op,
            BinaryOp::Add
                | BinaryOp::Sub
                | BinaryOp::Mul
                | BinaryOp::Div
                | BinaryOp::Min
                | BinaryOp::Max
                | BinaryOp::Less
                | BinaryOp::LessEqual
                | BinaryOp::Equal
        ),
        _ => true,
    })
}

/// Whether the types of an op's operands and result are such as the op takes.
pub(crate) fn types_fit(op: &Op, inputs: &[DType], output: DType) -> bool {
    let float = |dtype: &DType| dtype.format().is_some();
    let word_at =
        |word: usize| inputs.iter().enumerate().all(|(at, dtype)| (at == word) != float(dtype));
    match op {
        Op::Slot(_) => true,
        op if op.is_movement() => inputs.iter().all(|dtype| *dtype == output),
        _ if !float(&output) => false,
        Op::Map { expr, .. } | Op::Reduce { expr, .. } => is_supported(expr),
        Op::Gather | Op::ScatterAdd { .. } => word_at(1),
        Op::CrossEntropy { .. } | Op::CrossEntropyGrad { .. } => word_at(1),
        Op::AdamW(_) => word_at(5),
        _ => inputs.iter().all(float),
    }
}

/// Scales and rounds a result.
fn store(call: &Call<'_>, values: &Tensor) -> Result<Tensor> {
    let alpha = call.alpha();
    let values = match alpha == 1.0 {
        true => values.shallow_clone(),
        // In f32, as every backend does; libtorch would take the product in f64.
        false => values.f_mul(&Tensor::from(alpha as f32)).map_err(failed)?,
    };
    encoded(&values, call.output(), call.noise(0))
}

fn operands(call: &Call<'_>, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    inputs.iter().zip(call.inputs).map(|(tensor, value)| decoded(tensor, value)).collect()
}

impl Kernels for TorchKernels {
    type Tensor = Tensor;

    fn name(&self) -> &str {
        NAME
    }

    fn caps(&self) -> Caps {
        let device = format!("libtorch 2.11 on the CPU, {} threads", tch::get_num_threads());
        Caps { device, memory_bytes: None, deterministic: true }
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        match types_fit(op, inputs, output) {
            false => Support::No,
            true if op.is_fused() => Support::Emulated,
            true => Support::Native,
        }
    }

    fn upload(&self, shape: &Shape, dtype: DType, bytes: &[u8]) -> Result<Tensor> {
        from_codes(bytes, shape, dtype)
    }

    fn download(&self, tensor: &Tensor, _: &Shape, _: DType, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&codes(tensor)?);
        Ok(())
    }

    fn mat_mul(
        &self,
        call: &Call<'_>,
        left: &Tensor,
        right: &Tensor,
        transpose_left: bool,
        transpose_right: bool,
    ) -> Result<Tensor> {
        let [mut a, mut b] = [decoded(left, call.inputs[0])?, decoded(right, call.inputs[1])?];
        for (matrix, transposed) in [(&mut a, transpose_left), (&mut b, transpose_right)] {
            if transposed {
                *matrix = matrix.f_transpose(-2, -1).map_err(failed)?;
            }
        }
        store(call, &a.f_matmul(&b).map_err(failed)?)
    }

    fn map(&self, call: &Call<'_>, inputs: &[&Tensor], expr: &Expr) -> Result<Tensor> {
        store(call, &evaluate(expr, &operands(call, inputs)?, &call.output().shape)?)
    }

    fn reduce(
        &self,
        call: &Call<'_>,
        inputs: &[&Tensor],
        kind: ReduceKind,
        expr: &Expr,
        shape: &Shape,
        axes: &[usize],
    ) -> Result<Tensor> {
        let values = evaluate(expr, &operands(call, inputs)?, shape)?;
        let dims: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
        // An empty list of axes means all of them to libtorch.
        let reduced = match kind {
            _ if dims.is_empty() => Ok(values),
            ReduceKind::Sum => values.f_sum_dim_intlist(&dims[..], true, Kind::Float),
            ReduceKind::Max => values.f_amax(&dims[..], true),
        };
        store(call, &reduced.map_err(failed)?)
    }

    fn gather(&self, call: &Call<'_>, table: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let table = decoded(table, call.inputs[0])?;
        let [rows, width] = [0, 1].map(|axis| call.inputs[0].shape.dims()[axis] as i64);
        let ids = word_ids(ids)?;
        let known = ids.f_lt(rows).map_err(failed)?;
        let inside = ids.f_clamp_max((rows - 1).max(0)).map_err(failed)?;
        let chosen = match rows {
            0 => Tensor::f_zeros([ids.size()[0], width], (Kind::Float, super::tensor::DEVICE)),
            _ => table.f_index_select(0, &inside),
        };
        let nan = Tensor::from(f32::NAN);
        let rows = chosen
            .and_then(|chosen| chosen.f_where_self(&known.f_unsqueeze(-1)?, &nan))
            .map_err(failed)?;
        store(call, &rows)
    }

    fn scatter_add(&self, call: &Call<'_>, updates: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let [rows, width] = [0, 1].map(|axis| call.output().shape.dims()[axis] as i64);
        let ids = word_ids(ids)?;
        let updates = decoded(updates, call.inputs[0])?;
        let sum = || -> Result<Tensor, tch::TchError> {
            let updates = updates.f_view([ids.size()[0], width])?;
            // One row more takes what is dropped.
            let sum = Tensor::f_zeros([rows + 1, width], (Kind::Float, super::tensor::DEVICE))?;
            let sum = sum.f_index_add(0, &ids.f_clamp_max(rows)?, &updates)?;
            Ok(sum.i(..rows))
        };
        store(call, &sum().map_err(failed)?)
    }

    fn permute(&self, _: &Call<'_>, x: &Tensor, axes: &[usize]) -> Result<Tensor> {
        let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
        x.f_permute(&axes[..]).and_then(|x| x.f_contiguous()).map_err(failed)
    }

    fn reshape(&self, call: &Call<'_>, x: &Tensor) -> Result<Tensor> {
        x.f_view(&sizes(&call.output().shape)[..]).map_err(failed)
    }

    fn slice(
        &self,
        _: &Call<'_>,
        x: &Tensor,
        axis: usize,
        start: usize,
        len: usize,
    ) -> Result<Tensor> {
        x.f_narrow(axis as i64, start as i64, len as i64)
            .and_then(|x| x.f_contiguous())
            .map_err(failed)
    }

    fn concat(&self, _: &Call<'_>, inputs: &[&Tensor], axis: usize) -> Result<Tensor> {
        // Kinds that libtorch only stores cannot be concatenated: their bits can.
        let kind = inputs[0].kind();
        let bits = match kind.elt_size_in_bytes() {
            1 => Kind::Uint8,
            2 => Kind::Int16,
            _ => Kind::Int,
        };
        let join = || -> Result<Tensor, tch::TchError> {
            let parts = inputs.iter().map(|x| x.f_view_dtype(bits)).collect::<Result<Vec<_>, _>>();
            Tensor::f_cat(&parts?, axis as i64)?.f_view_dtype(kind)
        };
        join().map_err(failed)
    }

    fn cast(&self, call: &Call<'_>, x: &Tensor) -> Result<Tensor> {
        store(call, &decoded(x, call.inputs[0])?)
    }
}

/// Ids in a flat tensor of 64-bit integers.
fn word_ids(ids: &Tensor) -> Result<Tensor> {
    let ids = ids.f_to_kind(Kind::Int64).and_then(|ids| ids.f_view(-1)).map_err(failed)?;
    ids.f_bitwise_and(0xffff_ffff_i64).map_err(failed)
}
