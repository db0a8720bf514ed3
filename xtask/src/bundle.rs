//! `cargo xtask bundle`: one archive for a GPU machine without Rust and without a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{self, cargo_with, root};

/// Arguments of `cargo xtask bundle`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The archive; its folder is made.
    #[arg(long, default_value = "target/onesigma-cuda.tar.gz")]
    out: PathBuf,
    /// The profile that cargo builds with.
    #[arg(long, default_value = "release")]
    profile: String,
}

/// What is built, and what it is called in the archive.
const BUILDS: [(&[&str], &[(&str, &str)]); 3] = [
    (&["build", "-p", "onesigma", "--features", "tch"], &[("onesigma", "onesigma")]),
    (
        &["build", "-p", "onesigma-backend-tch", "--examples"],
        &[("gpt_step", "gpt_step"), ("cuda_kernels", "cuda_kernels")],
    ),
    (
        &["test", "-p", "onesigma-backend-tch", "--no-run"],
        &[("cuda", "conformance"), ("step", "step"), ("products", "products")],
    ),
];

/// Builds everything, strips it, and packs it with the peers' script and `run.sh`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let folder = root().join("target/onesigma-cuda");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    for (command, wanted) in BUILDS {
        let built = executables(command, &arguments.profile)?;
        for (target, name) in wanted {
            let found = built.iter().find(|(built, _)| built == target);
            let (_, path) = found.with_context(|| format!("cargo built no `{target}`"))?;
            add(path, &folder.join(name))?;
        }
    }
    let peer = "pytorch_cuda_step.py";
    fs::copy(root().join("benches/peers").join(peer), folder.join(peer))?;
    for recipe in ["unit-fp8-bf16-states.toml", "bf16-states.toml"] {
        fs::copy(root().join("benches/recipes").join(recipe), folder.join(recipe))?;
    }
    for (name, text) in [
        ("run.sh", include_str!("bundle/run.sh")),
        ("pretrain.py", include_str!("bundle/pretrain.py")),
        ("ratios.py", include_str!("bundle/ratios.py")),
    ] {
        fs::write(folder.join(name), text)?;
    }
    let out = root().join(&arguments.out);
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut tar = Command::new("tar");
    tar.arg("-czf").arg(&out).arg("-C").arg(root().join("target")).arg("onesigma-cuda");
    process::run(&mut tar)?;
    let bytes = fs::metadata(&out)?.len();
    println!("{} ({:.1} MiB)", out.display(), bytes as f64 / f64::from(1 << 20));
    println!("there: tar -xzf {} && bash onesigma-cuda/run.sh", arguments.out.display());
    Ok(())
}

/// Builds; gives the executables with the names of their targets.
fn executables(command: &[&str], profile: &str) -> Result<Vec<(String, PathBuf)>> {
    eprintln!("$ cargo {} --profile {profile}", command.join(" "));
    let mut cargo = cargo_with(command);
    cargo.args(["--profile", profile, "--message-format", "json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "`cargo {}` failed (see above); if libtorch 2.11 is what it did not find, set LIBTORCH to its folder, or \
         LIBTORCH_USE_PYTORCH=1 with a Python that has torch 2.11",
        command.join(" ")
    );
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages
        .filter_map(|message| {
            let name = message.pointer("/target/name")?.as_str()?.to_owned();
            let path = PathBuf::from(message.get("executable")?.as_str()?);
            Some((name, path))
        })
        .collect())
}

/// Copies an executable without its symbols, if `strip` is there.
fn add(from: &Path, to: &Path) -> Result<()> {
    let stripped = Command::new("strip").arg("-o").arg(to).arg(from).status();
    if !stripped.is_ok_and(|status| status.success()) {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}
