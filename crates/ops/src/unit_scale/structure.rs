//! What the wiring of a regular graph says: which values are activations, which edges are cut
//! edges, and where residual branches part and meet.

use onesigma_graph::expr::Expr;
use onesigma_graph::{Graph, Node, NodeId, Op, ValueId};

/// A residual branch: `sum = branch(skip) + skip`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Residual {
    /// The node that adds.
    pub sum: usize,
    /// Which operand of the sum is the branch.
    pub branch_operand: usize,
    /// The value that goes around the branch.
    pub skip: ValueId,
    /// Nodes on the ways from `skip` through the branch, in order.
    pub nodes: Vec<usize>,
    /// Whether attention is among them.
    pub is_attention: bool,
}

/// The forward part of a graph, up to the loss.
pub(super) struct Structure<'g> {
    pub graph: &'g Graph,
    /// Number of nodes up to the loss.
    pub count: usize,
    /// The parameter that a value is, or of which it is a part or view.
    pub parameter: Vec<Option<ValueId>>,
    /// Values that depend on a parameter and are none.
    pub activation: Vec<bool>,
    /// For every node and operand whether the edge carries an activation and is no cut edge.
    non_cut: Vec<Vec<bool>>,
    /// For every value the nodes that read it, up to the loss.
    pub readers: Vec<Vec<usize>>,
    /// Residual branches in the order of their sums.
    pub residuals: Vec<Residual>,
}

impl<'g> Structure<'g> {
    pub fn new(graph: &'g Graph, loss: ValueId, parameters: &[ValueId]) -> Self {
        let count = graph.value(loss).producer.index() + 1;
        let values = graph.values().len();
        let mut parameter = vec![None; values];
        for &value in parameters {
            parameter[value.index()] = Some(value);
        }
        let mut activation = vec![false; values];
        let mut readers = vec![Vec::new(); values];
        for (index, node) in graph.nodes()[..count].iter().enumerate() {
            for input in &node.inputs {
                readers[input.index()].push(index);
            }
            let is_view = matches!(
                node.op,
                Op::Reshape { .. } | Op::Permute { .. } | Op::Slice { .. } | Op::Cast { .. }
            );
            let of = node.inputs.first().and_then(|input| parameter[input.index()]);
            let depends =
                |input: &ValueId| activation[input.index()] || parameter[input.index()].is_some();
            if is_view && of.is_some() {
                parameter[node.outputs[0].index()] = of;
            } else if node.inputs.iter().any(depends) {
                node.outputs.iter().for_each(|output| activation[output.index()] = true);
            }
        }
        let mut structure = Self {
            graph,
            count,
            parameter,
            activation,
            non_cut: Vec::new(),
            readers,
            residuals: Vec::new(),
        };
        structure.non_cut = structure.find_non_cut();
        structure.residuals = structure.find_residuals();
        structure
    }

    /// Whether any operand of a node is on a cycle.
    pub fn any_non_cut(&self, node: usize) -> bool {
        self.non_cut[node].contains(&true)
    }

    pub fn is_activation(&self, value: ValueId) -> bool {
        self.activation[value.index()]
    }

