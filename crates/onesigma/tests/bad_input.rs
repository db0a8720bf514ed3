//! What cannot work ends with a clear message and the right exit code, and loses nothing.

use std::fs;
use std::path::Path;

mod common;

use common::{Outcome, TINY, folder, onesigma, text_file};

fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
    assert!(outcome.stderr.starts_with("error: "), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    for word in words {
        assert!(outcome.stderr.contains(word), "no `{word}` in: {}", outcome.stderr);
    }
}

fn train(dir: &Path, data: &Path, more: &[&str]) -> Outcome {
    let out = dir.join("run");
    let (data, out) = (data.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
    let mut words = vec!["train", "--quiet", "--data", data, "--out", out];
    words.extend(TINY);
    words.extend(more);
    onesigma(&words)
}

#[test]
fn a_missing_file() {
    let dir = folder();
    let outcome = train(dir.path(), &dir.path().join("missing.txt"), &[]);
    refused(&outcome, 2, &["missing.txt", "no such file"]);
    assert!(!dir.path().join("run").exists());
}

#[test]
fn an_empty_file() {
    let dir = folder();
    let path = dir.path().join("empty.txt");
    fs::write(&path, "").expect("room");
    refused(&train(dir.path(), &path, &[]), 2, &["empty.txt", "no text"]);
}

#[test]
fn a_text_shorter_than_one_sequence() {
    let dir = folder();
    let path = dir.path().join("short.txt");
    fs::write(&path, "ten bytes.").expect("room");
    refused(&train(dir.path(), &path, &[]), 2, &["training", "9 tokens", "33"]);
}

#[test]
fn a_file_that_is_not_text() {
    let dir = folder();
    let path = dir.path().join("image");
    fs::write(&path, [1, 2, 3, 0, 5]).expect("room");
    refused(&train(dir.path(), &path, &[]), 2, &["not text", "offset 3"]);
}

#[test]
fn an_unknown_recipe_names_the_known_ones() {
    let dir = folder();
    let text = text_file(dir.path());
    refused(&train(dir.path(), &text, &["--recipe", "fp3"]), 2, &["fp3", "unit-fp8", "fp16"]);
}

#[test]
fn an_unknown_backend_optimizer_or_schedule() {
    let dir = folder();
    let text = text_file(dir.path());
    refused(&train(dir.path(), &text, &["--backend", "tpu"]), 2, &["tpu", "cpu"]);
    refused(&train(dir.path(), &text, &["--optimizer", "adamax"]), 2, &["adamax", "adamw"]);
    refused(&train(dir.path(), &text, &["--schedule", "stairs"]), 2, &["stairs", "cosine"]);
}

#[test]
fn sizes_that_make_no_model() {
    let dir = folder();
    let text = text_file(dir.path());
    refused(&train(dir.path(), &text, &["--heads", "3"]), 2, &["--hidden", "multiple of the 3"]);
    refused(&train(dir.path(), &text, &["--layers", "0"]), 2, &["--layers", "at least 1"]);
    refused(&train(dir.path(), &text, &["--batch", "99999999999"]), 2, &["--batch", "at most"]);
    refused(&train(dir.path(), &text, &["--hidden", "many"]), 2, &["--hidden", "many"]);
    refused(&train(dir.path(), &text, &["--lr", "-1"]), 2, &["--lr"]);
}

#[test]
fn outside_a_workspace_the_default_corpus_asks_for_data() {
    let dir = folder();
    let outcome = common::onesigma_in(dir.path(), &["train", "--quiet"]);
    refused(&outcome, 2, &["--data", "workspace"]);
    assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), 0);
}

#[test]
fn a_configuration_with_an_unknown_entry() {
    let dir = folder();
    let text = text_file(dir.path());
    let config = dir.path().join("config.toml");
    fs::write(&config, "stepz = 3\n").expect("room");
    let config = config.to_str().expect("UTF-8");
    refused(&train(dir.path(), &text, &["--config", config]), 2, &["stepz", "config.toml"]);
    refused(&train(dir.path(), &text, &["--config", "none.toml"]), 2, &["none.toml"]);
}

