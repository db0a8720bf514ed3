//! Attention and its gradients, one kernel each: blocks of logits live in shared memory and
//! registers, in f32, and never reach the device's memory.
//!
//! All three kernels have one form. A workgroup keeps `fixed` rows (queries, or in the gradient for
//! keys and values keys) and goes over blocks of `looped` rows. A thread works out the logits of
//! some fixed and some looped rows, then adds rows weighted by them to results of its fixed rows.

mod forward;
mod grads;
mod writer;

use self::forward::forward;
use self::grads::{key_grad, query_grad};
use self::writer::Writer;
use super::kernel::{Builder, Kernel};
use crate::gpu::Abilities;
use crate::ir::{Attention, AttentionKind, Entry};
use crate::memory::Memory;

/// Largest head size: a thread's results stay in registers.
const WIDEST: usize = 128;

/// The shape of a block, by its threads.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Threads along the looped rows, and along the fixed ones.
    tx: usize,
    ty: usize,
    /// Rows of a thread, of each kind.
    fixed_of: usize,
    looped_of: usize,
}

impl Block {
    const fn new(fixed: usize, looped: usize, tx: usize, ty: usize) -> Self {
        Self { tx, ty, fixed_of: fixed / ty, looped_of: looped / tx }
    }

    fn fixed(self) -> usize {
        self.ty * self.fixed_of
    }

    fn looped(self) -> usize {
        self.tx * self.looped_of
    }

    fn threads(self) -> usize {
        self.tx * self.ty
    }

    /// Bytes of shared memory with so many operands on each side and so many patches of weights.
    fn bytes(self, width: usize, fixed: usize, looped: usize, patches: usize) -> usize {
        let rows = fixed * self.fixed() + looped * self.looped();
        let patch = patches * self.looped() * (self.fixed() / 4 + 1);
        16 * (rows * stride(width) + patch + self.threads())
    }
}

/// Quads of a row in shared memory: an odd number, so that rows begin in different banks.
fn stride(width: usize) -> usize {
    (width / 4) | 1
}

/// The first two take about the same memory; one workgroup fits a core by either, so it should have
/// many threads.
const FORWARD_BLOCKS: [Block; 4] = [
    Block::new(64, 32, 16, 16),
    Block::new(64, 32, 8, 16),
    Block::new(32, 32, 8, 8),
    Block::new(16, 16, 4, 4),
];
const GRAD_BLOCKS: [Block; 2] = [Block::new(32, 32, 8, 8), Block::new(16, 16, 4, 4)];

/// The first block that fits.
fn block(blocks: &[Block], width: usize, parts: [usize; 3], shared: usize) -> Option<Block> {
    let [fixed, looped, patches] = parts;
    blocks.iter().copied().find(|block| block.bytes(width, fixed, looped, patches) <= shared)
}

fn parts_of(kind: &AttentionKind) -> (&'static [Block], [usize; 3]) {
    match kind {
        AttentionKind::Forward { .. } => (&FORWARD_BLOCKS, [1, 2, 1]),
        AttentionKind::QueryGrad { .. } => (&GRAD_BLOCKS, [2, 2, 1]),
        AttentionKind::KeyGrad { .. } => (&GRAD_BLOCKS, [2, 2, 2]),
    }
}

/// Whether heads of this size have kernels on a device with so much shared memory.
pub(crate) fn fits(width: usize, shared: usize) -> bool {
    width > 0
        && width.is_multiple_of(4)
        && width <= WIDEST
        && block(&FORWARD_BLOCKS, width, [1, 2, 1], shared).is_some()
        && block(&GRAD_BLOCKS, width, [2, 2, 2], shared).is_some()
}

/// The kernel.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    op: &Attention,
    abilities: Abilities,
    label: &str,
) -> Kernel {
    let (shared, subgroup) = (abilities.shared_bytes, abilities.subgroup);
    let (blocks, parts) = parts_of(&op.kind);
    // `fits` was asked when the op was lowered.
    let block = block(blocks, op.width, parts, shared).unwrap_or(blocks[blocks.len() - 1]);
    let mut builder = Builder::new(entry, memory);
    builder.library.math();
    let writer = Writer { builder, op, block };
    match op.kind {
        AttentionKind::Forward { out, lse } => forward(writer, out, lse, subgroup, label),
        AttentionKind::QueryGrad { dy, lse, along, out } => {
            query_grad(writer, [dy, lse, along], out, label)
        }
        AttentionKind::KeyGrad { dy, lse, along, dk, dv } => {
            key_grad(writer, [dy, lse, along], dk, dv, label)
        }
    }
}
