//! Generation reads the same logits as evaluation, and dropout only acts in training.

use onesigma_backend::{Engine, RefBackend};
use onesigma_format::{Noise, philox};
use onesigma_graph::{DType, Graph, Module, Program, Role, SlotKind, ValueId};
use onesigma_models::{Error, GptConfig, Params, gpt, gpt_next};
use onesigma_ops::Parametrisation;

const BATCH: usize = 2;
const SEQ: usize = 6;
const LAST: [usize; BATCH] = [2, 5];

fn config() -> GptConfig {
    GptConfig {
        vocab_size: 9,
        n_positions: 8,
        n_embd: 8,
        n_layer: 2,
        n_head: 2,
        embd_pdrop: 0.1,
        attn_pdrop: 0.2,
        resid_pdrop: 0.3,
        ..GptConfig::default()
    }
}

/// Logits of training, of evaluation and of the next token.
fn logits(p: Parametrisation) -> Result<[Vec<f64>; 3], Error> {
    let config = config();
    let mut module = Module::new();
    let (seed, step) = (module.seed_slot()?, module.step_slot()?);
    let ids = |module: &mut Module, name: &str, shape: &[usize]| {
        module.slot(name, SlotKind::Input, shape, DType::U32, Role::Data)
    };
    let tokens = ids(&mut module, "tokens", &[BATCH, SEQ])?;
    let last = ids(&mut module, "last", &[BATCH])?;
    let specs = config.parameters(p)?;
    let mut weights = Vec::new();
    for spec in &specs {
        let (shape, role) = (spec.shape.clone(), Role::MasterWeight);
        weights.push(module.slot(&spec.name, SlotKind::State, shape, DType::F32, role)?);
    }
    let mut outputs = Vec::new();
    let mut init = Graph::new();
    for (spec, &slot) in specs.iter().zip(&weights) {
        let value = spec.initial(&mut init, DType::F32)?;
        init.write(slot, value);
    }
    module.entry("init", init)?;
    for name in ["train", "eval", "next"] {
        let mut graph = Graph::new();
        let x = module.read(&mut graph, tokens);
        let values: Vec<(String, ValueId)> = specs
            .iter()
            .zip(&weights)
            .map(|(spec, &slot)| (spec.name.clone(), module.read(&mut graph, slot)))
            .collect();
        let mut params = Params::new(values);
        let y = match name {
            "next" => {
                let rows = module.read(&mut graph, last);
                gpt_next(&mut graph, &mut params, &config, p, x, rows)?
            }
            _ => gpt(&mut graph, &mut params, &config, p, x, name == "train")?,
        };
        let shape = graph.shape(y).clone();
        let slot =
            module.slot(&format!("{name}.y"), SlotKind::Output, shape, DType::F32, Role::Data)?;
        graph.write(slot, y);
        module.entry(name, graph)?;
        outputs.push(slot);
    }
    let program = Program::new(module)?;
    let run = || -> Result<[Vec<f64>; 3], onesigma_backend::Error> {
        let mut engine = RefBackend::exact().executor(&program)?;
        engine.write(seed, &[3, 0, 0, 0, 0, 0, 0, 0])?;
        engine.write(step, &[0; 4])?;
        let mut words = vec![0; BATCH * SEQ];
        philox::fill_u32(Noise { seed: 1, tensor: 0, step: 0, offset: 0 }, &mut words);
        let bytes: Vec<u8> = words.iter().flat_map(|word| (word % 9).to_le_bytes()).collect();
        engine.write(tokens, &bytes)?;
        let rows = LAST.iter().enumerate().map(|(b, at)| (b * SEQ + at) as u32);
        engine.write(last, &rows.flat_map(u32::to_le_bytes).collect::<Vec<u8>>())?;
        let mut results = Vec::new();
        for entry in ["init", "train", "eval", "next"] {
            engine.run(program.find_entry(entry)?, 1)?;
        }
        for &slot in &outputs {
            results.push(engine.tensor(slot)?.cloned().unwrap_or_default());
        }
        Ok([0, 1, 2].map(|n| results[n].clone()))
    };
    Ok(run().expect("the reference runs it"))
}

#[test]
fn the_next_token_has_the_logits_of_its_position() -> Result<(), Error> {
    for p in [Parametrisation::Regular, Parametrisation::UMup] {
        let [train, eval, next] = logits(p)?;
        assert_eq!((eval.len(), next.len()), (BATCH * SEQ * 9, BATCH * 9));
        assert_ne!(train, eval, "dropout is active in training");
        for (b, at) in LAST.into_iter().enumerate() {
            let expected = &eval[(b * SEQ + at) * 9..][..9];
            assert_eq!(&next[b * 9..][..9], expected, "{p:?}");
            assert!(expected.iter().any(|x| x.abs() > 1e-3), "{expected:?}");
        }
    }
    Ok(())
}

#[test]
fn parameters_are_listed_once_with_their_names() -> Result<(), Error> {
    let config = config();
    let regular = config.parameters(Parametrisation::Regular)?;
    let unit = config.parameters(Parametrisation::UMup)?;
    let names: Vec<&str> = unit.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names[..2], ["transformer.wte.weight", "transformer.wpe.weight"]);
    assert!(names.contains(&"transformer.h.1.mlp.c_proj.bias"));
    assert_eq!(names.last(), Some(&"lm_head.weight"));
    assert_eq!(regular.len() + 1, unit.len(), "a regular model reads out with its embedding");
    // Two tables, the last norm, the readout; in each layer two norms, four and two linears.
    let (c, v) = (8, 9);
    let layer = 4 * c + (4 * c * c + 4 * c) + (8 * c * c + 5 * c);
    assert_eq!(
        config.parameter_count(Parametrisation::UMup)?,
        v * c + 8 * c + 2 * layer + 2 * c + v * c
    );
    Ok(())
}

#[test]
fn wrong_parameters_are_named() -> Result<(), Error> {
    let config = config();
    let mut module = Module::new();
    let mut graph = Graph::new();
    let x = module.slot("x", SlotKind::Input, [1, 4], DType::U32, Role::Data)?;
    let x = module.read(&mut graph, x);
    let p = Parametrisation::UMup;
    let error = gpt(&mut graph, &mut Params::default(), &config, p, x, false);
    let message = error.expect_err("no parameters").to_string();
    assert!(message.starts_with("no parameter `transformer.wte.weight`"), "{message}");
    let w = module.slot("w", SlotKind::State, [3, 8], DType::F32, Role::MasterWeight)?;
    let w = module.read(&mut graph, w);
    let mut params = Params::new([("transformer.wte.weight".to_owned(), w)]);
    let message = gpt(&mut graph, &mut params, &config, p, x, false).expect_err("too few rows");
    assert_eq!(
        message.to_string(),
        "parameter `transformer.wte.weight` has shape [3, 8], the configuration asks for [9, 8]"
    );
    Ok(())
}
