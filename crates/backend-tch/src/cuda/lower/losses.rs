//! Cross-entropy: the loss waits for its gradient where both can be made in one pass.

use std::collections::HashMap;

use onesigma_graph::expr::Expr;
use onesigma_graph::{DType, Graph, Node as Source, Op, ReduceKind};

use super::Lowering;
use crate::cuda::ir::{Home, Node};
use crate::cuda::source::cross_entropy::{CrossEntropy, Gradient};

/// Cross-entropies whose loss can be worked out with their gradient: by node of the loss, that of
/// the gradient.
pub(super) fn losses_with_gradient(graph: &Graph) -> HashMap<usize, usize> {
    let mut pairs = HashMap::new();
    for (at, node) in graph.nodes().iter().enumerate() {
        let Op::CrossEntropy { mult, mean } = node.op else { continue };
        let loss = node.outputs[0];
        let reader = graph.nodes().iter().position(|other| other.inputs.contains(&loss));
        let gradient = graph.nodes().iter().position(|other| {
            matches!(other.op, Op::CrossEntropyGrad { mult: m, mean: n } if m == mult && n == mean)
                && other.inputs[..2] == node.inputs[..]
        });
        if let Some(gradient) = gradient
            && gradient > at
            && reader.is_none_or(|reader| reader > gradient)
        {
            pairs.insert(at, gradient);
        }
    }
    pairs
}

impl Lowering<'_> {
    pub(super) fn cross_entropy(&mut self, at: usize, node: &Source, mult: f64, mean: bool) {
        if self.pending.contains_key(&at) {
            return;
        }
        self.cross_entropy_parts(Some((node, mult, mean)), None);
    }

    pub(super) fn cross_entropy_grad(&mut self, at: usize, node: &Source, mult: f64, mean: bool) {
        let loss = self.pending.iter().find(|(_, gradient)| **gradient == at);
        let loss = loss.map(|(&loss, _)| (&self.graph.nodes()[loss], mult, mean));
        self.cross_entropy_parts(loss, Some((node, mult, mean)));
    }

    pub(super) fn cross_entropy_parts(
        &mut self,
        loss: Option<(&Source, f64, bool)>,
        gradient: Option<(&Source, f64, bool)>,
    ) {
        let Some((node, mult, mean)) = gradient.or(loss) else { return };
        let shape = self.shape(node.inputs[0]);
        let (rows, classes) = (shape.rows(), shape.last());
        let share = if mean { 1.0 / rows.max(1) as f64 } else { 1.0 };
        let own = gradient.map(|(node, ..)| {
            let mut result = self.rounded(node, 0);
            result.alpha *= mult * share;
            Gradient { result, upstream: self.graph.value(node.inputs[2]).dtype }
        });
        let op = CrossEntropy {
            rows,
            classes,
            logits: self.graph.value(node.inputs[0]).dtype,
            mult,
            loss: loss.is_some(),
            gradient: own,
        };
        let [logits, targets] = [0, 1].map(|at| self.tensor_of(node.inputs[at]));
        let upstream = gradient.map(|(node, ..)| self.tensor_of(node.inputs[2]));
        let losses = loss.map(|_| self.entry.tensor(rows, DType::F32, Home::Temporary));
        let gradient = gradient.map(|(node, ..)| self.result(node.outputs[0]));
        let cross = Node::CrossEntropy { op, logits, targets, upstream, losses, gradient };
        self.emit(&node.name, cross);
        if let (Some((node, ..)), Some(losses)) = (loss, losses) {
            let mut result = self.rounded(node, 0);
            result.alpha *= share;
            let out = self.result(node.outputs[0]);
            let reduce = Node::Reduce {
                kind: ReduceKind::Sum,
                expr: Expr::identity(),
                operands: vec![Self::full(losses)],
                dims: vec![rows],
                axes: vec![0],
                result,
                out,
            };
            self.emit(&node.name, reduce);
        }
    }
}