    pub fn producer(&self, value: ValueId) -> &'g Node {
        self.graph.node(self.graph.value(value).producer)
    }

    /// The first value before views: what a chain of reshapes and permutations shows.
    pub fn behind_views(&self, mut value: ValueId) -> ValueId {
        loop {
            match self.producer(value) {
                Node { op: Op::Reshape { .. } | Op::Permute { .. }, inputs, .. } => {
                    value = inputs[0]
                }
                _ => return value,
            }
        }
    }

    /// Edges of the graph of activations that are no bridges (Tarjan's algorithm, without
    /// recursion).
    fn find_non_cut(&self) -> Vec<Vec<bool>> {
        let mut non_cut: Vec<Vec<bool>> =
            self.graph.nodes()[..self.count].iter().map(|n| vec![false; n.inputs.len()]).collect();
        // (from, to, node, operand)
        let mut edges = Vec::new();
        let mut incident: Vec<Vec<usize>> = vec![Vec::new(); self.graph.values().len()];
        for (index, node) in self.graph.nodes()[..self.count].iter().enumerate() {
            for (operand, &input) in node.inputs.iter().enumerate() {
                // Losses that meet in their sum close no cycle: the ways to them get weights of
                // their own where they part.
                if self.is_activation(input) && self.graph.shape(input).rank() > 0 {
                    let to = node.outputs[0];
                    incident[input.index()].push(edges.len());
                    incident[to.index()].push(edges.len());
                    edges.push((input, to, index, operand));
                }
            }
        }
        let mut order = vec![usize::MAX; incident.len()];
        let mut low = vec![usize::MAX; incident.len()];
        let mut bridge = vec![false; edges.len()];
        let mut clock = 0;
        for root in 0..incident.len() {
            if order[root] != usize::MAX || incident[root].is_empty() {
                continue;
            }
            // Vertex, edge by which it was reached, next incident edge to look at.
            let mut stack = vec![(root, usize::MAX, 0)];
            (order[root], low[root]) = (clock, clock);
            clock += 1;
            while let Some(&mut (vertex, by, ref mut next)) = stack.last_mut() {
                if let Some(&edge) = incident[vertex].get(*next) {
                    *next += 1;
                    if edge == by {
                        continue;
                    }
                    let (a, b, ..) = edges[edge];
                    let other = if a.index() == vertex { b.index() } else { a.index() };
                    if order[other] == usize::MAX {
                        (order[other], low[other]) = (clock, clock);
                        clock += 1;
                        stack.push((other, edge, 0));
                    } else {
                        low[vertex] = low[vertex].min(order[other]);
                    }
                } else {
                    stack.pop();
                    if let Some(&(parent, ..)) = stack.last() {
                        low[parent] = low[parent].min(low[vertex]);
                        bridge[by] = low[vertex] > order[parent];
                    }
                }
            }
        }
        for (edge, (_, _, node, operand)) in edges.into_iter().enumerate() {
            non_cut[node][operand] = !bridge[edge];
        }
        non_cut
    }

    fn find_residuals(&self) -> Vec<Residual> {
        let plain_sum = Expr::new(2, |x| x[0].clone() + x[1].clone());
        let mut residuals = Vec::new();
        for (index, node) in self.graph.nodes()[..self.count].iter().enumerate() {
            let is_sum = matches!(&node.op, Op::Map { expr, .. } if *expr == plain_sum);
            let shape = self.graph.shape(node.outputs[0]);
            let fits = node
                .inputs
                .iter()
                .all(|&input| self.is_activation(input) && self.graph.shape(input) == shape);
            if !is_sum || !fits || shape.rank() == 0 {
                continue;
            }
            for branch_operand in [0, 1] {
                let (branch, skip) = (node.inputs[branch_operand], node.inputs[1 - branch_operand]);
                let nodes = self.between(skip, branch);
                if !nodes.is_empty() {
                    let is_attention = nodes.iter().any(|&at| {
                        let op = &self.graph.nodes()[at].op;
                        matches!(op, Op::Softmax { .. } | Op::Attention { .. })
                    });
                    let sum = index;
                    residuals.push(Residual { sum, branch_operand, skip, nodes, is_attention });
                    break;
                }
            }
        }
        residuals
    }

    /// Nodes on the ways from one value to another, in order; none if there is no way.
    fn between(&self, from: ValueId, to: ValueId) -> Vec<usize> {
        let first = self.graph.value(from).producer.index();
        let last = self.graph.value(to).producer.index();
        if last <= first {
            return Vec::new();
        }
        let mut before = vec![false; self.graph.values().len()];
        before[to.index()] = true;
        for node in self.graph.nodes()[first..=last].iter().rev() {
            if node.outputs.iter().any(|output| before[output.index()]) {
                node.inputs.iter().for_each(|input| before[input.index()] = true);
            }
        }
        let mut after = vec![false; self.graph.values().len()];
        after[from.index()] = true;
        let mut nodes = Vec::new();
        for index in first + 1..=last {
            let node = self.graph.node(NodeId::new(index));
            if !node.inputs.iter().any(|input| after[input.index()]) {
                continue;
            }
            node.outputs.iter().for_each(|output| after[output.index()] = true);
            if node.outputs.iter().any(|output| before[output.index()]) {
                nodes.push(index);
            }
        }
        if after[to.index()] { nodes } else { Vec::new() }
    }
}
