//! Element-wise functions whose scales follow from the function: those of the paper's table and
//! functions of the caller.
//!
//! The ideal scales of `f` are those for a standard normal input and gradient: the output is
//! divided by the standard deviation of `f(z)`, the gradient by the root mean square of `f'(z)`
//! (arXiv 2303.11257, appendix G). [`gaussian_scales`] computes both by integration.

use crate::scales::positive;
use crate::{Constraint, Error, Parametrisation, Result, Scales};
use onesigma_graph::expr::{Expr, Term};
use onesigma_graph::special::erf;
use onesigma_graph::{Graph, Op, ValueId};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// Ideal scales of an element-wise function of one operand: `alpha = 1/std(f(z))`,
/// `beta = 1/rms(f'(z))` for a standard normal `z`, by the trapezoidal rule over 12 standard
/// deviations: to rounding for smooth functions, to 10^-6 for those with kinks or jumps.
///
/// # Errors
/// [`Error::Argument`] for a function of other than one operand, or one that is constant or not
/// finite.
pub fn gaussian_scales(f: &Expr) -> Result<Scales> {
    let wrong = |found: String, expected: &str| Error::Argument {
        op: "elementwise",
        argument: "f",
        found,
        expected: expected.to_owned(),
    };
    if f.inputs() != 1 {
        return Err(wrong(format!("a function of {}", f.inputs()), "one of one operand"));
    }
    const STEPS: i32 = 1 << 15;
    let width = 12.0 / f64::from(STEPS);
    // No node lies on zero or another round number, where kinks are.
    let nodes = (-STEPS..STEPS).map(|n| (f64::from(n) + 0.5) * width);
    let derivative = &f.gradients()[0];
    let (mut mean, mut square, mut slope) = (0.0, 0.0, 0.0);
    for z in nodes {
        let weight = (-0.5 * z * z).exp() * width / (2.0 * PI).sqrt();
        let (y, dy) = (f.eval(&[z], &[]), derivative.eval(&[z, 1.0], &[]));
        mean += weight * y;
        square += weight * y * y;
        slope += weight * dy * dy;
    }
    let scales = [(square - mean * mean).powf(-0.5), slope.powf(-0.5)];
    if scales.iter().all(|scale| *scale > 0.0 && scale.is_finite()) {
        return Ok(Scales { alpha: scales[0], beta: vec![scales[1]] });
    }
    Err(wrong(format!("{f}, with scales {scales:?}"), "a finite function that is not constant"))
}

/// `alpha f(x)`, an element-wise function of the caller, for which `ideal` gives the scales of
/// output and gradient (measured, derived or from [`gaussian_scales`]); the constraint is over
/// both. `name` is the last word of the node's name. Regular and `mu-s`: 1.
///
/// ```
/// use onesigma_graph::expr::Expr;
/// use onesigma_graph::{DType, Graph, Module, Role, SlotKind};
/// use onesigma_ops::{Constraint, Parametrisation, elementwise, gaussian_scales};
///
/// # fn main() -> Result<(), onesigma_ops::Error> {
/// let mut module = Module::new();
/// let x = module.slot("x", SlotKind::Input, [8, 16], DType::F32, Role::Data)?;
/// let mut graph = Graph::new();
/// let x = module.read(&mut graph, x);
/// let square = Expr::new(1, |x| x[0].square());
/// let ideal = gaussian_scales(&square)?; // std(z^2) = sqrt 2, rms(2 z) = 2
/// let p = Parametrisation::UMup;
/// let y = elementwise(&mut graph, p, x, "square", square, &ideal, Constraint::None)?;
/// let node = graph.node(graph.value(y).producer);
/// assert!((node.alpha[0] - 0.5_f64.sqrt()).abs() < 1e-9);
/// assert!((node.beta[0] - 0.5).abs() < 1e-9);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Argument`] for scales that are not positive or a function of other than one operand;
/// as [`Constraint::common`].
pub fn elementwise(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    name: &'static str,
    f: Expr,
    ideal: &Scales,
    constraint: Constraint,
) -> Result<ValueId> {
    positive(name, "alpha", ideal.alpha)?;
    positive(name, "beta", ideal.beta(0))?;
    let rule = || Scales::constrained(name, ideal.alpha, &[ideal.beta(0)], 1, constraint);
    let scales = p.scheme().activation.choose(rule)?;
    let op = Op::Map { expr: f, shape: graph.shape(x).clone() };
    Ok(graph.op(op, &[x]).alpha(scales.alpha).beta(&scales.beta).named(name).one()?)
}

/// Scales of `max(x, 0)`: `alpha = sqrt(2/(1 - 1/pi))`, `beta = sqrt 2`. Source: arXiv 2303.11257,
/// table A.2.
///
/// # Errors
/// As [`Constraint::common`].
pub fn relu_scales(constraint: Constraint) -> Result<Scales> {
    let alpha = (2.0 / (1.0 - 1.0 / PI)).sqrt();
    Scales::constrained("relu", alpha, &[2_f64.sqrt()], 1, constraint)
}

/// `alpha max(x, 0)`. Scales: [`relu_scales`]; regular and `mu-s`: 1.
///
/// # Errors
/// As [`relu_scales`].
pub fn relu(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    constraint: Constraint,
) -> Result<ValueId> {
    let ideal = relu_scales(Constraint::None)?;
    elementwise(graph, p, x, "relu", relu_expr(), &ideal, constraint)
}

