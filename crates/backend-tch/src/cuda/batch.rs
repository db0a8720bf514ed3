//! Products of one shape that share an operand, or whose results are read together, as one call
//! over a batch: queries, keys and values, forward and backward, and gated activations. One large
//! call fills the GPU better than three small ones.
//!
//! cuBLASLt wants the items of a batch at equal distances. Slots are where they are: what does not
//! lie so stays apart. Temporary tensors are asked to lie [in rows](Entry::rows).

use super::assemble::{Instruction, Work};
use super::ir::{Entry, Home, TensorId};
use super::plan::aligned;
use super::source::matmul::{Epilogue, Product};

/// Instructions from the first product of a batch to the last, at most.
const NEAR: usize = 24;

/// What the products of a batch have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Common {
    Left,
    Right,
    /// One instruction reads all results.
    Reader,
}

/// Left and right operand and result of a product.
type Tensors = [TensorId; 3];

/// Makes batches; `offsets` are the places of the slots.
pub(crate) fn batch(entry: &mut Entry, instructions: &mut Vec<Instruction>, offsets: &[usize]) {
    let mut at = 0;
    while at < instructions.len() {
        let ways = [Common::Left, Common::Right, Common::Reader];
        let found = ways.into_iter().find_map(|common| {
            let members = alike(instructions, at, common);
            let merged = merged(entry, instructions, offsets, &members)?;
            Some((members, merged))
        });
        let Some((members, merged)) = found else {
            at += 1;
            continue;
        };
        // The batch runs where the last of its products ran, and another instruction is at `at`.
        if let Some((&last, others)) = members.split_last() {
            instructions[last] = merged;
            for &member in others.iter().rev() {
                instructions.remove(member);
            }
        }
    }
}

/// A product that can be part of a batch. The stream of random numbers is not used.
fn single(instruction: &Instruction) -> Option<(Product, Tensors)> {
    let Work::Product { mut product, left, right, out, .. } = instruction.work else { return None };
    product.result.stream = 0;
    let plain = product.batch == 1 && product.epilogue == Epilogue::None && left != right;
    plain.then_some((product, [left, right, out]))
}

/// The instructions that read a tensor.
fn readers(instructions: &[Instruction], tensor: TensorId) -> Vec<usize> {
    let reads = |(at, one): (usize, &Instruction)| one.reads.contains(&tensor).then_some(at);
    instructions.iter().enumerate().filter_map(reads).collect()
}

/// The products that can run with the one at `first`, as late as the last of them.
fn alike(instructions: &[Instruction], first: usize, common: Common) -> Vec<usize> {
    let Some((product, tensors)) = single(&instructions[first]) else { return Vec::new() };
    let own_readers = readers(instructions, tensors[2]);
    if common == Common::Reader && own_readers.len() != 1 {
        return Vec::new();
    }
    let mut members = vec![first];
    let mut outs = vec![tensors[2]];
    let end = instructions.len().min(first + NEAR);
    for (at, instruction) in instructions.iter().enumerate().take(end).skip(first + 1) {
        if instruction.reads.iter().any(|read| outs.contains(read)) {
            break;
        }
        let Some((other, [left, right, out])) = single(instruction) else { continue };
        let fits = match common {
            Common::Left => left == tensors[0],
            Common::Right => right == tensors[1],
            Common::Reader => readers(instructions, out) == own_readers,
        };
        if other == product && fits {
            members.push(at);
            outs.push(out);
        }
    }
    members
}

/// The batch, if its tensors lie at equal distances or can be asked to.
fn merged(
    entry: &mut Entry,
    instructions: &[Instruction],
    offsets: &[usize],
    members: &[usize],
) -> Option<Instruction> {
    if members.len() < 2 {
        return None;
    }
    let mut parts: Vec<(Product, Tensors)> =
        members.iter().filter_map(|&member| single(&instructions[member])).collect();
    let slot = |tensor: TensorId| match entry.tensors[tensor].home {
        Home::Slot(slot) => offsets.get(slot).copied(),
        _ => None,
    };
    // As they lie: slots by their places, temporary tensors as an earlier batch wants them.
    let lies = |tensor: TensorId| {
        let in_row = |row: &Vec<TensorId>| row.iter().position(|&other| other == tensor);
        slot(tensor).or_else(|| entry.rows.iter().find_map(in_row))
    };
    parts.sort_by_key(|(_, tensors)| (lies(tensors[1]), lies(tensors[0])));
    let of = |which: usize| -> Vec<TensorId> { parts.iter().map(|(_, t)| t[which]).collect() };
    let (lefts, rights, outs) = (of(0), of(1), of(2));
    let mut rows = entry.rows.clone();
    let steps = [
        step(entry, offsets, &lefts, &mut rows)?,
        step(entry, offsets, &rights, &mut rows)?,
        step(entry, offsets, &outs, &mut rows)?,
    ];
    entry.rows = rows;
    let (mut product, [left, right, out]) = parts[0];
    (product.batch, product.right_batched, product.steps) = (parts.len(), true, Some(steps));
    let mut reads: Vec<TensorId> = lefts.into_iter().chain(rights).collect();
    reads.sort_unstable();
    reads.dedup();
    let names = |at: usize| instructions[members[at]].label.as_str();
    let label = format!("{} .. {} (batch)", names(0), names(members.len() - 1));
    let work = Work::Product { product, left, right, out, more: None };
    Some(Instruction { work, reads, makes: outs, in_place: Vec::new(), label })
}

/// Elements from one tensor to the next; what has to lie in a row for it is added to `rows`.
fn step(
    entry: &Entry,
    offsets: &[usize],
    tensors: &[TensorId],
    rows: &mut Vec<Vec<TensorId>>,
) -> Option<usize> {
    if tensors.iter().all(|&tensor| tensor == tensors[0]) {
        return Some(0);
    }
    let repeated = |(at, tensor): (usize, &TensorId)| tensors[..at].contains(tensor);
    if tensors.iter().enumerate().any(repeated) {
        return None;
    }
    let size = entry.tensors[tensors[0]].dtype.bytes();
    if tensors.iter().all(|&tensor| entry.tensors[tensor].home == Home::Temporary) {
        let written = |tensor: &TensorId| entry.writes.iter().any(|(_, one)| one == tensor);
        let in_row = |tensor: &TensorId| rows.iter().any(|row| row.contains(tensor));
        if tensors.iter().any(written) {
            return None;
        }
        if !rows.iter().any(|row| row == tensors) {
            if tensors.iter().any(in_row) {
                return None;
            }
            rows.push(tensors.to_vec());
        }
        return Some(aligned(entry.tensors[tensors[0]].bytes()) / size);
    }
    let places: Option<Vec<usize>> = tensors
        .iter()
        .map(|&tensor| match entry.tensors[tensor].home {
            Home::Slot(slot) => offsets.get(slot).copied(),
            _ => None,
        })
        .collect();
    let places = places?;
    let distance = places[1].checked_sub(places[0]).filter(|&distance| distance > 0)?;
    let equal = places.windows(2).all(|pair| pair[0] + distance == pair[1]);
    equal.then_some(distance / size)
}
