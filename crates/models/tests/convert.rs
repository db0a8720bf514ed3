//! A converted model is the same function, whatever its architecture, at every sequence length.

mod support;

use onesigma_models::config::{Activation, Norm, NormPosition, Positions};
use onesigma_models::{BertConfig, BertTask, Error, GptConfig, Model, Pretrained, rms};
use onesigma_ops::Parametrisation;
use support::forward::outputs;
use support::{dot, pretrained};

const SCALED: [Parametrisation; 3] =
    [Parametrisation::Unit, Parametrisation::UMup, Parametrisation::MuS];

fn models() -> Vec<(&'static str, Model)> {
    let gpt = GptConfig {
        vocab_size: 11,
        n_positions: 7,
        n_embd: 8,
        n_layer: 2,
        n_head: 2,
        initializer_range: 0.4,
        // So large that a wrong one shows.
        layer_norm_epsilon: 0.05,
        embd_pdrop: 0.1,
        attn_pdrop: 0.2,
        resid_pdrop: 0.3,
        attention_mult: 1.5,
        ..GptConfig::default()
    };
    let llama = GptConfig {
        norm: Norm::RmsNorm,
        positions: Positions::Rotary,
        activation_function: Activation::Swiglu,
        bias: false,
        n_head: 4,
        n_kv_head: Some(2),
        n_inner: Some(12),
        ..gpt.clone()
    };
    let plain = GptConfig { norm_affine: false, ..gpt.clone() };
    let post = GptConfig { norm_position: Some(NormPosition::Post), ..gpt.clone() };
    let end = GptConfig { norm_position: Some(NormPosition::BranchEnd), ..gpt.clone() };
    let fixed = GptConfig { residual_tau: Some(0.6), ..gpt.clone() };
    let bert = BertConfig {
        vocab_size: 13,
        hidden_size: 6,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 10,
        max_position_embeddings: 7,
        layer_norm_eps: 0.05,
        initializer_range: 0.4,
        num_labels: Some(3),
        hidden_dropout_prob: 0.1,
        attention_probs_dropout_prob: 0.2,
        ..BertConfig::default()
    };
    let pre = BertConfig { norm_position: NormPosition::Pre, ..bert.clone() };
    let branch = BertConfig { norm_position: NormPosition::BranchEnd, ..bert.clone() };
    let mut all = vec![
        ("gpt", Model::Gpt(gpt)),
        ("llama", Model::Gpt(llama)),
        ("norms without parameters", Model::Gpt(plain)),
        ("post-norm gpt", Model::Gpt(post)),
        ("branch-end gpt", Model::Gpt(end)),
        ("fixed tau", Model::Gpt(fixed)),
    ];
    for task in [
        BertTask::Encoder,
        BertTask::MaskedLm,
        BertTask::PreTraining,
        BertTask::Classification,
        BertTask::Span,
    ] {
        all.push(("bert", Model::Bert { config: bert.clone(), task }));
        all.push(("pre-norm bert", Model::Bert { config: pre.clone(), task }));
        if task != BertTask::Encoder {
            all.push(("branch-end bert", Model::Bert { config: branch.clone(), task }));
        }
    }
    all
}

/// Relative distance of outputs at the longest and at a shorter sequence.
fn distance(a: &Pretrained, b: &Pretrained) -> f64 {
    let at = |seq| {
        let (x, y) = (outputs(a, seq), outputs(b, seq));
        let wrong: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x - y).collect();
        (dot(&wrong, &wrong) / dot(&x, &x)).sqrt()
    };
    at(7).max(at(4))
}

/// The new weights are rounded to f32, relative 6e-8, in each of about ten layers.
const ROUNDING: f64 = 1e-6;

#[test]
fn a_scaled_model_is_the_regular_function_and_back_again() {
    for (name, model) in models() {
        let regular = pretrained(model, Parametrisation::Regular);
        for p in SCALED {
            let title = format!("{name}, {:?}, {p}", regular.model);
            let scaled = regular.convert(p).unwrap_or_else(|error| panic!("{title}: {error}"));
            let wrong = distance(&regular, &scaled.model);
            assert!(wrong < ROUNDING, "{title}: {wrong:e}");
            // The table of tokens has unit variance.
            let table = &scaled.model.weights[regular.model.token_table()];
            assert!((rms(table) - 1.0).abs() < 1e-6, "{title}: {}", rms(table));
            let back = scaled.model.convert(Parametrisation::Regular).expect("the way back");
            let wrong = distance(&regular, &back.model);
            assert!(wrong < ROUNDING, "{title}: {wrong:e}");
            for (name, tensor) in &regular.weights {
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 4e-7 * a.abs();
                let again = &back.model.weights[name].values;
                assert!(tensor.values.iter().zip(again).all(close), "{title}: {name}");
            }
            for (name, factor) in &scaled.factors {
                let both = factor * back.factors[name];
                assert!((both - 1.0).abs() < 1e-12, "{title}: {name}");
            }
        }
    }
}

