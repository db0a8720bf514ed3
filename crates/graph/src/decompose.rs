//! Fused ops as core ops: their definition, and the oracle that tests their kernels.
//!
//! Intermediate tensors are F32 and have the role of the node. The last node of each result takes
//! over the fused op's scale, name, element type, conversion and random stream, so that it rounds
//! and draws as the fused op does; as backends do, result `j` draws from the stream that
//! [`Node::stream_of`] gives it.

use crate::expr::{Expr, Term};
use crate::passes::Renaming;
use crate::{AdamWConfig, Graph, Node, Op, ReduceKind, Result, Role, Shape, ValueId};

/// Rewrites a graph with every fused op that `which` chooses expanded into core ops.
///
/// # Errors
/// None for a graph whose nodes were checked when they were built; else those of
/// [`NodeBuilder::all`](crate::NodeBuilder::all).
pub fn decompose(graph: &Graph, which: impl Fn(&Node) -> bool) -> Result<Graph> {
    let mut result = graph.successor();
    let mut renamed = Renaming::new(graph);
    for node in graph.nodes() {
        let inputs = renamed.all(&node.inputs);
        let outputs = if node.op.is_fused() && which(node) {
            expand(graph, node, inputs, &mut result)?
        } else {
            result.carry(node, graph, inputs)
        };
        renamed.set_all(&node.outputs, &outputs);
    }
    renamed.writes(graph, &mut result);
    result.continue_streams_of(graph);
    Ok(result)
}

/// Adds the decomposition of a fused node of `from` to `to`, on operands of `to`.
pub(crate) fn expand(
    from: &Graph,
    node: &Node,
    inputs: Vec<ValueId>,
    to: &mut Graph,
) -> Result<Vec<ValueId>> {
    let outer = to.set_layer(node.layer);
    let role = from.value(node.outputs[0]).role;
    let results = Expansion { graph: to, from, node, x: inputs, role }.results();
    to.set_layer(outer);
    results
}

/// A node under expansion.
struct Expansion<'a> {
    graph: &'a mut Graph,
    from: &'a Graph,
    node: &'a Node,
    /// Its operands, in the new graph.
    x: Vec<ValueId>,
    role: Role,
}

