//! The graph: an arena of nodes and values, and the builder that checks every op at once.

use crate::infer::infer;
use crate::passes::validate::is_conversion;
use crate::{
    DType, Error, NodeId, Op, ReduceKind, Result, Role, Shape, Slot, SlotId, Value, ValueId,
    expr::{Expr, Term},
};
use onesigma_format::Conversion;
use serde::{Deserialize, Serialize};

/// An op with its operands, results and scales:
///
/// ```text
/// result_j      = alpha[j] * f_j(operands)
/// d operand_i   = beta[i] * (df/d operand_i)^T d result     (built by autodiff)
/// ```
///
/// A regular, unscaled graph has every scale 1.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// Forward scale of each result.
    pub alpha: Vec<f64>,
    /// Backward scale of each operand.
    pub beta: Vec<f64>,
    /// Path of scopes and a last word: `layers.0.mlp.up`.
    pub name: String,
    /// Layer that the node belongs to, if any; recipes choose by it.
    pub layer: Option<u32>,
    /// Random-number stream: identifies the node for dropout and stochastic rounding, and stays
    /// the same whatever passes do around it. That of a result is
    /// [`stream_of`](Self::stream_of) it.
    pub stream: u32,
}

impl Node {
    /// The random-number stream of a result: `stream + output * 2^24`.
    ///
    /// Nodes are numbered from small numbers up, one stream each, and a program that had 2^24 of
    /// them would fit no machine; so the high eight bits are free to tell the results of one node
    /// apart. The first result has the node's own stream. A pass that makes a node of its own
    /// out of result `j` (a cast behind it, the last part of its decomposition) gives it this
    /// number, so that it draws the bits that the result would have drawn.
    pub const fn stream_of(&self, output: usize) -> u32 {
        self.stream.wrapping_add((output as u32) << 24)
    }
}

