//! The rule of every op.

use super::expression::expression;
use super::law::Law;
use super::moments::{Axes, Moments, TOKEN, Tokens, subsets};
use super::{Ids, attention, loss, norm, update};
use crate::{Distribution, Graph, Node, Op, ReduceKind, Shape, ValueId};

/// A node whose results are to be predicted.
pub(crate) struct Rule<'a> {
    pub graph: &'a Graph,
    pub node: &'a Node,
    pub values: &'a [Option<Moments>],
    pub ids: &'a [Option<Ids>],
}

impl Rule<'_> {
    /// Moments of a float operand.
    pub(crate) fn x(&self, operand: usize) -> Option<&Moments> {
        self.values[self.node.inputs.get(operand)?.index()].as_ref()
    }

    pub(crate) fn shape(&self, value: ValueId) -> &Shape {
        self.graph.shape(value)
    }

    /// What is known of an operand of ids, which choose from `count` rows.
    pub(crate) fn ids(&self, operand: usize, count: usize) -> Ids {
        let known = self.node.inputs.get(operand).and_then(|input| self.ids[input.index()].clone());
        known.unwrap_or_else(|| Ids::uniform(count))
    }

    /// One entry for each result; `None` if an operand is unknown.
    pub(crate) fn results(&self) -> Option<Vec<Option<Moments>>> {
        let alpha = &self.node.alpha;
        let one = |moments: Option<Moments>| Some(vec![moments.map(|m| m.scaled(alpha[0]))]);
        match &self.node.op {
            Op::Slot(_) => None,
            Op::MatMul { transpose_left, transpose_right } => {
                one(self.matmul(*transpose_left, *transpose_right))
            }
            Op::Map { expr, shape } => one(self.map(expr, shape)),
            Op::Reduce { kind, expr, shape, axes, keep_dims } => {
                let inner = self.map(expr, shape)?;
                one(match kind {
                    ReduceKind::Sum => inner.summed(axes, *keep_dims),
                    ReduceKind::Max => largest(&inner, axes, *keep_dims),
                })
            }
            Op::Gather => one(self.gather()),
            Op::ScatterAdd { rows } => one(self.scatter_add(*rows)),
            Op::Permute { axes } => one(self.x(0)?.permuted(axes)),
            Op::Reshape { shape } => one(self.x(0)?.reshaped(shape)),
            Op::Slice { .. } => {
                let x = self.x(0)?;
                let dims = self.shape(self.node.outputs[0]).dims();
                one(Moments::new(dims, x.mean(), x.law().clone(), x.tokens(), |axes| x.pair(axes)))
            }
            Op::Concat { axis } => one(self.concat(*axis)),
            Op::Cast { .. } => one(self.x(0).cloned()),
            Op::Random { distribution, shape } => one(random(*distribution, shape)),
            Op::Softmax { mult } => one(loss::softmax(self.x(0)?, *mult)),
            Op::SoftmaxGrad { mult, forward_alpha } => {
                let s = self.x(0)?.clone().scaled(1.0 / forward_alpha);
                one(loss::softmax_grad(&s, self.x(1)?).map(|m| m.scaled(*mult)))
            }
            Op::LayerNorm { eps } => one(norm::norm(self, *eps, true)),
            Op::RmsNorm { eps } => one(norm::norm(self, *eps, false)),
            Op::LayerNormGrad { eps } => Some(self.scaled(norm::norm_grad(self, *eps, true)?)),
            Op::RmsNormGrad { eps } => Some(self.scaled(norm::norm_grad(self, *eps, false)?)),
            Op::Attention { causal, logit_scale } => {
                let view = attention::View::new(self, *causal, *logit_scale)?;
                Some(self.scaled(vec![view.output(), view.log_sum_exp()]))
            }
            Op::AttentionGrad { causal, logit_scale, .. } => {
                let view = attention::View::new(self, *causal, *logit_scale)?;
                Some(self.scaled(view.gradients(self.x(5)?)))
            }
            Op::CrossEntropy { mult, mean } => one(loss::cross_entropy(self.x(0)?, *mult, *mean)),
            Op::CrossEntropyGrad { mult, mean } => {
                let classes = self.x(0)?.dims().last().copied()?;
                let ids = self.ids(1, classes);
                one(loss::cross_entropy_grad(self.x(0)?, &ids, self.x(2)?, *mult, *mean))
            }
            Op::AdamW(config) => Some(self.scaled(update::adam_w(self, config)?)),
        }
    }

    fn scaled(&self, results: Vec<Option<Moments>>) -> Vec<Option<Moments>> {
        let alpha = self.node.alpha.iter();
        results.into_iter().zip(alpha).map(|(m, &alpha)| Some(m?.scaled(alpha))).collect()
    }

    fn map(&self, expr: &crate::expr::Expr, shape: &Shape) -> Option<Moments> {
        let inputs = &self.node.inputs;
        let ids: Vec<Moments> = inputs
            .iter()
            .map(|input| {
                let ids = self.ids[input.index()].clone().unwrap_or_else(|| Ids::uniform(1));
                id_moments(self.shape(*input), &ids)
            })
            .collect::<Option<_>>()?;
        let operands: Vec<&Moments> = inputs
            .iter()
            .zip(&ids)
            .map(|(input, ids)| match self.graph.value(*input).dtype {
                crate::DType::U32 => self.values[input.index()].as_ref().or(Some(ids)),
                crate::DType::Float(_) => self.values[input.index()].as_ref(),
            })
            .collect::<Option<_>>()?;
        let same: Vec<usize> = inputs
            .iter()
            .map(|input| inputs.iter().position(|other| other == input).unwrap_or(0))
            .collect();
        expression(expr, shape.dims(), &operands, &same)
    }

    fn matmul(&self, transpose_left: bool, transpose_right: bool) -> Option<Moments> {
        let (left, right) = (self.x(0)?, self.x(1)?);
        let dims = self.shape(self.node.outputs[0]).dims();
        let (lead_l, lead_r) = (left.dims().len() - 2, right.dims().len() - 2);
        let bit = |axis: usize| 1 << axis;
        let (m, k_l) = if transpose_left { (1, 0) } else { (0, 1) };
        let (k_r, n) = if transpose_right { (1, 0) } else { (0, 1) };
        let k = left.extent(lead_l + k_l);
        let batch = |axes: Axes, lead: usize| axes & (bit(lead) - 1);
        let pair_axes = |axes: Axes, k_differs: bool| {
            let of = |axis: usize, to: usize| if axes & bit(axis) != 0 { bit(to) } else { 0 };
            let differs = |axis: usize| if k_differs { bit(axis) } else { 0 };
            let l = batch(axes, lead_l) | of(lead_l, lead_l + m) | differs(lead_l + k_l);
            let r = batch(axes, lead_r) | of(lead_l + 1, lead_r + n) | differs(lead_r + k_r);
            (l, r)
        };
        let text = Tokens::joined(left.tokens(), right.tokens());
        let along = |operand: &Moments, axis: usize| {
            let same = |own: &Tokens| text.is_some_and(|text| text.source == own.source);
            operand.tokens().filter(same).is_some_and(|own| own.axes >> axis & 1 == 1)
        };
        // The result is along the text if one operand is, and nothing is summed along it.
        let of_left = along(left, lead_l + m);
        let of_right = along(right, lead_r + n);
        let summed = along(left, lead_l + k_l) || along(right, lead_r + k_r);
        let lead = (0..lead_l).filter(|&axis| along(left, axis)).map(bit).sum::<Axes>();
        let tokens = text.filter(|_| !(summed || of_left && of_right)).and_then(|text| {
            let own = if of_left { bit(lead_l) } else { 0 };
            text.on(lead | own | if of_right { bit(lead_l + 1) } else { 0 })
        });
        let pair = |axes: Axes, k_differs: bool| {
            let (l, r) = pair_axes(axes, k_differs);
            let both =
                |token: Axes| left.pair_under(text, l | token) * right.pair_under(text, r | token);
            if tokens.is_some() {
                return both(axes & TOKEN);
            }
            let differs = |operand: &Moments, axes: Axes| {
                operand.tokens().is_some_and(|own| own.axes & axes != 0)
            };
            match text {
                Some(text) if differs(left, l) || differs(right, r) => {
                    text.collision * both(0) + (1.0 - text.collision) * both(TOKEN)
                }
                _ => both(0),
            }
        };
        let law = if k < 2.0 { left.law().clone() } else { Law::Normal };
        Moments::new(dims, k * left.mean() * right.mean(), law, tokens, |axes| {
            k * pair(axes, false) + k * (k - 1.0) * pair(axes, true)
        })
    }

    fn gather(&self) -> Option<Moments> {
        let table = self.x(0)?;
        let dims = self.shape(self.node.outputs[0]).dims();
        let ids = self.ids(1, table.dims()[0]);
        let last: Axes = 1 << (dims.len() - 1);
        // Rows of a table are along the text of the ids; rows of an activation stay along its own.
        let own = table.tokens().filter(|tokens| tokens.axes == 1);
        let tokens = match own {
            Some(tokens) => tokens.on(last - 1),
            None => ids.tokens(last - 1),
        };
        Moments::new(dims, table.mean(), table.law().clone(), tokens, |axes| {
            let column: Axes = if axes & last != 0 { 0b10 } else { 0 };
            let (same, other) = (table.pair(column), |token| table.pair(column | 1 | token));
            match tokens {
                _ if axes & (last - 1) == 0 => same,
                Some(_) if own.is_some() => {
                    let c = ids.collision();
                    c * same + (1.0 - c) * other(axes & TOKEN)
                }
                Some(_) if axes & TOKEN != 0 => other(0),
                Some(_) => same,
                None => {
                    let c = ids.collision();
                    c * same + (1.0 - c) * other(0)
                }
            }
        })
    }

    fn scatter_add(&self, rows: usize) -> Option<Moments> {
        let updates = self.x(0)?;
        let ids = self.ids(1, rows);
        let last = updates.dims().len() - 1;
        let positions = (1 << last) - 1;
        let rows = rows as f64;
        let count = |axes: Axes| -> f64 {
            (0..last)
                .map(|axis| {
                    let extent = updates.extent(axis);
                    if axes >> axis & 1 == 1 { extent - 1.0 } else { 1.0 }
                })
                .product()
        };
        let total: f64 = (0..last).map(|axis| updates.extent(axis)).product();
        let dims = self.shape(self.node.outputs[0]).dims();
        let mean = updates.mean() * total / rows;
        // Updates of one row share their token, if it is the ids that are the text.
        let text = updates.tokens();
        let is_own = text.is_some_and(|text| Some(text.source) == ids.source());
        let update = |axes: Axes, same_row: bool, token: Axes| match (is_own, same_row) {
            (true, true) => updates.pair(axes),
            (true, false) => updates.pair(axes | TOKEN),
            _ => updates.pair(axes | token),
        };
        let apart: f64 = subsets(positions)
            .filter(|&apart| apart != 0)
            .map(|apart| {
                count(apart)
                    * Tokens::mean(text, apart, |axes| update(axes & !TOKEN, true, axes & TOKEN))
            })
            .sum::<f64>()
            / (total - 1.0).max(1.0);
        let law = row_law(&ids, rows, total, updates.pair(0), apart);
        // Rows that take the place of positions stay along the text.
        let tokens = text.filter(|_| !is_own && ids.source().is_some()).and_then(|text| text.on(1));
        Moments::new(dims, mean, law, tokens, |axes| {
            let column = if axes & 0b10 != 0 { 1 << last } else { 0 };
            let same_row = axes & 1 == 0;
            let share = |apart: bool| match (apart, same_row) {
                (false, true) => 1.0 / rows,
                (false, false) => 0.0,
                (true, true) => ids.collision() / rows,
                (true, false) => (1.0 - ids.collision()) / (rows * (rows - 1.0).max(1.0)),
            };
            let pair = |apart: Axes| {
                if tokens.is_some() && !same_row {
                    return update(apart | column, same_row, axes & TOKEN);
                }
                Tokens::mean(text, apart | column, |axes| {
                    update(axes & !TOKEN, same_row, axes & TOKEN)
                })
            };
            subsets(positions)
                .map(|apart| total * count(apart) * share(apart != 0) * pair(apart))
                .sum()
        })
    }

    fn concat(&self, axis: usize) -> Option<Moments> {
        let parts: Vec<&Moments> =
            (0..self.node.inputs.len()).map(|n| self.x(n)).collect::<Option<_>>()?;
        let dims = self.shape(self.node.outputs[0]).dims();
        let total = dims[axis] as f64;
        let share = |part: &Moments| part.extent(axis) / total;
        let mean = parts.iter().map(|part| share(part) * part.mean()).sum();
        let mixed: Vec<_> = parts.iter().map(|part| (share(part), *part)).collect();
        let same = parts.windows(2).all(|two| two[0].tokens() == two[1].tokens());
        let tokens = parts.first().and_then(|part| part.tokens()).filter(|_| same);
        let of = |part: &Moments, axes| match tokens {
            Some(_) => part.pair(axes),
            None => part.mean_pair(axes),
        };
        Moments::new(dims, mean, Law::mixture(&mixed), tokens, |axes| {
            if axes >> axis & 1 == 0 {
                return parts.iter().map(|part| share(part) * of(part, axes)).sum();
            }
            // Two different places along the axis: in one part or in two independent ones.
            let pairs = total * (total - 1.0).max(1.0);
            let within: f64 = parts
                .iter()
                .map(|part| part.extent(axis) * (part.extent(axis) - 1.0) * of(part, axes))
                .sum();
            let sum: f64 = parts.iter().map(|part| part.extent(axis) * part.mean()).sum();
            let own: f64 = parts.iter().map(|part| (part.extent(axis) * part.mean()).powi(2)).sum();
            (within + sum * sum - own) / pairs
        })
    }
}

