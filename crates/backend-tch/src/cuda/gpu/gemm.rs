//! Matrix products by cuBLASLt.
//!
//! cuBLASLt thinks in columns: the row-major `c [m, n] = a b` is its `c^T = b^T a^T`, so that its
//! first operand is our right one.

use std::cell::{Cell, RefCell};
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
use crate::cuda::source::matmul::{Epilogue, Product};

/// Algorithms that are timed.
const CANDIDATES: usize = 12;
/// How often each is.
const ROUNDS: usize = 5;

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
    let epilogue = product.epilogue == Epilogue::None
        || (product.batch == 1 && left == out && left != DType::F32 && product.result.alpha == 1.0);
    operands && result_fits && extents && epilogue && m.min(n).min(k) >= 16
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
    /// One item of a batch with steps, and whether the items run one by one.
    item: Option<Box<Gemm>>,
    apart: Cell<bool>,
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: it was created and not destroyed.
        let _ = unsafe { lt::destroy_matmul_desc(self.description) };
    }
}

/// What decides about the fastest algorithm.
type Key = (usize, usize, usize, [usize; 4], [bool; 2], String);

fn key(product: &Product) -> Key {
    let Product { m, n, k, batch, left_by_k, right_by_k, .. } = *product;
    let types = format!("{} {} {}", product.left, product.right, product.result.dtype);
    let [left, right, out] = if batch > 1 { product.batch_steps() } else { [0; 3] };
    let types = format!("{types} {:?}", product.epilogue);
    (m, n, k, [batch, left, right, out], [left_by_k, right_by_k], types)
}

/// How products run fastest.
fn fastest() -> &'static Mutex<HashMap<Key, Choice>> {
    static FASTEST: OnceLock<Mutex<HashMap<Key, Choice>>> = OnceLock::new();
    FASTEST.get_or_init(Mutex::default)
}

/// How a product runs fastest.
#[derive(Clone, Copy)]
struct Choice {
    /// None if the items of the batch run one by one.
    algorithm: Option<sys::cublasLtMatmulAlgo_t>,
}
// SAFETY: an opaque block of numbers.
unsafe impl Send for Choice {}

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
        let epilogue = match product.epilogue {
            Epilogue::None => None,
            Epilogue::Gelu => Some(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_AUX),
            Epilogue::GeluGrad => Some(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DGELU),
        };
        if let Some(epilogue) = epilogue {
            set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue as i32)?;
            let row = n as i64;
            let value = (&raw const row).cast::<c_void>();
            let attribute = Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD;
            // SAFETY: the description lives; the attribute is a 64-bit integer.
            unsafe { lt::set_matmul_desc_attribute(description, attribute, value, 8) }
                .map_err(|error| failed("product", error))?;
        }
        let turned = |by_k: bool, extent: usize| if by_k { (k, extent) } else { (extent, k) };
        let (first, second) = (turned(product.right_by_k, n), turned(product.left_by_k, m));
        let [left_step, right_step, out_step] = product.batch_steps();
        let layouts = [
            Layout::new(right, first.0, first.1, batch, right_step)?,
            Layout::new(left, second.0, second.1, batch, left_step)?,
            Layout::new(out, n, m, batch, out_step)?,
        ];
        let item = match product.steps {
            Some(_) => {
                Some(Box::new(Self::new(gpu, &Product { batch: 1, steps: None, ..*product })?))
            }
            None => None,
        };
        let (algorithm, apart) = (RefCell::new(None), Cell::new(false));
        Ok(Self { gpu, product: *product, description, layouts, algorithm, item, apart })
    }

    /// Finds the fastest algorithm, on operands whose content does not matter.
    pub(crate) fn tune(&self, stream: &Stream, at: [u64; 4], workspace: u64) -> Result<()> {
        let key = key(&self.product);
        if let Some(item) = &self.item {
            item.tune(stream, at, workspace)?;
        }
        let known = {
            let fastest = fastest().lock().unwrap_or_else(PoisonError::into_inner);
            fastest.get(&key).copied()
        };
        let choice = match known {
            Some(choice) => choice,
            None => self.chosen(stream, at, workspace, &key)?,
        };
        *self.algorithm.borrow_mut() = choice.algorithm;
        self.apart.set(choice.algorithm.is_none());
        let mut fastest = fastest().lock().unwrap_or_else(PoisonError::into_inner);
        fastest.insert(key, choice);
        Ok(())
    }

    /// Times every candidate, and a batch's items one by one.
    fn chosen(&self, stream: &Stream, at: [u64; 4], workspace: u64, key: &Key) -> Result<Choice> {
        let work = self.product.m * self.product.n * self.product.k * self.product.batch;
        let candidates = self.candidates().or_else(|error| match self.item {
            Some(_) => Ok(Vec::new()),
            None => Err(error),
        })?;
        let mut ways: Vec<Option<sys::cublasLtMatmulAlgo_t>> =
            candidates.into_iter().map(Some).collect();
        if self.item.is_some() {
            ways.push(None);
        }
        let choose = |way: Option<sys::cublasLtMatmulAlgo_t>| {
            *self.algorithm.borrow_mut() = way;
            self.apart.set(way.is_none());
        };
        // What does not run at all is out.
        ways.retain(|&way| {
            choose(way);
            self.run(stream, at, workspace).is_ok()
        });
        let mut times: Vec<Vec<f32>> = vec![Vec::new(); ways.len()];
        // Small products run at once; there the heuristic's order is as good.
        let rounds = if work < 1 << 28 { 0 } else { ROUNDS };
        // In turns, so that a clock that slows down is no one's fault.
        for _ in 0..rounds {
            for (way, times) in ways.iter().zip(&mut times) {
                choose(*way);
                times.push(stream.time(&mut || self.run(stream, at, workspace))?);
            }
        }
        let median = |times: &mut Vec<f32>| {
            times.sort_by(f32::total_cmp);
            times.get(times.len() / 2).copied().unwrap_or(0.0)
        };
        let medians = times.iter_mut().map(median);
        let best = ways.iter().zip(medians).min_by(|(_, a), (_, b)| a.total_cmp(b));
        match best {
            Some((&algorithm, _)) => Ok(Choice { algorithm }),
            None => Err(failed("product", format!("cuBLASLt has no algorithm for {key:?}"))),
        }
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
    pub(crate) fn run(&self, stream: &Stream, at: [u64; 4], workspace: u64) -> Result<()> {
        if let (true, Some(item)) = (self.apart.get(), &self.item) {
            let steps = self.product.batch_steps();
            let types = [self.product.left, self.product.right, self.product.result.dtype];
            for one in 0..self.product.batch {
                let place = |n: usize| at[n] + (one * steps[n] * types[n].bytes()) as u64;
                item.run(stream, [place(0), place(1), place(2), 0], workspace)?;
            }
            return Ok(());
        }
        let [left, right, out, more] = at;
        if self.product.epilogue != Epilogue::None {
            let value = (&raw const more).cast::<c_void>();
            let attribute =
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER;
            // SAFETY: the description lives; the attribute is a pointer.
            unsafe { lt::set_matmul_desc_attribute(self.description, attribute, value, 8) }
                .map_err(|error| failed("product", error))?;
        }
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
