//! Whole runs through the command line: killed and continued, evaluated, generated from.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

mod common;

use common::{TINY, command, folder, losses, onesigma, text_file};
use onesigma::train::telemetry::Record;

const RECIPES: [&str; 11] = [
    "f32",
    "bf16",
    "fp16",
    "fp16-loss-scale",
    "unit-f32",
    "unit-fp16",
    "unit-fp8",
    "u-mup-f32",
    "u-mup-fp8",
    "mu-s-f32",
    "mu-s-fp8",
];

/// Arguments of a tiny run into `out`; later ones override.
fn arguments<'a>(text: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["train", "--quiet"];
    words.extend(TINY);
    words.extend(["--data", text.to_str().expect("UTF-8"), "--out", out.to_str().expect("UTF-8")]);
    words.extend(more);
    words
}

fn training_losses(run: &Path) -> Vec<f32> {
    let pick = |record| match record {
        Record::Train { loss, .. } => Some(loss),
        _ => None,
    };
    losses(run).into_iter().filter_map(pick).collect()
}

#[test]
fn every_recipe_trains_a_little() {
    let dir = folder();
    let text = text_file(dir.path());
    for recipe in RECIPES {
        let out = dir.path().join(recipe);
        let outcome = onesigma(&arguments(&text, &out, &["--recipe", recipe, "--steps", "40"]));
        assert_eq!(outcome.code, Some(0), "{recipe}: {}", outcome.stderr);
        let losses = training_losses(&out);
        assert_eq!(losses.len(), 40, "{recipe}");
        let (first, last) = (losses[0], losses[36..].iter().sum::<f32>() / 4.0);
        assert!((4.5..7.0).contains(&first), "{recipe} starts at {first}, not near ln 256");
        assert!(last < first - 0.5, "{recipe} goes from {first} to {last}");
        for file in ["config.toml", "summary.json"] {
            assert!(out.join(file).is_file(), "{recipe} leaves no {file}");
        }
    }
}

#[test]
fn any_recipe_trains_a_model_of_any_parametrisation() {
    let dir = folder();
    let text = text_file(dir.path());
    let run = |words: &[&str]| {
        let out = dir.path().join(words.join("-"));
        let outcome = onesigma(&arguments(&text, &out, words));
        assert_eq!(outcome.code, Some(0), "{words:?}: {}", outcome.stderr);
        losses(&out)
    };
    let own = run(&["--recipe", "mu-s-f32"]);
    assert_eq!(own, run(&["--recipe", "f32", "--parametrisation", "mu-s"]));
    assert_ne!(own, run(&["--recipe", "mu-s-f32", "--parametrisation", "u-mup"]));
    let words = ["compile", "--parametrisation", "umup"];
    let outcome = onesigma(&words);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("regular, unit, u-mup, mu-s"), "{}", outcome.stderr);
}

#[test]
fn two_equal_runs_are_equal_and_another_seed_is_not() {
    let dir = folder();
    let text = text_file(dir.path());
    let run = |name: &str, seed: &str| {
        let out = dir.path().join(name);
        let outcome = onesigma(&arguments(&text, &out, &["--seed", seed]));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        losses(&out)
    };
    let first = run("a", "1");
    assert_eq!(first, run("b", "1"));
    assert_ne!(first, run("c", "2"));
}

#[test]
fn steps_per_call_change_nothing() {
    let dir = folder();
    let text = text_file(dir.path());
    let run = |steps: &str| {
        let out = dir.path().join(steps);
        let outcome = onesigma(&arguments(&text, &out, &["--steps-per-call", steps]));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        losses(&out)
    };
    assert_eq!(run("1"), run("4"));
}

#[test]
fn accumulated_steps_train_too() {
    let dir = folder();
    let text = text_file(dir.path());
    let out = dir.path().join("run");
    for optimizer in ["adamw", "sgd"] {
        let out = out.join(optimizer);
        let more =
            ["--accumulate", "3", "--optimizer", optimizer, "--steps", "30", "--recipe", "f32"];
        let outcome = onesigma(&arguments(&text, &out, &more));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let losses = training_losses(&out);
        assert_eq!(losses.len(), 30);
        assert!(losses[29] < losses[0], "{optimizer}: {losses:?}");
    }
}

