//! Moments of scalar expressions over random operands.
//!
//! An expression is taken apart where its operands are independent: sums and products of parts
//! that share no operand have exact rules. What is left is a function of one operand, whose pairs
//! follow from its Hermite coefficients (Mehler's formula: if `z, z'` are standard normal with
//! correlation `r`, then `E[h(z) h(z')] = sum_n a_n^2 r^n`), or a function of several, which is
//! averaged over a low-discrepancy sequence.

use super::law::Law;
use super::moments::{Axes, Moments, TOKEN, Tokens};
use super::normal::{POINTS, Sequence, below, grid};
use crate::expr::{BinaryOp, Expr, Instr, UnaryOp};

/// Hermite coefficients that are kept; the rest of the mean square counts as one more.
const COEFFICIENTS: usize = 24;

/// Moments of `expr` over operands broadcast to `dims`; equal operands (by `same`, the number of
/// the first equal one) vary together, all others independently.
pub(crate) fn expression(
    expr: &Expr,
    dims: &[usize],
    operands: &[&Moments],
    same: &[usize],
) -> Option<Moments> {
    let study = Study::new(expr, dims, operands, same);
    let root = u16::try_from(expr.instrs().len().checked_sub(1)?).ok()?;
    let stat = study.stat(root);
    let law = study.law(root);
    Moments::new(dims, stat.mean, law, study.tokens, |axes| stat.pairs[study.index(axes)])
}

/// Mean and pairs of an intermediate result, on the axes of the whole expression: by axes, then the
/// same with different tokens.
#[derive(Clone, Debug)]
struct Stat {
    mean: f64,
    pairs: Vec<f64>,
}

impl Stat {
    fn constant(value: f64, count: usize) -> Self {
        Self { mean: value, pairs: vec![value * value; count] }
    }

    /// `self + other`, independent.
    fn plus(mut self, other: &Self) -> Self {
        let cross = 2.0 * self.mean * other.mean;
        for (own, more) in self.pairs.iter_mut().zip(&other.pairs) {
            *own += more + cross;
        }
        self.mean += other.mean;
        self
    }

    /// `self * other`, independent.
    fn times(mut self, other: &Self) -> Self {
        self.mean *= other.mean;
        for (own, more) in self.pairs.iter_mut().zip(&other.pairs) {
            *own *= more;
        }
        self
    }
}

/// What varies: an operand or a coordinate.
enum Variable<'a> {
    Operand {
        moments: &'a Moments,
        /// Correlation of two elements whose indices differ in these axes.
        correlation: Vec<f64>,
    },
    Coordinate {
        axis: usize,
        extent: usize,
    },
}

/// A part of a product: a register or its reciprocal.
type Factor = (u16, bool);

/// A number times registers that are no products.
#[derive(Clone, Debug)]
struct Product {
    factor: f64,
    factors: Vec<Factor>,
}

impl Product {
    fn value(&self, registers: &[f64]) -> f64 {
        self.factors.iter().fold(self.factor, |product, &(register, inverse)| {
            let value = registers[usize::from(register)];
            if inverse { product / value } else { product * value }
        })
    }
}

struct Study<'a> {
    expr: &'a Expr,
    dims: &'a [usize],
    same: &'a [usize],
    variables: Vec<Variable<'a>>,
    /// Axes of the result along a text.
    tokens: Option<Tokens>,
    /// Variables that each register depends on, as bits.
    depends: Vec<u64>,
}

impl<'a> Study<'a> {
    fn new(expr: &'a Expr, dims: &'a [usize], operands: &[&'a Moments], same: &'a [usize]) -> Self {
        let tokens = operands
            .iter()
            .fold(None, |tokens, moments| Tokens::joined(tokens, moments.broadcast_tokens(dims)));
        let mut study =
            Self { expr, dims, same, variables: Vec::new(), tokens, depends: Vec::new() };
        let operand = |moments: &&'a Moments| {
            let (mean_square, variance) =
                (moments.mean() * moments.mean(), moments.sigma().powi(2));
            let correlation = (0..study.count())
                .map(|index| {
                    let pair = moments.broadcast_pair(dims, tokens, study.axes(index));
                    let shared = pair - mean_square;
                    if variance > 0.0 { (shared / variance).clamp(-1.0, 1.0) } else { 1.0 }
                })
                .collect();
            Variable::Operand { moments, correlation }
        };
        let coordinates =
            dims.iter().enumerate().map(|(axis, &extent)| Variable::Coordinate { axis, extent });
        study.variables = operands.iter().map(operand).chain(coordinates).collect();
        for instr in expr.instrs() {
            let of = |register: u16| study.depends[usize::from(register)];
            let own = match *instr {
                Instr::Input(n) => 1 << same[usize::from(n)],
                Instr::Const(_) => 0,
                Instr::Index(axis) => 1 << (operands.len() + usize::from(axis)),
                Instr::Unary(_, a) => of(a),
                Instr::Binary(_, a, b) => of(a) | of(b),
                Instr::Select(a, b, c) => of(a) | of(b) | of(c),
            };
            study.depends.push(own);
        }
        study
    }

