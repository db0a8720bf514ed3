//! Layer norm and RMS norm.

use crate::{Error, Parametrisation, Result, Scales};
use onesigma_graph::{Graph, Op, ValueId};

/// Scales of a norm over `normalised` elements, of an input of `numel`: output and input gradient
/// 1, weight and bias `sqrt(normalised/numel)`. Operands: x, weight, bias. Source: unit-scaling
/// 0.3.5 `layer_norm`, `rms_norm`.
pub fn norm_scales(normalised: usize, numel: usize) -> Scales {
    let parameters = (normalised.max(1) as f64 / numel.max(1) as f64).sqrt();
    Scales { alpha: 1.0, beta: vec![1.0, parameters, parameters] }
}

/// `(x - mean)/sqrt(var + eps) * weight + bias` over the last `axes` axes, whose shape weight and
/// bias have; a bias needs a weight. Scales: [`norm_scales`]; regular: 1.
///
/// # Errors
/// [`Error::Argument`] for more axes than `x` has, or a bias without a weight; [`Error::Graph`]
/// for parameters of another shape.
pub fn layer_norm(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    weight: Option<ValueId>,
    bias: Option<ValueId>,
    axes: usize,
    eps: f64,
) -> Result<ValueId> {
    if bias.is_some() && weight.is_none() {
        return Err(Error::Argument {
            op: "layer_norm",
            argument: "bias",
            found: "given without a weight".to_owned(),
            expected: "a weight beside it".to_owned(),
        });
    }
    norm(graph, p, Op::LayerNorm { eps }, "layer_norm", [Some(x), weight, bias], axes)
}

/// `x/sqrt(mean(x^2) + eps) * weight` over the last `axes` axes, whose shape the weight has.
/// Scales: [`norm_scales`]; regular: 1.
///
/// # Errors
/// [`Error::Argument`] for more axes than `x` has; [`Error::Graph`] for a weight of another shape.
pub fn rms_norm(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    weight: Option<ValueId>,
    axes: usize,
    eps: f64,
) -> Result<ValueId> {
    norm(graph, p, Op::RmsNorm { eps }, "rms_norm", [Some(x), weight, None], axes)
}

fn norm(
    graph: &mut Graph,
    p: Parametrisation,
    op: Op,
    name: &'static str,
    operands: [Option<ValueId>; 3],
    axes: usize,
) -> Result<ValueId> {
    let mut operands: Vec<ValueId> = operands.into_iter().flatten().collect();
    let shape = graph.shape(operands[0]).clone();
    if axes == 0 || axes > shape.rank() {
        return Err(Error::Argument {
            op: name,
            argument: "axes",
            found: axes.to_string(),
            expected: format!("1 to {}, the axes of {shape}", shape.rank()),
        });
    }
    let (lead, normalised) = shape.dims().split_at(shape.rank() - axes);
    let size: usize = normalised.iter().product();
    // The ops normalise the last axis; several axes are flattened into one.
    if axes > 1 {
        let mut flat = lead.to_vec();
        flat.push(size);
        operands[0] = graph.reshape(operands[0], flat)?;
        for parameter in &mut operands[1..] {
            if graph.shape(*parameter).dims() != normalised {
                return Err(Error::Argument {
                    op: name,
                    argument: "weight",
                    found: graph.shape(*parameter).to_string(),
                    expected: format!("the normalised shape {normalised:?}"),
                });
            }
            *parameter = graph.reshape(*parameter, [size])?;
        }
    }
    let mut scales = p.scheme().parameters.choose(|| Ok(norm_scales(size, shape.numel())))?;
    scales.beta.truncate(operands.len());
    let y = graph.op(op, &operands).alpha(scales.alpha).beta(&scales.beta).named(name).one()?;
    Ok(graph.reshape(y, shape)?)
}
