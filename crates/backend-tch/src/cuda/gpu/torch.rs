//! Attention by libtorch: cuDNN's fused kernels.
//!
//! `tch` does not bind the forward pass; libtorch exports it with a C interface whose tensor
//! handles are the pointers that `tch` wraps.

use std::ffi::c_void;
use std::rc::Rc;

use libloading::os::unix::Library;
use onesigma_backend::Result;
use onesigma_format::Format;
use onesigma_graph::DType;
use tch::{Device, Kind, Tensor};

use super::library::Gpu;
use super::stream::Stream;
use super::{Counter, failed};
use crate::cuda::device::Held;
use crate::cuda::ir::AttentionSpec;

type Handle = *mut c_void;
type SetStream = unsafe extern "C" fn(*mut c_void, i32) -> i32;
/// `aoti_torch_cuda__scaled_dot_product_cudnn_attention`.
type Forward = unsafe extern "C" fn(
    Handle,
    Handle,
    Handle,
    *const Handle,
    i32,
    f64,
    i32,
    i32,
    *const f64,
    *mut Handle,
    *mut Handle,
    *mut Handle,
    *mut Handle,
    *mut i64,
    *mut i64,
    *mut Handle,
    *mut Handle,
    *mut Handle,
) -> i32;

/// What is called of libtorch's C interface.
#[derive(Clone, Copy)]
pub(crate) struct Functions {
    set_stream: SetStream,
    forward: Forward,
}

impl Functions {
    /// Finds them and starts libtorch's CUDA half.
    pub(crate) fn find(library: Library) -> Result<Self, String> {
        let missing = |name: &str| {
            format!("libtorch_cuda.so has no function `{name}`: libtorch 2.11 is needed")
        };
        // SAFETY: the types are those of libtorch 2.11's headers (`stable/c/shim.h`,
        // `generated/c_shim_cuda.h`); the library is kept for good.
        let functions = unsafe {
            let name = "torch_set_current_cuda_stream";
            let set_stream = *library.get::<SetStream>(name).map_err(|_| missing(name))?;
            let name = "aoti_torch_cuda__scaled_dot_product_cudnn_attention";
            let forward = *library.get::<Forward>(name).map_err(|_| missing(name))?;
            Self { set_stream, forward }
        };
        std::mem::forget(library);
        // The first tensor on a device starts libtorch there.
        let first = Tensor::f_zeros([1], (Kind::Float, Device::Cuda(0)));
        first
            .map_err(|error| {
                let error = error.to_string();
                format!(
                    "libtorch does not start CUDA: {}",
                    error.lines().next().unwrap_or_default()
                )
            })
            .map(|_| functions)
    }
}

/// Whether cuDNN's kernels run: 16 bits, heads of up to 128, as many key heads as heads, and
/// sequences long enough to be worth their rounding of the weights to 16 bits.
pub(crate) fn runs(spec: &AttentionSpec) -> bool {
    let half = [DType::Float(Format::F16), DType::Float(Format::BF16)].contains(&spec.dtype);
    let square = !spec.causal || spec.queries == spec.keys;
    half && square
        && spec.heads == spec.key_heads
        && spec.width.is_multiple_of(8)
        && (8..=128).contains(&spec.width)
        && spec.queries >= 64
        && spec.keys >= 64
}

fn check<T>(result: Result<T, tch::TchError>) -> Result<T> {
    result.map_err(|error| {
        let text = error.to_string();
        failed("attention", text.lines().next().unwrap_or_default())
    })
}

/// A view `[batch, heads, seq, width]` of memory that holds `[batch, seq, heads, width]`.
fn view(address: u64, spec: &AttentionSpec, length: usize) -> Result<Tensor> {
    let [batch, heads, length, width] =
        [spec.batch, spec.heads, length, spec.width].map(|extent| extent as i64);
    let strides = [length * heads * width, width, heads * width, 1];
    let kind = crate::cpu::kind(spec.dtype);
    let size = [batch, heads, length, width];
    let device = Device::Cuda(0);
    // SAFETY: the tensor is in the arena and outlives the view.
    check(unsafe { Tensor::f_from_blob(address as *const u8, &size, &strides, kind, device) })
}

/// `[batch, seq, heads, width]` in order; no copy if libtorch kept the order of the operands.
fn in_order(tensor: &Tensor) -> Result<Tensor> {
    check(tensor.f_transpose(1, 2).and_then(|tensor| tensor.f_contiguous()))
}

