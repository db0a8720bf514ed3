//! The table of a sweep: for people, as CSV, as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use toml::Value;

use super::runner::Outcome;
use super::spec::{Metric, Run, Spec, plain};

/// A point with all of its seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its values.
    pub point: BTreeMap<String, Value>,
    /// Values of the metric, by seed.
    pub values: Vec<f64>,
    /// Runs that diverged.
    pub diverged: usize,
    /// Runs that failed.
    pub failed: usize,
    /// Runs that are not finished.
    pub open: usize,
}

impl Row {
    /// Mean of the values, if every run has one: a mean without those that diverged would flatter.
    pub fn mean(&self) -> Option<f64> {
        let whole = self.diverged + self.failed + self.open == 0 && !self.values.is_empty();
        whole.then(|| self.values.iter().sum::<f64>() / self.values.len() as f64)
    }

    /// Standard deviation of the values, from two on.
    pub fn deviation(&self) -> Option<f64> {
        let mean = self.mean().filter(|_| self.values.len() > 1)?;
        let squares: f64 = self.values.iter().map(|value| (value - mean).powi(2)).sum();
        Some((squares / (self.values.len() - 1) as f64).sqrt())
    }

    fn state(&self) -> String {
        let counts = [(self.diverged, "diverged"), (self.failed, "failed"), (self.open, "open")];
        let said: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        said.join(", ")
    }
}

/// The points of a sweep in their order.
pub fn rows(runs: &[Run], outcomes: &[Outcome]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (run, outcome) in runs.iter().zip(outcomes) {
        let at = rows.iter().position(|row| row.point == run.point).unwrap_or(rows.len());
        if at == rows.len() {
            let point = run.point.clone();
            rows.push(Row { point, values: Vec::new(), diverged: 0, failed: 0, open: 0 });
        }
        match outcome {
            Outcome::Done { value, .. } => rows[at].values.push(*value),
            Outcome::Diverged => rows[at].diverged += 1,
            Outcome::Failed { .. } => rows[at].failed += 1,
            Outcome::Open => rows[at].open += 1,
        }
    }
    rows
}

/// The best of rows that have a mean.
pub fn best(rows: &[Row], metric: Metric) -> Option<usize> {
    let means = rows.iter().enumerate().filter_map(|(index, row)| Some((index, row.mean()?)));
    let sign = if metric.is_higher_better() { -1.0 } else { 1.0 };
    means.min_by(|a, b| (sign * a.1).total_cmp(&(sign * b.1))).map(|(index, _)| index)
}