    fn depends(&self, register: u16) -> u64 {
        self.depends[usize::from(register)]
    }

    fn instr(&self, register: u16) -> Instr {
        self.expr.instrs()[usize::from(register)]
    }

    /// Entries of a table of pairs.
    fn count(&self) -> usize {
        2 << self.dims.len()
    }

    /// The axes of an entry of a table of pairs.
    fn axes(&self, index: usize) -> Axes {
        let rank = self.dims.len();
        (index & ((1 << rank) - 1)) | if index >> rank == 1 { TOKEN } else { 0 }
    }

    /// The entry of a set of axes.
    fn index(&self, axes: Axes) -> usize {
        let rank = self.dims.len();
        (axes & ((1 << rank) - 1)) | if axes & TOKEN != 0 { 1 << rank } else { 0 }
    }

    /// Value of a register that depends on nothing.
    fn value(&self, register: u16) -> f64 {
        self.registers(&vec![0.0; self.variables.len()])[usize::from(register)]
    }

    /// All registers for given values of the variables.
    fn registers(&self, values: &[f64]) -> Vec<f64> {
        let count = self.variables.len() - self.dims.len();
        let operands: Vec<f64> = self.same.iter().map(|&first| values[first]).collect();
        let index: Vec<usize> = values[count..].iter().map(|&at| at as usize).collect();
        let mut registers = Vec::with_capacity(self.expr.instrs().len());
        self.expr.eval_with(&operands, &index, &mut registers);
        registers
    }

    fn stat(&self, register: u16) -> Stat {
        let mut sum = Vec::new();
        self.terms(register, 1.0, &mut sum);
        self.sum(&sum)
    }

    /// A sum, taken apart as far as it goes.
    fn sum(&self, terms: &[Product]) -> Stat {
        let groups = group(terms, |term| self.depends_on(term));
        match &groups[..] {
            [single] => self.connected_sum(single),
            _ => groups.iter().fold(Stat::constant(0.0, self.count()), |sum, group| {
                sum.plus(&self.connected_sum(group))
            }),
        }
    }

    /// A sum whose terms share variables.
    fn connected_sum(&self, terms: &[Product]) -> Stat {
        if let [term] = terms {
            return self.product(term);
        }
        match self.common_operand(terms) {
            Some((operand, rest)) => self.operand(operand).times(&self.sum(&rest)),
            None => self.function(terms),
        }
    }

    /// An operand that is a factor of every term and in nothing else, with what is left.
    fn common_operand(&self, terms: &[Product]) -> Option<(usize, Vec<Product>)> {
        let operands = self.variables.len() - self.dims.len();
        (0..operands).find_map(|operand| {
            let rest = terms.iter().map(|term| self.without(term, operand)).collect::<Option<_>>();
            Some((operand, rest?))
        })
    }

    /// A product without its one factor that depends on an operand, if that is the operand itself.
    fn without(&self, term: &Product, operand: usize) -> Option<Product> {
        let depends = |&(register, _): &Factor| self.depends(register) >> operand & 1 == 1;
        let (own, others): (Vec<Factor>, Vec<Factor>) =
            term.factors.iter().copied().partition(depends);
        let is_operand = |register| match self.instr(register) {
            Instr::Input(n) => self.same[usize::from(n)] == operand,
            _ => false,
        };
        match own[..] {
            [(register, false)] if is_operand(register) => {
                Some(Product { factor: term.factor, factors: others })
            }
            _ => None,
        }
    }

    /// A product, taken apart as far as it goes.
    fn product(&self, term: &Product) -> Stat {
        let groups = group(&term.factors, |&(factor, _)| self.depends(factor));
        let start = Stat::constant(term.factor, self.count());
        groups.iter().fold(start, |product, group| {
            let own = match group[..] {
                [(factor, false)] => self.atom(factor),
                _ => self.function(&[Product { factor: 1.0, factors: group.clone() }]),
            };
            product.times(&own)
        })
    }

