//! The scales of every node of a regular graph, by the rules of its layers.

use super::recognise::{Layer, recognise};
use super::structure::Structure;
use super::{UnitScale, is_plain};
use crate::{
    Constraint, Conv1d, Linear, OpScales, Parametrisation, Result, Scales, cross_entropy_scales,
    dropout_scales, embedding_scales, gelu_scales, hardtanh_scales, matmul_scales, mse_loss_scales,
    norm_scales, relu_scales, sigmoid_scales, silu_glu_scales, silu_scales, softmax_scales,
    sum_scales, tanh_scales, weighted_add_scales,
};
use onesigma_graph::{Node, Op};

/// What becomes of a node.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Plan {
    /// Name of the rule.
    pub rule: String,
    /// The constraint that the rule was given, for rules that take one.
    pub constraint: Option<Constraint>,
    /// Scales of the node.
    pub scales: Scales,
    pub change: Change,
}

/// What has to change beside the scales.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Change {
    Nothing,
    /// Factor on the logits of attention.
    LogitScale(f64),
    /// The bias's term carries the product's `alpha`.
    Bias,
    /// A copy behind the node carries the scales.
    Spread,
    /// The backward scale that a layer has if another in the branch mirrors it.
    Mirror(f64),
}

impl Plan {
    fn new(rule: &str, constraint: Option<Constraint>, scales: Scales) -> Self {
        Self { rule: rule.to_owned(), constraint, scales, change: Change::Nothing }
    }
}

/// Plans of all nodes; `None` for those that stay as they are.
pub(super) fn plans(s: &Structure<'_>, options: &UnitScale) -> Result<Vec<Option<Plan>>> {
    let residual: Vec<usize> = s.residuals.iter().map(|residual| residual.sum).collect();
    (0..s.count)
        .map(|index| {
            let node = &s.graph.nodes()[index];
            if let Some(scales) = options.replacement(s.graph, node)? {
                let rule = format!("{} (given)", last_word(node));
                return Ok(Some(Plan::new(&rule, None, scales)));
            }
            if residual.contains(&index) {
                return Ok(None);
            }
            recognise(s, index)
                .map(|layer| layer.with_keys(options.attention_keys))
                .map(|layer| plan(s, index, &layer, options.parametrisation))
                .transpose()
        })
        .collect()
}

fn last_word(node: &Node) -> &str {
    node.name.rsplit('.').next().unwrap_or(&node.name)
}

