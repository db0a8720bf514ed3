//! all-MiniLM-L6-v2, a trained BERT of six layers, from its published files: the cosines of its
//! embeddings are those of the original.
//!
//! The model is not in the repository: `cargo xtask fetch minilm` puts it below `target/`, or
//! `ONESIGMA_MINILM` names a folder. Without it every case is ignored and says so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use onesigma::backends;
use onesigma::embed::{Embedder, cosine};
use onesigma::format::Format;
use onesigma::models::{Pretrained, TensorFile};
use onesigma::ops::Parametrisation;
use onesigma::train::tokenizer::Subwords;

const TEXTS: [&str; 3] = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The stock market fell sharply today.",
];
/// Of the first text with the others, by the original in f32.
const COSINES: [f64; 2] = [0.7553, 0.0037];

fn folder() -> Option<PathBuf> {
    let named = std::env::var_os("ONESIGMA_MINILM").map(PathBuf::from);
    let below_target = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/minilm");
    Some(named.unwrap_or_else(below_target)).filter(|path| path.join("config.json").is_file())
}

fn cosines(model: &Pretrained, folder: &Path, format: Format) -> Result<[f64; 2], Failed> {
    let pieces = Subwords::from_path(folder, true)?;
    let backend = backends::open("cpu")?;
    let embeddings = Embedder::new(model, &pieces, format)?.embed(&*backend, &TEXTS)?;
    for one in &embeddings {
        let length = cosine(one, one);
        if (length - 1.0).abs() > 1e-5 {
            return Err(format!("an embedding has length {length}").into());
        }
    }
    Ok([1, 2].map(|n| cosine(&embeddings[0], &embeddings[n])))
}

fn near(found: [f64; 2], tolerance: f64) -> Result<(), Failed> {
    for (found, expected) in found.iter().zip(COSINES) {
        if (found - expected).abs() > tolerance {
            return Err(format!("a cosine is {found}, expected {expected}").into());
        }
    }
    Ok(())
}

/// With matrices and tables in a format. Rounding errors of weights are independent, so that
/// cosines move by a fraction of one rounding.
fn stored_in(folder: &Path, format: Format) -> Result<(), Failed> {
    let model = Pretrained::load(folder)?;
    let rounding = 2_f64.powi(-(format.mantissa_bits() as i32) - 1);
    near(cosines(&model, folder, format)?, 1e-4 + rounding / 2.0)
}

fn converted(folder: &Path, p: Parametrisation) -> Result<(), Failed> {
    let model = Pretrained::load(folder)?;
    let scaled = model.convert(p)?.model;
    near(cosines(&scaled, folder, Format::F32)?, 1e-4)?;
    let back = scaled.convert(Parametrisation::Regular)?.model;
    near(cosines(&back, folder, Format::F32)?, 1e-4)
}

/// Saved again, the files have the same names and the same numbers.
fn saved(folder: &Path) -> Result<(), Failed> {
    let model = Pretrained::load(folder)?;
    let dir = tempfile::tempdir()?;
    model.save(dir.path(), Format::F32)?;
    let names = |path: &Path| -> Result<BTreeSet<String>, Failed> {
        let file = TensorFile::open(&path.join("model.safetensors"))?;
        let names = file.shapes()?.into_keys();
        Ok(names.filter(|name| !name.ends_with("position_ids")).collect())
    };
    if names(dir.path())? != names(folder)? {
        return Err(format!("the names are {:?}", names(dir.path())?).into());
    }
    match Pretrained::load(dir.path())?.weights == model.weights {
        true => Ok(()),
        false => Err("the weights differ".into()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut cases: Vec<(String, Box<dyn FnOnce(&Path) -> Result<(), Failed> + Send>)> =
        vec![("saved_under_its_own_names".into(), Box::new(saved))];
    for format in [Format::F32, Format::F16, Format::BF16, Format::E4M3, Format::E5M2] {
        let name = format!("stored_in_{format}");
        cases.push((name, Box::new(move |folder| stored_in(folder, format))));
    }
    for p in [Parametrisation::Unit, Parametrisation::UMup, Parametrisation::MuS] {
        cases.push((format!("converted_to_{p}"), Box::new(move |folder| converted(folder, p))));
    }
    let found = folder();
    let trials = cases.into_iter().map(|(name, case)| match found.clone() {
        Some(folder) => Trial::test(name, move || case(&folder)),
        None => Trial::test(name, || Ok(()))
            .with_kind("skip: no model, run `cargo xtask fetch minilm`")
            .with_ignored_flag(true),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
