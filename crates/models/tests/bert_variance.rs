//! Standard deviation of every tensor of the unit-scaled BERT at initialisation.

mod support;

use onesigma_models::config::NormPosition;
use onesigma_models::{
    BertConfig, BertInputs, BertTask, MaskedTokens, bert_classification_loss,
    bert_pre_training_loss, bert_span_loss,
};
use onesigma_ops::Parametrisation;
use support::{Input, Step, numbers, rms};

const BATCH: usize = 16;
const SEQ: usize = 64;
/// A sixth of the positions, as masking takes.
const MASKED: usize = BATCH * 10;

fn step(config: &BertConfig, task: BertTask) -> Step {
    let p = Parametrisation::UMup;
    let input = |name, shape: &[usize], values| Input { name, shape: shape.to_vec(), values };
    let vocabulary = config.vocab_size as u32;
    let rows = (0..MASKED as u32).map(|n| n / 10 * SEQ as u32 + n % 10 * 6).collect();
    let segments = (0..BATCH * SEQ).map(|n| u32::from(n % SEQ > SEQ / 2)).collect();
    let inputs = vec![
        input("tokens", &[BATCH, SEQ], numbers(BATCH * SEQ, vocabulary, 1)),
        input("segments", &[BATCH, SEQ], segments),
        input("rows", &[MASKED], rows),
        input("targets", &[MASKED], numbers(MASKED, vocabulary, 2)),
        input("counted", &[MASKED], vec![1; MASKED]),
        input("labels", &[BATCH], numbers(BATCH, 2, 3)),
        input("ends", &[2, BATCH], numbers(2 * BATCH, SEQ as u32, 4)),
    ];
    let specs = config.parameters(task, p).expect("a possible model");
    Step::new(specs, p, inputs, true, |graph, params, x| {
        let inputs = BertInputs { tokens: x[0], segments: Some(x[1]), mask: None };
        let masked = MaskedTokens { rows: x[2], targets: x[3], counted: x[4] };
        let out = match task {
            BertTask::PreTraining => {
                bert_pre_training_loss(graph, params, config, p, inputs, masked, x[5], true)
            }
            BertTask::Classification => {
                bert_classification_loss(graph, params, config, p, inputs, x[5], None, true)
            }
            _ => bert_span_loss(graph, params, config, p, inputs, x[6], None, true),
        };
        Ok(out?.loss)
    })
}

/// What shifts the logits of all positions alike: the last biases before the readout.
const LAST_BIASES: [&str; 3] =
    ["readout.bias", "layers.2.mlp.LayerNorm.layer_norm).2", "grad(ln.layer_norm).2"];

/// Where the root mean square of a tensor may lie, `name` being its role and the path of its node.
/// All but the named exceptions are within a factor of two of 1.
fn range(task: BertTask, name: &str) -> (f64, f64) {
    let (role, path) = name.split_once(' ').expect("a role and a path");
    let of = |words: &[&str]| words.iter().any(|word| path.contains(word));
    let width = 64.0_f64;
    match role {
        // 1/fan_in of the readouts, on an input of unit variance.
        "activation" if of(&["readout."]) => (0.5 / width.sqrt(), 2.0 / width.sqrt()),
        "activation" => (0.5, 2.0),
        // Softmax does not see a shift of all its logits: nothing but rounding.
        _ if of(&["key.bias"]) || task == BertTask::Span && of(&LAST_BIASES) => (0.0, 1e-6),
        // The first position alone has a gradient, all of it: the square root of 64 positions
        // over one row, and over all rows unit variance.
        "activation-grad" if of(&["pooler.first"]) => (4.0, 16.0),
        "activation-grad" if of(&["pooler.slice"]) => (0.0, 2.0),
        // Softmax is nearly even at the start, so that its derivative is of the order of the
        // deviation of the logits over the number of keys; and values share the gradient of a
        // position among all of them. One scale serves both directions, as the input of a branch
        // is no cut edge.
        "activation-grad" if of(&[".attention."]) => (0.01, 2.0),
        // What a branch gives back is the gradient of its first layer, weighted with tau.
        "activation-grad" => (0.2, 2.0),
        _ if of(&[".attention.query.", ".attention.key.", ".attention.value."]) => (0.005, 4.0),
        // Rows of a batch that are alike do not average out, and gradients of two losses differ
        // from those of independent rows.
        _ => (0.03, 4.0),
    }
}

#[test]
fn every_tensor_starts_near_unit_variance() {
    for position in [NormPosition::Post, NormPosition::Pre] {
        for tied in [false, true] {
            for task in [BertTask::PreTraining, BertTask::Classification, BertTask::Span] {
                let config = BertConfig {
                    vocab_size: 96,
                    hidden_size: 64,
                    num_hidden_layers: 3,
                    num_attention_heads: 4,
                    intermediate_size: 256,
                    max_position_embeddings: SEQ,
                    norm_position: position,
                    tie_word_embeddings: Some(tied),
                    ..BertConfig::default()
                };
                let step = step(&config, task);
                let read = step.run_exact();
                assert!(step.all.len() > 100);
                let mut wrong = Vec::new();
                let mut plain = 0;
                for (name, slot) in &step.all {
                    let (sigma, (low, high)) = (rms(&read(*slot)), range(task, name));
                    plain += usize::from((0.5..2.0).contains(&sigma));
                    if !(low..=high).contains(&sigma) {
                        wrong.push(format!("{sigma:.3} outside {low:.3}..{high:.3}: {name}"));
                    }
                }
                let title = format!("{position:?} tied {tied} {task:?}");
                assert!(wrong.is_empty(), "{title}:\n{}", wrong.join("\n"));
                assert!(plain * 8 > step.all.len() * 5, "{title}: {plain} of {}", step.all.len());
            }
        }
    }
}
