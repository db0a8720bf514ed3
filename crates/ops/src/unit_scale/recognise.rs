//! Which layer of this crate made a node, and with which arguments.
//!
//! A layer is known by its op and by the function that it computes: the expression of a node is
//! compared with the one that the layer builds. Arguments such as `mult` are read from the
//! constants of the expression. Only the parts of a convolution are known by their names.

use super::structure::Structure;
use crate::activation::{gelu_expr, silu_expr, silu_glu_expr};
use crate::elementwise::{hardtanh_expr, relu_expr, sigmoid_expr};
use crate::tanh::tanh_expr;
use crate::{Attention, ConvSizes, GeluForm};
use onesigma_graph::expr::{Expr, Instr, Term};
use onesigma_graph::{Distribution, Node, Op, ReduceKind, ValueId};
use std::f64::consts::SQRT_2;

/// A layer with its arguments.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Layer {
    /// Rows of a matrix by a parameter: `fan_in`, `fan_out`, rows.
    Linear {
        fan_in: usize,
        fan_out: usize,
        batch: usize,
    },
    /// The product of a convolution.
    Convolution {
        sizes: ConvSizes,
        stride: usize,
        groups: usize,
    },
    /// The bias of a linear layer or convolution, whose product is the node.
    Bias {
        product: usize,
    },
    /// A product of activations: `l`, `k`, `r`.
    MatMul {
        l: usize,
        k: usize,
        r: usize,
    },
    /// Rows of a table.
    Embedding {
        rows: usize,
        batch: usize,
    },
    Norm {
        normalised: usize,
        numel: usize,
    },
    Gelu {
        mult: f64,
    },
    Silu {
        mult: f64,
    },
    SiluGlu {
        mult: f64,
    },
    Relu,
    Sigmoid,
    Tanh,
    Hardtanh {
        mult: f64,
    },
    Softmax {
        n: usize,
        mult: f64,
    },
    Dropout {
        probability: f64,
    },
    /// Fused attention.
    Attention {
        options: Attention,
        keys: usize,
        head_size: usize,
    },
    /// The first product of attention that is built from parts.
    Logits {
        mult: f64,
        head_size: usize,
    },
    /// Its last product.
    Mixture {
        options: Attention,
        keys: usize,
        head_size: usize,
    },
    CrossEntropy {
        positions: usize,
        classes: usize,
        mult: f64,
        mean: bool,
    },
    MseLoss {
        numel: usize,
        mean: bool,
    },
    Sum {
        numel: Vec<usize>,
        out: usize,
    },
    /// A part of an activation of which no other part is used.
    Part {
        whole: usize,
        part: usize,
    },
}

impl Layer {
    /// With the scale of this number of keys, if it is an attention and the number is given.
    pub(super) fn with_keys(mut self, given: Option<usize>) -> Self {
        if let (Self::Attention { keys, .. } | Self::Mixture { keys, .. }, Some(given)) =
            (&mut self, given)
        {
            *keys = given;
        }
        self
    }
}

/// The layer of a node; `None` for nodes that move elements or that no layer makes.
pub(super) fn recognise(s: &Structure<'_>, index: usize) -> Option<Layer> {
    let node = &s.graph.nodes()[index];
    let depends = node
        .inputs
        .iter()
        .any(|&input| s.is_activation(input) || s.parameter[input.index()].is_some());
    if !depends {
        return None;
    }
    let shape = |n: usize| s.graph.shape(node.inputs[n]);
    match &node.op {
        Op::MatMul { .. } => Some(product(s, index, node)),
        Op::Gather => {
            let (rows, batch) = (shape(0).dims()[0], shape(1).numel());
            Some(Layer::Embedding { rows, batch })
        }
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => {
            Some(Layer::Norm { normalised: shape(0).last(), numel: shape(0).numel() })
        }
        // Inside of attention the softmax has the true gradient.
        Op::Softmax { .. } if logits_behind(s, node.inputs[0]).is_some() => None,
        Op::Softmax { mult } => Some(Layer::Softmax { n: shape(0).last(), mult: *mult }),
        Op::Attention { causal, logit_scale } => {
            let head_size = shape(0).last();
            let options = Attention {
                causal: *causal,
                mult: logit_scale * (head_size as f64).sqrt(),
                dropout: 0.0,
                training: true,
                scale_keys: None,
            };
            Some(Layer::Attention { options, keys: shape(1).dims()[1], head_size })
        }
        Op::CrossEntropy { mult, mean } => {
            let (positions, classes) = (shape(0).rows(), shape(0).last());
            Some(Layer::CrossEntropy { positions, classes, mult: *mult, mean: *mean })
        }
        Op::Reduce { kind: ReduceKind::Sum, expr, shape, .. } => {
            mse_loss(node, expr, shape.numel())
        }
        Op::Map { expr, .. } => map(s, index, node, expr),
        Op::Slice { .. } => part(s, node),
        _ => None,
    }
}

