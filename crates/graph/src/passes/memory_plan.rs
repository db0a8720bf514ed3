//! Liveness and placement: every value gets its place in one arena.
//!
//! Values are alive from the node that makes them to the last node that reads them. Slots come
//! first, at fixed places. A reshape shares its operand's place; a value that is written to a
//! state slot is made directly in the slot where no one still needs the old content; an
//! element-wise result takes the place of an operand that nothing reads after it. The others are
//! placed greedily, largest first, each at the lowest offset where it overlaps no value that is
//! alive at the same time (Pisarchyk and Lee, arXiv 2001.03288, "greedy by size").

use crate::program::{ALIGNMENT, ProgramEntry};
use crate::{Graph, Op, Place, Slot, SlotId, ValueId};
use std::collections::HashMap;

/// Bytes that a tensor takes in the arena.
pub(crate) fn align(bytes: usize) -> usize {
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

/// The slot in whose place each value lies: slots read, views of them, and results that are made
/// there. The others are temporary.
pub(crate) fn slots_of(graph: &Graph) -> Vec<Option<SlotId>> {
    let slot = |home: &Home| match home {
        Home::Slot(slot) => Some(*slot),
        Home::Own | Home::Alias(_) => None,
    };
    homes(graph).iter().map(slot).collect()
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
    let tenants = tenants(&graph, &homes, &last);
    let bytes = |index: usize| align(graph.values()[index].bytes());
    let mut places = vec![Place { offset: 0, bytes: 0 }; graph.values().len()];
    let mut rooms: Vec<Room> = Vec::new();
    for (index, value) in graph.values().iter().enumerate() {
        match homes[index] {
            Home::Own if tenants[index] == index => {
                let (first, bytes) = (value.producer.index(), bytes(index));
                rooms.push(Room { value: index, first, last: last[index], bytes, offset: base });
            }
            Home::Slot(slot) => {
                places[index] = Place { bytes: value.bytes(), ..slot_places[slot.index()] };
            }
            Home::Own | Home::Alias(_) => {}
        }
    }
    for (index, &first) in tenants.iter().enumerate() {
        if first != index
            && let Ok(room) = rooms.binary_search_by_key(&first, |room| room.value)
        {
            rooms[room].last = rooms[room].last.max(last[index]);
        }
    }
    let temporary_bytes = place_rooms(&mut rooms, base);
    for room in &rooms {
        let bytes = graph.values()[room.value].bytes();
        places[room.value] = Place { offset: room.offset, bytes };
    }
    for index in 0..places.len() {
        let same_bytes = Place { bytes: graph.values()[index].bytes(), ..places[tenants[index]] };
        if homes[index] == Home::Own {
            places[index] = same_bytes;
        }
    }
    for index in 0..places.len() {
        if let Home::Alias(of) = homes[index] {
            places[index] = Place { bytes: graph.values()[index].bytes(), ..places[of.index()] };
        }
    }
    let live_bytes = live_bytes(&rooms, graph.nodes().len());
    ProgramEntry { name, graph, places, live_bytes, temporary_bytes }
}

/// Memory that one temporary value, or several one after another, lie in.
struct Room {
    /// The first value that lies there.
    value: usize,
    /// The node that makes it.
    first: usize,
    /// The last node that reads the last value.
    last: usize,
    bytes: usize,
    offset: usize,
}

/// Gives every room its offset from `base` on; the bytes that they take together.
fn place_rooms(rooms: &mut [Room], base: usize) -> usize {
    let mut order: Vec<usize> = (0..rooms.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(rooms[index].bytes), index));
    let mut placed: Vec<usize> = Vec::new(); // ordered by offset
    let mut end = base;
    for index in order {
        let room = &rooms[index];
        let mut offset = base;
        for &other in &placed {
            let other = &rooms[other];
            let together = room.first <= other.last && other.first <= room.last;
            if !together {
                continue;
            }
            if offset + room.bytes <= other.offset {
                break;
            }
            offset = offset.max(other.offset + other.bytes);
        }
        end = end.max(offset + room.bytes);
        rooms[index].offset = offset;
        let at = placed.partition_point(|&other| rooms[other].offset <= offset);
        placed.insert(at, index);
    }
    end - base
}

/// Bytes of the rooms that are in use at the busiest node.
fn live_bytes(rooms: &[Room], nodes: usize) -> usize {
    let mut changes = vec![0_isize; nodes + 2];
    for room in rooms {
        changes[room.first] += room.bytes as isize;
        changes[room.last + 1] -= room.bytes as isize;
    }
    let alive = changes[..nodes].iter().scan(0, |alive, change| {
        *alive += change;
        Some(*alive)
    });
    alive.max().unwrap_or(0) as usize
}

/// For each value, the value whose room it takes over: itself, or the first of a chain of
/// element-wise results, each of which is the last to read the one before.
fn tenants(graph: &Graph, homes: &[Home], last: &[usize]) -> Vec<usize> {
    let mut tenants: Vec<usize> = (0..homes.len()).collect();
    for (at, node) in graph.nodes().iter().enumerate() {
        let mut taken = Vec::new();
        for &output in &node.outputs {
            if homes[output.index()] != Home::Own {
                continue;
            }
            let in_place = in_place_operand(graph, output);
            let roots: Vec<usize> =
                node.inputs.iter().map(|&input| root(graph, input).index()).collect();
            let free = in_place.iter().map(|&operand| roots[operand]).find(|&value| {
                let read_elsewhere = (0..roots.len())
                    .any(|operand| roots[operand] == value && !in_place.contains(&operand));
                homes[value] == Home::Own
                    && last[value] == at
                    && !read_elsewhere
                    && !taken.contains(&value)
            });
            if let Some(value) = free {
                taken.push(value);
                tenants[output.index()] = tenants[value];
            }
        }
    }
    tenants
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
    let mut old_content_needed_until: HashMap<SlotId, usize> = HashMap::new();
    for (at, node) in graph.nodes().iter().enumerate() {
        for &input in &node.inputs {
            if let Some(slot) = homes_of(graph, input) {
                old_content_needed_until.insert(slot, at);
            }
        }
    }
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
        let free = match old_content_needed_until.get(&slot) {
            None => true,
            Some(&at) if at < made => true,
            Some(&at) if at == made => {
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
