//! A device that runs the CUDA kernels on the host, compiled by the system's C++ compiler: for
//! tests on machines without a GPU. Slow, and no timing means anything.

use std::collections::HashMap;
use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;
use onesigma_backend::{Caps, Error, Result};
use onesigma_format::{Conversion, encode};
use onesigma_graph::DType;

use super::NAME;
use super::device::{Device, Function, Held, Prepared, Replay};
use super::ir::AttentionSpec;
use super::lower::{Abilities, is_fp8};
use super::source::matmul::{Epilogue, Product};
use super::source::{Kernel, PRELUDE};

const EMULATE: &str = include_str!("kernels/emulate.h");

fn failed(reason: impl std::fmt::Display) -> Error {
    Error::Device { backend: NAME.to_owned(), reason: reason.to_string() }
}

/// The entry of a compiled kernel: arguments, blocks, threads.
type Entry = unsafe extern "C" fn(*const u64, u32, u32, u32, u32);

/// A kernel in this process; its statics allow one launch at a time.
struct Loaded {
    library: Library,
    lock: Mutex<()>,
}

fn loaded() -> &'static Mutex<HashMap<u64, &'static Loaded>> {
    static LOADED: OnceLock<Mutex<HashMap<u64, &'static Loaded>>> = OnceLock::new();
    LOADED.get_or_init(Mutex::default)
}

fn key(kernel: &Kernel) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&kernel.source, kernel.params, PRELUDE, EMULATE).hash(&mut hasher);
    hasher.finish()
}

/// A name that no other process or thread uses.
fn unique(name: &str) -> String {
    let own = format!("{name}.{}.{:?}", std::process::id(), std::thread::current().id());
    own.replace(['(', ')'], "-")
}

/// Compiles a text, or a file without one.
fn compile(
    text: Option<&str>,
    more: &[&str],
    language: &str,
    from: &str,
    to: &Path,
) -> Result<(), String> {
    let mut child = Command::new("c++")
        .args(["-O0", "-std=c++17", "-fPIC", "-ffp-contract=off", "-w"])
        .args(more)
        .args(["-x", language, from, "-o"])
        .arg(to)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    if let (Some(mut input), Some(text)) = (child.stdin.take(), text) {
        input.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What all kernels have in common, compiled once.
fn header(folder: &Path) -> Result<PathBuf> {
    static MADE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut hasher = DefaultHasher::new();
    (PRELUDE, EMULATE).hash(&mut hasher);
    let header = folder.join(format!("{:016x}.h", hasher.finish()));
    let compiled = header.with_extension("h.gch");
    if !compiled.exists() {
        std::fs::write(&header, format!("{EMULATE}\n{PRELUDE}")).map_err(failed)?;
        let part = folder.join(unique("header"));
        compile(None, &[], "c++-header", &header.display().to_string(), &part).map_err(failed)?;
        std::fs::rename(&part, &compiled).map_err(failed)?;
    }
    Ok(header)
}

fn load(kernel: &Kernel) -> Result<()> {
    let key = key(kernel);
    let known = || loaded().lock().unwrap_or_else(PoisonError::into_inner).contains_key(&key);
    if known() {
        return Ok(());
    }
    let folder = std::env::temp_dir().join("onesigma-emulated");
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let path = folder.join(format!("{key:016x}.so"));
    if !path.exists() {
        let header = header(&folder)?;
        let arguments: Vec<String> = (0..kernel.params).map(|n| format!("(void*)a[{n}]")).collect();
        let text = format!(
            "{}\nstatic void call(const uint64_t* a) {{ kernel({}); }}\n\
             extern \"C\" void run(const uint64_t* a, unsigned x, unsigned y, unsigned z, unsigned t) \
             {{ run_grid(call, a, x, y, z, t); }}\n",
            kernel.source,
            arguments.join(", ")
        );
        let part = folder.join(unique(&format!("{key:016x}")));
        let more = ["-shared", "-include", &header.display().to_string()];
        compile(Some(&text), &more, "c++", "-", &part)
            .map_err(|errors| failed(format!("{}: {errors}\n{}", kernel.label, kernel.source)))?;
        std::fs::rename(&part, &path).map_err(failed)?;
    }
    // SAFETY: the library was made here from kernels; it has no initialisers.
    let library = unsafe { Library::new(&path) }.map_err(failed)?;
    let own = Box::leak(Box::new(Loaded { library, lock: Mutex::new(()) }));
    // Two threads may come here at once: the first one's lock counts.
    loaded().lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(own);
    Ok(())
}

/// The device.
#[derive(Debug, Default)]
pub(crate) struct Emulated {
    memory: Mutex<HashMap<u64, Vec<u128>>>,
    products: Mutex<Vec<Product>>,
}

impl Abilities for Emulated {
    /// As the tensor cores, so that transposed copies are tested.
    fn runs_product(&self, product: &Product) -> bool {
        let sizes = [product.m, product.n, product.k];
        let plain = product.batch == 1 && product.epilogue == Epilogue::None;
        is_fp8(product) && plain && sizes.iter().all(|size| size.is_multiple_of(16))
    }

    fn runs_attention(&self, _: &AttentionSpec) -> bool {
        false
    }
}

impl Emulated {
    /// The device.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a C++ compiler.
    pub(crate) fn open() -> Result<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        let version = || Command::new("c++").arg("--version").output();
        match FOUND.get_or_init(|| version().is_ok_and(|output| output.status.success())) {
            true => Ok(Self::default()),
            false => Err(Error::Unavailable {
                backend: NAME.to_owned(),
                reason: "the emulation needs a C++ compiler called `c++`".to_owned(),
            }),
        }
    }

    /// # Safety
    /// The range lies in memory that this device allocated, and nothing else uses it meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn bytes(&self, address: u64, bytes: usize) -> &mut [u8] {
        // SAFETY: as this function.
        unsafe { std::slice::from_raw_parts_mut(address as *mut u8, bytes) }
    }
}