fn product(s: &Structure<'_>, index: usize, node: &Node) -> Layer {
    let Op::MatMul { transpose_left, transpose_right } = node.op else {
        return Layer::MatMul { l: 1, k: 1, r: 1 };
    };
    let (left, right) = (s.graph.shape(node.inputs[0]), s.graph.shape(node.inputs[1]));
    let matrix = |dims: &[usize], transposed: bool| {
        let (a, b) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        if transposed { (b, a) } else { (a, b) }
    };
    let (l, k) = matrix(left.dims(), transpose_left);
    let (_, r) = matrix(right.dims(), transpose_right);
    if s.parameter[node.inputs[1].index()].is_some() {
        return convolution(s, index, node).unwrap_or(Layer::Linear {
            fan_in: k,
            fan_out: r,
            batch: left.numel() / k.max(1),
        });
    }
    if let Some(logits) = logits_behind(s, node.inputs[0]) {
        let (head_size, mult) = logits_of(s, logits);
        let options = Attention {
            causal: logits_are_causal(s, node.inputs[0]),
            mult,
            dropout: dropout_behind(s, node.inputs[0]),
            training: true,
            scale_keys: None,
        };
        return Layer::Mixture { options, keys: k, head_size };
    }
    if is_logits(s, index) {
        let (head_size, mult) = logits_of(s, index);
        return Layer::Logits { mult, head_size };
    }
    Layer::MatMul { l, k, r }
}

/// The convolution whose product a node is. What its taps see of the input are slices beside the
/// product in the layer's scope; with a stride each is cut once more.
fn convolution(s: &Structure<'_>, index: usize, node: &Node) -> Option<Layer> {
    let scope = node.name.strip_suffix("product")?;
    let weight = s.parameter[node.inputs[1].index()]?;
    let &[fan_out, fan_in, kernel] = s.graph.shape(weight).dims() else { return None };
    // The nearest one: several layers may have one scope.
    let is_tap = |other: &&Node| {
        other.name.strip_suffix("tap") == Some(scope)
            && matches!(other.op, Op::Slice { axis: 2, .. })
    };
    let tap = s.graph.nodes()[..index].iter().rev().find(is_tap)?;
    let view = &s.graph.nodes()[*s.readers[tap.outputs[0].index()].first()?];
    let &[batch, channels, rows, last] = s.graph.shape(view.outputs[0]).dims() else { return None };
    let strided = s.readers[view.outputs[0].index()]
        .iter()
        .any(|&reader| matches!(s.graph.nodes()[reader].op, Op::Slice { .. }));
    let (out_length, stride) = if strided { (rows, last) } else { (last, 1) };
    let (groups, length) = (channels / fan_in.max(1), s.graph.shape(tap.inputs[0]).last());
    let sizes = ConvSizes { batch, channels, length, fan_out, fan_in, kernel, out_length };
    Some(Layer::Convolution { sizes, stride, groups })
}

