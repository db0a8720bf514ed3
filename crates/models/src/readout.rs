//! Readouts: hidden states to logits, with a weight of their own or with the token table.

use crate::layers::Layers;
use crate::{Init, Result};
use onesigma_graph::ValueId;
use onesigma_ops::verify::share_parameter;
use onesigma_ops::{ParamKind, linear_readout};

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
    /// A tied table is used twice, so it is no cut edge: in a unit-scaled model both uses get one
    /// constant, see [`share_parameter`].
    pub fn tied_readout(
        &mut self,
        table: ValueId,
        bias: Option<&str>,
        x: ValueId,
    ) -> Result<ValueId> {
        let classes = self.graph.shape(table).dims()[0];
        let bias = self.readout_bias(bias, classes)?;
        let logits =
            self.scoped("readout", |model| linear_readout(model.graph, model.p, x, table, bias))?;
        share_parameter(self.graph, logits, table)?;
        Ok(logits)
    }

    fn readout_bias(&mut self, name: Option<&str>, classes: usize) -> Result<Option<ValueId>> {
        let Some(name) = name else { return Ok(None) };
        let kind = ParamKind::Bias;
        self.param(name.to_owned(), &[classes], Init::Zeros, kind, None).map(Some)
    }
}