#[test]
fn a_run_is_not_overwritten_and_damage_is_told() {
    let dir = folder();
    let text = text_file(dir.path());
    let done = train(dir.path(), &text, &["--steps", "4", "--save-every", "2"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    refused(&train(dir.path(), &text, &[]), 2, &["--resume", "already holds a run"]);

    let run = dir.path().join("run");
    let newest = run.join("checkpoints/step-0000000004.safetensors");
    let mut bytes = fs::read(&newest).expect("a checkpoint");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&newest, &bytes).expect("room");
    let newest = newest.to_str().expect("UTF-8");
    refused(&onesigma(&["eval", newest]), 1, &["step-0000000004", "damaged", "SHA-256"]);

    let run = run.to_str().expect("UTF-8");
    let fallback = onesigma(&["eval", run]);
    assert_eq!(fallback.code, Some(0), "{}", fallback.stderr);
    assert!(fallback.stderr.contains("warning: ") && fallback.stdout.starts_with("step 2"));
}

#[test]
fn nothing_to_load() {
    let dir = folder();
    let empty = dir.path().to_str().expect("UTF-8");
    refused(&onesigma(&["eval", empty]), 2, &["no checkpoint"]);
    refused(&onesigma(&["generate", "no/such/run"]), 2, &["no checkpoint"]);
    refused(&onesigma(&["train", "--resume", empty]), 2, &["no run folder"]);
}

/// A file-size limit stands in for a full disk: the write of the checkpoint fails half way.
#[cfg(unix)]
#[test]
fn a_full_disk_keeps_the_previous_checkpoint() {
    let dir = folder();
    let text = text_file(dir.path());
    // The state with the lowest loss would be the first that does not fit.
    let more = ["--steps", "8", "--save-every", "4", "--keep", "9", "--set", "keep_best=false"];
    let done = train(dir.path(), &text, &more);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let checkpoints = dir.path().join("run/checkpoints");
    let newest = checkpoints.join("step-0000000008.safetensors");
    let kibibytes = fs::metadata(&newest).expect("a checkpoint").len() / 1024;
    fs::remove_file(&newest).expect("its own file");
    fs::remove_file(dir.path().join("run/summary.json")).expect("its own file");

    let limit = (kibibytes / 2).max(1);
    let script = format!(
        "trap '' XFSZ; ulimit -f {limit}; exec '{}' train --quiet --resume '{}'",
        env!("CARGO_BIN_EXE_onesigma"),
        dir.path().join("run").display()
    );
    let outcome = common::run(std::process::Command::new("bash").args(["-c", &script]));
    refused(&outcome, 1, &["cannot write", "step-0000000008"]);
    let names: Vec<_> = fs::read_dir(&checkpoints)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["step-0000000004.safetensors"]);
}

#[test]
fn a_loss_scale_for_a_unit_scaled_recipe() {
    let dir = folder();
    let text = text_file(dir.path());
    let outcome = train(dir.path(), &text, &["--recipe", "unit-fp16", "--loss-scale", "1024"]);
    refused(&outcome, 2, &["--loss-scale is 1024", "unit-scaled"]);
}

#[test]
fn a_validation_text_beside_the_corpus_that_has_its_own_split() {
    let outcome = onesigma(&["train", "--data", "cargo", "--valid", "book.txt"]);
    refused(&outcome, 2, &["--valid is ", "book.txt", "`cargo`"]);
}

#[test]
fn checkpoints_that_are_all_damaged_are_no_reason_to_start_over() {
    let dir = folder();
    let text = text_file(dir.path());
    assert_eq!(train(dir.path(), &text, &[]).code, Some(0));
    let run = dir.path().join("run");
    let checkpoints = run.join("checkpoints");
    for entry in fs::read_dir(&checkpoints).expect("the run's").flatten() {
        if entry.file_name().to_string_lossy().starts_with("step-") {
            fs::write(entry.path(), "cut").expect("room");
        }
    }
    let metrics = fs::read(run.join("metrics.jsonl")).expect("the run's");
    let path = run.to_str().expect("UTF-8");
    let words = ["none of the 3 checkpoints", "best.safetensors"];
    refused(&onesigma(&["train", "--resume", path, "--steps", "20", "--quiet"]), 1, &words);
    refused(&onesigma(&["eval", path]), 1, &words);
    assert_eq!(fs::read(run.join("metrics.jsonl")).expect("still there"), metrics);

    fs::remove_file(run.join("config.toml")).expect("it was there");
    let words = ["no run folder", "no config.toml"];
    refused(&onesigma(&["train", "--resume", path, "--quiet"]), 2, &words);
}

#[test]
fn names_are_suggested_and_reasons_said_once() {
    let dir = folder();
    let text = text_file(dir.path());
    let said = |more: &[&str], code, words: &[&str]| {
        let outcome = train(dir.path(), &text, more);
        refused(&outcome, code, words);
        outcome.stderr
    };
    said(&["--optimizer", "adamm"], 2, &["did you mean `adamw`?", "lion"]);
    said(&["--model-type", "gtp2"], 2, &["did you mean `gpt2`?"]);
    said(&["--backend", "cpuu"], 2, &["did you mean `cpu`?"]);
    said(&["--tokenizer", "none.json"], 2, &["no such file", "wordpiece"]);
    let stderr = said(&["--set", "stepz=3"], 2, &["did you mean `steps`?"]);
    assert!(stderr.lines().count() == 1 && stderr.len() < 120, "{stderr}");
    let file = text.join("below");
    let stderr = said(&["--out", file.to_str().expect("UTF-8")], 1, &["cannot create"]);
    assert_eq!(stderr.matches("os error").count(), 1, "{stderr}");
}
