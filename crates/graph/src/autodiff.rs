//! Reverse-mode differentiation as a pass that appends the backward nodes to the graph.
//!
//! Each node's gradient for operand `i` is `beta[i]` times the plain gradient of its function, so
//! that the scales of unit scaling need no code of their own here. Backward nodes are named
//! `grad(<forward node>)`, belong to the forward node's layer, and their results have the role
//! [`Role::ActivationGrad`], or [`Role::WeightGrad`] where they are a parameter's gradient.

use crate::expr::{Expr, Term};
use crate::{Error, Graph, Node, NodeId, Op, ReduceKind, Result, Role, Shape, ValueId};

/// Appends the backward pass of `loss` and gives the gradient of each value of `parameters`, in
/// their order.
///
/// `d_loss` is the upstream gradient, a scalar (a loss scale, say); `None` stands for 1.
///
/// # Errors
/// [`Error::LossNotScalar`]; [`Error::NoPath`] if the loss does not depend on a parameter;
/// [`Error::NotDifferentiable`] for an op without gradient on a path to a parameter.
pub fn gradients(
    graph: &mut Graph,
    loss: ValueId,
    parameters: &[ValueId],
    d_loss: Option<ValueId>,
) -> Result<Vec<ValueId>> {
    if graph.shape(loss).rank() != 0 {
        return Err(Error::LossNotScalar {
            value: graph.value_name(loss),
            shape: graph.shape(loss).clone(),
        });
    }
    let seed = match d_loss {
        Some(seed) => seed,
        None => {
            let expr = Expr::new(0, |_| Term::constant(1.0));
            let shape = Shape::scalar();
            graph.op(Op::Map { expr, shape }, &[]).named("d_loss").role(Role::Statistic).one()?
        }
    };
    let wanted = dependents(graph, parameters);
    let mut pass = Backward {
        adjoints: vec![Vec::new(); graph.values.len()],
        wanted,
        is_parameter: vec![false; graph.values.len()],
        graph,
    };
    for &parameter in parameters {
        pass.is_parameter[parameter.index()] = true;
    }
    pass.adjoints[loss.index()].push(seed);
    for index in (0..=pass.graph.value(loss).producer.index()).rev() {
        pass.node(NodeId::new(index))?;
    }
    parameters
        .iter()
        .map(|&parameter| {
            pass.total(parameter)?
                .ok_or_else(|| Error::NoPath { value: pass.graph.value_name(parameter) })
        })
        .collect()
}

/// For every value of the graph whether it depends on one of `parameters`.
fn dependents(graph: &Graph, parameters: &[ValueId]) -> Vec<bool> {
    let mut depends = vec![false; graph.values.len()];
    for &parameter in parameters {
        depends[parameter.index()] = true;
    }
    for node in &graph.nodes {
        if node.inputs.iter().any(|input| depends[input.index()]) {
            for output in &node.outputs {
                depends[output.index()] = true;
            }
        }
    }
    depends
}

struct Backward<'g> {
    graph: &'g mut Graph,
    /// Gradients that have reached each forward value and are not yet summed.
    adjoints: Vec<Vec<ValueId>>,
    wanted: Vec<bool>,
    is_parameter: Vec<bool>,
}

impl Backward<'_> {
    /// The sum of what has reached a value.
    fn total(&mut self, value: ValueId) -> Result<Option<ValueId>> {
        let parts = std::mem::take(&mut self.adjoints[value.index()]);
        let sum = match parts.len() {
            0 => return Ok(None),
            1 => parts[0],
            _ => {
                let role = self.role_of(value);
                let name = format!("grad({}).sum", self.graph.value_name(value));
                self.graph
                    .map(&parts, |x| {
                        x[1..].iter().fold(x[0].clone(), |sum, part| sum + part.clone())
                    })?
                    .named_fully(name)
                    .role(role)
                    .one()?
            }
        };
        self.adjoints[value.index()].push(sum);
        Ok(Some(sum))
    }

    fn role_of(&self, value: ValueId) -> Role {
        if self.is_parameter[value.index()] { Role::WeightGrad } else { Role::ActivationGrad }
    }

    fn node(&mut self, id: NodeId) -> Result<()> {
        let node = self.graph.node(id).clone();
        if !node.inputs.iter().any(|input| self.wanted[input.index()]) {
            return Ok(());
        }
        let Some(dy) = self.total(node.outputs[0])? else { return Ok(()) };
        let outer = self.graph.set_layer(node.layer);
        let result = Rule { pass: self, node: &node, dy }.apply();
        self.graph.set_layer(outer);
        result
    }
}

/// The gradient rule of one node.
struct Rule<'r, 'g> {
    pass: &'r mut Backward<'g>,
    node: &'r Node,
    dy: ValueId,
}

impl Rule<'_, '_> {
    fn wants(&self, operand: usize) -> bool {
        self.pass.wanted[self.node.inputs[operand].index()]
    }

    fn shape(&self, operand: usize) -> Shape {
        self.pass.graph.shape(self.node.inputs[operand]).clone()
    }

