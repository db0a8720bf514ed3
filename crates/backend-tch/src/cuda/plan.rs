//! Where the tensors of an entry lie: results that slots take are made in their slot where no one
//! still needs the old content, the rest is packed by lifetime (greedy by size, as the graph's own
//! plan, over the instructions that really run).

use super::assemble::{Instruction, Work};
use super::ir::{Entry, Home, TensorId};

/// Alignment of every tensor, in bytes: what libraries want for their fastest kernels.
pub(crate) const ALIGNMENT: usize = 256;

/// Bytes up to the next aligned place.
pub(crate) fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// The memory of an entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Place of each temporary tensor, in bytes.
    pub offsets: Vec<usize>,
    /// Bytes that temporary tensors take.
    pub bytes: usize,
    /// Bytes that a library's tensors take at most.
    pub library_bytes: usize,
    /// Last instruction that reads each tensor.
    pub last: Vec<Option<usize>>,
}

/// Decides homes, appends the copies into slots, and packs the rest.
pub(crate) fn plan(entry: &mut Entry, instructions: &mut Vec<Instruction>) -> Plan {
    place_in_slots(entry, instructions);
    copy_into_slots(entry, instructions);
    pack(entry, instructions)
}

fn maker(instructions: &[Instruction], tensor: TensorId) -> Option<usize> {
    instructions.iter().position(|instruction| instruction.makes.contains(&tensor))
}

fn place_in_slots(entry: &mut Entry, instructions: &[Instruction]) {
    for (slot, tensor) in entry.writes.clone() {
        let written = entry.writes.iter().filter(|(_, other)| *other == tensor).count();
        let Some(made) = maker(instructions, tensor) else { continue };
        if entry.tensors[tensor].home != Home::Temporary || written > 1 {
            continue;
        }
        let old = |other: TensorId| entry.tensors[other].home == Home::Slot(slot);
        // The old content goes to another slot at the end.
        if entry.writes.iter().any(|&(to, from)| to != slot && old(from)) {
            continue;
        }
        let free = instructions.iter().enumerate().all(|(at, instruction)| {
            instruction.reads.iter().all(|&read| {
                !old(read)
                    || at < made
                    || (at == made && instruction.in_place.contains(&(read, tensor)))
            })
        });
        // An instruction in several launches, or one that makes the tensor in parts, writes early.
        let writers = instructions.iter().filter(|i| i.makes.contains(&tensor)).count();
        if free && writers == 1 {
            entry.tensors[tensor].home = Home::Slot(slot);
        }
    }
}

fn copy_into_slots(entry: &mut Entry, instructions: &mut Vec<Instruction>) {
    let is_direct = |entry: &Entry, slot: usize, tensor: TensorId| {
        entry.tensors[tensor].home == Home::Slot(slot)
    };
    let pending: Vec<(usize, TensorId)> = entry
        .writes
        .iter()
        .copied()
        .filter(|&(slot, tensor)| !is_direct(entry, slot, tensor))
        .collect();
    let copy = |from: TensorId, to: TensorId| Instruction {
        work: Work::Copy { from, to },
        reads: vec![from],
        makes: vec![to],
        in_place: Vec::new(),
        label: "write".to_owned(),
    };
    // What a copy would overwrite before another has read it goes through a temporary.
    let mut sources = Vec::new();
    for &(slot, tensor) in &pending {
        let overwritten = pending
            .iter()
            .any(|&(other, _)| other != slot && entry.tensors[tensor].home == Home::Slot(other));
        let (numel, dtype) = (entry.tensors[tensor].numel, entry.tensors[tensor].dtype);
        if overwritten {
            let staged = entry.tensor(numel, dtype, Home::Temporary);
            instructions.push(copy(tensor, staged));
            sources.push((slot, staged));
        } else {
            sources.push((slot, tensor));
        }
    }
    for (slot, tensor) in sources {
        let (numel, dtype) = (entry.tensors[tensor].numel, entry.tensors[tensor].dtype);
        let target = entry.tensor(numel, dtype, Home::Slot(slot));
        instructions.push(copy(tensor, target));
    }
}

/// First and last instruction that needs each tensor that an instruction makes.
pub(crate) fn lifetimes(
    entry: &Entry,
    instructions: &[Instruction],
) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; entry.tensors.len()];
    for (at, instruction) in instructions.iter().enumerate() {
        for &tensor in &instruction.makes {
            lives[tensor].get_or_insert((at, at)).1 = at;
        }
        for &tensor in &instruction.reads {
            if let Some((_, last)) = &mut lives[tensor] {
                *last = at;
            }
        }
    }
    lives
}

