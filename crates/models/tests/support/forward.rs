//! Outputs of a model with its weights, in f64, without a gradient.

use super::numbers;
use onesigma_backend::{Engine, RefBackend};
use onesigma_graph::{DType, Graph, Module, Program, Role, SlotKind};
use onesigma_models::{
    BertInputs, BertTask, MaskedTokens, Model, Params, Pretrained, bert, bert_classify,
    bert_masked_lm_loss, bert_pre_training_loss, bert_span, gpt,
};

/// What a model is fed.
pub struct Feed {
    pub seq: usize,
    pub tokens: Vec<u32>,
    pub segments: Vec<u32>,
    pub mask: Vec<u32>,
    /// Positions that a head of masked tokens looks at.
    pub rows: Vec<u32>,
}

/// What the model gives for two random sequences of one length: logits, or hidden states.
pub fn outputs(pretrained: &Pretrained, seq: usize) -> Vec<f64> {
    let vocabulary = match &pretrained.model {
        Model::Gpt(config) => config.vocab_size,
        Model::Bert { config, .. } => config.vocab_size,
    };
    // A quarter is padding, never all of a sequence.
    let mut mask = numbers(2 * seq, 4, 54);
    mask.iter_mut().step_by(seq).for_each(|first| *first = 1);
    let feed = Feed {
        seq,
        tokens: numbers(2 * seq, vocabulary as u32, 56),
        segments: numbers(2 * seq, 2, 58),
        mask,
        rows: numbers(3, 2 * seq as u32, 59),
    };
    run(pretrained, &feed)
}

/// What the model gives for a batch.
pub fn run(pretrained: &Pretrained, feed: &Feed) -> Vec<f64> {
    let p = pretrained.parametrisation;
    let mut module = Module::new();
    let mut graph = Graph::new();
    let mut input = |module: &mut Module, name: &str, shape: &[usize], values: &[u32]| {
        let slot = module.slot(name, SlotKind::Input, shape, DType::U32, Role::Data);
        let slot = slot.expect("names are unique");
        (slot, values.to_vec(), module.read(&mut graph, slot))
    };
    let batch = feed.tokens.len() / feed.seq;
    let (each, rows) = ([batch, feed.seq], [feed.rows.len()]);
    let tokens = input(&mut module, "tokens", &each, &feed.tokens);
    let segments = input(&mut module, "segments", &each, &feed.segments);
    let mask = input(&mut module, "mask", &each, &feed.mask);
    let ones = vec![1; feed.rows.len()];
    let targets = input(&mut module, "targets", &rows, &ones);
    let rows = input(&mut module, "rows", &rows, &feed.rows);
    let follows = input(&mut module, "follows", &[batch], &vec![1; batch]);
    let mut weights = Vec::new();
    let mut values = Vec::new();
    for (name, tensor) in &pretrained.weights {
        let (shape, role) = (tensor.shape.clone(), Role::MasterWeight);
        let slot = module.slot(name, SlotKind::State, shape, DType::F32, role).expect("unique");
        values.push((name.clone(), module.read(&mut graph, slot)));
        weights.push((slot, tensor.values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>()));
    }
    let mut params = Params::new(values);
    let params = &mut params;
    let graph = &mut graph;
    let inputs = BertInputs { tokens: tokens.2, segments: Some(segments.2), mask: Some(mask.2) };
    let masked = MaskedTokens { rows: rows.2, targets: targets.2, counted: targets.2 };
    let outs = match &pretrained.model {
        Model::Gpt(config) => {
            vec![gpt(graph, params, config, p, tokens.2, false).expect("it builds")]
        }
        Model::Bert { config, task } => match task {
            BertTask::Encoder => vec![bert(graph, params, config, p, inputs, false).expect("ok")],
            BertTask::MaskedLm => {
                let out = bert_masked_lm_loss(graph, params, config, p, inputs, masked, false);
                vec![out.expect("it builds").logits]
            }
            BertTask::PreTraining => {
                let follows = follows.2;
                let out = bert_pre_training_loss(
                    graph, params, config, p, inputs, masked, follows, false,
                )
                .expect("it builds");
                vec![out.logits, out.next_sentence.expect("two heads")]
            }
            BertTask::Classification => {
                vec![bert_classify(graph, params, config, p, inputs, false).expect("it builds")]
            }
            BertTask::Span => {
                vec![bert_span(graph, params, config, p, inputs, false).expect("it builds")]
            }
            other => panic!("{other:?} is not run here"),
        },
    };
    let mut slots = Vec::new();
    for (n, &out) in outs.iter().enumerate() {
        let shape = graph.shape(out).clone();
        let name = format!("out{n}");
        let slot = module.slot(&name, SlotKind::Output, shape, DType::F32, Role::Statistic);
        slots.push(slot.expect("unique"));
        graph.write(slots[n], out);
    }
    module.entry("run", graph.clone()).expect("slots exist");
    let program = Program::new(module).expect("a valid program");
    let mut engine = RefBackend::exact().executor(&program).expect("the reference runs it");
    for (slot, values, _) in [tokens, segments, mask, rows, targets, follows] {
        let bytes: Vec<u8> = values.iter().flat_map(|id| id.to_le_bytes()).collect();
        engine.write(slot, &bytes).expect("right size");
    }
    for (slot, values) in weights {
        engine.set_tensor(slot, values).expect("right size");
    }
    engine.run(program.find_entry("run").expect("it is there"), 1).expect("it runs");
    let read = |slot| engine.tensor(slot).expect("a slot").expect("written").clone();
    slots.into_iter().flat_map(read).collect()
}
