//! Kernels of an entry's work, in order.

use onesigma_backend::{Error, Result};

use crate::NAME;
use crate::backend::Tuning;
use crate::gpu::Abilities;
use crate::ir::{Entry, Product, TensorId, Work};
use crate::memory::Memory;
use crate::shader::kernel::Kernel;
use crate::shader::{attention, cross_entropy, element, matmul, matrices, reduce, rows, scatter};

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
                kernels.push(element::kernel(entry, memory, elements, &stored, tuning.quads, name));
            }
            Work::Reduce(op, parts) => {
                kernels.push(reduce::kernel(entry, memory, op, *parts, op.out, name));
            }
            Work::Product(op) => {
                kernels.push(product(entry, memory, op, abilities, tuning, name));
            }
            Work::Rows(op) => {
                kernels.push(rows::kernel(entry, memory, op, abilities.subgroup, name));
            }
            Work::Classes(op) => {
                kernels.push(cross_entropy::kernel(entry, memory, op, abilities.subgroup, name));
            }
            Work::Attention(op) => {
                kernels.push(attention::kernel(entry, memory, op, abilities, name));
            }
            Work::Scatter(op) => {
                kernels.push(scatter::order(entry, memory, op, name));
                kernels.push(scatter::starts(entry, memory, op, name));
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

/// The kernel of a product: on cooperative matrices where the device has them and operands fit.
fn product(
    entry: &Entry,
    memory: &Memory,
    op: &Product,
    abilities: Abilities,
    tuning: Tuning,
    name: &str,
) -> Kernel {
    let on_matrices = abilities.matrices.and_then(|device| {
        let chosen = matrices::tile(entry, op, device, abilities.shared_bytes)?;
        let tile = tuning.matrices.map_or(chosen, matrices::Tile::from);
        Some(matrices::kernel(entry, memory, op, device, tile, name))
    });
    on_matrices.unwrap_or_else(|| {
        if matmul::is_small(op) {
            return matmul::small(entry, memory, op, name);
        }
        let tile = tuning.vectors.map_or_else(|| matmul::tile(op), matmul::Tile::from);
        matmul::kernel(entry, memory, op, tile, name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{Bounds, lower};
    use crate::memory::{frame_bytes, place_slots, plan};
    use onesigma_format::{Conversion, Format};
    use onesigma_graph::{DType, Graph, Module, Op, Program, Role, SlotKind};

    /// A gated unit whose result is rounded to E4M3: three ops.
    fn chain() -> onesigma_graph::Result<Program> {
        let mut module = Module::new();
        let mut slot = |name: &str, kind, shape: &[usize], dtype| {
            module.slot(name, kind, shape.to_vec(), dtype, Role::Activation)
        };
        let bf16 = DType::Float(Format::BF16);
        let x = slot("x", SlotKind::Input, &[64, 128], bf16)?;
        let gate = slot("gate", SlotKind::Input, &[64, 128], bf16)?;
        let bias = slot("bias", SlotKind::Input, &[128], DType::F32)?;
        let fp8 = DType::Float(Format::E4M3);
        let y = slot("y", SlotKind::Output, &[64, 128], fp8)?;
        let mut graph = Graph::new();
        let [x, gate, bias] = [x, gate, bias].map(|slot| module.read(&mut graph, slot));
        let open = graph.map(&[gate, bias], |x| x[0].clone() + x[1].clone())?;
        let open = open.stored_as(bf16, Conversion::SATURATE).one()?;
        let gated = graph.map(&[x, open], |x| x[0].clone() * x[1].sigmoid())?.alpha(1.75).one()?;
        let cast = graph.op(Op::Cast { to: fp8 }, &[gated]);
        let rounded = cast.stored_as(fp8, Conversion::SATURATE).one()?;
        graph.write(y, rounded);
        module.entry("main", graph)?;
        Program::new(module)
    }

    #[test]
    fn a_chain_becomes_the_shader_in_the_book() {
        let program = chain().expect("a valid program");
        let slots = program.slots();
        let bytes: Vec<usize> =
            slots.iter().map(|slot| frame_bytes(slot.shape.numel(), slot.dtype)).collect();
        let (places, end) = place_slots(&bytes, 1 << 27);
        let bounds = Bounds { shared_bytes: 16_384, logits_bytes: 0 };
        let mut entry = lower(&program.entries()[0].graph, &program, 8, bounds).expect("core ops");
        let memory = plan(&mut entry, &places, end, 1 << 27);
        let abilities = Abilities::default();
        let kernels = kernels(&entry, &memory, abilities, Tuning::default(), 8).expect("few slots");
        assert_eq!(kernels.len(), 1, "the chain is one kernel");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/wgpu-chain.wgsl");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &kernels[0].source).expect("the book can be written");
        }
        let book = std::fs::read_to_string(path).expect("the book has the shader");
        assert_eq!(book, kernels[0].source, "run with UPDATE_DOCS=1 and read what changed");
    }
}