/// Ids as numbers, for expressions that compare them.
fn id_moments(shape: &Shape, ids: &Ids) -> Option<Moments> {
    let points: Vec<(f64, f64)> =
        ids.frequencies().iter().enumerate().map(|(id, &p)| (id as f64, p)).collect();
    let mean: f64 = points.iter().map(|(id, p)| id * p).sum();
    let variance: f64 = points.iter().map(|(id, p)| p * (id - mean).powi(2)).sum();
    Moments::new(shape.dims(), mean, Law::of_points(points), None, |axes| {
        mean * mean + if axes == 0 { variance } else { 0.0 }
    })
}

/// The law of sums of `total` updates over `rows`: a row of probability `p` gets a Poisson number of
/// them, `n` with energy `n own + n (n-1) apart`.
fn row_law(ids: &Ids, rows: f64, total: f64, own: f64, apart: f64) -> Law {
    let energy = |n: f64| (n * own + n * (n - 1.0).max(0.0) * apart).max(0.0).sqrt();
    let each = 1.0 / rows;
    // Rows beyond the last id that occurs stay zero.
    let mut deviations = vec![(1.0 - each * ids.count() as f64, 0.0)];
    for &p in ids.frequencies() {
        let rate = total * p;
        if rate == 0.0 || rate > 30.0 {
            deviations.push((each, energy(rate)));
            continue;
        }
        let mut probability = each * (-rate).exp();
        for hits in 0..80 {
            if probability > 1e-6 * each {
                deviations.push((probability, energy(f64::from(hits))));
            }
            probability *= rate / f64::from(hits + 1);
        }
    }
    Law::of_deviations(&deviations)
}

