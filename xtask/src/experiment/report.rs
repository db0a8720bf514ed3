//! Table, figure and verdicts of an experiment, from the results of its runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use super::claims::{Finding, Verdict};
use super::config::{Experiment, Labels, Mode};
use super::figure;
use super::grid::Point;
use super::numerics;
use super::runner::{RunResult, write_whole};
use super::statistics::Spread;
use super::tune::Tuned;

/// One point's results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its labels.
    pub labels: Labels,
    /// The metric over its seeds.
    pub spread: Spread,
    /// Its values by seed; none where a run has diverged.
    pub values: BTreeMap<u64, Option<f64>>,
    /// The learning rate, if the experiment sets one.
    pub rate: Option<f64>,
    /// Mean share of gradient elements flushed to zero, over the seeds that have not diverged.
    pub flushed_gradients: Option<f64>,
}

impl Row {
    /// A row with labels and spread alone.
    #[cfg(test)]
    pub fn of(labels: Labels, spread: Spread) -> Self {
        Self { labels, spread, values: BTreeMap::new(), rate: None, flushed_gradients: None }
    }

    fn new(point: &Point, results: &[RunResult]) -> Self {
        let own: Vec<_> = results.iter().filter(|run| run.labels == point.labels).collect();
        let values: Vec<_> = own.iter().map(|run| run.value).collect();
        let flushed: Vec<_> = own
            .iter()
            .filter(|run| run.value.is_some())
            .map(|run| run.flushed_gradients)
            .filter(Option::is_some)
            .collect();
        Self {
            labels: point.labels.clone(),
            spread: Spread::of(&values),
            values: own.iter().map(|run| (run.seed, run.value)).collect(),
            rate: own.first().and_then(|run| run.rate),
            flushed_gradients: Spread::of(&flushed).mean,
        }
    }
}

/// Everything that is said about an experiment.
#[derive(Debug)]
pub struct Report<'a> {
    experiment: &'a Experiment,
    mode: Mode,
    tuned: Vec<Tuned>,
    rows: Vec<Row>,
    verdicts: Vec<Verdict>,
    results: Vec<RunResult>,
    planned: usize,
}

impl<'a> Report<'a> {
    /// Gathers the results of the points; `planned` runs would be all of them.
    pub fn new(
        experiment: &'a Experiment,
        mode: Mode,
        points: &[Point],
        tuned: Vec<Tuned>,
        results: Vec<RunResult>,
        planned: usize,
    ) -> Self {
        let rows: Vec<_> = points.iter().map(|point| Row::new(point, &results)).collect();
        let verdicts = experiment.claims.iter().map(|claim| Verdict::of(claim, &rows)).collect();
        Self { experiment, mode, tuned, rows, verdicts, results, planned }
    }

    /// Writes `report.{json,md,svg}` into `folder`, and once every run is there also
    /// `docs/results/experiments/NAME.{json,md,svg}` below `root`, except over the results of a
    /// larger size.
    pub fn write(&self, root: &Path, folder: &Path) -> Result<()> {
        println!("\n{}", self.table());
        for verdict in &self.verdicts {
            println!("{}: {}", verdict.summary(), verdict.text);
        }
        if self.results.is_empty() {
            println!("no finished runs");
            return Ok(());
        }
        fs::create_dir_all(folder).with_context(|| format!("no {}", folder.display()))?;
        self.write_as(&folder.join("report"), "report.svg")?;
        println!("report: {}", folder.join("report.md").display());
        if self.results.len() < self.planned || self.planned == 0 {
            println!("{} of {} runs: docs/ is left as it is", self.results.len(), self.planned);
            return Ok(());
        }
        let name = &self.experiment.name;
        let docs = root.join("docs/results/experiments");
        if self.mode == Mode::Quick && is_full(&docs.join(format!("{name}.json"))) {
            println!("docs/results/experiments/{name}.json is of the full size and stays");
            return Ok(());
        }
        let images = root.join("docs/src/images/experiments");
        for folder in [&docs, &images] {
            fs::create_dir_all(folder).with_context(|| format!("no {}", folder.display()))?;
        }
        self.write_as(&docs.join(name), &format!("{name}.svg"))?;
        let picture = format!("{name}.svg");
        fs::copy(docs.join(&picture), images.join(&picture)).context("cannot copy the figure")?;
        println!("wrote docs/results/experiments/{name}.{{json,md,svg}}");
        Ok(())
    }

