//! The cut-edge rule on a model's forward pass: by which constant each parameter's gradient
//! differs from the true one.

use onesigma_graph::Graph;
use onesigma_graph::passes::legalise::Support;
use onesigma_graph::recipe::Recipe;
use onesigma_ops::verify;

use super::{Builder, Model, Parameter, Settings, TRAIN_STREAMS, Target};
use crate::Result;

/// A parameter with what is proved of its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Proven {
    /// The parameter.
    pub parameter: Parameter,
    /// `c` in `computed gradient = c · true gradient of the loss`; `None` if the loss does not
    /// depend on the parameter.
    pub constant: Option<f64>,
}

/// Proves that the gradients of a training pass are the true ones times constants, and gives the
/// constants.
///
/// # Errors
/// [`Error::Ops`](crate::Error::Ops) with the edge that breaks the cut-edge rule; as
/// [`build`](super::build).
pub fn prove(model: &dyn Model, recipe: &Recipe, settings: Settings) -> Result<Vec<Proven>> {
    let native = |_: &_, _: &[_], _| Support::Native;
    let target = Target { supports: &native, strict: false };
    let builder = Builder::new(model, recipe, settings, target)?;
    let constants = constants(&builder)?;
    let parameters = builder.parameters.into_iter().zip(constants);
    Ok(parameters.map(|(parameter, constant)| Proven { parameter, constant }).collect())
}

/// The constant of each parameter's gradient.
pub(super) fn constants(builder: &Builder<'_>) -> Result<Vec<Option<f64>>> {
    let mut graph = Graph::with_streams_from(TRAIN_STREAMS);
    let (weights, measures) = builder.forward(&mut graph, true)?;
    let proof = verify(&graph, measures.loss, &weights)?;
    Ok(weights.into_iter().map(|weight| proof.constant(weight)).collect())
}