#[test]
fn a_model_that_was_trained_scaled_becomes_regular() {
    for (name, model) in models() {
        for p in SCALED {
            for tied in [false, true] {
                let mut model = model.clone();
                match &mut model {
                    Model::Gpt(config) => config.tie_word_embeddings = Some(tied),
                    Model::Bert { config, .. } => config.tie_word_embeddings = Some(tied),
                }
                let mut scaled = pretrained(model, p);
                let is_bare = name == "norms without parameters" && p == Parametrisation::MuS;
                if is_bare {
                    continue; // norms at the ends of branches, refused below
                }
                // Attention of a scaled GPT depends on the length unless this is set.
                if let Model::Gpt(config) = &mut scaled.model {
                    config.attention_keys = Some(7);
                }
                let regular = scaled.convert(Parametrisation::Regular).expect("it converts");
                let title = format!("{name}, {:?}, tied {tied}", scaled.model);
                let wrong = distance(&scaled, &regular.model);
                assert!(wrong < ROUNDING, "{title}: {wrong:e}");
                let table = &regular.model.weights[scaled.model.token_table()];
                assert!((rms(table) - 0.4).abs() < 1e-6, "{title}: {}", rms(table));
            }
        }
    }
}

#[test]
fn without_the_stream_scale_only_the_epsilons_differ() {
    let config = GptConfig {
        vocab_size: 11,
        n_positions: 7,
        n_embd: 8,
        n_layer: 2,
        n_head: 2,
        initializer_range: 0.4,
        ..GptConfig::default()
    };
    let regular = pretrained(Model::Gpt(config), Parametrisation::Regular);
    let mut scaled = regular.convert(Parametrisation::UMup).expect("it converts").model;
    let exact = distance(&regular, &scaled);
    let Model::Gpt(config) = &mut scaled.model else { panic!("a decoder stays one") };
    assert!(config.stream_scale.take().is_some());
    let approximate = distance(&regular, &scaled);
    // An epsilon of 1e-5 beside variances of about 1/5 and 1.
    assert!(exact < ROUNDING && approximate > ROUNDING && approximate < 1e-3, "{approximate}");
}

#[test]
fn what_cannot_be_converted_says_why() {
    let models = models();
    let (_, gpt) = &models[0];
    let scaled = pretrained(gpt.clone(), Parametrisation::Unit);
    let message = |error: Error| error.to_string();
    let text = message(scaled.convert(Parametrisation::MuS).expect_err("two steps"));
    assert!(text.contains("convert twice"), "{text}");
    let regular = scaled.convert(Parametrisation::Regular).expect("it converts").model;
    let text = message(regular.convert(Parametrisation::MuS).expect_err("its epsilons are unit"));
    assert!(text.contains("convert it back first"), "{text}");
    assert_eq!(scaled.convert(Parametrisation::Unit).expect("nothing to do").model, scaled);

    let (_, plain) = &models[2];
    let Model::Gpt(mut config) = plain.clone() else { panic!("a decoder") };
    config.norm_position = Some(NormPosition::BranchEnd);
    let regular = pretrained(Model::Gpt(config), Parametrisation::Regular);
    let text = message(regular.convert(Parametrisation::Unit).expect_err("no place for it"));
    assert!(text.contains("norm_affine"), "{text}");

    let mut torn = pretrained(gpt.clone(), Parametrisation::Regular);
    let tensor = torn.weights.remove("transformer.ln_f.bias").expect("a bias");
    let text = message(torn.convert(Parametrisation::Unit).expect_err("a tensor is missing"));
    assert!(text.contains("`transformer.ln_f.bias`"), "{text}");
    torn.weights.insert("transformer.ln_f.bios".into(), tensor.clone());
    torn.weights.insert("transformer.ln_f.bias".into(), tensor);
    let text = message(torn.convert(Parametrisation::Unit).expect_err("one too many"));
    assert!(text.contains("`transformer.ln_f.bios`"), "{text}");
}
