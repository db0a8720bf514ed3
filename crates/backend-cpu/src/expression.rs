//! Scalar expressions over strided operands: the engine behind `Map`, `Reduce` and `Cast`.
//!
//! An expression is compiled once into steps over a few registers, each a run of [`CHUNK`] f32 in
//! the L1 cache; operands are decoded into registers and the result is rounded out of one. Values
//! that are the same for every element (constants, one-element tensors) stay scalars.

use onesigma_graph::expr::{BinaryOp, Expr, Instr, UnaryOp};

use crate::elementwise::{
    Binary, Unary, binary, binary_left_scalar, binary_right_scalar, select, unary,
};
use crate::parallel::Scratch;
use crate::tensor::{Input, SharedOutput};

/// Elements that are worked on at a time.
pub(crate) const CHUNK: usize = 512;

/// Where an operand's elements come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// A float tensor.
    Float(Input<'a>),
    /// A tensor of little-endian u32.
    Integer(&'a [u8]),
    /// Element `i` is `i`: a coordinate, with the right strides.
    Iota,
    /// The tensor that the result replaces, element by element.
    InPlace,
}

/// Strides of one operand over an iteration space, and what they amount to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Access {
    strides: Vec<usize>,
    kind: AccessKind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum AccessKind {
    /// Element `i` of the space is element `base + i`.
    Contiguous,
    /// Every element is element `base`.
    Uniform,
    /// Something else.
    Strided,
}

/// An iteration space with the operands' strides over it, neighbouring axes merged where every
/// operand allows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Space {
    pub(crate) dims: Vec<usize>,
    pub(crate) operands: Vec<Access>,
}

impl Space {
    /// `strides[operand][axis]`.
    pub(crate) fn new(dims: &[usize], strides: &[Vec<usize>]) -> Self {
        let mut merged: Vec<usize> = Vec::new();
        let mut kept: Vec<Vec<usize>> = vec![Vec::new(); strides.len()];
        for (axis, &dim) in dims.iter().enumerate() {
            if dim == 1 {
                continue;
            }
            let joins = !merged.is_empty()
                && strides
                    .iter()
                    .zip(&kept)
                    .all(|(new, kept)| kept.last() == Some(&(new[axis] * dim)));
            match merged.last_mut() {
                Some(last) if joins => {
                    *last *= dim;
                    for (kept, new) in kept.iter_mut().zip(strides) {
                        if let Some(stride) = kept.last_mut() {
                            *stride = new[axis];
                        }
                    }
                }
                _ => {
                    merged.push(dim);
                    for (kept, new) in kept.iter_mut().zip(strides) {
                        kept.push(new[axis]);
                    }
                }
            }
        }
        let operands = kept.into_iter().map(|strides| Access::new(&merged, strides)).collect();
        Self { dims: merged, operands }
    }

    pub(crate) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Offsets of all operands at position `index` of the space, added to `bases`.
    pub(crate) fn offsets(&self, mut index: usize, bases: &mut [usize]) {
        for axis in (0..self.dims.len()).rev() {
            let coordinate = index % self.dims[axis];
            index /= self.dims[axis];
            for (base, access) in bases.iter_mut().zip(&self.operands) {
                *base += coordinate * access.strides[axis];
            }
        }
    }
}

impl Access {
    fn new(dims: &[usize], strides: Vec<usize>) -> Self {
        let mut contiguous = true;
        let mut expected = 1;
        for (dim, stride) in dims.iter().zip(&strides).rev() {
            contiguous &= *stride == expected;
            expected *= dim;
        }
        let kind = if strides.iter().all(|stride| *stride == 0) {
            AccessKind::Uniform
        } else if contiguous {
            AccessKind::Contiguous
        } else {
            AccessKind::Strided
        };
        Self { strides, kind }
    }

    pub(crate) fn is_uniform(&self) -> bool {
        self.kind == AccessKind::Uniform
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        self.kind == AccessKind::Contiguous
    }

    /// Whether runs of `row` elements of the space of `dims` all read the same elements.
    pub(crate) fn repeats(&self, dims: &[usize], row: usize) -> bool {
        let period: usize = dims.iter().skip(1).product();
        self.is_uniform() || self.strides.first() == Some(&0) && row.is_multiple_of(period.max(1))
    }
}

