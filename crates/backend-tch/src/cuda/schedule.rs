//! Moves updates of state forward, to where everything they read is there and no one needs the old
//! state any more: gradients die young, and are read while they are still in the cache.

use std::collections::HashSet;

use super::assemble::Instruction;
use super::ir::{Entry, Home, TensorId};

/// Moves every instruction that makes nothing but new state.
pub(crate) fn hoist_updates(entry: &Entry, instructions: &mut Vec<Instruction>) {
    let slots_of = |tensor: TensorId| -> Vec<usize> {
        let written = entry.writes.iter().filter(|(_, value)| *value == tensor);
        written.map(|&(slot, _)| slot).collect()
    };
    let is_update = |instruction: &Instruction| {
        !instruction.makes.is_empty()
            && instruction.makes.iter().all(|&tensor| !slots_of(tensor).is_empty())
    };
    let mut done: Vec<Instruction> = Vec::with_capacity(instructions.len());
    for instruction in std::mem::take(instructions) {
        if !is_update(&instruction) {
            done.push(instruction);
            continue;
        }
        let slots: HashSet<usize> =
            instruction.makes.iter().flat_map(|&tensor| slots_of(tensor)).collect();
        let reads: HashSet<TensorId> = instruction.reads.iter().copied().collect();
        let blocks = |other: &Instruction| {
            let old = |tensor: &TensorId| match entry.tensors[*tensor].home {
                Home::Slot(slot) => slots.contains(&slot),
                _ => false,
            };
            other.makes.iter().any(|tensor| reads.contains(tensor)) || other.reads.iter().any(old)
        };
        let at = done.iter().rposition(blocks).map_or(0, |last| last + 1);
        done.insert(at, instruction);
    }
    *instructions = done;
}
