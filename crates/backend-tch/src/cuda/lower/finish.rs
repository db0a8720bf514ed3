//! The end of lowering: transposed copies get their places, and what no one needs goes.

use super::Lowering;
use crate::cuda::ir::{Entry, Home, Node, Operand, TensorId};
use crate::cuda::source::group::{Access, Compute};

impl Lowering<'_> {
    /// Puts each transposed copy behind what it copies, and drops what no one needs.
    pub(super) fn finish(self) -> Entry {
        let Self { mut entry, transposed, .. } = self;
        // What stands before a node, by its index; what has no maker stands before all.
        let mut before: Vec<Vec<(Node, String)>> = vec![Vec::new(); entry.nodes.len() + 1];
        for (from, rows, columns, out) in transposed {
            let maker = entry.nodes.iter().position(|node| node.makes().contains(&from));
            let again = maker.and_then(|maker| recomputed(&entry, maker, out));
            let (at, from) = match (maker, again) {
                (Some(maker), Some(at)) => {
                    let Node::Element { compute, operands, dims, result, .. } =
                        entry.nodes[maker].clone()
                    else {
                        continue;
                    };
                    let (numel, dtype) = (entry.tensors[from].numel, entry.tensors[from].dtype);
                    let copy = entry.tensor(numel, dtype, Home::Temporary);
                    let node = Node::Element { compute, operands, dims, result, out: copy };
                    before[at].push((node, entry.names[maker].clone()));
                    (at, copy)
                }
                (Some(maker), None) => (maker + 1, from),
                (None, _) => (0, from),
            };
            let name = maker.map_or_else(String::new, |maker| entry.names[maker].clone());
            before[at].push((Node::Transpose { from, out, rows, columns }, name));
        }
        let Entry { tensors, nodes, names, writes, rows } = entry;
        let mut result = Entry { tensors, writes, rows, ..Entry::default() };
        let mut all: Vec<(Node, String)> = Vec::new();
        for (at, own) in nodes.into_iter().zip(names).enumerate() {
            all.append(&mut before[at]);
            all.push(own);
        }
        all.extend(before.into_iter().flatten());
        let mut needed = vec![false; result.tensors.len()];
        for &(_, tensor) in &result.writes {
            needed[tensor] = true;
        }
        let mut kept = Vec::new();
        for (node, name) in all.into_iter().rev() {
            if node.makes().iter().any(|&tensor| needed[tensor]) {
                node.reads().iter().for_each(|&tensor| needed[tensor] = true);
                kept.push((node, name));
            }
        }
        (result.nodes, result.names) = kept.into_iter().rev().unzip();
        result
    }
}

/// Where a tensor of node `maker`, of which only the transposed copy `copy` is needed late, is
/// better computed again than kept: before a later element-wise node that reads an operand of the
/// maker anyway (the gradient of an activation, say), if that comes before the copy is used.
fn recomputed(entry: &Entry, maker: usize, copy: TensorId) -> Option<usize> {
    let Node::Element { compute: Compute::Expr(_), operands, result, .. } = &entry.nodes[maker]
    else {
        return None;
    };
    let full = |operand: &Operand| operand.access == Access::Full;
    if result.draws() || !operands.iter().all(full) {
        return None;
    }
    let used = entry.nodes.iter().position(|node| node.reads().contains(&copy))?;
    (maker + 1..used).rev().find(|&at| {
        let Node::Element { operands: others, .. } = &entry.nodes[at] else { return false };
        others.iter().any(|other| {
            full(other) && operands.iter().any(|operand| operand.tensor == other.tensor)
        })
    })
}