    /// A register that is no product.
    fn atom(&self, register: u16) -> Stat {
        match self.instr(register) {
            Instr::Input(n) => self.operand(self.same[usize::from(n)]),
            Instr::Binary(BinaryOp::Add | BinaryOp::Sub, ..) | Instr::Unary(UnaryOp::Neg, _) => {
                self.stat(register)
            }
            Instr::Select(condition, yes, no)
                if self.depends(condition) & (self.depends(yes) | self.depends(no)) == 0 =>
            {
                self.select(condition, yes, no)
            }
            _ => self.function(&[Product { factor: 1.0, factors: vec![(register, false)] }]),
        }
    }

    /// Terms of a sum.
    fn terms(&self, register: u16, factor: f64, terms: &mut Vec<Product>) {
        match self.instr(register) {
            Instr::Unary(UnaryOp::Neg, a) => self.terms(a, -factor, terms),
            Instr::Binary(BinaryOp::Add, a, b) => {
                self.terms(a, factor, terms);
                self.terms(b, factor, terms);
            }
            Instr::Binary(BinaryOp::Sub, a, b) => {
                self.terms(a, factor, terms);
                self.terms(b, -factor, terms);
            }
            _ => {
                let mut product = Product { factor, factors: Vec::new() };
                self.factors(register, false, &mut product);
                // A number times a sum is a sum.
                match product.factors[..] {
                    [(only, false)] if only != register => self.terms(only, product.factor, terms),
                    _ => terms.push(product),
                }
            }
        }
    }

    /// Factors of a product; constants are multiplied out.
    fn factors(&self, register: u16, inverse: bool, product: &mut Product) {
        match self.instr(register) {
            _ if self.depends(register) == 0 => {
                let value = self.value(register);
                product.factor *= if inverse { value.recip() } else { value };
            }
            Instr::Unary(UnaryOp::Neg, a) => {
                product.factor = -product.factor;
                self.factors(a, inverse, product);
            }
            Instr::Binary(BinaryOp::Mul, a, b) => {
                self.factors(a, inverse, product);
                self.factors(b, inverse, product);
            }
            Instr::Binary(BinaryOp::Div, a, b) => {
                self.factors(a, inverse, product);
                self.factors(b, !inverse, product);
            }
            _ => product.factors.push((register, inverse)),
        }
    }

    fn depends_on(&self, term: &Product) -> u64 {
        term.factors.iter().fold(0, |all, &(register, _)| all | self.depends(register))
    }

    /// An operand as it is.
    fn operand(&self, variable: usize) -> Stat {
        match &self.variables[variable] {
            Variable::Operand { moments, .. } => Stat {
                mean: moments.mean(),
                pairs: (0..self.count())
                    .map(|index| moments.broadcast_pair(self.dims, self.tokens, self.axes(index)))
                    .collect(),
            },
            Variable::Coordinate { .. } => self.sampled(&|_| 0.0, 0),
        }
    }

    /// A condition that has nothing to do with what it chooses from.
    fn select(&self, condition: u16, yes: u16, no: u16) -> Stat {
        let chosen = self.sampled(
            &|registers| f64::from(u8::from(registers[usize::from(condition)] != 0.0)),
            self.depends(condition),
        );
        let (yes, no) = (self.stat(yes), self.stat(no));
        let p = chosen.mean;
        let pairs = (0..self.count())
            .map(|axes| {
                let both = chosen.pairs[axes];
                let mixed = (p - both).max(0.0);
                let neither = (1.0 - 2.0 * p + both).max(0.0);
                both * yes.pairs[axes] + neither * no.pairs[axes] + 2.0 * mixed * yes.mean * no.mean
            })
            .collect();
        Stat { mean: p * yes.mean + (1.0 - p) * no.mean, pairs }
    }

    /// A sum that cannot be taken apart.
    fn function(&self, terms: &[Product]) -> Stat {
        let depends = terms.iter().fold(0, |all, term| all | self.depends_on(term));
        let function =
            |registers: &[f64]| terms.iter().map(|term| term.value(registers)).sum::<f64>();
        if let Some(variable) = single(depends)
            && let Variable::Operand { moments, correlation } = &self.variables[variable]
        {
            return self.hermite(&function, variable, moments, correlation);
        }
        self.sampled(&function, depends)
    }