impl Expansion<'_> {
    fn results(mut self) -> Result<Vec<ValueId>> {
        match self.node.op.clone() {
            Op::Softmax { mult } => self.softmax(mult),
            Op::SoftmaxGrad { mult, forward_alpha } => self.softmax_grad(mult, forward_alpha),
            Op::LayerNorm { eps } => self.norm(eps, true),
            Op::RmsNorm { eps } => self.norm(eps, false),
            Op::LayerNormGrad { eps } => self.norm_grad(eps, true),
            Op::RmsNormGrad { eps } => self.norm_grad(eps, false),
            Op::Attention { causal, logit_scale } => self.attention(causal, logit_scale),
            Op::AttentionGrad { causal, logit_scale, forward_alpha } => {
                self.attention_grad(causal, logit_scale, forward_alpha)
            }
            Op::CrossEntropy { mult, mean } => self.cross_entropy(mult, mean),
            Op::CrossEntropyGrad { mult, mean } => self.cross_entropy_grad(mult, mean),
            Op::AdamW(config) => self.adam_w(config),
            // Core ops are their own definition.
            _ => Ok(self.graph.carry(self.node, self.from, self.x)),
        }
    }

    fn shape(&self, value: ValueId) -> Shape {
        self.graph.shape(value).clone()
    }

    /// An intermediate tensor.
    fn step(&mut self, what: &str, op: Op, inputs: &[ValueId], alpha: f64) -> Result<ValueId> {
        let name = format!("{}.{what}", self.node.name);
        let builder = self.graph.op(op, inputs).named_fully(name).role(self.role);
        if alpha == 1.0 { builder.one() } else { builder.alpha(alpha).one() }
    }

    /// Result `output` of the fused node; `factor` joins its scale.
    fn last(&mut self, output: usize, op: Op, inputs: &[ValueId], factor: f64) -> Result<ValueId> {
        let value = self.from.value(self.node.outputs[output]);
        let (role, dtype, conversion) = (value.role, value.dtype, value.conversion);
        let op = match op {
            Op::Cast { .. } => Op::Cast { to: dtype },
            op => op,
        };
        let result = self
            .graph
            .op(op, inputs)
            .alpha(factor * self.node.alpha[output])
            .stored_as(dtype, conversion)
            .named_fully(self.node.name.clone())
            .one()?;
        self.graph.values[result.index()].role = role;
        if let Some(node) = self.graph.nodes.last_mut() {
            node.stream = self.node.stream_of(output);
        }
        Ok(result)
    }

    fn map(&self, shape: &Shape, inputs: usize, build: impl FnOnce(&[Term]) -> Term) -> Op {
        Op::Map { expr: Expr::new(inputs, build), shape: shape.clone() }
    }

    /// A reduction over the last axis, which stays with size 1.
    fn rows(
        &self,
        kind: ReduceKind,
        shape: &Shape,
        inputs: usize,
        build: impl FnOnce(&[Term]) -> Term,
    ) -> Op {
        let expr = Expr::new(inputs, build);
        let axes = vec![shape.rank() - 1];
        Op::Reduce { kind, expr, shape: shape.clone(), axes, keep_dims: true }
    }

    /// Largest value and sum of exponentials of each row of `term(x)`, for a stable softmax. `keep`
    /// says of which elements, from the mask if there is one; `None` for all.
    fn row_statistics(
        &mut self,
        x: ValueId,
        mask: Option<ValueId>,
        shape: &Shape,
        term: impl Fn(&Term) -> Term,
        keep: impl Fn(Option<&Term>) -> Option<Term>,
    ) -> Result<(ValueId, ValueId)> {
        // Masked elements count neither for the maximum nor for the sum. The lowest f32 stands
        // for "none" so that programs hold finite constants only.
        let masked = |value: Term, other: f64, mask: Option<&Term>| match keep(mask) {
            Some(keep) => keep.select(value, other),
            None => value,
        };
        let lowest = -f64::from(f32::MAX);
        let mut inputs = vec![x];
        inputs.extend(mask);
        let op = self
            .rows(ReduceKind::Max, shape, inputs.len(), |x| masked(term(&x[0]), lowest, x.get(1)));
        let max = self.step("max", op, &inputs, 1.0)?;
        let mut inputs = vec![x, max];
        inputs.extend(mask);
        let op = self.rows(ReduceKind::Sum, shape, inputs.len(), |x| {
            masked((term(&x[0]) - x[1].clone()).exp(), 0.0, x.get(2))
        });
        let sum = self.step("sum", op, &inputs, 1.0)?;
        Ok((max, sum))
    }

    fn softmax(&mut self, mult: f64) -> Result<Vec<ValueId>> {
        let x = self.x[0];
        let shape = self.shape(x);
        let (max, sum) = self.row_statistics(x, None, &shape, |x| x.clone() * mult, |_| None)?;
        let op = self.map(&shape, 3, |x| (x[0].clone() * mult - x[1].clone()).exp() / x[2].clone());
        Ok(vec![self.last(0, op, &[x, max, sum], 1.0)?])
    }

    fn softmax_grad(&mut self, mult: f64, forward_alpha: f64) -> Result<Vec<ValueId>> {
        let (y, dy) = (self.x[0], self.x[1]);
        let shape = self.shape(y);
        let op = self.rows(ReduceKind::Sum, &shape, 2, |x| x[0].clone() * x[1].clone());
        let dot = self.step("dot", op, &[y, dy], 1.0 / forward_alpha)?;
        let op = self.map(&shape, 3, |x| x[0].clone() * (x[1].clone() - x[2].clone()));
        Ok(vec![self.last(0, op, &[y, dy, dot], mult / forward_alpha)?])
    }

    /// Mean of each row (if it is taken off) and `1 / sqrt(mean square + eps)` of what is left.
    fn moments(&mut self, x: ValueId, eps: f64, centred: bool) -> Result<Vec<ValueId>> {
        let shape = self.shape(x);
        let mut inputs = vec![x];
        let share = 1.0 / shape.last() as f64;
        if centred {
            let op = self.rows(ReduceKind::Sum, &shape, 1, |x| x[0].clone());
            inputs.push(self.step("mean", op, &[x], share)?);
        }
        let op = self.rows(ReduceKind::Sum, &shape, inputs.len(), |x| centre(x).square());
        let square = self.step("square", op, &inputs, share)?;
        let op = self.map(&self.shape(square), 1, |x| (x[0].clone() + eps).rsqrt());
        inputs.push(self.step("rsigma", op, &[square], 1.0)?);
        Ok(inputs)
    }

    fn norm(&mut self, eps: f64, centred: bool) -> Result<Vec<ValueId>> {
        let shape = self.shape(self.x[0]);
        let mut inputs = self.moments(self.x[0], eps, centred)?;
        let own = inputs.len();
        inputs.extend(&self.x[1..]);
        let op = self.map(&shape, inputs.len(), |x| {
            let (own, parameters) = x.split_at(own);
            let mut y = normal(own);
            if let Some(weight) = parameters.first() {
                y = y * weight.clone();
            }
            if let Some(bias) = parameters.get(1) {
                y = y + bias.clone();
            }
            y
        });
        Ok(vec![self.last(0, op, &inputs, 1.0)?])
    }

    fn norm_grad(&mut self, eps: f64, centred: bool) -> Result<Vec<ValueId>> {
        let (x, dy) = (self.x[0], self.x[1]);
        let parameters = self.x[2..].to_vec();
        let shape = self.shape(x);
        let share = 1.0 / shape.last() as f64;
        let moments = self.moments(x, eps, centred)?;
        let own = moments.len();
        // Operands of what follows: x, (mean,) 1/sigma, dy, (weight).
        let mut inputs = moments.clone();
        inputs.push(dy);
        inputs.extend(parameters.first());
        let n = inputs.len();
        let upstream = |x: &[Term]| match x.get(own + 1) {
            Some(weight) => x[own].clone() * weight.clone(),
            None => x[own].clone(),
        };
        let op = self.rows(ReduceKind::Sum, &shape, n, |x| upstream(x) * normal(&x[..own]));
        let along = self.step("along", op, &inputs, share)?;
        let mut all = inputs.clone();
        all.push(along);
        if centred {
            let op = self.rows(ReduceKind::Sum, &shape, n, upstream);
            all.push(self.step("level", op, &inputs, share)?);
        }
        let op = self.map(&shape, all.len(), |x| {
            let mut gradient = upstream(&x[..n]) - normal(&x[..own]) * x[n].clone();
            if centred {
                gradient = gradient - x[n + 1].clone();
            }
            x[own - 1].clone() * gradient
        });
        let mut results = vec![self.last(0, op, &all, 1.0)?];
        let rows = |expr: Expr| Op::Reduce {
            kind: ReduceKind::Sum,
            expr,
            shape: shape.clone(),
            axes: (0..shape.rank() - 1).collect(),
            keep_dims: false,
        };
        if !parameters.is_empty() {
            let mut inputs = moments;
            inputs.push(dy);
            let expr = Expr::new(own + 1, |x| x[own].clone() * normal(&x[..own]));
            results.push(self.last(1, rows(expr), &inputs, 1.0)?);
        }
        if parameters.len() > 1 {
            results.push(self.last(2, rows(Expr::identity()), &[dy], 1.0)?);
        }
        Ok(results)
    }

    fn cross_entropy(&mut self, mult: f64, mean: bool) -> Result<Vec<ValueId>> {
        let (inputs, shape, share) = self.classes(self.x.get(2).copied(), mult, mean)?;
        let axis = shape.rank() - 1;
        let expr = Expr::new(inputs.len(), |x| {
            let loss = x[3].ln() + x[2].clone() - x[0].clone() * mult;
            let chosen = Term::index(axis).equal(x[1].clone());
            let loss = chosen.select(loss, 0.0) + refuse(&x[1], shape.last());
            counted(loss, &x[4..])
        });
        let op = Op::Reduce {
            kind: ReduceKind::Sum,
            expr,
            shape: shape.clone(),
            axes: (0..shape.rank()).collect(),
            keep_dims: false,
        };
        Ok(vec![self.last(0, op, &inputs, share)?])
    }

    fn cross_entropy_grad(&mut self, mult: f64, mean: bool) -> Result<Vec<ValueId>> {
        let d_loss = self.x[2];
        let (mut inputs, shape, share) = self.classes(self.x.get(3).copied(), mult, mean)?;
        inputs.insert(4, d_loss);
        let axis = shape.rank() - 1;
        let op = self.map(&shape, inputs.len(), |x| {
            let share = (x[0].clone() * mult - x[2].clone()).exp() / x[3].clone();
            let chosen = Term::index(axis).equal(x[1].clone());
            let gradient = (share - chosen + refuse(&x[1], shape.last())) * x[4].clone();
            counted(gradient, &x[5..])
        });
        Ok(vec![self.last(0, op, &inputs, mult * share)?])
    }

    /// Logits, targets `[.., 1]`, maxima and sums, with a mask also the mask `[.., 1]` and, for the
    /// mean, the number of positions it counts; the logits' shape; the weight of a position
    /// without a mask.
    fn classes(
        &mut self,
        mask: Option<ValueId>,
        mult: f64,
        mean: bool,
    ) -> Result<(Vec<ValueId>, Shape, f64)> {
        let (logits, targets) = (self.x[0], self.x[1]);
        let shape = self.shape(logits);
        let column = shape.reduced(&[shape.rank() - 1], true);
        let (max, sum) =
            self.row_statistics(logits, None, &shape, |x| x.clone() * mult, |_| None)?;
        let targets = self.reshape(targets, column.clone())?;
        let mut inputs = vec![logits, targets, max, sum];
        let Some(mask) = mask else {
            let share = if mean { 1.0 / column.numel() as f64 } else { 1.0 };
            return Ok((inputs, shape, share));
        };
        let mask = self.reshape(mask, column.clone())?;
        inputs.push(mask);
        if mean {
            let op = Op::Reduce {
                kind: ReduceKind::Sum,
                expr: Expr::new(1, |x| x[0].equal(0.0).select(0.0, 1.0)),
                axes: (0..column.rank()).collect(),
                shape: column,
                keep_dims: false,
            };
            inputs.push(self.step("count", op, &[mask], 1.0)?);
        }
        Ok((inputs, shape, 1.0))
    }

    fn reshape(&mut self, value: ValueId, shape: Shape) -> Result<ValueId> {
        if *self.graph.shape(value) == shape {
            return Ok(value);
        }
        self.step("view", Op::Reshape { shape }, &[value], 1.0)
    }

    fn permute(&mut self, value: ValueId, axes: &[usize]) -> Result<ValueId> {
        self.step("permute", Op::Permute { axes: axes.to_vec() }, &[value], 1.0)
    }

    fn adam_w(&mut self, config: AdamWConfig) -> Result<Vec<ValueId>> {
        let &[w, gradient, m, v, lr, step, factor] = &self.x[..] else {
            return Ok(self.graph.carry(self.node, self.from, self.x.clone()));
        };
        let AdamWConfig { beta1, beta2, eps, decay, lr_scale } = config;
        let shape = self.shape(w);
        // 1 - beta^t by tanh, without the cancellation of the plain formula:
        // 1 - e^x = -2 T / (1 - T) with T = tanh(x / 2).
        let correction = |beta: f64| {
            Expr::new(1, |step| {
                if beta <= 0.0 {
                    return Term::constant(1.0);
                }
                let half = ((step[0].clone() + 1.0) * (0.5 * beta.ln())).tanh();
                half.clone() * -2.0 / (Term::constant(1.0) - half)
            })
        };
        let scalar = |expr| Op::Map { expr, shape: Shape::scalar() };
        let first = self.step("correction1", scalar(correction(beta1)), &[step], 1.0)?;
        let second = self.step("correction2", scalar(correction(beta2)), &[step], 1.0)?;
        let skip = |x: &Term| x.equal(0.0);
        // Operands m or v, gradient, factor.
        let new_m = |m: &Term, g: &Term, factor: &Term| {
            m.clone() * beta1 + g.clone() * factor.clone() * (1.0 - beta1)
        };
        let new_v = |v: &Term, g: &Term, factor: &Term| {
            v.clone() * beta2 + (g.clone() * factor.clone()).square() * (1.0 - beta2)
        };
        let op = self.map(&shape, 8, |x| {
            let [w, g, m, v, lr, factor, first, second] = x else { return Term::constant(0.0) };
            let root = (new_v(v, g, factor) / second.clone()).sqrt() + eps;
            let update = new_m(m, g, factor) / first.clone() / root;
            let new = w.clone() * (Term::constant(1.0) - lr.clone() * decay)
                - lr.clone() * lr_scale * update;
            skip(factor).select(w.clone(), new)
        });
        let w = self.last(0, op, &[w, gradient, m, v, lr, factor, first, second], 1.0)?;
        let moment = |build: &dyn Fn(&Term, &Term, &Term) -> Term| {
            Expr::new(3, |x| skip(&x[2]).select(x[0].clone(), build(&x[0], &x[1], &x[2])))
        };
        let op = Op::Map { expr: moment(&new_m), shape: shape.clone() };
        let m = self.last(1, op, &[m, gradient, factor], 1.0)?;
        let op = Op::Map { expr: moment(&new_v), shape };
        let v = self.last(2, op, &[v, gradient, factor], 1.0)?;
        Ok(vec![w, m, v])
    }
}

mod attention;

/// `x` or `x - mean`, from the operands that [`Expansion::moments`] gives.
fn centre(x: &[Term]) -> Term {
    match x {
        [x, mean, ..] => x.clone() - mean.clone(),
        [x] => x.clone(),
        [] => Term::constant(0.0),
    }
}

/// `(x - mean) / sigma` from `x, 1/sigma` or `x, mean, 1/sigma`.
fn normal(x: &[Term]) -> Term {
    match x.split_last() {
        Some((rsigma, rest)) => centre(rest) * rsigma.clone(),
        None => Term::constant(0.0),
    }
}

/// `value` at a position that the mask counts, as a share of their number if that is given; else 0.
fn counted(value: Term, mask: &[Term]) -> Term {
    match mask {
        [] => value,
        [mask] => mask.equal(0.0).select(0.0, value),
        [mask, count, ..] => mask.equal(0.0).select(0.0, value / count.max(1.0)),
    }
}

/// 0 for a target among `classes`, else NaN (the root of a negative number).
fn refuse(target: &Term, classes: usize) -> Term {
    (Term::constant(classes as f64 - 1.0) - target.clone()).min(0.0).sqrt()
}
