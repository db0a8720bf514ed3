//! Memory: what is planned, what is saved in which format, and budgets that recomputation keeps.

mod common;

use common::{command, run};
use onesigma::backend::Engine;
use onesigma::format::Format;
use onesigma::graph::passes::recompute::is_repeated;
use onesigma::graph::passes::saved::saved;
use onesigma::graph::{self, DType, Op, Program, SlotId, SlotKind};
use onesigma::models::{BertConfig, GptConfig};
use onesigma::ops::recipes;
use onesigma::setup;
use onesigma::train::Error;
use onesigma::train::config::{Config, ModelConfig, ModelType};
use onesigma::train::memory::Budget;
use onesigma::train::program::TrainingProgram;

const SIZE: usize = 32;

/// A GPT and a BERT with dropout wherever they have it.
fn models() -> [Config; 2] {
    let model = ModelConfig { layers: 3, heads: 2, hidden: SIZE, seq: 24, ..Default::default() };
    let gpt = GptConfig {
        vocab_size: 256,
        n_positions: 24,
        n_embd: SIZE,
        n_layer: 3,
        n_head: 2,
        tie_word_embeddings: Some(false),
        embd_pdrop: 0.1,
        attn_pdrop: 0.1,
        resid_pdrop: 0.1,
        ..GptConfig::default()
    };
    let bert = BertConfig {
        vocab_size: 256,
        hidden_size: SIZE,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        intermediate_size: 4 * SIZE,
        max_position_embeddings: 24,
        hidden_dropout_prob: 0.1,
        attention_probs_dropout_prob: 0.1,
        ..BertConfig::default()
    };
    let base = Config { batch: 4, model, ..Config::default() };
    [
        Config { gpt: Some(gpt), ..base.clone() },
        Config { model_type: ModelType::Bert, bert: Some(bert), ..base },
    ]
}

/// Every model under every built-in recipe.
fn all() -> impl Iterator<Item = Config> {
    models().into_iter().flat_map(|model| {
        recipes::BUILT_IN
            .iter()
            .map(move |(recipe, _)| Config { recipe: (*recipe).to_owned(), ..model.clone() })
    })
}

fn describe(config: &Config) -> String {
    format!("{:?} {}", config.model_type, config.recipe)
}

fn program(config: &Config, budget: Option<usize>) -> Result<TrainingProgram, Error> {
    let memory = budget.map(|bytes| Budget(bytes as u64));
    setup::program(&Config { memory, ..config.clone() })
}

/// Losses of some steps, and every byte of the state after each.
fn trained(program: &Program, entries: &[&str], steps: u32) -> (Vec<u8>, Vec<Vec<u8>>) {
    let backend = onesigma::backends::open("cpu").expect("built in");
    let mut engine = backend.compile(program).expect("supported");
    for (index, slot) in program.slots().iter().enumerate() {
        let count = slot.shape.numel() as u32;
        let bytes: Vec<u8> = match (slot.kind, &slot.name[..]) {
            (SlotKind::Input, "lr") => 0.25_f32.to_le_bytes().into(),
            (SlotKind::Input, "tokens" | "targets") => {
                (0..count).flat_map(|n| (n * 7 % 251).to_le_bytes()).collect()
            }
            (SlotKind::Input, _) => (0..count).flat_map(|_| 1_u32.to_le_bytes()).collect(),
            _ => continue,
        };
        engine.write(SlotId::new(index), &bytes).expect("one frame");
    }
    let engine = engine.as_mut();
    engine.run(program.find_entry("init").expect("there is one"), 1).expect("runs");
    let (mut losses, mut states) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let slot = program.step().expect("there is one");
        engine.write(slot, &step.to_le_bytes()).expect("one frame");
        for entry in entries {
            engine.run(program.find_entry(entry).expect("there is one"), 1).expect("runs");
        }
        losses.extend(read(program, engine, program.find_slot("loss").expect("there is one")));
        for (index, slot) in program.slots().iter().enumerate() {
            if slot.kind == SlotKind::State {
                states.push(read(program, engine, SlotId::new(index)));
            }
        }
    }
    (losses, states)
}

