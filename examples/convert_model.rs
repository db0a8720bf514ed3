//! A regular model becomes a unit-scaled one: the same function, with the scales moved out of the
//! weights and into the graph.
//!
//! ```text
//! cargo run --release -p onesigma-examples --example convert_model -- [FOLDER]
//! ```
//!
//! `FOLDER` is a Hugging Face folder of a GPT-2 or BERT (`config.json`, `model.safetensors`);
//! without one a small GPT-2 with random weights is made and written first.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::{Path, PathBuf};

use onesigma::format::{Format, Noise, philox};
use onesigma::models::params::Init;
use onesigma::models::{GptConfig, Model, Pretrained, Tensor, rms};
use onesigma::ops::Parametrisation;

/// A GPT-2 as it is before training, in a folder as on Hugging Face.
fn small_gpt2(folder: &Path) -> onesigma::models::Result<()> {
    let p = Parametrisation::Regular;
    let config = GptConfig { n_embd: 64, n_layer: 2, n_head: 4, ..GptConfig::default() };
    let weights = config.parameters(p)?.into_iter().enumerate().map(|(tensor, spec)| {
        let mut values = vec![0.0; spec.shape.numel()];
        match spec.init {
            Init::Normal { std } => {
                let noise = Noise { tensor: tensor as u32, ..Noise::default() };
                philox::fill_normal(noise, &mut values);
                values.iter_mut().for_each(|value| *value *= std as f32);
            }
            Init::Ones => values.fill(1.0),
            Init::Zeros => {}
        }
        (spec.name, Tensor { shape: spec.shape.dims().to_vec(), values })
    });
    let weights = weights.collect();
    Pretrained { model: Model::Gpt(config), parametrisation: p, weights }.save(folder, Format::F32)
}

/// Converts the model in `from`, prints what each weight was multiplied by, and writes it to `to`.
fn convert(from: &Path, to: &Path) -> onesigma::models::Result<Pretrained> {
    let regular = Pretrained::load(from)?;
    let converted = regular.convert(Parametrisation::Unit)?;
    println!("{:>10} {:>10} {:>10}  weight", "times", "rms before", "after");
    for (name, tensor) in &converted.model.weights {
        let factor = converted.factors.get(name).copied().unwrap_or(1.0);
        let before = regular.weights.get(name).map_or(0.0, rms);
        println!("{factor:>10.3} {before:>10.4} {:>10.4}  {name}", rms(tensor));
    }
    converted.model.save(to, Format::F32)?;
    Ok(converted.model)
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join("onesigma-convert-model");
    let from = match std::env::args_os().nth(1) {
        Some(given) => PathBuf::from(given),
        None => {
            small_gpt2(&folder.join("regular"))?;
            folder.join("regular")
        }
    };
    let to = folder.join("unit");
    convert(&from, &to)?;
    println!("unit-scaled model: {}", to.display());
    Ok(())
}

#[test]
fn weights_come_near_unit_scale_and_back() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let (from, to) = (folder.path().join("regular"), folder.path().join("unit"));
    small_gpt2(&from)?;
    let regular = Pretrained::load(&from)?;
    let unit = convert(&from, &to)?;
    for (name, tensor) in &unit.weights {
        let size = rms(tensor);
        let is_matrix = tensor.shape.len() == 2;
        // A start of 0.02 is not what unit scaling would draw, and the function stays the same.
        assert!(!is_matrix || (0.1..4.0).contains(&size), "{name} has rms {size}");
    }
    let back = Pretrained::load(&to)?.convert(Parametrisation::Regular)?.model;
    for (name, tensor) in &regular.weights {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * a.abs();
        assert!(tensor.values.iter().zip(&back.weights[name].values).all(close), "{name}");
    }
    Ok(())
}
