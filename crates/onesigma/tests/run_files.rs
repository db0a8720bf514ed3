//! Run files: as the positional argument, with settings over them, and looked at without a run.

use std::fs;
use std::path::{Path, PathBuf};

mod common;

use common::{Outcome, folder, onesigma, text_file};
use onesigma::train::config::Config;
use onesigma::train::run_dir::RunDir;

fn run_file(dir: &Path, more: &str) -> PathBuf {
    let text = text_file(dir);
    let path = dir.join("run.toml");
    let run = format!(
        "recipe = \"f32\"\ndata = {text:?}\nsteps = 4\nbatch = 2\neval_batches = 1\n{more}\n\
         [model]\nlayers = 1\nheads = 2\nhidden = 16\nseq = 32\n"
    );
    fs::write(&path, run).expect("room");
    path
}

fn train(file: &Path, out: &Path, more: &[&str]) -> Outcome {
    let (file, out) = (file.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
    onesigma(&[&["train", file, "--quiet", "--out", out][..], more].concat())
}

#[test]
fn a_run_file_says_everything_and_each_of_it_can_be_changed() {
    let dir = folder();
    let file = run_file(dir.path(), "");
    let out = dir.path().join("run");
    let more = ["--set", "model.hidden=8", "--set", "steps = 9", "--set", "recipe=bf16"];
    // A flag comes after --set.
    let outcome = train(&file, &out, &[&more[..], &["--steps", "6", "--seed", "3"]].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let config: Config = RunDir::config(&out).expect("its settings");
    assert_eq!((config.model.hidden, config.model.layers), (8, 1));
    assert_eq!((config.steps, config.seed, config.batch), (6, 3, 2));
    assert_eq!(config.recipe, "bf16");
    // The settings of a run are a run file.
    let again = dir.path().join("again");
    let outcome = train(&out.join("config.toml"), &again, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(RunDir::config::<Config>(&again).expect("its settings"), config);
}

#[test]
fn what_a_run_file_cannot_hold_is_named_with_what_was_meant() {
    let dir = folder();
    let refused = |more: &str, set: &[&str], words: &[&str]| {
        let file = run_file(dir.path(), more);
        let outcome = train(&file, &dir.path().join("run"), set);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        for word in words {
            assert!(outcome.stderr.contains(word), "no `{word}` in: {}", outcome.stderr);
        }
    };
    refused(
        "eval_evry = 3",
        &[],
        &["run.toml", "eval_evry", "did you mean `eval_every`?", "line 6"],
    );
    refused("steps_per_call = \"x\"", &[], &["run.toml", "line 6", "invalid type"]);
    refused("", &["--set", "model.hiden=3"], &["hiden", "did you mean `hidden`?"]);
    refused("", &["--set", "steps"], &["--set", "KEY=VALUE"]);
    refused("", &["--optimizer", "adan"], &["adan", "adam, lion, sgd"]);
    refused("", &["--first-moment", "E9M9"], &["--first-moment", "E9M9"]);
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_dry_run_shows_plan_numerics_and_cost_and_writes_nothing() {
    let dir = folder();
    let file = run_file(dir.path(), "");
    let before = fs::read_dir(dir.path()).expect("the folder").count();
    let out = dir.path().join("run");
    for more in [&["--dry-run"][..], &["--dry-run", "--accumulate", "3", "--clip", "1"]] {
        let outcome = train(&file, &out, more);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        for word in [
            "arena",
            "parameters",
            "steps       4",
            "at risk",
            "GFLOP a step",
            "ms a step and about",
            "timed and thrown away",
        ] {
            assert!(outcome.stdout.contains(word), "no `{word}` in: {}", outcome.stdout);
        }
    }
    assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), before);
    let missing = train(&file, &out, &["--dry-run", "--data", "no/such/text"]);
    assert_eq!(missing.code, Some(2), "{}", missing.stderr);
}

#[test]
fn a_run_from_other_weights_has_their_sequences_unless_told_otherwise() {
    let dir = folder();
    let file = run_file(dir.path(), "");
    let (first, text) = (dir.path().join("first"), text_file(dir.path()));
    assert_eq!(train(&file, &first, &[]).code, Some(0));
    let utf8 = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (source, text) = (utf8(&first), utf8(&text));
    for (more, seq) in [(&[][..], 32), (&["--seq", "16"], 16), (&["--set", "model.seq=8"], 8)] {
        let out = dir.path().join(seq.to_string());
        let base = ["train", "--init-from", &source, "--data", &text, "--recipe", "f32"];
        let rest = ["--steps", "1", "--batch", "2", "--eval-batches", "1", "--quiet", "--out"];
        let outcome = onesigma(&[&base[..], more, &rest, &[&utf8(&out)]].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert_eq!(RunDir::config::<Config>(&out).expect("its settings").model.seq, seq);
        let is_said = outcome.stderr.contains("sequences of 32 tokens, as in");
        assert_eq!(is_said, seq == 32, "{}", outcome.stderr);
    }
}

#[test]
fn optimisers_clip_and_keep_states_in_formats() {
    let dir = folder();
    let file = run_file(dir.path(), "");
    for (n, more) in [
        &["--optimizer", "lion", "--first-moment", "BF16", "--clip", "1"][..],
        &["--optimizer", "adam", "--weight-decay", "0.01", "--second-moment", "BF16"],
        &["--recipe", "unit-fp8", "--clip", "0.5", "--first-moment", "E4M3"],
        &["--recipe", "fp16-loss-scale", "--clip", "0.5", "--accumulate", "2"],
    ]
    .into_iter()
    .enumerate()
    {
        let out = dir.path().join(n.to_string());
        let outcome = train(&file, &out, &[more, &["--steps", "30"]].concat());
        assert_eq!(outcome.code, Some(0), "{more:?}: {}", outcome.stderr);
        let text = fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
        assert_eq!(text.contains("grad_norm"), more.contains(&"--clip"), "{more:?}");
    }
}

/// What one limit means: the norm does not depend on the scaling of the recipe's gradients.
#[test]
fn recipes_of_one_model_report_one_norm() {
    let dir = folder();
    let file = run_file(dir.path(), "");
    let norm = |name: &str, more: &[&str]| -> f64 {
        let out = dir.path().join(name);
        let outcome = train(&file, &out, &[&["--steps", "1", "--clip", "1e-3"][..], more].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let text = fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
        let line = text.lines().next().expect("a step");
        let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
        record["grad_norm"].as_f64().expect("a norm")
    };
    let plain = norm("f32", &[]);
    assert!(plain > 0.01, "{plain}");
    for (name, more, tolerance) in [
        ("scaled", &["--loss-scale", "4096"][..], 1e-5),
        ("split", &["--batch", "1", "--accumulate", "2"], 1e-5),
        ("bf16", &["--recipe", "bf16"], 2e-2),
        ("fp16", &["--recipe", "fp16-loss-scale"], 2e-2),
    ] {
        let own = norm(name, more);
        assert!((own / plain - 1.0).abs() < tolerance, "{name}: {own} against {plain}");
    }
    let (wide, narrow) =
        (norm("unit", &["--recipe", "unit-f32"]), norm("unit8", &["--recipe", "unit-fp8"]));
    assert!((narrow / wide - 1.0).abs() < 0.05, "{narrow} against {wide}");
}

/// Every optimiser has a rate of its own for every parametrisation, with which it learns.
#[test]
fn default_rates_learn_with_every_optimiser() {
    let dir = folder();
    let file = run_file(dir.path(), "");
    for recipe in ["f32", "unit-fp8", "u-mup-f32", "mu-s-f32"] {
        for optimizer in ["adamw", "adam", "lion", "sgd"] {
            let out = dir.path().join(format!("{recipe}-{optimizer}"));
            let more = ["--recipe", recipe, "--optimizer", optimizer, "--steps", "120"];
            let outcome = train(&file, &out, &more);
            assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
            let text = fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
            let losses: Vec<f64> = text
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
                .filter(|record| record["kind"] == "train")
                .map(|record| record["loss"].as_f64().unwrap_or(f64::NAN))
                .collect();
            let last = losses[110..].iter().sum::<f64>() / 10.0;
            assert!(last < losses[0] - 0.3, "{recipe}, {optimizer}: {} to {last}", losses[0]);
        }
    }
}
