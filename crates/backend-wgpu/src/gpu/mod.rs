//! An adapter of wgpu, opened: device, queue, limits, and the pipelines made so far.

mod buffers;
mod pipelines;
mod processors;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use onesigma_backend::{Error, Result};
use wgpu::{Adapter, Device, DeviceType, ErrorFilter, Features, Instance, Limits, Queue};

pub(crate) use self::pipelines::Pipeline;
pub(crate) use self::processors::on_processors;
use crate::NAME;
use crate::backend::{CooperativeMatrices, Options};

/// What the shaders can use.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Abilities {
    /// F16 in storage and arithmetic.
    pub f16: bool,
    /// Threads of a subgroup, where all have one size.
    pub subgroup: Option<u32>,
    /// Matrices in F16 multiplied by a subgroup, with sums in F32.
    pub matrices: Option<Matrices>,
    /// Times of kernels.
    pub timestamps: bool,
    /// Bytes of memory that a workgroup shares.
    pub shared_bytes: usize,
}

/// Cooperative matrices of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Matrices {
    /// Rows, columns and inner elements: 16 (NVIDIA, AMD) or 8 (Apple, Mesa's software driver).
    pub edge: usize,
    /// Threads of a subgroup.
    pub lanes: usize,
}

impl Matrices {
    /// The largest that an adapter offers, in subgroups of `lanes`.
    fn of(adapter: &Adapter, lanes: u32) -> Option<Self> {
        let offered = adapter.cooperative_matrix_properties();
        let edges = offered.iter().filter(|p| {
            p.m_size == p.n_size
                && p.n_size == p.k_size
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        });
        let edge = edges.map(|p| p.m_size as usize).filter(|edge| [8, 16].contains(edge)).max()?;
        Some(Self { edge, lanes: lanes as usize })
    }
}

impl Abilities {
    /// In words, for reports.
    pub(crate) fn describe(self) -> String {
        let subgroup = match self.subgroup {
            Some(size) => format!("subgroups of {size}"),
            None => "no subgroups".to_owned(),
        };
        let f16 = if self.f16 { "F16" } else { "F16 emulated" };
        let matrices = match self.matrices {
            Some(Matrices { edge, .. }) => format!("cooperative matrices of {edge}x{edge}"),
            None => "no cooperative matrices".to_owned(),
        };
        format!("{f16}, {subgroup}, {matrices}")
    }
}

/// An open device.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub device: Device,
    pub queue: Queue,
    pub limits: Limits,
    pub abilities: Abilities,
    pub description: String,
    /// Of software adapters: the memory of the machine. WebGPU does not tell that of others.
    pub memory_bytes: Option<u64>,
    /// What went wrong outside of calls: the device is lost, or an error nobody waited for.
    failure: Arc<Mutex<Option<String>>>,
    pipelines: Mutex<HashMap<String, Pipeline>>,
}

fn failed(reason: impl std::fmt::Display) -> Error {
    Error::Device { backend: NAME.to_owned(), reason: reason.to_string() }
}

fn unavailable(reason: String) -> Error {
    Error::Unavailable { backend: NAME.to_owned(), reason }
}

pub(crate) fn instance() -> Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.backends &= wgpu::Backends::PRIMARY;
    descriptor.memory_budget_thresholds.for_resource_creation = Some(95);
    Instance::new(descriptor)
}

/// The adapters of this machine, best first.
pub(crate) async fn all_adapters(instance: &Instance) -> Vec<Adapter> {
    let mut adapters = instance.enumerate_adapters(wgpu::Backends::PRIMARY).await;
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    adapters
}

