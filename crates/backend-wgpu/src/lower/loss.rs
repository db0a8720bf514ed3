//! Cross-entropy: losses of rows and their sum, and the gradient from the same statistics.

use onesigma_graph::expr::Expr;
use onesigma_graph::{DType, Node, ReduceKind};

use super::Lowering;
use crate::ir::{Classes, ClassesKind, Reduction, TensorId, Work};

impl Lowering<'_> {
    fn classes(&self, node: &Node, mult: f64, mask: usize, kind: ClassesKind) -> Classes {
        let shape = self.shape(node.inputs[0]);
        let logits = self.tensor_of(node.inputs[0]);
        let known = self.statistics.get(&(logits, mult.to_bits())).copied();
        Classes {
            rows: shape.rows(),
            width: shape.last(),
            mult,
            logits,
            targets: self.tensor_of(node.inputs[1]),
            mask: node.inputs.get(mask).map(|&value| self.tensor_of(value)),
            statistics: known.unwrap_or_default(),
            kind,
        }
    }

    /// Work that makes the statistics of logits, and losses if they are wanted.
    fn push_statistics(&mut self, node: &Node, op: Classes) -> TensorId {
        let statistics = self.temporary(2 * op.rows, DType::F32);
        self.statistics.insert((op.logits, op.mult.to_bits()), statistics);
        self.push(node, Work::Classes(Classes { statistics, ..op }));
        statistics
    }

    /// The number of rows that a mask counts.
    fn counted(&mut self, node: &Node, mask: TensorId, rows: usize) -> TensorId {
        let out = self.temporary(1, DType::F32);
        let count = Reduction {
            kind: ReduceKind::Sum,
            expr: Expr::new(1, |x| x[0].equal(0.0).select(0.0, 1.0)),
            operands: vec![(mask, vec![1])],
            dims: vec![rows],
            axes: vec![0],
            alpha: 1.0,
            out,
        };
        self.parted(node, count);
        out
    }

    pub(super) fn cross_entropy(&mut self, node: &Node, mult: f64, mean: bool) {
        let rows = self.shape(node.inputs[0]).rows();
        let losses = self.temporary(rows, DType::F32);
        let op = self.classes(node, mult, 2, ClassesKind::Forward { losses: Some(losses) });
        self.push_statistics(node, op);
        let (mut result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let mut operands = vec![(losses, vec![1])];
        let mut expr = Expr::identity();
        match op.mask.filter(|_| mean) {
            Some(mask) => {
                operands.push((self.counted(node, mask, rows), vec![0]));
                expr = Expr::new(2, |x| x[0].clone() / x[1].max(1.0));
            }
            None if mean => result.alpha /= rows as f64,
            None => {}
        }
        let kind = ReduceKind::Sum;
        let (dims, axes) = (vec![rows], vec![0]);
        let sum = Reduction { kind, expr, operands, dims, axes, alpha: 1.0, out };
        self.reduction(node, sum, result);
    }

    pub(super) fn cross_entropy_grad(&mut self, node: &Node, mult: f64, mean: bool) {
        let forward = self.classes(node, mult, 3, ClassesKind::Forward { losses: None });
        if !self.statistics.contains_key(&(forward.logits, mult.to_bits())) {
            self.push_statistics(node, forward);
        }
        let d_loss = self.tensor_of(node.inputs[2]);
        let mask = forward.mask.filter(|_| mean);
        let count = mask.map(|mask| self.counted(node, mask, forward.rows));
        let (mut result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        result.alpha *= mult;
        if mean && count.is_none() {
            result.alpha /= forward.rows as f64;
        }
        let kind = ClassesKind::Grad { d_loss, count, result, out };
        let op = self.classes(node, mult, 3, kind);
        self.push(node, Work::Classes(op));
    }
}
