//! Map fusion: chains of element-wise nodes become one pass over memory.
//!
//! A map or cast whose f32 result only one map, cast or reduction over the same shape reads is
//! written into that reader's expression; what it stored is never stored. No bit changes. Results
//! in narrower formats stay where they are: without their rounding the step would no longer be the
//! one that is measured tensor by tensor.
//!
//! A fusion makes the operands of the first node live until the second. It is done only where that
//! is no more memory than the result took that goes, so the plan never grows.

use std::collections::BTreeSet;

use super::clean::remove_dead;
use super::memory_plan::last_uses;
use super::{Renaming, clean};
use crate::expr::{Expr, Term};
use crate::{DType, Graph, Node, Op, Shape, ValueId};

/// Most operands of a fused node.
const OPERANDS: usize = 12;
/// Most instructions of a fused expression.
const INSTRUCTIONS: usize = 64;

/// Fuses chains of maps, casts and the expressions of reductions.
pub fn fuse_maps(graph: &Graph) -> Graph {
    let mut fusion = Fusion {
        from: graph,
        to: graph.successor(),
        renamed: Renaming::new(graph),
        old: Vec::new(),
        readers: readers(graph),
        last: last_uses(graph),
    };
    for (at, node) in graph.nodes().iter().enumerate() {
        fusion.visit(at, node);
    }
    let Fusion { mut to, renamed, .. } = fusion;
    renamed.writes(graph, &mut to);
    // What two nodes computed alike may now be one.
    clean::clean(&remove_dead(&to))
}

struct Fusion<'g> {
    from: &'g Graph,
    to: Graph,
    renamed: Renaming,
    /// For each value of the new graph the value of the old one that it stands for.
    old: Vec<ValueId>,
    /// Nodes and slots that read a value of the old graph.
    readers: Vec<usize>,
    /// Last reader of a value of the old graph, as far as nodes have been fused.
    last: Vec<usize>,
}

fn readers(graph: &Graph) -> Vec<usize> {
    let mut readers = vec![0; graph.values().len()];
    for node in graph.nodes() {
        let inputs: BTreeSet<usize> = node.inputs.iter().map(|input| input.index()).collect();
        inputs.into_iter().for_each(|input| readers[input] += 1);
    }
    graph.writes().iter().for_each(|(_, value)| readers[value.index()] += 1);
    readers
}

/// The expression that a node applies to each element of a space, if it is element-wise.
fn expression(graph: &Graph, node: &Node) -> Option<(Expr, Shape)> {
    match &node.op {
        Op::Map { expr, shape } | Op::Reduce { expr, shape, .. } => {
            Some((expr.clone(), shape.clone()))
        }
        Op::Cast { .. } => Some((Expr::identity(), graph.shape(node.outputs[0]).clone())),
        _ => None,
    }
}