fn use_stream(gpu: &Gpu, stream: &Stream) -> Result<()> {
    // SAFETY: the stream lives; libtorch only remembers it for this thread.
    match unsafe { (gpu.torch.set_stream)(stream.raw.cast(), 0) } {
        0 => Ok(()),
        code => Err(failed("libtorch's stream", code)),
    }
}

/// Output `[batch, seq, heads, width]` and log-sum-exp.
pub(crate) fn attention(
    gpu: &Gpu,
    stream: &Stream,
    spec: &AttentionSpec,
    inputs: [u64; 3],
) -> Result<[Tensor; 2]> {
    use_stream(gpu, stream)?;
    let [q, k, v] = [
        view(inputs[0], spec, spec.queries)?,
        view(inputs[1], spec, spec.keys)?,
        view(inputs[2], spec, spec.keys)?,
    ];
    let mut made: [Handle; 7] = [std::ptr::null_mut(); 7];
    let mut most = [0_i64; 2];
    let scale = spec.scale;
    let [out, lse, cum_q, cum_k, seed, offset, debug] = &mut made;
    let [most_q, most_k] = &mut most;
    let handle = |tensor: &Tensor| tensor.as_ptr().cast_mut().cast::<c_void>();
    // SAFETY: the handles are those of living tensors, and every result has a place.
    let code = unsafe {
        (gpu.torch.forward)(
            handle(&q),
            handle(&k),
            handle(&v),
            std::ptr::null(),
            1,
            0.0,
            i32::from(spec.causal),
            0,
            &raw const scale,
            out,
            lse,
            cum_q,
            cum_k,
            most_q,
            most_k,
            seed,
            offset,
            debug,
        )
    };
    if code != 0 {
        return Err(failed("attention", format!("cuDNN refused {spec:?}")));
    }
    let mut made = made.map(|handle| match handle.is_null() {
        true => Tensor::new(),
        // SAFETY: each handle is a tensor that is ours now.
        false => unsafe { Tensor::from_ptr(handle.cast()) },
    });
    let out = in_order(&made[0])?;
    let lse = std::mem::replace(&mut made[1], Tensor::new());
    Ok([out, check(lse.f_contiguous())?])
}

/// Gradients of queries, keys and values from `q, k, v, out, lse, d_out`.
pub(crate) fn attention_grad(
    gpu: &Gpu,
    stream: &Stream,
    spec: &AttentionSpec,
    inputs: [u64; 6],
) -> Result<[Tensor; 3]> {
    use_stream(gpu, stream)?;
    let [q, out, d_out] = [0, 3, 5].map(|at| view(inputs[at], spec, spec.queries));
    let [k, v] = [1, 2].map(|at| view(inputs[at], spec, spec.keys));
    let rows = [spec.batch, spec.heads, spec.queries, 1].map(|extent| extent as i64);
    let strides = [rows[1] * rows[2], rows[2], 1, 1];
    let (kind, device) = (Kind::Float, Device::Cuda(0));
    // SAFETY: the tensor outlives the view.
    let lse = check(unsafe {
        Tensor::f_from_blob(inputs[4] as *const u8, &rows, &strides, kind, device)
    })?;
    let none = Tensor::new();
    // Without dropout no random numbers are drawn.
    let word = check(Tensor::f_empty([0_i64; 0], (Kind::Int64, device)))?;
    let (dq, dk, dv) = check(Tensor::f_internal_scaled_dot_product_cudnn_attention_backward(
        &d_out?,
        &q?,
        &k?,
        &v?,
        &out?,
        &lse,
        &word,
        &word,
        &none,
        &none,
        &none,
        spec.queries as i64,
        spec.keys as i64,
        0.0,
        spec.causal,
        spec.scale,
    ))?;
    Ok([in_order(&dq)?, in_order(&dk)?, in_order(&dv)?])
}

/// A tensor whose bytes are counted as long as it lives.
struct Counted {
    tensor: Tensor,
    bytes: usize,
    counter: Rc<Counter>,
}

impl Held for Counted {
    fn address(&self) -> u64 {
        self.tensor.data_ptr() as u64
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counter.now.set(self.counter.now.get() - self.bytes);
    }
}

/// Keeps a tensor.
pub(crate) fn hold(tensor: Tensor, counter: &Rc<Counter>) -> Rc<dyn Held> {
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    counter.add(bytes);
    Rc::new(Counted { tensor, bytes, counter: Rc::clone(counter) })
}
