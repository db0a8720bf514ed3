//! The update of parameters.

use onesigma_graph::expr::{Expr, Term};
use onesigma_graph::{AdamWConfig, Node};

use super::Lowering;
use crate::ir::{Compute, Element, Operand, Rounded, TensorId, Updated};

impl Lowering<'_> {
    /// Three element-wise results, which fusion puts into one kernel.
    pub(super) fn adam_w(&mut self, node: &Node, config: &AdamWConfig) {
        let &[w, gradient, m, v, lr, step, factor] = &node.inputs[..] else { return };
        let corrections =
            [config.beta1, config.beta2].map(|beta| self.correction(node, step, beta));
        let shape = self.shape(w).clone();
        let scalar = self.broadcast(&[factor], &shape);
        for (which, inputs) in [
            (Updated::Weight, vec![w, gradient, m, v, lr, factor]),
            (Updated::First, vec![m, gradient, factor]),
            (Updated::Second, vec![v, gradient, factor]),
        ] {
            let mut operands = self.broadcast(&inputs, &shape);
            if which == Updated::Weight {
                let access = &scalar[0].access;
                operands
                    .extend(corrections.map(|tensor| Operand { tensor, access: access.clone() }));
            }
            let at = which as usize;
            let (result, out) = (self.rounded(node, at), self.result(node.outputs[at]));
            let compute = Compute::AdamW(*config, which);
            let dims = shape.dims().to_vec();
            self.push_element(node, Element { compute, operands, dims, result, out });
        }
    }

    /// `1 - beta^t` for `t = step + 1`, by the hyperbolic tangent and so without cancellation:
    /// `1 - e^x = -2 T / (1 - T)` with `T = tanh(x / 2)`.
    fn correction(&mut self, node: &Node, step: onesigma_graph::ValueId, beta: f64) -> TensorId {
        let key = (self.tensor_of(step), beta.to_bits());
        if let Some(&known) = self.corrections.get(&key) {
            return known;
        }
        let expr = Expr::new(1, |step| {
            if beta <= 0.0 {
                return Term::constant(1.0);
            }
            let half = ((step[0].clone() + 1.0) * (0.5 * beta.ln())).tanh();
            half.clone() * -2.0 / (Term::constant(1.0) - half)
        });
        let out = self.temporary(1, onesigma_graph::DType::F32);
        let operands = vec![self.full(step)];
        let compute = Compute::Expr(expr);
        let result = Rounded::PLAIN;
        self.push_element(node, Element { compute, operands, dims: vec![1], result, out });
        self.corrections.insert(key, out);
        out
    }
}
