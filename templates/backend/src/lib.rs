//! A backend to start from: products, expressions and reductions here, the rest on the host.
//!
//! Replace `Vec<u8>` by the device's buffer and each loop by its kernel, then override the other
//! methods of `Kernels` one by one; the suite in `tests/conformance.rs` checks every step.

use onesigma_backend::{Call, Caps, Error, Kernels, OpByOp, Result, Support};
use onesigma_format::{decode_slice, encode_slice};
use onesigma_graph::{DType, Op, ReduceKind, Shape, expr::Expr};

/// The backend. A device that is not there is `Error::Unavailable` here.
pub fn backend() -> Result<OpByOp<Template>> {
    Ok(OpByOp::new(Template))
}

/// The kernels; a tensor is its little-endian codes.
pub struct Template;

fn failed(error: onesigma_format::Error) -> Error {
    Error::Device { backend: "template".to_owned(), reason: error.to_string() }
}

/// Operand `n` in f32.
fn load(call: &Call<'_>, n: usize, codes: &[u8]) -> Result<Vec<f32>> {
    let words = || codes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word) as f32);
    let Some(format) = call.inputs[n].dtype.format() else { return Ok(words().collect()) };
    let mut values = vec![0.0; call.inputs[n].shape.numel()];
    decode_slice(format, codes, &mut values).map(|()| values).map_err(failed)
}

/// The result: scaled, and rounded once into its format.
fn store(call: &Call<'_>, mut values: Vec<f32>) -> Result<Vec<u8>> {
    let to = call.output();
    values.iter_mut().for_each(|value| *value *= call.alpha() as f32);
    let mut codes = vec![0; to.bytes()];
    let format = to.dtype.format().unwrap_or(onesigma_format::Format::F32);
    encode_slice(format, to.conversion, call.noise(0), &values, &mut codes).map_err(failed)?;
    Ok(codes)
}

/// Calls `take` with each index of `shape` and the value of `expr` there.
fn each(call: &Call<'_>, x: &[&Vec<u8>], expr: &Expr, shape: &Shape, mut take: impl FnMut(&[usize], f32)) -> Result<()> {
    let own = shape.strides();
    let strides: Vec<_> = call.inputs.iter().map(|x| x.shape.broadcast_strides(shape)).collect();
    let x = x.iter().enumerate().map(|(n, x)| load(call, n, x)).collect::<Result<Vec<_>>>()?;
    for flat in 0..shape.numel() {
        let index: Vec<usize> = own.iter().zip(shape.dims()).map(|(s, d)| flat / s % d).collect();
        let at = |s: &[usize]| index.iter().zip(s).map(|(i, s)| i * s).sum::<usize>();
        let operands: Vec<f64> = x.iter().zip(&strides).map(|(x, s)| x[at(s)].into()).collect();
        take(&index, expr.eval(&operands, &index) as f32);
    }
    Ok(())
}

impl Kernels for Template {
    type Tensor = Vec<u8>;

    fn name(&self) -> &str { "template" }

    fn caps(&self) -> Caps {
        Caps { device: "host memory".to_owned(), memory_bytes: None, deterministic: true }
    }

    fn supports(&self, op: &Op, _inputs: &[DType], _output: DType) -> Support {
        match op {
            Op::MatMul { .. } | Op::Map { .. } | Op::Reduce { .. } => Support::Native,
            _ => Support::Emulated, // on the host; fused ops as their decomposition
        }
    }

    fn upload(&self, _: &Shape, _: DType, bytes: &[u8]) -> Result<Vec<u8>> { Ok(bytes.to_vec()) }

    fn download(&self, x: &Vec<u8>, _: &Shape, _: DType, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(x);
        Ok(())
    }

    fn mat_mul(&self, call: &Call<'_>, left: &Vec<u8>, right: &Vec<u8>, transpose_left: bool, transpose_right: bool) -> Result<Vec<u8>> {
        let (a, b) = (load(call, 0, left)?, load(call, 1, right)?);
        let (dims, n) = (call.inputs[0].shape.dims(), call.output().shape.last());
        let [rows, columns] = [dims[dims.len() - 2], dims[dims.len() - 1]];
        let (m, k) = if transpose_left { (columns, rows) } else { (rows, columns) };
        let right_step = if call.inputs[1].shape.rank() == 2 { 0 } else { k * n };
        store(call, (0..call.output().shape.numel()).map(|flat| {
            let (batch, i, j) = (flat / (m * n), flat / n % m, flat % n);
            let (a, b) = (&a[batch * m * k..], &b[batch * right_step..]);
            let left = |p| a[if transpose_left { p * m + i } else { i * k + p }];
            let right = |p| b[if transpose_right { j * k + p } else { p * n + j }];
            (0..k).map(|p| left(p) * right(p)).sum()
        }).collect())
    }

    fn map(&self, call: &Call<'_>, x: &[&Vec<u8>], expr: &Expr) -> Result<Vec<u8>> {
        let mut values = Vec::new();
        each(call, x, expr, &call.output().shape, |_, value| values.push(value))?;
        store(call, values)
    }

    fn reduce(&self, call: &Call<'_>, x: &[&Vec<u8>], kind: ReduceKind, expr: &Expr, shape: &Shape, axes: &[usize]) -> Result<Vec<u8>> {
        let strides = shape.reduced(axes, true).broadcast_strides(shape);
        let start = if kind == ReduceKind::Sum { 0.0 } else { f32::NEG_INFINITY };
        let mut values = vec![start; call.output().shape.numel()];
        each(call, x, expr, shape, |index, value| {
            let slot = &mut values[index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>()];
            *slot = match kind {
                ReduceKind::Sum => *slot + value,
                ReduceKind::Max if value.is_nan() || slot.is_nan() => f32::NAN,
                ReduceKind::Max => slot.max(value),
            };
        })?;
        store(call, values)
    }
}