/// Whether a product is the first of attention: a softmax reads its result.
fn is_logits(s: &Structure<'_>, index: usize) -> bool {
    let mut value = s.graph.nodes()[index].outputs[0];
    loop {
        let &[reader] = &s.readers[value.index()][..] else { return false };
        let node = &s.graph.nodes()[reader];
        match node.op {
            Op::Softmax { .. } => return s.graph.nodes()[index].alpha[0] != 1.0,
            Op::Reshape { .. } => value = node.outputs[0],
            Op::Map { .. } if is_mask(node) => value = node.outputs[0],
            _ => return false,
        }
    }
}

/// Whether a map selects between its first operand and a constant.
fn is_mask(node: &Node) -> bool {
    matches!(&node.op, Op::Map { expr, .. } if matches!(expr.instrs().last(), Some(Instr::Select(..))))
}

/// The nodes from attention weights back to their logits: dropout, softmax, masks, views.
fn behind_weights<'s>(s: &'s Structure<'_>, value: ValueId) -> impl Iterator<Item = usize> + 's {
    let mut at = Some(value);
    std::iter::from_fn(move || {
        let index = s.graph.value(at?).producer.index();
        let node = &s.graph.nodes()[index];
        let goes_on = match &node.op {
            Op::Reshape { .. } | Op::Softmax { .. } => true,
            Op::Map { expr, .. } => is_mask(node) || dropout(s, node, expr).is_some(),
            _ => false,
        };
        at = goes_on.then(|| node.inputs[0]);
        Some(index)
    })
}

/// The first product of attention behind a value, if there is one and a softmax between.
fn logits_behind(s: &Structure<'_>, value: ValueId) -> Option<usize> {
    let last = behind_weights(s, value).last()?;
    let is_product = matches!(s.graph.nodes()[last].op, Op::MatMul { .. });
    (is_product && is_logits(s, last)).then_some(last)
}

/// Head size of attention and `mult` of its regular logits.
fn logits_of(s: &Structure<'_>, logits: usize) -> (usize, f64) {
    let node = &s.graph.nodes()[logits];
    let head_size = s.graph.shape(node.inputs[0]).last();
    (head_size, node.alpha[0] * (head_size as f64).sqrt())
}

fn logits_are_causal(s: &Structure<'_>, weights: ValueId) -> bool {
    behind_weights(s, weights).any(|index| match &s.graph.nodes()[index].op {
        Op::Map { expr, .. } => expr.instrs().iter().any(|i| matches!(i, Instr::Index(_))),
        _ => false,
    })
}

fn dropout_behind(s: &Structure<'_>, weights: ValueId) -> f64 {
    let probability = |index: usize| match &s.graph.nodes()[index] {
        node @ Node { op: Op::Map { expr, .. }, .. } => dropout(s, node, expr),
        _ => None,
    };
    behind_weights(s, weights).find_map(probability).unwrap_or(0.0)
}

fn mse_loss(node: &Node, expr: &Expr, numel: usize) -> Option<Layer> {
    if node.inputs.len() != 2 {
        return None;
    }
    let square = |weight: f64| Expr::new(2, |x| (x[0].clone() - x[1].clone()).square() * weight);
    [true, false]
        .into_iter()
        .find(|&mean| same(expr, &square(if mean { 1.0 / numel.max(1) as f64 } else { 1.0 })))
        .map(|mean| Layer::MseLoss { numel, mean })
}

/// Probability of a dropout: `x * mask / (1 - p)`.
fn dropout(s: &Structure<'_>, node: &Node, expr: &Expr) -> Option<f64> {
    let &[_, mask] = &node.inputs[..] else { return None };
    let Op::Random { distribution: Distribution::Bernoulli { p: kept }, .. } = s.producer(mask).op
    else {
        return None;
    };
    let inverted = Expr::new(2, |x| x[0].clone() * x[1].clone() * (1.0 / kept));
    same(expr, &inverted).then_some(1.0 - kept)
}

