//! Attention and its gradient as matrix products and row-wise softmax.
//!
//! Legend: `b` batch, `s` queries, `t` keys, `h` heads, `n` key-value heads, `g = h / n`, `d` head
//! size. The `g` query heads of one key-value head are stacked into the rows of one product, so
//! that keys and values are never repeated.

use super::Expansion;
use crate::expr::Term;
use crate::{DType, Op, ReduceKind, Result, Shape, ValueId};

/// Sizes of an attention node.
#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
    s: usize,
    t: usize,
    n: usize,
    g: usize,
    d: usize,
    causal: bool,
}

impl Sizes {
    /// Logits by head: query on axis 3, key on axis 4.
    fn logits(self) -> Shape {
        [self.b, self.n, self.g, self.s, self.t].into()
    }

    /// Whether the query sees the key, of which `mask` is the mask; `None` if all are seen.
    fn keep(self, mask: Option<&Term>) -> Option<Term> {
        let shift = self.t as f64 - self.s as f64;
        let causal = self.causal.then(|| Term::index(4).less_equal(Term::index(3) + shift));
        match (causal, mask) {
            (Some(causal), Some(mask)) => Some(mask.equal(0.0).select(0.0, causal)),
            (None, Some(mask)) => Some(mask.equal(0.0).select(0.0, 1.0)),
            (causal, None) => causal,
        }
    }

    fn masked(self, value: Term, mask: Option<&Term>) -> Term {
        match self.keep(mask) {
            Some(keep) => keep.select(value, 0.0),
            None => value,
        }
    }
}

fn product(transpose_left: bool, transpose_right: bool) -> Op {
    Op::MatMul { transpose_left, transpose_right }
}

