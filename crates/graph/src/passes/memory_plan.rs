//! Liveness and placement: every value gets its place in one arena.
//!
//! Values are alive from the node that makes them to the last node that reads them. Slots come
//! first, at fixed places. A reshape shares its operand's place; a value that is written to a
//! state slot is made directly in the slot where no one still needs the old content. The others
//! are placed greedily, largest first, each at the lowest offset where it overlaps no value that
//! is alive at the same time (Pisarchyk and Lee, arXiv 2001.03288, "greedy by size").

use crate::program::{ALIGNMENT, ProgramEntry};
use crate::{Graph, Op, Place, Slot, SlotId, ValueId};

fn align(bytes: usize) -> usize {
    bytes.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT)
}

/// Places slots one after another; also gives the bytes they take.
pub(crate) fn place_slots(slots: &[Slot]) -> (Vec<Place>, usize) {
    let mut offset = 0_usize;
    let places = slots
        .iter()
        .map(|slot| {
            let place = Place { offset, bytes: slot.bytes() };
            offset = offset.saturating_add(align(slot.bytes()));
            place
        })
        .collect();
    (places, offset)
}

/// What stands for a value's memory: itself, another value, or a slot.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    Own,
    Slot(SlotId),
    Alias(ValueId),
}

/// Last use of each value as a node index; values written to slots live to the end.
pub fn last_uses(graph: &Graph) -> Vec<usize> {
    let mut last: Vec<usize> = graph.values().iter().map(|v| v.producer.index()).collect();
    for (index, node) in graph.nodes().iter().enumerate() {
        for input in &node.inputs {
            last[input.index()] = last[input.index()].max(index);
        }
    }
    for &(_, value) in graph.writes() {
        last[value.index()] = graph.nodes().len();
    }
    last
}

/// The value whose memory a reshape, or a chain of them, looks at.
pub fn root(graph: &Graph, mut value: ValueId) -> ValueId {
    loop {
        let node = graph.node(graph.value(value).producer);
        match node.op {
            Op::Reshape { .. } => value = node.inputs[0],
            _ => return value,
        }
    }
}

/// Which operand an op can update in place into `output`: reading and writing go element by
/// element, so shape and type must agree.
pub fn in_place_operand(graph: &Graph, value: ValueId) -> Vec<usize> {
    let result = graph.value(value);
    let node = graph.node(result.producer);
    let same = |&operand: &usize| {
        let input = graph.value(node.inputs[operand]);
        input.shape == result.shape && input.dtype == result.dtype
    };
    let candidates: Vec<usize> = match node.op {
        Op::Map { .. } => (0..node.inputs.len()).collect(),
        Op::AdamW(_) => vec![[0, 2, 3][result.output]],
        _ => Vec::new(),
    };
    candidates.into_iter().filter(same).collect()
}

pub(crate) fn plan_entry(
    name: String,
    graph: Graph,
    slot_places: &[Place],
    base: usize,
) -> ProgramEntry {
    let homes = homes(&graph);
    let mut last = last_uses(&graph);
    // A value lives as long as every alias of it.
    for index in (0..graph.values().len()).rev() {
        if let Home::Alias(of) = homes[index] {
            last[of.index()] = last[of.index()].max(last[index]);
        }
    }
    let mut places = vec![Place { offset: 0, bytes: 0 }; graph.values().len()];
    let mut own: Vec<usize> = Vec::new();
    for (index, value) in graph.values().iter().enumerate() {
        match homes[index] {
            Home::Own => own.push(index),
            Home::Slot(slot) => {
                places[index] = Place { bytes: value.bytes(), ..slot_places[slot.index()] };
            }
            Home::Alias(_) => {}
        }
    }
    let first = |index: usize| graph.values()[index].producer.index();
    let bytes = |index: usize| align(graph.values()[index].bytes());

    own.sort_by_key(|&index| (std::cmp::Reverse(bytes(index)), index));
    let mut placed: Vec<usize> = Vec::new(); // ordered by offset
    let mut temporary_bytes = 0;
    for &index in &own {
        let mut offset = base;
        for &other in &placed {
            let together = first(index) <= last[other] && first(other) <= last[index];
            if !together {
                continue;
            }
            if offset + bytes(index) <= places[other].offset {
                break;
            }
            offset = offset.max(places[other].offset + bytes(other));
        }
        places[index] = Place { offset, bytes: graph.values()[index].bytes() };
        temporary_bytes = temporary_bytes.max(offset + bytes(index) - base);
        let at = placed.partition_point(|&other| places[other].offset <= offset);
        placed.insert(at, index);
    }
    for index in 0..places.len() {
        if let Home::Alias(of) = homes[index] {
            places[index] = Place { bytes: graph.values()[index].bytes(), ..places[of.index()] };
        }
    }
    let live_bytes = (0..graph.nodes().len())
        .map(|at| {
            own.iter()
                .filter(|&&index| first(index) <= at && at <= last[index])
                .map(|&index| bytes(index))
                .sum::<usize>()
        })
        .max()
        .unwrap_or(0);
    ProgramEntry { name, graph, places, live_bytes, temporary_bytes }
}

fn homes(graph: &Graph) -> Vec<Home> {
    let mut homes: Vec<Home> = graph
        .values()
        .iter()
        .enumerate()
        .map(|(index, value)| match graph.node(value.producer).op {
            Op::Slot(slot) => Home::Slot(slot),
            Op::Reshape { .. } => Home::Alias(root(graph, ValueId::new(index))),
            _ => Home::Own,
        })
        .collect();
    // Reshapes of slots look at the slot itself.
    for index in 0..homes.len() {
        if let Home::Alias(of) = homes[index]
            && let slot @ Home::Slot(_) = homes[of.index()]
        {
            homes[index] = slot;
        }
    }
    let old_content_needed_until = |slot: SlotId| {
        let mut last = None;
        for (at, node) in graph.nodes().iter().enumerate() {
            for &input in &node.inputs {
                if homes_of(graph, input) == Some(slot) {
                    last = Some(at);
                }
            }
        }
        last
    };
    // Decided on reads of the old content only, so the order of the writes does not matter.
    let mut in_slot = Vec::new();
    for &(slot, value) in graph.writes() {
        let made = graph.value(value).producer.index();
        let writes_of_value = graph.writes().iter().filter(|&&(_, other)| other == value).count();
        // The slot's old content written to another slot is read after the last node.
        let copied = graph
            .writes()
            .iter()
            .any(|&(other, value)| other != slot && homes_of(graph, value) == Some(slot));
        if homes[value.index()] != Home::Own || writes_of_value > 1 || copied {
            continue;
        }
        let free = match old_content_needed_until(slot) {
            None => true,
            Some(at) if at < made => true,
            Some(at) if at == made => {
                let node = &graph.nodes()[made];
                let in_place = in_place_operand(graph, value);
                node.inputs.iter().enumerate().all(|(operand, &input)| {
                    homes_of(graph, input) != Some(slot) || in_place.contains(&operand)
                })
            }
            Some(_) => false,
        };
        if free {
            in_slot.push((slot, value));
        }
    }
    for (slot, value) in in_slot {
        homes[value.index()] = Home::Slot(slot);
        for index in 0..homes.len() {
            if homes[index] == Home::Alias(value) {
                homes[index] = Home::Slot(slot);
            }
        }
    }
    homes
}

/// The slot whose old content a value is, directly or through reshapes.
fn homes_of(graph: &Graph, value: ValueId) -> Option<SlotId> {
    match graph.node(graph.value(root(graph, value)).producer).op {
        Op::Slot(slot) => Some(slot),
        _ => None,
    }
}
