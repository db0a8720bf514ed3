//! Where tensors lie: slots first, then what an entry makes, packed by lifetime (greedy by size, as
//! the graph's own plan, over the work that really runs, at the alignment that bindings want).
//!
//! Memory is a row of buffers of one size, the most that a binding takes. A tensor that fits into
//! one lies in one; a larger one begins where a buffer does and goes on in the next.

use std::cmp::Reverse;

use onesigma_graph::DType;
use onesigma_graph::expr::Expr;

use crate::ir::{Compute, Element, Entry, Home, Operand, Rounded, TensorId, Work};

/// Alignment of every tensor, in bytes: WebGPU's default for the offset of a binding.
pub(crate) const ALIGNMENT: usize = 256;

/// Where a tensor lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Place {
    pub offset: usize,
    pub bytes: usize,
}

/// The memory of an entry.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    segment: usize,
    places: Vec<Place>,
    /// End of what the entry uses.
    pub end: usize,
}

impl Memory {
    pub(crate) fn place(&self, tensor: TensorId) -> Place {
        self.places[tensor]
    }

    /// Bytes of one buffer.
    pub(crate) fn segment_bytes(&self) -> usize {
        self.segment
    }

    /// In how many buffers a tensor of this size lies.
    pub(crate) fn segments(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.segment).max(1)
    }
}

/// The first place at or behind `offset` where a tensor may begin.
fn admissible(offset: usize, bytes: usize, segment: usize) -> usize {
    let offset = offset.next_multiple_of(ALIGNMENT);
    let inside = offset % segment;
    match inside + bytes > segment && inside > 0 {
        true => offset - inside + segment,
        false => offset,
    }
}

/// Places of slots, one after another, and the end of the last.
pub(crate) fn place_slots(bytes: &[usize], segment: usize) -> (Vec<Place>, usize) {
    let mut end = 0;
    let places = bytes
        .iter()
        .map(|&bytes| {
            let bytes = bytes.max(16);
            let offset = admissible(end, bytes, segment);
            end = offset + bytes;
            Place { offset, bytes }
        })
        .collect();
    (places, end)
}

/// Decides homes, appends the copies into slots, and packs the rest behind the slots.
pub(crate) fn plan(entry: &mut Entry, slots: &[Place], base: usize, segment: usize) -> Memory {
    place_in_slots(entry);
    copy_into_slots(entry);
    pack(entry, slots, base, segment)
}

/// Makes results directly in the slot that takes them, where no one still needs the old content.
fn place_in_slots(entry: &mut Entry) {
    for (slot, tensor) in entry.writes.clone() {
        let written = entry.writes.iter().filter(|(_, other)| *other == tensor).count();
        let made = entry.work.iter().position(|work| work.makes().contains(&tensor));
        let Some(made) = made.filter(|_| written == 1) else { continue };
        if entry.tensors[tensor].home != Home::Temporary {
            continue;
        }
        let old = |other: TensorId| entry.tensors[other].home == Home::Slot(slot);
        // The old content goes to another slot at the end.
        if entry.writes.iter().any(|&(to, from)| to != slot && old(from)) {
            continue;
        }
        let free = entry.work.iter().enumerate().all(|(at, work)| {
            at < made
                || work.reads().into_iter().filter(|&read| old(read)).all(|read| {
                    at == made
                        && work.in_place().contains(&(read, tensor))
                        && entry.tensors[read].bytes() == entry.tensors[tensor].bytes()
                })
        });
        let drawn_from = [entry.seed, entry.step].into_iter().flatten().any(old);
        if free && !drawn_from {
            entry.tensors[tensor].home = Home::Slot(slot);
        }
    }
}

/// The work that copies a tensor.
fn copy(entry: &Entry, from: TensorId, out: TensorId) -> Work {
    let (numel, dtype) = (entry.tensors[from].numel, entry.tensors[from].dtype);
    Work::Group(vec![Element {
        compute: Compute::Copy,
        operands: vec![Operand::full(from, numel)],
        dims: vec![numel],
        result: Rounded { dtype, ..Rounded::PLAIN },
        out,
    }])
}