/// The most that tensors of a library take together.
fn library_bytes(entry: &Entry, lives: &[Option<(usize, usize)>]) -> usize {
    let own: Vec<(usize, usize, usize)> = lives
        .iter()
        .zip(&entry.tensors)
        .filter(|(_, tensor)| tensor.home == Home::Library)
        .filter_map(|(life, tensor)| life.map(|(first, last)| (first, last, tensor.bytes())))
        .collect();
    let at = |moment: usize| -> usize {
        let lives = own.iter().filter(|&&(first, last, _)| (first..=last).contains(&moment));
        lives.map(|&(.., bytes)| bytes).sum()
    };
    own.iter().map(|&(first, ..)| at(first)).max().unwrap_or(0)
}

fn pack(entry: &Entry, instructions: &[Instruction]) -> Plan {
    let count = entry.tensors.len();
    let lives = lifetimes(entry, instructions);
    let first: Vec<Option<usize>> = lives.iter().map(|life| life.map(|(first, _)| first)).collect();
    let mut last: Vec<Option<usize>> = vec![None; count];
    for (at, instruction) in instructions.iter().enumerate() {
        for &tensor in instruction.makes.iter().chain(&instruction.reads) {
            last[tensor] = Some(at);
        }
    }
    let alive = first.clone();
    let temporary =
        |tensor: TensorId| entry.tensors[tensor].home == Home::Temporary && alive[tensor].is_some();
    // Tensors in a row are one block, as long as any of them lives.
    let mut heads: Vec<Option<TensorId>> = vec![None; count];
    let (mut first, mut ends) = (first, last.clone());
    let mut blocks = vec![1; count];
    for row in &entry.rows {
        let head = row[0];
        blocks[head] = row.len();
        first[head] = row.iter().filter_map(|&tensor| first[tensor]).min();
        ends[head] = row.iter().filter_map(|&tensor| last[tensor]).max();
        row.iter().for_each(|&tensor| heads[tensor] = Some(head));
    }
    // A result takes the place of an operand that dies with it.
    let mut root: Vec<TensorId> = (0..count).collect();
    for (at, instruction) in instructions.iter().enumerate() {
        let mut taken: Vec<TensorId> = Vec::new();
        for &(from, to) in &instruction.in_place {
            let fits = temporary(from)
                && temporary(to)
                && heads[from].is_none()
                && heads[to].is_none()
                && last[from] == Some(at)
                && first[to] == Some(at)
                && root[to] == to
                && entry.tensors[from].bytes() == entry.tensors[to].bytes()
                && !taken.contains(&from);
            if fits {
                taken.push(from);
                root[to] = root[from];
                ends[root[from]] = ends[root[from]].max(last[to]);
            }
        }
    }
    let is_own = |tensor: TensorId| {
        temporary(tensor) && root[tensor] == tensor && heads[tensor].is_none_or(|h| h == tensor)
    };
    let mut own: Vec<TensorId> = (0..count).filter(|&tensor| is_own(tensor)).collect();
    let size = |tensor: TensorId| blocks[tensor] * aligned(entry.tensors[tensor].bytes());
    own.sort_by_key(|&tensor| (std::cmp::Reverse(size(tensor)), first[tensor]));
    let mut offsets = vec![0; count];
    let mut placed: Vec<TensorId> = Vec::new(); // by offset
    let mut bytes = 0;
    for &tensor in &own {
        let mut offset = 0;
        for &other in &placed {
            if first[tensor] > ends[other] || first[other] > ends[tensor] {
                continue;
            }
            if offset + size(tensor) <= offsets[other] {
                break;
            }
            offset = offset.max(offsets[other] + size(other));
        }
        offsets[tensor] = offset;
        bytes = bytes.max(offset + size(tensor));
        let at = placed.partition_point(|&other| offsets[other] <= offset);
        placed.insert(at, tensor);
    }
    for tensor in 0..count {
        offsets[tensor] = offsets[root[tensor]];
    }
    for row in &entry.rows {
        for (at, &tensor) in row.iter().enumerate() {
            offsets[tensor] = offsets[row[0]] + at * aligned(entry.tensors[tensor].bytes());
        }
    }
    Plan { offsets, bytes, library_bytes: library_bytes(entry, &lives), last }
}
