//! Kernels of an entry's work, in order.

use onesigma_backend::{Error, Result};

use crate::NAME;
use crate::backend::Tuning;
use crate::gpu::Abilities;
use crate::ir::{Entry, TensorId, Work};
use crate::memory::Memory;
use crate::shader::kernel::Kernel;
use crate::shader::{element, matmul, matrices, reduce, rows, scatter};

/// Generates the kernels.
///
/// # Errors
/// [`Error::Device`] if a kernel needs more bindings than the device has.
pub(crate) fn kernels(
    entry: &Entry,
    memory: &Memory,
    abilities: Abilities,
    tuning: Tuning,
    bindings: usize,
) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    for (at, (work, name)) in entry.work.iter().zip(&entry.names).enumerate() {
        match work {
            Work::Group(elements) => {
                let stored = |tensor: TensorId| {
                    entry
                        .work
                        .iter()
                        .enumerate()
                        .any(|(other, work)| other != at && work.reads().contains(&tensor))
                        || entry.writes.iter().any(|(_, written)| *written == tensor)
                        || entry.tensors[tensor].home != crate::ir::Home::Temporary
                };
                kernels.push(element::kernel(entry, memory, elements, &stored, name));
            }
            Work::Reduce(op, parts) => {
                kernels.push(reduce::kernel(entry, memory, op, *parts, op.out, name));
            }
            Work::Product(op) if abilities.matrices && matrices::tile(entry, op).is_some() => {
                let chosen = matrices::tile(entry, op).unwrap_or(matrices::Tile::SMALL);
                let tile = tuning.matrices.map_or(chosen, matrices::Tile::from);
                kernels.push(matrices::kernel(entry, memory, op, tile, name));
            }
            Work::Product(op) if matmul::is_small(op) => {
                kernels.push(matmul::small(entry, memory, op, name));
            }
            Work::Product(op) => {
                let tile = tuning.vectors.map_or_else(|| matmul::tile(op), matmul::Tile::from);
                kernels.push(matmul::kernel(entry, memory, op, tile, name));
            }
            Work::Rows(op) => {
                kernels.push(rows::kernel(entry, memory, op, abilities.subgroup, name));
            }
            Work::Scatter(op) => {
                kernels.push(scatter::order(entry, memory, op, name));
                kernels.push(scatter::sum(entry, memory, op, name));
            }
        }
    }
    for kernel in &kernels {
        let needed = kernel.bindings.len();
        if needed > bindings {
            return Err(Error::Device {
                backend: NAME.to_owned(),
                reason: format!(
                    "`{}` needs {needed} storage buffers, the device binds {bindings}; use a \
                     smaller model or a device with larger bindings",
                    kernel.label
                ),
            });
        }
    }
    Ok(kernels)
}
