//! Products of matrices, and sums of rows into a table.

use onesigma_graph::{DType, Node};

use super::Lowering;
use crate::ir::{Product, Rounded, Scatter, Work};
use crate::memory::filling;

impl Lowering<'_> {
    pub(super) fn product(&mut self, node: &Node, transpose_left: bool, transpose_right: bool) {
        let (left, right) = (self.shape(node.inputs[0]), self.shape(node.inputs[1]));
        let (a, b) = (left.dims(), right.dims());
        let (batch_a, [x, y]) = (&a[..a.len() - 2], [a[a.len() - 2], a[a.len() - 1]]);
        let (batch_b, [z, w]) = (&b[..b.len() - 2], [b[b.len() - 2], b[b.len() - 1]]);
        let (mut m, k) = if transpose_left { (y, x) } else { (x, y) };
        let n = if transpose_right { z } else { w };
        let mut batch: usize = batch_a.iter().product();
        if batch_b.len() < batch_a.len() {
            // One matrix for all: the batch is more rows.
            m *= batch;
            batch = 1;
        }
        let [left, right] = [0, 1].map(|at| self.tensor_of(node.inputs[at]));
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let numel = self.fusion.entry.tensors[out].numel;
        if k == 0 || numel == 0 {
            self.push(node, Work::Group(vec![filling(0.0, numel, result, out)]));
            return;
        }
        let op =
            Product { batch, m, n, k, transpose_left, transpose_right, left, right, result, out };
        if n.is_multiple_of(4) || result.is_f32() {
            self.push(node, Work::Product(op));
            return;
        }
        let sum = self.temporary(numel, DType::F32);
        self.push(node, Work::Product(Product { result: Rounded::PLAIN, out: sum, ..op }));
        self.round_into(node, sum, result, out);
    }

    pub(super) fn scatter(&mut self, node: &Node, rows: usize) {
        let count = self.shape(node.inputs[1]).numel();
        let width = self.shape(node.inputs[0]).last();
        let [updates, ids] = [0, 1].map(|at| self.tensor_of(node.inputs[at]));
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let numel = rows * width;
        if count == 0 || numel == 0 {
            self.push(node, Work::Group(vec![filling(0.0, numel, result, out)]));
            return;
        }
        let [sorted, order] = [0, 1].map(|_| self.temporary(count, DType::U32));
        let starts = self.temporary(rows + 1, DType::U32);
        let alpha = result.alpha;
        let mut op =
            Scatter { rows, count, width, updates, ids, sorted, order, starts, alpha, out };
        if result.is_f32() {
            self.push(node, Work::Scatter(op));
            return;
        }
        let sum = self.temporary(numel, DType::F32);
        (op.out, op.alpha) = (sum, 1.0);
        self.push(node, Work::Scatter(op));
        self.round_into(node, sum, result, out);
    }
}
