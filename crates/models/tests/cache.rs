//! A text that is read token by token has the logits of the text that is read as a whole.

use onesigma_backend::{Engine, RefBackend};
use onesigma_format::{Noise, philox};
use onesigma_graph::{DType, Graph, Module, Program, Role, SlotKind, ValueId};
use onesigma_models::config::{Activation, Norm, NormPosition, Positions};
use onesigma_models::{CacheStep, Error, GptConfig, Params, gpt, gpt_read, gpt_step};
use onesigma_ops::Parametrisation;

const BATCH: usize = 2;
const SEQ: usize = 7;
const VOCABULARY: usize = 9;
/// Tokens that are read at once; the others follow one by one.
const PROMPT: usize = 3;

fn config() -> GptConfig {
    GptConfig {
        vocab_size: VOCABULARY,
        n_positions: 8,
        n_embd: 16,
        n_layer: 2,
        n_head: 4,
        attn_pdrop: 0.2,
        ..GptConfig::default()
    }
}

/// Logits of every position, read as a whole, and of those from the prompt's last on, token by
/// token.
fn logits(config: &GptConfig, p: Parametrisation) -> Result<[Vec<Vec<f64>>; 2], Error> {
    let mut module = Module::new();
    let (seed, step) = (module.seed_slot()?, module.step_slot()?);
    let mut ids =
        |name, shape: &[usize]| module.slot(name, SlotKind::Input, shape, DType::U32, Role::Data);
    let (tokens, last) = (ids("tokens", &[BATCH, SEQ])?, ids("last", &[BATCH])?);
    let (token, position) = (ids("token", &[BATCH, 1])?, ids("position", &[1])?);
    let seen = ids("seen", &[BATCH, SEQ])?;
    let specs = config.parameters(p)?;
    let mut init = Graph::new();
    let mut weights = Vec::new();
    for spec in &specs {
        let (shape, role) = (spec.shape.clone(), Role::MasterWeight);
        let slot = module.slot(&spec.name, SlotKind::State, shape, DType::F32, role)?;
        let value = spec.initial(&mut init, DType::F32)?;
        init.write(slot, value);
        weights.push(slot);
    }
    module.entry("init", init)?;
    let heads = [BATCH, SEQ, config.kv_heads(), config.head_size()];
    let mut caches = Vec::new();
    for layer in 0..config.n_layer {
        let mut slot = |name: &str| {
            let (name, role) = (format!("{layer}.{name}"), Role::Activation);
            module.slot(&name, SlotKind::State, heads, DType::F32, role)
        };
        caches.push([slot("keys")?, slot("values")?]);
    }
    let rows = [BATCH, SEQ, VOCABULARY];
    let whole = module.slot("whole", SlotKind::Output, rows, DType::F32, Role::Data)?;
    let next =
        module.slot("next", SlotKind::Output, [BATCH, VOCABULARY], DType::F32, Role::Data)?;
    for name in ["whole", "read", "step"] {
        let mut graph = Graph::new();
        let values: Vec<(String, ValueId)> = specs
            .iter()
            .zip(&weights)
            .map(|(spec, &slot)| (spec.name.clone(), module.read(&mut graph, slot)))
            .collect();
        let mut params = Params::new(values);
        let params = &mut params;
        let cached = match name {
            "whole" => {
                let x = module.read(&mut graph, tokens);
                let y = gpt(&mut graph, params, config, p, x, false)?;
                graph.write(whole, y);
                module.entry(name, graph)?;
                continue;
            }
            "read" => {
                let [x, last] = [tokens, last].map(|slot| module.read(&mut graph, slot));
                gpt_read(&mut graph, params, config, p, x, last)?
            }
            _ => {
                let held: Vec<[ValueId; 2]> = caches
                    .iter()
                    .map(|pair| pair.map(|slot| module.read(&mut graph, slot)))
                    .collect();
                let [token, position, seen] =
                    [token, position, seen].map(|slot| module.read(&mut graph, slot));
                let step = CacheStep { token, position, seen, caches: &held };
                gpt_step(&mut graph, params, config, p, step)?
            }
        };
        graph.write(next, cached.logits);
        for (&slot, value) in caches.iter().flatten().zip(cached.caches.into_iter().flatten()) {
            graph.write(slot, value);
        }
        module.entry(name, graph)?;
    }
    let program = Program::new(module)?;
    let bytes = |ids: &[u32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let run = || -> Result<[Vec<Vec<f64>>; 2], onesigma_backend::Error> {
        let mut engine = RefBackend::exact().executor(&program)?;
        let go = |engine: &mut dyn Engine, entry| engine.run(program.find_entry(entry)?, 1);
        engine.write(seed, &[3, 0, 0, 0, 0, 0, 0, 0])?;
        engine.write(step, &[0; 4])?;
        go(&mut engine, "init")?;
        let mut text = vec![0; BATCH * SEQ];
        philox::fill_u32(Noise { seed: 1, tensor: 0, step: 0, offset: 0 }, &mut text);
        text.iter_mut().for_each(|word| *word %= VOCABULARY as u32);
        engine.write(tokens, &bytes(&text))?;
        go(&mut engine, "whole")?;
        let result = engine.tensor(whole)?.cloned().unwrap_or_default();
        let at = |b: usize, t: usize| result[(b * SEQ + t) * VOCABULARY..][..VOCABULARY].to_vec();
        let expected = (PROMPT - 1..SEQ).flat_map(|t| (0..BATCH).map(move |b| (b, t)));
        let expected = expected.map(|(b, t)| at(b, t)).collect();

        // What follows the prompt is left out; the steps have to bring it.
        let mut prompt = text.clone();
        prompt.chunks_mut(SEQ).for_each(|row| row[PROMPT..].fill(0));
        engine.write(tokens, &bytes(&prompt))?;
        let rows: Vec<u32> = (0..BATCH).map(|b| (b * SEQ + PROMPT - 1) as u32).collect();
        engine.write(last, &bytes(&rows))?;
        let mut found = Vec::new();
        for at in PROMPT - 1..SEQ {
            if at < PROMPT {
                go(&mut engine, "read")?;
            } else {
                let column: Vec<u32> = (0..BATCH).map(|b| text[b * SEQ + at]).collect();
                engine.write(token, &bytes(&column))?;
                engine.write(position, &bytes(&[at as u32]))?;
                let keys = (0..BATCH * SEQ).map(|key| u32::from(key % SEQ <= at));
                engine.write(seen, &bytes(&keys.collect::<Vec<u32>>()))?;
                go(&mut engine, "step")?;
            }
            let logits = engine.tensor(next)?.cloned().unwrap_or_default();
            found.extend(logits.chunks(VOCABULARY).map(<[f64]>::to_vec));
        }
        Ok([expected, found])
    };
    Ok(run().expect("the reference runs it"))
}

#[test]
fn every_model_reads_token_by_token_what_it_reads_as_a_whole() -> Result<(), Error> {
    let rotary = GptConfig {
        positions: Positions::Rotary,
        n_kv_head: Some(2),
        activation_function: Activation::Swiglu,
        norm: Norm::RmsNorm,
        ..config()
    };
    let post = GptConfig { norm_position: Some(NormPosition::Post), bias: false, ..config() };
    let tied = GptConfig { tie_word_embeddings: Some(true), ..config() };
    for config in [config(), rotary, post, tied] {
        for p in Parametrisation::ALL {
            let [expected, found] = logits(&config, p)?;
            assert_eq!((expected.len(), found.len()), (BATCH * (SEQ - PROMPT + 1), expected.len()));
            for (expected, found) in expected.iter().zip(&found) {
                assert!(expected.iter().any(|x| x.abs() > 1e-3), "{expected:?}");
                for (a, b) in expected.iter().zip(found) {
                    assert!((a - b).abs() <= 1e-12 * a.abs().max(1.0), "{p:?} {a} {b} {config:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_cache_of_another_model_is_refused() -> Result<(), Error> {
    let config = config();
    let mut module = Module::new();
    let mut graph = Graph::new();
    let slot = module.slot("token", SlotKind::Input, [1, 1], DType::U32, Role::Data)?;
    let token = module.read(&mut graph, slot);
    let step = CacheStep { token, position: token, seen: token, caches: &[] };
    let p = Parametrisation::Regular;
    let error = gpt_step(&mut graph, &mut Params::default(), &config, p, step);
    let message = error.expect_err("no caches").to_string();
    assert!(message.contains("`caches` is 0") && message.contains("2 layers"), "{message}");
    Ok(())
}
