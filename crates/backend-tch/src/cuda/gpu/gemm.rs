//! Matrix products by cuBLASLt.
//!
//! cuBLASLt thinks in columns: the row-major `c [m, n] = a b` is its `c^T = b^T a^T`, so that its
//! first operand is our right one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::cublaslt::{result as lt, sys};
use onesigma_backend::Result;
use onesigma_format::{Format, Rounding};
use onesigma_graph::DType;

use super::failed;
use super::library::Gpu;
use super::stream::Stream;
use crate::cuda::compiled::WORKSPACE_BYTES;
use crate::cuda::lower::is_fp8;
use crate::cuda::source::matmul::Product;

/// Algorithms that are timed.
const CANDIDATES: usize = 8;

fn data_type(dtype: DType) -> Option<sys::cudaDataType> {
    use sys::cudaDataType as Type;
    match dtype {
        DType::Float(Format::F32) => Some(Type::CUDA_R_32F),
        DType::Float(Format::F16) => Some(Type::CUDA_R_16F),
        DType::Float(Format::BF16) => Some(Type::CUDA_R_16BF),
        DType::Float(Format::E4M3) => Some(Type::CUDA_R_8F_E4M3),
        DType::Float(Format::E5M2) => Some(Type::CUDA_R_8F_E5M2),
        _ => None,
    }
}

/// Whether cuBLASLt runs a product: equal operand formats of 16 or 32 bits, or FP8 with at most
/// one E5M2; a result of 16 or 32 bits; rows of whole 16 bytes.
pub(crate) fn runs(product: &Product) -> bool {
    let Product { m, n, k, left, right, result, .. } = *product;
    let wide = |dtype: DType| {
        [DType::F32, DType::Float(Format::F16), DType::Float(Format::BF16)].contains(&dtype)
    };
    let e5m2 = DType::Float(Format::E5M2);
    let operands = if is_fp8(product) {
        !(left == e5m2 && right == e5m2) && product.left_by_k && product.right_by_k
    } else {
        left == right && wide(left)
    };
    let out = result.dtype;
    let result_fits = wide(out)
        && (is_fp8(product) || out == DType::F32 || out == left)
        && result.how.rounding == Rounding::NearestEven;
    let whole = |extent: usize, dtype: DType| (extent * dtype.bytes()).is_multiple_of(16);
    let extents = if is_fp8(product) {
        [m, n, k].iter().all(|extent| extent.is_multiple_of(16))
    } else {
        [m, n, k].iter().all(|&extent| whole(extent, left) && extent > 0) && whole(n, out)
    };
    // Tiny products are faster in one kernel of our own than in a library's.
    operands && result_fits && extents && m.min(n).min(k) >= 16
}

/// A layout descriptor.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// A column-major matrix with whole columns, one for each item of a batch.
    fn new(
        dtype: sys::cudaDataType,
        rows: usize,
        columns: usize,
        batch: usize,
        step: usize,
    ) -> Result<Self> {
        let layout = lt::create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64)
            .map(Self)
            .map_err(|error| failed("matrix layout", error))?;
        if batch > 1 {
            use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
            let (batch, step) = (batch as i32, step as i64);
            let set = |attribute, value: *const c_void, bytes| {
                // SAFETY: the layout lives, and the value has the attribute's type.
                unsafe { lt::set_matrix_layout_attribute(layout.0, attribute, value, bytes) }
                    .map_err(|error| failed("matrix layout", error))
            };
            set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const batch).cast(), 4)?;
            let strided = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
            set(strided, (&raw const step).cast(), 8)?;
        }
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it was created and not destroyed.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// A product with its algorithm.
pub(crate) struct Gemm {
    gpu: &'static Gpu,
    product: Product,
    description: sys::cublasLtMatmulDesc_t,
    /// Of cuBLASLt's first, second and third matrix.
    layouts: [Layout; 3],
    algorithm: RefCell<Option<sys::cublasLtMatmulAlgo_t>>,
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: it was created and not destroyed.
        let _ = unsafe { lt::destroy_matmul_desc(self.description) };
    }
}

/// What decides about the fastest algorithm.
type Key = (usize, usize, usize, usize, [bool; 3], String);

fn key(product: &Product) -> Key {
    let Product { m, n, k, batch, right_batched, left_by_k, right_by_k, .. } = *product;
    let types = format!("{} {} {}", product.left, product.right, product.result.dtype);
    (m, n, k, batch, [right_batched, left_by_k, right_by_k], types)
}

/// Fastest algorithms of this process.
fn fastest() -> &'static Mutex<HashMap<Key, Algorithm>> {
    static FASTEST: OnceLock<Mutex<HashMap<Key, Algorithm>>> = OnceLock::new();
    FASTEST.get_or_init(Mutex::default)
}

#[derive(Clone, Copy)]
struct Algorithm(sys::cublasLtMatmulAlgo_t);
// SAFETY: an opaque block of numbers.
unsafe impl Send for Algorithm {}

