//! The kernels: one method for each core op.

use crate::codec::{Codec, is_split};
use crate::{NAME, expression, failed};
use candle_core::{DType as Stored, Device, Tensor};
use onesigma_backend::kernels::on_host;
use onesigma_backend::{Call, Caps, Kernels, Result, Support};
use onesigma_graph::expr::Expr;
use onesigma_graph::{DType, Op, ReduceKind, Shape};

/// Kernels on one device of candle's.
pub struct CandleKernels {
    codec: Codec,
}

impl std::fmt::Debug for CandleKernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CandleKernels").field(self.codec.device()).finish()
    }
}

impl CandleKernels {
    /// On a device.
    ///
    /// # Errors
    /// [`Error::Device`](onesigma_backend::Error::Device) if it cannot hold a tensor.
    pub fn new(device: Device) -> Result<Self> {
        Tensor::zeros(1, Stored::F32, &device).map_err(failed)?;
        Ok(Self { codec: Codec::new(device) })
    }

    fn decoded(&self, call: &Call<'_>, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        inputs.iter().enumerate().map(|(n, x)| self.codec.decode(call, n, x)).collect()
    }

    /// Moves codes: the element type stays, so that nothing is rounded.
    fn moved(
        &self,
        call: &Call<'_>,
        inputs: &[&Tensor],
        body: impl FnOnce(&[&Tensor]) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        if call.alpha() != 1.0 || call.output().shape.numel() == 0 {
            return on_host(self, call, inputs);
        }
        body(inputs).and_then(|moved| moved.contiguous()).map_err(failed)
    }
}

/// `f32` of a row mask `[n]` and values `[n, d]`: the values where the mask is set, else `other`.
fn where_row(mask: &Tensor, values: &Tensor, other: f32) -> candle_core::Result<Tensor> {
    let mask = mask.unsqueeze(1)?.broadcast_as(values.shape())?;
    let other = Tensor::full(other, values.shape(), values.device())?;
    mask.where_cond(values, &other)
}

impl Kernels for CandleKernels {
    type Tensor = Tensor;

    fn name(&self) -> &str {
        NAME
    }

    fn caps(&self) -> Caps {
        let device = format!("candle, {:?}", self.codec.device().location());
        let deterministic = self.codec.device().is_cpu();
        Caps { device, memory_bytes: None, deterministic }
    }

    fn supports(&self, op: &Op, _inputs: &[DType], _output: DType) -> Support {
        match op {
            Op::Cast { .. } | Op::Random { .. } => Support::Emulated, // on the host
            op if op.is_fused() => Support::Emulated,                 // as their decomposition
            _ => Support::Native,
        }
    }

    fn upload(&self, shape: &Shape, dtype: DType, bytes: &[u8]) -> Result<Tensor> {
        self.codec.upload(shape, dtype, bytes)
    }

    fn download(&self, x: &Tensor, _: &Shape, _: DType, bytes: &mut [u8]) -> Result<()> {
        self.codec.download(x, bytes)
    }

    fn mat_mul(
        &self,
        call: &Call<'_>,
        left: &Tensor,
        right: &Tensor,
        transpose_left: bool,
        transpose_right: bool,
    ) -> Result<Tensor> {
        if call.inputs.iter().any(|value| value.shape.numel() == 0) {
            return on_host(self, call, &[left, right]);
        }
        let x = self.decoded(call, &[left, right])?;
        let product = || -> candle_core::Result<Tensor> {
            let turn = |x: &Tensor, turned: bool| if turned { x.t() } else { Ok(x.clone()) };
            let (left, right) = (turn(&x[0], transpose_left)?, turn(&x[1], transpose_right)?);
            if right.rank() == 2 && left.rank() > 2 {
                // One matrix for all of the left: its rows are one long matrix.
                let width = left.dim(left.rank() - 1)?;
                return left.contiguous()?.reshape(((), width))?.matmul(&right);
            }
            left.contiguous()?.matmul(&right.contiguous()?)
        };
        let product = product().and_then(|product| product.reshape(call.output().shape.dims()));
        self.codec.encode(call, &product.map_err(failed)?)
    }

