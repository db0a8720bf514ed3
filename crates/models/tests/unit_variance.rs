//! Standard deviation of every tensor of the unit-scaled GPT at initialisation.

mod support;

use onesigma_models::GptConfig;
use onesigma_models::config::{Activation, Norm};
use onesigma_ops::Parametrisation;
use support::Step;

fn sigma(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()
}

#[test]
fn print_all() {
    for (norm, act) in [(Norm::LayerNorm, Activation::Gelu), (Norm::RmsNorm, Activation::Silu)] {
    let config = GptConfig {
        vocab_size: 64,
        n_positions: 64,
        n_embd: 64,
        n_layer: 3,
        n_head: 4,
        norm, activation_function: act,
        ..GptConfig::default()
    };
    let step = Step::new(config, Parametrisation::Unit, [8, 64], true);
    let read = step.run_exact();
    for (name, slot) in &step.all {
        println!("{:.3} {name}", sigma(&read(*slot)));
    }
    }
}