fn map(s: &Structure<'_>, index: usize, node: &Node, expr: &Expr) -> Option<Layer> {
    if let Some(probability) = dropout(s, node, expr) {
        // Inside of attention the factor is the last product's.
        let inside = logits_behind(s, node.inputs[0]).is_some();
        return (!inside).then_some(Layer::Dropout { probability });
    }
    if let Some(product) = bias_of(s, node, expr) {
        return Some(Layer::Bias { product });
    }
    let n = node.inputs.len();
    if n >= 2 && *expr == sum_expr(n) {
        let out = s.graph.shape(node.outputs[0]);
        // A sum of losses is the loss.
        let numel = node.inputs.iter().map(|&input| s.graph.shape(input).numel()).collect();
        let is_loss = out.rank() == 0 && index + 1 == s.count;
        return (!is_loss).then(|| Layer::Sum { numel, out: out.numel() });
    }
    let mults = mults(expr);
    let with = |build: &dyn Fn(f64) -> Expr| mults.iter().copied().find(|&m| same(expr, &build(m)));
    if n == 2 {
        return with(&silu_glu_expr).map(|mult| Layer::SiluGlu { mult });
    }
    if n != 1 {
        return None;
    }
    for (build, layer) in [
        (relu_expr as fn() -> Expr, Layer::Relu),
        (sigmoid_expr, Layer::Sigmoid),
        (tanh_expr, Layer::Tanh),
    ] {
        if same(expr, &build()) {
            return Some(layer);
        }
    }
    let gelu = |form: GeluForm| with(&|m| gelu_expr(form, m));
    gelu(GeluForm::Erf)
        .or_else(|| gelu(GeluForm::Tanh))
        .map(|mult| Layer::Gelu { mult })
        .or_else(|| with(&silu_expr).map(|mult| Layer::Silu { mult }))
        .or_else(|| with(&hardtanh_expr).map(|mult| Layer::Hardtanh { mult }))
}

/// The product whose bias a sum adds.
fn bias_of(s: &Structure<'_>, node: &Node, expr: &Expr) -> Option<usize> {
    let &[y, bias] = &node.inputs[..] else { return None };
    let is_bias = *expr == sum_expr(2)
        && s.parameter[bias.index()].is_some()
        && s.graph.shape(bias).numel() < s.graph.shape(y).numel();
    if !is_bias {
        return None;
    }
    let product = s.graph.value(s.behind_views(y)).producer.index();
    let node = &s.graph.nodes()[product];
    let by_weight =
        matches!(node.op, Op::MatMul { .. }) && s.parameter[node.inputs[1].index()].is_some();
    by_weight.then_some(product)
}

fn sum_expr(n: usize) -> Expr {
    Expr::new(n, |x| {
        let sum = x.iter().cloned().reduce(|sum, term| sum + term);
        sum.unwrap_or_else(|| Term::constant(0.0))
    })
}

/// Values of `mult` that the constants of an expression suggest.
fn mults(expr: &Expr) -> Vec<f64> {
    let mut mults = vec![1.0];
    for instr in expr.instrs() {
        if let Instr::Const(c) = *instr {
            mults.extend([c, c * SQRT_2, c.recip()]);
        }
    }
    mults.retain(|m| *m > 0.0 && m.is_finite());
    mults
}

/// Whether two expressions are the same but for the rounding of their constants.
fn same(a: &Expr, b: &Expr) -> bool {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-14 * a.abs().max(b.abs());
    a.inputs() == b.inputs()
        && a.instrs().len() == b.instrs().len()
        && a.instrs().iter().zip(b.instrs()).all(|(a, b)| match (a, b) {
            (Instr::Const(a), Instr::Const(b)) => close(*a, *b),
            _ => a == b,
        })
}

/// A slice of an activation of which no other slice is taken.
fn part(s: &Structure<'_>, node: &Node) -> Option<Layer> {
    let whole = node.inputs[0];
    if !s.is_activation(whole) || node.name.ends_with("tap") {
        return None;
    }
    let is_slice = |reader: &&usize| matches!(s.graph.nodes()[**reader].op, Op::Slice { .. });
    let slices = s.readers[whole.index()].iter().filter(is_slice).count();
    let (whole, part) = (s.graph.shape(whole).numel(), s.graph.shape(node.outputs[0]).numel());
    (slices == 1 && part < whole).then_some(Layer::Part { whole, part })
}
