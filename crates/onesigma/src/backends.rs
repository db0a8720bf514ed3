//! The backends that this build contains.

use onesigma_backend::Backend;
use onesigma_train::Error;

/// A backend that is built in, before its device is opened.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The name that selects it.
    pub name: &'static str,
    /// What it runs on.
    pub summary: &'static str,
    /// Opens its device.
    ///
    /// # Errors
    /// [`onesigma_backend::Error::Unavailable`] if the hardware or its library is missing.
    pub open: fn() -> onesigma_backend::Result<Box<dyn Backend>>,
}

/// Every backend of this build; features choose them.
pub const BACKENDS: &[Entry] = &[
    #[cfg(feature = "cpu")]
    Entry {
        name: "cpu",
        summary: "processor, SIMD and threads",
        open: || Ok(Box::new(onesigma_backend_cpu::CpuBackend::new())),
    },
    #[cfg(feature = "candle")]
    Entry {
        name: "candle",
        summary: "candle-core: CUDA, Metal or the processor",
        open: || Ok(Box::new(onesigma_backend_candle::backend()?)),
    },
    #[cfg(feature = "tch")]
    Entry {
        name: "cuda",
        summary: "NVIDIA GPU, FP8 on the tensor cores",
        open: || Ok(Box::new(onesigma_backend_tch::TchBackend::cuda()?)),
    },
    #[cfg(feature = "tch")]
    Entry {
        name: "tch-cpu",
        summary: "processor, through libtorch",
        open: || Ok(Box::new(onesigma_backend_tch::TchBackend::cpu())),
    },
];

/// Opens the backend called `name`.
///
/// # Errors
/// [`Error::Unknown`] for a name that is not built in; [`Error::Backend`] if it is unavailable.
pub fn open(name: &str) -> Result<Box<dyn Backend>, Error> {
    let entry = BACKENDS.iter().find(|entry| entry.name == name).ok_or_else(|| Error::Unknown {
        kind: "backend",
        given: name.into(),
        known: BACKENDS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", "),
    })?;
    Ok((entry.open)()?)
}
