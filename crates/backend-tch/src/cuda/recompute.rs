//! Computes tensors again in the backward pass instead of keeping them from the forward pass.
//!
//! Where memory is short, tensors that live across the fullest moment of an entry are given up,
//! cheapest first: what makes them runs once more, right before its first late reader, from
//! operands that are there anyway (or are made again as well). The bits are the same.

use std::collections::HashMap;

use super::assemble::Instruction;
use super::ir::{Entry, Home, Node, TensorId};
use super::lower::is_fp8;
use super::plan::lifetimes;
use super::source::rows::RowKind;

/// How many nodes are made again for one tensor at most.
const MOST_NODES: usize = 6;
/// Rates that decide which tensor is cheapest, of the GPUs of 2024: bytes and operations a second.
const BYTES_PER_SECOND: f64 = 2e12;
const FP8_PER_SECOND: f64 = 1.2e15;
const WIDE_PER_SECOND: f64 = 6e14;

/// How a tensor is made again.
struct Again {
    tensor: TensorId,
    /// First late reader, before which it is made.
    reader: usize,
    /// The nodes that run again, in order.
    nodes: Vec<usize>,
    /// Earlier repetitions that are used: the tensor, and what it was repeated as.
    known: Vec<(TensorId, TensorId)>,
    /// Bytes that are free at the fullest moment afterwards.
    gain: usize,
    seconds: f64,
}

/// Gives up tensors until `excess` bytes are free at the fullest moment of `instructions`, which
/// were made of `entry` and, with work spaces, of `assembled`; gives their number, 0 if none can be
/// given up.
pub(crate) fn recompute(
    entry: &mut Entry,
    assembled: &Entry,
    instructions: &[Instruction],
    excess: usize,
) -> usize {
    let Some(mut moment) = fullest(assembled, instructions) else { return 0 };
    moment.live.retain(|&tensor| tensor < entry.tensors.len());
    // Work spaces are made by no node.
    let made = instructions[..=moment.at].iter().rev().find_map(|instruction| {
        let made = instruction.makes.first()?;
        entry.nodes.iter().position(|node| node.makes().contains(made))
    });
    let Some(turn) = made else { return 0 };
    let mut work = Work { turn, repeated: HashMap::new() };
    let (mut freed, mut count) = (0, 0);
    let mut candidates = moment.live;
    while freed < excess {
        let found: Vec<Again> =
            candidates.iter().filter_map(|&tensor| work.again(entry, tensor)).collect();
        let price = |again: &Again| again.seconds / again.gain as f64;
        let best = found.into_iter().min_by(|a, b| price(a).total_cmp(&price(b)));
        let Some(best) = best else { break };
        candidates.retain(|&tensor| tensor != best.tensor);
        freed += best.gain;
        count += 1;
        work.apply(entry, &best);
    }
    count
}

/// The instruction at which most bytes are live, and the tensors that live across it.
struct Moment {
    at: usize,
    live: Vec<TensorId>,
}

fn fullest(entry: &Entry, instructions: &[Instruction]) -> Option<Moment> {
    let lives = lifetimes(entry, instructions);
    let mut change = vec![0_isize; instructions.len() + 1];
    for (tensor, life) in lives.iter().enumerate() {
        let Some((first, last)) = *life else { continue };
        if !matches!(entry.tensors[tensor].home, Home::Slot(_)) {
            let bytes = entry.tensors[tensor].bytes() as isize;
            change[first] += bytes;
            change[last + 1] -= bytes;
        }
    }
    let mut sum = 0;
    let sums = change.iter().map(|change| {
        sum += change;
        sum
    });
    let at = sums.enumerate().max_by_key(|&(at, bytes)| (bytes, std::cmp::Reverse(at)))?.0;
    let across = |&tensor: &TensorId| {
        entry.tensors[tensor].home == Home::Temporary
            && lives[tensor].is_some_and(|(first, last)| first < at && last > at)
    };
    Some(Moment { at, live: (0..lives.len()).filter(across).collect() })
}

struct Work {
    /// The node of the fullest moment; later ones are late. Nodes are only added behind it.
    turn: usize,
    /// What was made again already.
    repeated: HashMap<TensorId, TensorId>,
}

