//! Reductions, in parts where they have few outputs, and the rounding of what they give.

use onesigma_graph::expr::Expr;
use onesigma_graph::{DType, Node, ReduceKind, Shape, ValueId};

use super::Lowering;
use crate::ir::{Compute, Element, Operand, Reduction, Rounded, TensorId, Work};
use crate::memory::filling;
use crate::shader::reduce;

impl Lowering<'_> {
    pub(super) fn reduce(
        &mut self,
        node: &Node,
        kind: ReduceKind,
        expr: &Expr,
        shape: &Shape,
        axes: &[usize],
    ) {
        if axes.iter().all(|&axis| shape.dims()[axis] == 1) {
            let operands = self.broadcast(&node.inputs, shape);
            let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
            let (compute, dims) = (Compute::Expr(expr.clone()), shape.dims().to_vec());
            self.push_element(node, Element { compute, operands, dims, result, out });
            return;
        }
        let strides = |input: &ValueId| self.shape(*input).broadcast_strides(shape);
        let operands =
            node.inputs.iter().map(|input| (self.tensor_of(*input), strides(input))).collect();
        let dims = shape.dims().to_vec();
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let axes = axes.to_vec();
        let op = Reduction { kind, expr: expr.clone(), operands, dims, axes, alpha: 1.0, out };
        self.reduction(node, op, result);
    }

    /// A reduction whose result is scaled and rounded.
    pub(super) fn reduction(&mut self, node: &Node, op: Reduction, result: Rounded) {
        let numel = self.fusion.entry.tensors[op.out].numel;
        if numel == 0 {
            return;
        }
        let (_, count, _) = reduce::sizes(&op);
        if count == 0 {
            let value = if op.kind == ReduceKind::Sum { 0.0 } else { f64::NEG_INFINITY };
            self.push(node, Work::Group(vec![filling(value, numel, result, op.out)]));
            return;
        }
        if result.is_f32() {
            self.parted(node, Reduction { alpha: result.alpha, ..op });
            return;
        }
        let sum = self.temporary(numel, DType::F32);
        let out = op.out;
        self.parted(node, Reduction { out: sum, ..op });
        self.round_into(node, sum, result, out);
    }

    /// A reduction into F32, in two steps if it has few outputs.
    pub(super) fn parted(&mut self, node: &Node, op: Reduction) {
        let parts = reduce::parts(&op);
        if parts == 1 {
            self.push(node, Work::Reduce(op, 1));
            return;
        }
        let (outputs, _, along_rows) = reduce::sizes(&op);
        let partial = self.temporary(outputs * parts, DType::F32);
        let (dims, strides, axes) = match along_rows {
            true => (vec![outputs, parts], vec![parts, 1], vec![1]),
            false => (vec![parts, outputs], vec![outputs, 1], vec![0]),
        };
        let second = Reduction {
            expr: Expr::identity(),
            operands: vec![(partial, strides)],
            dims,
            axes,
            ..op.clone()
        };
        self.push(node, Work::Reduce(Reduction { out: partial, ..op }, parts));
        self.push(node, Work::Reduce(second, 1));
    }

    /// Scales and rounds F32 numbers.
    pub(super) fn round_into(
        &mut self,
        node: &Node,
        from: TensorId,
        result: Rounded,
        out: TensorId,
    ) {
        let numel = self.fusion.entry.tensors[from].numel;
        let element = Element {
            compute: Compute::Expr(Expr::identity()),
            operands: vec![Operand::full(from, numel)],
            dims: vec![numel],
            result,
            out,
        };
        self.push_element(node, element);
    }
}