    /// A function of one operand, by its Hermite coefficients.
    fn hermite(
        &self,
        function: &dyn Fn(&[f64]) -> f64,
        variable: usize,
        moments: &Moments,
        correlation: &[f64],
    ) -> Stat {
        let mut coefficients = [0.0; COEFFICIENTS];
        let mut square = 0.0;
        let mut values = vec![0.0; self.variables.len()];
        for node in grid() {
            values[variable] = moments.element(node.z, || node.below);
            let y = function(&self.registers(&values));
            if !y.is_finite() {
                continue;
            }
            square += node.weight * y * y;
            // Normalised Hermite polynomials: sqrt(n+1) h_{n+1} = z h_n - sqrt(n) h_{n-1}.
            let (mut previous, mut current) = (0.0, 1.0);
            for (n, coefficient) in coefficients.iter_mut().enumerate() {
                *coefficient += node.weight * y * current;
                let n = n as f64;
                let next = (node.z * current - n.sqrt() * previous) / (n + 1.0).sqrt();
                (previous, current) = (current, next);
            }
        }
        let known: f64 = coefficients.iter().map(|a| a * a).sum();
        let rest = (square - known).max(0.0);
        let pairs = correlation
            .iter()
            .enumerate()
            .map(|(axes, &r)| {
                if axes == 0 {
                    return square;
                }
                coefficients.iter().rev().fold(rest, |sum, a| sum * r + a * a)
            })
            .collect();
        Stat { mean: coefficients[0], pairs }
    }

    /// A function of several variables, by sampling pairs of them. What pairs share is measured
    /// against independent pairs from the same points, so that it vanishes where nothing is
    /// shared: sums over many pairs would blow up what is left of the sampling error.
    fn sampled(&self, function: &dyn Fn(&[f64]) -> f64, depends: u64) -> Stat {
        let active: Vec<usize> = members(depends).collect();
        let sequence = Sequence::new(2 * active.len().max(1));
        // Axis sets that look alike to every active variable share their samples.
        let keys: Vec<Vec<u64>> = (0..self.count())
            .map(|axes| active.iter().map(|&v| self.key(v, axes)).collect())
            .collect();
        let unique: Vec<Axes> = (1..self.count())
            .filter(|&axes| keys[..axes].iter().all(|k| *k != keys[axes]))
            .collect();
        let mut shared = vec![0.0; self.count()];
        let (mut mean, mut square, mut count) = (0.0, 0.0, 0.0f64);
        let mut values = vec![0.0; self.variables.len()];
        for point in 0..POINTS {
            let mut at = |axes: Option<Axes>, first: bool| {
                for (at, &variable) in active.iter().enumerate() {
                    values[variable] = if first {
                        self.draw(variable, &sequence, point, at)
                    } else {
                        self.redraw(variable, &sequence, point, at, active.len(), axes)
                    };
                }
                function(&self.registers(&values))
            };
            let y = at(None, true);
            let apart = at(None, false);
            if !(y.is_finite() && apart.is_finite()) {
                continue;
            }
            count += 1.0;
            mean += y;
            square += y * y;
            for &axes in &unique {
                let other = at(Some(axes), false);
                if other.is_finite() {
                    shared[axes] += y * (other - apart);
                }
            }
        }
        let count = count.max(1.0);
        let mean = mean / count;
        let pairs = keys
            .iter()
            .map(|key| match keys.iter().position(|other| other == key) {
                Some(axes) if axes > 0 => mean * mean + shared[axes] / count,
                _ => square / count,
            })
            .collect();
        Stat { mean, pairs }
    }

    /// What decides how a pair of a variable is drawn.
    fn key(&self, variable: usize, axes: Axes) -> u64 {
        match &self.variables[variable] {
            Variable::Operand { correlation, .. } => correlation[axes].to_bits(),
            Variable::Coordinate { axis, .. } => (axes >> axis & 1) as u64,
        }
    }

    fn draw(&self, variable: usize, sequence: &Sequence, point: usize, at: usize) -> f64 {
        match &self.variables[variable] {
            Variable::Operand { moments, .. } => {
                let z = sequence.normal(point, at);
                moments.element(z, || below(z))
            }
            Variable::Coordinate { extent, .. } => {
                (sequence.at(point, at) * *extent as f64).floor()
            }
        }
    }

