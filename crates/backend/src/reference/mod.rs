//! The reference backend: every core op in f64, as its definition reads.
//!
//! It is the oracle of the conformance suite, not fast. Fused ops run as their decomposition. A
//! result is computed in f64 and rounded once into its declared format; `exact` leaves the
//! rounding out, so that a whole graph is evaluated in f64 whatever its formats are.

mod movement;
mod round;

pub use round::round;

use crate::kernels::Call;
use crate::{Caps, Kernels, OpByOp, Result, Support};
use onesigma_format::{Format, decode_slice, encode_slice, philox};
use onesigma_graph::expr::Expr;
use onesigma_graph::{DType, Distribution, Op, ReduceKind, Shape};

/// The reference backend.
pub type RefBackend = OpByOp<RefKernels>;

impl RefBackend {
    /// Results rounded into their declared formats.
    pub fn rounding() -> Self {
        Self::new(RefKernels { exact: false })
    }

    /// No rounding at all: an f64 evaluation of any graph. Casts only scale; random numbers are
    /// drawn as usual.
    pub fn exact() -> Self {
        Self::new(RefKernels { exact: true })
    }
}

/// Kernels in f64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RefKernels {
    /// Leaves results in f64.
    pub exact: bool,
}

impl RefKernels {
    fn store(self, call: &Call<'_>, mut data: Vec<f64>) -> Vec<f64> {
        let alpha = call.alpha();
        if alpha != 1.0 {
            data.iter_mut().for_each(|value| *value *= alpha);
        }
        if let Some(format) = call.output().dtype.format()
            && !self.exact
        {
            round::round_slice(&mut data, format, call.output().conversion, call.noise(0));
        }
        data
    }
}

/// Formats whose smallest value leaves two bits below it in f32, which the rounding needs: all
/// named ones.
fn is_known(dtype: DType) -> bool {
    dtype.format().is_none_or(|format| format == Format::F32 || format.min_subnormal() >= 1e-44)
}

impl Kernels for RefKernels {
    type Tensor = Vec<f64>;

    fn name(&self) -> &str {
        if self.exact { "reference-exact" } else { "reference" }
    }

    fn caps(&self) -> Caps {
        Caps { device: "f64 reference".to_owned(), memory_bytes: None, deterministic: true }
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        match inputs.iter().chain([&output]).all(|&dtype| is_known(dtype)) {
            false => Support::No,
            true if op.is_fused() => Support::Emulated,
            true => Support::Native,
        }
    }

    fn upload(&self, shape: &Shape, dtype: DType, bytes: &[u8]) -> Result<Vec<f64>> {
        let mut values = vec![0.0_f32; shape.numel()];
        match dtype {
            DType::U32 => {
                let words = bytes.as_chunks().0.iter();
                return Ok(words.map(|word| f64::from(u32::from_le_bytes(*word))).collect());
            }
            DType::Float(format) => decode_slice(format, bytes, &mut values)
                .map_err(|error| self.device(&error.to_string()))?,
        }
        Ok(values.into_iter().map(f64::from).collect())
    }

    fn download(
        &self,
        tensor: &Vec<f64>,
        _shape: &Shape,
        dtype: DType,
        bytes: &mut [u8],
    ) -> Result<()> {
        match dtype {
            DType::U32 => {
                for (bytes, &value) in bytes.as_chunks_mut().0.iter_mut().zip(tensor) {
                    *bytes = (value as u32).to_le_bytes();
                }
                Ok(())
            }
            DType::Float(format) => {
                let how = onesigma_format::Conversion::SPECIAL;
                let values: Vec<f32> =
                    tensor.iter().map(|&value| round(value, format, how, 0) as f32).collect();
                encode_slice(format, how, onesigma_format::Noise::default(), &values, bytes)
                    .map_err(|error| self.device(&error.to_string()))
            }
        }
    }

    fn mat_mul(
        &self,
        call: &Call<'_>,
        left: &Vec<f64>,
        right: &Vec<f64>,
        transpose_left: bool,
        transpose_right: bool,
    ) -> Result<Vec<f64>> {
        let size = |operand: usize, from_end: usize| {
            let dims = call.inputs[operand].shape.dims();
            dims[dims.len() - from_end]
        };
        let n = call.output().shape.last();
        let k = if transpose_left { size(0, 2) } else { size(0, 1) };
        let m = if transpose_left { size(0, 1) } else { size(0, 2) };
        let batch = call.output().shape.numel().checked_div(m * n).unwrap_or(0);
        let shared = call.inputs[1].shape.rank() == 2;
        let mut result = vec![0.0; batch * m * n];
        for b in 0..batch {
            let a = &left[b * m * k..][..m * k];
            let c = if shared { &right[..] } else { &right[b * k * n..][..k * n] };
            for i in 0..m {
                let row = &mut result[(b * m + i) * n..][..n];
                for p in 0..k {
                    let factor = a[if transpose_left { p * m + i } else { i * k + p }];
                    for (j, value) in row.iter_mut().enumerate() {
                        *value += factor * c[if transpose_right { j * k + p } else { p * n + j }];
                    }
                }
            }
        }
        Ok(self.store(call, result))
    }

