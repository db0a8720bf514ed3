//! Which nodes are weighted sums: the places where factors of residual branches stand.

use onesigma_graph::expr::{BinaryOp, Expr, Instr, UnaryOp};
use onesigma_graph::{Node, Op};

/// Whether a node copies its operand or adds operands with constant weights.
pub(super) fn is_weighted_sum(node: &Node) -> bool {
    match &node.op {
        Op::Map { expr, .. } => is_linear(expr),
        Op::Cast { .. } => true,
        _ => false,
    }
}

/// Whether an expression is linear in its operands, with constant coefficients.
fn is_linear(expr: &Expr) -> bool {
    let mut constant: Vec<bool> = Vec::with_capacity(expr.instrs().len());
    for instr in expr.instrs() {
        let at = |register: u16| constant[usize::from(register)];
        constant.push(match *instr {
            Instr::Const(_) => true,
            Instr::Input(_) => false,
            Instr::Unary(UnaryOp::Neg, a) => at(a),
            Instr::Binary(BinaryOp::Add | BinaryOp::Sub, a, b) if at(a) == at(b) => at(a),
            Instr::Binary(BinaryOp::Mul, a, b) if at(a) || at(b) => at(a) && at(b),
            Instr::Binary(BinaryOp::Div, a, b) if at(b) => at(a),
            _ => return false,
        });
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_linear_and_products_are_not() {
        assert!(is_linear(&Expr::identity()));
        assert!(is_linear(&Expr::new(2, |x| x[0].clone() * 0.5 - x[1].clone() / 3.0)));
        assert!(!is_linear(&Expr::new(2, |x| x[0].clone() * x[1].clone())));
        assert!(!is_linear(&Expr::new(1, |x| x[0].clone() + 1.0)));
        assert!(!is_linear(&Expr::new(1, |x| x[0].max(0.0))));
    }
}
