//! Follows memory plans byte by byte.
#![allow(dead_code)] // each test file uses its own part

use onesigma_graph::passes::memory_plan::{in_place_operand, root};
use onesigma_graph::{Op, Program, ProgramEntry, SlotId, ValueId};

/// Who wrote a byte last: a slot's old content, or a value.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Owner {
    Nobody,
    Slot(SlotId),
    Value(ValueId),
}

/// Follows the plan: every operand must still be whole when it is read, every written value when
/// the entry ends, and every slot that is not written must keep its content.
pub fn replay(program: &Program, entry: &ProgramEntry) -> Result<(), String> {
    let graph = &entry.graph;
    let mut bytes = vec![Owner::Nobody; program.arena_bytes()];
    for (n, _) in program.slots().iter().enumerate() {
        let place = program.slot_place(SlotId::new(n));
        bytes[place.offset..place.offset + place.bytes].fill(Owner::Slot(SlotId::new(n)));
    }
    let owner = |value: ValueId| {
        let base = root(graph, value);
        match graph.node(graph.value(base).producer).op {
            Op::Slot(slot) => Owner::Slot(slot),
            _ => Owner::Value(base),
        }
    };
    let range = |value: ValueId| {
        let place = entry.places[value.index()];
        place.offset..place.offset + place.bytes
    };
    let whole = |bytes: &[Owner], value: ValueId| {
        bytes[range(value)].iter().all(|&found| found == owner(value))
    };
    for node in graph.nodes() {
        for &input in &node.inputs {
            if !whole(&bytes, input) {
                return Err(format!("`{}` reads {input}, which is overwritten", node.name));
            }
        }
        if matches!(node.op, Op::Slot(_)) {
            continue; // a read that nobody uses may find anything
        }
        if matches!(node.op, Op::Reshape { .. }) {
            if node.outputs.iter().any(|&output| !whole(&bytes, output)) {
                return Err(format!("`{}` looks at something else", node.name));
            }
            continue;
        }
        for &output in &node.outputs {
            let own = entry.places[output.index()];
            for (operand, &input) in node.inputs.iter().enumerate() {
                let allowed = in_place_operand(graph, output).contains(&operand)
                    && entry.places[input.index()] == own;
                if own.overlaps(entry.places[input.index()]) && !allowed {
                    return Err(format!("`{}` overwrites operand {operand}", node.name));
                }
            }
            bytes[range(output)].fill(owner(output));
        }
        if node.outputs.iter().any(|&output| !whole(&bytes, output)) {
            return Err(format!("results of `{}` overlap", node.name));
        }
    }
    for &(slot, value) in graph.writes() {
        if !whole(&bytes, value) {
            return Err(format!("{value}, written to {slot}, is overwritten"));
        }
    }
    for n in 0..program.slots().len() {
        let (slot, place) = (SlotId::new(n), program.slot_place(SlotId::new(n)));
        let written = graph.writes().iter().any(|&(to, _)| to == slot);
        let kept = bytes[place.offset..place.offset + place.bytes]
            .iter()
            .all(|&found| found == Owner::Slot(slot));
        if !written && !kept {
            return Err(format!("{slot} is not written but changes"));
        }
    }
    Ok(())
}