impl Device for Emulated {
    fn caps(&self) -> Caps {
        let device = "CUDA kernels emulated on the host".to_owned();
        Caps { device, memory_bytes: None, deterministic: true }
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        // Kept aligned by 256 bytes by hand.
        let memory = vec![0_u128; bytes.div_ceil(16) + 16];
        let address = (memory.as_ptr() as u64).next_multiple_of(256);
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(address, memory);
        Ok(address)
    }

    fn free(&self, address: u64) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the engine stays within what it allocated.
        unsafe { self.bytes(to, bytes.len()) }.copy_from_slice(bytes);
        Ok(())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: as `upload`.
        bytes.copy_from_slice(unsafe { self.bytes(from, bytes.len()) });
        Ok(())
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: as `upload`.
        unsafe { self.bytes(address, bytes) }.fill(0);
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as `upload`; the ranges may overlap if they are equal.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn compile(&self, kernels: &[&Kernel]) -> Result<Vec<Function>> {
        kernels.iter().map(|kernel| load(kernel).map(|()| Function(key(kernel) as usize))).collect()
    }

    fn launch(&self, function: Function, kernel: &Kernel, arguments: &[u64]) -> Result<()> {
        let own = {
            let loaded = loaded().lock().unwrap_or_else(PoisonError::into_inner);
            *loaded.get(&(function.0 as u64)).ok_or_else(|| failed("no such kernel"))?
        };
        let _one_at_a_time = own.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let [x, y, z] = kernel.grid;
        // SAFETY: the kernel was compiled with this signature, and its arguments are addresses of
        // tensors of the sizes it was generated for.
        unsafe {
            let name = CString::from(c"run");
            let run: libloading::Symbol<'_, Entry> =
                own.library.get(name.as_bytes_with_nul()).map_err(failed)?;
            run(arguments.as_ptr(), x, y, z, kernel.threads);
        }
        Ok(())
    }

    fn scramble(&self, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, product: &Product, _: [u64; 4]) -> Result<Prepared> {
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        products.push(*product);
        Ok(Prepared(products.len() - 1))
    }

    fn multiply(&self, prepared: Prepared, [left, right, out, _]: [u64; 4]) -> Result<()> {
        let product = self.products.lock().unwrap_or_else(PoisonError::into_inner)[prepared.0];
        let Product { m, n, k, left: a, right: b, result, .. } = product;
        let decoded = |dtype: DType, address: u64, numel: usize| -> Result<Vec<f32>> {
            let format = dtype.format().ok_or_else(|| failed("no float"))?;
            let mut values = vec![0.0; numel];
            // SAFETY: as `upload`.
            let codes = unsafe { self.bytes(address, numel * dtype.bytes()) };
            onesigma_format::decode_slice(format, codes, &mut values).map_err(failed)?;
            Ok(values)
        };
        let format = result.dtype.format().ok_or_else(|| failed("no float"))?;
        let steps = product.batch_steps();
        let sizes = [a, b, result.dtype].map(DType::bytes);
        for item in 0..product.batch {
            let place =
                |which: usize, from: u64| from + (item * steps[which] * sizes[which]) as u64;
            let a = decoded(a, place(0, left), m * k)?;
            let b = decoded(b, place(1, right), n * k)?;
            // SAFETY: as `upload`.
            let codes = unsafe { self.bytes(place(2, out), m * n * format.bytes()) };
            for row in 0..m {
                for column in 0..n {
                    let sum: f32 = (0..k).map(|p| a[row * k + p] * b[column * k + p]).sum();
                    let how = Conversion { ..result.how };
                    let code = encode(sum * result.alpha as f32, format, how, 0).to_le_bytes();
                    let at = (row * n + column) * format.bytes();
                    codes[at..at + format.bytes()].copy_from_slice(&code[..format.bytes()]);
                }
            }
        }
        Ok(())
    }

    fn attention(&self, _: &AttentionSpec, _: [u64; 3]) -> Result<[Rc<dyn Held>; 2]> {
        Err(failed("no fused attention"))
    }

    fn attention_grad(&self, _: &AttentionSpec, _: [u64; 6]) -> Result<[Rc<dyn Held>; 3]> {
        Err(failed("no fused attention"))
    }

    fn time(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        queue().map(|()| 0.0)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn capture(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<Option<Replay>> {
        Ok(None)
    }

    fn replay(&self, _: Replay) -> Result<()> {
        Err(failed("nothing was captured"))
    }

    fn library_bytes(&self) -> usize {
        0
    }
}
