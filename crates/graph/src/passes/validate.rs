//! Everything that a backend relies on, checked on a finished program.

use super::memory_plan::{in_place_operand, last_uses, root};
use crate::infer::infer;
use crate::program::{ALIGNMENT, PROGRAM_VERSION, ProgramEntry};
use crate::{DType, Error, Op, Place, Program, Result, SlotKind, Value, ValueId};
use onesigma_format::{Conversion, Rounding};

fn invalid<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::InvalidProgram { reason: reason.into() })
}

pub(crate) fn validate(program: &Program) -> Result<()> {
    if program.version != PROGRAM_VERSION {
        let found = program.version;
        return invalid(format!("version {found}, this library reads {PROGRAM_VERSION}"));
    }
    if program.slots.len() != program.slot_places.len() {
        return invalid("slots and their places differ in number");
    }
    for (slot, &place) in program.slots.iter().zip(&program.slot_places) {
        check_place(&format!("slot `{}`", slot.name), place, slot.bytes(), program.arena_bytes)?;
    }
    for (n, place) in program.slot_places.iter().enumerate() {
        if program.slot_places[..n].iter().any(|other| other.overlaps(*place)) {
            return invalid(format!("slot `{}` overlaps another", program.slots[n].name));
        }
    }
    for (what, slot, dtype, numel) in
        [("seed", program.seed, DType::U32, 2), ("step", program.step, DType::U32, 1)]
    {
        let Some(slot) = slot else { continue };
        let ok = program.slots.get(slot.index()).is_some_and(|slot| {
            slot.dtype == dtype && slot.shape.numel() == numel && slot.kind == SlotKind::Input
        });
        if !ok {
            return invalid(format!("the {what} slot is not an input of {numel} U32"));
        }
    }
    program.entries.iter().try_for_each(|entry| check_entry(program, entry))
}

/// Whether a conversion draws a number of random bits that there is.
pub(crate) fn is_conversion(how: Conversion) -> bool {
    match how.rounding {
        Rounding::Stochastic { bits } => matches!(bits, 8 | 16 | 32),
        _ => true,
    }
}

fn check_place(what: &str, place: Place, bytes: usize, arena: usize) -> Result<()> {
    let end = place.offset.checked_add(place.bytes);
    if !place.offset.is_multiple_of(ALIGNMENT) || end.is_none_or(|end| end > arena) {
        return invalid(format!("{what} is misaligned or outside the arena"));
    }
    if place.bytes != bytes {
        return invalid(format!("{what} has {} bytes of memory, needs {bytes}", place.bytes));
    }
    Ok(())
}