pub(crate) fn describe(adapter: &Adapter) -> String {
    let info = adapter.get_info();
    let driver = [info.driver.as_str(), info.driver_info.as_str()].join(" ");
    // Pages are told neither name nor driver.
    let parts = [info.name.as_str(), info.backend.to_str(), driver.trim()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// The adapter that `device` asks for: its number in the list, or a part of its name.
fn choose(adapters: Vec<Adapter>, device: Option<&str>) -> Result<Adapter> {
    let names: Vec<String> = adapters.iter().map(describe).collect();
    if adapters.is_empty() {
        return Err(unavailable(
            "no adapter found; install a driver for Vulkan, Metal or DirectX 12 (on Debian without \
             a GPU: `apt-get install mesa-vulkan-drivers libvulkan1`)"
                .to_owned(),
        ));
    }
    let Some(device) = device else {
        return adapters.into_iter().next().ok_or_else(|| unavailable("no adapter".to_owned()));
    };
    let wanted = device.to_lowercase();
    let at = match wanted.parse::<usize>() {
        Ok(at) => Some(at),
        Err(_) => names.iter().position(|name| name.to_lowercase().contains(&wanted)),
    };
    at.and_then(|at| adapters.into_iter().nth(at)).ok_or_else(|| {
        let list: Vec<String> =
            names.iter().enumerate().map(|(at, name)| format!("{at}: {name}")).collect();
        unavailable(format!("no adapter `{device}`; there are {}", list.join("; ")))
    })
}

/// Bytes of memory of a Linux machine.
fn host_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

impl Gpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without one; [`Error::Device`] if it refuses.
    pub(crate) async fn open(options: &Options) -> Result<Self> {
        let instance = instance();
        let adapter = choose(all_adapters(&instance).await, options.device.as_deref())?;
        let info = adapter.get_info();
        let offered = if options.portable { Features::empty() } else { adapter.features() };
        let with_matrices = match options.matrices {
            CooperativeMatrices::OnGpus => info.device_type != DeviceType::Cpu,
            CooperativeMatrices::Everywhere => true,
            CooperativeMatrices::Nowhere => false,
        };
        let wanted = Features::SHADER_F16
            | Features::SUBGROUP
            | Features::TIMESTAMP_QUERY
            | match with_matrices {
                true => Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
                false => Features::empty(),
            };
        let features = offered & wanted;
        let limits = match options.portable {
            true => Limits { ..Limits::default() },
            false => adapter.limits(),
        };
        // SAFETY: the experimental features may have bugs that break memory safety. Cooperative
        // matrices are the only one asked for, and shaders load and store them within bounds that
        // are known when they are generated.
        let experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("onesigma"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: experimental,
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(failed)?;
        let one_size = info.subgroup_min_size == info.subgroup_max_size;
        // Apple's have 32 threads; Metal does not say so.
        let lanes = match (info.backend, one_size) {
            (_, true) => Some(info.subgroup_min_size),
            (wgpu::Backend::Metal, false) => Some(32),
            _ => None,
        };
        let needed = Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SHADER_F16;
        let abilities = Abilities {
            f16: features.contains(Features::SHADER_F16),
            subgroup: (features.contains(Features::SUBGROUP) && one_size)
                .then_some(info.subgroup_min_size),
            matrices: lanes
                .filter(|_| features.contains(needed))
                .and_then(|lanes| Matrices::of(&adapter, lanes)),
            timestamps: features.contains(Features::TIMESTAMP_QUERY),
            shared_bytes: limits.max_compute_workgroup_storage_size as usize,
        };
        let failure: Arc<Mutex<Option<String>>> = Arc::default();
        let note = |what: &'static str| {
            let failure = Arc::clone(&failure);
            move |reason: String| {
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(format!("{what}: {reason}"));
            }
        };
        let lost = note("the device is lost");
        device.set_device_lost_callback(move |_, message| lost(message));
        let uncaught = note("error");
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| uncaught(error.to_string())));
        Ok(Self {
            device,
            queue,
            limits,
            abilities,
            description: describe(&adapter),
            memory_bytes: (info.device_type == DeviceType::Cpu).then(host_memory).flatten(),
            failure,
            pipelines: Mutex::default(),
        })
    }

    /// Bytes of one buffer of the memory: the most that a binding takes.
    pub(crate) fn segment_bytes(&self) -> usize {
        let most = self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size);
        (most.min(u64::from(u32::MAX)) as usize) / 256 * 256
    }

    /// What went wrong since the device was opened.
    ///
    /// # Errors
    /// [`Error::Device`] with the first failure.
    pub(crate) fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Err(failed(reason)),
            None => Ok(()),
        }
    }

    /// Makes something, with the errors that come of it, one for each filter. A page cannot wait
    /// for them: there they become failures of the device.
    fn watched<T, const N: usize>(
        &self,
        filters: [ErrorFilter; N],
        make: impl FnOnce() -> T,
    ) -> (T, [Option<wgpu::Error>; N]) {
        if cfg!(target_family = "wasm") {
            return (make(), [const { None }; N]);
        }
        let mut scopes = filters.map(|filter| Some(self.device.push_error_scope(filter)));
        let made = make();
        let mut errors = [const { None }; N];
        // The last scope is the innermost.
        for (scope, error) in scopes.iter_mut().zip(&mut errors).rev() {
            *error = scope.take().and_then(|scope| pollster::block_on(scope.pop()));
        }
        (made, errors)
    }
}
