//! Runs one instruction on the arena.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use onesigma_backend::noise;
use onesigma_graph::{DType, Place};

use crate::adamw::AdamWStep;
use crate::arena::Memory;
use crate::attention::AttentionGradients;
use crate::expression::Source;
use crate::gemm::{After, Matrix, gemm_then};
use crate::instruction::{Instruction, Kind, Operand, Target};
use crate::movement::{Layout, copy_strided};
use crate::norm::NormGradients;
use crate::parallel::for_each_task;
use crate::random::random;
use crate::rows::{gather, scatter_add};
use crate::schedule::{Pass, part};
use crate::softmax::{Classification, softmax, softmax_gradient};
use crate::{Error, Input, Output, map};

/// What random numbers depend on in one step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepKey {
    pub(crate) seed: [u32; 2],
    pub(crate) step: u32,
}

/// Operands that a map takes without an allocation.
const FEW: usize = 24;

struct Run<'a> {
    instruction: &'a Instruction,
    memory: Memory,
    key: StepKey,
    /// The rows that are done, and how many there are, if not all at once.
    rows: Option<(Range<usize>, usize)>,
}

/// Runs an instruction.
///
/// # Safety
/// The arena lives and no one else touches it; results overlap no operand, except operands of a
/// map or an AdamW with the same place (a validated program).
pub(crate) unsafe fn execute(
    instruction: &Instruction,
    memory: Memory,
    key: StepKey,
) -> Result<(), Error> {
    let run = Run { instruction, memory, key, rows: None };
    // SAFETY: as this function.
    unsafe { run.dispatch(None) }
}

/// Runs the instructions of a pass; an error comes with the index of its instruction.
///
/// # Safety
/// As [`execute`], and the pass is one of [`schedule`](crate::schedule::schedule).
pub(crate) unsafe fn execute_pass(
    pass: &Pass,
    instructions: &[Instruction],
    memory: Memory,
    key: StepKey,
) -> Result<(), (usize, Error)> {
    let failed = Mutex::new(None);
    let block = |rows: Range<usize>| {
        for &part in &pass.parts {
            let instruction = &instructions[part];
            let run = Run { instruction, memory, key, rows: Some((rows.clone(), pass.rows)) };
            // SAFETY: blocks of rows are disjoint, and within one the parts run in order; what a
            // part touches beyond its rows no part of the pass writes.
            if let Err(error) = unsafe { run.dispatch(None) } {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert((part, error));
                return;
            }
        }
    };
    if let Some(product) = pass.product {
        let run = Run { instruction: &instructions[product], memory, key, rows: None };
        // SAFETY: as this function; rows of the product are read only after they are stored.
        unsafe { run.dispatch(Some(&block)) }.map_err(|error| (product, error))?;
    } else {
        let rows = |i: usize| i * pass.block..pass.rows.min((i + 1) * pass.block);
        for_each_task(pass.rows.div_ceil(pass.block), |i| block(rows(i)));
    }
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), Err)
}

impl<'a> Run<'a> {
    fn operand(&self, at: usize) -> Operand {
        self.instruction.inputs[at]
    }

    /// The place of a tensor that is taken by rows.
    fn rows_of(&self, place: Place) -> Place {
        self.rows.as_ref().map_or(place, |(rows, total)| part(place, rows, *total))
    }

