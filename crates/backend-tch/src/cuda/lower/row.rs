//! Ops over rows, and the sums over rows that belong to the gradients of norms.

use onesigma_graph::expr::Expr;
use onesigma_graph::{DType, Node as Source, ReduceKind};

use super::Lowering;
use crate::cuda::ir::{Home, Node, Operand};
use crate::cuda::source::group::Access;
use crate::cuda::source::rows::RowKind;

impl Lowering<'_> {
    pub(super) fn row(&mut self, node: &Source, kind: RowKind) {
        let shape = self.shape(node.inputs[0]).clone();
        let mut operands: Vec<Operand> =
            node.inputs.iter().map(|&input| self.operand(input, &shape)).collect();
        // The gradient for a bias needs no operand of its own.
        let bias_gradient = matches!(kind, RowKind::NormGrad { .. }) && operands.len() > 3;
        operands.truncate(if bias_gradient { 3 } else { operands.len() });
        let result = self.rounded(node, 0);
        let out = self.result(node.outputs[0]);
        let (rows, width) = (shape.rows(), shape.last());
        let mut statistics = Vec::new();
        let [x, dy] = [0, 1].map(|at| operands.get(at).cloned());
        if let RowKind::NormGrad { centred, .. } = kind
            && node.outputs.len() > 1
        {
            for _ in 0..1 + usize::from(centred) {
                statistics.push(self.entry.tensor(rows, DType::F32, Home::Temporary));
            }
        }
        let row =
            Node::Row { kind, operands, rows, width, result, out, statistics: statistics.clone() };
        self.emit(&node.name, row);
        let (Some(x), Some(dy)) = (x, dy) else { return };
        // Gradients of weight and bias: sums over the rows.
        for output in 1..node.outputs.len() {
            let column = |tensor| {
                let access = Access::strided(&[rows, width], &[1, 0]);
                Operand { tensor, access, exact: false }
            };
            let (expr, operands) = match (output, &statistics[..]) {
                (1, [mean, rsigma]) => (
                    Expr::new(4, |x| x[1].clone() * ((x[0].clone() - x[2].clone()) * x[3].clone())),
                    vec![x.clone(), dy.clone(), column(*mean), column(*rsigma)],
                ),
                (1, [rsigma]) => (
                    Expr::new(3, |x| x[1].clone() * (x[0].clone() * x[2].clone())),
                    vec![x.clone(), dy.clone(), column(*rsigma)],
                ),
                _ => (Expr::identity(), vec![dy.clone()]),
            };
            let result = self.rounded(node, output);
            let out = self.result(node.outputs[output]);
            let (dims, axes) = (vec![rows, width], vec![0]);
            let kind = ReduceKind::Sum;
            let reduce = Node::Reduce { kind, expr, operands, dims, axes, result, out };
            self.emit(&node.name, reduce);
        }
    }
}
