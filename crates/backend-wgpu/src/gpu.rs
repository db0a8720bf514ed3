//! An adapter of wgpu, opened: device, queue, limits, and the pipelines made so far.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use onesigma_backend::{Error, Result};
use wgpu::{
    Adapter, BindGroupLayout, Buffer, BufferDescriptor, BufferUsages, ComputePipeline, Device,
    DeviceType, ErrorFilter, Features, Instance, Limits, PollType, Queue, SubmissionIndex,
};

use crate::NAME;
use crate::backend::Options;
use crate::shader::kernel::Kernel;

/// What the shaders can use.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Abilities {
    /// F16 in storage and arithmetic.
    pub f16: bool,
    /// Threads of a subgroup, where all have one size.
    pub subgroup: Option<u32>,
    /// Matrices of 16 x 16 in F16 multiplied by a subgroup, with sums in F32.
    pub matrices: bool,
    /// Times of kernels.
    pub timestamps: bool,
    /// Bytes of memory that a workgroup shares.
    pub shared_bytes: usize,
}

impl Abilities {
    /// In words, for reports.
    pub(crate) fn describe(self) -> String {
        let subgroup = match self.subgroup {
            Some(size) => format!("subgroups of {size}"),
            None => "no subgroups".to_owned(),
        };
        let f16 = if self.f16 { "F16" } else { "F16 emulated" };
        let matrices =
            if self.matrices { "cooperative matrices" } else { "no cooperative matrices" };
        format!("{f16}, {subgroup}, {matrices}")
    }
}

/// A pipeline and how it is bound.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub pipeline: ComputePipeline,
    pub layout: BindGroupLayout,
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
pub(crate) fn all_adapters(instance: &Instance) -> Vec<Adapter> {
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
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
    format!("{}, {}, {}", info.name, info.backend, driver.trim())
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
    pub(crate) fn open(options: &Options) -> Result<Self> {
        let instance = instance();
        let adapter = choose(all_adapters(&instance), options.device.as_deref())?;
        let info = adapter.get_info();
        let offered = if options.portable { Features::empty() } else { adapter.features() };
        let wanted = Features::SHADER_F16
            | Features::SUBGROUP
            | Features::TIMESTAMP_QUERY
            | match options.without_matrices {
                true => Features::empty(),
                false => Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
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
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(failed)?;
        let matrices = features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
            && adapter.cooperative_matrix_properties().iter().any(|p| {
                (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
                    && p.ab_type == wgpu::CooperativeScalarType::F16
                    && p.cr_type == wgpu::CooperativeScalarType::F32
            });
        let one_size = info.subgroup_min_size == info.subgroup_max_size;
        let abilities = Abilities {
            f16: features.contains(Features::SHADER_F16),
            subgroup: (features.contains(Features::SUBGROUP) && one_size)
                .then_some(info.subgroup_min_size),
            matrices: matrices && features.contains(Features::SHADER_F16),
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

    /// Makes a buffer; `before` is what the program has so far.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub(crate) fn buffer(
        &self,
        bytes: usize,
        usage: BufferUsages,
        before: usize,
    ) -> Result<Buffer> {
        let needed = (before + bytes) as u64;
        if let Some(available) = self.memory_bytes.filter(|available| needed > *available) {
            return Err(Error::OutOfMemory { needed, available });
        }
        let memory = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(ErrorFilter::Validation);
        let internal = self.device.push_error_scope(ErrorFilter::Internal);
        let buffer = self.device.create_buffer(&BufferDescriptor {
            label: None,
            size: bytes as u64,
            usage,
            mapped_at_creation: false,
        });
        let internal = pollster::block_on(internal.pop());
        let validation = pollster::block_on(validation.pop());
        if pollster::block_on(memory.pop()).is_some() {
            return Err(Error::OutOfMemory { needed, available: before as u64 });
        }
        match internal.or(validation) {
            Some(error) => Err(failed(error)),
            None => Ok(buffer),
        }
    }

    /// The pipeline of a shader with `bindings` storage buffers.
    ///
    /// # Errors
    /// [`Error::Device`] with the compiler's message.
    pub(crate) fn pipeline(&self, source: &str, bindings: usize, label: &str) -> Result<Pipeline> {
        let known = |source: &str| {
            let pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
            pipelines.get(source).cloned()
        };
        if let Some(pipeline) = known(source) {
            return Ok(pipeline);
        }
        let scope = self.device.push_error_scope(ErrorFilter::Validation);
        let internal = self.device.push_error_scope(ErrorFilter::Internal);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(Cow::Borrowed(source)),
        };
        // SAFETY: shaders are generated here; every index is within its tensor by construction, or
        // bounded in the shader where it comes from data (ids). Loops end.
        let module = unsafe {
            self.device
                .create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..bindings)
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: false },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &entries,
        });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        let internal = pollster::block_on(internal.pop());
        if let Some(error) = pollster::block_on(scope.pop()).or(internal) {
            tracing::debug!(%label, source, "shader refused");
            return Err(failed(format!("shader of {label}: {error}")));
        }
        let made = Pipeline { pipeline, layout };
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        pipelines.insert(source.to_owned(), made.clone());
        Ok(made)
    }

    /// Makes the pipelines of all kernels, on all processors: drivers take their time over shaders.
    ///
    /// # Errors
    /// As [`pipeline`](Self::pipeline).
    pub(crate) fn prepare<'a>(&self, kernels: impl Iterator<Item = &'a Kernel>) -> Result<()> {
        let mut known = HashSet::new();
        let pending: Vec<&Kernel> =
            kernels.filter(|kernel| known.insert(kernel.source.as_str())).collect();
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some(kernel) = pending.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.pipeline(&kernel.source, kernel.bindings.len(), &kernel.label)?;
            }
            Ok(())
        };
        // A browser has one thread for what it draws with.
        #[cfg(target_family = "wasm")]
        return work();
        #[cfg(not(target_family = "wasm"))]
        {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            if threads == 1 || pending.len() < 2 {
                return work();
            }
            std::thread::scope(|scope| {
                let workers: Vec<_> =
                    (0..threads.min(pending.len())).map(|_| scope.spawn(work)).collect();
                // A worker's panic goes on here.
                workers.into_iter().try_for_each(|worker| match worker.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
            })
        }
    }

    /// Waits for a submission, or for all.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn wait(&self, submission: Option<SubmissionIndex>) -> Result<()> {
        let wait = PollType::Wait { submission_index: submission, timeout: None };
        let polled = self.device.poll(wait);
        self.check()?;
        polled.map(|_| ()).map_err(failed)
    }

    /// The content of a range of buffers, each given with its first byte and number of bytes
    /// (multiples of four).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub(crate) fn download(&self, parts: &[(&Buffer, usize, usize)]) -> Result<Vec<u8>> {
        let bytes: usize = parts.iter().map(|part| part.2).sum();
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let staging = self.buffer(bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST, 0)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut at = 0;
        for &(buffer, offset, bytes) in parts {
            encoder.copy_buffer_to_buffer(buffer, offset as u64, &staging, at, bytes as u64);
            at += bytes as u64;
        }
        self.queue.submit([encoder.finish()]);
        let (send, receive) = std::sync::mpsc::channel();
        staging.slice(..).map_async(wgpu::MapMode::Read, move |result| {
            // The receiver may be gone after an error.
            let _ = send.send(result);
        });
        self.wait(None)?;
        receive.recv().map_err(failed)?.map_err(failed)?;
        let view = staging.slice(..).get_mapped_range().map_err(failed)?;
        Ok(view.to_vec())
    }
}