    fn map(&self, call: &Call<'_>, inputs: &[&Tensor], expr: &Expr) -> Result<Tensor> {
        if call.output().shape.numel() == 0 {
            return on_host(self, call, inputs);
        }
        let x = self.decoded(call, inputs)?;
        let dims = call.output().shape.dims();
        let value = expression::eval(expr, &x, dims, self.codec.device()).map_err(failed)?;
        self.codec.encode(call, &value)
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
        if shape.numel() == 0 {
            return on_host(self, call, inputs);
        }
        let x = self.decoded(call, inputs)?;
        let reduced = || -> candle_core::Result<Tensor> {
            let value = expression::eval(expr, &x, shape.dims(), self.codec.device())?;
            let value = match kind {
                ReduceKind::Sum => value.contiguous()?.sum_keepdim(axes)?,
                ReduceKind::Max => {
                    let largest = |mut x: Tensor| {
                        for &axis in axes {
                            x = x.contiguous()?.max_keepdim(axis)?;
                        }
                        Ok::<_, candle_core::Error>(x)
                    };
                    let nan = largest(value.ne(&value)?.to_dtype(Stored::F32)?)?;
                    let most = largest(value)?;
                    let other = Tensor::full(f32::NAN, most.shape(), most.device())?;
                    nan.ne(&nan.zeros_like()?)?.where_cond(&other, &most)?
                }
            };
            value.reshape(call.output().shape.dims())
        };
        self.codec.encode(call, &reduced().map_err(failed)?)
    }

    fn gather(&self, call: &Call<'_>, table: &Tensor, ids: &Tensor) -> Result<Tensor> {
        if call.inputs.iter().any(|value| value.shape.numel() == 0) {
            return on_host(self, call, &[table, ids]);
        }
        let table = self.codec.decode(call, 0, table)?;
        let rows = || -> candle_core::Result<Tensor> {
            let ids = ids.flatten_all()?;
            let known = ids.lt(table.dim(0)? as u32)?;
            let safe = known.where_cond(&ids, &ids.zeros_like()?)?;
            where_row(&known, &table.index_select(&safe, 0)?, f32::NAN)?
                .reshape(call.output().shape.dims())
        };
        self.codec.encode(call, &rows().map_err(failed)?)
    }

    fn scatter_add(&self, call: &Call<'_>, updates: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let to = &call.output().shape;
        if to.numel() == 0 || call.inputs[0].shape.numel() == 0 {
            return on_host(self, call, &[updates, ids]);
        }
        let updates = self.codec.decode(call, 0, updates)?;
        let sums = || -> candle_core::Result<Tensor> {
            let ids = ids.flatten_all()?;
            let known = ids.lt(to.dims()[0] as u32)?;
            let safe = known.where_cond(&ids, &ids.zeros_like()?)?;
            let updates = where_row(&known, &updates.reshape(((), to.last()))?, 0.0)?;
            let zeros = Tensor::zeros(to.dims(), Stored::F32, self.codec.device())?;
            zeros.index_add(&safe, &updates, 0)
        };
        self.codec.encode(call, &sums().map_err(failed)?)
    }

    fn permute(&self, call: &Call<'_>, x: &Tensor, axes: &[usize]) -> Result<Tensor> {
        let mut axes = axes.to_vec();
        axes.extend(is_split(call.output().dtype).then_some(axes.len()));
        self.moved(call, &[x], |x| x[0].permute(axes))
    }

    fn reshape(&self, call: &Call<'_>, x: &Tensor) -> Result<Tensor> {
        let mut dims = call.output().shape.dims().to_vec();
        dims.extend(is_split(call.output().dtype).then_some(2));
        x.reshape(dims).map_err(failed)
    }

    fn slice(
        &self,
        call: &Call<'_>,
        x: &Tensor,
        axis: usize,
        start: usize,
        len: usize,
    ) -> Result<Tensor> {
        self.moved(call, &[x], |x| x[0].narrow(axis, start, len))
    }

    fn concat(&self, call: &Call<'_>, inputs: &[&Tensor], axis: usize) -> Result<Tensor> {
        if call.inputs.iter().any(|value| value.shape.numel() == 0) {
            return on_host(self, call, inputs);
        }
        self.moved(call, inputs, |x| Tensor::cat(x, axis))
    }

    fn cast(&self, call: &Call<'_>, x: &Tensor) -> Result<Tensor> {
        let values = self.codec.decode(call, 0, x)?;
        self.codec.encode(call, &values)
    }
}