/// Reads `out.len()` consecutive elements from element `at` on.
fn load_run(source: Source<'_>, at: usize, in_place: Option<SharedOutput<'_>>, out: &mut [f32]) {
    match source {
        Source::Float(input) => input.decode(at, out),
        Source::Integer(bytes) => {
            let words = bytes[at * 4..(at + out.len()) * 4].as_chunks::<4>().0;
            for (out, word) in out.iter_mut().zip(words) {
                *out = u32::from_le_bytes(*word) as f32;
            }
        }
        Source::Iota => {
            for (i, out) in out.iter_mut().enumerate() {
                *out = (at + i) as f32;
            }
        }
        Source::InPlace => {
            if let Some(output) = in_place {
                // SAFETY: a task reads only elements that it alone writes, and writes them after
                // this view has ended.
                unsafe { output.view(at, out.len()) }.decode(0, out);
            }
        }
    }
}

/// Reads elements `start ..` of a space through strides.
fn load(
    source: Source<'_>,
    access: &Access,
    dims: &[usize],
    base: usize,
    start: usize,
    in_place: Option<SharedOutput<'_>>,
    out: &mut [f32],
) {
    match access.kind {
        AccessKind::Contiguous => load_run(source, base + start, in_place, out),
        AccessKind::Uniform => {
            let mut value = [0.0];
            load_run(source, base, in_place, &mut value);
            out.fill(value[0]);
        }
        AccessKind::Strided => {
            let inner = dims[dims.len() - 1];
            let step = access.strides[dims.len() - 1];
            let mut done = 0;
            while done < out.len() {
                let (mut rest, column) = ((start + done) / inner, (start + done) % inner);
                let mut at = base + column * step;
                for axis in (0..dims.len() - 1).rev() {
                    at += rest % dims[axis] * access.strides[axis];
                    rest /= dims[axis];
                }
                let count = (inner - column).min(out.len() - done);
                let run = &mut out[done..done + count];
                match step {
                    1 => load_run(source, at, in_place, run),
                    0 => {
                        let mut value = [0.0];
                        load_run(source, at, in_place, &mut value);
                        run.fill(value[0]);
                    }
                    _ => {
                        for (i, out) in run.iter_mut().enumerate() {
                            load_run(source, at + i * step, in_place, std::slice::from_mut(out));
                        }
                    }
                }
                done += count;
            }
        }
    }
}

/// An operand of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Arg {
    Register(usize),
    Scalar(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Load { operand: usize, out: usize },
    Unary { op: Unary, x: usize, out: usize },
    Binary { op: Binary, x: Arg, y: Arg, out: usize },
    Select { condition: usize, x: usize, y: usize, out: usize },
    Fill { scalar: usize, out: usize },
}

/// A value that is the same for every element of a run of the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Uniform {
    Const(f32),
    Operand(usize),
    Unary(Unary, usize),
    Binary(Binary, usize, usize),
    Select(usize, usize, usize),
}

/// A compiled expression.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expression {
    uniforms: Vec<Uniform>,
    steps: Vec<Step>,
    registers: usize,
    result: usize,
}

fn unary_of(op: UnaryOp) -> Option<Unary> {
    Some(match op {
        UnaryOp::Neg => Unary::Neg,
        UnaryOp::Abs => Unary::Abs,
        UnaryOp::Exp => Unary::Exp,
        UnaryOp::Ln => Unary::Ln,
        UnaryOp::Sqrt => Unary::Sqrt,
        UnaryOp::Rsqrt => Unary::Rsqrt,
        UnaryOp::Tanh => Unary::Tanh,
        UnaryOp::Erf => Unary::Erf,
        UnaryOp::Sin => Unary::Sin,
        UnaryOp::Cos => Unary::Cos,
        UnaryOp::Sigmoid => Unary::Sigmoid,
        _ => return None,
    })
}

fn binary_of(op: BinaryOp) -> Option<Binary> {
    Some(match op {
        BinaryOp::Add => Binary::Add,
        BinaryOp::Sub => Binary::Sub,
        BinaryOp::Mul => Binary::Mul,
        BinaryOp::Div => Binary::Div,
        BinaryOp::Min => Binary::Min,
        BinaryOp::Max => Binary::Max,
        BinaryOp::Less => Binary::Less,
        BinaryOp::LessEqual => Binary::LessEqual,
        BinaryOp::Equal => Binary::Equal,
        _ => return None,
    })
}