fn read(program: &Program, engine: &mut dyn Engine, slot: SlotId) -> Vec<u8> {
    let mut bytes = vec![0; program.slots()[slot.index()].bytes()];
    engine.read(slot, &mut bytes).expect("a frame");
    bytes
}

/// The least budget, from the refusal of one that is too small.
fn least(config: &Config) -> usize {
    match program(config, Some(1000)) {
        Err(Error::Graph(graph::Error::Memory {
            least_bytes, budget_bytes, slot_bytes, ..
        })) => {
            assert!(least_bytes > slot_bytes && budget_bytes == 1000);
            least_bytes
        }
        other => panic!("{}: {other:?}", describe(config)),
    }
}

/// Moments after the first step are the gradients times a constant, so equal states mean equal
/// gradients. Dropout draws the same masks again.
#[test]
fn recomputation_keeps_every_bit() {
    for config in all() {
        let name = describe(&config);
        let whole = program(&config, None).expect("a program");
        let expected = trained(&whole.program, &["train_step"], 3);
        assert!(expected.0.as_chunks().0.iter().all(|&loss| f32::from_le_bytes(loss).is_finite()));
        let (full, slots) = (whole.program.arena_bytes(), whole.program.slot_bytes());
        let mut budgets = vec![slots + (full - slots) / 100 * 65];
        if config.recipe == "unit-fp8" {
            budgets.push(least(&config));
        }
        for budget in budgets {
            let fitted = program(&config, Some(budget)).expect("it can be done");
            assert!(fitted.program.arena_bytes() <= budget, "{name}");
            assert_is_dense(&fitted.program, &name);
            let step = &fitted.program.entries()[1];
            let masks =
                step.graph.nodes().iter().filter(|node| matches!(node.op, Op::Random { .. }));
            assert!(masks.count() >= 7, "{name}: no dropout");
            let repeated = step.graph.nodes().iter().filter(|node| is_repeated(node)).count();
            assert!(repeated > 0, "{name}: {budget} of {full} bytes with nothing repeated");
            let found = trained(&fitted.program, &["train_step"], 3);
            assert!(found == expected, "{name}: other bits with {budget} of {full} bytes");
            let memory = fitted.memory.expect("a budget");
            let fit = memory.entries.iter().find(|fit| fit.entry == "train_step");
            let fit = fit.expect("it did not fit before");
            assert_eq!((fit.repeated, fit.temporary_bytes[1]), (repeated, step.temporary_bytes));
            assert!(fit.repeated_seconds > 0.0 && fit.repeated_seconds < 2.0 * fit.seconds);
        }
    }
}

#[test]
fn accumulated_gradients_keep_their_bits_too() {
    for model in models() {
        let config = Config { recipe: "unit-fp8".into(), accumulate: 2, ..model };
        let whole = program(&config, None).expect("a program");
        let entries = ["accumulate", "accumulate", "apply"];
        let budget = least(&config);
        let fitted = program(&config, Some(budget)).expect("it can be done");
        assert!(fitted.program.arena_bytes() < whole.program.arena_bytes());
        let found = trained(&fitted.program, &entries, 2);
        assert!(found == trained(&whole.program, &entries, 2), "{}", describe(&config));
    }
}

#[test]
fn the_least_budget_is_the_least() {
    for model in models() {
        let config = Config { recipe: "unit-fp8".into(), ..model };
        let least = least(&config);
        assert!(program(&config, Some(least)).is_ok());
        let slots = program(&config, None).expect("a program").program.slot_bytes();
        let below = slots + (least - slots) / 100 * 95;
        let refused = program(&config, Some(below));
        assert!(matches!(refused, Err(Error::Graph(graph::Error::Memory { .. }))));
    }
}

/// The bar: an arena within 5 % of what is alive at once, which no plan can go below.
fn assert_is_dense(program: &Program, name: &str) {
    for entry in program.entries() {
        let (taken, alive) = (entry.temporary_bytes, entry.live_bytes);
        let what = format!("{name} {}: {taken} of {alive}", entry.name);
        assert!(taken >= alive && taken as f64 <= 1.05 * alive as f64, "{what}");
    }
}

