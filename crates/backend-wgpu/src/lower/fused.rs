//! Ops over rows and attention, with their gradients.

use onesigma_graph::expr::Expr;
use onesigma_graph::{DType, Node, ReduceKind};

use super::Lowering;
use crate::ir::{Attention, AttentionKind, Reduction, RowKind, Rows, TensorId, Work};

impl Lowering<'_> {
    pub(super) fn rows(&mut self, node: &Node, kind: RowKind) {
        let shape = self.shape(node.inputs[0]);
        let (rows, width) = (shape.rows(), shape.last());
        let operands = node.inputs.iter().map(|&input| self.tensor_of(input)).collect();
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let (out, statistics) = (Some(out), Vec::new());
        self.push(node, Work::Rows(Rows { kind, rows, width, operands, result, out, statistics }));
    }

    /// Gradients of a norm: for x by rows, for weight and bias by columns, with the statistics of
    /// the rows.
    pub(super) fn norm_grad(&mut self, node: &Node, eps: f64, centred: bool) {
        let shape = self.shape(node.inputs[0]).clone();
        let (rows, width) = (shape.rows(), shape.last());
        let operands: Vec<TensorId> =
            node.inputs.iter().take(3).map(|&input| self.tensor_of(input)).collect();
        let (x, dy) = (operands[0], operands[1]);
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let weighted = node.outputs.len() > 1;
        let count = match (weighted, centred) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        };
        let statistics: Vec<TensorId> =
            (0..count).map(|_| self.temporary(rows, DType::F32)).collect();
        let kind = RowKind::NormGrad { eps, centred };
        let out = Some(out);
        let work =
            Rows { kind, rows, width, operands, result, out, statistics: statistics.clone() };
        self.push(node, Work::Rows(work));
        let full = vec![width, 1];
        let column = vec![1, 0];
        let by_columns = |expr, operands, out| Reduction {
            kind: ReduceKind::Sum,
            expr,
            operands,
            dims: vec![rows, width],
            axes: vec![0],
            alpha: 1.0,
            out,
        };
        if weighted {
            let mut operands = vec![(x, full.clone()), (dy, full.clone())];
            operands.extend(statistics.iter().map(|&tensor| (tensor, column.clone())));
            let expr = match centred {
                true => {
                    Expr::new(4, |x| x[1].clone() * ((x[0].clone() - x[2].clone()) * x[3].clone()))
                }
                false => Expr::new(3, |x| x[1].clone() * (x[0].clone() * x[2].clone())),
            };
            let (result, out) = (self.rounded(node, 1), self.result(node.outputs[1]));
            self.reduction(node, by_columns(expr, operands, out), result);
        }
        if node.outputs.len() > 2 {
            let (result, out) = (self.rounded(node, 2), self.result(node.outputs[2]));
            self.reduction(node, by_columns(Expr::identity(), vec![(dy, full)], out), result);
        }
    }

    /// Attention over the operands of a node, of which number `mask` is the mask if there is one.
    pub(super) fn attention_of(
        &self,
        node: &Node,
        causal: bool,
        scale: f64,
        mask: usize,
        kind: AttentionKind,
    ) -> Work {
        let (q, k) = (self.shape(node.inputs[0]).dims(), self.shape(node.inputs[1]).dims());
        let operand = |at: usize| self.tensor_of(node.inputs[at]);
        Work::Attention(Attention {
            batch: q[0],
            queries: q[1],
            keys: k[1],
            heads: q[2],
            kv_heads: k[2],
            width: q[3],
            causal,
            scale,
            q: operand(0),
            k: operand(1),
            v: operand(2),
            mask: node.inputs.get(mask).map(|&value| self.tensor_of(value)),
            kind,
        })
    }

    pub(super) fn attention(&mut self, node: &Node, causal: bool, scale: f64) {
        let out = (self.rounded(node, 0), self.result(node.outputs[0]));
        let lse = (node.alpha[1], self.result(node.outputs[1]));
        let kind = AttentionKind::Forward { out, lse };
        let work = self.attention_of(node, causal, scale, 3, kind);
        self.push(node, work);
    }

    pub(super) fn attention_grad(
        &mut self,
        node: &Node,
        causal: bool,
        scale: f64,
        forward_alpha: f64,
    ) {
        let [output, lse, dy] = [3, 4, 5].map(|at| self.tensor_of(node.inputs[at]));
        // The share of each row that its own normalisation takes back: sum(dy y).
        let shape = self.shape(node.inputs[3]);
        let dims = vec![shape.rows(), shape.last()];
        let strides = vec![shape.last(), 1];
        let along = self.temporary(dims[0], DType::F32);
        let sum = Reduction {
            kind: ReduceKind::Sum,
            expr: Expr::new(2, |x| x[0].clone() * x[1].clone()),
            operands: vec![(dy, strides.clone()), (output, strides)],
            dims,
            axes: vec![1],
            alpha: 1.0 / forward_alpha,
            out: along,
        };
        self.parted(node, sum);
        let results: [_; 3] =
            [0, 1, 2].map(|at| (self.rounded(node, at), self.result(node.outputs[at])));
        let kind = AttentionKind::QueryGrad { dy, lse, along, out: results[0] };
        let work = self.attention_of(node, causal, scale, 6, kind);
        self.push(node, work);
        let kind = AttentionKind::KeyGrad { dy, lse, along, dk: results[1], dv: results[2] };
        let work = self.attention_of(node, causal, scale, 6, kind);
        self.push(node, work);
    }
}
