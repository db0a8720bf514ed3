//! Models in the files and under the names of Hugging Face.

mod support;

use onesigma_format::Format;
use onesigma_models::config::{NormPosition, Positions};
use onesigma_models::{
    BertConfig, BertTask, Error, GptConfig, Model, Pretrained, Tensor, TensorFile, write_tensors,
};
use onesigma_ops::Parametrisation;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use support::forward::{Feed, run};
use support::pretrained;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn expected(name: &str) -> Value {
    let text = fs::read_to_string(golden(name).join("expected.json")).expect("a golden file");
    serde_json::from_str(&text).expect("JSON")
}

fn words(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list").iter();
    list.map(|word| word.as_u64().expect("a number") as u32).collect()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The tensors of a file by name.
fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let file = TensorFile::open(path).expect("a file of tensors");
    let names = file.shapes().expect("a header").into_keys();
    let floats = names.filter(|name| !name.ends_with("position_ids"));
    floats.map(|name| (name.clone(), file.read(&name).expect("a tensor"))).collect()
}

/// A folder with the configuration of a golden model, changed, and some tensors.
fn rewritten(
    name: &str,
    change: impl FnOnce(&mut Value),
    tensors: &BTreeMap<String, Tensor>,
) -> tempfile::TempDir {
    let dir = folder();
    let text = fs::read_to_string(golden(name).join("config.json")).expect("a golden file");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    change(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).expect("room");
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    write_tensors(&dir.path().join("model.safetensors"), tensors, Format::F32, HashMap::new())
        .expect("room");
    dir
}

fn golden_tensors(name: &str) -> BTreeMap<String, Tensor> {
    tensors(&golden(name).join("model.safetensors"))
}

#[test]
fn golden_models_give_what_numpy_gives() {
    for name in ["gpt2", "bert"] {
        let model = Pretrained::load(&golden(name)).expect("a golden model");
        let expected = expected(name);
        let tokens = words(&expected["tokens"]);
        let all = vec![1; tokens.len()];
        let feed = Feed {
            seq: tokens.len(),
            segments: expected.get("segments").map_or(all.clone(), words),
            mask: expected.get("mask").map_or(all, words),
            rows: (0..tokens.len() as u32).collect(),
            tokens,
        };
        let found = run(&model, &feed);
        let outputs = expected["outputs"].as_array().expect("a list");
        assert_eq!(found.len(), outputs.len(), "{name}");
        for (found, expected) in found.iter().zip(outputs) {
            let expected = expected.as_f64().expect("a number");
            assert!((found - expected).abs() < 1e-12 * (1.0 + expected.abs()), "{name}: {found}");
        }
    }
}

#[test]
fn a_saved_golden_model_has_the_same_names_and_tensors() {
    for name in ["gpt2", "bert"] {
        let model = Pretrained::load(&golden(name)).expect("a golden model");
        let dir = folder();
        model.save(dir.path(), Format::F32).expect("room");
        let mut old = golden_tensors(name);
        old.retain(|name, _| !name.ends_with(".attn.bias"));
        assert_eq!(tensors(&dir.path().join("model.safetensors")), old, "{name}");
        assert_eq!(Pretrained::load(dir.path()).expect("its own files"), {
            let mut model = model.clone();
            // Written out, so that other programs need no default of ours.
            match &mut model.model {
                Model::Gpt(config) => config.tie_word_embeddings = Some(true),
                Model::Bert { config, .. } => config.tie_word_embeddings = Some(true),
            }
            model
        });
        let text = fs::read_to_string(dir.path().join("config.json")).expect("a file");
        let config: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(config["model_type"], *name);
        // Nothing of ours in a file for others.
        for field in ["residual_mult", "parametrisation", "norm_position", "stream_scale"] {
            assert!(config.get(field).is_none(), "{name}: {field}");
        }
    }
}

#[test]
fn names_are_read_without_their_prefix() {
    for (name, prefix) in [("gpt2", "transformer."), ("bert", "bert.")] {
        let bare = golden_tensors(name)
            .into_iter()
            .map(|(name, tensor)| (name.strip_prefix(prefix).unwrap_or(&name).to_owned(), tensor))
            .collect();
        let dir = rewritten(name, |_| (), &bare);
        let found = Pretrained::load(dir.path()).expect("the same model");
        assert_eq!(found, Pretrained::load(&golden(name)).expect("a golden model"));
    }
}

