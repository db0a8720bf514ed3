//! Scalar expressions as CUDA C.

use onesigma_graph::expr::{BinaryOp, Expr, Instr, Step, UnaryOp};
use std::convert::Infallible;
use std::fmt::Write;

use super::literal;

/// Appends the statements of `expr` to `out` and gives the name of the result. Operand `n` is
/// the C expression `operands[n]`, the coordinate along axis `a` is `index(a)`; names start with
/// `prefix`.
pub(crate) fn emit(
    out: &mut String,
    expr: &Expr,
    prefix: &str,
    operands: &[String],
    index: impl Fn(usize) -> String,
) -> String {
    let Ok(mut names) = expr.walk(|at, step: Step<'_, String>| {
        let value = match step {
            Step::Input(n) => operands[n].clone(),
            Step::Const(value) => literal(value),
            Step::Index(axis) => format!("(float)({})", index(axis)),
            Step::Unary(UnaryOp::Tanh, a) if only_beside_one(expr, at) => {
                format!("tangent_beside_one({a})")
            }
            Step::Unary(op, a) => unary(op, a),
            Step::Binary(op, a, b) => binary(op, a, b),
            Step::Select(c, a, b) => format!("{c} != 0.0f ? {a} : {b}"),
        };
        let _ = writeln!(out, "const float {prefix}{at} = {value};");
        Ok::<_, Infallible>(format!("{prefix}{at}"))
    });
    // An expression has a result.
    names.pop().unwrap_or_else(|| literal(0.0))
}

/// Whether the tanh in register `at` only ever stands, itself or squared, in a sum with 1 or in a
/// difference from it: there a small absolute error is as good as a small relative one.
fn only_beside_one(expr: &Expr, at: usize) -> bool {
    let instrs = expr.instrs();
    let is_one = |register: u16| matches!(instrs[usize::from(register)], Instr::Const(value) if value.abs() == 1.0);
    let reads = |instr: &Instr, register: usize| match *instr {
        Instr::Unary(_, a) => usize::from(a) == register,
        Instr::Binary(_, a, b) => usize::from(a) == register || usize::from(b) == register,
        Instr::Select(c, a, b) => [c, a, b].iter().any(|&x| usize::from(x) == register),
        _ => false,
    };
    let summed = |register: usize| {
        let mut readers = instrs.iter().filter(|instr| reads(instr, register));
        register + 1 < instrs.len()
            && readers.all(|instr| match *instr {
                Instr::Binary(BinaryOp::Add | BinaryOp::Sub, a, b) => is_one(a) || is_one(b),
                _ => false,
            })
    };
    let mut readers = instrs.iter().enumerate().filter(|(_, instr)| reads(instr, at));
    at + 1 < instrs.len()
        && readers.all(|(reader, instr)| match *instr {
            Instr::Binary(BinaryOp::Mul, a, b) => a == b && summed(reader),
            Instr::Binary(BinaryOp::Add | BinaryOp::Sub, a, b) => is_one(a) || is_one(b),
            _ => false,
        })
}

fn unary(op: UnaryOp, x: &str) -> String {
    match op {
        UnaryOp::Neg => format!("-{x}"),
        UnaryOp::Abs => format!("fabsf({x})"),
        UnaryOp::Exp => format!("expf({x})"),
        UnaryOp::Ln => format!("logf({x})"),
        UnaryOp::Sqrt => format!("root({x})"),
        UnaryOp::Rsqrt => format!("rsqrtf({x})"),
        UnaryOp::Tanh => format!("hyperbolic_tangent({x})"),
        UnaryOp::Erf => format!("erff({x})"),
        UnaryOp::Sigmoid => format!("sigmoid({x})"),
        UnaryOp::Sin => format!("sinf({x})"),
        UnaryOp::Cos => format!("cosf({x})"),
        // `supports` denies what is not here.
        _ => "not_a_number(0)".to_owned(),
    }
}

fn binary(op: BinaryOp, a: &str, b: &str) -> String {
    match op {
        BinaryOp::Add => format!("{a} + {b}"),
        BinaryOp::Sub => format!("{a} - {b}"),
        BinaryOp::Mul => format!("{a} * {b}"),
        BinaryOp::Div => format!("quotient({a}, {b})"),
        BinaryOp::Min => format!("minimum({a}, {b})"),
        BinaryOp::Max => format!("maximum({a}, {b})"),
        BinaryOp::Less => format!("{a} < {b} ? 1.0f : 0.0f"),
        BinaryOp::LessEqual => format!("{a} <= {b} ? 1.0f : 0.0f"),
        BinaryOp::Equal => format!("{a} == {b} ? 1.0f : 0.0f"),
        _ => "not_a_number(0)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use onesigma_graph::expr::Term;

    use super::*;

    fn text(expr: &Expr) -> String {
        let mut out = String::new();
        emit(&mut out, expr, "t", &["x".to_owned()], |axis| axis.to_string());
        out
    }

    #[test]
    fn a_tanh_beside_one_needs_no_series() {
        let gelu = Expr::new(1, |x| x[0].clone() * (x[0].clone().tanh() + 1.0));
        assert!(text(&gelu).contains("tangent_beside_one"));
        let slope = Expr::new(1, |x| {
            let t = x[0].clone().tanh();
            Term::constant(1.0) - t.clone() * t
        });
        assert!(text(&slope).contains("tangent_beside_one"));
    }

    #[test]
    fn a_tanh_that_may_be_small_keeps_its_relative_error() {
        for expr in [
            Expr::new(1, |x| x[0].clone().tanh()),
            Expr::new(1, |x| x[0].clone().tanh() * 3.0),
            Expr::new(1, |x| (x[0].clone().tanh() + 1.0) * x[0].clone().tanh()),
            Expr::new(1, |x| x[0].clone().tanh() + 0.01),
        ] {
            assert!(text(&expr).contains("hyperbolic_tangent"), "{}", text(&expr));
        }
    }
}
