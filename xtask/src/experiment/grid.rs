//! From an experiment to its points, and from points to runs.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::config::{Axis, Choice, Experiment, Grid, Labels, Mode};
use super::settings::{digest, overlay, set_path};

/// One point of an experiment: everything but the seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its label on each axis, and its tags.
    pub labels: Labels,
    /// Its settings.
    pub settings: Table,
}

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The search for a setting.
    Tune,
    /// The results.
    Main,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Name of its folder: labels, seed, and a digest of all settings.
    pub id: String,
    /// Labels of its point.
    pub labels: Labels,
    /// Its seed.
    pub seed: u64,
    /// All of its settings; texts by their path below the folder of the texts.
    pub settings: Table,
}

/// Runs that others start from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Their experiment.
    pub experiment: String,
    /// The runs.
    pub runs: Vec<Run>,
}

impl Source {
    /// The run with all of its labels among `labels`, and with the seed, or else the first seed.
    fn of(&self, labels: &Labels, seed: u64) -> Result<&Run> {
        let same = |source: &&Run| {
            source.labels.iter().all(|(name, label)| labels.get(name) == Some(label))
        };
        let nearest = |source: &&Run| (source.seed != seed, source.seed);
        let found = self.runs.iter().filter(same).min_by_key(nearest);
        found.with_context(|| format!("`{}` has no run for {labels:?}", self.experiment))
    }
}

impl Run {
    /// A run of a point.
    pub fn new(
        columns: &[&str],
        point: &Point,
        seed: u64,
        stage: Stage,
        source: Option<&Source>,
    ) -> Result<Self> {
        let mut settings = point.settings.clone();
        settings.insert("seed".into(), Value::Integer(seed as i64));
        if let Some(source) = source {
            let place = format!("{}/{}", source.experiment, source.of(&point.labels, seed)?.id);
            settings.insert("init_from".into(), Value::String(place));
        }
        let mut id = String::new();
        if stage == Stage::Tune {
            id.push_str("tune-");
        }
        for label in columns.iter().filter_map(|&column| point.labels.get(column)) {
            let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
            id.extend(label.chars().map(plain));
            id.push('-');
        }
        // Map order, so that equal settings have equal digests.
        let digest = digest(&serde_json::to_string(&settings).unwrap_or_default());
        id.push_str(&format!("s{seed}-{digest:016x}"));
        Ok(Self { id, labels: point.labels.clone(), seed, settings })
    }
}

/// The runs of points, all points of one seed before the next.
pub fn runs(
    experiment: &Experiment,
    mode: Mode,
    points: &[Point],
    source: Option<&Source>,
) -> Result<Vec<Run>> {
    let columns = experiment.columns();
    (0..experiment.size(mode).seeds)
        .flat_map(|seed| points.iter().map(move |point| (seed, point)))
        .map(|(seed, point)| Run::new(&columns, point, seed, Stage::Main, source))
        .collect()
}

impl Experiment {
    /// The points of a size, in the order of the table.
    pub fn points(&self, mode: Mode) -> Result<Vec<Point>> {
        let size = self.size(mode);
        let mut base = self.settings.clone();
        overlay(&mut base, &size.settings);
        for (name, labels) in &size.only {
            self.check_only(name, labels).with_context(|| format!("{}.only", mode.name()))?;
        }
        let mut points = Vec::new();
        for grid in &self.grids {
            points.extend(self.product(grid, &base, mode)?);
        }
        let mut seen = BTreeSet::new();
        for point in &points {
            ensure!(seen.insert(&point.labels), "two points have the labels {:?}", point.labels);
        }
        ensure!(!points.is_empty(), "the {} size has no points", mode.name());
        Ok(points)
    }

    fn product(&self, grid: &Grid, base: &Table, mode: Mode) -> Result<Vec<Point>> {
        let mut settings = base.clone();
        overlay(&mut settings, &grid.settings);
        let mut points = vec![Point { labels: Labels::new(), settings }];
        let only = &self.size(mode).only;
        for axis in &grid.axes {
            let mut next = Vec::new();
            for point in &points {
                for choice in &axis.values {
                    let (label, tags, set) = resolve(axis, choice)?;
                    if only.get(&axis.name).is_some_and(|kept| !kept.contains(&label)) {
                        continue;
                    }
                    let mut point = point.clone();
                    point.labels.extend(tags);
                    point.labels.insert(axis.name.clone(), label);
                    overlay(&mut point.settings, &set);
                    next.push(point);
                }
            }
            points = next;
        }
        Ok(points)
    }

    fn check_only(&self, name: &str, labels: &[String]) -> Result<()> {
        let axes = self.grids.iter().flat_map(|grid| &grid.axes).filter(|axis| axis.name == name);
        let mut known = Vec::new();
        for axis in axes {
            for choice in &axis.values {
                known.push(resolve(axis, choice)?.0);
            }
        }
        ensure!(!known.is_empty(), "there is no axis `{name}`");
        for label in labels {
            let list = known.join(", ");
            ensure!(known.contains(label), "`{name}` is never `{label}`, only: {list}");
        }
        Ok(())
    }
}

