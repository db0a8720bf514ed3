//! Graphs and programs as text and as Graphviz.

use crate::{Graph, Op, Program, ValueId};
use std::fmt::Write as _;

/// `1.25`, `0.0625`, short and exact enough to recognise a scale.
fn scale(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn scales(label: &str, values: &[f64]) -> String {
    if values.iter().all(|&value| value == 1.0) {
        return String::new();
    }
    let list: Vec<String> = values.iter().map(|&value| scale(value)).collect();
    format!(" {label} {}", list.join(" "))
}

/// One line for each node: results with their types, op, operands, attributes, scales, name.
pub fn graph_text(graph: &Graph) -> String {
    let mut text = String::new();
    for node in graph.nodes() {
        let list =
            |ids: &[ValueId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let types: Vec<String> =
            node.outputs.iter().map(|&output| graph.value(output).describe()).collect();
        let attributes = match node.op.attributes() {
            attributes if attributes.is_empty() => attributes,
            attributes => format!(" {{{attributes}}}"),
        };
        let _ = writeln!(
            text,
            "{} : {} = {} {}{attributes}{}{}  // {}",
            list(&node.outputs),
            types.join(", "),
            node.op.name(),
            list(&node.inputs),
            scales("alpha", &node.alpha),
            scales("beta", &node.beta),
            node.name
        );
    }
    for (slot, value) in graph.writes() {
        let _ = writeln!(text, "write {slot} = {value}");
    }
    text
}

/// A whole program: slots, entries with their instructions, memory.
pub fn program_text(program: &Program) -> String {
    let mut text = format!("program: arena {} bytes\n", program.arena_bytes());
    for (index, slot) in program.slots().iter().enumerate() {
        let kind = format!("{:?}", slot.kind).to_lowercase();
        let _ = writeln!(
            text,
            "slot @{index} {kind} {} : {} {} ({})",
            slot.name, slot.dtype, slot.shape, slot.role
        );
    }
    for entry in program.entries() {
        let _ = writeln!(
            text,
            "\nentry {}: {} instructions, temporaries {} bytes, largest live set {} bytes",
            entry.name,
            entry.graph.nodes().len(),
            entry.temporary_bytes,
            entry.live_bytes
        );
        text += &graph_text(&entry.graph);
    }
    text
}

/// A graph in Graphviz' language: ops as boxes, slots as ellipses, edges labelled with types.
pub fn graph_dot(name: &str, graph: &Graph) -> String {
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut text =
        format!("digraph \"{}\" {{\n  node [shape=box, fontname=monospace];\n", quote(name));
    for (index, node) in graph.nodes().iter().enumerate() {
        let shape = if matches!(node.op, Op::Slot(_)) { ", shape=ellipse" } else { "" };
        let alpha = scales("\\nalpha", &node.alpha);
        let _ = writeln!(
            text,
            "  n{index} [label=\"{}\\n{}{alpha}\"{shape}];",
            node.op.name(),
            quote(&node.name),
        );
        for &input in &node.inputs {
            let value = graph.value(input);
            let _ = writeln!(
                text,
                "  n{} -> n{index} [label=\"{}\"];",
                value.producer.index(),
                value.describe()
            );
        }
    }
    for (slot, value) in graph.writes() {
        let producer = graph.value(*value).producer.index();
        let _ = writeln!(text, "  n{producer} -> \"{slot}\";");
    }
    text + "}\n"
}
