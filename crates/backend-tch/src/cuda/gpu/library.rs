//! Finds the driver, libtorch's CUDA half and the compiler, when a GPU is first asked for.
//!
//! Nothing of CUDA is linked: one binary runs with and without a GPU.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::cublaslt::{result as cublaslt, sys as cublaslt_sys};
use cudarc::driver::{result as driver, sys};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use onesigma_backend::{Error, Result};

use crate::cuda::NAME;

/// The GPU of this process, with its libraries.
pub(crate) struct Gpu {
    pub name: String,
    pub memory_bytes: u64,
    /// Compute capability: 90 for Hopper.
    pub architecture: u32,
    context: sys::CUcontext,
    pub cublaslt: cublaslt_sys::cublasLtHandle_t,
    pub torch: super::torch::Functions,
}

// SAFETY: context and handle may be used from any thread; the rest is plain data and functions.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Makes the context that of this thread.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context was retained when the GPU was opened and is never released.
        unsafe { driver::ctx::set_current(self.context) }
            .map_err(|error| super::failed("context", error))
    }
}

fn unavailable(reason: impl Into<String>) -> Error {
    Error::Unavailable { backend: NAME.to_owned(), reason: reason.into() }
}

/// The first GPU.
///
/// # Errors
/// [`Error::Unavailable`] with what is missing and how to get it.
pub(crate) fn gpu() -> Result<&'static Gpu> {
    static GPU: OnceLock<Result<Gpu, String>> = OnceLock::new();
    let gpu = GPU.get_or_init(open).as_ref().map_err(unavailable)?;
    gpu.bind()?;
    Ok(gpu)
}

const NO_GPU: &str = "the NVIDIA driver finds no GPU: see what `nvidia-smi` lists and whether \
                      CUDA_VISIBLE_DEVICES hides it, or use the backend `cpu`";

fn open() -> Result<Gpu, String> {
    // SAFETY: looks for the driver's library; loading it has no other effect.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "there is no NVIDIA driver (libcuda.so): install one of version 580 or later, \
                    or use the backend `cpu`"
                .to_owned(),
        );
    }
    driver::init().map_err(|error| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => NO_GPU.to_owned(),
        _ => format!("the NVIDIA driver does not start: {error:?}"),
    })?;
    let count = driver::device::get_count().unwrap_or(0);
    if count == 0 {
        return Err(NO_GPU.to_owned());
    }
    let torch = open_torch()?;
    preload("libnvrtc", "nvidia-cuda-nvrtc", &torch)?;
    preload("libcublasLt", "nvidia-cublas", &torch)?;
    let device = driver::device::get(0).map_err(|error| format!("GPU 0: {error:?}"))?;
    let attribute = |attribute| {
        // SAFETY: the device exists.
        unsafe { driver::device::get_attribute(device, attribute) }.unwrap_or(0) as u32
    };
    use sys::CUdevice_attribute as Attribute;
    let architecture = 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    let name = driver::device::get_name(device).unwrap_or_else(|_| "GPU".to_owned());
    if architecture < 89 {
        return Err(format!(
            "{name} has compute capability {}.{}; FP8 needs 8.9 or later (Ada, Hopper)",
            architecture / 10,
            architecture % 10
        ));
    }
    // SAFETY: the device exists; the context is kept for the life of the process.
    let context = unsafe { driver::primary_ctx::retain(device) }
        .and_then(|context| {
            // SAFETY: it was retained just now.
            unsafe { driver::ctx::set_current(context) }.map(|()| context)
        })
        .map_err(|error| format!("{name} gives no context: {error:?}"))?;
    // SAFETY: the device exists.
    let memory = unsafe { driver::device::total_mem(device) }.unwrap_or(0);
    let cublaslt = cublaslt::create_handle().map_err(|error| format!("cuBLASLt: {error:?}"))?;
    let torch = super::torch::Functions::find(torch)?;
    Ok(Gpu {
        name: format!("{name}, libtorch 2.11"),
        memory_bytes: memory as u64,
        architecture,
        context,
        cublaslt,
        torch,
    })
}

/// The linker drops libtorch's CUDA half, as nothing names it: it registers itself when loaded.
fn open_torch() -> Result<Library, String> {
    // SAFETY: libtorch's initialisers only register what it has.
    unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let cause = cause.unwrap_or_else(|| error.to_string());
        format!(
            "libtorch has no CUDA half ({cause}): install torch 2.11.0 for CUDA 13 \
             (`pip install torch==2.11.0`) and put its folder `torch/lib` into LD_LIBRARY_PATH"
        )
    })
}

/// Folders in which CUDA's libraries lie: beside libtorch, or a toolkit.
fn folders() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let torch = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libtorch_cuda.so"))
        .map(Path::new);
    let mut folders = Vec::new();
    if let Some(lib) = torch.and_then(Path::parent) {
        folders.push(lib.to_owned());
        if let Some(packages) = lib.parent().and_then(Path::parent) {
            for part in ["cu13", "cuda_nvrtc", "cublas"] {
                folders.push(packages.join("nvidia").join(part).join("lib"));
            }
        }
    }
    folders.push("/usr/local/cuda/lib64".into());
    folders.push("/usr/local/cuda/targets/x86_64-linux/lib".into());
    folders
}

/// Loads a library for good, so that it is found by its name alone afterwards.
fn preload(name: &str, package: &str, _torch: &Library) -> Result<(), String> {
    let file = format!("{name}.so.13");
    let paths = std::iter::once(PathBuf::from(&file))
        .chain(folders().into_iter().map(|folder| folder.join(&file)));
    for path in paths {
        // SAFETY: a library of CUDA; its initialisers have no effect on this program.
        if let Ok(library) = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            std::mem::forget(library);
            return Ok(());
        }
    }
    Err(format!(
        "{file} was not found beside libtorch or in /usr/local/cuda: `pip install {package}` or \
         install the CUDA toolkit 13"
    ))
}