/// One entry of a program under construction: nodes in execution order, and the slots that are
/// written when it ends.
///
/// ```
/// use onesigma_graph::{DType, Graph, Module, Role, SlotKind};
///
/// let mut module = Module::new();
/// let x = module.slot("x", SlotKind::Input, [2, 3], DType::F32, Role::Data)?;
/// let mut graph = Graph::new();
/// let x = module.read(&mut graph, x);
/// // A result is scaled by `alpha`, the gradient of its operand by `beta`.
/// let y = graph.map(&[x], |x| x[0].square())?.alpha(0.5).beta(&[0.25]).one()?;
/// let node = graph.node(graph.value(y).producer);
/// assert_eq!((node.alpha.as_slice(), node.beta.as_slice()), (&[0.5][..], &[0.25][..]));
/// assert_eq!(graph.shape(y).dims(), [2, 3]);
/// # Ok::<(), onesigma_graph::Error>(())
/// ```
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) values: Vec<Value>,
    pub(crate) writes: Vec<(SlotId, ValueId)>,
    #[serde(skip)]
    scope: Vec<String>,
    #[serde(skip)]
    layer: Option<u32>,
    next_stream: u32,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty graph whose random streams start at `first`, so that entries of one program can
    /// draw different numbers.
    pub fn with_streams_from(first: u32) -> Self {
        Self { next_stream: first, ..Self::default() }
    }

    /// All nodes, in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All values.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// The slots that are written at the end of the entry, with the values.
    pub fn writes(&self) -> &[(SlotId, ValueId)] {
        &self.writes
    }

    /// The node with an id of this graph.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The value with an id of this graph.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// Shape of a value.
    pub fn shape(&self, id: ValueId) -> &Shape {
        &self.value(id).shape
    }

    /// Name of the node that makes a value, with the number of the result if it has several.
    pub fn value_name(&self, id: ValueId) -> String {
        let value = self.value(id);
        let node = self.node(value.producer);
        match node.outputs.len() {
            1 => node.name.clone(),
            _ => format!("{}.{}", node.name, value.output),
        }
    }

    /// Builds what `build` adds under `name`: scopes nest, joined by dots.
    pub fn scoped<T>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(name.to_owned());
        let result = build(self);
        self.scope.pop();
        result
    }

    /// As [`scoped`](Self::scoped) with the name `layers.<index>`; nodes belong to that layer.
    pub fn in_layer<T>(&mut self, index: u32, build: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.layer.replace(index);
        let result = self.scoped(&format!("layers.{index}"), build);
        self.layer = outer;
        result
    }

    /// Sets the layer of the nodes that follow; for passes that add nodes on behalf of others.
    pub(crate) fn set_layer(&mut self, layer: Option<u32>) -> Option<u32> {
        std::mem::replace(&mut self.layer, layer)
    }

    /// Starts a node; nothing is added before [`NodeBuilder::one`] or [`NodeBuilder::all`].
    pub fn op(&mut self, op: Op, inputs: &[ValueId]) -> NodeBuilder<'_> {
        NodeBuilder {
            name: op.name().to_lowercase(),
            graph: self,
            op,
            inputs: inputs.to_vec(),
            alpha: None,
            beta: Vec::new(),
            role: None,
            dtype: None,
            absolute: false,
        }
    }

    /// The content of a slot when the entry starts; a slot that was read before gives the same
    /// value again.
    pub fn read(&mut self, id: SlotId, slot: &Slot) -> ValueId {
        for node in &self.nodes {
            if node.op == Op::Slot(id) {
                return node.outputs[0];
            }
        }
        let producer = NodeId::new(self.nodes.len());
        let value = self.push_value(Value {
            shape: slot.shape.clone(),
            dtype: slot.dtype,
            conversion: Conversion::SATURATE,
            role: slot.role,
            producer,
            output: 0,
        });
        let stream = self.take_stream();
        self.nodes.push(Node {
            op: Op::Slot(id),
            inputs: Vec::new(),
            outputs: vec![value],
            alpha: vec![1.0],
            beta: Vec::new(),
            name: slot.name.clone(),
            layer: self.layer,
            stream,
        });
        value
    }

    /// Replaces the scales of a node: one `alpha` for each result, one `beta` for each operand. To
    /// be done before the backward pass is built, which reads them.
    ///
    /// # Errors
    /// [`Error::UnknownId`] for a node that is not here; [`Error::Attribute`] for other numbers of
    /// scales, scales that are not finite, or a movement op's that are not 1.
    pub fn set_scales(&mut self, id: NodeId, alpha: &[f64], beta: &[f64]) -> Result<()> {
        let count = self.nodes.len();
        let Some(node) = self.nodes.get_mut(id.index()) else {
            return Err(Error::UnknownId { what: "node", index: id.index(), count });
        };
        if alpha.len() != node.outputs.len() || beta.len() != node.inputs.len() {
            return Err(Error::Attribute {
                node: node.name.clone(),
                op: node.op.name(),
                attribute: "scale",
                found: format!("{} alpha, {} beta", alpha.len(), beta.len()),
                expected: format!("{} and {}", node.outputs.len(), node.inputs.len()),
            });
        }
        check_scales(&node.name, &node.op, alpha, beta)?;
        node.alpha = alpha.to_vec();
        node.beta = beta.to_vec();
        Ok(())
    }

    /// Writes a value to a slot when the entry ends; a later write to the slot replaces it.
    pub fn write(&mut self, slot: SlotId, value: ValueId) {
        self.writes.retain(|&(other, _)| other != slot);
        self.writes.push((slot, value));
    }

    /// The same nodes, with no slot written.
    pub fn without_writes(&self) -> Self {
        Self { writes: Vec::new(), ..self.clone() }
    }

    /// `left right` with the operands as they are stored; see [`Op::MatMul`].
    pub fn matmul(&mut self, left: ValueId, right: ValueId) -> NodeBuilder<'_> {
        self.op(Op::MatMul { transpose_left: false, transpose_right: false }, &[left, right])
    }

    /// An expression over operands, broadcast to their common shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the operands do not broadcast.
    pub fn map(
        &mut self,
        inputs: &[ValueId],
        build: impl FnOnce(&[Term]) -> Term,
    ) -> Result<NodeBuilder<'_>> {
        let expr = Expr::new(inputs.len(), build);
        let shape = self.common_shape(inputs)?;
        Ok(self.op(Op::Map { expr, shape }, inputs))
    }

    /// An expression over operands reduced over `axes` (negative axes count from the end).
    ///
    /// # Errors
    /// [`Error::Shape`] if the operands do not broadcast, [`Error::Attribute`] for a wrong axis.
    pub fn reduce(
        &mut self,
        kind: ReduceKind,
        inputs: &[ValueId],
        axes: &[isize],
        keep_dims: bool,
        build: impl FnOnce(&[Term]) -> Term,
    ) -> Result<NodeBuilder<'_>> {
        let expr = Expr::new(inputs.len(), build);
        let shape = self.common_shape(inputs)?;
        let rank = shape.rank() as isize;
        let mut axes: Vec<usize> =
            axes.iter().map(|&axis| if axis < 0 { axis + rank } else { axis } as usize).collect();
        axes.sort_unstable();
        Ok(self.op(Op::Reduce { kind, expr, shape, axes, keep_dims }, inputs))
    }

    /// A tensor of one repeated value.
    ///
    /// # Errors
    /// As every op.
    pub fn fill(&mut self, shape: impl Into<Shape>, value: f64) -> Result<ValueId> {
        let expr = Expr::new(0, |_| Term::constant(value));
        self.op(Op::Map { expr, shape: shape.into() }, &[]).named("fill").one()
    }

    /// The same elements under another shape; the value itself if it has that shape already.
    ///
    /// # Errors
    /// [`Error::Attribute`] if the number of elements differs.
    pub fn reshape(&mut self, value: ValueId, shape: impl Into<Shape>) -> Result<ValueId> {
        let shape = shape.into();
        if *self.shape(value) == shape {
            return Ok(value);
        }
        self.op(Op::Reshape { shape }, &[value]).one()
    }

    /// Axes in a new order.
    ///
    /// # Errors
    /// [`Error::Attribute`] if `axes` is no permutation.
    pub fn permute(&mut self, value: ValueId, axes: &[usize]) -> Result<ValueId> {
        self.op(Op::Permute { axes: axes.to_vec() }, &[value]).one()
    }

    fn common_shape(&self, inputs: &[ValueId]) -> Result<Shape> {
        let mut shape = Shape::scalar();
        for &input in inputs {
            let own = self.shape(input);
            shape = shape.broadcast(own).ok_or_else(|| Error::Shape {
                node: self.path("map"),
                op: "Map",
                found: format!("{shape} and {own}"),
                expected: "operands that broadcast".to_owned(),
            })?;
        }
        Ok(shape)
    }

    fn path(&self, name: &str) -> String {
        let mut path = self.scope.join(".");
        if !path.is_empty() {
            path.push('.');
        }
        path + name
    }

    pub(crate) fn push_value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        ValueId::new(self.values.len() - 1)
    }

    fn take_stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream = self.next_stream.wrapping_add(1);
        stream
    }

    /// Appends a node that a pass carries over from another graph: same op, scales, names, types
    /// and streams, new operands.
    pub(crate) fn carry(&mut self, node: &Node, from: &Self, inputs: Vec<ValueId>) -> Vec<ValueId> {
        let producer = NodeId::new(self.nodes.len());
        let outputs: Vec<ValueId> = node
            .outputs
            .iter()
            .map(|&output| self.push_value(Value { producer, ..from.value(output).clone() }))
            .collect();
        self.nodes.push(Node { inputs, outputs: outputs.clone(), ..node.clone() });
        outputs
    }

    /// Makes the next node take the same stream as the next node of `other` would: for passes
    /// whose extra nodes draw no random numbers.
    pub(crate) fn continue_streams_of(&mut self, other: &Self) {
        self.next_stream = other.next_stream;
    }

    /// An empty graph that continues the streams of this one.
    pub(crate) fn successor(&self) -> Self {
        Self::with_streams_from(self.next_stream)
    }
}

