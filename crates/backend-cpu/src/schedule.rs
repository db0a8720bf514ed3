//! Which instructions run together, block of rows by block of rows.
//!
//! Instructions that treat the rows of a tensor one by one (maps, casts, norms and their gradients,
//! softmax, lookups) run as parts of one pass: a block of rows goes through all of them while it is
//! in a cache, and one wait for the other threads ends the pass instead of one for each. If a
//! matrix product comes first, its tasks do it with the rows that they have just stored: bias,
//! activation, residual, norm and cast are the product's epilogue. Every part still rounds its
//! results into its tensors, so no bit depends on this.

use std::ops::Range;

use onesigma_graph::Place;

use crate::instruction::{Instruction, Kind, Operand, Target};
use crate::parallel::rows_per_task;

/// How far an instruction may move forward, in instructions that stay behind it.
const WINDOW: usize = 32;

/// A piece of an entry's work, naming instructions by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// One instruction by itself.
    One(usize),
    /// Several, row by row.
    Rows(Pass),
}

impl Work {
    pub(crate) fn pass(&self) -> Option<&Pass> {
        match self {
            Self::One(_) => None,
            Self::Rows(pass) => Some(pass),
        }
    }
}

/// Instructions that go through the rows together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    /// The product whose tasks begin the pass.
    pub(crate) product: Option<usize>,
    /// What is done with each block of rows, in order.
    pub(crate) parts: Vec<usize>,
    /// Rows of all tensors that are taken by rows.
    pub(crate) rows: usize,
    /// Rows of a block if there is no product.
    pub(crate) block: usize,
}

/// What an instruction touches of one tensor.
#[derive(Clone, Copy)]
struct Access {
    place: Place,
    /// Row `r` of the pass touches this tensor's part `r` of as many equal parts alone.
    by_rows: bool,
}

#[derive(Clone, Default)]
struct Accesses {
    reads: Vec<Access>,
    writes: Vec<Access>,
}

impl Accesses {
    /// Everything, as a whole.
    fn whole(instruction: &Instruction) -> Self {
        let access = |place| Access { place, by_rows: false };
        Self {
            reads: instruction.inputs.iter().map(|input| access(input.place)).collect(),
            writes: instruction.outputs.iter().map(|output| access(output.place)).collect(),
        }
    }

    /// Whether `later`, which follows in the same pass, could see or spoil what it should not: a
    /// tensor that one of them writes must be taken by rows by both.
    fn conflict_within_pass(&self, later: &Self) -> bool {
        let clash = |a: &Access, b: &Access| {
            a.place.overlaps(b.place) && !(a.by_rows && b.by_rows && a.place == b.place)
        };
        any_pair(&self.writes, &later.reads, clash)
            || any_pair(&self.writes, &later.writes, clash)
            || any_pair(&self.reads, &later.writes, clash)
    }

    /// Whether the order of the two matters.
    fn conflict(&self, other: &Self) -> bool {
        let clash = |a: &Access, b: &Access| a.place.overlaps(b.place);
        any_pair(&self.writes, &other.reads, clash)
            || any_pair(&self.writes, &other.writes, clash)
            || any_pair(&self.reads, &other.writes, clash)
    }

    /// Whether they read or write a common tensor.
    fn share(&self, other: &Self) -> bool {
        let same = |a: &Access, b: &Access| a.place == b.place;
        any_pair(&self.writes, &other.reads, same) || any_pair(&self.reads, &other.reads, same)
    }
}

fn any_pair(a: &[Access], b: &[Access], test: impl Fn(&Access, &Access) -> bool) -> bool {
    a.iter().any(|a| b.iter().any(|b| test(a, b)))
}

