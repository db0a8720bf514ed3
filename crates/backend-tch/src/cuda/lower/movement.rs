//! Permutations, slices and concatenations as copies by strides.

use onesigma_graph::{Node as Source, Op, Shape};

use super::Lowering;
use crate::cuda::ir::Node;
use crate::cuda::source::movement::Copy;

impl Lowering<'_> {
    pub(super) fn movement(&mut self, node: &Source, shape: &Shape) {
        let to = shape.strides();
        let from = self.shape(node.inputs[0]).strides();
        let whole = |from_strides: Vec<usize>, from_offset: usize| Copy {
            dims: shape.dims().to_vec(),
            from_offset,
            from_strides,
            to_offset: 0,
            to_strides: to.clone(),
        };
        let mut parts = Vec::new();
        match &node.op {
            // A matrix of bytes turns by tiles, in the kernel that makes it where that is possible.
            Op::Permute { axes }
                if axes[..] == [1, 0] && self.graph.value(node.inputs[0]).dtype.bytes() == 1 =>
            {
                let [rows, columns] = [0, 1].map(|axis| self.shape(node.inputs[0]).dims()[axis]);
                let from = self.tensor_of(node.inputs[0]);
                let out = self.result(node.outputs[0]);
                self.emit(&node.name, Node::Transpose { from, out, rows, columns });
                return;
            }
            Op::Permute { axes } => {
                let strides = axes.iter().map(|&axis| from[axis]).collect();
                parts.push((self.tensor_of(node.inputs[0]), whole(strides, 0)));
            }
            Op::Slice { axis, start, .. } => {
                let offset = start * from[*axis];
                parts.push((self.tensor_of(node.inputs[0]), whole(from, offset)));
            }
            Op::Concat { axis } => {
                let mut at = 0;
                for &input in &node.inputs {
                    let own = self.shape(input);
                    let copy = Copy {
                        dims: own.dims().to_vec(),
                        from_offset: 0,
                        from_strides: own.strides(),
                        to_offset: at * to[*axis],
                        to_strides: to.clone(),
                    };
                    at += own.dims()[*axis];
                    parts.push((self.tensor_of(input), copy));
                }
            }
            _ => {}
        }
        let out = self.result(node.outputs[0]);
        self.emit(&node.name, Node::Move { parts, out });
    }
}