#[test]
fn weights_may_be_spread_over_files() {
    let dir = folder();
    let all = golden_tensors("gpt2");
    let mut map = serde_json::Map::new();
    for (n, part) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
        let own = all.iter().enumerate().filter(|(at, _)| at % 2 == n).map(|(_, one)| one);
        let own: Vec<(&str, &Tensor)> = own.map(|(name, tensor)| (name.as_str(), tensor)).collect();
        map.extend(own.iter().map(|(name, _)| ((*name).to_owned(), json!(part))));
        write_tensors(&dir.path().join(part), own, Format::F32, HashMap::new()).expect("room");
    }
    fs::copy(golden("gpt2").join("config.json"), dir.path().join("config.json")).expect("room");
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"weight_map": map}).to_string()).expect("room");
    let found = Pretrained::load(dir.path()).expect("the same model");
    assert_eq!(found, Pretrained::load(&golden("gpt2")).expect("a golden model"));

    fs::write(&index, json!({"weight_map": {"x": "../a.safetensors"}}).to_string()).expect("room");
    let message = Pretrained::load(dir.path()).expect_err("out of the folder").to_string();
    assert!(message.contains("in the folder itself"), "{message}");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let load = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut all = golden_tensors("gpt2");
        change(&mut all);
        let dir = rewritten("gpt2", |_| (), &all);
        Pretrained::load(dir.path()).expect_err("it does not fit")
    };
    let error = load(&|all| _ = all.remove("transformer.h.1.mlp.c_fc.bias"));
    assert!(
        matches!(&error, Error::MissingTensor { name } if name == "transformer.h.1.mlp.c_fc.bias")
    );
    let error = load(&|all| _ = all.remove("transformer.h.0.attn.c_attn.weight"));
    assert!(error.to_string().contains("`transformer.h.0.attn.c_attn.weight`"), "{error}");
    let extra = |shape: &[usize]| Tensor {
        shape: shape.to_vec(),
        values: vec![0.5; shape.iter().product()],
    };
    let error = load(&|all| _ = all.insert("transformer.h.2.ln_1.weight".into(), extra(&[8])));
    assert!(matches!(error, Error::UnexpectedTensor { .. }), "{error}");
    let error = load(&|all| _ = all.insert("transformer.wpe.weight".into(), extra(&[5, 8])));
    let text = error.to_string();
    assert!(text.contains("`transformer.wpe.weight` has shape [5, 8]"), "{text}");
    assert!(text.contains("[6, 8]"), "{text}");
    let name = "transformer.h.0.attn.c_attn.weight";
    let error = load(&|all| _ = all.insert(name.into(), extra(&[8, 23])));
    assert!(error.to_string().contains("[8, 24]"), "{error}");
    // A copy of the tied readout must be one.
    let error = load(&|all| _ = all.insert("lm_head.weight".into(), extra(&[13, 8])));
    assert!(matches!(&error, Error::UnexpectedTensor { name } if name == "lm_head.weight"));
    let mut all = golden_tensors("gpt2");
    all.insert("lm_head.weight".into(), all["transformer.wte.weight"].clone());
    assert!(Pretrained::load(rewritten("gpt2", |_| (), &all).path()).is_ok());
}

#[test]
fn settings_that_are_not_built_are_refused() {
    let all = golden_tensors("bert");
    let message = |field: &str, value: Value| {
        let dir = rewritten("bert", |config| config[field] = value, &all);
        Pretrained::load(dir.path()).expect_err("not built").to_string()
    };
    for (field, value) in [
        ("position_embedding_type", json!("relative_key")),
        ("is_decoder", json!(true)),
        ("model_type", json!("roberta")),
        ("hidden_act", json!("relu")),
    ] {
        let text = message(field, value.clone());
        let word = value.as_str().map_or("true".to_owned(), str::to_owned);
        assert!(text.contains(&word), "{text}");
    }
    assert!(message("num_attention_heads", json!(4)).contains("hidden_size"));
}

#[test]
fn the_body_of_a_model_takes_other_heads() {
    let found = Pretrained::load_for(&golden("bert"), BertTask::Classification).expect("its body");
    assert_eq!(
        found.new,
        [
            "bert.pooler.dense.weight",
            "bert.pooler.dense.bias",
            "classifier.weight",
            "classifier.bias",
        ]
    );
    assert!(found.pretrained.weights.keys().all(|name| name.starts_with("bert.")));
    let mut all = golden_tensors("bert");
    all.remove("bert.embeddings.LayerNorm.bias");
    let dir = rewritten("bert", |_| (), &all);
    let error = Pretrained::load_for(dir.path(), BertTask::Span).expect_err("not a whole body");
    assert!(matches!(error, Error::MissingTensor { .. }));
}