fn check_entry(program: &Program, entry: &ProgramEntry) -> Result<()> {
    let graph = &entry.graph;
    let (nodes, values) = (graph.nodes.len(), graph.values.len());
    if entry.places.len() != values {
        return invalid(format!("entry `{}`: values and places differ in number", entry.name));
    }
    let mut made = vec![false; values];
    for (at, node) in graph.nodes.iter().enumerate() {
        let fail =
            |reason: &str| invalid(format!("entry `{}`, `{}`: {reason}", entry.name, node.name));
        if node.inputs.iter().any(|input| input.index() >= values || !made[input.index()]) {
            return fail("an operand is used before it is made");
        }
        if node.alpha.len() != node.outputs.len() || node.alpha.iter().any(|a| !a.is_finite()) {
            return fail("its scales are not one finite number for each result");
        }
        for (output, &value) in node.outputs.iter().enumerate() {
            let Some(info) = graph.values.get(value.index()) else {
                return fail("a result does not exist");
            };
            if made[value.index()] || info.producer.index() != at || info.output != output {
                return fail("a result is claimed by two nodes");
            }
            made[value.index()] = true;
            if !is_conversion(info.conversion) {
                return fail("stochastic rounding takes 8, 16 or 32 random bits");
            }
        }
        if let Op::Slot(slot) = node.op {
            let Some(slot) = program.slots.get(slot.index()) else {
                return fail("the slot does not exist");
            };
            let [output] = node.outputs[..] else { return fail("a slot has one result") };
            let value = graph.value(output);
            if value.shape != slot.shape || value.dtype != slot.dtype {
                return fail("the value differs from its slot");
            }
            continue;
        }
        let operands: Vec<&Value> = node.inputs.iter().map(|&input| graph.value(input)).collect();
        let inferred =
            infer(&node.name, &node.op, &operands).or_else(|error| invalid(error.to_string()))?;
        if inferred.len() != node.outputs.len() {
            return fail("it has a wrong number of results");
        }
        for (inferred, &output) in inferred.iter().zip(&node.outputs) {
            let value = graph.value(output);
            if value.shape != inferred.shape {
                return fail("a result has a wrong shape");
            }
            let moved = node.op.is_movement() && value.dtype != inferred.dtype;
            let cast = matches!(node.op, Op::Cast { to } if to != value.dtype);
            if moved || cast {
                return fail("a result has a wrong element type");
            }
        }
    }
    if made.iter().any(|made| !made) {
        return invalid(format!("entry `{}`: a value has no producer", entry.name));
    }
    for (value, &place) in graph.values.iter().zip(&entry.places) {
        let what =
            format!("entry `{}`, `{}`", entry.name, graph.nodes[value.producer.index()].name);
        check_place(&what, place, value.bytes(), program.arena_bytes)?;
    }
    for &(slot, value) in &graph.writes {
        let known = program.slots.get(slot.index()).zip(graph.values.get(value.index()));
        let Some((slot, value)) = known else {
            return invalid(format!("entry `{}` writes something that does not exist", entry.name));
        };
        if slot.shape != value.shape || slot.dtype != value.dtype || slot.kind == SlotKind::Input {
            return invalid(format!(
                "entry `{}` may not write this to slot `{}`",
                entry.name, slot.name
            ));
        }
    }
    check_aliasing(program, entry, nodes)
}

/// No result may be placed over bytes that are needed later, other than by an op that updates
/// that operand in place.
fn check_aliasing(program: &Program, entry: &ProgramEntry, nodes: usize) -> Result<()> {
    let graph = &entry.graph;
    let mut last = last_uses(graph);
    // What a reshape or slot read looks at is needed as long as the view is.
    for index in (0..graph.values.len()).rev() {
        let base = root(graph, ValueId::new(index)).index();
        last[base] = last[base].max(last[index]);
    }
    // Slots that are read, and those not written here, are needed from the start.
    struct Live {
        place: Place,
        until: usize,
        value: Option<usize>,
    }
    let mut live: Vec<Live> = Vec::new();
    for (slot, &place) in program.slot_places.iter().enumerate() {
        let written = graph.writes.iter().find(|(to, _)| to.index() == slot);
        let until = match written {
            None => nodes + 1,
            Some(_) => 0,
        };
        live.push(Live { place, until, value: None });
    }
    for at in 0..nodes {
        let node = &graph.nodes[at];
        live.retain(|live| live.until > at || (live.until == at && live.value.is_some()));
        for &output in &node.outputs {
            let index = output.index();
            let place = entry.places[index];
            let is_view = match node.op {
                Op::Slot(slot) => place.offset == program.slot_places[slot.index()].offset,
                Op::Reshape { .. } => {
                    place.offset == entry.places[root(graph, output).index()].offset
                }
                _ => false,
            };
            let is_slot_read = matches!(node.op, Op::Slot(_));
            if (is_slot_read || matches!(node.op, Op::Reshape { .. })) && !is_view {
                return invalid(format!("`{}` is not placed where it looks at", node.name));
            }
            if !is_view {
                let in_place = in_place_operand(graph, output);
                for other in &live {
                    if !other.place.overlaps(place) {
                        continue;
                    }
                    let updated = other.until == at
                        && other.place.offset == place.offset
                        && other.value.is_some_and(|value| {
                            in_place
                                .iter()
                                .any(|&operand| root(graph, node.inputs[operand]).index() == value)
                        });
                    if !updated {
                        return invalid(format!(
                            "entry `{}`: `{}` is placed over a value that is still needed",
                            entry.name, node.name
                        ));
                    }
                }
            }
            if !matches!(node.op, Op::Reshape { .. }) {
                live.push(Live { place, until: last[index], value: Some(index) });
            }
        }
    }
    Ok(())
}
