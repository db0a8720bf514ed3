//! Element-wise activations: GELU, SiLU and the gated SiLU.
//!
//! Their scales interpolate between two limits of `mult`: for a small one the function is nearly
//! linear, for a large one it is a ReLU, whose output has `sqrt((1 - 1/pi) / 2)` of the input's
//! standard deviation and whose gradient has `sqrt(1/2)`. Source: unit-scaling 0.3.5, measured
//! there; [`log_mix`] is the interpolation.

use crate::scales::{log_mix, positive};
use crate::{Constraint, Parametrisation, Result, Scales};
use onesigma_graph::expr::{Expr, Term};
use onesigma_graph::{Graph, ValueId};
use std::f64::consts::{FRAC_1_PI, FRAC_1_SQRT_2, SQRT_2};

/// Form of GELU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum GeluForm {
    /// `x (1 + erf(x / sqrt 2)) / 2`.
    #[default]
    Erf,
    /// `x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2`, the form of GPT-2 (`gelu_new`).
    Tanh,
}

/// Factor that brings a ReLU's output to unit standard deviation.
fn relu_scale() -> f64 {
    (2.0 / (1.0 - FRAC_1_PI)).sqrt()
}

/// Scales of `gelu(m x)/m`: with `a = 1/(1 + 0.25/m^2)`,
/// `alpha = log_mix(a, sqrt(2/(1-1/pi)), 2)`, `beta = log_mix(a, sqrt 2, 2)`.
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) for a `mult` that is not positive; as
/// [`Constraint::common`].
pub fn gelu_scales(mult: f64, constraint: Constraint) -> Result<Scales> {
    positive("gelu", "mult", mult)?;
    let a = 1.0 / (1.0 + 0.25 / (mult * mult));
    let (alpha, beta) = (log_mix(a, relu_scale(), 2.0), log_mix(a, SQRT_2, 2.0));
    Scales::constrained("gelu", alpha, &[beta], 1, constraint)
}

/// `alpha gelu(mult x)/mult`. Scales: [`gelu_scales`]; regular: 1.
///
/// # Errors
/// As [`gelu_scales`].
pub fn gelu(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    form: GeluForm,
    mult: f64,
    constraint: Constraint,
) -> Result<ValueId> {
    positive("gelu", "mult", mult)?;
    let scales = p.scheme().activation.choose(|| gelu_scales(mult, constraint))?;
    scaled_map(graph, &[x], gelu_expr(form, mult), &scales, "gelu")
}

pub(crate) fn gelu_expr(form: GeluForm, m: f64) -> Expr {
    Expr::new(1, |x: &[Term]| {
        let x = x[0].clone();
        let gate = match form {
            GeluForm::Erf => (x.clone() * (m * FRAC_1_SQRT_2)).erf(),
            GeluForm::Tanh => {
                let z = x.clone() * m;
                let cubic = z.square() * z.clone() * 0.044715;
                ((z + cubic) * (2.0 * FRAC_1_PI).sqrt()).tanh()
            }
        };
        x * ((gate + 1.0) * 0.5)
    })
}

/// A map over operands of one shape.
fn scaled_map(
    graph: &mut Graph,
    operands: &[ValueId],
    expr: Expr,
    scales: &Scales,
    name: &str,
) -> Result<ValueId> {
    let node = graph.map(operands, |x| expr.apply(x))?;
    Ok(node.alpha(scales.alpha).beta(&scales.beta).named(name).one()?)
}

/// Scales of `x sigmoid(m x)`: `alpha` as [`gelu_scales`]; with `a = 1/(1 + 1/m^2)`,
/// `beta = log_mix(a, sqrt 2, 2)`.
///
/// # Errors
/// As [`gelu_scales`].
pub fn silu_scales(mult: f64, constraint: Constraint) -> Result<Scales> {
    positive("silu", "mult", mult)?;
    let a = 1.0 / (1.0 + 0.25 / (mult * mult));
    let b = 1.0 / (1.0 + 1.0 / (mult * mult));
    let (alpha, beta) = (log_mix(a, relu_scale(), 2.0), log_mix(b, SQRT_2, 2.0));
    Scales::constrained("silu", alpha, &[beta], 1, constraint)
}

/// `alpha x sigmoid(mult x)`. Scales: [`silu_scales`]; regular: 1.
///
/// # Errors
/// As [`silu_scales`].
pub fn silu(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    mult: f64,
    constraint: Constraint,
) -> Result<ValueId> {
    positive("silu", "mult", mult)?;
    let scales = p.scheme().activation.choose(|| silu_scales(mult, constraint))?;
    scaled_map(graph, &[x], silu_expr(mult), &scales, "silu")
}

pub(crate) fn silu_expr(mult: f64) -> Expr {
    Expr::new(1, |x| x[0].clone() * (x[0].clone() * mult).sigmoid())
}

/// Scales of `x gate sigmoid(m gate)`: with `a = 1/(1 + 1/m^2)`, output and both gradients
/// `log_mix(a, sqrt 2, 2)`.
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) for a `mult` that is not positive.
pub fn silu_glu_scales(mult: f64) -> Result<Scales> {
    positive("silu_glu", "mult", mult)?;
    let scale = log_mix(1.0 / (1.0 + 1.0 / (mult * mult)), SQRT_2, 2.0);
    Ok(Scales { alpha: scale, beta: vec![scale; 2] })
}

/// `alpha x gate sigmoid(mult gate)`, both operands of one shape. Scales: [`silu_glu_scales`];
/// regular: 1.
///
/// # Errors
/// As [`silu_glu_scales`].
pub fn silu_glu(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    gate: ValueId,
    mult: f64,
) -> Result<ValueId> {
    positive("silu_glu", "mult", mult)?;
    let scales = p.scheme().activation.choose(|| silu_glu_scales(mult))?;
    scaled_map(graph, &[x, gate], silu_glu_expr(mult), &scales, "silu_glu")
}

pub(crate) fn silu_glu_expr(mult: f64) -> Expr {
    Expr::new(2, |x| x[0].clone() * x[1].clone() * (x[1].clone() * mult).sigmoid())
}
