//! Runs that are interrupted, lengthened, ended early and looked at.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod common;

use common::{TINY, command, folder, losses, onesigma, text_file};
use onesigma::train::checkpoint::Checkpoint;
use onesigma::train::config::Config;
use onesigma::train::run_dir::RunDir;
use onesigma::train::telemetry::Record;

fn arguments<'a>(text: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["train"];
    words.extend(TINY);
    words.extend(["--data", text.to_str().expect("UTF-8"), "--out", out.to_str().expect("UTF-8")]);
    words.extend(more);
    words
}

#[test]
fn an_interrupt_finishes_the_step_saves_and_the_run_continues_bit_for_bit() {
    let dir = folder();
    let text = text_file(dir.path());
    let more = ["--steps", "3000", "--save-every", "0", "--eval-every", "500"];
    let whole = dir.path().join("whole");
    let outcome = onesigma(&arguments(&text, &whole, &more));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);

    let cut = dir.path().join("cut");
    let mut child = command(&arguments(&text, &cut, &more))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    let steps = || fs::read_to_string(cut.join("metrics.jsonl")).map_or(0, |t| t.lines().count());
    while steps() < 20 {
        assert!(Instant::now() < deadline, "no progress");
        assert!(child.try_wait().expect("a child").is_none(), "it ended before the signal");
        std::thread::sleep(Duration::from_millis(1));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("kill runs").success());
    let output = child.wait_with_output().expect("its output");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted after") && stderr.contains("--resume"), "{stderr}");

    let (_, checkpoint, _) = Checkpoint::latest(&cut.join("checkpoints")).expect("its state");
    let step = checkpoint.state.step;
    assert!((10..3000).contains(&step), "{step}");
    let trained = losses(&cut).iter().filter(|r| matches!(r, Record::Train { .. })).count();
    assert_eq!(trained as u64, step, "the checkpoint is that of the last step");

    let outcome = onesigma(&["train", "--quiet", "--resume", cut.to_str().expect("UTF-8")]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(losses(&cut), losses(&whole));
}

#[test]
fn a_finished_run_is_lengthened() {
    let dir = folder();
    let text = text_file(dir.path());
    let more = ["--quiet", "--schedule", "constant", "--warmup", "2"];
    let (long, short) = (dir.path().join("long"), dir.path().join("short"));
    let run = |words: &[&str]| {
        let outcome = onesigma(words);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stdout
    };
    run(&arguments(&text, &long, &[&more[..], &["--steps", "16"]].concat()));
    run(&arguments(&text, &short, &more));
    let path = short.to_str().expect("UTF-8");
    let said = run(&["train", "--quiet", "--resume", path, "--steps", "16"]);
    assert!(said.contains("16 steps"), "{said}");
    assert_eq!(losses(&short), losses(&long));
    assert_eq!(RunDir::config::<Config>(&short).expect("settings").steps, 16);
    // From now on it is a run of 16 steps.
    let outcome = onesigma(&["train", "--resume", path]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("all 16 steps are done already"), "{}", outcome.stderr);
    assert!(!outcome.stdout.contains("tokens/s"), "{}", outcome.stdout);

    assert_eq!(run(&["eval", path, "--backend", "cpu"]), run(&["eval", path]));
    let outcome = onesigma(&["eval", path, "--backend", "abacus"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("abacus"), "{}", outcome.stderr);

    let refused = |more: &[&str], words: &[&str]| {
        let outcome = onesigma(&[&["train", "--quiet", "--resume", path][..], more].concat());
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        for word in words {
            assert!(outcome.stderr.contains(word), "no `{word}` in: {}", outcome.stderr);
        }
    };
    refused(&["--steps", "4"], &["--steps is 4", "at least the 16"]);
    refused(&["--lr", "0.5"], &["another `lr`", "--init-from"]);
    refused(&["--set", "model.hidden=32"], &["another `model`"]);
    refused(&["config.toml"], &["run file beside --resume"]);
    assert_eq!(RunDir::config::<Config>(&short).expect("settings").steps, 16);
}

#[test]
fn a_run_without_progress_ends_and_leaves_its_best_state() {
    let dir = folder();
    let text = text_file(dir.path());
    let out = dir.path().join("run");
    let more =
        ["--steps", "4000", "--patience", "2", "--eval-every", "2", "--lr", "3", "--recipe", "f32"];
    let outcome = onesigma(&arguments(&text, &out, &more));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("no lower loss in 2 evaluations"), "{}", outcome.stdout);
    let summary = fs::read_to_string(out.join("summary.json")).expect("a summary");
    assert!(summary.contains("\"end\": \"early-stop\""), "{summary}");
    let best = out.join("checkpoints/best.safetensors");
    let eval = onesigma(&["eval", best.to_str().expect("UTF-8"), "--batches", "1"]);
    assert_eq!(eval.code, Some(0), "{}", eval.stderr);
    let lowest = losses(&out)
        .into_iter()
        .filter_map(|record| match record {
            Record::Evaluation { step, loss, .. } => Some((step, loss)),
            _ => None,
        })
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .expect("an evaluation");
    let expected = format!("step {}: validation loss {:.4}", lowest.0, lowest.1);
    assert!(eval.stdout.starts_with(&expected), "{} for {expected}", eval.stdout);
}

#[test]
fn samples_are_shown_and_noted() {
    let dir = folder();
    let text = text_file(dir.path());
    let out = dir.path().join("run");
    let more = ["--sample-every", "4", "--sample-prompt", "12 squared", "--set", "sample_tokens=9"];
    let outcome = onesigma(&arguments(&text, &out, &more));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.matches("    12 squared").count(), 2, "{}", outcome.stderr);
    let noted = losses(&out);
    let samples = noted.iter().filter(
        |record| matches!(record, Record::Sample { text, .. } if text.starts_with("12 squared")),
    );
    assert_eq!(samples.count(), 2);
}

#[test]
fn logs_say_what_happens_within_when_they_are_asked_for() {
    let dir = folder();
    let text = text_file(dir.path());
    let run = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let outcome = onesigma(&arguments(&text, &out, &[&["--quiet"][..], more].concat()));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stderr
    };
    assert_eq!(run("silent", &[]), "");
    let said = run("talking", &["-v"]);
    assert!(said.contains("INFO") && said.contains("training starts"), "{said}");
    assert!(said.contains("arena_bytes") && !said.contains("DEBUG"), "{said}");
    assert!(run("more", &["-vv"]).contains("DEBUG"));
}