/// Without a budget; [`recomputation_keeps_every_bit`] sees to it for those with one.
#[test]
fn arenas_are_within_a_twentieth_of_the_largest_live_set() {
    for config in all() {
        for accumulate in [1, 2] {
            let config = Config { accumulate, ..config.clone() };
            let program = program(&config, None).expect("a program").program;
            assert_is_dense(&program, &describe(&config));
        }
    }
}

/// The format of each activation that the backward pass reads, by the op that reads it.
#[test]
fn activations_are_saved_in_the_formats_of_the_recipe() {
    for config in all() {
        let name = describe(&config);
        let program = program(&config, None).expect("a program").program;
        let graph =
            &program.entries()[program.find_entry("train_step").expect("one").index()].graph;
        let recipe = recipes::load(&config.recipe).expect("built in");
        let stored = recipe.rule(graph::Role::SavedActivation, graph::recipe::Use::Store, "", None);
        let stored = DType::Float(stored.expect("a rule").format);
        let kept = saved(graph);
        assert!(kept.len() >= 3 * 8, "{name}: {} saved", kept.len());
        let is_fp8 = config.recipe.ends_with("fp8");
        let mut one_byte = 0;
        for &value in &kept {
            let info = graph.value(value);
            let place = graph.value_name(value);
            let expected: &[DType] = match (is_fp8, info.dtype) {
                // The readout, and the critical products of u-muP, are wider.
                (true, DType::Float(Format::E4M3)) => {
                    one_byte += 1;
                    assert_eq!(info.bytes(), info.shape.numel(), "{name} {place}");
                    assert!(is_multiplied(graph, value), "{name} {place} is no operand");
                    &[DType::Float(Format::E4M3)]
                }
                _ => &[stored],
            };
            assert!(expected.contains(&info.dtype), "{name} {place}: {}", info.dtype);
            if is_fp8 && is_multiplied(graph, value) {
                let wide =
                    ["readout", "c_proj", "lm_head", "predictions", "ln_f", "gelu", "decoder"];
                let is_wide = info.dtype == stored;
                let known = wide.iter().any(|word| place.contains(word))
                    || config.recipe.starts_with("u-mup");
                assert!(!is_wide || known, "{name} {place} is an operand in {stored}");
            }
        }
        // Three layers of at least three operands of products each.
        assert!(!is_fp8 || one_byte >= 9, "{name}: {one_byte} tensors of one byte");
    }
}

/// Whether a product of the backward pass reads a value or a view of it.
fn is_multiplied(graph: &graph::Graph, value: graph::ValueId) -> bool {
    graph.nodes().iter().any(|node| match node.op {
        Op::MatMul { .. } => node.inputs.contains(&value),
        Op::Reshape { .. } => node.inputs[0] == value && is_multiplied(graph, node.outputs[0]),
        _ => false,
    })
}

#[test]
fn compile_tells_what_a_budget_costs() {
    let sizes = ["--layers", "3", "--heads", "2", "--hidden", "32", "--seq", "64", "--batch", "8"];
    let compile = |memory: &str| run(command(&["compile", "--memory", memory]).args(sizes));
    let outcome = compile("1600KiB");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for text in
        ["of 1600KiB allowed", "ops run again", "% more time", "saved for the backward pass"]
    {
        assert!(outcome.stdout.contains(text), "{text}: {}", outcome.stdout);
    }
    let outcome = compile("100KiB");
    assert_eq!(outcome.code, Some(2), "{}", outcome.stdout);
    assert!(outcome.stderr.contains("the program needs"), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.matches("the budget is").count(), 1, "{}", outcome.stderr);
    // What it names is enough.
    let words: Vec<&str> =
        outcome.stderr.split("needs ").nth(1).expect("named").split(' ').collect();
    let outcome = compile(&format!("{}{}", words[0], words[1]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let outcome = compile("plenty");
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("a size such as 512MiB"), "{}", outcome.stderr);
}