/// Puts the instructions of an entry into passes.
pub(crate) fn schedule(instructions: &[Instruction]) -> Vec<Work> {
    let mut taken = vec![false; instructions.len()];
    let mut work = Vec::new();
    for first in 0..instructions.len() {
        if taken[first] {
            continue;
        }
        let head = &instructions[first];
        let product = matches!(head.kind, Kind::Gemm { .. });
        let begin = match &head.kind {
            Kind::Gemm { shape, batch, .. } => {
                let mut accesses = Accesses::whole(head);
                accesses.writes.iter_mut().for_each(|access| access.by_rows = true);
                Some((shape.m * batch.len(), accesses))
            }
            _ => by_rows(head, head.rows).map(|accesses| (head.rows, accesses)),
        };
        // A product without columns has rows of nothing, as many as a file likes to say.
        let real = head.outputs.iter().all(|output| output.place.bytes > 0);
        let Some((rows, accesses)) = begin.filter(|(rows, _)| *rows > 1 && real) else {
            work.push(Work::One(first));
            continue;
        };
        let mut pass = vec![accesses];
        let mut parts = Vec::from_iter((!product).then_some(first));
        let mut behind: Vec<Accesses> = Vec::new();
        for next in first + 1..instructions.len() {
            if taken[next] {
                continue;
            }
            let instruction = &instructions[next];
            let accesses = by_rows(instruction, rows).filter(|accesses| {
                pass.iter().any(|before| before.share(accesses))
                    && !pass.iter().any(|before| before.conflict_within_pass(accesses))
                    && !behind.iter().any(|before| before.conflict(accesses))
            });
            if let Some(accesses) = accesses {
                taken[next] = true;
                parts.push(next);
                pass.push(accesses);
            } else {
                behind.push(Accesses::whole(instruction));
                if behind.len() > WINDOW {
                    break;
                }
            }
        }
        if pass.len() == 1 {
            work.push(Work::One(first));
            continue;
        }
        let widest = parts.iter().map(|&part| widest_row(&instructions[part], rows)).max();
        let block = rows_per_task(widest.unwrap_or(1));
        work.push(Work::Rows(Pass { product: product.then_some(first), parts, rows, block }));
    }
    work
}

/// Most elements that a row of the instruction's results has.
fn widest_row(instruction: &Instruction, rows: usize) -> usize {
    let elements = |target: &Target| target.place.bytes / target.dtype.bytes().max(1);
    instruction.outputs.iter().map(elements).max().unwrap_or(1) / rows
}

/// The part of a tensor that belongs to some of `total` rows.
pub(crate) fn part(place: Place, rows: &Range<usize>, total: usize) -> Place {
    let row = place.bytes / total;
    Place { offset: place.offset + rows.start * row, bytes: rows.len() * row }
}

/// What an instruction touches if it can be done by `rows`: each result row depends on the same
/// row of some operands and on others as wholes.
fn by_rows(instruction: &Instruction, rows: usize) -> Option<Accesses> {
    let Instruction { kind, inputs, outputs, .. } = instruction;
    let whole = |elements: usize, width: usize| {
        elements.is_multiple_of(width.checked_mul(rows)?).then_some(elements)
    };
    // Which operands are taken by rows, and how many elements the result has.
    let (operands, elements): (Vec<bool>, usize) = match kind {
        Kind::Map { space, in_place, .. } => {
            let row = space.len().checked_div(rows)?;
            let coordinates = space.operands.get(inputs.len()..)?;
            if !coordinates.iter().all(crate::expression::Access::is_uniform) {
                return None;
            }
            let operands: Vec<bool> = space.operands[..inputs.len()]
                .iter()
                .map(crate::expression::Access::is_contiguous)
                .collect();
            let fits = space.operands[..inputs.len()]
                .iter()
                .all(|access| access.is_contiguous() || access.repeats(&space.dims, row));
            let replaced =
                in_place.iter().zip(&operands).all(|(replaced, rows)| !replaced || *rows);
            if !fits || !replaced {
                return None;
            }
            (operands, space.len())
        }
        Kind::Norm(norm) if norm.width > 0 => {
            (first_of(inputs, 1), whole(elements(&inputs[0]), norm.width)?)
        }
        // With gradients of parameters there are sums over rows.
        Kind::NormGrad(norm) if norm.width > 0 && outputs.len() == 1 => {
            (first_of(inputs, 2), whole(elements(&inputs[0]), norm.width)?)
        }
        Kind::Softmax { width, .. } | Kind::SoftmaxGrad { width, .. } if *width > 0 => {
            (first_of(inputs, 2), whole(elements(&inputs[0]), *width)?)
        }
        Kind::Gather { width } if *width > 0 => {
            (vec![false, true], whole(elements(&inputs[1]) * width, *width)?)
        }
        _ => return None,
    };
    if elements == 0 || !elements.is_multiple_of(rows) {
        return None;
    }
    let whole_parts = |place: Place| place.bytes > 0 && place.bytes.is_multiple_of(rows);
    let accesses = Accesses {
        reads: inputs
            .iter()
            .zip(&operands)
            .map(|(input, &by_rows)| Access { place: input.place, by_rows })
            .collect(),
        writes: outputs.iter().map(|o| Access { place: o.place, by_rows: true }).collect(),
    };
    let mut all = accesses.reads.iter().chain(&accesses.writes);
    let fits = all.all(|access| !access.by_rows || whole_parts(access.place));
    // A result replaces the operand of the same row, or nothing that the instruction reads.
    let clean = !any_pair(&accesses.reads, &accesses.writes, |read, write| {
        read.place.overlaps(write.place) && !(read.by_rows && read.place == write.place)
    });
    (fits && clean).then_some(accesses)
}