/// The table as text, the best row marked.
pub fn table(spec: &Spec, rows: &[Row]) -> String {
    let keys = spec.keys();
    let best = best(rows, spec.metric);
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut head: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    head.extend([spec.metric.name().to_owned(), "deviation".into(), "runs".into(), String::new()]);
    lines.push(head);
    for (index, row) in rows.iter().enumerate() {
        let mut line: Vec<String> =
            keys.iter().map(|key| row.point.get(*key).map_or(String::new(), plain)).collect();
        line.push(row.mean().map_or("-".into(), |mean| format!("{mean:.4}")));
        line.push(row.deviation().map_or("-".into(), |deviation| format!("{deviation:.4}")));
        line.push(row.values.len().to_string());
        let mark = if best == Some(index) { "best".to_owned() } else { row.state() };
        line.push(mark);
        lines.push(line);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..lines[0].len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            // Settings to the left, figures to the right.
            if column < keys.len() { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

/// Every run as a line of CSV (RFC 4180).
pub fn csv(spec: &Spec, runs: &[Run], outcomes: &[Outcome]) -> String {
    let keys = spec.keys();
    let mut head: Vec<String> = keys.iter().map(|key| field(key)).collect();
    head.extend(["seed", "state", "value", "steps", "tokens_per_s", "run"].map(str::to_owned));
    let mut text = head.join(",") + "\r\n";
    for (run, outcome) in runs.iter().zip(outcomes) {
        let mut line: Vec<String> = keys
            .iter()
            .map(|key| run.point.get(*key).map_or(String::new(), |value| field(&plain(value))))
            .collect();
        line.push(run.seed.to_string());
        let none = String::new;
        let [state, value, steps, speed] = match outcome {
            Outcome::Done { value, steps, tokens_per_s } => [
                "done".to_owned(),
                value.to_string(),
                steps.to_string(),
                format!("{tokens_per_s:.1}"),
            ],
            Outcome::Diverged => ["diverged".to_owned(), none(), none(), none()],
            Outcome::Failed { .. } => ["failed".to_owned(), none(), none(), none()],
            Outcome::Open => ["open".to_owned(), none(), none(), none()],
        };
        line.extend([state, value, steps, speed, run.id.clone()]);
        text += &(line.join(",") + "\r\n");
    }
    text
}

fn field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// Specification, runs and rows as JSON.
///
/// # Errors
/// None for what a sweep holds.
pub fn json(spec: &Spec, runs: &[Run], outcomes: &[Outcome]) -> serde_json::Result<String> {
    let list: Vec<_> = runs
        .iter()
        .zip(outcomes)
        .map(|(run, outcome)| {
            serde_json::json!({
                "id": run.id, "point": run.point, "seed": run.seed, "outcome": outcome,
            })
        })
        .collect();
    let rows = rows(runs, outcomes);
    let best = best(&rows, spec.metric).map(|index| &rows[index]);
    let rows: Vec<_> = rows
        .iter()
        .map(
            |row| serde_json::json!({"row": row, "mean": row.mean(), "deviation": row.deviation()}),
        )
        .collect();
    serde_json::to_string_pretty(
        &serde_json::json!({"sweep": spec, "runs": list, "rows": rows, "best": best}),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use onesigma_train::run_file;
    use toml::Table;

    use super::*;

    fn example() -> (Spec, Vec<Run>, Vec<Outcome>) {
        let text = "seeds = 2\n[grid]\nlr = [0.1, 0.2, 0.3]\nrecipe = ['f32']\n";
        let spec: Spec = run_file::from_toml(text, Path::new("s.toml")).expect("a sweep");
        let runs = spec.runs(&Table::new(), Path::new("s.toml")).expect("runs");
        let done = |value| Outcome::Done { value, steps: 5, tokens_per_s: 10.0 };
        // Seeds are the outer loop: 0.1, 0.2, 0.3, 0.1, 0.2, 0.3.
        let outcomes =
            vec![done(3.0), done(1.0), done(2.5), done(3.2), Outcome::Diverged, done(2.7)];
        (spec, runs, outcomes)
    }

    #[test]
    fn seeds_are_averaged_and_a_diverged_point_is_never_the_best() {
        let (spec, runs, outcomes) = example();
        let rows = rows(&runs, &outcomes);
        assert_eq!(rows.len(), 3);
        assert!((rows[0].mean().expect("two values") - 3.1).abs() < 1e-12);
        assert!((rows[0].deviation().expect("two values") - 0.02f64.sqrt()).abs() < 1e-9);
        assert_eq!(rows[1].mean(), None);
        assert_eq!(best(&rows, spec.metric), Some(2));
        assert_eq!(best(&rows, Metric::TokensPerS), Some(0));
        let table = table(&spec, &rows);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("lr   recipe  validation loss"), "{table}");
        assert!(lines[2].ends_with("1 diverged") && lines[3].ends_with("best"), "{table}");
        let csv = csv(&spec, &runs, &outcomes);
        assert_eq!(csv.lines().count(), 7);
        assert!(csv.starts_with("lr,recipe,seed,state,value,steps,tokens_per_s,run\r\n"));
        assert!(csv.contains("0.2,f32,1,diverged,,,,"), "{csv}");
        let json: serde_json::Value =
            serde_json::from_str(&json(&spec, &runs, &outcomes).expect("JSON")).expect("JSON");
        assert_eq!(json["best"]["point"]["lr"], 0.3);
    }

    #[test]
    fn csv_quotes_what_it_has_to() {
        assert_eq!(field("a,b"), "\"a,b\"");
        assert_eq!(field("say \"x\""), "\"say \"\"x\"\"\"");
        assert_eq!(field("plain"), "plain");
    }
}