    /// The partner of [`draw`](Self::draw) whose index differs in `axes`; independent of it if
    /// there are none given.
    fn redraw(
        &self,
        variable: usize,
        sequence: &Sequence,
        point: usize,
        at: usize,
        active: usize,
        axes: Option<Axes>,
    ) -> f64 {
        match &self.variables[variable] {
            Variable::Operand { moments, correlation } => {
                let r = axes.map_or(0.0, |axes| correlation[axes]);
                let z = r * sequence.normal(point, at)
                    + (1.0 - r * r).max(0.0).sqrt() * sequence.normal(point, active + at);
                moments.element(z, || below(z))
            }
            Variable::Coordinate { axis, extent } => {
                let extent = *extent as f64;
                let first = (sequence.at(point, at) * extent).floor();
                let second = sequence.at(point, active + at);
                match axes {
                    None => (second * extent).floor(),
                    Some(axes) if axes >> axis & 1 == 0 || extent < 2.0 => first,
                    Some(_) => (first + 1.0 + (second * (extent - 1.0)).floor()) % extent,
                }
            }
        }
    }

    /// The law of an operand, if a register is one.
    fn operand_law(&self, register: u16) -> Option<&Law> {
        let Instr::Input(n) = self.instr(register) else { return None };
        match &self.variables[self.same[usize::from(n)]] {
            Variable::Operand { moments, .. } => Some(moments.law()),
            Variable::Coordinate { .. } => None,
        }
    }

    /// The law of the result: normal if it is a sum of normal operands.
    fn law(&self, register: u16) -> Law {
        let mut terms = Vec::new();
        self.terms(register, 1.0, &mut terms);
        let laws: Option<Vec<(f64, &Law)>> = terms
            .iter()
            .filter(|term| !term.factors.is_empty())
            .map(|term| match term.factors[..] {
                [(only, false)] => Some((term.factor, self.operand_law(only)?)),
                _ => None,
            })
            .collect();
        match laws.as_deref() {
            Some(laws) if laws.iter().all(|&(_, law)| *law == Law::Normal) => return Law::Normal,
            Some([(factor, law)]) if *factor > 0.0 && terms.len() == 1 => return (*law).clone(),
            _ => {}
        }
        let active: Vec<usize> = members(self.depends(register)).collect();
        let sequence = Sequence::new(active.len().max(1));
        let mut values = vec![0.0; self.variables.len()];
        let drawn = (0..POINTS)
            .map(|point| {
                for (at, &variable) in active.iter().enumerate() {
                    values[variable] = self.draw(variable, &sequence, point, at);
                }
                self.registers(&values)[usize::from(register)]
            })
            .collect();
        Law::of_values(drawn)
    }
}

/// The members of a set of variables.
fn members(set: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |variable| set >> variable & 1 == 1)
}

/// The only member of a set of variables.
fn single(set: u64) -> Option<usize> {
    (set.count_ones() == 1).then(|| set.trailing_zeros() as usize)
}

