//! Standard deviation of every tensor of the unit-scaled GPT at initialisation: within a factor of
//! 2 of one, with the exceptions that [`range`] lists and explains.

mod support;

use onesigma_models::GptConfig;
use onesigma_models::config::{Activation, Norm};
use onesigma_ops::Parametrisation;
use support::{GptStep, rms};

/// Where the root mean square of a tensor of the model `config` may lie, `name` being its role
/// and the path of its node.
fn range(config: &GptConfig, name: &str) -> (f64, f64) {
    let width = config.n_embd as f64;
    let has = |part: &str| name.contains(part);
    let weight_grad = has("weight-grad");
    if has("k_proj.bias") && weight_grad {
        // Softmax does not see a shift of all logits, so the bias of the keys has no gradient.
        return (0.0, 1e-9);
    }
    if name == "activation readout.linear" {
        // A readout divides by fan-in, so that the first logits shrink with width: width^-1/2.
        return (0.5 / width.sqrt(), 2.0 / width.sqrt());
    }
    if name.starts_with("activation-grad grad(") && has("residual_split") {
        // The delayed factor tau/sqrt(1 + tau^2) of the branch, below one by design.
        return (0.05, 2.0);
    }
    let queries_and_keys = has("q_proj") || has("k_proj");
    if has("-grad") && (queries_and_keys || has("attention.attention).0") || has("attention).1")) {
        // With logits q k / d attention starts nearly uniform, and hardly depends on q and k: the
        // rule gives one scale to all three gradients, and that of the values is the right one.
        return (0.02, 0.5);
    }
    if has("attention") && (has("attention.attention.0") || has("c_proj")) && !has("grad") {
        // The rule assumes values that are independent from position to position. Averages of the
        // layers before make them alike, so later averages cancel less.
        return (0.5, 4.0);
    }
    if weight_grad && (has("bias") || has("ln_")) {
        // Sums over positions whose gradients are alike, for the same reason: by at most the root of
        // the sequence length.
        return (0.4, (config.n_positions as f64).sqrt());
    }
    if weight_grad && has("attention") {
        return (0.4, 3.0);
    }
    if has("-grad grad(") {
        // Residual streams grow above one with the outputs of attention, and norms pass on that
        // much less gradient.
        return (0.35, 2.0);
    }
    (0.5, 2.0)
}

#[test]
fn every_tensor_starts_near_unit_variance() {
    let base = GptConfig {
        vocab_size: 64,
        n_positions: 64,
        n_embd: 64,
        n_layer: 3,
        n_head: 4,
        ..GptConfig::default()
    };
    let silu = GptConfig {
        norm: Norm::RmsNorm,
        activation_function: Activation::Silu,
        bias: false,
        ..base.clone()
    };
    for config in [base, silu] {
        let GptStep { step, config, .. } =
            GptStep::new(config, Parametrisation::Unit, [8, 64], true);
        let read = step.run_exact();
        assert!(step.all.len() > 100);
        let mut wrong = Vec::new();
        let mut plain = 0;
        for (name, slot) in &step.all {
            let (sigma, (low, high)) = (rms(&read(*slot)), range(&config, name));
            plain += usize::from((0.5..2.0).contains(&sigma));
            if !(low..=high).contains(&sigma) {
                wrong.push(format!("{sigma:.3} outside {low:.3}..{high:.3}: {name}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        // The exceptions are few.
        assert!(plain * 4 > step.all.len() * 3, "{plain} of {}", step.all.len());
    }
}

/// The same model without scales, for contrast: its gradients are far below the smallest numbers
/// of FP8 and partly of F16.
#[test]
fn a_regular_model_starts_far_from_unit_variance() {
    let config = GptConfig {
        vocab_size: 64,
        n_positions: 64,
        n_embd: 64,
        n_layer: 3,
        n_head: 4,
        ..GptConfig::default()
    };
    let GptStep { step, .. } = GptStep::new(config, Parametrisation::Regular, [8, 64], true);
    let read = step.run_exact();
    let gradients: Vec<f64> = step
        .all
        .iter()
        .filter(|(name, _)| name.starts_with("activation-grad"))
        .map(|(_, slot)| rms(&read(*slot)))
        .collect();
    let small = gradients.iter().filter(|&&sigma| sigma < 1e-3).count();
    assert!(small * 2 > gradients.len(), "{gradients:?}");
}