/// Whether every function in an expression has a kernel here.
pub(crate) fn is_supported(expr: &Expr) -> bool {
    expr.instrs().iter().all(|instr| match *instr {
        Instr::Unary(op, _) => unary_of(op).is_some(),
        Instr::Binary(op, _, _) => binary_of(op).is_some(),
        _ => true,
    })
}

/// Hands out registers and takes them back after their last use.
struct Allocator {
    last: Vec<usize>,
    held: Vec<Option<Arg>>,
    free: Vec<usize>,
    registers: usize,
}

impl Allocator {
    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.registers += 1;
            self.registers - 1
        })
    }

    fn release(&mut self, instr: usize, now: usize) {
        if self.last[instr] == now
            && let Some(Arg::Register(register)) = self.held[instr]
            && !self.free.contains(&register)
        {
            self.free.push(register);
        }
    }
}

impl Expression {
    /// Compiles an expression whose operand `n` has `accesses[n]` and whose coordinate along axis
    /// `i` is operand `first_axis + i`. `None` if a function has no kernel.
    pub(crate) fn new(expr: &Expr, accesses: &[Access], first_axis: usize) -> Option<Self> {
        let instrs = expr.instrs();
        let mut last: Vec<usize> = (0..instrs.len()).collect();
        for (at, instr) in instrs.iter().enumerate() {
            let used: &[u16] = match instr {
                Instr::Unary(_, x) => &[*x],
                Instr::Binary(_, x, y) => &[*x, *y],
                Instr::Select(c, x, y) => &[*c, *x, *y],
                _ => &[],
            };
            used.iter().for_each(|used| last[usize::from(*used)] = at);
        }
        let result = instrs.len().checked_sub(1)?;
        last[result] = usize::MAX;
        let held = vec![None; instrs.len()];
        let mut alloc = Allocator { last, held, free: Vec::new(), registers: 0 };
        let (mut uniforms, mut steps) = (Vec::new(), Vec::new());
        for (at, instr) in instrs.iter().enumerate() {
            let arg = |alloc: &Allocator, i: u16| alloc.held[usize::from(i)];
            let mut uniform = |value| {
                uniforms.push(value);
                Some(Arg::Scalar(uniforms.len() - 1))
            };
            let made = match *instr {
                Instr::Const(value) => uniform(Uniform::Const(value as f32)),
                Instr::Input(_) | Instr::Index(_) => {
                    let operand = match *instr {
                        Instr::Input(n) => usize::from(n),
                        Instr::Index(axis) => first_axis + usize::from(axis),
                        _ => return None,
                    };
                    if accesses.get(operand)?.is_uniform() {
                        uniform(Uniform::Operand(operand))
                    } else {
                        let out = alloc.take();
                        steps.push(Step::Load { operand, out });
                        Some(Arg::Register(out))
                    }
                }
                Instr::Unary(op, x) => {
                    let op = unary_of(op)?;
                    match arg(&alloc, x)? {
                        Arg::Scalar(x) => uniform(Uniform::Unary(op, x)),
                        Arg::Register(x) => {
                            let out = alloc.take();
                            steps.push(Step::Unary { op, x, out });
                            Some(Arg::Register(out))
                        }
                    }
                }
                Instr::Binary(op, x, y) => {
                    let op = binary_of(op)?;
                    match (arg(&alloc, x)?, arg(&alloc, y)?) {
                        (Arg::Scalar(x), Arg::Scalar(y)) => uniform(Uniform::Binary(op, x, y)),
                        (x, y) => {
                            let out = alloc.take();
                            steps.push(Step::Binary { op, x, y, out });
                            Some(Arg::Register(out))
                        }
                    }
                }
                Instr::Select(c, x, y) => {
                    let args = [arg(&alloc, c)?, arg(&alloc, x)?, arg(&alloc, y)?];
                    if let [Arg::Scalar(c), Arg::Scalar(x), Arg::Scalar(y)] = args {
                        uniform(Uniform::Select(c, x, y))
                    } else {
                        let mut filled = Vec::new();
                        let [condition, x, y] = args.map(|arg| match arg {
                            Arg::Register(register) => register,
                            Arg::Scalar(scalar) => {
                                let out = alloc.take();
                                steps.push(Step::Fill { scalar, out });
                                filled.push(out);
                                out
                            }
                        });
                        let out = alloc.take();
                        steps.push(Step::Select { condition, x, y, out });
                        alloc.free.extend(filled);
                        Some(Arg::Register(out))
                    }
                }
            };
            alloc.held[at] = made;
            if let Instr::Unary(..) | Instr::Binary(..) | Instr::Select(..) = instr {
                let used: &[u16] = match instr {
                    Instr::Unary(_, x) => &[*x],
                    Instr::Binary(_, x, y) => &[*x, *y],
                    Instr::Select(c, x, y) => &[*c, *x, *y],
                    _ => &[],
                };
                used.iter().for_each(|used| alloc.release(usize::from(*used), at));
            }
        }
        let result = match alloc.held[result]? {
            Arg::Register(register) => register,
            Arg::Scalar(scalar) => {
                let out = alloc.take();
                steps.push(Step::Fill { scalar, out });
                out
            }
        };
        Some(Self { uniforms, steps, registers: alloc.registers, result })
    }

