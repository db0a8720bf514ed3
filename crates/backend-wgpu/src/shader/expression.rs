//! Scalar expressions as WGSL over four elements at once.

use onesigma_graph::expr::{BinaryOp, Expr, Instr, UnaryOp};
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
    let mut names: Vec<String> = Vec::new();
    for (at, instr) in expr.instrs().iter().enumerate() {
        let name = |register: u16| names[usize::from(register)].clone();
        let value = match *instr {
            // Operands have names, and constants are clearer where they are used.
            Instr::Input(n) => {
                names.push(operands[usize::from(n)].clone());
                continue;
            }
            Instr::Const(value) => {
                names.push(literal(value));
                continue;
            }
            Instr::Index(axis) => format!("vec4<f32>({})", index(usize::from(axis))),
            Instr::Unary(op, a) => unary(op, &name(a)).unwrap_or_default(),
            Instr::Binary(op, a, b) => binary(op, &name(a), &name(b)).unwrap_or_default(),
            Instr::Select(c, a, b) => {
                format!("select({}, {}, !is_zero({}))", name(b), name(a), name(c))
            }
        };
        let _ = writeln!(out, "    let {prefix}{at} = {value};");
        names.push(format!("{prefix}{at}"));
    }
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