impl Gemm {
    pub(crate) fn new(gpu: &'static Gpu, product: &Product) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let Product { m, n, k, batch, .. } = *product;
        let types = [product.right, product.left, product.result.dtype].map(data_type);
        let [Some(right), Some(left), Some(out)] = types else {
            return Err(failed("product", "a format that cuBLASLt does not know"));
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = lt::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)
            .map_err(|error| failed("product", error))?;
        let set = |attribute, value: i32| {
            let value = (&raw const value).cast::<c_void>();
            // SAFETY: the description lives; these attributes are 32-bit integers.
            unsafe { lt::set_matmul_desc_attribute(description, attribute, value, 4) }
                .map_err(|error| failed("product", error))
        };
        // 1 transposes: rows along k are columns of k to cuBLASLt.
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(product.right_by_k))?;
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(!product.left_by_k))?;
        if is_fp8(product) {
            let fast: i8 = i8::from(fast_accumulation(product));
            let value = (&raw const fast).cast::<c_void>();
            let attribute = Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM;
            // SAFETY: the description lives; the attribute is one byte.
            unsafe { lt::set_matmul_desc_attribute(description, attribute, value, 1) }
                .map_err(|error| failed("product", error))?;
        }
        let turned = |by_k: bool, extent: usize| if by_k { (k, extent) } else { (extent, k) };
        let (first, second) = (turned(product.right_by_k, n), turned(product.left_by_k, m));
        let right_step = if product.right_batched { n * k } else { 0 };
        let layouts = [
            Layout::new(right, first.0, first.1, batch, right_step)?,
            Layout::new(left, second.0, second.1, batch, m * k)?,
            Layout::new(out, n, m, batch, m * n)?,
        ];
        let algorithm = RefCell::new(None);
        Ok(Self { gpu, product: *product, description, layouts, algorithm })
    }

    /// Finds the fastest algorithm, on operands whose content does not matter.
    pub(crate) fn tune(&self, stream: &Stream, at: [u64; 3], workspace: u64) -> Result<()> {
        let key = key(&self.product);
        let known = |key| {
            let fastest = fastest().lock().unwrap_or_else(PoisonError::into_inner);
            fastest.get(key).copied()
        };
        if let Some(Algorithm(algorithm)) = known(&key) {
            *self.algorithm.borrow_mut() = Some(algorithm);
            return Ok(());
        }
        let candidates = self.candidates()?;
        let work = self.product.m * self.product.n * self.product.k * self.product.batch;
        let mut best: Option<(f32, sys::cublasLtMatmulAlgo_t)> = None;
        for algorithm in candidates {
            *self.algorithm.borrow_mut() = Some(algorithm);
            if self.run(stream, at, workspace).is_err() {
                continue;
            }
            // Small products run at once; there the heuristic's order is as good.
            let time = if work < 1 << 28 {
                0.0
            } else {
                let mut least = f32::INFINITY;
                for _ in 0..3 {
                    let queue = &mut || self.run(stream, at, workspace);
                    least = least.min(stream.time(queue)?);
                }
                least
            };
            if best.is_none_or(|(least, _)| time < least) {
                best = Some((time, algorithm));
            }
        }
        let Some((_, algorithm)) = best else {
            return Err(failed("product", format!("cuBLASLt has no algorithm for {key:?}")));
        };
        *self.algorithm.borrow_mut() = Some(algorithm);
        let mut fastest = fastest().lock().unwrap_or_else(PoisonError::into_inner);
        fastest.insert(key, Algorithm(algorithm));
        Ok(())
    }

    fn candidates(&self) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let wrong = |error| failed("product", error);
        let preference = lt::create_matmul_pref().map_err(wrong)?;
        let (bytes, reduction) = (WORKSPACE_BYTES as u64, 2_u32);
        let mut found = Vec::with_capacity(CANDIDATES);
        let mut count = 0;
        let [first, second, third] = [0, 1, 2].map(|at: usize| self.layouts[at].0);
        // SAFETY: all descriptors live; the values have their attributes' types, and the list has
        // room for what is asked for.
        unsafe {
            lt::set_matmul_pref_attribute(
                preference,
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                8,
            )
            .map_err(wrong)?;
            // Parts of k are added in f32 only: rounding once is part of the contract.
            lt::set_matmul_pref_attribute(
                preference,
                Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                (&raw const reduction).cast(),
                4,
            )
            .map_err(wrong)?;
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.gpu.cublaslt,
                self.description,
                first,
                second,
                third,
                third,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            );
            let _ = lt::destroy_matmul_pref(preference);
            status.result().map_err(wrong)?;
            found.set_len(count as usize);
        }
        let found: Vec<sys::cublasLtMatmulHeuristicResult_t> = found;
        Ok(found.iter().filter(|one| one.state.result().is_ok()).map(|one| one.algo).collect())
    }

    /// Queues the product.
    pub(crate) fn run(&self, stream: &Stream, at: [u64; 3], workspace: u64) -> Result<()> {
        let [left, right, out] = at;
        let (alpha, beta) = (self.product.result.alpha as f32, 0.0_f32);
        let algorithm = self.algorithm.borrow();
        let chosen = algorithm.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: all descriptors live, the addresses are those of matrices of these layouts, and
        // the work space has the size that the algorithm was chosen for.
        unsafe {
            lt::matmul(
                self.gpu.cublaslt,
                self.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                right as *const c_void,
                self.layouts[0].0,
                left as *const c_void,
                self.layouts[1].0,
                out as *const c_void,
                self.layouts[2].0,
                out as *mut c_void,
                self.layouts[2].0,
                chosen,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.raw.cast(),
            )
        }
        .map_err(|error| failed("product", error))
    }
}

/// Whether FP8 products accumulate in the tensor cores' own precision all along k: for products of
/// activations and weights, as usual; gradients (E5M2) are accumulated in f32.
fn fast_accumulation(product: &Product) -> bool {
    let e4m3 = DType::Float(Format::E4M3);
    product.left == e4m3 && product.right == e4m3
}