    /// A task's working memory.
    pub(crate) fn registers(&self) -> Scratch<f32> {
        Scratch::new(self.registers * CHUNK)
    }

    /// Values of the uniforms when operand `n` starts at `bases[n]`.
    pub(crate) fn uniforms(
        &self,
        sources: &[Source<'_>],
        bases: &[usize],
        in_place: Option<SharedOutput<'_>>,
    ) -> Scratch<f32> {
        let mut values = Scratch::<f32>::new(self.uniforms.len());
        for (at, uniform) in self.uniforms.iter().enumerate() {
            let mut out = [0.0];
            match *uniform {
                Uniform::Const(value) => out[0] = value,
                Uniform::Operand(n) => load_run(sources[n], bases[n], in_place, &mut out),
                Uniform::Unary(op, x) => unary(op, &[values[x]], &mut out),
                Uniform::Binary(op, x, y) => binary(op, &[values[x]], &[values[y]], &mut out),
                Uniform::Select(c, x, y) => {
                    select(&[values[c]], &[values[x]], &[values[y]], &mut out);
                }
            }
            values[at] = out[0];
        }
        values
    }

    /// Computes elements `start .. start + count` of the space (`count` ≤ [`CHUNK`]).
    pub(crate) fn eval<'r>(
        &self,
        space: &Space,
        sources: &[Source<'_>],
        bases: &[usize],
        uniforms: &[f32],
        in_place: Option<SharedOutput<'_>>,
        start: usize,
        count: usize,
        registers: &'r mut [f32],
    ) -> &'r mut [f32] {
        for step in &self.steps {
            let (Step::Load { out, .. }
            | Step::Unary { out, .. }
            | Step::Binary { out, .. }
            | Step::Select { out, .. }
            | Step::Fill { out, .. }) = *step;
            let (before, rest) = registers.split_at_mut(out * CHUNK);
            let (target, after) = rest.split_at_mut(CHUNK);
            let target = &mut target[..count];
            let read = |register: usize| {
                let (side, at) = if register < out {
                    (&*before, register)
                } else {
                    (&*after, register - out - 1)
                };
                &side[at * CHUNK..][..count]
            };
            match *step {
                Step::Load { operand, .. } => {
                    let access = &space.operands[operand];
                    load(
                        sources[operand],
                        access,
                        &space.dims,
                        bases[operand],
                        start,
                        in_place,
                        target,
                    );
                }
                Step::Unary { op, x, .. } => unary(op, read(x), target),
                Step::Binary { op, x, y, .. } => match (x, y) {
                    (Arg::Register(x), Arg::Register(y)) => binary(op, read(x), read(y), target),
                    (Arg::Register(x), Arg::Scalar(y)) => {
                        binary_right_scalar(op, read(x), uniforms[y], target);
                    }
                    (Arg::Scalar(x), Arg::Register(y)) => {
                        binary_left_scalar(op, uniforms[x], read(y), target);
                    }
                    (Arg::Scalar(x), Arg::Scalar(y)) => {
                        binary(op, &[uniforms[x]], &[uniforms[y]], &mut target[..1]);
                        let value = target[0];
                        target.fill(value);
                    }
                },
                Step::Select { condition, x, y, .. } => {
                    select(read(condition), read(x), read(y), target);
                }
                Step::Fill { scalar, .. } => target.fill(uniforms[scalar]),
            }
        }
        &mut registers[self.result * CHUNK..][..count]
    }
}
