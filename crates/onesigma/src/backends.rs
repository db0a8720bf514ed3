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

/// Backends by the feature that builds them in.
const FEATURES: &[(&str, &str)] =
    &[("cpu", "cpu"), ("candle", "candle"), ("cuda", "tch"), ("tch-cpu", "tch"), ("wgpu", "wgpu")];

/// Opens the backend called `name`; `name:device` chooses among the devices of one that has
/// several.
///
/// # Errors
/// [`Error::Setting`] for a backend that this build leaves out, with the feature that builds it
/// in; [`Error::Unknown`] for any other name, or a device of a backend that has one only;
/// [`Error::Backend`] if it is unavailable.
pub fn open(name: &str) -> Result<Box<dyn Backend>, Error> {
    let (plain, device) = match name.split_once(':') {
        Some((plain, device)) => (plain, Some(device)),
        None => (name, None),
    };
    let known = BACKENDS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
    let Some(entry) = BACKENDS.iter().find(|entry| entry.name == plain) else {
        return Err(match FEATURES.iter().find(|(other, _)| *other == plain) {
            Some((_, feature)) => Error::Setting {
                name: "--backend",
                given: name.into(),
                expected: format!(
                    "one that is built in ({known}); to build it in: cargo build --release -p \
                     onesigma --features {feature}"
                ),
            },
            None => {
                let more = FEATURES.iter().map(|(other, _)| *other);
                let more: Vec<&str> = more
                    .filter(|other| BACKENDS.iter().all(|entry| entry.name != *other))
                    .collect();
                let known = match more.is_empty() {
                    true => known,
                    false => format!("{known}; in builds with more features: {}", more.join(", ")),
                };
                Error::Unknown { kind: "backend", given: name.into(), known }
            }
        });
    };
    match (device, entry.devices) {
        (None, _) => Ok((entry.open)()?),
        (Some(device), Some(devices)) => Ok((devices.open)(device)?),
        (Some(_), None) => {
            Err(Error::Unknown { kind: "device", given: name.into(), known: plain.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_is_left_out_is_named_with_its_feature() {
        for entry in BACKENDS {
            assert!(FEATURES.iter().any(|(name, _)| *name == entry.name), "{}", entry.name);
        }
        let left_out = FEATURES.iter().find(|(name, _)| !BACKENDS.iter().any(|b| b.name == *name));
        if let Some((name, feature)) = left_out {
            let error = open(name).map(|_| ()).expect_err("it is left out").to_string();
            assert!(error.contains(&format!("--features {feature}")), "{error}");
        }
        let error = open("gpu").map(|_| ()).expect_err("there is none").to_string();
        assert!(error.contains("unknown backend `gpu`"), "{error}");
    }
}
