//! GELU and its gradient within the product before it, where the device's library can.
//!
//! Only the form with tanh, of products of 16-bit formats: cuBLASLt has no other. The activation is
//! then that of the product's sums before they are rounded; the sums are kept rounded, as without.

use onesigma_graph::expr::Expr;

use super::ir::{Entry, Node, Operand, TensorId};
use super::lower::Abilities;
use super::source::group::{Access, Compute, Rounded};
use super::source::matmul::Epilogue;

/// Lets products do what follows them.
pub(crate) fn absorb(entry: &mut Entry, abilities: &dyn Abilities) {
    let mut at = 0;
    while at < entry.nodes.len() {
        let found = forward(entry, at).or_else(|| backward(entry, at));
        let runs = |node: &Node| matches!(node, Node::MatMul { product, .. } if abilities.runs_product(product));
        match found.filter(|(_, node)| runs(node)) {
            Some((product, node)) => {
                entry.names[product] = format!("{} .. {}", entry.names[product], entry.names[at]);
                entry.nodes[product] = node;
                entry.nodes.remove(at);
                entry.names.remove(at);
            }
            None => at += 1,
        }
    }
}

/// A whole element-wise node: its expression and operands.
fn element(entry: &Entry, at: usize) -> Option<(&Expr, &[Operand], &Rounded, TensorId)> {
    let Node::Element { compute: Compute::Expr(expr), operands, result, out, .. } =
        &entry.nodes[at]
    else {
        return None;
    };
    let whole = operands.iter().all(|operand| operand.access == Access::Full);
    (whole && result.alpha == 1.0).then_some((expr, operands, result, *out))
}

/// The product that makes a tensor which no slot takes, and that node with another result.
fn product(
    entry: &Entry,
    tensor: TensorId,
    result: &Rounded,
    epilogue: Epilogue,
    [new_out, new_more]: [TensorId; 2],
) -> Option<(usize, Node)> {
    let at = entry.nodes.iter().position(|node| node.makes().contains(&tensor))?;
    let mut node = entry.nodes[at].clone();
    let Node::MatMul { product, out, more, tensor_cores: true, .. } = &mut node else {
        return None;
    };
    let alike = product.result.dtype == result.dtype
        && product.result.how == result.how
        && product.epilogue == Epilogue::None
        && *out == tensor;
    let taken = entry.writes.iter().any(|&(_, written)| written == tensor);
    (product.epilogue, *out, *more) = (epilogue, new_out, Some(new_more));
    (alike && !taken).then_some((at, node))
}

/// The node at `at` as part of the product before it, if it is its GELU.
fn forward(entry: &Entry, at: usize) -> Option<(usize, Node)> {
    let (expr, operands, result, out) = element(entry, at)?;
    let [x] = operands else { return None };
    let same = |x: f64| near(expr.eval(&[x], &[0; AXES]), gelu(x)[0]);
    let tensors = [out, x.tensor];
    if !POINTS.iter().all(|&x| same(x)) {
        return None;
    }
    product(entry, x.tensor, result, Epilogue::Gelu, tensors)
}

/// The same for the gradient of GELU.
fn backward(entry: &Entry, at: usize) -> Option<(usize, Node)> {
    let (expr, operands, result, out) = element(entry, at)?;
    let [first, second] = operands else { return None };
    let same = |x: f64| near(expr.eval(&[x, -1.5], &[0; AXES]), -1.5 * gelu(x)[1]);
    let (x, dy) = (first.tensor, second.tensor);
    let readers = entry.nodes.iter().filter(|node| node.reads().contains(&dy)).count();
    if readers != 1 || x == dy || !POINTS.iter().all(|&x| same(x)) {
        return None;
    }
    let (made, node) = product(entry, dy, result, Epilogue::GeluGrad, [out, x])?;
    let there = entry.nodes[..made].iter().any(|node| node.makes().contains(&x));
    there.then_some((made, node))
}

/// More axes than an expression may ask the index of.
const AXES: usize = 16;

/// Where expressions are compared.
const POINTS: [f64; 9] = [-4.0, -2.2, -0.9, -0.3, 0.0, 0.2, 1.1, 2.7, 5.0];

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

/// GELU in its form with tanh, and its derivative.
fn gelu(x: f64) -> [f64; 2] {
    let slope = std::f64::consts::FRAC_2_PI.sqrt();
    let t = (slope * (x + 0.044715 * x * x * x)).tanh();
    let inner = slope * (1.0 + 3.0 * 0.044715 * x * x);
    [0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner]
}