impl Fusion<'_> {
    fn visit(&mut self, at: usize, node: &Node) {
        let inputs = self.renamed.all(&node.inputs);
        let fused = expression(self.from, node)
            .and_then(|(expr, shape)| self.fuse(at, node, &inputs, &expr, &shape));
        let outputs = match fused {
            Some((node, inputs)) => self.to.carry(&node, self.from, inputs),
            None => self.to.carry(node, self.from, inputs),
        };
        self.old.extend(&node.outputs);
        self.renamed.set_all(&node.outputs, &outputs);
    }

    /// The node with the expressions of its operands written into its own, if there are any.
    fn fuse(
        &mut self,
        at: usize,
        node: &Node,
        inputs: &[ValueId],
        expr: &Expr,
        shape: &Shape,
    ) -> Option<(Node, Vec<ValueId>)> {
        let mut operands: Vec<ValueId> = Vec::new();
        let mut terms = Vec::with_capacity(inputs.len());
        let mut any = false;
        for &input in inputs {
            let inner = self.inner(at, input, shape);
            any |= inner.is_some();
            let mut operand = |value| {
                let known = operands.iter().position(|&other| other == value);
                Term::input(known.unwrap_or_else(|| {
                    operands.push(value);
                    operands.len() - 1
                }))
            };
            terms.push(match inner {
                Some((inner, alpha, values)) => {
                    let values: Vec<Term> = values.into_iter().map(&mut operand).collect();
                    inner.apply(&values) * alpha
                }
                None => operand(input),
            });
        }
        let fused = Expr::from_term(operands.len(), &expr.apply(&terms));
        let fits = operands.len() <= OPERANDS && fused.instrs().len() <= INSTRUCTIONS;
        if !any || !fits {
            return None;
        }
        for operand in &operands {
            let last = &mut self.last[self.old[operand.index()].index()];
            *last = (*last).max(at);
        }
        let op = match &node.op {
            Op::Reduce { kind, axes, keep_dims, .. } => Op::Reduce {
                kind: *kind,
                expr: fused,
                shape: shape.clone(),
                axes: axes.clone(),
                keep_dims: *keep_dims,
            },
            _ => Op::Map { expr: fused, shape: shape.clone() },
        };
        let beta = vec![1.0; operands.len()];
        Some((Node { op, beta, ..node.clone() }, operands))
    }

    /// Expression, scale and operands of the node that makes an operand of node `at`, if it can be
    /// written into that.
    fn inner(&self, at: usize, input: ValueId, space: &Shape) -> Option<(Expr, f64, Vec<ValueId>)> {
        let old = self.old[input.index()];
        let value = self.to.value(input);
        let node = self.to.node(value.producer);
        let (expr, shape) = match node.op {
            Op::Reduce { .. } => return None,
            _ => expression(&self.to, node)?,
        };
        if shape != *space || self.readers[old.index()] != 1 || value.dtype != DType::F32 {
            return None;
        }
        let kept_longer: usize = node
            .inputs
            .iter()
            .filter(|input| self.last[self.old[input.index()].index()] < at)
            .map(|&input| self.to.value(input).bytes())
            .sum();
        (kept_longer <= value.bytes()).then(|| (expr, node.alpha[0], node.inputs.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Module, Role, SlotKind, Value};
    use onesigma_format::{Conversion, Format};

    /// `out = 3 (2 (x + 1) + x)`, the first sum stored as `format`.
    fn chain(format: Format, twice: bool) -> Graph {
        let mut module = Module::new();
        let mut graph = Graph::new();
        let x = module.slot("x", SlotKind::Input, [4, 8], DType::F32, Role::Data).unwrap();
        let x = module.read(&mut graph, x);
        let sum = graph.map(&[x], |x| x[0].clone() + 1.0).unwrap().alpha(2.0);
        let sum = sum.stored_as(DType::Float(format), Conversion::SATURATE).one().unwrap();
        let out = graph.map(&[sum, x], |x| x[0].clone() + x[1].clone()).unwrap();
        let out = out.alpha(3.0).one().unwrap();
        for (name, value) in [("out", out), ("sum", sum)].into_iter().take(1 + usize::from(twice)) {
            let shape = [4, 8];
            let slot =
                module.slot(name, SlotKind::Output, shape, graph.value(value).dtype, Role::Data);
            graph.write(slot.unwrap(), value);
        }
        graph
    }

    fn maps(graph: &Graph) -> Vec<&Node> {
        graph.nodes().iter().filter(|node| matches!(node.op, Op::Map { .. })).collect()
    }

    #[test]
    fn a_chain_becomes_one_expression() {
        let graph = fuse_maps(&chain(Format::F32, false));
        let [node] = maps(&graph)[..] else { panic!("one map expected") };
        let Op::Map { expr, .. } = &node.op else { unreachable!() };
        assert_eq!(node.inputs.len(), 1, "the operand stands once");
        assert_eq!(node.alpha, [3.0]);
        assert_eq!(expr.eval(&[5.0], &[]), 2.0 * (5.0 + 1.0) + 5.0);
    }

    #[test]
    fn what_is_read_twice_or_rounded_stays() {
        assert_eq!(maps(&fuse_maps(&chain(Format::F32, true))).len(), 2);
        assert_eq!(maps(&fuse_maps(&chain(Format::E4M3, false))).len(), 2);
        assert_eq!(maps(&fuse_maps(&chain(Format::F16, false))).len(), 2);
    }

    #[test]
    fn a_fusion_that_keeps_more_memory_alive_is_left() {
        let mut module = Module::new();
        let mut graph = Graph::new();
        let mut read = |graph: &mut Graph, name: &str| {
            let slot = module.slot(name, SlotKind::Input, [64], DType::F32, Role::Data).unwrap();
            let slot = module.read(graph, slot);
            // A temporary, which could go once it is read.
            graph.op(Op::Softmax { mult: 1.0 }, &[slot]).one().unwrap()
        };
        let (x, y) = (read(&mut graph, "x"), read(&mut graph, "y"));
        let sum = graph.map(&[x, y], |x| x[0].clone() + x[1].clone()).unwrap().one().unwrap();
        let z = read(&mut graph, "z");
        let out = graph.map(&[sum, z], |x| x[0].clone() * x[1].clone()).unwrap().one().unwrap();
        let slot = module.slot("out", SlotKind::Output, [64], DType::F32, Role::Data).unwrap();
        graph.write(slot, out);
        assert_eq!(maps(&fuse_maps(&graph)).len(), 2);
    }

    #[test]
    fn a_cast_and_a_reduction_take_the_expression_before_them() {
        let mut module = Module::new();
        let mut graph = Graph::new();
        let x = module.slot("x", SlotKind::Input, [4, 8], DType::F32, Role::Data).unwrap();
        let x = module.read(&mut graph, x);
        let square = graph.map(&[x], |x| x[0].square()).unwrap().one().unwrap();
        let to = DType::Float(Format::E5M2);
        let narrow = graph.op(Op::Cast { to }, &[square]).one().unwrap();
        let half = graph.map(&[x], |x| x[0].clone() * 0.5).unwrap().one().unwrap();
        let sum = graph
            .op(
                Op::Reduce {
                    kind: crate::ReduceKind::Sum,
                    expr: Expr::identity(),
                    shape: [4, 8].into(),
                    axes: vec![1],
                    keep_dims: false,
                },
                &[half],
            )
            .one()
            .unwrap();
        for (name, value) in [("narrow", narrow), ("sum", sum)] {
            let Value { shape, dtype, .. } = graph.value(value).clone();
            let slot = module.slot(name, SlotKind::Output, shape, dtype, Role::Data).unwrap();
            graph.write(slot, value);
        }
        let graph = fuse_maps(&graph);
        let names: Vec<&str> = graph.nodes().iter().map(|node| node.op.name()).collect();
        assert_eq!(names, ["Slot", "Map", "Reduce"]);
        let narrow = graph.value(graph.nodes()[1].outputs[0]);
        assert_eq!(narrow.dtype, to);
    }
}
