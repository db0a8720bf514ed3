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
    /// Where there can be several devices.
    pub devices: Option<Devices>,
}

/// The devices of a backend.
#[derive(Clone, Copy, Debug)]
pub struct Devices {
    /// Their descriptions, in order.
    pub list: fn() -> Vec<String>,
    /// Opens the one with a number of the list, or a part of its description.
    ///
    /// # Errors
    /// [`onesigma_backend::Error::Unavailable`] if there is none such.
    pub open: fn(&str) -> onesigma_backend::Result<Box<dyn Backend>>,
}

/// Every backend of this build; features choose them.
pub const BACKENDS: &[Entry] = &[
    #[cfg(feature = "cpu")]
    Entry {
        name: "cpu",
        summary: "processor, SIMD and threads",
        open: || Ok(Box::new(onesigma_backend_cpu::CpuBackend::new())),
        devices: None,
    },
    #[cfg(feature = "candle")]
    Entry {
        name: "candle",
        summary: "candle-core: CUDA, Metal or the processor",
        open: || Ok(Box::new(onesigma_backend_candle::backend()?)),
        devices: None,
    },
    #[cfg(feature = "tch")]
    Entry {
        name: "cuda",
        summary: "NVIDIA GPU, FP8 on the tensor cores",
        open: || Ok(Box::new(onesigma_backend_tch::TchBackend::cuda()?)),
        devices: None,
    },
    #[cfg(feature = "tch")]
    Entry {
        name: "tch-cpu",
        summary: "processor, through libtorch",
        open: || Ok(Box::new(onesigma_backend_tch::TchBackend::cpu())),
        devices: None,
    },
    #[cfg(feature = "wgpu")]
    Entry {
        name: "wgpu",
        summary: "any GPU: Vulkan, Metal, DirectX 12",
        open: || Ok(Box::new(onesigma_backend_wgpu::WgpuBackend::open(None)?)),
        devices: Some(Devices {
            list: onesigma_backend_wgpu::adapters,
            open: |device| Ok(Box::new(onesigma_backend_wgpu::WgpuBackend::open(Some(device))?)),
        }),
    },
];

/// Opens the backend called `name`; `name:device` chooses among the devices of one that has
/// several.
///
/// # Errors
/// [`Error::Unknown`] for a name that is not built in, or a device of a backend that has one only;
/// [`Error::Backend`] if it is unavailable.
pub fn open(name: &str) -> Result<Box<dyn Backend>, Error> {
    let (plain, device) = match name.split_once(':') {
        Some((plain, device)) => (plain, Some(device)),
        None => (name, None),
    };
    let unknown = |kind, known: Vec<&str>| Error::Unknown {
        kind,
        given: name.into(),
        known: known.join(", "),
    };
    let entry = BACKENDS
        .iter()
        .find(|entry| entry.name == plain)
        .ok_or_else(|| unknown("backend", BACKENDS.iter().map(|entry| entry.name).collect()))?;
    match (device, entry.devices) {
        (None, _) => Ok((entry.open)()?),
        (Some(device), Some(devices)) => Ok((devices.open)(device)?),
        (Some(_), None) => Err(unknown("device", vec![plain])),
    }
}
