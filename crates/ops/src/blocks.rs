//! Blocks of several layers: gated MLP, self-attention, transformer layer (the modules of the
//! `unit-scaling` library). Weights are values of the graph; shapes `[batch, seq, width]`.

use crate::{
    Attention, Error, NormPlacement, Parametrisation, Result, attention, dropout, linear,
    residual_apply, rms_norm, silu_glu,
};
use onesigma_graph::{Graph, Op, ValueId};

/// Weights of [`mlp`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MlpWeights {
    /// `[inner, width]`.
    pub up: ValueId,
    /// `[inner, width]`.
    pub gate: ValueId,
    /// `[width, inner]`.
    pub down: ValueId,
}

/// `down(silu_glu(up x, gate x))`: `x [.., width]`, result the same. The three layers carry the
/// scales of [`Parametrisation::mirrored`]: going up and down their sizes mirror each other.
/// Source: unit-scaling 0.3.5 `MLP`.
///
/// # Errors
/// [`Error::Graph`] for shapes that do not fit; [`Error::Argument`] for a `mult` that is not
/// positive.
pub fn mlp(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    weights: MlpWeights,
    mult: f64,
) -> Result<ValueId> {
    let MlpWeights { up, gate, down } = weights;
    let layer = |graph: &mut Graph, name: &str, x, weight| {
        graph.scoped(name, |graph| linear(graph, p, x, weight, None, p.mirrored()))
    };
    let (up, gate) = (layer(graph, "up", x, up)?, layer(graph, "gate", x, gate)?);
    let inner = silu_glu(graph, p, up, gate, mult)?;
    layer(graph, "down", inner, down)
}

/// Weights of [`mhsa`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MhsaWeights {
    /// `[3 width, width]`: queries, keys and values one after another.
    pub qkv: ValueId,
    /// `[width, width]`.
    pub output: ValueId,
}

/// Multi-head self-attention without positions or biases: `x [batch, seq, width]`, result the
/// same. One layer makes queries, keys and values; `heads` divides the width. Source: unit-scaling
/// 0.3.5 `MHSA`.
///
/// # Errors
/// [`Error::Argument`] for an `x` of other axes, heads that do not divide the width, or options
/// outside their range; [`Error::Graph`] for weights of another shape.
pub fn mhsa(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    weights: MhsaWeights,
    heads: usize,
    options: Attention,
) -> Result<ValueId> {
    let wrong = |argument, found: String, expected: &str| Error::Argument {
        op: "mhsa",
        argument,
        found,
        expected: expected.to_owned(),
    };
    let &[batch, seq, width] = graph.shape(x).dims() else {
        return Err(wrong("x", graph.shape(x).to_string(), "[batch, seq, width]"));
    };
    if heads == 0 || !width.is_multiple_of(heads) {
        let expected = format!("a divisor of the width, {width}");
        return Err(wrong("heads", heads.to_string(), &expected));
    }
    let hidden = p.hidden();
    let qkv = graph.scoped("qkv", |graph| linear(graph, p, x, weights.qkv, None, hidden))?;
    let mut parts = [qkv; 3];
    for (n, part) in parts.iter_mut().enumerate() {
        let slice = Op::Slice { axis: 2, start: n * width, len: width };
        let value = graph.op(slice, &[qkv]).one()?;
        *part = graph.reshape(value, [batch, seq, heads, width / heads])?;
    }
    let y = attention(graph, p, parts, options)?;
    let y = graph.reshape(y, [batch, seq, width])?;
    graph.scoped("output", |graph| linear(graph, p, y, weights.output, None, hidden))
}

/// Options of [`transformer_layer`].
///
/// ```
/// use onesigma_graph::{DType, Graph, Module, Role, SlotKind};
/// use onesigma_ops::{
///     Attention, MhsaWeights, MlpWeights, Parametrisation, TransformerLayer, transformer_layer,
/// };
///
/// # fn main() -> Result<(), onesigma_ops::Error> {
/// let (mut module, mut graph) = (Module::new(), Graph::new());
/// let mut read = |name: &str, shape: &[usize], role| {
///     let slot = module.slot(name, SlotKind::State, shape.to_vec(), DType::F32, role)?;
///     Ok::<_, onesigma_ops::Error>(module.read(&mut graph, slot))
/// };
/// let x = read("x", &[2, 16, 64], Role::Activation)?;
/// let mut weight = |name: &str, shape: [usize; 2]| read(name, &shape, Role::MasterWeight);
/// let attention =
///     MhsaWeights { qkv: weight("qkv", [192, 64])?, output: weight("output", [64, 64])? };
/// let feed_forward = MlpWeights {
///     up: weight("up", [256, 64])?,
///     gate: weight("gate", [256, 64])?,
///     down: weight("down", [64, 256])?,
/// };
/// let options = TransformerLayer {
///     heads: 4,
///     taus: [0.5, 0.5],
///     attention: Attention::default(),
///     dropout: 0.0,
///     mult: 1.0,
///     eps: 1e-5,
/// };
/// let p = Parametrisation::UMup;
/// let y = transformer_layer(&mut graph, p, x, attention, feed_forward, options)?;
/// assert_eq!(graph.shape(y).dims(), [2, 16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TransformerLayer {
    /// Number of attention heads.
    pub heads: usize,
    /// Weights of the attention and the MLP branch against their skips, as
    /// [`residual_apply`] takes them; for a stack, from
    /// [`TransformerResidual::tau`](crate::TransformerResidual::tau).
    pub taus: [f64; 2],
    /// Options of attention.
    pub attention: Attention,
    /// Dropout at the end of each branch.
    pub dropout: f64,
    /// `mult` of the gated activation.
    pub mult: f64,
    /// Added to the mean square in the norms.
    pub eps: f64,
}

/// One layer of a transformer: attention and MLP, each a residual branch with an RMS norm without
/// parameters where the parametrisation wants it; `x [batch, seq, width]`, result the same. Source:
/// unit-scaling 0.3.5 `TransformerLayer`.
///
/// # Errors
/// As [`mhsa`] and [`mlp`]; [`Error::Argument`] for a `tau` that is not positive.
pub fn transformer_layer(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    attention: MhsaWeights,
    feed_forward: MlpWeights,
    options: TransformerLayer,
) -> Result<ValueId> {
    let TransformerLayer { heads, taus, mult, eps, .. } = options;
    let branch =
        |graph: &mut Graph, x: ValueId, body: &dyn Fn(&mut Graph, ValueId) -> Result<ValueId>| {
            let norm = |graph: &mut Graph, x| rms_norm(graph, p, x, None, 1, eps);
            let drop = |graph: &mut Graph, x| {
                dropout(graph, p, x, options.dropout, options.attention.training)
            };
            match p.scheme().norm {
                NormPlacement::BranchStart => {
                    let x = norm(graph, x)?;
                    let x = body(graph, x)?;
                    drop(graph, x)
                }
                NormPlacement::BranchEnd => {
                    let x = body(graph, x)?;
                    let x = drop(graph, x)?;
                    norm(graph, x)
                }
            }
        };
    let x = graph.scoped("attention", |graph| {
        residual_apply(graph, p, x, taus[0], |graph, x| {
            branch(graph, x, &|graph, x| mhsa(graph, p, x, attention, heads, options.attention))
        })
    })?;
    graph.scoped("mlp", |graph| {
        residual_apply(graph, p, x, taus[1], |graph, x| {
            branch(graph, x, &|graph, x| mlp(graph, p, x, feed_forward, mult))
        })
    })
}
