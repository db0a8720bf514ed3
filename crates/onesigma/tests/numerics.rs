//! `onesigma numerics`: what it measures, what it refuses, and the page in a real browser.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

mod common;

use common::{folder, onesigma, onesigma_in, text_file};
use onesigma::numerics::{Report, VERSION};

const SMALL: [&str; 8] = ["--layers", "2", "--heads", "2", "--hidden", "32", "--seq", "32"];

/// Runs the command on small models; gives its standard output.
fn numerics(dir: &Path, text: &Path, words: &[&str]) -> String {
    let mut all = vec!["numerics", "--batch", "4", "--data", text.to_str().expect("UTF-8")];
    all.extend(SMALL);
    all.extend(words);
    let outcome = onesigma_in(dir, &all);
    assert_eq!(outcome.code, Some(0), "{words:?}: {}", outcome.stderr);
    outcome.stdout
}

fn report(json: &str) -> Report {
    serde_json::from_str(json).expect("a report")
}

#[test]
fn models_are_predicted_and_measured_side_by_side() {
    let dir = folder();
    let text = text_file(dir.path());
    let json = numerics(dir.path(), &text, &["fp16", "unit-fp8", "--steps", "2", "--json"]);
    let report = report(&json);
    assert_eq!(report.version, VERSION);
    let names: Vec<&str> = report.models.iter().map(|model| &model.name[..]).collect();
    assert_eq!(names, ["fp16", "unit-fp8"]);
    assert!(!dir.path().join("numerics.html").exists(), "--json alone writes no page");
    for model in &report.models {
        let steps: Vec<u64> = model.snapshots.iter().map(|snapshot| snapshot.step).collect();
        assert_eq!(steps, [0, 2], "{}", model.name);
        assert!(model.snapshots[1].loss.is_some_and(|loss| (4.0..7.0).contains(&loss)));
        assert!(model.tensors.len() > 100);
        for tensor in &model.tensors {
            assert_eq!(tensor.measured.len(), 2, "{}", tensor.name);
            let expected = tensor.predicted.as_ref().expect("every tensor is predicted");
            for numbers in tensor.measured.iter().chain([expected]) {
                assert_eq!(numbers.formats.len(), report.formats.len(), "{}", tensor.name);
                let zeros = numbers.zeros.unwrap_or(0.0);
                let all: f64 = numbers.exponents.iter().sum::<f64>() + zeros;
                let is_zero = numbers.rms == 0.0;
                assert!(is_zero || (all - 1.0).abs() < 0.01 || numbers.zeros.is_none(), "{all}");
            }
        }
    }
    // What the paper is about: gradients that F16 flushes in the regular model, and not here.
    let flushed = |model: usize| -> f64 {
        let gradients = report.models[model].tensors.iter().filter(|t| t.name.starts_with("grad("));
        gradients.map(|tensor| tensor.measured[0].own.underflow).fold(0.0, f64::max)
    };
    assert!(flushed(0) > 0.2 && flushed(1) < 0.01, "{} {}", flushed(0), flushed(1));
}

#[test]
fn two_measurements_are_equal() {
    let dir = folder();
    let text = text_file(dir.path());
    let once = || numerics(dir.path(), &text, &["unit-fp16", "--steps", "1", "--json"]);
    assert_eq!(once(), once());
}

