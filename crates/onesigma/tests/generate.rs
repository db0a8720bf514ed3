//! Text written with a cache of keys and values is the text written without.
#![cfg(feature = "cpu")]

use std::collections::BTreeMap;

use onesigma::backend::{Backend, RefBackend};
use onesigma::train::Error;
use onesigma::train::config::{Config, ModelConfig};
use onesigma::train::corpus::{Corpus, Document};
use onesigma::train::generate::{NextToken, Sampling, generate, generate_shifting};
use onesigma::train::generator::{Generator, Reads};
use onesigma::train::session::Session;
use onesigma::train::trainer::Trainer;
use onesigma::{backends, setup};

const SEQ: usize = 24;

fn config(recipe: &str) -> Config {
    let model = ModelConfig { layers: 2, heads: 2, hidden: 64, seq: SEQ, ..ModelConfig::default() };
    Config { recipe: recipe.into(), batch: 1, model, ..Config::default() }
}

/// A new model, evaluated as a whole and with a cache.
fn both(recipe: &str) -> Result<(Session, Generator), Error> {
    both_on(recipe, || backends::open("cpu"))
}

fn both_on(
    recipe: &str,
    backend: impl Fn() -> Result<Box<dyn Backend>, Error>,
) -> Result<(Session, Generator), Error> {
    let config = config(recipe);
    let mut session = setup::session_on(&config, backend()?)?;
    session.init(5)?;
    let values: BTreeMap<String, Vec<f32>> = session
        .state()?
        .iter()
        .filter_map(|tensor| Some((tensor.name.clone(), tensor.to_f32()?)))
        .collect();
    let generator = setup::generator_on(&config, backend()?, &values)?;
    Ok((session, generator))
}

fn written(model: &mut dyn NextToken, count: usize) -> Result<Vec<u32>, Error> {
    let mut tokens = Vec::new();
    let sampling = Sampling { temperature: 1.0, top_k: 40, seed: 2 };
    let prompt: Vec<u32> = "let x".bytes().map(u32::from).collect();
    generate(model, &prompt, count, sampling, |token| {
        tokens.push(token);
        true
    })?;
    Ok(tokens)
}

/// Root mean square of the difference over that of the logits, the worst position.
fn difference((mut session, mut generator): (Session, Generator)) -> Result<f64, Error> {
    let text: Vec<u32> = (0..SEQ as u32).map(|n| (n * n * 7 + 3) % 256).collect();
    let mut worst = 0.0_f64;
    for length in 1..=SEQ {
        let whole = session.logits(&text[..length])?;
        let cached = generator.logits(&text[..length])?;
        let square = |x: f32| f64::from(x) * f64::from(x);
        let size: f64 = whole.iter().map(|&x| square(x)).sum();
        let error: f64 = whole.iter().zip(&cached).map(|(a, b)| square(a - b)).sum();
        assert!(size > 0.0, "logits of zero prove nothing");
        worst = worst.max((error / size).sqrt());
    }
    assert_eq!(generator.reads(), Reads { windows: 1, tokens: SEQ - 1 });
    Ok(worst)
}

#[test]
fn logits_agree_at_every_position() -> Result<(), Error> {
    // Sums in f32 go another way; one that lies at a boundary of a narrow format is rounded to the
    // other side now and then.
    for (recipe, limit) in [
        ("f32", 1e-6),
        ("unit-f32", 1e-6),
        ("u-mup-f32", 1e-6),
        ("bf16", 2e-2),
        ("unit-fp16", 2e-2),
        ("unit-fp8", 5e-2),
        ("u-mup-fp8", 5e-2),
        ("mu-s-fp8", 5e-2),
    ] {
        let worst = difference(both(recipe)?)?;
        assert!(worst <= limit, "{recipe}: {worst:e} is more than {limit:e}");
    }
    Ok(())
}

#[test]
fn narrow_formats_agree_where_sums_do_not_depend_on_their_order() -> Result<(), Error> {
    for recipe in ["bf16", "unit-fp8", "u-mup-fp8"] {
        let pair = both_on(recipe, || Ok(Box::new(RefBackend::rounding())))?;
        let worst = difference(pair)?;
        assert!(worst <= 1e-6, "{recipe}: {worst:e}");
    }
    Ok(())
}

