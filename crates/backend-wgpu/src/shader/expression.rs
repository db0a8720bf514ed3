//! Scalar expressions as WGSL over four elements at once.

use onesigma_graph::expr::{BinaryOp, Expr, Instr, Step, UnaryOp};
use std::convert::Infallible;
use std::fmt::Write;

use super::literal;

/// Whether every function of an expression has a WGSL form.
pub(crate) fn is_known(expr: &Expr) -> bool {
    expr.instrs().iter().all(|instr| match instr {
        Instr::Unary(op, _) => unary(*op, "").is_some(),
        Instr::Binary(op, ..) => binary(*op, "", "").is_some(),
        _ => true,
    })
}

/// Appends the statements of `expr` to `out` and gives the name of the result, a `vec4<f32>`.
/// Operand `n` is `operands[n]`, the coordinate along axis `a` is `index(a)`, a `vec4<u32>`; names
/// start with `prefix`.
pub(crate) fn emit(
    out: &mut String,
    expr: &Expr,
    prefix: &str,
    operands: &[String],
    index: impl Fn(usize) -> String,
) -> String {
    let Ok(mut names) = expr.walk(|at, step: Step<'_, String>| {
        let value = match step {
            // Operands have names, and constants are clearer where they are used.
            Step::Input(n) => return Ok(operands[n].clone()),
            Step::Const(value) => return Ok(literal(value)),
            Step::Index(axis) => format!("vec4<f32>({})", index(axis)),
            Step::Unary(op, a) => unary(op, a).unwrap_or_default(),
            Step::Binary(op, a, b) => binary(op, a, b).unwrap_or_default(),
            Step::Select(c, a, b) => format!("select({b}, {a}, !is_zero({c}))"),
        };
        let _ = writeln!(out, "    let {prefix}{at} = {value};");
        Ok::<_, Infallible>(format!("{prefix}{at}"))
    });
    names.pop().unwrap_or_else(|| literal(0.0))
}

fn unary(op: UnaryOp, x: &str) -> Option<String> {
    let function = match op {
        UnaryOp::Neg => "negative",
        UnaryOp::Abs => "absolute",
        UnaryOp::Exp => "exponential",
        UnaryOp::Ln => "logarithm",
        UnaryOp::Sqrt => "root",
        UnaryOp::Rsqrt => "reciprocal_root",
        UnaryOp::Tanh => "hyperbolic_tangent",
        UnaryOp::Erf => "error_function",
        UnaryOp::Sigmoid => "logistic",
        UnaryOp::Sin => return Some(format!("wave({x}, 0)")),
        UnaryOp::Cos => return Some(format!("wave({x}, 1)")),
        _ => return None,
    };
    Some(format!("{function}({x})"))
}

fn binary(op: BinaryOp, a: &str, b: &str) -> Option<String> {
    Some(match op {
        BinaryOp::Add => format!("{a} + {b}"),
        BinaryOp::Sub => format!("{a} - {b}"),
        BinaryOp::Mul => format!("{a} * {b}"),
        BinaryOp::Div => format!("quotient({a}, {b})"),
        BinaryOp::Min => format!("minimum({a}, {b})"),
        BinaryOp::Max => format!("maximum({a}, {b})"),
        BinaryOp::Less => format!("less({a}, {b})"),
        BinaryOp::LessEqual => format!("less_equal({a}, {b})"),
        BinaryOp::Equal => format!("equal({a}, {b})"),
        _ => return None,
    })
}