#[test]
fn heads_are_told_by_name_where_the_configuration_says_nothing() {
    let remove =
        |config: &mut Value| _ = config.as_object_mut().map(|all| all.remove("architectures"));
    let dir = rewritten("bert", remove, &golden_tensors("bert"));
    let found = Pretrained::load(dir.path()).expect("the same model");
    assert!(matches!(found.model, Model::Bert { task: BertTask::MaskedLm, .. }));
}

#[test]
fn every_model_survives_its_own_files() {
    let gpt = GptConfig { n_embd: 8, n_layer: 1, n_head: 2, vocab_size: 9, ..GptConfig::default() };
    let rotary = GptConfig { positions: Positions::Rotary, n_kv_head: Some(1), ..gpt.clone() };
    let bert = BertConfig {
        vocab_size: 9,
        hidden_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 12,
        max_position_embeddings: 6,
        id2label: Some((0..3).map(|n| (n.to_string(), format!("class {n}"))).collect()),
        ..BertConfig::default()
    };
    let pre = BertConfig { norm_position: NormPosition::Pre, ..bert.clone() };
    let end = BertConfig { norm_position: NormPosition::BranchEnd, ..bert.clone() };
    let mut models = vec![(Model::Gpt(gpt), "gpt2"), (Model::Gpt(rotary), "onesigma-gpt")];
    for task in [
        BertTask::Encoder,
        BertTask::MaskedLm,
        BertTask::PreTraining,
        BertTask::Classification,
        BertTask::Span,
    ] {
        models.push((Model::Bert { config: bert.clone(), task }, "bert"));
        models.push((Model::Bert { config: pre.clone(), task }, "megatron-bert"));
        models.push((Model::Bert { config: end.clone(), task }, "onesigma-bert"));
    }
    for (model, kind) in models {
        for p in [Parametrisation::Regular, Parametrisation::Unit, Parametrisation::MuS] {
            let original = pretrained(model.clone(), p);
            let dir = folder();
            original.save(dir.path(), Format::F32).expect("room");
            let found = Pretrained::load(dir.path()).expect("its own files");
            assert_eq!(found.weights, original.weights, "{model:?} {p}");
            assert_eq!(found.parametrisation, p);
            let text = fs::read_to_string(dir.path().join("config.json")).expect("a file");
            let config: Value = serde_json::from_str(&text).expect("JSON");
            let is_gpt = matches!(model, Model::Gpt(_));
            let own = if is_gpt { "onesigma-gpt" } else { "onesigma-bert" };
            let expected = if p.is_scaled() { own } else { kind };
            assert_eq!(config["model_type"], expected, "{model:?} {p}");
            // The same function, converted or not.
            let again = found.convert(Parametrisation::Regular);
            let first = original.convert(Parametrisation::Regular);
            match (again, first) {
                (Ok(again), Ok(first)) => assert_eq!(again.model.weights, first.model.weights),
                (again, first) => assert_eq!(again.is_err(), first.is_err()),
            }
        }
    }
}

#[test]
fn weights_can_be_stored_in_narrow_formats() {
    let model = Pretrained::load(&golden("bert")).expect("a golden model");
    for format in [Format::F16, Format::BF16, Format::E4M3, Format::E5M2] {
        let dir = folder();
        model.save(dir.path(), format).expect("room");
        let bytes = fs::metadata(dir.path().join("model.safetensors")).expect("a file").len();
        let floats: usize = model.weights.values().map(|tensor| tensor.values.len()).sum();
        assert!(bytes as usize > floats * format.bytes());
        assert!((bytes as usize) < floats * format.bytes() + 6000, "{format}: {bytes}");
        let found = Pretrained::load(dir.path()).expect("its own files");
        let ulp = 2_f32.powi(-(format.mantissa_bits() as i32) - 1);
        for (name, tensor) in &model.weights {
            for (a, b) in tensor.values.iter().zip(&found.weights[name].values) {
                let smallest = format.min_subnormal() as f32;
                assert!((a - b).abs() <= ulp * a.abs() + smallest, "{format} {name}: {a} {b}");
            }
        }
    }
}
