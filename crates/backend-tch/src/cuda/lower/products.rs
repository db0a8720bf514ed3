//! Matrix products, and the transposed copies that FP8 ones ask for.

use onesigma_graph::Node as Source;

use super::{Lowering, is_fp8};
use crate::cuda::ir::{Home, Node, TensorId};
use crate::cuda::source::matmul::{Epilogue, Product};

impl Lowering<'_> {
    pub(super) fn mat_mul(&mut self, node: &Source, transpose_left: bool, transpose_right: bool) {
        let [left, right] = [0, 1].map(|at| self.shape(node.inputs[at]).dims().to_vec());
        let (lead, l) = left.split_at(left.len() - 2);
        let (right_lead, r) = right.split_at(right.len() - 2);
        let (mut m, k) = if transpose_left { (l[1], l[0]) } else { (l[0], l[1]) };
        let n = if transpose_right { r[0] } else { r[1] };
        let mut batch: usize = lead.iter().product();
        let right_batched = !right_lead.is_empty();
        if !right_batched && !transpose_left {
            m *= batch;
            batch = 1;
        }
        let dtype = |at: usize| self.graph.value(node.inputs[at]).dtype;
        let mut product = Product {
            m,
            n,
            k,
            batch,
            right_batched,
            left: dtype(0),
            right: dtype(1),
            left_by_k: !transpose_left,
            right_by_k: transpose_right,
            result: self.rounded(node, 0),
            steps: None,
            epilogue: Epilogue::None,
        };
        let [mut left, mut right] = [0, 1].map(|at| self.tensor_of(node.inputs[at]));
        let mut wanted = product;
        if is_fp8(&product) {
            (wanted.left_by_k, wanted.right_by_k) = (true, true);
        }
        let tensor_cores = self.abilities.runs_product(&wanted);
        if tensor_cores {
            if product.left_by_k != wanted.left_by_k {
                left = self.transposed_copy(left, k, m);
            }
            if product.right_by_k != wanted.right_by_k {
                right = self.transposed_copy(right, k, n);
            }
            product = wanted;
        }
        let out = self.result(node.outputs[0]);
        self.emit(&node.name, Node::MatMul { product, left, right, out, more: None, tensor_cores });
    }

    pub(super) fn transposed_copy(
        &mut self,
        of: TensorId,
        rows: usize,
        columns: usize,
    ) -> TensorId {
        let known =
            self.transposed.iter().find(|&&(from, r, c, _)| (from, r, c) == (of, rows, columns));
        if let Some(&(.., copy)) = known {
            return copy;
        }
        let dtype = self.entry.tensors[of].dtype;
        let copy = self.entry.tensor(rows * columns, dtype, Home::Temporary);
        self.transposed.push((of, rows, columns, copy));
        copy
    }
}