fn copy_into_slots(entry: &mut Entry) {
    let pending: Vec<(usize, TensorId)> = entry
        .writes
        .iter()
        .copied()
        .filter(|&(slot, tensor)| entry.tensors[tensor].home != Home::Slot(slot))
        .collect();
    let push = |entry: &mut Entry, from: TensorId, home: Home| {
        let (numel, dtype) = (entry.tensors[from].numel, entry.tensors[from].dtype);
        let out = entry.tensor(numel, dtype, home);
        let work = copy(entry, from, out);
        entry.work.push(work);
        entry.names.push("write".to_owned());
        out
    };
    // What a copy would overwrite before another has read it goes through a temporary.
    let mut sources = Vec::new();
    for &(slot, tensor) in &pending {
        let overwritten = pending
            .iter()
            .any(|&(other, _)| other != slot && entry.tensors[tensor].home == Home::Slot(other));
        let source = if overwritten { push(entry, tensor, Home::Temporary) } else { tensor };
        sources.push((slot, source));
    }
    for (slot, source) in sources {
        push(entry, source, Home::Slot(slot));
    }
}

fn pack(entry: &Entry, slots: &[Place], base: usize, segment: usize) -> Memory {
    let count = entry.tensors.len();
    let mut first: Vec<Option<usize>> = vec![None; count];
    let mut last: Vec<Option<usize>> = vec![None; count];
    for (at, work) in entry.work.iter().enumerate() {
        for tensor in work.makes() {
            first[tensor] = first[tensor].or(Some(at));
            last[tensor] = Some(at);
        }
        for tensor in work.reads() {
            last[tensor] = Some(at);
        }
    }
    let temporary =
        |tensor: TensorId| entry.tensors[tensor].home == Home::Temporary && first[tensor].is_some();
    // A result takes the place of an operand that dies with it.
    let mut root: Vec<TensorId> = (0..count).collect();
    let mut ends = last.clone();
    for (at, work) in entry.work.iter().enumerate() {
        let mut taken: Vec<TensorId> = Vec::new();
        for (from, to) in work.in_place() {
            let fits = temporary(from)
                && temporary(to)
                && last[from] == Some(at)
                && first[to] == Some(at)
                && root[to] == to
                && entry.tensors[from].bytes() == entry.tensors[to].bytes()
                && entry.tensors[from].dtype.bytes() == entry.tensors[to].dtype.bytes()
                && !taken.contains(&from);
            if fits {
                taken.push(from);
                root[to] = root[from];
                ends[root[from]] = ends[root[from]].max(last[to]);
            }
        }
    }
    let mut own: Vec<TensorId> =
        (0..count).filter(|&tensor| temporary(tensor) && root[tensor] == tensor).collect();
    let size = |tensor: TensorId| entry.tensors[tensor].bytes();
    own.sort_by_key(|&tensor| (Reverse(size(tensor)), first[tensor]));
    let mut places = vec![Place::default(); count];
    let mut placed: Vec<TensorId> = Vec::new(); // by offset
    let mut end = base;
    for &tensor in &own {
        let bytes = size(tensor);
        let mut offset = admissible(base, bytes, segment);
        for &other in &placed {
            if first[tensor] > ends[other] || first[other] > ends[tensor] {
                continue;
            }
            if offset + bytes <= places[other].offset {
                break;
            }
            offset =
                admissible(offset.max(places[other].offset + places[other].bytes), bytes, segment);
        }
        places[tensor] = Place { offset, bytes };
        end = end.max(offset + bytes);
        let at = placed.partition_point(|&other| places[other].offset <= offset);
        placed.insert(at, tensor);
    }
    for tensor in 0..count {
        places[tensor] = match entry.tensors[tensor].home {
            Home::Slot(slot) => slots[slot],
            Home::Temporary => places[root[tensor]],
        };
    }
    Memory { segment, places, end }
}

/// The constant that fills a tensor.
pub(crate) fn filling(value: f64, numel: usize, result: Rounded, out: TensorId) -> Element {
    let expr = Expr::new(0, |_| value.into());
    Element { compute: Compute::Expr(expr), operands: Vec::new(), dims: vec![numel], result, out }
}

/// Bytes of a frame of a slot in memory.
pub(crate) fn frame_bytes(numel: usize, dtype: DType) -> usize {
    crate::ir::padded_bytes(numel, dtype).max(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_lies_in_one_buffer_or_begins_with_one() {
        assert_eq!(admissible(100, 50, 1024), 256);
        assert_eq!(admissible(1000, 512, 1024), 1024);
        assert_eq!(admissible(600, 512, 1024), 1024);
        assert_eq!(admissible(300, 5000, 1024), 1024);
        assert_eq!(admissible(2048, 5000, 1024), 2048);
    }

    #[test]
    fn slots_stand_one_after_another() {
        let (places, end) = place_slots(&[4, 300, 2000, 16], 1024);
        let offsets: Vec<usize> = places.iter().map(|place| place.offset).collect();
        assert_eq!(offsets, [0, 256, 1024, 3072]);
        assert_eq!(end, 3088);
    }
}