    /// [`Run::input`], of the rows that are done.
    ///
    /// # Safety
    /// As [`execute`].
    unsafe fn input_rows(&self, at: usize) -> Input<'a> {
        let operand = self.operand(at);
        // SAFETY: as this function.
        Input::new(unsafe { self.memory.read(self.rows_of(operand.place)) }, operand.format())
    }

    /// # Safety
    /// As [`execute`].
    unsafe fn bytes(&self, at: usize) -> &'a [u8] {
        // SAFETY: operands are not written while the instruction runs.
        unsafe { self.memory.read(self.operand(at).place) }
    }

    /// # Safety
    /// As [`execute`].
    unsafe fn input(&self, at: usize) -> Input<'a> {
        // SAFETY: as this function.
        Input::new(unsafe { self.bytes(at) }, self.operand(at).format())
    }

    /// A result, of the rows that are done.
    ///
    /// # Safety
    /// As [`execute`]; once for each result.
    unsafe fn output(&self, at: usize) -> Output<'a> {
        let target: &Target = &self.instruction.outputs[at];
        let place = self.rows_of(target.place);
        let mut noise = noise(self.key.seed, self.key.step, target.stream);
        noise.offset += ((place.offset - target.place.offset) / target.dtype.bytes()) as u64;
        Output {
            // SAFETY: results overlap nothing that is in use.
            bytes: unsafe { self.memory.write(place) },
            format: target.format(),
            how: target.how,
            noise,
        }
    }

    fn alpha(&self, at: usize) -> f32 {
        self.instruction.outputs[at].alpha
    }

    /// A scalar operand.
    ///
    /// # Safety
    /// As [`execute`].
    unsafe fn scalar(&self, at: usize) -> f32 {
        let mut value = [0.0];
        // SAFETY: as this function.
        unsafe { self.input(at) }.decode(0, &mut value);
        value[0]
    }

    /// Where an operand of a map or reduction comes from.
    ///
    /// # Safety
    /// As [`execute`].
    unsafe fn source(&self, at: usize, by_rows: bool) -> Source<'a> {
        let Some(operand) = self.instruction.inputs.get(at) else { return Source::Iota };
        let place = if by_rows { self.rows_of(operand.place) } else { operand.place };
        // SAFETY: as this function.
        let bytes = unsafe { self.memory.read(place) };
        if operand.dtype == DType::U32 {
            Source::Integer(bytes)
        } else {
            Source::Float(Input::new(bytes, operand.format()))
        }
    }

    /// # Safety
    /// As [`execute`].
    unsafe fn with_sources<T>(
        &self,
        count: usize,
        in_place: impl Fn(usize) -> bool,
        by_rows: impl Fn(usize) -> bool,
        body: impl FnOnce(&[Source<'_>]) -> T,
    ) -> T {
        let source = |at| match in_place(at) {
            true => Source::InPlace,
            // SAFETY: as this function; operands in place are not touched here.
            false => unsafe { self.source(at, by_rows(at)) },
        };
        if count <= FEW {
            let mut few = [Source::Iota; FEW];
            few[..count].iter_mut().enumerate().for_each(|(at, out)| *out = source(at));
            body(&few[..count])
        } else {
            body(&(0..count).map(source).collect::<Vec<_>>())
        }
    }

    /// # Safety
    /// As [`execute`].
    unsafe fn dispatch(&self, after: Option<After<'_>>) -> Result<(), Error> {
        let alpha = self.alpha(0);
        // SAFETY: for the whole body, as this function: each operand is read and each result
        // written by one kernel, and they do not overlap.
        unsafe {
            match &self.instruction.kind {
                Kind::Gemm { shape, batch, columns, transposed } => {
                    let [a, b] = [0, 1].map(|at| {
                        let matrix = Matrix::new(self.input(at), columns[at]);
                        if transposed[at] { matrix.transposed() } else { matrix }
                    });
                    gemm_then(*shape, alpha, a, b, batch, self.output(0), after)
                }
                Kind::Map { expression, space, in_place } => {
                    let mut out = self.output(0);
                    let replaced = |at: usize| in_place.get(at) == Some(&true);
                    let by_rows = |at: usize| space.operands[at].is_contiguous();
                    let len = out.len();
                    let bases = [0; FEW];
                    self.with_sources(space.operands.len(), replaced, by_rows, |sources| {
                        let many;
                        let bases = if sources.len() <= FEW {
                            &bases[..sources.len()]
                        } else {
                            many = vec![0; sources.len()];
                            &many
                        };
                        map::map(expression, space, len, sources, bases, alpha, out.share());
                    });
                    Ok(())
                }
                Kind::Reduce(reduction) => {
                    let mut out = self.output(0);
                    let count = reduction.kept.operands.len();
                    self.with_sources(
                        count,
                        |_| false,
                        |_| false,
                        |sources| {
                            reduction.run(sources, alpha, out.share());
                        },
                    );
                    Ok(())
                }
                Kind::Gather { width } => {
                    let ids = self.memory.read(self.rows_of(self.operand(1).place));
                    gather(self.input(0), *width, ids, alpha, self.output(0))
                }
                Kind::ScatterAdd { width } => {
                    scatter_add(self.input(0), *width, self.bytes(1), alpha, self.output(0))
                }
                Kind::Copy(parts) => self.copy(parts),
                Kind::Random(draw) => {
                    let out = self.output(0);
                    let noise = out.noise;
                    random(*draw, noise, alpha, out)
                }
                Kind::Softmax { width, mult } => {
                    softmax(self.input_rows(0), *width, *mult, alpha, self.output(0))
                }
                Kind::SoftmaxGrad { width, mult, y_scale } => softmax_gradient(
                    self.input_rows(0),
                    *y_scale,
                    self.input_rows(1),
                    *width,
                    alpha * mult,
                    self.output(0),
                ),
                Kind::Norm(norm) => {
                    let [weight, bias] = [1, 2].map(|at| self.optional(at));
                    norm.forward(self.input_rows(0), weight, bias, alpha, self.output(0))
                }
                Kind::NormGrad(norm) => {
                    let result = |at: usize| {
                        let exists = at < self.instruction.outputs.len();
                        exists.then(|| (self.output(at), self.alpha(at)))
                    };
                    let gradients =
                        NormGradients { x: result(0), weight: result(1), bias: result(2) };
                    let [x, dy] = [0, 1].map(|at| self.input_rows(at));
                    norm.backward(x, self.optional(2), dy, gradients)
                }
                Kind::Attention(attention) => {
                    let [q, k, v] = [0, 1, 2].map(|at| self.input(at));
                    let mask = self.words(3);
                    attention.forward(q, k, v, mask, alpha, self.output(0), self.output(1))
                }
                Kind::AttentionGrad(attention, out_scale) => {
                    let [q, k, v, out, lse, dout] = [0, 1, 2, 3, 4, 5].map(|at| self.input(at));
                    let out = (out, *out_scale);
                    let [dq, dk, dv] = [0, 1, 2].map(|at| (self.output(at), self.alpha(at)));
                    attention.backward(
                        q,
                        k,
                        v,
                        out,
                        lse,
                        dout,
                        self.words(6),
                        AttentionGradients { q: dq, k: dk, v: dv },
                    )
                }
                Kind::CrossEntropy { classes, mult, factor, mean_of_mask } => {
                    let rows = self.classification(*classes, *mult, 2);
                    let factor = if *mean_of_mask { factor / rows.counted() } else { *factor };
                    let loss = (f64::from(rows.loss_sum()?) * factor * f64::from(alpha)) as f32;
                    self.output(0).share().encode(0, &[loss]);
                    Ok(())
                }
                Kind::CrossEntropyGrad { classes, mult, factor, mean_of_mask } => {
                    let rows = self.classification(*classes, *mult, 3);
                    let factor = if *mean_of_mask { factor / rows.counted() } else { *factor };
                    let upstream = f64::from(self.scalar(2));
                    let scale = (factor * upstream * f64::from(alpha)) as f32;
                    rows.gradient(scale, self.output(0))
                }
                Kind::AdamW(adam) => {
                    // Old values that are not where the new ones go; others are updated in place.
                    let old = [(0, 0), (2, 1), (3, 2)].map(|(operand, result)| {
                        let target = self.instruction.outputs[result].place;
                        (self.operand(operand).place != target).then(|| self.input(operand))
                    });
                    let word = self.bytes(5);
                    let step = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                    let now = AdamWStep {
                        lr: self.scalar(4),
                        step: step as f32 + 1.0,
                        grad_factor: self.scalar(6),
                    };
                    let [w, m, v] = [0, 1, 2].map(|at| self.output(at));
                    adam.update_from(now, old, w, self.input(1), m, v)
                }
            }
        }
    }

    /// # Safety
    /// As [`execute`].
    unsafe fn optional(&self, at: usize) -> Option<Input<'a>> {
        // SAFETY: as this function.
        (at < self.instruction.inputs.len()).then(|| unsafe { self.input(at) })
    }

    /// The bytes of an operand of integers that need not be there.
    ///
    /// # Safety
    /// As [`execute`].
    unsafe fn words(&self, at: usize) -> Option<&'a [u8]> {
        // SAFETY: as this function.
        (at < self.instruction.inputs.len()).then(|| unsafe { self.bytes(at) })
    }

    /// # Safety
    /// As [`execute`].
    unsafe fn classification(&self, classes: usize, mult: f32, mask: usize) -> Classification<'a> {
        // SAFETY: as this function.
        let (logits, targets, mask) = unsafe { (self.input(0), self.bytes(1), self.words(mask)) };
        Classification { logits, classes, mult, targets, mask }
    }

    /// # Safety
    /// As [`execute`].
    unsafe fn copy(&self, parts: &[crate::instruction::Copy]) -> Result<(), Error> {
        // SAFETY: as this function.
        let target = unsafe { self.memory.write(self.instruction.outputs[0].place) };
        let width = self.instruction.outputs[0].dtype.bytes();
        for (at, part) in parts.iter().enumerate() {
            let from = Layout { offset: part.from_offset, strides: &part.from_strides };
            let to = Layout { offset: part.to_offset, strides: &part.to_strides };
            // SAFETY: as this function.
            copy_strided(width, &part.dims, from, unsafe { self.bytes(at) }, to, target)?;
        }
        Ok(())
    }
}
