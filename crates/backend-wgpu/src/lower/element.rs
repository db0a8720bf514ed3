//! Element-wise ops, rows taken from a table, and ops that move elements.

use onesigma_graph::expr::Expr;
use onesigma_graph::{DType, Node, Op, Shape, ValueId};

use super::Lowering;
use crate::ir::{Access, Compute, Element, Operand, Rounded, TensorId, Work};
use crate::shader::index::View;

impl Lowering<'_> {
    pub(super) fn full(&self, value: ValueId) -> Operand {
        Operand::full(self.tensor_of(value), self.shape(value).numel())
    }

    pub(super) fn element(&mut self, node: &Node, compute: Compute, operands: Vec<Operand>) {
        let value = node.outputs[0];
        let dims = self.shape(value).dims().to_vec();
        let (result, out) = (self.rounded(node, 0), self.result(value));
        self.push_element(node, Element { compute, operands, dims, result, out });
    }

    pub(super) fn broadcast(&self, inputs: &[ValueId], shape: &Shape) -> Vec<Operand> {
        inputs
            .iter()
            .map(|&input| {
                let strides = self.shape(input).broadcast_strides(shape);
                let view = View::new(shape.dims(), &strides, 0);
                Operand { tensor: self.tensor_of(input), access: Access::View(view) }
            })
            .collect()
    }

    pub(super) fn map(&mut self, node: &Node, expr: &Expr, shape: &Shape) {
        let operands = self.broadcast(&node.inputs, shape);
        self.element(node, Compute::Expr(expr.clone()), operands);
    }

    pub(super) fn gather(&mut self, node: &Node) {
        let (table, ids) = (node.inputs[0], node.inputs[1]);
        let dims = self.shape(table).dims();
        let access = Access::Rows { width: dims[1], rows: dims[0], ids: self.tensor_of(ids) };
        let operand = Operand { tensor: self.tensor_of(table), access };
        self.element(node, Compute::Expr(Expr::identity()), vec![operand]);
    }

    /// Permute and slice: views of their operand.
    pub(super) fn strided(&mut self, node: &Node) {
        let from = node.inputs[0];
        let strides = self.shape(from).strides();
        let dims = self.shape(node.outputs[0]).dims().to_vec();
        let view = match &node.op {
            Op::Permute { axes } => {
                let strides: Vec<usize> = axes.iter().map(|&axis| strides[axis]).collect();
                View::new(&dims, &strides, 0)
            }
            Op::Slice { axis, start, .. } => View::new(&dims, &strides, start * strides[*axis]),
            _ => return,
        };
        let operand = Operand { tensor: self.tensor_of(from), access: Access::View(view) };
        self.element(node, Compute::Copy, vec![operand]);
    }

    pub(super) fn concat_node(&mut self, node: &Node, axis: usize) {
        let parts: Vec<TensorId> = node.inputs.iter().map(|&input| self.tensor_of(input)).collect();
        let extents: Vec<usize> =
            node.inputs.iter().map(|&input| self.shape(input).dims()[axis]).collect();
        let inner = self.shape(node.outputs[0]).dims()[axis + 1..].iter().product();
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        self.concat(node, &parts, inner, &extents, out, result);
    }

    /// Parts one after another; many of them in several steps, as a kernel has few bindings.
    pub(super) fn concat(
        &mut self,
        node: &Node,
        parts: &[TensorId],
        inner: usize,
        extents: &[usize],
        out: TensorId,
        result: Rounded,
    ) {
        let most = self.bindings - 1;
        let total = self.fusion.entry.tensors[out].numel;
        let outer = total / (inner * extents.iter().sum::<usize>()).max(1);
        let (mut parts, mut extents) = (parts.to_vec(), extents.to_vec());
        while parts.len() > most {
            let extent: usize = extents[..most].iter().sum();
            let joined = self.temporary(outer * inner * extent, result.dtype);
            let first: Vec<TensorId> = parts.drain(..most).collect();
            let own: Vec<usize> = extents.drain(..most).collect();
            self.concat_few(node, &first, inner, &own, joined, result);
            parts.insert(0, joined);
            extents.insert(0, extent);
        }
        self.concat_few(node, &parts, inner, &extents, out, result);
    }

    pub(super) fn concat_few(
        &mut self,
        node: &Node,
        parts: &[TensorId],
        inner: usize,
        extents: &[usize],
        out: TensorId,
        result: Rounded,
    ) {
        let filled = parts.iter().zip(extents).filter(|(_, extent)| **extent > 0);
        let (parts, extents): (Vec<TensorId>, Vec<usize>) = filled.unzip();
        let mut end = 0;
        let ends = extents.iter().map(|extent| {
            end += extent;
            end
        });
        let compute = Compute::Concat { inner, ends: ends.collect() };
        // Read past the group's registers.
        let elsewhere = |tensor: TensorId| Operand {
            tensor,
            access: Access::View(View { axes: vec![(2, 0)], offset: 0 }),
        };
        let operands = parts.into_iter().map(elsewhere).collect();
        let dims = vec![self.fusion.entry.tensors[out].numel];
        let result = Rounded { alpha: 1.0, ..result };
        self.push(node, Work::Group(vec![Element { compute, operands, dims, result, out }]));
    }

    /// The element with scalar operands packed into one tensor, where it has more operands than a
    /// kernel has bindings.
    pub(super) fn bounded(&mut self, node: &Node, mut element: Element) -> Element {
        let mut tensors: Vec<TensorId> =
            element.operands.iter().map(|operand| operand.tensor).collect();
        tensors.sort_unstable();
        tensors.dedup();
        let random = if element.draws() { 2 } else { 0 };
        if tensors.len() + 1 + random <= self.bindings {
            return element;
        }
        let is_scalar = |tensor: &TensorId| self.fusion.entry.tensors[*tensor].numel == 1;
        let scalars: Vec<TensorId> = tensors.into_iter().filter(is_scalar).collect();
        let packed = self.temporary(scalars.len(), DType::F32);
        let mut parts: Vec<TensorId> = Vec::new();
        for &scalar in &scalars {
            let part = self.temporary(1, DType::F32);
            let identity = Element {
                compute: Compute::Expr(Expr::identity()),
                operands: vec![Operand::full(scalar, 1)],
                dims: vec![1],
                result: Rounded::PLAIN,
                out: part,
            };
            self.push(node, Work::Group(vec![identity]));
            parts.push(part);
        }
        self.concat(node, &parts, 1, &vec![1; scalars.len()], packed, Rounded::PLAIN);
        for operand in &mut element.operands {
            if let Some(at) = scalars.iter().position(|&scalar| scalar == operand.tensor) {
                operand.tensor = packed;
                operand.access = Access::View(View { axes: vec![(2, 0)], offset: at });
            }
        }
        element
    }
}