pub(crate) fn relu_expr() -> Expr {
    Expr::new(1, |x| x[0].max(0.0))
}

/// `E[(sigmoid(z) - 1/2)^2]^-1/2` for a normal `z`.
const SIGMOID_OUTPUT: f64 = 4.801_313_372_0;
/// `E[(sigmoid(z) (1 - sigmoid(z)))^2]^-1/2` for a normal `z`.
const SIGMOID_GRADIENT: f64 = 4.722_646_085_9;

/// Scales of `sigmoid(x)`: the reciprocal standard deviation of `sigmoid(z)` and root mean square
/// of its derivative for a normal `z` (arXiv 2303.11257, table A.2: 4.802 and 4.722; here to more
/// digits).
///
/// # Errors
/// As [`Constraint::common`].
pub fn sigmoid_scales(constraint: Constraint) -> Result<Scales> {
    Scales::constrained("sigmoid", SIGMOID_OUTPUT, &[SIGMOID_GRADIENT], 1, constraint)
}

/// `alpha sigmoid(x)`. Scales: [`sigmoid_scales`]; regular and `mu-s`: 1.
///
/// # Errors
/// As [`sigmoid_scales`].
pub fn sigmoid(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    constraint: Constraint,
) -> Result<ValueId> {
    let ideal = sigmoid_scales(Constraint::None)?;
    elementwise(graph, p, x, "sigmoid", sigmoid_expr(), &ideal, constraint)
}

pub(crate) fn sigmoid_expr() -> Expr {
    Expr::new(1, |x| x[0].sigmoid())
}

/// Scales of `hardtanh(m x)/m`, which cuts `x` at `-1/m` and `1/m`: with `Z = erf(1/(m sqrt 2))`,
/// `alpha = (Z + (1-Z)/m^2 - sqrt(2/pi)/m exp(-1/(2 m^2)))^-1/2`, `beta = Z^-1/2`. Source: the
/// guide to scaling an op of one's own of the `unit-scaling` library.
///
/// # Errors
/// [`Error::Argument`] for a `mult` that is not positive; as [`Constraint::common`].
pub fn hardtanh_scales(mult: f64, constraint: Constraint) -> Result<Scales> {
    positive("hardtanh", "mult", mult)?;
    let edge = 1.0 / mult;
    let inside = erf(edge * FRAC_1_SQRT_2);
    let tail = (2.0 / PI).sqrt() * edge * (-0.5 * edge * edge).exp();
    let variance = inside + (1.0 - inside) * edge * edge - tail;
    Scales::constrained("hardtanh", variance.powf(-0.5), &[inside.powf(-0.5)], 1, constraint)
}

/// `alpha hardtanh(mult x)/mult`. Scales: [`hardtanh_scales`]; regular and `mu-s`: 1.
///
/// # Errors
/// As [`hardtanh_scales`].
pub fn hardtanh(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    mult: f64,
    constraint: Constraint,
) -> Result<ValueId> {
    let ideal = hardtanh_scales(mult, Constraint::None)?;
    elementwise(graph, p, x, "hardtanh", hardtanh_expr(mult), &ideal, constraint)
}

pub(crate) fn hardtanh_expr(mult: f64) -> Expr {
    Expr::new(1, |x: &[Term]| x[0].max(-1.0 / mult).min(1.0 / mult))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tanh_scales;

    #[test]
    fn the_closed_forms_are_the_integrals() -> Result<()> {
        let none = Constraint::None;
        for (name, f, scales, tolerance) in [
            ("relu", relu_expr(), relu_scales(none)?, 1e-6),
            ("sigmoid", sigmoid_expr(), sigmoid_scales(none)?, 1e-9),
            ("tanh", Expr::new(1, |x| x[0].tanh()), tanh_scales(none)?, 1e-9),
            ("hardtanh", hardtanh_expr(1.0), hardtanh_scales(1.0, none)?, 1e-4),
            ("wide hardtanh", hardtanh_expr(0.5), hardtanh_scales(0.5, none)?, 1e-4),
            ("narrow hardtanh", hardtanh_expr(3.0), hardtanh_scales(3.0, none)?, 1e-3),
        ] {
            let found = gaussian_scales(&f)?;
            let apart = |a: f64, b: f64| (a / b - 1.0).abs();
            assert!(apart(found.alpha, scales.alpha) < tolerance, "{name}: {found:?} {scales:?}");
            assert!(apart(found.beta(0), scales.beta(0)) < tolerance, "{name}: {found:?}");
        }
        Ok(())
    }

    #[test]
    fn the_figures_of_the_paper_are_met() -> Result<()> {
        let close = |scales: Scales, alpha: f64, beta: f64| {
            (scales.alpha - alpha).abs() < 1e-3 && (scales.beta(0) - beta).abs() < 1e-3
        };
        assert!(close(relu_scales(Constraint::None)?, 1.713, 1.414));
        assert!(close(sigmoid_scales(Constraint::None)?, 4.802, 4.722));
        Ok(())
    }

    #[test]
    fn functions_without_a_scale_are_refused() {
        for f in [
            Expr::new(1, |_| Term::constant(2.0)),
            Expr::new(1, |x| x[0].ln()),
            Expr::new(2, |x| x[0].clone() * x[1].clone()),
        ] {
            assert!(gaussian_scales(&f).is_err(), "{f}");
        }
    }
}
