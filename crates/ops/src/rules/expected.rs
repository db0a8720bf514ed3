//! Scales of a case from the formulas.

use super::{Case, Figures};
use crate::{
    Attention, Linear, Parametrisation, Result, Scales, add_scales, cross_entropy_scales,
    dropout_scales, embedding_scales, gelu_scales, hardtanh_scales, matmul_scales, mse_loss_scales,
    norm_scales, relu_scales, residual_factors, sigmoid_scales, silu_glu_scales, silu_scales,
    softmax_scales, tanh_scales, weighted_add_scales,
};
use onesigma_graph::Shape;

/// Operands of a weighted sum, as far as a case gives them.
const WEIGHTED: [&str; 3] = ["input", "other", "third"];

/// Element counts of the operands of a weighted sum and of its result.
fn weighted_operands(case: &Case) -> Result<(Vec<usize>, usize)> {
    let given = WEIGHTED.iter().filter(|operand| case.shapes.contains_key(**operand));
    let mut numel = Vec::new();
    let mut out = Shape::scalar();
    for operand in given {
        let shape = case.shape(operand)?;
        numel.push(shape.numel());
        out = out.broadcast(&shape).ok_or_else(|| {
            case.wrong(format!("operand `{operand}`, {shape}, does not broadcast with {out}"))
        })?;
    }
    Ok((numel, out.numel()))
}

/// The scales that the rules ask for.
///
/// # Errors
/// [`Error::Case`](crate::Error::Case) for a malformed case; [`Error`](crate::Error) for arguments
/// or constraints that the rule refuses.
pub fn expected(case: &Case) -> Result<Figures> {
    let numel = |operand: &str| Ok::<_, crate::Error>(case.shape(operand)?.numel());
    let (scales, operands): (Scales, &[&str]) = match case.op.as_str() {
        op @ ("linear" | "linear_readout") => {
            let [fan_out, fan_in] = case.matrix("weight")?;
            let batch = case.shape("input")?.rows();
            let options = if op == "linear" { Linear::default() } else { Linear::readout() };
            let scale_power = case.numbers("scale_power", options.scale_power)?;
            let options = Linear { scale_power, constraint: case.constraint()? };
            (options.scales(fan_in, fan_out, batch)?, &["input", "weight", "bias"])
        }
        "matmul" => {
            let (left, right) = (case.shape("left")?, case.shape("right")?);
            let l = left.dims().iter().rev().nth(1).copied().unwrap_or(1);
            let scales = matmul_scales(l, left.last(), right.last(), case.constraint()?)?;
            (scales, &["left", "right"])
        }
        "conv1d" => {
            let options = case.conv1d()?;
            let sizes = options.sizes(&case.shape("input")?, &case.shape("weight")?)?;
            (options.scales(sizes)?, &["input", "weight", "bias"])
        }
        "gelu" => (gelu_scales(case.number("mult", 1.0)?, case.constraint()?)?, &["input"]),
        "silu" => (silu_scales(case.number("mult", 1.0)?, case.constraint()?)?, &["input"]),
        "silu_glu" => (silu_glu_scales(case.number("mult", 1.0)?)?, &["input", "gate"]),
        "relu" => (relu_scales(case.constraint()?)?, &["input"]),
        "tanh" => (tanh_scales(case.constraint()?)?, &["input"]),
        "sigmoid" => (sigmoid_scales(case.constraint()?)?, &["input"]),
        "hardtanh" => (hardtanh_scales(case.number("mult", 1.0)?, case.constraint()?)?, &["input"]),
        "softmax" => {
            let shape = case.shape("input")?;
            let dim = case.number("dim", -1.0)?;
            let axis = if dim < 0.0 { dim + shape.rank() as f64 } else { dim };
            let n = shape.dims().get(axis as usize).filter(|_| axis >= 0.0).copied();
            let n = n.ok_or_else(|| case.wrong(format!("`dim` is {dim}, shape {shape}")))?;
            (softmax_scales(n, case.number("mult", 1.0)?, case.constraint()?)?, &["input"])
        }
        "dropout" => (dropout_scales(case.number("p", 0.5)?)?, &["input"]),
        "layer_norm" | "rms_norm" => {
            let shape = case.shape("input")?;
            let normalised = shape.dims().iter().rev().take(case.norm_axes()?).product();
            (norm_scales(normalised, shape.numel()), &["input", "weight", "bias"])
        }
        "embedding" => {
            let [rows, _] = case.matrix("weight")?;
            (embedding_scales(rows, numel("input")?), &["weight"])
        }
        "cross_entropy" => {
            let shape = case.shape("input")?;
            let (n, mult) = (shape.rows(), case.number("mult", 1.0)?);
            (cross_entropy_scales(n, shape.last(), mult, case.mean()?)?, &["input"])
        }
        "mse_loss" => (mse_loss_scales(numel("input")?, case.mean()?), &["input", "target"]),
        "add" => {
            let (a, b) = (case.shape("input")?, case.shape("other")?);
            let out = a.broadcast(&b).ok_or_else(|| {
                case.wrong(format!("shapes {a} and {b} do not broadcast to one shape"))
            })?;
            let numel = [a.numel(), b.numel()];
            (add_scales(out.numel(), numel, case.constraint()?)?, &["input", "other"])
        }
        "weighted_add" => {
            let (numel, out) = weighted_operands(case)?;
            let weights = case.list("weights", &vec![1.0; numel.len()])?;
            (weighted_add_scales(out, &numel, &weights, case.constraint()?)?, &WEIGHTED)
        }
        "residual_split" => {
            let (branch, skip) = residual_factors(case.tau()?)?;
            let first = case.word("which", &["residual", "skip"])? == "residual";
            let beta = vec![if first { branch } else { skip }];
            (Scales { alpha: 1.0, beta }, &["input"])
        }
        "residual_add" => {
            let (branch, skip) = residual_factors(case.tau()?)?;
            let both = case.shapes.contains_key("residual") && case.shapes.contains_key("skip");
            if both {
                return Err(case.wrong("give `residual` or `skip`: their factors differ"));
            }
            let alpha = if case.shapes.contains_key("residual") { branch } else { skip };
            (Scales { alpha, beta: vec![1.0; 2] }, &["residual", "skip"])
        }
        "residual_apply" => {
            residual_factors(case.tau()?)?;
            (Scales { alpha: 1.0, beta: vec![1.0] }, &["input"])
        }
        "scaled_dot_product_attention" => {
            let keys = case.shape("value")?;
            let s = keys.dims().iter().rev().nth(1).copied().unwrap_or(1);
            let options = Attention {
                causal: case.flag("is_causal", false)?,
                mult: case.number("mult", 1.0)?,
                dropout: case.number("dropout_p", 0.0)?,
                training: true,
                scale_keys: None,
            };
            (options.scales(Parametrisation::UMup, s, keys.last())?, &["query", "key", "value"])
        }
        _ => return Err(case.unknown()),
    };
    // Operands that no formula reads must be possible too, and the first of each op is needed.
    case.shapes.keys().try_for_each(|operand| case.shape(operand).map(drop))?;
    if case.op != "residual_add" {
        case.shape(super::measure::operand_names(case)?[0].0)?;
    }
    let given = |operand: &&str| case.shapes.contains_key(*operand);
    let grads = operands
        .iter()
        .enumerate()
        .filter(|(_, operand)| given(operand))
        .map(|(n, operand)| ((*operand).to_owned(), scales.beta(n)))
        .collect();
    Ok(Figures { output: scales.alpha, grads })
}
