//! How good the chosen schedules are.

use super::*;
use crate::{DType, ReduceKind, Role, SlotKind, autodiff};

/// A step without an update: the gradients of a chain of products and maps of several sizes.
fn chain() -> Result<Program> {
    let mut module = Module::new();
    let x = module.slot("x", SlotKind::Input, [32, 32], DType::F32, Role::Data)?;
    let mut graph = Graph::new();
    let mut y = module.read(&mut graph, x);
    let (mut weights, mut slots) = (Vec::new(), Vec::new());
    for (layer, width) in [64, 16, 96, 32].into_iter().enumerate() {
        let rows = graph.shape(y).last();
        let (name, role) = (format!("w{layer}"), Role::MasterWeight);
        let slot = module.slot(&name, SlotKind::State, [rows, width], DType::F32, role)?;
        let weight = module.read(&mut graph, slot);
        let product = graph.matmul(y, weight).one()?;
        let active = graph.map(&[product], |x| x[0].tanh())?.one()?;
        y = graph.map(&[active, product], |x| x[0].clone() * x[1].clone())?.one()?;
        weights.push(weight);
        let name = format!("d{layer}");
        slots.push(module.slot(&name, SlotKind::Output, [rows, width], DType::F32, role)?);
    }
    let loss = graph.reduce(ReduceKind::Sum, &[y], &[0, 1], false, |y| y[0].square())?.one()?;
    let gradients = autodiff::gradients(&mut graph, loss, &weights, None)?;
    for (slot, gradient) in slots.into_iter().zip(gradients) {
        graph.write(slot, gradient);
    }
    module.entry("step", graph)?;
    Program::new(module)
}

fn seconds(graph: &Graph, node: &Node) -> f64 {
    let numel = graph.value(node.outputs[0]).shape.numel() as f64;
    match node.op {
        crate::Op::Slot(_) => 0.0,
        crate::Op::MatMul { .. } => numel * graph.value(node.inputs[0]).shape.last() as f64 / 8.0,
        _ => numel,
    }
}

/// The schedule that forgets a set of forward tensors before the backward pass begins, and makes
/// them again when they are needed.
fn forgetting(search: &Search<'_>, set: &[usize], backward: usize) -> Vec<usize> {
    let mut there = vec![false; search.tensors.root.len()];
    let mut schedule = Vec::new();
    fn run(search: &Search<'_>, node: usize, there: &mut [bool], schedule: &mut Vec<usize>) {
        for &operand in &search.tensors.operands[node] {
            let producer = search.graph.values()[operand].producer.index();
            if !there[operand] && !search.tensors.is_slot(search.graph, operand) {
                run(search, producer, there, schedule);
            }
        }
        schedule.push(node);
        for output in &search.graph.nodes()[node].outputs {
            there[output.index()] = true;
        }
    }
    for (at, node) in search.graph.nodes().iter().enumerate() {
        if at == backward {
            for &tensor in set {
                there[tensor] = false;
            }
        }
        if !super::super::tensors::is_view(node) {
            run(search, at, &mut there, &mut schedule);
        }
    }
    emit::prune(search.graph, &search.tensors, &schedule)
}

/// Against every set of forward tensors that could be forgotten: never dearer than the best of
/// them, for any budget that one of them keeps.
#[test]
fn no_choice_of_what_to_forget_is_cheaper() -> Result<()> {
    let program = chain()?;
    let (places, base) = place_slots(program.slots());
    let graph = hoist(&program.entries()[0].graph);
    let search = Search::new(&graph, &places, base, &seconds);
    let is_backward = |node: &Node| node.name.starts_with("grad(") || node.name == "d_loss";
    let backward = graph.nodes().iter().position(is_backward).expect("there is one");
    let candidates: Vec<usize> = (0..search.tensors.root.len())
        .filter(|&tensor| {
            let made = graph.values()[tensor].producer.index();
            search.tensors.bytes[tensor] > 0 && made < backward
        })
        .collect();
    assert!((10..16).contains(&candidates.len()), "{}", candidates.len());
    let tried: Vec<(usize, f64)> = (0_usize..1 << candidates.len())
        .map(|set| {
            let members = candidates.iter().enumerate().filter(|(n, _)| set >> n & 1 == 1);
            let members: Vec<usize> = members.map(|(_, &tensor)| tensor).collect();
            let schedule = forgetting(&search, &members, backward);
            let found = search.planned(schedule);
            (found.planned.temporary_bytes, found.seconds)
        })
        .collect();
    let mut sizes: Vec<usize> = tried.iter().map(|&(bytes, _)| bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    assert!(sizes.len() > 8, "{sizes:?}");
    assert!(search.least() <= sizes[0], "{} of {}", search.least(), sizes[0]);
    for room in sizes {
        let fitting = tried.iter().filter(|&&(bytes, _)| bytes <= room);
        let best = fitting.map(|&(_, seconds)| seconds).fold(f64::INFINITY, f64::min);
        let found = search.fit(room).expect("one of them fits");
        assert!(found.seconds <= best, "{room} bytes: {} of {best}", found.seconds);
    }
    Ok(())
}

#[test]
fn no_repetition_can_be_left_out() -> Result<()> {
    let program = chain()?;
    let (places, base) = place_slots(program.slots());
    let graph = hoist(&program.entries()[0].graph);
    let search = Search::new(&graph, &places, base, &seconds);
    let full = program.entries()[0].temporary_bytes;
    let least = search.least();
    for part in 0..8 {
        let room = least + (full - least) * part / 8;
        let found = search.fit(room).expect("above the least");
        let mut seen = vec![false; graph.nodes().len()];
        for (at, &node) in found.schedule.iter().enumerate() {
            if !std::mem::replace(&mut seen[node], true) {
                continue;
            }
            let mut without = found.schedule.clone();
            without.remove(at);
            let without = emit::prune(&graph, &search.tensors, &without);
            assert!(!search.planned(without).fits(room), "{room} bytes: run {at}");
        }
    }
    Ok(())
}