fn elements(operand: &Operand) -> usize {
    operand.place.bytes / operand.dtype.bytes().max(1)
}

/// Whether each operand is one of the first `count`.
fn first_of(inputs: &[Operand], count: usize) -> Vec<bool> {
    (0..inputs.len()).map(|at| at < count).collect()
}

#[cfg(test)]
mod tests {
    use onesigma_format::{Conversion, Format};
    use onesigma_graph::DType;

    use super::*;
    use crate::expression::{Expression, Space};
    use crate::norm::Norm;

    const ROWS: usize = 6;
    const WIDTH: usize = 4;

    fn place(tensor: usize) -> Place {
        Place { offset: tensor * 4096, bytes: ROWS * WIDTH * 4 }
    }

    fn instruction(kind: Kind, inputs: &[Place], output: Place) -> Instruction {
        let dtype = DType::Float(Format::F32);
        let how = Conversion::SATURATE;
        Instruction {
            kind,
            inputs: inputs.iter().map(|&place| Operand { place, dtype }).collect(),
            outputs: vec![Target { place: output, dtype, how, alpha: 1.0, stream: 0 }],
            rows: ROWS,
            node: 0,
            label: String::new(),
        }
    }

    fn norm(from: usize, to: usize) -> Instruction {
        let norm = Norm { width: WIDTH, eps: 1e-5, centred: false };
        instruction(Kind::Norm(norm), &[place(from)], place(to))
    }

    /// A map of one operand with these strides over `[ROWS, WIDTH]`.
    fn map(from: Place, strides: &[usize], to: usize) -> Instruction {
        let space = Space::new(&[ROWS, WIDTH], &[strides.to_vec(), vec![WIDTH, 1]]);
        let space = Space { operands: space.operands[..1].to_vec(), ..space };
        let expression =
            Expression::new(&onesigma_graph::expr::Expr::identity(), &space.operands, 1).unwrap();
        let in_place = vec![from == place(to)];
        instruction(Kind::Map { expression, space, in_place }, &[from], place(to))
    }

    fn parts(instructions: &[Instruction]) -> Vec<Vec<usize>> {
        let names = |work: &Work| match work {
            Work::One(at) => vec![*at],
            Work::Rows(pass) => pass.product.iter().chain(&pass.parts).copied().collect(),
        };
        schedule(instructions).iter().map(names).collect()
    }

    #[test]
    fn a_chain_of_rows_is_one_pass_and_stays_in_order() {
        let chain = [norm(0, 1), norm(1, 2), map(place(2), &[WIDTH, 1], 2)];
        assert_eq!(parts(&chain), [[0, 1, 2]]);
    }

    #[test]
    fn what_reads_other_rows_waits_for_all_of_them() {
        // The transpose of what the norm wrote, and one row of it for all rows.
        for strides in [[1, ROWS], [0, 1]] {
            assert_eq!(parts(&[norm(0, 1), map(place(1), &strides, 2)]), [[0], [1]]);
        }
        // A row of something else is at hand.
        let bias = Place { bytes: WIDTH * 4, ..place(3) };
        let add = map(bias, &[0, 1], 1);
        assert_eq!(parts(&[map(bias, &[0, 1], 0), add]), [[0, 1]]);
    }

    #[test]
    fn memory_that_is_used_again_keeps_the_order() {
        // 2 replaces what 1, which is no pass with 0, still reads.
        let transpose = map(place(5), &[1, ROWS], 6);
        assert_eq!(parts(&[norm(0, 1), transpose.clone(), norm(1, 5)]), [[0], [1], [2]]);
        // Nothing in its way: it moves before the transpose.
        assert_eq!(parts(&[norm(0, 1), transpose.clone(), norm(1, 7)]), [vec![0, 2], vec![1]]);
        // It reads what the transpose writes.
        assert_eq!(parts(&[norm(0, 6), transpose, norm(6, 7)]), [[0], [1], [2]]);
        // A shorter tensor in the place of a longer one would be other bytes of the same row.
        let short = Place { bytes: ROWS * WIDTH, ..place(0) };
        let mut cast = map(place(1), &[WIDTH, 1], 2);
        cast.outputs[0].place = short;
        cast.outputs[0].dtype = DType::Float(Format::E4M3);
        assert_eq!(parts(&[norm(0, 1), cast]), [[0], [1]]);
    }
}
