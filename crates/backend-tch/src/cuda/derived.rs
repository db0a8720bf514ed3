//! Rounded copies of state, kept from step to step.
//!
//! A training step rounds every weight into the format of its products, row-major and transposed.
//! Those copies change only when the weight does, so they are state as well: slots of the engine's
//! own, made in the pass that updates the weight. Where the host writes a weight, its copies are
//! refreshed before they are next read.

use onesigma_format::Conversion;
use onesigma_graph::DType;
use onesigma_graph::expr::Expr;

use super::ir::{Entry, Home, Node, Operand, TensorId};
use super::source::group::{Access, Compute, Rounded};

/// A copy of a state slot.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Derived {
    /// The slot that it is made of.
    pub source: usize,
    pub numel: usize,
    pub dtype: DType,
    how: Conversion,
    /// Transposed, as a matrix of rows and columns.
    turned: Option<(usize, usize)>,
}

impl Derived {
    pub(crate) fn bytes(&self) -> usize {
        self.numel * self.dtype.bytes()
    }
}

/// The cast of a state slot that a node is, if it is one.
fn cast_of_slot(entry: &Entry, node: &Node) -> Option<(Derived, TensorId)> {
    let Node::Element { compute: Compute::Expr(expr), operands, result, out, .. } = node else {
        return None;
    };
    let [Operand { tensor, access: Access::Full, .. }] = operands[..] else { return None };
    let Home::Slot(source) = entry.tensors[tensor].home else { return None };
    let plain = *expr == Expr::identity() && result.alpha == 1.0 && !result.draws();
    let own = entry.tensors[*out].home == Home::Temporary;
    let (numel, dtype, how) = (entry.tensors[*out].numel, result.dtype, result.how);
    (plain && own).then_some((Derived { source, numel, dtype, how, turned: None }, *out))
}

fn writes(entry: &Entry, slot: usize) -> Option<TensorId> {
    entry.writes.iter().find(|(to, _)| *to == slot).map(|(_, tensor)| *tensor)
}

/// Makes the casts of state that entries both read and write slots, numbered from `first`; gives
/// them, and for each source an entry that refreshes its copies.
pub(crate) fn derive(entries: &mut [Entry], first: usize) -> (Vec<Derived>, Vec<(usize, Entry)>) {
    let mut copies: Vec<Derived> = Vec::new();
    let mut note = |copy: Derived| {
        if !copies.contains(&copy) {
            copies.push(copy);
        }
    };
    let updated = |entries: &[Entry], source: usize| {
        entries.iter().any(|entry| {
            let casts =
                |node: &Node| cast_of_slot(entry, node).is_some_and(|c| c.0.source == source);
            writes(entry, source).is_some() && entry.nodes.iter().any(casts)
        })
    };
    for entry in entries.iter() {
        for node in &entry.nodes {
            let Some((copy, out)) = cast_of_slot(entry, node) else { continue };
            if !updated(entries, copy.source) {
                continue;
            }
            note(copy);
            for other in &entry.nodes {
                if let Node::Transpose { from, rows, columns, .. } = *other
                    && from == out
                {
                    note(Derived { turned: Some((rows, columns)), ..copy });
                }
            }
        }
    }
    for entry in entries.iter_mut() {
        read_copies(entry, &copies, first);
        let sources: Vec<usize> = entry.writes.iter().map(|&(slot, _)| slot).collect();
        for source in sources {
            if let Some(tensor) = writes(entry, source) {
                make_copies(entry, &copies, first, source, tensor);
            }
        }
    }
    let mut sources: Vec<usize> = copies.iter().map(|copy| copy.source).collect();
    sources.dedup();
    sources.sort_unstable();
    sources.dedup();
    let refreshing = sources
        .into_iter()
        .filter_map(|source| {
            let numel = copies.iter().find(|copy| copy.source == source)?.numel;
            let mut entry = Entry::default();
            let dtype = entries
                .iter()
                .flat_map(|entry| &entry.tensors)
                .find_map(|tensor| (tensor.home == Home::Slot(source)).then_some(tensor.dtype))?;
            let tensor = entry.tensor(numel, dtype, Home::Slot(source));
            make_copies(&mut entry, &copies, first, source, tensor);
            Some((source, entry))
        })
        .collect();
    (copies, refreshing)
}

/// Replaces the casts of an entry by reads of the copies.
fn read_copies(entry: &mut Entry, copies: &[Derived], first: usize) {
    let place = |copy: &Derived| copies.iter().position(|other| other == copy);
    let mut gone = vec![false; entry.nodes.len()];
    for at in 0..entry.nodes.len() {
        let Some((copy, out)) = cast_of_slot(entry, &entry.nodes[at]) else { continue };
        let Some(slot) = place(&copy) else { continue };
        for other in 0..entry.nodes.len() {
            if let Node::Transpose { from, out: turned, rows, columns } = entry.nodes[other]
                && from == out
                && let Some(slot) = place(&Derived { turned: Some((rows, columns)), ..copy })
            {
                entry.tensors[turned].home = Home::Slot(first + slot);
                gone[other] = true;
            }
        }
        entry.tensors[out].home = Home::Slot(first + slot);
        gone[at] = true;
    }
    let mut keep = gone.iter().map(|gone| !gone);
    entry.nodes.retain(|_| keep.next().unwrap_or(true));
    let mut keep = gone.iter().map(|gone| !gone);
    entry.names.retain(|_| keep.next().unwrap_or(true));
}

/// Appends the copies of a new content of `source`.
fn make_copies(
    entry: &mut Entry,
    copies: &[Derived],
    first: usize,
    source: usize,
    tensor: TensorId,
) {
    let own: Vec<(usize, Derived)> =
        copies.iter().copied().enumerate().filter(|(_, copy)| copy.source == source).collect();
    for &(slot, copy) in own.iter().filter(|(_, copy)| copy.turned.is_none()) {
        let Derived { numel, dtype, how, .. } = copy;
        let out = entry.tensor(numel, dtype, Home::Temporary);
        let operands = vec![Operand { tensor, access: Access::Full, exact: true }];
        let compute = Compute::Expr(Expr::identity());
        let result = Rounded { alpha: 1.0, dtype, how, stream: 0 };
        entry.nodes.push(Node::Element { compute, operands, dims: vec![numel], result, out });
        entry.names.push("copy of a weight".to_owned());
        entry.writes.push((first + slot, out));
        for &(slot, turned) in &own {
            let Some((rows, columns)) = turned.turned else { continue };
            if turned == (Derived { turned: turned.turned, ..copy }) {
                let to = entry.tensor(numel, dtype, Home::Temporary);
                entry.nodes.push(Node::Transpose { from: out, out: to, rows, columns });
                entry.names.push("copy of a weight".to_owned());
                entry.writes.push((first + slot, to));
            }
        }
    }
}
