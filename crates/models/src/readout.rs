//! Readouts: hidden states to logits, with a weight of their own or with the token table.

use crate::layers::Layers;
use crate::path::gradient_constant;
use crate::{Init, Result};
use onesigma_graph::{Op, ValueId};
use onesigma_ops::{ParamKind, linear_readout};

/// Factor on the gradient scale of a lookup in a tied table whose embedding is a sum of
/// `embeddings` tensors.
///
/// A tied table is used twice, by the lookup and by the readout, so it is no cut edge: both
/// gradients must carry one constant. With the ideal scales of both uses their constants differ by
/// the factor `sqrt(embeddings)` that the sum's free backward scale brings in; the geometric mean
/// of the two gives each use half of it, this to the lookup and the rest to the readout.
pub(crate) fn tied_lookup_factor(embeddings: usize) -> f64 {
    (embeddings.max(1) as f64).powf(-0.25)
}

impl Layers<'_> {
    /// Logits of `x [.., C]` by `<name>.weight [classes, C]`, a parameter of its own, and a bias
    /// of the given name. Unit-scaled: output `1/C`.
    pub fn readout(
        &mut self,
        name: &str,
        bias: Option<&str>,
        x: ValueId,
        classes: usize,
    ) -> Result<ValueId> {
        let shape = [classes, self.graph.shape(x).last()];
        let init = self.normal(1.0);
        let weight =
            self.param(format!("{name}.weight"), &shape, init, ParamKind::Readout, None)?;
        let bias = self.readout_bias(bias, classes)?;
        self.scoped("readout", |model| Ok(linear_readout(model.graph, model.p, x, weight, bias)?))
    }

    /// Logits of `x [.., C]` by the token table `[V, C]`, which the lookups that `x` depends on
    /// read as well.
    ///
    /// In a unit-scaled model the gradient scale of this use is the one that gives it the constant
    /// of the lookup, see [`tied_lookup_factor`].
    pub fn tied_readout(
        &mut self,
        table: ValueId,
        bias: Option<&str>,
        x: ValueId,
    ) -> Result<ValueId> {
        let (classes, width) = (self.graph.shape(table).dims()[0], self.graph.shape(x).last());
        let bias = self.readout_bias(bias, classes)?;
        if !self.p.is_scaled() {
            return self.scoped("readout", |model| {
                Ok(linear_readout(model.graph, model.p, x, table, bias)?)
            });
        }
        let rows = self.graph.shape(x).rows();
        let rule = || self.p.readout().scales(width, classes, rows);
        let mut scales = self.p.scheme().linear.choose(rule)?;
        // The table's gradient by way of the lookup is beta_x/alpha times this, that of the
        // readout beta_w/alpha.
        let lookup = gradient_constant(self.graph, x, table).unwrap_or(1.0);
        scales.beta[1] = scales.beta[0] * lookup;
        self.scoped("readout", |model| {
            let op = Op::MatMul { transpose_left: false, transpose_right: true };
            let logits = model
                .graph
                .op(op, &[x, table])
                .alpha(scales.alpha)
                .beta(&scales.beta[..2])
                .named("linear")
                .one()?;
            let Some(bias) = bias else { return Ok(logits) };
            let alpha = scales.alpha;
            Ok(model
                .graph
                .map(&[logits, bias], |x| x[0].clone() + x[1].clone() * alpha)?
                .beta(&[1.0, scales.beta[2] / alpha])
                .named("bias")
                .one()?)
        })
    }

    fn readout_bias(&mut self, name: Option<&str>, classes: usize) -> Result<Option<ValueId>> {
        let Some(name) = name else { return Ok(None) };
        let kind = ParamKind::Bias;
        self.param(name.to_owned(), &[classes], Init::Zeros, kind, None).map(Some)
    }
}