#[test]
fn predictions_need_no_text_and_take_any_size() {
    let dir = folder();
    let outcome = onesigma_in(
        dir.path(),
        &[
            "numerics",
            "unit-fp8",
            "--predict-only",
            "--json",
            "--layers",
            "12",
            "--hidden",
            "768",
            "--heads",
            "12",
            "--seq",
            "1024",
            "--batch",
            "64",
            "--formats",
            "E4M3,E5M2",
        ],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let report = report(&outcome.stdout);
    assert_eq!(report.formats.len(), 2);
    let model = &report.models[0];
    assert!(model.snapshots.is_empty());
    assert!(model.tensors.iter().all(|t| t.measured.is_empty() && t.predicted.is_some()));
}

#[test]
fn runs_start_from_their_checkpoint() {
    let dir = folder();
    let text = text_file(dir.path());
    let run = dir.path().join("run");
    let (text, out) = (text.to_str().expect("UTF-8"), run.to_str().expect("UTF-8"));
    let mut words = vec!["train", "--quiet", "--data", text, "--out", out];
    words.extend(common::TINY);
    words.extend(["--recipe", "unit-fp16"]);
    assert_eq!(onesigma(&words).code, Some(0));
    let outcome = onesigma_in(dir.path(), &["numerics", "run", "--json"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let model = &report(&outcome.stdout).models[0];
    assert_eq!(model.recipe, "unit-fp16");
    assert_eq!(model.snapshots.iter().map(|s| s.step).collect::<Vec<_>>(), [8]);
    // The optimiser's state is that of the run, not of a start.
    let moments = model.tensors.iter().filter(|t| t.op == "Slot" && t.name.ends_with("moment"));
    assert!(moments.clone().count() > 0 && moments.clone().all(|t| t.measured[0].rms > 0.0));
    let outcome = onesigma_in(dir.path(), &["numerics", "run", "--layers", "3"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("--layers does not go with run"), "{}", outcome.stderr);
}

#[test]
fn what_cannot_be_is_named() {
    for (words, named) in [
        (&["numerics", "fp7"][..], "unknown model `fp7`"),
        (&["numerics", "fp16", "--formats", "E9M9"], "E9M9"),
        (&["numerics", "fp16", "--heads", "3"], "--hidden"),
        (&["numerics", "fp16", "--predict-only", "--steps", "3"], "--steps"),
        (&["numerics", "fp16", "--data", "/nowhere"], "/nowhere"),
    ] {
        let outcome = onesigma(words);
        assert_eq!(outcome.code, Some(2), "{words:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(named), "{words:?}: {}", outcome.stderr);
    }
}

/// Chromium's path, or none with a message.
#[allow(clippy::print_stdout)]
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let found = std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: no Chromium in PATH, so the page is not opened");
    }
    found
}

/// A browser with a profile of its own.
struct Browser<'a> {
    program: PathBuf,
    dir: &'a Path,
}

impl Browser<'_> {
    /// The document of a page after its scripts, as text.
    fn document(&self, page: &Path, hash: &str, flags: &[&str]) -> String {
        let profile = tempfile::tempdir_in(self.dir).expect("a profile");
        let mut command = Command::new(&self.program);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
            ])
            .args(["--disable-component-update", "--disable-sync", "--no-first-run"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(flags)
            .args(["--virtual-time-budget=5000", "--dump-dom"])
            .arg(format!("file://{}#{hash}", page.display()))
            .stdin(Stdio::null());
        let output = command.output().expect("the browser starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

/// The page with one more script at its end.
fn with_script(dir: &Path, page: &str, script: &str) -> PathBuf {
    let path = dir.join("scripted.html");
    let script = format!("<script>{script}</script></body>");
    fs::write(&path, page.replacen("</body>", &script, 1)).expect("room");
    path
}

/// Numbers of the tensors in the rows of the table, from top to bottom.
fn table_rows(document: &str) -> Vec<usize> {
    let table = between(document, "<table id=\"table\"", "</table>");
    let rows = table.split("<tr data-tensor=\"").skip(1);
    rows.map(|row| row.split('"').next().and_then(|n| n.parse().ok()).expect("a number")).collect()
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let start = text.find(from).unwrap_or_else(|| panic!("no {from} in the page"));
    let rest = &text[start..];
    &rest[..rest.find(to).unwrap_or_else(|| panic!("no {to} after {from}"))]
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(program) = chromium() else { return };
    let dir = folder();
    let text = text_file(dir.path());
    let path = dir.path().join("page.html");
    let out = path.to_str().expect("UTF-8");
    let models = ["fp16", "unit-fp8", "--steps", "1", "--json", "--out", out];
    let report = report(&numerics(dir.path(), &text, &models));
    let page = fs::read_to_string(&path).expect("the page");
    let browser = Browser { program, dir: dir.path() };

    // A view that the address names: every row, by rising sigma, of the second model.
    let hash = "model=1&at=1&sort=sigma&dir=asc&rows=9999&tensor=7&theme=dark";
    let document = browser.document(&path, hash, &[]);
    let tensors = &report.models[1].tensors;
    let rows = table_rows(&document);
    assert_eq!(rows.len(), tensors.len());
    let sigma = |&row: &usize| tensors[row].measured[1].sigma;
    assert!(rows.is_sorted_by_key(sigma), "{:?}", rows.iter().map(sigma).collect::<Vec<_>>());
    assert!(document.contains("aria-sort=\"ascending\""));
    let detail = between(&document, "id=\"detail\"", "</section>");
    assert!(detail.contains(&tensors[7].name.replace('>', "&gt;")), "{detail}");
    // A bar for every exponent that occurs, a strip for every format.
    let bars = tensors[7].measured[1].exponents.iter().filter(|&&share| share > 0.0).count();
    assert_eq!(detail.matches("class=\"bar").count(), bars);
    assert_eq!(detail.matches("class=\"strip").count(), report.formats.len());

    // The heat map shows every tensor of both models but those of the folded group.
    let heat = between(&document, "id=\"heat\"", "id=\"detail\"");
    let shown = |model: usize| {
        report.models[model].tensors.iter().filter(|t| format!("{:?}", t.pass) != "Update").count()
    };
    for model in 0..2 {
        let cells = heat.matches(&format!("data-model=\"{model}\"")).count();
        assert_eq!(cells, shown(model), "model {model}");
    }
    // Every tensor that is not zero is a dot.
    let dots = tensors.iter().filter(|t| t.measured[0].rms > 0.0).count();
    assert_eq!(
        between(&document, "id=\"scatter\"", "</section>").matches("class=\"dot").count(),
        dots
    );

    // A click sorts, a second one the other way; the filter filters; a cell chooses.
    let script = "document.querySelector('#table th[data-key=\"snr\"] button').click();\
                  document.querySelector('#table th[data-key=\"snr\"] button').click();\
                  set({ rows: 9999, filter: 'weight-grad mlp', pass: 'backward' });\
                  document.querySelector('.cell[data-model=\"0\"][data-tensor=\"3\"]').click();";
    let document = browser.document(&with_script(dir.path(), &page, script), "at=0", &[]);
    let tensors = &report.models[0].tensors;
    let rows = table_rows(&document);
    let expected = tensors
        .iter()
        .filter(|t| t.name.contains("mlp") && t.role == onesigma::graph::Role::WeightGrad)
        .count();
    assert_eq!(rows.len(), expected);
    let db = |&row: &usize| -tensors[row].measured[0].own.snr_db.unwrap_or(1e9);
    assert!(rows.is_sorted_by_key(db), "{:?}", rows.iter().map(db).collect::<Vec<_>>());
    assert!(between(&document, "id=\"detail\"", "</section>").contains(&tensors[3].name));

    // Themes: the system's, and either by choice. Blink counts dark as 0.
    let script =
        "document.body.dataset.background = getComputedStyle(document.body).backgroundColor;";
    let scripted = with_script(dir.path(), &page, script);
    let mut backgrounds = HashMap::new();
    for (theme, setting) in [("auto", 0), ("auto", 1), ("light", 0), ("dark", 1)] {
        let flag = format!("--blink-settings=preferredColorScheme={setting}");
        let document = browser.document(&scripted, &format!("theme={theme}"), &[&flag]);
        let background = between(&document, "data-background=\"", ">").to_owned();
        backgrounds.insert((theme, setting), background);
    }
    let [dark, light] = [&backgrounds[&("auto", 0)], &backgrounds[&("auto", 1)]];
    assert_ne!(dark, light);
    assert_eq!((&backgrounds[&("light", 0)], &backgrounds[&("dark", 1)]), (light, dark));
}