fn plan(s: &Structure<'_>, index: usize, layer: &Layer, p: Parametrisation) -> Result<Plan> {
    let scheme = p.scheme();
    let (linear, activation) = (scheme.linear, scheme.activation);
    // Ops on cut edges keep their ideal scales.
    let constraint = if s.any_non_cut(index) { scheme.constraint } else { Constraint::None };
    let by = |rule: &str, of: OpScales, scales: &dyn Fn() -> Result<Scales>| {
        Ok(Plan::new(rule, Some(constraint), of.choose(scales)?))
    };
    let free = |rule: &str, of: OpScales, scales: &dyn Fn() -> Result<Scales>| {
        Ok(Plan::new(rule, None, of.choose(scales)?))
    };
    match *layer {
        Layer::Linear { fan_in, fan_out, batch } => {
            if is_readout(s, index) {
                let rule = || p.readout().scales(fan_in, fan_out, batch);
                return free("linear_readout", linear, &rule);
            }
            let hidden = Linear { constraint, ..Linear::default() };
            let mut plan = by("linear", linear, &|| hidden.scales(fan_in, fan_out, batch))?;
            let mirrored = linear.choose(|| p.mirrored().scales(fan_in, fan_out, batch))?;
            let beta = mirrored.beta(0);
            if s.any_non_cut(index)
                && mirrored.alpha == plan.scales.alpha
                && beta != plan.scales.beta(0)
            {
                plan.change = Change::Mirror(beta);
            }
            Ok(plan)
        }
        Layer::Convolution { sizes, stride, groups } => {
            let options = Conv1d { stride, groups, constraint, ..Conv1d::default() };
            by("conv1d", linear, &|| options.scales(sizes))
        }
        Layer::Bias { product } => {
            let beta = match recognise(s, product) {
                Some(layer) => plan(s, product, &layer, p)?.scales.beta(2),
                None => 1.0,
            };
            let mut plan = free("bias", OpScales::Ideal, &|| {
                Ok(Scales { alpha: 1.0, beta: vec![1.0, beta] })
            })?;
            plan.change = Change::Bias;
            Ok(plan)
        }
        Layer::MatMul { l, k, r } => by("matmul", linear, &|| matmul_scales(l, k, r, constraint)),
        Layer::Embedding { rows, batch } => {
            free("embedding", scheme.parameters, &|| Ok(embedding_scales(rows, batch)))
        }
        Layer::Norm { normalised, numel } => free("norm", scheme.parameters, &|| {
            let mut scales = norm_scales(normalised, numel);
            scales.beta.truncate(s.graph.nodes()[index].inputs.len());
            Ok(scales)
        }),
        Layer::Gelu { mult } => by("gelu", activation, &|| gelu_scales(mult, constraint)),
        Layer::Silu { mult } => by("silu", activation, &|| silu_scales(mult, constraint)),
        Layer::SiluGlu { mult } => free("silu_glu", activation, &|| silu_glu_scales(mult)),
        Layer::Relu => by("relu", activation, &|| relu_scales(constraint)),
        Layer::Sigmoid => by("sigmoid", activation, &|| sigmoid_scales(constraint)),
        Layer::Tanh => by("tanh", activation, &|| tanh_scales(constraint)),
        Layer::Hardtanh { mult } => {
            by("hardtanh", activation, &|| hardtanh_scales(mult, constraint))
        }
        Layer::Softmax { n, mult } => {
            by("softmax", activation, &|| softmax_scales(n, mult, constraint))
        }
        Layer::Dropout { probability } => {
            free("dropout", activation, &|| dropout_scales(probability))
        }
        Layer::Attention { options, keys, head_size } => {
            let rule = || options.scales(p, keys, head_size);
            let mut plan = free("attention", activation, &rule)?;
            plan.change = Change::LogitScale(options.logit_scale(p, head_size));
            Ok(plan)
        }
        Layer::Logits { mult, head_size } => {
            let scale = crate::Attention { mult, ..crate::Attention::default() };
            let scale = scale.logit_scale(p, head_size);
            free("attention logits", OpScales::Ideal, &|| {
                Ok(Scales { alpha: scale, beta: vec![scale; 2] })
            })
        }
        Layer::Mixture { options, keys, head_size } => free("attention", activation, &|| {
            let scales = options.scales(p, keys, head_size)?;
            Ok(Scales { alpha: scales.alpha, beta: vec![scales.beta(0), scales.beta(2)] })
        }),
        Layer::CrossEntropy { positions, classes, mult, mean } => {
            let rule = || cross_entropy_scales(positions, classes, mult, mean);
            free("cross_entropy", scheme.loss, &rule)
        }
        Layer::MseLoss { numel, mean } => {
            free("mse_loss", scheme.loss, &|| Ok(mse_loss_scales(numel, mean)))
        }
        Layer::Sum { ref numel, out } if constraint == Constraint::None => {
            free("sum", scheme.sum, &|| Ok(sum_scales(out, numel)))
        }
        Layer::Sum { ref numel, out } => {
            let weights = vec![1.0; numel.len()];
            by("sum", scheme.sum, &|| weighted_add_scales(out, numel, &weights, constraint))
        }
        Layer::Part { whole, part } => {
            let spread = (whole as f64 / part.max(1) as f64).sqrt();
            let rule = || Ok(Scales { alpha: 1.0, beta: vec![spread] });
            let mut plan = free("part", scheme.parameters, &rule)?;
            plan.change = Change::Spread;
            Ok(plan)
        }
    }
}

/// Whether a linear layer makes the logits of a loss.
fn is_readout(s: &Structure<'_>, index: usize) -> bool {
    let mut values = vec![s.graph.nodes()[index].outputs[0]];
    while let Some(value) = values.pop() {
        for &reader in &s.readers[value.index()] {
            let node = &s.graph.nodes()[reader];
            match node.op {
                Op::CrossEntropy { .. } if node.inputs[0] == value => return true,
                Op::Reshape { .. } | Op::Permute { .. } => values.push(node.outputs[0]),
                Op::Map { .. } if matches!(recognise(s, reader), Some(Layer::Bias { .. })) => {
                    values.push(node.outputs[0]);
                }
                _ => {}
            }
        }
    }
    false
}

/// Nodes that depend on parameters and stay as they are, though they are no movement.
pub(super) fn kept(s: &Structure<'_>, plans: &[Option<Plan>]) -> Vec<String> {
    let residual: Vec<usize> = s.residuals.iter().map(|residual| residual.sum).collect();
    (0..s.count)
        .filter(|&index| plans[index].is_none() && !residual.contains(&index))
        .map(|index| &s.graph.nodes()[index])
        .filter(|node| node.outputs.iter().any(|&output| s.is_activation(output)))
        .filter(|node| !node.op.is_movement() && is_plain(node))
        .map(|node| node.name.clone())
        .collect()
}