    fn map(&self, call: &Call<'_>, inputs: &[&Vec<f64>], expr: &Expr) -> Result<Vec<f64>> {
        let shape = &call.output().shape;
        let mut result = Vec::with_capacity(shape.numel());
        each(call, inputs, expr, shape, |_, value| result.push(value));
        Ok(self.store(call, result))
    }

    fn reduce(
        &self,
        call: &Call<'_>,
        inputs: &[&Vec<f64>],
        kind: ReduceKind,
        expr: &Expr,
        shape: &Shape,
        axes: &[usize],
    ) -> Result<Vec<f64>> {
        let strides = shape.reduced(axes, true).broadcast_strides(shape);
        let start = match kind {
            ReduceKind::Sum => 0.0,
            ReduceKind::Max => f64::NEG_INFINITY,
        };
        let mut result = vec![start; call.output().shape.numel()];
        each(call, inputs, expr, shape, |index, value| {
            let at: usize = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
            let slot = &mut result[at];
            match kind {
                ReduceKind::Sum => *slot += value,
                ReduceKind::Max if value.is_nan() || slot.is_nan() => *slot = f64::NAN,
                ReduceKind::Max => *slot = slot.max(value),
            }
        });
        Ok(self.store(call, result))
    }

    fn gather(&self, call: &Call<'_>, table: &Vec<f64>, ids: &Vec<f64>) -> Result<Vec<f64>> {
        let d = call.output().shape.last();
        let rows = call.inputs[0].shape.dims()[0];
        let mut result = Vec::with_capacity(ids.len() * d);
        for &id in ids {
            let id = id as usize;
            match id < rows {
                true => result.extend_from_slice(&table[id * d..][..d]),
                false => result.extend(std::iter::repeat_n(f64::NAN, d)),
            }
        }
        Ok(self.store(call, result))
    }

    fn scatter_add(&self, call: &Call<'_>, updates: &Vec<f64>, ids: &Vec<f64>) -> Result<Vec<f64>> {
        let d = call.output().shape.last();
        let mut result = vec![0.0; call.output().shape.numel()];
        for (i, &id) in ids.iter().enumerate() {
            if let Some(row) = result.get_mut(id as usize * d..(id as usize + 1) * d) {
                for (sum, update) in row.iter_mut().zip(&updates[i * d..]) {
                    *sum += update;
                }
            }
        }
        Ok(self.store(call, result))
    }

    fn permute(&self, call: &Call<'_>, x: &Vec<f64>, axes: &[usize]) -> Result<Vec<f64>> {
        Ok(movement::permute(x, &call.inputs[0].shape, axes))
    }

    fn reshape(&self, _call: &Call<'_>, x: &Vec<f64>) -> Result<Vec<f64>> {
        Ok(x.clone())
    }

    fn slice(
        &self,
        call: &Call<'_>,
        x: &Vec<f64>,
        axis: usize,
        start: usize,
        len: usize,
    ) -> Result<Vec<f64>> {
        Ok(movement::slice(x, &call.inputs[0].shape, axis, start, len))
    }

    fn concat(&self, call: &Call<'_>, inputs: &[&Vec<f64>], axis: usize) -> Result<Vec<f64>> {
        let parts: Vec<_> =
            inputs.iter().zip(call.inputs).map(|(x, value)| (&x[..], &value.shape)).collect();
        Ok(movement::concat(&parts, axis))
    }

    fn cast(&self, call: &Call<'_>, x: &Vec<f64>) -> Result<Vec<f64>> {
        Ok(self.store(call, x.clone()))
    }

    fn random(&self, call: &Call<'_>, distribution: Distribution) -> Result<Vec<f64>> {
        let mut words = vec![0; call.output().shape.numel()];
        philox::fill_u32(call.noise(0), &mut words);
        let values = words.into_iter().map(|word| match distribution {
            Distribution::Uniform { low, high } => {
                low + (high - low) * f64::from(philox::uniform(word))
            }
            Distribution::Normal { mean, std } => mean + std * f64::from(philox::normal(word)),
            Distribution::Bernoulli { p } => {
                f64::from(u8::from(f64::from(philox::uniform(word)) < p))
            }
        });
        Ok(self.store(call, values.collect()))
    }
}

impl RefKernels {
    fn device(&self, reason: &str) -> crate::Error {
        crate::Error::Device { backend: self.name().to_owned(), reason: reason.to_owned() }
    }
}

/// Evaluates an expression at every index of `shape`, in row-major order.
fn each(
    call: &Call<'_>,
    inputs: &[&Vec<f64>],
    expr: &Expr,
    shape: &Shape,
    mut take: impl FnMut(&[usize], f64),
) {
    let strides: Vec<Vec<usize>> =
        call.inputs.iter().map(|value| value.shape.broadcast_strides(shape)).collect();
    let mut registers = Vec::new();
    let mut operands = vec![0.0; inputs.len()];
    movement::each_index(shape, |index| {
        for ((operand, data), strides) in operands.iter_mut().zip(inputs).zip(&strides) {
            let at: usize = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
            *operand = data[at];
        }
        take(index, expr.eval_with(&operands, index, &mut registers));
    });
}