/// Label, tags and settings of a choice.
fn resolve(axis: &Axis, choice: &Choice) -> Result<(String, Labels, Table)> {
    match choice {
        Choice::Named { label, tags, set } => Ok((label.clone(), tags.clone(), set.clone())),
        Choice::Plain(Value::Table(table)) => {
            bail!(
                "axis `{}`: {{ {table} }} is no choice: expected `label`, `tags`, `set`",
                axis.name
            )
        }
        Choice::Plain(value) => {
            let Some(key) = &axis.key else {
                bail!("axis `{}` has the plain value {value} and no `key` for it", axis.name);
            };
            let label = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let mut set = Table::new();
            let is_set = set_path(&mut set, key, value.clone());
            ensure!(is_set, "axis `{}`: `{key}` leads through no tables", axis.name);
            Ok((label, Labels::new(), set))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        title = "T"
        question = "?"
        metric = "bits-per-byte"
        files = []
        settings = { steps = 10, model = { hidden = 8, layers = 1 } }
        figure = { kind = "dots", colour = "recipe", rows = ["recipe"] }
        quick = { seeds = 2, settings = { steps = 5 }, only = { hidden = ["16"] } }
        full = { seeds = 3 }
        [[grids]]
        axes = [
            { name = "recipe", values = [
                { label = "f32", tags = { scaling = "regular" }, set = { recipe = "f32" } },
                { label = "unit", tags = { scaling = "unit" }, set = { recipe = "unit-f32" } },
            ] },
            { name = "hidden", key = "model.hidden", values = [16, 32] },
        ]
        [[grids]]
        settings = { recipe = "fp16" }
        axes = [{ name = "recipe", values = [{ label = "fp16" }] }]
        [[claims]]
        text = "equal"
        kind = "equal"
        left = { scaling = "unit" }
        right = { recipe = ["f32", "fp16"] }
    "#;

    fn experiment(change: (&str, &str)) -> Result<Experiment> {
        Experiment::from_toml("test", &TEXT.replace(change.0, change.1))
    }

    #[test]
    fn grids_expand_into_points_and_points_into_runs() -> Result<()> {
        let experiment = experiment(("", ""))?;
        let full = experiment.points(Mode::Full)?;
        assert_eq!(full.len(), 5);
        assert_eq!(full[1].labels["hidden"], "32");
        assert_eq!(full[1].labels["scaling"], "regular");
        let model = full[1].settings["model"].as_table().expect("a table");
        assert_eq!((&model["hidden"], &model["layers"]), (&32.into(), &1.into()));
        assert_eq!(full[4].settings["recipe"], "fp16".into());
        let quick = experiment.points(Mode::Quick)?;
        assert_eq!(quick.len(), 3);
        assert_eq!(quick[0].settings["steps"], 5.into());

        let runs = runs(&experiment, Mode::Full, &full, None)?;
        assert_eq!(runs.len(), 15);
        assert!(runs[5].id.starts_with("f32-16-s1-"), "{}", runs[5].id);
        let distinct: BTreeSet<_> = runs.iter().map(|run| &run.id).collect();
        assert_eq!(distinct.len(), 15);
        Ok(())
    }

    #[test]
    fn a_run_is_known_by_its_settings() -> Result<()> {
        let experiment = experiment(("", ""))?;
        let point = &experiment.points(Mode::Full)?[0];
        let run = |point: &Point, source: Option<&Source>| {
            Run::new(&["recipe"], point, 7, Stage::Main, source)
        };
        let mut other = point.clone();
        assert_eq!(run(point, None)?.id, run(&other, None)?.id);
        assert!(set_path(&mut other.settings, "model.hidden", 17.into()));
        assert_ne!(run(point, None)?.id, run(&other, None)?.id);

        // Seed 7 starts from the source's seed 7, whose labels are among its own.
        let sources = runs(&experiment, Mode::Full, std::slice::from_ref(point), None)?;
        let mut source = Source { experiment: "before".into(), runs: sources };
        let begun = run(point, Some(&source))?;
        let init = |run: &Run| run.settings["init_from"].as_str().map(str::to_owned);
        assert_eq!(init(&begun), Some(format!("before/{}", source.runs[0].id)));
        source.runs[2].seed = 7;
        assert_eq!(
            init(&run(point, Some(&source))?),
            Some(format!("before/{}", source.runs[2].id))
        );
        source.runs.iter_mut().for_each(|run| {
            run.labels.insert("recipe".into(), "other".into());
        });
        assert!(run(point, Some(&source)).is_err());
        Ok(())
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let wrong = |change: (&str, &str), words: &[&str]| {
            let error = format!("{:#}", experiment(change).expect_err(change.1));
            for word in words.iter().chain(&["experiments/test.toml"]) {
                assert!(error.contains(word), "no `{word}` in: {error}");
            }
        };
        wrong(("seeds = 2", "sedes = 2"), &["sedes"]);
        wrong(("only = { hidden = [\"16\"] }", "only = { width = [] }"), &["`width`"]);
        wrong(("[\"16\"]", "[\"17\"]"), &["`hidden` is never `17`", "16, 32"]);
        wrong(
            ("{ scaling = \"unit\" }\n        right", "{ scale = \"unit\" }\n        right"),
            &["claim `equal`", "`scale`", "scaling"],
        );
        wrong(("key = \"model.hidden\", ", ""), &["`hidden`", "no `key`"]);
        wrong(("{ label = \"fp16\" }", "{ label = \"fp16\" }, { label = \"fp16\" }"), &["two"]);
    }
}