    fn give(&mut self, operand: usize, gradient: ValueId) {
        self.pass.adjoints[self.node.inputs[operand].index()].push(gradient);
    }

    /// Adds a node with one result, the gradient of `operand`.
    fn emit(&mut self, operand: usize, op: Op, inputs: &[ValueId], alpha: f64) -> Result<ValueId> {
        let role = self.pass.role_of(self.node.inputs[operand]);
        let name = format!("grad({})", self.node.name);
        self.pass.graph.op(op, inputs).alpha(alpha).named_fully(name).role(role).one()
    }

    /// Adds a fused gradient node whose results are the gradients of `operands`, each times its
    /// backward scale.
    fn emit_all(&mut self, op: Op, inputs: &[ValueId], operands: &[usize]) -> Result<()> {
        let alphas = operands.iter().map(|&operand| self.node.beta[operand]).collect();
        let name = format!("grad({})", self.node.name);
        let graph = &mut *self.pass.graph;
        let gradients = graph
            .op(op, inputs)
            .alphas(alphas)
            .named_fully(name)
            .role(Role::ActivationGrad)
            .all()?;
        for (&operand, gradient) in operands.iter().zip(gradients) {
            let role = self.pass.role_of(self.node.inputs[operand]);
            self.pass.graph.values[gradient.index()].role = role;
            self.give(operand, gradient);
        }
        Ok(())
    }

    fn apply(mut self) -> Result<()> {
        let node = self.node;
        let dy = self.dy;
        let x = |operand: usize| node.inputs[operand];
        match &node.op {
            Op::Slot(_) | Op::Random { .. } => Ok(()),
            Op::MatMul { transpose_left, transpose_right } => {
                self.matmul(*transpose_left, *transpose_right)
            }
            Op::Map { expr, shape } => self.expression(expr, shape, dy),
            Op::Reduce { kind: ReduceKind::Sum, expr, shape, axes, .. } => {
                let kept = shape.reduced(axes, true);
                let dy = self.pass.graph.reshape(dy, kept)?;
                self.expression(expr, shape, dy)
            }
            Op::Gather => {
                let rows = self.shape(0).dims()[0];
                let beta = node.beta[0];
                let gradient = self.emit(0, Op::ScatterAdd { rows }, &[dy, x(1)], beta)?;
                self.give(0, gradient);
                Ok(())
            }
            Op::ScatterAdd { rows } => self.scatter_add(*rows),
            Op::Permute { .. } | Op::Reshape { .. } | Op::Slice { .. } | Op::Concat { .. } => {
                self.movement()
            }
            // Straight-through: the gradient passes a rounding unchanged.
            Op::Cast { .. } => {
                let mut gradient = dy;
                if node.beta[0] != 1.0 {
                    let shape = self.shape(0);
                    let op = Op::Map { expr: Expr::identity(), shape };
                    gradient = self.emit(0, op, &[dy], node.beta[0])?;
                }
                self.give(0, gradient);
                Ok(())
            }
            Op::Softmax { mult } => {
                let op = Op::SoftmaxGrad { mult: *mult, forward_alpha: node.alpha[0] };
                self.emit_all(op, &[node.outputs[0], dy], &[0])
            }
            Op::LayerNorm { eps } => self.norm(Op::LayerNormGrad { eps: *eps }),
            Op::RmsNorm { eps } => self.norm(Op::RmsNormGrad { eps: *eps }),
            Op::Attention { causal, logit_scale } => {
                let op = Op::AttentionGrad {
                    causal: *causal,
                    logit_scale: *logit_scale,
                    forward_alpha: node.alpha[0],
                };
                let mut inputs = vec![x(0), x(1), x(2), node.outputs[0], node.outputs[1], dy];
                inputs.extend(node.inputs.get(3));
                self.emit_all(op, &inputs, &[0, 1, 2])
            }
            Op::CrossEntropy { mult, mean } => {
                let op = Op::CrossEntropyGrad { mult: *mult, mean: *mean };
                let mut inputs = vec![x(0), x(1), dy];
                inputs.extend(node.inputs.get(2));
                self.emit_all(op, &inputs, &[0])
            }
            op => Err(Error::NotDifferentiable { node: node.name.clone(), op: op.name() }),
        }
    }

    /// Each update's gradient is the gradient of its row; 0 where the row was dropped, for which
    /// a gather gives NaN.
    fn scatter_add(&mut self, rows: usize) -> Result<()> {
        let ids = self.node.inputs[1];
        let gathered = self.emit(0, Op::Gather, &[self.dy, ids], self.node.beta[0])?;
        let shape = self.shape(0);
        let column = shape.reduced(&[shape.rank() - 1], true);
        let ids = self.pass.graph.reshape(ids, column)?;
        let expr = Expr::new(2, |x| x[1].less(rows as f64).select(x[0].clone(), 0.0));
        let gradient = self.emit(0, Op::Map { expr, shape }, &[gathered, ids], 1.0)?;
        self.give(0, gradient);
        Ok(())
    }

