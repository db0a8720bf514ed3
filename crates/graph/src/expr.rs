//! Scalar expressions: what [`Op::Map`](crate::Op::Map) and [`Op::Reduce`](crate::Op::Reduce)
//! apply to each element.
//!
//! An expression is written with [`Term`]s and operators, then flattened into an [`Expr`], a list
//! of instructions in which common subexpressions stand once. Backends interpret it in chunks or
//! generate code from it. Differentiation is symbolic and gives expressions again.
//!
//! ```
//! use onesigma_graph::expr::{Expr, Term};
//! // silu(x) = x * sigmoid(x)
//! let silu = Expr::new(1, |x| x[0].clone() * x[0].sigmoid());
//! assert!((silu.eval(&[1.0], &[]) - 0.731_058_578).abs() < 1e-8);
//! // The derivative takes the operands and then the upstream gradient.
//! let grad = &silu.gradients()[0];
//! assert!((grad.eval(&[1.0, 1.0], &[]) - 0.927_670_511).abs() < 1e-8);
//! ```

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::rc::Rc;

/// A function of one number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UnaryOp {
    /// `-x`
    Neg,
    /// `|x|`
    Abs,
    /// `e^x`
    Exp,
    /// Natural logarithm.
    Ln,
    /// Square root.
    Sqrt,
    /// `1 / sqrt(x)`
    Rsqrt,
    /// Hyperbolic tangent.
    Tanh,
    /// Error function.
    Erf,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// Sine of an angle in radians.
    Sin,
    /// Cosine of an angle in radians.
    Cos,
}

/// A function of two numbers. Comparisons give 1 for true and 0 for false (also for NaN).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BinaryOp {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// The smaller one; NaN if either is.
    Min,
    /// The larger one; NaN if either is.
    Max,
    /// `a < b`
    Less,
    /// `a <= b`
    LessEqual,
    /// `a == b`
    Equal,
}

/// One step of an [`Expr`]; operands are indices of earlier steps.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instr {
    /// Element of operand `n`, broadcast; U32 operands are converted (exact below 2^24).
    Input(u16),
    /// A constant.
    Const(f64),
    /// The coordinate along an axis of the iteration space.
    Index(u16),
    /// A function of one earlier result.
    Unary(UnaryOp, u16),
    /// A function of two earlier results.
    Binary(BinaryOp, u16, u16),
    /// The second if the first is not zero, else the third.
    Select(u16, u16, u16),
}

/// A scalar function of the elements of `inputs` operands; its value is that of the last step.
///
/// ```
/// use onesigma_graph::expr::Expr;
///
/// // Kernels that are fused into one are expressions like these, put into each other.
/// let leaky = Expr::new(1, |x| x[0].clone() * 0.01 + x[0].clone() * x[0].sigmoid());
/// assert_eq!(leaky.eval(&[0.0], &[]), 0.0);
/// assert!((leaky.gradients()[0].eval(&[0.0, 2.0], &[]) - 2.0 * 0.51).abs() < 1e-12);
/// ```
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Expr {
    inputs: u16,
    instrs: Vec<Instr>,
}

