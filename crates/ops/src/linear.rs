//! Linear layers and matrix products.

use crate::{Constraint, Parametrisation, Result, Scales};
use onesigma_graph::{Error as GraphError, Graph, Op, Shape, ValueId};

/// Options of [`linear`].
///
/// ```
/// use onesigma_ops::{Constraint, Linear};
///
/// // Forward 1/sqrt(fan_in), and a gradient of the input with a scale of its own.
/// let own = Linear::unconstrained();
/// assert_eq!((own.scale_power, own.constraint), ([0.5; 3], Constraint::None));
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Linear {
    /// Powers `p` of `fan_in^-p0` (output), `fan_out^-p1` (input gradient) and `batch^-p2`
    /// (gradients of weight and bias).
    pub scale_power: [f64; 3],
    /// Over output and input gradient.
    pub constraint: Constraint,
}

impl Default for Linear {
    fn default() -> Self {
        Self { scale_power: [0.5; 3], constraint: Constraint::ToOutputScale }
    }
}

impl Linear {
    /// Output and input gradient keep their ideal scales.
    pub fn unconstrained() -> Self {
        Self { constraint: Constraint::None, ..Self::default() }
    }

    /// The readout of u-muP: output `1/fan_in`, so that the initial logits shrink with width, and
    /// no constraint, as its input is a cut edge (unit-scaling 0.3.5, `linear_readout`; the output
    /// layer of arXiv 2407.17465, table 2).
    pub fn readout() -> Self {
        Self { scale_power: [1.0, 0.5, 0.5], constraint: Constraint::None }
    }

    /// Scales of output, input, weight and bias: `alpha = fan_in^-1/2`,
    /// `beta = [fan_out^-1/2, batch^-1/2, batch^-1/2]`, with the constraint over the first two;
    /// `batch` is the product of the input's leading sizes. Source: arXiv 2303.11257, appendix G
    /// (linear), unit-scaling 0.3.5 `linear`.
    ///
    /// # Errors
    /// As [`Constraint::common`].
    pub fn scales(&self, fan_in: usize, fan_out: usize, batch: usize) -> Result<Scales> {
        let [p0, p1, p2] = self.scale_power;
        let scale = |size: usize, power: f64| (size.max(1) as f64).powf(-power);
        let parameters = scale(batch, p2);
        let beta = [scale(fan_out, p1), parameters, parameters];
        Scales::constrained("linear", scale(fan_in, p0), &beta, 1, self.constraint)
    }
}

/// `alpha (x W^T + b)`: `x [.., fan_in]`, `weight [fan_out, fan_in]`, `bias [fan_out]`, result
/// `[.., fan_out]`. Scales: [`Linear::scales`], exact in `mu-s`; regular: all 1.
///
/// # Errors
/// [`Error::Graph`](crate::Error::Graph) for shapes that do not fit; as [`Linear::scales`].
pub fn linear(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
    options: Linear,
) -> Result<ValueId> {
    let &[fan_out, fan_in] = graph.shape(weight).dims() else {
        return Err(not_a_matrix(graph, weight).into());
    };
    let batch = graph.shape(x).rows();
    let scales = p.scheme().linear.choose(|| options.scales(fan_in, fan_out, batch))?;
    scaled_linear(graph, x, weight, bias, &scales)
}

/// A linear layer with given scales. The bias is added in a map of its own: its term there is
/// `alpha b`, so its backward scale is divided by `alpha` once.
pub(crate) fn scaled_linear(
    graph: &mut Graph,
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
    scales: &Scales,
) -> Result<ValueId> {
    // A vector is a batch of one row.
    let vector = graph.shape(x).rank() == 1;
    let row = if vector { graph.reshape(x, [1, graph.shape(x).last()])? } else { x };
    let op = Op::MatMul { transpose_left: false, transpose_right: true };
    let mut y = graph
        .op(op, &[row, weight])
        .alpha(scales.alpha)
        .beta(&[scales.beta(0), scales.beta(1)])
        .named("linear")
        .one()?;
    if vector {
        y = graph.reshape(y, [graph.shape(y).last()])?;
    }
    match bias {
        None => Ok(y),
        Some(bias) => add_bias(graph, y, bias, scales),
    }
}

/// `y + alpha b` for a bias that broadcasts to `y`, which holds `alpha` already.
pub(crate) fn add_bias(
    graph: &mut Graph,
    y: ValueId,
    bias: ValueId,
    scales: &Scales,
) -> Result<ValueId> {
    let alpha = scales.alpha;
    Ok(graph
        .map(&[y, bias], |x| x[0].clone() + x[1].clone() * alpha)?
        .beta(&[1.0, scales.beta(2) / alpha])
        .named("bias")
        .one()?)
}

/// [`linear`] with the [`readout`](Parametrisation::readout) of the parametrisation: hidden states
/// to logits.
///
/// # Errors
/// As [`linear`].
pub fn linear_readout(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
) -> Result<ValueId> {
    linear(graph, p, x, weight, bias, p.readout())
}

/// Scales of a product `[.., l, k] x [.., k, r]`: `alpha = k^-1/2`, `beta = [r^-1/2, l^-1/2]`, the
/// constraint over all three. Leading sizes do not enter. Source: unit-scaling 0.3.5 `matmul`.
///
/// # Errors
/// As [`Constraint::common`].
pub fn matmul_scales(l: usize, k: usize, r: usize, constraint: Constraint) -> Result<Scales> {
    let [alpha, left, right] = [k, r, l].map(|size| (size.max(1) as f64).powf(-0.5));
    Scales::constrained("matmul", alpha, &[left, right], 2, constraint)
}

/// `alpha (left right)` of two activations: `left [.., l, k]`, `right [.., k, r]`. Scales:
/// [`matmul_scales`]; regular: all 1.
///
/// # Errors
/// [`Error::Graph`](crate::Error::Graph) for shapes that do not fit; as [`matmul_scales`].
pub fn matmul(
    graph: &mut Graph,
    p: Parametrisation,
    left: ValueId,
    right: ValueId,
    constraint: Constraint,
) -> Result<ValueId> {
    let (a, b) = (graph.shape(left), graph.shape(right));
    let rows = |shape: &Shape| shape.dims().iter().rev().nth(1).copied().unwrap_or(1);
    let (l, k, r) = (rows(a), a.last(), b.last());
    let scales = p.scheme().linear.choose(|| matmul_scales(l, k, r, constraint))?;
    Ok(graph.matmul(left, right).alpha(scales.alpha).beta(&scales.beta).one()?)
}

fn not_a_matrix(graph: &Graph, weight: ValueId) -> GraphError {
    GraphError::Shape {
        node: graph.value_name(weight),
        op: "linear",
        found: graph.shape(weight).to_string(),
        expected: "a weight [fan_out, fan_in]".to_owned(),
    }
}
