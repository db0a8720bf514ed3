//! Compiles kernels by NVRTC, several at a time, each source once; [kept](super::cache) on disk.

use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::result::module;
use cudarc::nvrtc::{result as nvrtc, sys};
use onesigma_backend::{Error, Result};

use super::library::Gpu;
use super::{cache, failed};
use crate::cuda::NAME;
use crate::cuda::device::Function;
use crate::cuda::source::{Kernel, PRELUDE};

/// Functions by source.
fn known() -> &'static Mutex<HashMap<String, usize>> {
    static KNOWN: OnceLock<Mutex<HashMap<String, usize>>> = OnceLock::new();
    KNOWN.get_or_init(Mutex::default)
}

/// The functions of kernels, in their order.
pub(crate) fn compile(gpu: &Gpu, kernels: &[&Kernel]) -> Result<Vec<Function>> {
    let mut missing: Vec<&Kernel> = Vec::new();
    {
        let known = known().lock().unwrap_or_else(PoisonError::into_inner);
        for &kernel in kernels {
            let new = |other: &&Kernel| other.source == kernel.source;
            if !known.contains_key(&kernel.source) && !missing.iter().any(new) {
                missing.push(kernel);
            }
        }
    }
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
    let next = Mutex::new(missing.iter());
    let compiled: Mutex<Vec<(&Kernel, Result<Vec<c_char>>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let kernel = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(kernel) = kernel else { return };
                    let image = image(gpu.architecture, kernel);
                    let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
                    compiled.push((kernel, image));
                }
            });
        }
    });
    let mut known = known().lock().unwrap_or_else(PoisonError::into_inner);
    for (kernel, image) in compiled.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let image = image?;
        // SAFETY: the image was compiled for this GPU; the module is kept for good.
        let function = unsafe {
            let module = module::load_data(image.as_ptr().cast())
                .map_err(|error| failed(&kernel.label, error))?;
            module::get_function(module, CString::from(c"kernel"))
                .map_err(|error| failed(&kernel.label, error))?
        };
        known.insert(kernel.source.clone(), function as usize);
    }
    Ok(kernels.iter().map(|kernel| Function(known[&kernel.source])).collect())
}

/// Machine code of a kernel.
fn image(architecture: u32, kernel: &Kernel) -> Result<Vec<c_char>> {
    let text = format!("{PRELUDE}\n{}", kernel.source);
    let options = [
        format!("--gpu-architecture=sm_{architecture}"),
        "--std=c++17".to_owned(),
        "-default-device".to_owned(),
    ];
    let Some(folder) = cache::folder() else { return compiled(kernel, text, &options) };
    let name = cache::name(version(), &options, &text);
    if let Some(image) = cache::load(&folder, &name) {
        return Ok(image);
    }
    let image = compiled(kernel, text, &options)?;
    cache::store(&folder, &name, &image);
    Ok(image)
}

/// Version of the compiler.
fn version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are written; an error leaves zeros.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    (major, minor)
}

fn compiled(kernel: &Kernel, text: String, options: &[String]) -> Result<Vec<c_char>> {
    let source = CString::new(text).map_err(|error| failed(&kernel.label, error))?;
    let program = nvrtc::create_program(&source, None).map_err(|error| failed("NVRTC", error))?;
    // SAFETY: the program lives until it is destroyed below; the sizes are asked for first.
    unsafe {
        let result = nvrtc::compile_program(program, options).map_err(|error| {
            let log = nvrtc::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
            let log = String::from_utf8_lossy(&log).into_owned();
            let reason = format!("{}: {error:?}\n{log}\n{}", kernel.label, kernel.source);
            Error::Device { backend: NAME.to_owned(), reason }
        });
        let image = result.and_then(|()| {
            let mut bytes = 0;
            sys::nvrtcGetCUBINSize(program, &mut bytes)
                .result()
                .map_err(|error| failed("NVRTC", error))?;
            let mut image: Vec<c_char> = vec![0; bytes];
            sys::nvrtcGetCUBIN(program, image.as_mut_ptr())
                .result()
                .map_err(|error| failed("NVRTC", error))?;
            Ok(image)
        });
        let _ = nvrtc::destroy_program(program);
        image
    }
}
