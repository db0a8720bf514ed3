//! Sweeps: runs in processes of their own, resumed, with one table and one figure.

use std::fs;
use std::path::{Path, PathBuf};

mod common;

use common::{Outcome, folder, onesigma, text_file};

fn sweep_file(dir: &Path, more: &str) -> PathBuf {
    let text = text_file(dir);
    let file = dir.join("rates.toml");
    let spec = format!(
        "title = \"Rates\"\nseeds = 2\n{more}\n[settings]\ndata = {text:?}\nsteps = 6\nbatch = 2\n\
         eval_batches = 1\nmodel = {{ layers = 1, heads = 2, hidden = 16, seq = 32 }}\n\
         [grid]\nrecipe = [\"f32\", \"unit-fp8\"]\nlr = [0.001, 0.02]\n"
    );
    fs::write(&file, spec).expect("room");
    file
}

fn sweep(file: &Path, out: &Path, more: &[&str]) -> Outcome {
    let (file, out) = (file.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
    onesigma(&[&["sweep", file, "--out", out][..], more].concat())
}

fn runs(out: &Path) -> Vec<PathBuf> {
    let mut runs: Vec<PathBuf> =
        fs::read_dir(out.join("runs")).expect("runs").map(|e| e.expect("a run").path()).collect();
    runs.sort();
    runs
}

#[test]
fn a_grid_is_taken_resumed_and_reported() {
    let dir = folder();
    let file = sweep_file(dir.path(), "");
    let out = dir.path().join("out");
    let planned = sweep(&file, &out, &["--dry-run"]);
    assert!(planned.stdout.contains("8 runs"), "{}", planned.stdout);
    assert!(!out.exists());

    let first = sweep(&file, &out, &["--jobs", "2"]);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert_eq!(first.stderr.lines().filter(|line| line.starts_with('[')).count(), 8);
    assert_eq!(runs(&out).len(), 8);
    let table: Vec<&str> = first.stdout.lines().skip(2).take(5).collect();
    assert!(table[0].starts_with("lr") && table[0].contains("validation loss"), "{table:?}");
    assert_eq!(first.stdout.matches("best").count(), 1, "{}", first.stdout);
    let csv = fs::read_to_string(out.join("sweep.csv")).expect("a table");
    assert_eq!(csv.lines().count(), 9);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("sweep.json")).expect("a file")).expect("JSON");
    assert_eq!(json["rows"].as_array().expect("rows").len(), 4);
    // Six steps at the higher rate learn more.
    assert_eq!(json["best"]["point"]["lr"], 0.02);
    let figure = fs::read_to_string(out.join("sweep.svg")).expect("a figure");
    for word in ["<svg", "Rates", "unit-fp8", "validation loss"] {
        assert!(figure.contains(word), "{word}");
    }

    // One run is lost and one was stopped half way: those alone are taken again.
    let all = runs(&out);
    fs::remove_dir_all(&all[0]).expect("its own folder");
    fs::remove_file(all[1].join("summary.json")).expect("its own file");
    let again = sweep(&file, &out, &[]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(again.stderr.lines().filter(|line| line.starts_with('[')).count(), 2);
    let same = fs::read_to_string(out.join("sweep.csv")).expect("a table");
    // All but the speed, which is that of the day.
    let plain = |csv: &str| -> Vec<String> {
        let values = |line: &str| line.split(',').take(6).collect::<Vec<_>>().join(",");
        csv.lines().map(values).collect()
    };
    assert_eq!(plain(&same), plain(&csv));

    let longer = sweep(&file, &out, &["--set", "steps=8", "--seeds", "1", "--report-only"]);
    assert_eq!(longer.code, Some(0), "{}", longer.stderr);
    assert!(longer.stdout.contains("1 open"), "{}", longer.stdout);
}

#[test]
fn divergence_and_failure_are_in_the_table() {
    let dir = folder();
    let file = sweep_file(dir.path(), "");
    let out = dir.path().join("out");
    let more = ["--seeds", "1", "--set", "lr=1e30", "--set", "data='no/such/text'"];
    let failed = sweep(&file, &out, &more);
    assert_eq!(failed.code, Some(2), "{}", failed.stderr);
    assert!(failed.stderr.contains("no such file"), "{}", failed.stderr);
    assert!(failed.stdout.contains("1 failed"), "{}", failed.stdout);
}

#[cfg(unix)]
#[test]
fn an_interrupted_sweep_saves_its_runs_and_goes_on() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let dir = folder();
    let file = sweep_file(dir.path(), "");
    let out = dir.path().join("out");
    let words = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let mut child = common::command(&["sweep", &words(&file), "--out", &words(&out)])
        .args(["--jobs", "1", "--seeds", "1", "--set", "steps=4000"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    let begun = || {
        let runs = fs::read_dir(out.join("runs")).into_iter().flatten().flatten();
        runs.map(|run| fs::read_to_string(run.path().join("metrics.jsonl")).unwrap_or_default())
            .any(|text| text.lines().count() > 5)
    };
    while !begun() {
        assert!(Instant::now() < deadline, "no progress");
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("kill runs").success());
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    let [only] = &runs(&out)[..] else { panic!("one run was begun") };
    let summary = fs::read_to_string(only.join("summary.json")).expect("its run has saved");
    assert!(summary.contains("interrupted"), "{summary}");
    let steps = |text: &str| text.lines().filter(|line| line.contains("\"train\"")).count();
    let before = steps(&fs::read_to_string(only.join("metrics.jsonl")).expect("metrics"));
    let report = sweep(&file, &out, &["--seeds", "1", "--set", "steps=4000", "--report-only"]);
    assert_eq!(report.stdout.matches("1 open").count(), 4, "{}", report.stdout);
    assert!((6..4000).contains(&before), "{before}");
}