/// An [`Instr`] with the values of its operands: what [`Expr::walk`] shows.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Step<'a, T> {
    /// Element of an operand.
    Input(usize),
    /// A constant.
    Const(f64),
    /// The coordinate along an axis of the iteration space.
    Index(usize),
    /// A function of one value.
    Unary(UnaryOp, &'a T),
    /// A function of two values.
    Binary(BinaryOp, &'a T, &'a T),
    /// The second if the first is not zero, else the third.
    Select(&'a T, &'a T, &'a T),
}

#[derive(Debug)]
enum TermKind {
    Input(u16),
    Const(f64),
    Index(u16),
    Unary(UnaryOp, Term),
    Binary(BinaryOp, Term, Term),
    Select(Term, Term, Term),
}

/// A scalar expression under construction; cloning shares it.
#[derive(Clone, Debug)]
pub struct Term(Rc<TermKind>);

impl Term {
    fn new(kind: TermKind) -> Self {
        Self(Rc::new(kind))
    }

    /// A constant.
    pub fn constant(value: f64) -> Self {
        Self::new(TermKind::Const(value))
    }

    /// Element of operand `n`.
    pub fn input(n: usize) -> Self {
        Self::new(TermKind::Input(n as u16))
    }

    /// The coordinate along `axis` of the iteration space.
    pub fn index(axis: usize) -> Self {
        Self::new(TermKind::Index(axis as u16))
    }

    fn as_const(&self) -> Option<f64> {
        match *self.0 {
            TermKind::Const(value) => Some(value),
            _ => None,
        }
    }

    fn unary(&self, op: UnaryOp) -> Self {
        match self.as_const() {
            Some(value) => Self::constant(eval_unary(op, value)),
            None => Self::new(TermKind::Unary(op, self.clone())),
        }
    }

    fn binary(op: BinaryOp, a: Self, b: Self) -> Self {
        use BinaryOp::{Add, Div, Mul, Sub};
        match (op, a.as_const(), b.as_const()) {
            (_, Some(x), Some(y)) => Self::constant(eval_binary(op, x, y)),
            (Add, Some(0.0), _) | (Mul, Some(1.0), _) => b,
            (Add | Sub, _, Some(0.0)) | (Mul | Div, _, Some(1.0)) => a,
            (Mul, Some(0.0), _) | (Mul, _, Some(0.0)) => Self::constant(0.0),
            (Mul, Some(-1.0), _) => -b,
            _ => Self::new(TermKind::Binary(op, a, b)),
        }
    }

    /// `|x|`
    pub fn abs(&self) -> Self {
        self.unary(UnaryOp::Abs)
    }

    /// `e^x`
    pub fn exp(&self) -> Self {
        self.unary(UnaryOp::Exp)
    }

    /// Natural logarithm.
    pub fn ln(&self) -> Self {
        self.unary(UnaryOp::Ln)
    }

    /// Square root.
    pub fn sqrt(&self) -> Self {
        self.unary(UnaryOp::Sqrt)
    }

    /// `1 / sqrt(x)`
    pub fn rsqrt(&self) -> Self {
        self.unary(UnaryOp::Rsqrt)
    }

    /// Hyperbolic tangent.
    pub fn tanh(&self) -> Self {
        self.unary(UnaryOp::Tanh)
    }

    /// Error function.
    pub fn erf(&self) -> Self {
        self.unary(UnaryOp::Erf)
    }

    /// `1 / (1 + e^-x)`
    pub fn sigmoid(&self) -> Self {
        self.unary(UnaryOp::Sigmoid)
    }

    /// Sine of an angle in radians.
    pub fn sin(&self) -> Self {
        self.unary(UnaryOp::Sin)
    }

    /// Cosine of an angle in radians.
    pub fn cos(&self) -> Self {
        self.unary(UnaryOp::Cos)
    }

    /// `x * x`
    pub fn square(&self) -> Self {
        self.clone() * self.clone()
    }

    /// The smaller one.
    pub fn min(&self, other: impl Into<Self>) -> Self {
        Self::binary(BinaryOp::Min, self.clone(), other.into())
    }

    /// The larger one.
    pub fn max(&self, other: impl Into<Self>) -> Self {
        Self::binary(BinaryOp::Max, self.clone(), other.into())
    }

    /// 1 where `self < other`, else 0.
    pub fn less(&self, other: impl Into<Self>) -> Self {
        Self::binary(BinaryOp::Less, self.clone(), other.into())
    }

    /// 1 where `self <= other`, else 0.
    pub fn less_equal(&self, other: impl Into<Self>) -> Self {
        Self::binary(BinaryOp::LessEqual, self.clone(), other.into())
    }

    /// 1 where `self == other`, else 0.
    pub fn equal(&self, other: impl Into<Self>) -> Self {
        Self::binary(BinaryOp::Equal, self.clone(), other.into())
    }

    /// `yes` where `self` is not zero, else `no`.
    pub fn select(&self, yes: impl Into<Self>, no: impl Into<Self>) -> Self {
        let (yes, no) = (yes.into(), no.into());
        match self.as_const() {
            Some(condition) if condition != 0.0 => yes,
            Some(_) => no,
            None => Self::new(TermKind::Select(self.clone(), yes, no)),
        }
    }
}

impl From<f64> for Term {
    fn from(value: f64) -> Self {
        Self::constant(value)
    }
}

impl Neg for Term {
    type Output = Self;
    fn neg(self) -> Self {
        self.unary(UnaryOp::Neg)
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident) => {
        impl<T: Into<Term>> $trait<T> for Term {
            type Output = Self;
            fn $method(self, other: T) -> Self {
                Self::binary(BinaryOp::$trait, self, other.into())
            }
        }
    };
}
operator!(Add, add);
operator!(Sub, sub);
operator!(Mul, mul);
operator!(Div, div);

impl Expr {
    /// Builds an expression of `inputs` operands.
    pub fn new(inputs: usize, build: impl FnOnce(&[Term]) -> Term) -> Self {
        let operands: Vec<Term> = (0..inputs).map(Term::input).collect();
        Self::from_term(inputs, &build(&operands))
    }

    /// Flattens a term; equal subterms become one instruction.
    pub fn from_term(inputs: usize, term: &Term) -> Self {
        let mut flat = Flattener::default();
        let result = flat.visit(term);
        // The result has to stand last: it does unless it was shared and found again earlier,
        // which only happens for a term that is its own root.
        debug_assert_eq!(result as usize + 1, flat.instrs.len());
        Self { inputs: inputs as u16, instrs: flat.instrs }
    }

    /// The identity of one operand.
    pub fn identity() -> Self {
        Self::new(1, |x| x[0].clone())
    }

    /// Number of operands.
    pub fn inputs(&self) -> usize {
        self.inputs.into()
    }

    /// The instructions, operands before use; the last one is the result.
    pub fn instrs(&self) -> &[Instr] {
        &self.instrs
    }

    /// Whether every reference points to an earlier instruction or an existing operand; false
    /// only for expressions that were loaded from outside.
    pub fn is_valid(&self, rank: usize) -> bool {
        !self.instrs.is_empty()
            && self.instrs.len() <= usize::from(u16::MAX)
            && self.instrs.iter().enumerate().all(|(at, instr)| {
                let ok = |register: u16| usize::from(register) < at;
                match *instr {
                    Instr::Input(n) => n < self.inputs,
                    Instr::Const(_) => true,
                    Instr::Index(axis) => usize::from(axis) < rank,
                    Instr::Unary(_, a) => ok(a),
                    Instr::Binary(_, a, b) => ok(a) && ok(b),
                    Instr::Select(a, b, c) => ok(a) && ok(b) && ok(c),
                }
            })
    }

    /// The result as a term over `operands`, for composing expressions.
    pub fn apply(&self, operands: &[Term]) -> Term {
        self.terms(operands).pop().unwrap_or_else(|| Term::constant(0.0))
    }

    fn terms(&self, operands: &[Term]) -> Vec<Term> {
        let Ok(terms) = self.walk(|_, step: Step<'_, Term>| {
            Ok::<_, Infallible>(match step {
                Step::Input(n) => operands[n].clone(),
                Step::Const(value) => Term::constant(value),
                Step::Index(axis) => Term::index(axis),
                Step::Unary(op, a) => a.unary(op),
                Step::Binary(op, a, b) => Term::binary(op, a.clone(), b.clone()),
                Step::Select(c, a, b) => c.select(a.clone(), b.clone()),
            })
        });
        terms
    }

    /// Goes through the instructions in order: `each` makes a value of an instruction, of which it
    /// is given the number and the values of the operands. The result holds the values of all;
    /// the last is that of the expression. An interpreter over tensors and a printer of source text
    /// are such walks:
    ///
    /// ```
    /// use onesigma_graph::expr::{Expr, Step};
    ///
    /// let half = Expr::new(1, |x| x[0].tanh() * 0.5);
    /// let texts = half.walk(|_, step| match step {
    ///     Step::Input(n) => Ok(format!("x{n}")),
    ///     Step::Const(value) => Ok(value.to_string()),
    ///     Step::Unary(op, a) => Ok(format!("{op:?}({a})")),
    ///     Step::Binary(op, a, b) => Ok(format!("{op:?}({a}, {b})")),
    ///     Step::Index(_) | Step::Select(..) => Err("this language has none"),
    /// })?;
    /// assert_eq!(texts.last().map(String::as_str), Some("Mul(Tanh(x0), 0.5)"));
    /// # Ok::<(), &str>(())
    /// ```
    ///
    /// # Errors
    /// The first that `each` gives.
    pub fn walk<T, E>(
        &self,
        mut each: impl FnMut(usize, Step<'_, T>) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let mut values: Vec<T> = Vec::with_capacity(self.instrs.len());
        for (at, instr) in self.instrs.iter().enumerate() {
            let of = |register: u16| &values[usize::from(register)];
            let step = match *instr {
                Instr::Input(n) => Step::Input(n.into()),
                Instr::Const(value) => Step::Const(value),
                Instr::Index(axis) => Step::Index(axis.into()),
                Instr::Unary(op, a) => Step::Unary(op, of(a)),
                Instr::Binary(op, a, b) => Step::Binary(op, of(a), of(b)),
                Instr::Select(c, a, b) => Step::Select(of(c), of(a), of(b)),
            };
            let value = each(at, step)?;
            values.push(value);
        }
        Ok(values)
    }

    /// For each operand the expression of its gradient: a function of the operands and, last, the
    /// upstream gradient. Min and max pass the gradient to the first of equal operands;
    /// comparisons have none.
    pub fn gradients(&self) -> Vec<Self> {
        let n = self.inputs();
        let operands: Vec<Term> = (0..n).map(Term::input).collect();
        let terms = self.terms(&operands);
        let zero = || Term::constant(0.0);
        let mut adjoint: Vec<Term> = vec![zero(); terms.len()];
        let mut result: Vec<Term> = vec![zero(); n];
        if let Some(last) = adjoint.last_mut() {
            *last = Term::input(n);
        }
        for (at, instr) in self.instrs.iter().enumerate().rev() {
            let dy = adjoint[at].clone();
            let y = &terms[at];
            let mut give = |register: u16, gradient: Term| {
                let slot = &mut adjoint[usize::from(register)];
                *slot = slot.clone() + gradient;
            };
            match *instr {
                Instr::Input(operand) => {
                    let slot = &mut result[usize::from(operand)];
                    *slot = slot.clone() + dy;
                }
                Instr::Const(_) | Instr::Index(_) => {}
                Instr::Unary(op, a) => {
                    let x = &terms[usize::from(a)];
                    give(a, dy * derivative_unary(op, x, y));
                }
                Instr::Binary(op, a, b) => {
                    let (x, z) = (&terms[usize::from(a)], &terms[usize::from(b)]);
                    match op {
                        BinaryOp::Add => {
                            give(a, dy.clone());
                            give(b, dy);
                        }
                        BinaryOp::Sub => {
                            give(a, dy.clone());
                            give(b, -dy);
                        }
                        BinaryOp::Mul => {
                            give(a, dy.clone() * z.clone());
                            give(b, dy * x.clone());
                        }
                        BinaryOp::Div => {
                            give(a, dy.clone() / z.clone());
                            give(b, -(dy * y.clone() / z.clone()));
                        }
                        BinaryOp::Min | BinaryOp::Max => {
                            let first = match op {
                                BinaryOp::Min => x.less_equal(z.clone()),
                                _ => z.less_equal(x.clone()),
                            };
                            give(a, first.select(dy.clone(), 0.0));
                            give(b, first.select(0.0, dy));
                        }
                        BinaryOp::Less | BinaryOp::LessEqual | BinaryOp::Equal => {}
                    }
                }
                Instr::Select(c, a, b) => {
                    let condition = &terms[usize::from(c)];
                    give(a, condition.select(dy.clone(), 0.0));
                    give(b, condition.select(0.0, dy));
                }
            }
        }
        result.iter().map(|term| Self::from_term(n + 1, term)).collect()
    }

    /// The same function with operand `n` renamed to `map[n]`, of `inputs` operands in all.
    pub fn with_inputs(&self, inputs: usize, map: &[usize]) -> Self {
        let operands: Vec<Term> = map.iter().map(|&n| Term::input(n)).collect();
        Self::from_term(inputs, &self.apply(&operands))
    }

    /// Which operands the expression reads.
    pub fn uses(&self) -> Vec<bool> {
        let mut uses = vec![false; self.inputs()];
        for instr in &self.instrs {
            if let Instr::Input(n) = *instr {
                uses[usize::from(n)] = true;
            }
        }
        uses
    }

    /// Value in f64, the reference for every backend. `index` holds the coordinates.
    pub fn eval(&self, operands: &[f64], index: &[usize]) -> f64 {
        self.eval_with(operands, index, &mut Vec::with_capacity(self.instrs.len()))
    }

    /// As [`eval`](Self::eval) with a buffer for the intermediate results, for use in loops.
    pub fn eval_with(&self, operands: &[f64], index: &[usize], registers: &mut Vec<f64>) -> f64 {
        registers.clear();
        for instr in &self.instrs {
            let at = |register: u16| registers[usize::from(register)];
            let value = match *instr {
                Instr::Input(n) => operands[usize::from(n)],
                Instr::Const(value) => value,
                Instr::Index(axis) => index[usize::from(axis)] as f64,
                Instr::Unary(op, a) => eval_unary(op, at(a)),
                Instr::Binary(op, a, b) => eval_binary(op, at(a), at(b)),
                Instr::Select(c, a, b) => {
                    if at(c) != 0.0 {
                        at(a)
                    } else {
                        at(b)
                    }
                }
            };
            registers.push(value);
        }
        registers.last().copied().unwrap_or(f64::NAN)
    }
}

#[derive(Default)]
struct Flattener {
    instrs: Vec<Instr>,
    /// Terms by address: shared ones are visited once.
    visited: HashMap<*const TermKind, u16>,
    /// Instructions by content, constants by their bits.
    known: HashMap<(u8, u64, u16, u16, u16), u16>,
}

impl Flattener {
    fn visit(&mut self, term: &Term) -> u16 {
        let address = Rc::as_ptr(&term.0);
        if let Some(&register) = self.visited.get(&address) {
            return register;
        }
        let (key, instr) = match &*term.0 {
            TermKind::Input(n) => ((0, 0, *n, 0, 0), Instr::Input(*n)),
            TermKind::Const(value) => ((1, value.to_bits(), 0, 0, 0), Instr::Const(*value)),
            TermKind::Index(axis) => ((2, 0, *axis, 0, 0), Instr::Index(*axis)),
            TermKind::Unary(op, a) => {
                let a = self.visit(a);
                ((3, *op as u64, a, 0, 0), Instr::Unary(*op, a))
            }
            TermKind::Binary(op, a, b) => {
                let (a, b) = (self.visit(a), self.visit(b));
                ((4, *op as u64, a, b, 0), Instr::Binary(*op, a, b))
            }
            TermKind::Select(c, a, b) => {
                let (c, a, b) = (self.visit(c), self.visit(a), self.visit(b));
                ((5, 0, c, a, b), Instr::Select(c, a, b))
            }
        };
        let instrs = &mut self.instrs;
        let register = *self.known.entry(key).or_insert_with(|| {
            instrs.push(instr);
            (instrs.len() - 1) as u16
        });
        self.visited.insert(address, register);
        register
    }
}

fn derivative_unary(op: UnaryOp, x: &Term, y: &Term) -> Term {
    let one = || Term::constant(1.0);
    match op {
        UnaryOp::Neg => Term::constant(-1.0),
        UnaryOp::Abs => x.less(0.0).select(-1.0, 1.0),
        UnaryOp::Exp => y.clone(),
        UnaryOp::Ln => one() / x.clone(),
        UnaryOp::Sqrt => Term::constant(0.5) / y.clone(),
        UnaryOp::Rsqrt => Term::constant(-0.5) * y.clone() / x.clone(),
        UnaryOp::Tanh => one() - y.square(),
        UnaryOp::Erf => Term::constant(std::f64::consts::FRAC_2_SQRT_PI) * (-x.square()).exp(),
        UnaryOp::Sigmoid => y.clone() * (one() - y.clone()),
        UnaryOp::Sin => x.cos(),
        UnaryOp::Cos => -x.sin(),
    }
}

fn eval_unary(op: UnaryOp, x: f64) -> f64 {
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Exp => x.exp(),
        UnaryOp::Ln => x.ln(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => x.sqrt().recip(),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Erf => crate::special::erf(x),
        UnaryOp::Sigmoid => {
            let e = (-x.abs()).exp();
            if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
        }
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
    }
}

fn eval_binary(op: BinaryOp, a: f64, b: f64) -> f64 {
    let nan = a.is_nan() || b.is_nan();
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Min if nan => f64::NAN,
        BinaryOp::Max if nan => f64::NAN,
        BinaryOp::Min => a.min(b),
        BinaryOp::Max => a.max(b),
        BinaryOp::Less => f64::from(u8::from(a < b)),
        BinaryOp::LessEqual => f64::from(u8::from(a <= b)),
        BinaryOp::Equal => f64::from(u8::from(a == b)),
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text: Vec<String> = Vec::with_capacity(self.instrs.len());
        for instr in &self.instrs {
            let at = |register: u16| text[usize::from(register)].as_str();
            text.push(match *instr {
                Instr::Input(n) => format!("x{n}"),
                Instr::Const(value) => {
                    format!("{value:.7}").trim_end_matches('0').trim_end_matches('.').to_owned()
                }
                Instr::Index(axis) => format!("i{axis}"),
                Instr::Unary(UnaryOp::Neg, a) => format!("-{}", at(a)),
                Instr::Unary(op, a) => format!("{}({})", format!("{op:?}").to_lowercase(), at(a)),
                Instr::Binary(op, a, b) => {
                    let (a, b) = (at(a), at(b));
                    match op {
                        BinaryOp::Add => format!("({a} + {b})"),
                        BinaryOp::Sub => format!("({a} - {b})"),
                        BinaryOp::Mul => format!("{a} * {b}"),
                        BinaryOp::Div => format!("({a} / {b})"),
                        BinaryOp::Min => format!("min({a}, {b})"),
                        BinaryOp::Max => format!("max({a}, {b})"),
                        BinaryOp::Less => format!("({a} < {b})"),
                        BinaryOp::LessEqual => format!("({a} <= {b})"),
                        BinaryOp::Equal => format!("({a} == {b})"),
                    }
                }
                Instr::Select(c, a, b) => format!("select({}, {}, {})", at(c), at(a), at(b)),
            });
        }
        f.write_str(text.last().map_or("", String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_gradient(expr: &Expr, at: &[f64]) {
        let h = 1e-6;
        for (operand, gradient) in expr.gradients().iter().enumerate() {
            let shifted = |by: f64| {
                let mut x = at.to_vec();
                x[operand] += by;
                expr.eval(&x, &[])
            };
            let numeric = (shifted(h) - shifted(-h)) / (2.0 * h);
            let mut operands = at.to_vec();
            operands.push(1.0);
            let symbolic = gradient.eval(&operands, &[]);
            assert!((numeric - symbolic).abs() < 1e-7, "{expr}: {numeric} against {symbolic}");
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let unary: [fn(&Term) -> Term; 11] = [
            |x| -x.clone(),
            Term::abs,
            Term::exp,
            Term::ln,
            Term::sqrt,
            Term::rsqrt,
            Term::tanh,
            Term::erf,
            Term::sigmoid,
            Term::sin,
            Term::cos,
        ];
        for f in unary {
            check_gradient(&Expr::new(1, |x| f(&x[0])), &[0.7]);
        }
        check_gradient(&Expr::new(2, |x| x[0].clone() / x[1].clone() - x[1].square()), &[0.3, 1.7]);
        check_gradient(&Expr::new(2, |x| x[0].max(x[1].clone()) * x[0].min(2.0)), &[0.3, 1.7]);
        check_gradient(
            &Expr::new(2, |x| x[0].less(x[1].clone()).select(x[0].square(), x[1].exp())),
            &[0.3, 1.7],
        );
    }

    #[test]
    fn equal_subterms_stand_once() {
        let expr = Expr::new(1, |x| x[0].exp() * x[0].exp());
        assert_eq!(expr.instrs().len(), 3);
    }

    #[test]
    fn a_loaded_expression_is_validated() {
        let bad = Expr { inputs: 1, instrs: vec![Instr::Input(0), Instr::Unary(UnaryOp::Exp, 5)] };
        assert!(!bad.is_valid(0));
        assert!(Expr::identity().is_valid(0));
    }
}
