//! Dropout.

use crate::scales::probability;
use crate::{Parametrisation, Result, Scales};
use onesigma_format::{Conversion, Format};
use onesigma_graph::{DType, Distribution, Graph, Op, Role, ValueId};

/// Scales of inverted dropout with probability `p`: output and gradient `sqrt(1 - p)`, so that
/// kept values are multiplied by `1/sqrt(1 - p)` in all. Source: unit-scaling 0.3.5 `dropout`.
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) for a probability outside `[0, 1)`.
pub fn dropout_scales(p: f64) -> Result<Scales> {
    probability("dropout", "p", p)?;
    let scale = (1.0 - p).sqrt();
    Ok(Scales { alpha: scale, beta: vec![scale] })
}

/// Inverted dropout: elements are zeroed with probability `probability`, the others divided by
/// `1 - probability`. The mask is drawn in one byte per element. Scales: [`dropout_scales`], also
/// without `training`, where the op is the identity and the scaled result the mean of the training
/// result; regular: 1.
///
/// # Errors
/// As [`dropout_scales`].
pub fn dropout(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    probability: f64,
    training: bool,
) -> Result<ValueId> {
    let scales = dropout_scales(probability)?;
    let scales = p.scheme().activation.choose(|| Ok(scales))?;
    if probability == 0.0 || (!training && scales.alpha == 1.0) {
        return Ok(x);
    }
    if !training {
        let node = graph.map(&[x], |x| x[0].clone())?;
        return Ok(node.alpha(scales.alpha).beta(&scales.beta).named("dropout").one()?);
    }
    let shape = graph.shape(x).clone();
    let distribution = Distribution::Bernoulli { p: 1.0 - probability };
    let mask = graph
        .op(Op::Random { distribution, shape }, &[])
        .stored_as(DType::Float(Format::E4M3), Conversion::SATURATE)
        .role(Role::Data)
        .named("dropout_mask")
        .one()?;
    let inverse = 1.0 / (1.0 - probability);
    Ok(graph
        .map(&[x, mask], |x| x[0].clone() * x[1].clone() * inverse)?
        .alpha(scales.alpha)
        .beta(&scales.beta)
        .named("dropout")
        .one()?)
}