/// Kills the process at several moments, wherever it is then, continues it, and compares with a
/// run that was left alone.
#[test]
fn a_killed_run_continues_bit_for_bit() {
    let dir = folder();
    let text = text_file(dir.path());
    let more =
        ["--steps", "120", "--save-every", "7", "--eval-every", "20", "--steps-per-call", "3"];
    let whole = dir.path().join("whole");
    let outcome = onesigma(&arguments(&text, &whole, &more));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);

    let killed = dir.path().join("killed");
    let first = arguments(&text, &killed, &more);
    let resume = ["train", "--quiet", "--resume", killed.to_str().expect("UTF-8")];
    let mut kills = 0;
    for (round, target) in [1, 10, 31, 47, 80].into_iter().enumerate() {
        let words = if round == 0 { &first[..] } else { &resume[..] };
        let mut child = command(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        // Wait until it is past a step, so that each round dies somewhere new.
        let deadline = Instant::now() + Duration::from_secs(120);
        while lines(&killed) < target && child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "no progress to step {target}");
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().expect("a child").is_none() {
            child.kill().expect("a running child"); // SIGKILL
            kills += 1;
        }
        child.wait().expect("a child");
    }
    assert!(kills > 0, "the run ended before it could be killed");
    let outcome = onesigma(&resume);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(losses(&killed), losses(&whole));
}

fn lines(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

#[test]
fn a_finished_run_is_evaluated_measured_and_continued() {
    let dir = folder();
    let text = text_file(dir.path());
    let out = dir.path().join("run");
    let more = ["--recipe", "fp16", "--measure-gradients"];
    let outcome = onesigma(&arguments(&text, &out, &more));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("gradients flushed to zero"), "{}", outcome.stdout);

    let run = out.to_str().expect("UTF-8");
    let eval = onesigma(&["eval", run]);
    assert!(eval.stdout.starts_with("step 8: validation loss "), "{eval:?}");
    let gradients = onesigma(&["eval", run, "--gradients"]);
    assert!(gradients.stdout.lines().count() > 10, "{gradients:?}");
    assert!(gradients.stdout.contains("F16"), "{gradients:?}");

    let generate =
        |seed| onesigma(&["generate", run, "--prompt", "12", "--tokens", "40", "--seed", seed]);
    let text = generate("1");
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    assert!(text.stdout.starts_with("12") && text.stdout.len() > 42, "{:?}", text.stdout);
    assert_eq!(text.stdout, generate("1").stdout);
    assert_ne!(text.stdout, generate("2").stdout);
}

