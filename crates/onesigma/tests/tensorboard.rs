//! TensorBoard itself reads the event files of a run.
//!
//! It needs a Python with the package `tensorboard`: `ONESIGMA_PYTHON`, or `python3`. Without one
//! the case is ignored and says so; the framing is tested in `onesigma-train` in any case.

#![allow(clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use onesigma::train::run_dir::RunDir;
use onesigma::train::telemetry::Record;

mod common;

use common::{TINY, folder, onesigma, text_file};

const READ: &str = r#"
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
found.Reload()
tags = found.Tags()
print(json.dumps({
    "scalars": {t: [[e.step, e.value] for e in found.Scalars(t)] for t in tags["scalars"]},
    "texts": {t: [[e.step, e.tensor_proto.string_val[0].decode()] for e in found.Tensors(t)]
              for t in tags["tensors"]},
    "plugins": sorted(found.PluginTagToContent("text")),
}))
"#;

fn python() -> String {
    std::env::var("ONESIGMA_PYTHON").unwrap_or_else(|_| "python3".into())
}

#[derive(Debug, serde::Deserialize)]
struct Found {
    scalars: BTreeMap<String, Vec<(u64, f32)>>,
    texts: BTreeMap<String, Vec<(u64, String)>>,
    plugins: Vec<String>,
}

fn read(run: &Path) -> Result<Found, Failed> {
    let output = Command::new(python()).args(["-c", READ]).arg(run.join("tensorboard")).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn run(words: &[&str]) -> Result<(), Failed> {
    let outcome = onesigma(words);
    match outcome.code {
        Some(0) => Ok(()),
        _ => Err(outcome.stderr.into()),
    }
}

/// What TensorBoard shows is what the metrics hold, after a run and after it was set back to an
/// older checkpoint and continued.
fn reads_what_was_written() -> Result<(), Failed> {
    let dir = folder();
    let text = text_file(dir.path());
    let out = dir.path().join("run");
    let path = out.to_str().ok_or("UTF-8")?;
    let mut words =
        vec!["train", "--quiet", "--data", text.to_str().ok_or("UTF-8")?, "--out", path];
    words.extend(TINY);
    words.extend(["--clip", "1", "--sample-every", "4"]);
    run(&words)?;
    same(&out)?;
    for step in [6, 8] {
        std::fs::remove_file(out.join(format!("checkpoints/step-{step:010}.safetensors")))?;
    }
    run(&["train", "--quiet", "--resume", path, "--steps", "10"])?;
    same(&out)
}

fn same(out: &Path) -> Result<(), Failed> {
    let found = read(out)?;
    let mut expected: BTreeMap<&str, Vec<(u64, f32)>> = BTreeMap::new();
    let mut samples = Vec::new();
    for record in RunDir::metrics(out)? {
        let mut add = |tag, step, value: f32| {
            expected.entry(tag).or_default().push((step, value));
        };
        match record {
            Record::Train { step, loss, rate, grad_norm } => {
                add("loss/training", step + 1, loss);
                add("optimizer/learning_rate", step + 1, rate);
                add("optimizer/gradient_norm", step + 1, grad_norm.ok_or("a norm")?);
            }
            Record::Evaluation { step, loss, .. } => add("loss/validation", step, loss),
            Record::Sample { step, text } => samples.push((step, text)),
            _ => {}
        }
    }
    for (tag, values) in expected {
        if found.scalars.get(tag) != Some(&values) {
            return Err(format!("{tag}: {:?}, expected {values:?}", found.scalars.get(tag)).into());
        }
    }
    if !found.scalars.contains_key("speed/tokens_per_second") {
        return Err("no speed".into());
    }
    // Of texts TensorBoard keeps both those before and after a restart (its `_Purge` leaves tensors
    // out): the later one of a step is what counts.
    let texts = found.texts.get("sample").ok_or("no samples")?;
    let texts: BTreeMap<u64, &str> = texts.iter().map(|(at, text)| (*at, &text[..])).collect();
    let quoted = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let samples: BTreeMap<u64, String> =
        samples.iter().map(|(step, text)| (*step, quoted(text))).collect();
    if !texts.iter().map(|(at, text)| (*at, (*text).to_owned())).eq(samples.clone()) {
        return Err(format!("samples {texts:?}, expected {samples:?}").into());
    }
    if found.plugins != ["run/settings", "sample"] {
        return Err(format!("texts are {:?}", found.plugins).into());
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let there = Command::new(python())
        .args(["-c", "import tensorboard.backend.event_processing.event_accumulator"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: `{}` has no tensorboard; set ONESIGMA_PYTHON", python());
    }
    let trial = Trial::test("tensorboard_reads_what_was_written", reads_what_was_written);
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(!there)]).exit_code()
}