/// A node being built: defaults are scales of 1, the op's own role and element type.
#[must_use = "a node is added by `one` or `all`"]
#[derive(Debug)]
pub struct NodeBuilder<'g> {
    graph: &'g mut Graph,
    op: Op,
    inputs: Vec<ValueId>,
    alpha: Option<Vec<f64>>,
    beta: Vec<f64>,
    role: Option<Role>,
    dtype: Option<(DType, Conversion)>,
    name: String,
    absolute: bool,
}

impl NodeBuilder<'_> {
    /// Forward scale of the (first) result.
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.alpha = Some(vec![alpha]);
        self
    }

    /// Forward scale of each result.
    pub fn alphas(mut self, alpha: Vec<f64>) -> Self {
        self.alpha = Some(alpha);
        self
    }

    /// Backward scale of each operand, as far as given; the rest is 1.
    pub fn beta(mut self, beta: &[f64]) -> Self {
        self.beta = beta.to_vec();
        self
    }

    /// Role of all results.
    pub fn role(mut self, role: Role) -> Self {
        self.role = Some(role);
        self
    }

    /// Element type of all results and how the f32 result is rounded into it.
    pub fn stored_as(mut self, dtype: DType, conversion: Conversion) -> Self {
        self.dtype = Some((dtype, conversion));
        self
    }

    /// Last word of the node's name; the scopes stand before it.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Full name, without scopes; for passes.
    pub(crate) fn named_fully(mut self, name: String) -> Self {
        self.name = name;
        self.absolute = true;
        self
    }

    /// Adds the node and gives its first result.
    ///
    /// # Errors
    /// As [`all`](Self::all).
    pub fn one(self) -> Result<ValueId> {
        Ok(self.all()?[0])
    }

    /// Adds the node and gives all its results.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::ElementType`], [`Error::Arity`] or [`Error::Attribute`], naming
    /// the node, the op and what was found.
    pub fn all(self) -> Result<Vec<ValueId>> {
        let Self { graph, op, inputs, alpha, mut beta, role, dtype, name, absolute } = self;
        let name = if absolute { name } else { graph.path(&name) };
        for &input in &inputs {
            if input.index() >= graph.values.len() {
                return Err(Error::UnknownId {
                    what: "value",
                    index: input.index(),
                    count: graph.values.len(),
                });
            }
        }
        let operands: Vec<&Value> = inputs.iter().map(|&input| graph.value(input)).collect();
        let inferred = infer(&name, &op, &operands)?;
        beta.resize(inputs.len(), 1.0);
        let mut alpha = alpha.unwrap_or_default();
        alpha.resize(inferred.len(), 1.0);
        check_scales(&name, &op, &alpha, &beta)?;
        if let Some((_, how)) = dtype.filter(|&(_, how)| !is_conversion(how)) {
            return Err(Error::Attribute {
                node: name,
                op: op.name(),
                attribute: "rounding",
                found: format!("{:?}", how.rounding),
                expected: "8, 16 or 32 random bits".to_owned(),
            });
        }
        let producer = NodeId::new(graph.nodes.len());
        let mut outputs = Vec::with_capacity(inferred.len());
        for (output, result) in inferred.into_iter().enumerate() {
            let (dtype, conversion) = dtype.unwrap_or((result.dtype, Conversion::SATURATE));
            let role = role.filter(|_| result.role != Role::Statistic).unwrap_or(result.role);
            outputs.push(graph.push_value(Value {
                shape: result.shape,
                dtype,
                conversion,
                role,
                producer,
                output,
            }));
        }
        let stream = graph.take_stream();
        let layer = graph.layer;
        graph.nodes.push(Node {
            op,
            inputs,
            outputs: outputs.clone(),
            alpha,
            beta,
            name,
            layer,
            stream,
        });
        Ok(outputs)
    }
}

/// Refuses scales that are not finite, and those of movement ops that are not 1.
fn check_scales(node: &str, op: &Op, alpha: &[f64], beta: &[f64]) -> Result<()> {
    let wrong = |found: String, expected: &str| {
        Err(Error::Attribute {
            node: node.to_owned(),
            op: op.name(),
            attribute: "scale",
            found,
            expected: expected.to_owned(),
        })
    };
    if let Some(scale) = alpha.iter().chain(beta).find(|scale| !scale.is_finite()) {
        return wrong(scale.to_string(), "a finite number");
    }
    if op.is_movement() && alpha.iter().chain(beta).any(|&scale| scale != 1.0) {
        let found = format!("alpha {alpha:?}, beta {beta:?}");
        return wrong(found, "1: movement ops copy elements; scale in a Map");
    }
    Ok(())
}