#[test]
fn compile_prints_the_plan() {
    let mut words = vec!["compile", "--recipe", "unit-fp8"];
    words.extend(&TINY[..10]);
    let plan = onesigma(&words);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    for word in ["arena", "train_step", "MatMul", "E4M3", "E5M2"] {
        assert!(plan.stdout.contains(word), "{word} is not in {}", plan.stdout);
    }
    let with = |more: &[&str]| onesigma(&[&words[..], more].concat());
    assert!(with(&["--text"]).stdout.contains("layers.0.mlp"), "the listing names its nodes");
    assert!(with(&["--dot", "eval_step"]).stdout.starts_with("digraph"));
    let unknown = with(&["--dot", "nothing"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("train_step"), "{}", unknown.stderr);
}

#[test]
fn the_rest_answers() {
    assert!(onesigma(&["backends"]).stdout.contains("cpu"));
    let rules = onesigma(&["rules", "--fan-in", "64"]);
    assert!(rules.stdout.contains("linear ") && rules.stdout.contains("0.125000"), "{rules:?}");
    assert_eq!(onesigma(&["rules", "--tau", "-1"]).code, Some(2));
    assert!(onesigma(&["formats"]).stdout.contains("E4M3"));
    assert!(onesigma(&["completions", "bash"]).stdout.contains("onesigma"));
    for name in ["train", "eval", "generate", "compile", "formats", "rules", "backends"] {
        let help = onesigma(&[name, "--help"]);
        assert_eq!(help.code, Some(0));
        assert!(help.stdout.contains("Example"), "{name} has no example");
    }
    assert_eq!(onesigma(&["trian"]).code, Some(2));
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_quiet() {
    let program = env!("CARGO_BIN_EXE_onesigma");
    let script = format!("set -o pipefail; '{program}' compile --text | head -c 20 >/dev/null");
    let outcome = common::run(std::process::Command::new("bash").args(["-c", &script]));
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

/// In f32 a power of two goes through the backward pass and out again without rounding.
#[test]
fn a_loss_scale_in_f32_changes_nothing_and_one_in_fp16_does() {
    let dir = folder();
    let text = text_file(dir.path());
    let run = |recipe: &str, scale: &str| {
        let out = dir.path().join(format!("{recipe}-{scale}"));
        let more = ["--recipe", recipe, "--loss-scale", scale, "--optimizer", "sgd", "--lr", "0.1"];
        let outcome = onesigma(&arguments(&text, &out, &more));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        training_losses(&out)
    };
    assert_eq!(run("f32", "1"), run("f32", "1024"));
    assert_ne!(run("fp16", "1"), run("fp16", "1024"));
}

#[test]
fn a_validation_text_of_its_own_is_what_is_measured() {
    let dir = folder();
    let text = text_file(dir.path());
    let valid = dir.path().join("valid.txt");
    fs::write(&valid, "~".repeat(2000)).expect("room");
    let (own, held_out) = (dir.path().join("own"), dir.path().join("held-out"));
    let valid = valid.to_str().expect("UTF-8");
    let outcome = onesigma(&arguments(&text, &own, &["--valid", valid, "--steps", "80"]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(onesigma(&arguments(&text, &held_out, &["--steps", "80"])).code, Some(0));
    // A byte that never occurs in training is more surprising than the training text's own.
    let last = |run: &Path| match losses(run).pop() {
        Some(Record::Evaluation { loss, .. }) => loss,
        other => panic!("{other:?} is no evaluation"),
    };
    assert!(last(&own) > last(&held_out) + 0.5, "{} {}", last(&own), last(&held_out));
}

#[test]
fn a_profile_of_training_lists_its_ops_and_changes_no_loss() {
    let dir = folder();
    let text = text_file(dir.path());
    let trace = dir.path().join("trace.json");
    let path = trace.to_str().expect("UTF-8");
    let [plain, profiled] = ["plain", "profiled"].map(|name| dir.path().join(name));
    let steps = ["--steps", "9", "--accumulate", "2"];
    let outcome = onesigma(&arguments(&text, &plain, &steps));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let more = [&steps[..], &["--profile", path, "--profile-steps", "4"]].concat();
    let outcome = onesigma(&arguments(&text, &profiled, &more));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(losses(&plain), losses(&profiled));
    for word in ["time of 4 steps, op by op", "GFLOP/s", "AdamW", "run folder"] {
        assert!(outcome.stdout.contains(word), "{word} in {}", outcome.stdout);
    }
    let file: serde_json::Value =
        serde_json::from_slice(&fs::read(&trace).expect("written")).expect("JSON");
    let ops = file["ops"].as_array().expect("a list");
    let calls = |op: &&serde_json::Value| op["calls"].as_u64().expect("a number");
    let label = |op: &&serde_json::Value| op["label"].as_str().expect("text").to_owned();
    let updates = |op: &&serde_json::Value| label(op).starts_with("AdamW");
    // Each step updates every tensor once, after two passes.
    let adamw: u64 = ops.iter().filter(updates).map(|op| calls(&op)).sum();
    assert!(adamw > 0 && adamw.is_multiple_of(4), "{adamw}");
    let events = file["traceEvents"].as_array().expect("a list");
    let spans = events.iter().filter(|event| event["ph"] == "X").count() as u64;
    assert_eq!(ops.iter().map(|op| calls(&op)).sum::<u64>(), spans);

    let missing = dir.path().join("no/folder/trace.json");
    let more = ["--profile", missing.to_str().expect("UTF-8")];
    let outcome = onesigma(&arguments(&text, &dir.path().join("other"), &more));
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("trace.json"), "{}", outcome.stderr);
}