fn random(distribution: Distribution, shape: &Shape) -> Option<Moments> {
    match distribution {
        Distribution::Normal { mean, std } => Moments::normal(shape, mean, std),
        Distribution::Uniform { low, high } => {
            let law = Law::of_values((0..1024).map(f64::from).collect());
            let sigma = (high - low) / 12f64.sqrt();
            Moments::independent(shape, 0.5 * (low + high), sigma, law)
        }
        Distribution::Bernoulli { p } => {
            let law = Law::of_points(vec![(0.0, 1.0 - p), (1.0, p)]);
            Moments::independent(shape, p, (p * (1.0 - p)).sqrt(), law)
        }
    }
}

/// The largest of normal numbers: what they share, and of the rest the median of the maximum, the
/// quantile `2^(-1/n)`; its own spread is left out.
fn largest(x: &Moments, axes: &[usize], keep_dims: bool) -> Option<Moments> {
    let set: Axes = axes.iter().map(|axis| 1 << axis).sum();
    let count: f64 = axes.iter().map(|&axis| x.extent(axis)).product();
    let own = (x.pair(0) - x.mean_pair(set)).max(0.0).sqrt();
    let highest = own * super::normal::quantile(0.5f64.powf(1.0 / count.max(1.0)));
    // The mean of the parts that are left, shifted.
    let mean = x.summed(axes, keep_dims)?.scaled(1.0 / count);
    let shifted = Moments::constant(&mean.dims().to_vec().into(), highest)?;
    let sum = crate::expr::Expr::new(2, |v| v[0].clone() + v[1].clone());
    let dims = mean.dims().to_vec();
    expression(&sum, &dims, &[&mean, &shifted], &[0, 1])
}