    fn norm(&mut self, op: Op) -> Result<()> {
        let mut inputs = vec![self.node.inputs[0], self.dy];
        inputs.extend(&self.node.inputs[1..]);
        let operands: Vec<usize> = (0..self.node.inputs.len()).collect();
        self.emit_all(op, &inputs, &operands)
    }

    fn matmul(&mut self, transpose_left: bool, transpose_right: bool) -> Result<()> {
        let (mut left, right, mut dy) = (self.node.inputs[0], self.node.inputs[1], self.dy);
        let beta = self.node.beta.clone();
        let product =
            |transpose_left, transpose_right| Op::MatMul { transpose_left, transpose_right };
        if self.wants(0) {
            // Y = A B: dA = dY B^T; for a transposed left operand its transpose, B dY^T.
            let gradient = if transpose_left {
                self.emit(0, product(transpose_right, true), &[right, dy], beta[0])?
            } else {
                self.emit(0, product(false, !transpose_right), &[dy, right], beta[0])?
            };
            self.give(0, gradient);
        }
        if self.wants(1) {
            // One matrix for a whole batch: the batch joins the contracted rows.
            if self.shape(1).rank() == 2 && self.shape(0).rank() > 2 {
                for value in [&mut left, &mut dy] {
                    let shape = self.pass.graph.shape(*value).clone();
                    let flat = [shape.rows(), shape.last()];
                    *value = self.pass.graph.reshape(*value, flat)?;
                }
            }
            // dB = A^T dY; for a transposed right operand its transpose, dY^T A.
            let gradient = if transpose_right {
                self.emit(1, product(true, transpose_left), &[dy, left], beta[1])?
            } else {
                self.emit(1, product(!transpose_left, false), &[left, dy], beta[1])?
            };
            self.give(1, gradient);
        }
        Ok(())
    }

    /// Gradients of an element-wise expression over `shape`, summed over broadcast axes.
    fn expression(&mut self, expr: &Expr, shape: &Shape, dy: ValueId) -> Result<()> {
        for (operand, gradient) in expr.gradients().into_iter().enumerate() {
            if !self.wants(operand) {
                continue;
            }
            // Keep only the operands that the derivative reads.
            let mut all = self.node.inputs.clone();
            all.push(dy);
            let used: Vec<usize> = (0..all.len()).filter(|&n| gradient.uses()[n]).collect();
            let mut map = vec![0; all.len()];
            for (new, &old) in used.iter().enumerate() {
                map[old] = new;
            }
            let gradient = gradient.with_inputs(used.len(), &map);
            let inputs: Vec<ValueId> = used.iter().map(|&n| all[n]).collect();
            let own = self.shape(operand);
            let axes = own.broadcast_axes(shape);
            let beta = self.node.beta[operand];
            let result = if axes.is_empty() {
                let op = Op::Map { expr: gradient, shape: shape.clone() };
                self.emit(operand, op, &inputs, beta)?
            } else {
                let op = Op::Reduce {
                    kind: ReduceKind::Sum,
                    expr: gradient,
                    shape: shape.clone(),
                    axes,
                    keep_dims: false,
                };
                let sum = self.emit(operand, op, &inputs, beta)?;
                self.pass.graph.reshape(sum, own)?
            };
            self.give(operand, result);
        }
        Ok(())
    }

    fn movement(&mut self) -> Result<()> {
        let dy = self.dy;
        match &self.node.op {
            Op::Reshape { .. } => {
                let shape = self.shape(0);
                let dx = self.emit(0, Op::Reshape { shape }, &[dy], 1.0)?;
                self.give(0, dx);
            }
            Op::Permute { axes } => {
                let mut inverse = vec![0; axes.len()];
                for (to, &from) in axes.iter().enumerate() {
                    inverse[from] = to;
                }
                let dx = self.emit(0, Op::Permute { axes: inverse }, &[dy], 1.0)?;
                self.give(0, dx);
            }
            Op::Slice { axis, start, len } => {
                let shape = self.shape(0);
                let mut parts = Vec::new();
                for (before, extent) in [(true, *start), (false, shape.dims()[*axis] - start - len)]
                {
                    if !before {
                        parts.push(dy);
                    }
                    if extent > 0 {
                        let mut dims = shape.dims().to_vec();
                        dims[*axis] = extent;
                        let zero = Expr::new(0, |_| Term::constant(0.0));
                        let op = Op::Map { expr: zero, shape: dims.into() };
                        parts.push(self.emit(0, op, &[], 1.0)?);
                    }
                }
                let dx = self.emit(0, Op::Concat { axis: *axis }, &parts, 1.0)?;
                self.give(0, dx);
            }
            Op::Concat { axis } => {
                let mut start = 0;
                for operand in 0..self.node.inputs.len() {
                    let len = self.shape(operand).dims()[*axis];
                    if self.wants(operand) {
                        let op = Op::Slice { axis: *axis, start, len };
                        let dx = self.emit(operand, op, &[dy], 1.0)?;
                        self.give(operand, dx);
                    }
                    start += len;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