    fn write_as(&self, stem: &Path, picture: &str) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.json())? + "\n";
        write_whole(&stem.with_extension("json"), &json)?;
        write_whole(&stem.with_extension("md"), &self.page(picture))?;
        let picture = stem.with_extension("svg");
        figure::draw(&picture, self.experiment, &self.rows, &self.results)
    }

    fn json(&self) -> serde_json::Value {
        let size = self.experiment.size(self.mode);
        serde_json::json!({
            "experiment": self.experiment.name,
            "made_by": self.made_by(),
            "mode": self.mode,
            "seeds": size.seeds,
            "metric": self.experiment.metric.label(),
            "machines": self.distinct(|run| &run.machine),
            "commits": self.distinct(|run| &run.commit),
            "search": self.tuned,
            "rows": self.rows,
            "claims": self.verdicts,
            "exceptions": numerics::exceptions(self.experiment, &self.results),
            "runs": self.results.iter().map(RunResult::brief).collect::<Vec<_>>(),
        })
    }

    fn made_by(&self) -> String {
        let quick = if self.mode == Mode::Quick { " --quick" } else { "" };
        format!("cargo xtask experiment {}{quick}", self.experiment.name)
    }

    /// What the runs were made with, or on.
    fn distinct(&self, pick: fn(&RunResult) -> &str) -> Vec<&str> {
        let mut found: Vec<_> = self.results.iter().map(pick).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The page: what was run, table, figure, verdicts, search.
    fn page(&self, picture: &str) -> String {
        let experiment = self.experiment;
        let seconds: f64 = self.results.iter().map(|run| run.seconds).sum();
        let range = |pick: fn(&RunResult) -> u64| {
            let low = self.results.iter().map(pick).min().unwrap_or_default();
            let high = self.results.iter().map(pick).max().unwrap_or_default();
            if low == high { low.to_string() } else { format!("{low} to {high}") }
        };
        let mut text = format!("# {}\n\n{}\n\n", experiment.title, experiment.question.trim());
        let _ = write!(
            text,
            "<!-- ANCHOR: results -->\nMade by `{made_by}` at commit {commits} on {machine}: \
             {seeds} seeds, {steps} steps, {parameters} parameters; {runs} runs took {minutes:.0} \
             core-minutes beside other work. Cells are {metric}, mean ± sample standard deviation \
             over the seeds; lower is better. *Diverged*: not finite, or worse than a uniform \
             guess.\n\n{table}\n",
            made_by = self.made_by(),
            commits = self.distinct(|run| &run.commit).join(", "),
            machine = self.distinct(|run| &run.machine).join(" and "),
            seeds = experiment.size(self.mode).seeds,
            steps = range(|run| run.steps),
            parameters = range(|run| run.parameters),
            runs = self.results.len(),
            minutes = seconds / 60.0,
            metric = experiment.metric.label(),
            table = self.table(),
        );
        if !self.verdicts.is_empty() {
            text.push_str("| claim | result |\n| --- | --- |\n");
            for verdict in &self.verdicts {
                let _ = writeln!(text, "| {} | **{}** |", verdict.text, verdict.summary());
            }
            text.push('\n');
            for verdict in &self.verdicts {
                let _ = writeln!(text, "- {}", verdict.text);
                for Finding { case, holds, detail } in &verdict.findings {
                    let mark = match holds {
                        Some(true) => "yes",
                        Some(false) => "no",
                        None => "—",
                    };
                    let case = if case.is_empty() { String::new() } else { format!("{case}: ") };
                    let _ = writeln!(text, "  - {case}**{mark}**; {detail}");
                }
            }
            text.push('\n');
        }
        let exceptions = numerics::exceptions(self.experiment, &self.results);
        if !exceptions.is_empty() {
            let _ = writeln!(text, "{}", numerics::table(&exceptions));
        }
        if !self.tuned.is_empty() {
            let _ = writeln!(text, "{}", self.search());
        }
        let _ =
            write!(text, "<!-- ANCHOR_END: results -->\n\n![{}]({picture})\n", experiment.title);
        text
    }

    /// A Markdown table, one row a point.
    fn table(&self) -> String {
        let columns = self.experiment.columns();
        let rates: std::collections::BTreeSet<_> =
            self.rows.iter().filter_map(|row| row.rate.map(f64::to_bits)).collect();
        let has_rate = rates.len() > 1 && !columns.contains(&"lr");
        let digits = self.experiment.metric.digits();
        let has_flushed = self.rows.iter().any(|row| row.flushed_gradients.is_some());
        let mut rows = Vec::new();
        let mut head: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        head.extend(has_rate.then(|| "lr".to_owned()));
        head.push(self.experiment.metric.label().to_owned());
        head.push("95 % interval".to_owned());
        head.extend(has_flushed.then(|| "gradients flushed".to_owned()));
        rows.push(head);
        for row in &self.rows {
            let none = || "—".to_owned();
            let mut cells: Vec<String> = columns
                .iter()
                .map(|&name| row.labels.get(name).cloned().unwrap_or_else(none))
                .collect();
            if has_rate {
                cells.push(row.rate.map_or_else(none, number));
            }
            cells.push(row.spread.text(digits));
            cells.push(row.spread.interval.map_or_else(none, |half| format!("± {half:.digits$}")));
            if has_flushed {
                let percent = |share: f64| format!("{:.2} %", 100.0 * share);
                cells.push(row.flushed_gradients.map_or_else(none, percent));
            }
            rows.push(cells);
        }
        align(&rows)
    }

    /// What the search tried, one row a group.
    fn search(&self) -> String {
        let Some(tune) = &self.experiment.tune else { return String::new() };
        let mut text = format!(
            "Search for `{}` (factor {}, seeds {:?}, on {}); the best is bold:\n\n",
            tune.key,
            tune.factor,
            tune.seeds,
            tune.settings.get("valid").and_then(toml::Value::as_str).unwrap_or("the same text"),
        );
        text.push_str("| points | tried |\n| --- | --- |\n");
        for found in &self.tuned {
            let labels: Vec<_> = tune.by.iter().filter_map(|name| found.labels.get(name)).collect();
            let labels: Vec<_> = labels.into_iter().map(String::as_str).collect();
            let tried: Vec<_> = found
                .tried
                .iter()
                .map(|one| {
                    let metric = one.metric.map_or("diverged".into(), |m| format!("{m:.4}"));
                    let cell = format!("{}: {metric}", number(one.value));
                    if one.value == found.best { format!("**{cell}**") } else { cell }
                })
                .collect();
            let _ = writeln!(text, "| {} | {} |", labels.join(", "), tried.join("; "));
        }
        text
    }
}

