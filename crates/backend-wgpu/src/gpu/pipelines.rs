//! Pipelines of shaders, each made once.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::PoisonError;

use onesigma_backend::Result;
use wgpu::{BindGroupLayout, ComputePipeline, ErrorFilter};

use super::processors::on_processors;
use super::{Gpu, failed};
use crate::shader::kernel::Kernel;

/// A pipeline and how it is bound.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub pipeline: ComputePipeline,
    pub layout: BindGroupLayout,
}

impl Gpu {
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
        let filters = [ErrorFilter::Validation, ErrorFilter::Internal];
        let (made, [invalid, internal]) =
            self.watched(filters, || self.make_pipeline(source, bindings, label));
        if let Some(error) = invalid.or(internal) {
            tracing::debug!(%label, source, "shader refused");
            return Err(failed(format!("shader of {label}: {error}")));
        }
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        pipelines.insert(source.to_owned(), made.clone());
        Ok(made)
    }

    fn make_pipeline(&self, source: &str, bindings: usize, label: &str) -> Pipeline {
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
        Pipeline { pipeline, layout }
    }

    /// Makes the pipelines of all kernels, on all processors: drivers take their time over shaders.
    ///
    /// # Errors
    /// As [`pipeline`](Self::pipeline).
    pub(crate) fn prepare<'a>(&self, kernels: impl Iterator<Item = &'a Kernel>) -> Result<()> {
        let mut known = HashSet::new();
        let pending: Vec<&Kernel> =
            kernels.filter(|kernel| known.insert(kernel.source.as_str())).collect();
        on_processors(&pending, |kernel| {
            self.pipeline(&kernel.source, kernel.bindings.len(), &kernel.label).map(drop)
        })
        .map(drop)
    }
}