#[test]
fn the_text_is_the_same_within_and_beyond_the_context() -> Result<(), Error> {
    for recipe in ["f32", "unit-f32", "u-mup-f32"] {
        let (mut session, mut generator) = both(recipe)?;
        let within = SEQ - 4;
        let beyond = 2 * SEQ;
        assert_eq!(written(&mut session, beyond)?, written(&mut generator, beyond)?, "{recipe}");
        // Every token behind the context is a window of its own.
        let windows = 1 + beyond - within;
        assert_eq!(generator.reads(), Reads { windows, tokens: within - 1 }, "{recipe}");
    }
    Ok(())
}

#[test]
fn forgetting_several_tokens_at_once_saves_windows() -> Result<(), Error> {
    let (mut session, mut generator) = both("unit-f32")?;
    let sampling = Sampling { temperature: 0.0, top_k: 0, seed: 0 };
    let mut texts = Vec::new();
    for model in [&mut session as &mut dyn NextToken, &mut generator] {
        let mut text = Vec::new();
        generate_shifting(model, &[3; 6], 3 * SEQ, 8, sampling, |token| {
            text.push(token);
            true
        })?;
        texts.push(text);
    }
    assert_eq!(texts[0], texts[1]);
    let Reads { windows, tokens } = generator.reads();
    assert_eq!((windows + tokens, windows), (3 * SEQ, 1 + (2 * SEQ + 5).div_ceil(8)));
    Ok(())
}

#[test]
fn samples_of_a_run_are_the_same_with_a_cache_and_follow_the_training() -> Result<(), Error> {
    let text = "fn main() { let x = 1; let y = x + 2; }\n".repeat(200);
    let document = Document { name: "text".into(), text: text.into_bytes() };
    let corpus = Corpus::from_documents("text", vec![document], Vec::new());
    let config = Config { sample_tokens: 2 * SEQ, steps: 40, ..config("unit-f32") };
    let trained = |with_cache: bool| -> Result<[String; 2], Error> {
        let mut trainer = Trainer::new(setup::session(&config)?, &config, 0.1, &corpus)?;
        if with_cache {
            let values = trainer.session().parameters()?;
            trainer = trainer.with_generator(setup::generator(&config, &values)?);
        }
        let before = trainer.sample()?;
        let batches: Vec<_> = (0..40).map(|step| trainer.batch(step)).collect();
        trainer.session().train(0, &[0.1; 40], &batches)?;
        Ok([before, trainer.sample()?])
    };
    let (whole, cached) = (trained(false)?, trained(true)?);
    assert_eq!(whole, cached);
    assert_ne!(cached[0], cached[1], "the samples stay those of the first weights");
    Ok(())
}

#[test]
fn parameters_used_in_one_narrow_format_take_its_bytes() -> Result<(), Error> {
    let bytes = |recipe| -> Result<usize, Error> {
        let (_, generator) = both(recipe)?;
        let program = generator.program();
        let slots = program.parameters.iter().map(|(id, _)| &program.program.slots()[id.index()]);
        Ok(slots.map(onesigma::graph::Slot::bytes).sum())
    };
    let (f32, fp8) = (bytes("unit-f32")?, bytes("unit-fp8")?);
    // Two layers of 12 C^2; tables of 256 and SEQ rows stay, the readout is in F16.
    let (layers, tables, readout) = (2 * 12 * 64 * 64, (256 + SEQ) * 64, 256 * 64);
    assert_eq!(f32, 4 * (layers + tables + readout));
    assert_eq!(fp8, layers + 4 * tables + 2 * readout);
    Ok(())
}

#[test]
fn what_cannot_be_written_is_refused() -> Result<(), Error> {
    let (_, mut generator) = both("f32")?;
    assert!(generator.logits(&[]).is_err() && generator.logits(&[0; SEQ + 1]).is_err());
    let error = setup::generator(&config("f32"), &BTreeMap::new()).expect_err("no parameters");
    assert!(error.to_string().contains("transformer.wte.weight"), "{error}");
    let bert = Config { model_type: onesigma::train::config::ModelType::Bert, ..config("f32") };
    let error = setup::generator(&bert, &BTreeMap::new()).expect_err("an encoder");
    assert!(error.to_string().contains("predicts no next token"), "{error}");
    Ok(())
}