/// A setting's value without noise in its last digits.
pub fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    match value.abs() {
        size if size == 0.0 || (1e-2..1e5).contains(&size) => {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.2e}"),
    }
}

/// Whether a result in `docs/` is of the full size.
fn is_full(path: &Path) -> bool {
    let text = fs::read(path).ok();
    let json = text.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    json.is_some_and(|json| json["mode"] == "full")
}

/// Short hash of the workspace's commit, with `+` where files differ from it.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        let output = command.current_dir(crate::process::root()).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".into() };
    // Only what the runs depend on; reports and pages do not count.
    let changed = git(&["status", "--porcelain", "--", "crates", "Cargo.lock"]);
    if changed.is_some_and(|text| !text.is_empty()) { hash + "+" } else { hash }
}

fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            for width in &widths {
                let _ = write!(text, "| {} ", "-".repeat(*width));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        title = "Two recipes"
        question = "Which?"
        metric = "bits-per-byte"
        files = []
        settings = { steps = 10 }
        grids = [{ axes = [{ name = "recipe", key = "recipe", values = ["f32", "fp16"] }] }]
        figure = { kind = "dots", colour = "recipe", rows = ["recipe"] }
        quick = { seeds = 2 }
        full = { seeds = 2 }
        [[claims]]
        text = "fp16 lags"
        kind = "worse"
        left = { recipe = "fp16" }
        right = { recipe = "f32" }
    "#;

    fn result(point: &Point, seed: u64, value: Option<f64>) -> RunResult {
        RunResult {
            id: format!("{seed}"),
            labels: point.labels.clone(),
            seed,
            value,
            training_loss: value,
            flushed_gradients: Some(0.25),
            rate: None,
            steps: 10,
            parameters: 100,
            tokens_per_s: 1.0,
            seconds: 30.0,
            commit: "abc".into(),
            machine: "a machine".into(),
            corpus_sha256: "00".into(),
            numerics: None,
        }
    }

    #[test]
    fn a_complete_report_lands_in_docs_and_an_incomplete_one_does_not() {
        let experiment = Experiment::from_toml("two", TEXT).expect("an experiment");
        let points = experiment.points(Mode::Quick).expect("its points");
        let results: Vec<_> =
            [(0, 0, Some(2.0)), (1, 0, None), (0, 1, Some(2.5)), (1, 1, Some(3.0))]
                .map(|(point, seed, value)| result(&points[point], seed, value))
                .into();
        let root = std::env::temp_dir().join(format!("onesigma-report-{}", std::process::id()));
        let folder = root.join("out");
        let docs = root.join("docs/results/experiments");
        let write = |mode, results: Vec<RunResult>| {
            Report::new(&experiment, mode, &points, Vec::new(), results, 4).write(&root, &folder)
        };
        write(Mode::Quick, results[..3].to_vec()).expect("a report");
        assert!(folder.join("report.md").exists() && !docs.exists());

        write(Mode::Quick, results.clone()).expect("a report");
        let page = fs::read_to_string(docs.join("two.md")).expect("the page");
        for words in [
            "2.2500 ± 0.3536",
            "3.0000 (1 of 2 diverged)",
            "25.00 %",
            "| fp16 lags | **holds** |",
            "2 core-minutes",
            "![Two recipes](two.svg)",
        ] {
            assert!(page.contains(words), "no `{words}` in:\n{page}");
        }
        assert!(root.join("docs/src/images/experiments/two.svg").exists());

        // A full result is not replaced by a quick one.
        write(Mode::Full, results.clone()).expect("a report");
        write(Mode::Quick, results).expect("a report");
        assert!(is_full(&docs.join("two.json")));
        fs::remove_dir_all(root).expect("its own folder");
    }

    #[test]
    fn numbers_have_no_noise() {
        let texts = [0.5, 0.003, 1e-4, 65536.0, 2.0, 0.0].map(number);
        assert_eq!(texts, ["0.5", "3.00e-3", "1.00e-4", "65536", "2", "0"]);
    }
}