/// Splits parts into groups that share no variable.
fn group<T: Clone>(parts: &[T], depends: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
    let mut groups: Vec<(u64, Vec<T>)> = Vec::new();
    for part in parts {
        let mut all = depends(part);
        let mut members = Vec::new();
        groups.retain_mut(|(set, group)| {
            let joins = *set & depends(part) != 0;
            if joins {
                all |= *set;
                members.append(group);
            }
            !joins
        });
        members.push(part.clone());
        groups.push((all, members));
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::expr::Term;

    fn normal(dims: &[usize], mean: f64, sigma: f64) -> Moments {
        Moments::normal(&Shape::from(dims.to_vec()), mean, sigma).expect("few axes")
    }

    fn of(inputs: &[&Moments], dims: &[usize], build: impl FnOnce(&[Term]) -> Term) -> Moments {
        let same: Vec<usize> = (0..inputs.len()).collect();
        expression(&Expr::new(inputs.len(), build), dims, inputs, &same).expect("few axes")
    }

    #[track_caller]
    fn assert_near(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance * expected.abs(), "{found} not {expected}");
    }

    #[test]
    fn sums_and_products_of_independent_operands_are_exact() {
        let (a, b) = (normal(&[4, 8], 0.5, 2.0), normal(&[8], -1.0, 0.5));
        let sum = of(&[&a, &b], &[4, 8], |x| x[0].clone() * 3.0 - x[1].clone());
        assert_near(sum.mean(), 2.5, 1e-12);
        assert_near(sum.sigma(), (36.0f64 + 0.25).sqrt(), 1e-12);
        // Rows share b.
        assert_near(sum.pair(0b01), 2.5 * 2.5 + 0.25, 1e-12);
        assert_near(sum.pair(0b10), 2.5 * 2.5, 1e-12);
        assert_eq!(*sum.law(), Law::Normal);
        let product = of(&[&a, &b], &[4, 8], |x| x[0].clone() * x[1].clone());
        assert_near(product.rms(), (4.25f64 * 1.25).sqrt(), 1e-12);
        assert_near(product.pair(0b01), 0.25 * 1.25, 1e-12);
        assert_ne!(*product.law(), Law::Normal);
    }

    #[test]
    fn functions_of_one_operand_follow_mehler() {
        // relu: mean 1/sqrt(2 pi), square 1/2; arc-cosine kernel (Cho and Saul 2009) for pairs.
        let x = Moments::new(&[4, 8], 0.0, Law::Normal, None, |axes| match axes {
            0 => 1.0,
            0b01 => 0.6,
            _ => 0.0,
        })
        .expect("few axes");
        let relu = of(&[&x], &[4, 8], |x| x[0].max(0.0));
        assert_near(relu.mean(), 0.398_942_280, 1e-4);
        assert_near(relu.rms(), 0.5f64.sqrt(), 1e-4);
        let r = 0.6f64;
        let kernel = ((1.0 - r * r).sqrt() + r * (std::f64::consts::PI - r.acos()))
            / (2.0 * std::f64::consts::PI);
        assert_near(relu.pair(0b01), kernel, 1e-3);
        assert_near(relu.pair(0b10), 0.398_942_280f64.powi(2), 1e-3);
    }

    #[test]
    fn a_gate_is_one_function_times_the_other_operand() {
        let (x, g) = (normal(&[64], 0.0, 1.0), normal(&[64], 0.0, 1.0));
        let gated = of(&[&x, &g], &[64], |v| v[0].clone() * v[1].clone() * v[1].sigmoid());
        let alone = of(&[&g], &[64], |v| v[0].clone() * v[0].sigmoid());
        assert_near(gated.rms(), alone.rms(), 1e-9);
        // E[(g sigmoid(g))^2] by the symmetric pair g, -g: g^2 (s^2 + (1-s)^2)/2.
        let exact: f64 = (-8000..8000)
            .map(|n| {
                let g = f64::from(n) / 1000.0;
                let s = 1.0 / (1.0 + (-g).exp());
                super::super::normal::density(g) * (g * s).powi(2) / 1000.0
            })
            .sum();
        assert_near(alone.rms(), exact.sqrt(), 1e-6);
    }

    #[test]
    fn shared_operands_are_sampled_together() {
        let (x, y) = (normal(&[64], 0.0, 1.0), normal(&[64], 0.0, 1.0));
        // (x + y)(x - y) = x^2 - y^2: mean 0, square 2 + 2 = 4.
        let found =
            of(&[&x, &y], &[64], |v| (v[0].clone() + v[1].clone()) * (v[0].clone() - v[1].clone()));
        assert_near(found.rms(), 2.0, 0.03);
        // The same operand twice is one variable.
        let expr = Expr::new(2, |v| v[0].clone() * v[1].clone());
        let square = expression(&expr, &[64], &[&x, &x], &[0, 0]).expect("few axes");
        assert_near(square.mean(), 1.0, 1e-9);
        assert_near(square.rms(), 3f64.sqrt(), 1e-9);
    }

    #[test]
    fn masks_keep_their_share() {
        let x = normal(&[8, 8], 0.0, 1.0);
        let causal = of(&[&x], &[8, 8], |v| {
            Term::index(1).less_equal(Term::index(0)).select(v[0].clone(), 0.0)
        });
        // 36 of 64 elements are kept.
        assert_near(causal.rms(), (36.0f64 / 64.0).sqrt(), 0.02);
        let keep = Moments::independent(
            &[8, 8].into(),
            0.9,
            0.3,
            Law::of_points(vec![(0.0, 0.1), (1.0, 0.9)]),
        );
        let dropped = of(&[&x, &keep.expect("few axes")], &[8, 8], |v| v[0].clone() * v[1].clone());
        assert_near(dropped.rms(), 0.9f64.sqrt(), 1e-9);
    }
}