/// Seconds that a node takes, roughly; `None` if it must not run twice.
fn seconds(entry: &Entry, node: &Node) -> Option<f64> {
    let bytes = |tensors: Vec<TensorId>| -> f64 {
        tensors.iter().map(|&tensor| entry.tensors[tensor].bytes() as f64).sum()
    };
    let moved = (bytes(node.reads()) + bytes(node.makes())) / BYTES_PER_SECOND;
    match node {
        Node::Element { .. } | Node::Transpose { .. } => Some(moved),
        Node::Row { kind: RowKind::Softmax { .. } | RowKind::Norm { .. }, statistics, .. } => {
            statistics.is_empty().then_some(moved)
        }
        Node::MatMul { product, tensor_cores: true, .. } => {
            let rate = if is_fp8(product) { FP8_PER_SECOND } else { WIDE_PER_SECOND };
            let work = [product.m, product.n, product.k, product.batch];
            Some(moved + 2.0 * work.iter().map(|&extent| extent as f64).product::<f64>() / rate)
        }
        _ => None,
    }
}

impl Work {
    /// How `tensor` is made again, if that frees memory.
    fn again(&self, entry: &Entry, tensor: TensorId) -> Option<Again> {
        let readers = entry.nodes.iter().enumerate().skip(self.turn + 1);
        let reader = readers.into_iter().find(|(_, node)| node.reads().contains(&tensor))?.0;
        if entry.writes.iter().any(|&(_, written)| written == tensor) {
            return None;
        }
        let (nodes, known) = (Vec::new(), Vec::new());
        let gain = entry.tensors[tensor].bytes();
        let mut again = Again { tensor, reader, nodes, known, gain, seconds: 0.0 };
        self.collect(entry, tensor, &mut again)?;
        (again.gain > 0).then_some(again)
    }

    /// Adds what makes `tensor` to `again`, after what makes its operands.
    fn collect(&self, entry: &Entry, tensor: TensorId, again: &mut Again) -> Option<()> {
        let maker = entry.nodes[..=self.turn].iter().position(|n| n.makes().contains(&tensor))?;
        if again.nodes.contains(&maker) {
            return Some(());
        }
        let node = &entry.nodes[maker];
        let cost = seconds(entry, node)?;
        for operand in node.reads() {
            if again.known.iter().any(|&(from, _)| from == operand) {
                continue;
            }
            let is_there = matches!(entry.tensors[operand].home, Home::Slot(_))
                || entry.nodes[again.reader..].iter().any(|node| node.reads().contains(&operand));
            if is_there {
                continue;
            }
            let repeated = self.repeated.get(&operand).copied().filter(|copy| {
                entry.nodes[..again.reader].iter().any(|node| node.makes().contains(copy))
            });
            if let Some(copy) = repeated {
                again.known.push((operand, copy));
                continue;
            }
            let (nodes, gain, seconds) = (again.nodes.len(), again.gain, again.seconds);
            if self.collect(entry, operand, again).is_none() {
                // It has to be kept for this.
                again.nodes.truncate(nodes);
                again.seconds = seconds;
                again.gain = gain.checked_sub(entry.tensors[operand].bytes())?;
            }
        }
        again.nodes.push(maker);
        again.seconds += cost;
        (again.nodes.len() <= MOST_NODES).then_some(())
    }

    fn apply(&mut self, entry: &mut Entry, again: &Again) {
        let mut renamed: HashMap<TensorId, TensorId> = again.known.iter().copied().collect();
        for (n, &maker) in again.nodes.iter().enumerate() {
            let mut node = entry.nodes[maker].clone();
            for tensor in node.makes() {
                let (numel, dtype) = (entry.tensors[tensor].numel, entry.tensors[tensor].dtype);
                let copy = entry.tensor(numel, dtype, Home::Temporary);
                renamed.insert(tensor, copy);
                self.repeated.insert(tensor, copy);
            }
            let new = |tensor: TensorId| renamed.get(&tensor).copied().unwrap_or(tensor);
            node.rename(&new, &new);
            let name = format!("{} again", entry.names[maker]);
            entry.nodes.insert(again.reader + n, node);
            entry.names.insert(again.reader + n, name);
        }
        let Some(&copy) = renamed.get(&again.tensor) else { return };
        let new = |tensor: TensorId| if tensor == again.tensor { copy } else { tensor };
        for node in &mut entry.nodes[again.reader + again.nodes.len()..] {
            node.rename(&new, &|tensor| tensor);
        }
    }
}