impl Expansion<'_> {
    fn sizes(&self, causal: bool) -> Sizes {
        let (q, k) = (self.graph.shape(self.x[0]).dims(), self.graph.shape(self.x[1]).dims());
        Sizes { b: q[0], s: q[1], t: k[1], n: k[2], g: q[2] / k[2].max(1), d: q[3], causal }
    }

    /// `[b, s, h, d]` to `[b, n, g s, d]`.
    fn stack(&mut self, value: ValueId, z: Sizes) -> Result<ValueId> {
        let split = self.reshape(value, [z.b, z.s, z.n, z.g, z.d].into())?;
        let ordered = self.permute(split, &[0, 2, 3, 1, 4])?;
        self.reshape(ordered, [z.b, z.n, z.g * z.s, z.d].into())
    }

    /// `[b, n, g s, d]` to `[b, s, h, d]`.
    fn unstack(&mut self, value: ValueId, z: Sizes) -> Result<ValueId> {
        let split = self.reshape(value, [z.b, z.n, z.g, z.s, z.d].into())?;
        let ordered = self.permute(split, &[0, 3, 1, 2, 4])?;
        self.reshape(ordered, [z.b, z.s, z.n * z.g, z.d].into())
    }

    /// Scaled logits of stacked queries, `[b, n, g, s, t]`.
    fn logits(&mut self, q: ValueId, k: ValueId, z: Sizes, scale: f64) -> Result<ValueId> {
        let logits = self.step("logits", product(false, true), &[q, k], scale)?;
        self.reshape(logits, z.logits())
    }

    /// The mask `[b, t]` of operand `n`, if there is one, along the keys of the logits.
    fn key_mask(&mut self, n: usize, z: Sizes) -> Result<Option<ValueId>> {
        match self.x.get(n).copied() {
            Some(mask) => self.reshape(mask, [z.b, 1, 1, 1, z.t].into()).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn attention(&mut self, causal: bool, scale: f64) -> Result<Vec<ValueId>> {
        let z = self.sizes(causal);
        let q = self.stack(self.x[0], z)?;
        let k = self.permute(self.x[1], &[0, 2, 1, 3])?;
        let v = self.permute(self.x[2], &[0, 2, 1, 3])?;
        let logits = self.logits(q, k, z, scale)?;
        let mask = self.key_mask(3, z)?;
        let (max, sum) =
            self.row_statistics(logits, mask, &z.logits(), Clone::clone, |mask| z.keep(mask))?;
        let mut inputs = vec![logits, max, sum];
        inputs.extend(mask);
        let op = self.map(&z.logits(), inputs.len(), |x| {
            z.masked((x[0].clone() - x[1].clone()).exp() / x[2].clone(), x.get(3))
        });
        let weights = self.step("weights", op, &inputs, 1.0)?;
        let weights = self.reshape(weights, [z.b, z.n, z.g * z.s, z.t].into())?;
        let output = self.step("values", product(false, false), &[weights, v], 1.0)?;
        let output = self.unstack(output, z)?;
        let output = self.last(0, Op::Cast { to: DType::F32 }, &[output], 1.0)?;
        let rows = [z.b, z.n * z.g, z.s];
        let max = self.reshape(max, rows.into())?;
        let sum = self.reshape(sum, rows.into())?;
        let op = self.map(&rows.into(), 2, |x| x[0].clone() + x[1].ln());
        let lse = self.last(1, op, &[max, sum], 1.0)?;
        Ok(vec![output, lse])
    }

    pub(super) fn attention_grad(
        &mut self,
        causal: bool,
        scale: f64,
        forward_alpha: f64,
    ) -> Result<Vec<ValueId>> {
        let z = self.sizes(causal);
        let (output, lse, dy) = (self.x[3], self.x[4], self.x[5]);
        let q = self.stack(self.x[0], z)?;
        let k = self.permute(self.x[1], &[0, 2, 1, 3])?;
        let v = self.permute(self.x[2], &[0, 2, 1, 3])?;
        let logits = self.logits(q, k, z, scale)?;
        let column: Shape = [z.b, z.n, z.g, z.s, 1].into();
        let lse = self.reshape(lse, column.clone())?;
        let mut inputs = vec![logits, lse];
        inputs.extend(self.key_mask(6, z)?);
        let op = self.map(&z.logits(), inputs.len(), |x| {
            z.masked((x[0].clone() - x[1].clone()).exp(), x.get(2))
        });
        let weights = self.step("weights", op, &inputs, 1.0)?;
        let rows: Shape = [z.b, z.n, z.g * z.s, z.t].into();

        // The share of each row that its own normalisation takes back: sum(dy y).
        let shape = self.shape(dy);
        let op = self.rows(ReduceKind::Sum, &shape, 2, |x| x[0].clone() * x[1].clone());
        let along = self.step("along", op, &[dy, output], 1.0 / forward_alpha)?;
        let along = self.permute(along, &[0, 2, 1, 3])?;
        let along = self.reshape(along, column)?;

        let dy = self.stack(dy, z)?;
        let d_weights = self.step("d_weights", product(false, true), &[dy, v], 1.0)?;
        let d_weights = self.reshape(d_weights, z.logits())?;
        let op = self.map(&z.logits(), 3, |x| x[0].clone() * (x[1].clone() - x[2].clone()));
        let d_logits = self.step("d_logits", op, &[weights, d_weights, along], 1.0)?;
        let d_logits = self.reshape(d_logits, rows.clone())?;
        let weights = self.reshape(weights, rows)?;

        let cast = Op::Cast { to: DType::F32 };
        let dq = self.step("dq", product(false, false), &[d_logits, k], scale)?;
        let dq = self.unstack(dq, z)?;
        let dq = self.last(0, cast.clone(), &[dq], 1.0)?;
        let dk = self.step("dk", product(true, false), &[d_logits, q], scale)?;
        let dk = self.permute(dk, &[0, 2, 1, 3])?;
        let dk = self.last(1, cast.clone(), &[dk], 1.0)?;
        let dv = self.step("dv", product(true, false), &[weights, dy], 1.0)?;
        let dv = self.permute(dv, &[0, 2, 1, 3])?;
        let dv = self.last(2, cast, &[dv], 1.0)?;
        Ok(vec![dq, dk, dv])
    }
}
