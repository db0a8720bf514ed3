//! `experiments/NAME.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::numerics::KINDS;

/// How large an experiment is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Under ten minutes on two cores.
    Quick,
    /// Up to two hours on two cores.
    Full,
}

impl Mode {
    /// Its name in folders and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }
}

/// What is measured at the end of a run; lower is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Loss on the validation text in bits per byte.
    BitsPerByte,
    /// Loss on the validation text in nats per predicted token.
    NatsPerToken,
    /// Share of the validation examples that are classified wrongly, in percent.
    ErrorRate,
    /// Share of the tensors whose standard deviation is not within a factor of two of 1, in
    /// percent.
    OutsideRate,
}

impl Metric {
    /// What it is called in tables and beside axes.
    pub fn label(self) -> &'static str {
        match self {
            Self::BitsPerByte => "bits per byte",
            Self::NatsPerToken => "nats per masked token",
            Self::ErrorRate => "error rate in %",
            Self::OutsideRate => "tensors beyond a factor of 2 of σ = 1, in %",
        }
    }

    /// From a loss in nats per token and the share of right answers; none if the run has diverged.
    pub fn of(self, loss: Option<f64>, accuracy: Option<f64>) -> Option<f64> {
        let value = match self {
            Self::BitsPerByte => loss? / std::f64::consts::LN_2,
            Self::NatsPerToken => loss?,
            Self::ErrorRate => 100.0 * (1.0 - accuracy.filter(|_| loss.is_some())?),
            // Not of a training run.
            Self::OutsideRate => return None,
        };
        Some(value).filter(|value| *value <= self.of_a_guess())
    }

    /// What a model that knows nothing gets: a run that ends above it has diverged.
    fn of_a_guess(self) -> f64 {
        match self {
            Self::BitsPerByte => 8.0,
            Self::NatsPerToken => 12.0,
            Self::ErrorRate | Self::OutsideRate => 100.0,
        }
    }

    /// Digits after the point in tables.
    pub fn digits(self) -> usize {
        match self {
            Self::BitsPerByte | Self::NatsPerToken => 4,
            Self::ErrorRate | Self::OutsideRate => 2,
        }
    }
}

/// A file below the folder of the texts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// Path below that folder.
    pub path: String,
    /// What it is, for those who lack it.
    pub what: String,
}

/// Labels that a point has to have; each may be one of several.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Selector(BTreeMap<String, OneOrMany>);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// Labels of a point by name of axis or tag.
pub type Labels = BTreeMap<String, String>;

impl Selector {
    /// Whether a point has all of the labels.
    pub fn fits(&self, labels: &Labels) -> bool {
        let fits = |(name, wanted): (&String, &OneOrMany)| {
            labels.get(name).is_some_and(|label| wanted.all().contains(label))
        };
        self.0.iter().all(fits)
    }

    fn check(&self, known: &BTreeMap<String, Vec<String>>) -> Result<()> {
        for (name, wanted) in &self.0 {
            let Some(labels) = known.get(name) else {
                let names: Vec<_> = known.keys().map(String::as_str).collect();
                bail!("no axis or tag `{name}`, expected one of: {}", names.join(", "));
            };
            for label in wanted.all() {
                let list = labels.join(", ");
                ensure!(labels.contains(label), "`{name}` is never `{label}`, only: {list}");
            }
        }
        Ok(())
    }
}

/// One choice along an axis.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Choice {
    /// A label, and the settings that it stands for.
    #[serde(rename_all = "kebab-case")]
    Named {
        /// Its name in tables.
        label: String,
        /// Further labels for selections.
        #[serde(default)]
        tags: Labels,
        /// Settings over the grid's.
        #[serde(default)]
        set: Table,
    },
    /// A value of the axis's own setting, which is also its label.
    Plain(Value),
}

/// A dimension of a grid.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Its name: a column of the table.
    pub name: String,
    /// The setting that plain values are for: `lr`, `model.hidden`.
    pub key: Option<String>,
    /// Its choices.
    pub values: Vec<Choice>,
}

/// The product of some axes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Settings over the experiment's.
    #[serde(default)]
    pub settings: Table,
    /// Its dimensions, the slowest first.
    pub axes: Vec<Axis>,
}

/// A search for the best value of a setting before the grid is run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tune {
    /// The setting.
    pub key: String,
    /// The points whose value is searched.
    #[serde(rename = "where")]
    pub points: Selector,
    /// Every other point takes the value of the searched one that is equal in these labels.
    pub by: Vec<String>,
    /// Step of the search.
    pub factor: f64,
    /// Seeds of the search, none of the grid's.
    pub seeds: Vec<u64>,
    /// Settings of the search over the points' own.
    #[serde(default)]
    pub settings: Table,
    /// Where the search starts; the first that fits.
    pub start: Vec<Start>,
}

/// A first guess.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// For these points.
    #[serde(rename = "where", default)]
    pub points: Selector,
    /// The guess.
    pub value: f64,
}

/// Something that the results confirm or contradict. A selection of several points stands for the
/// best of them.
#[derive(Clone, Debug, Deserialize)]
pub struct Claim {
    /// The claim in words.
    pub text: String,
    /// How it is tested.
    #[serde(flatten)]
    pub test: Test,
    /// Tested separately for each combination of these labels.
    #[serde(default)]
    pub over: Vec<String>,
}

/// How a claim is tested.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Test {
    /// The means differ by no more than the seeds' standard deviation (pooled).
    Equal {
        /// One side.
        left: Selector,
        /// The other.
        right: Selector,
    },
    /// The left mean is the worse one, by more than that; or the left side has diverged.
    Worse {
        /// The worse side.
        left: Selector,
        /// The better side.
        right: Selector,
    },
    /// The left mean is not worse by more than that.
    NotWorse {
        /// The side that is tested.
        left: Selector,
        /// What it is compared with.
        right: Selector,
    },
    /// The best choice along one axis moves by no more than a number of choices across another.
    Steady {
        /// The points that are looked at.
        #[serde(rename = "where")]
        points: Selector,
        /// The axis along which the best is looked for.
        along: String,
        /// The axis across which it has to stay.
        across: String,
        /// Choices that it may move.
        within: usize,
    },
    /// The best choice along one axis moves by more than that.
    Moves {
        /// As for `steady`.
        #[serde(rename = "where")]
        points: Selector,
        /// As for `steady`.
        along: String,
        /// As for `steady`.
        across: String,
        /// As for `steady`.
        within: usize,
    },
    /// Every mean is below a bound and no seed has diverged: what the other claims compare has
    /// learned something.
    Below {
        /// The points that are looked at.
        #[serde(rename = "where")]
        points: Selector,
        /// The bound, in the units of the metric.
        bound: f64,
    },
}

/// What a run does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// `onesigma train`.
    #[default]
    Train,
    /// `onesigma numerics`: looks at every tensor of the first step.
    Numerics,
}

/// Why some tensors do not have unit scale.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Parts of the tensors' names, with `*` for numbers; any of them will do.
    pub tensors: Vec<String>,
    /// Kinds of the tensors, any of them; all if empty.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// For these points.
    #[serde(rename = "where", default)]
    pub points: Selector,
    /// The reason.
    pub reason: String,
}

/// What the figure shows.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Figure {
    /// One line of the figure for each point: mean and seeds.
    Dots {
        /// The label that decides the colour.
        colour: String,
        /// Labels that name a line.
        rows: Vec<String>,
        /// A panel for each value of this label.
        panels: Option<String>,
    },
    /// Curves over a numeric axis; points without a number are horizontal lines.
    Lines {
        /// The label along the horizontal axis.
        x: String,
        /// Whether that axis is logarithmic.
        #[serde(default)]
        log: bool,
        /// Labels that name a curve.
        series: Vec<String>,
        /// A panel for each value of this label.
        panels: Option<String>,
    },
    /// Shares of elements by exponent, a panel for each kind of tensor.
    Exponents {
        /// Labels that name a curve.
        series: Vec<String>,
        /// Labels that name a line of panels.
        #[serde(default)]
        lines: Vec<String>,
    },
}

/// What differs between the sizes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Seeds 0, 1, ... of each point.
    pub seeds: u64,
    /// Settings over the experiment's.
    #[serde(default)]
    pub settings: Table,
    /// Choices that are kept, by axis; all of the axes that are not named.
    #[serde(default)]
    pub only: BTreeMap<String, Vec<String>>,
}

/// An experiment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// One line.
    pub title: String,
    /// What it asks, and of which paper.
    pub question: String,
    /// What is measured.
    pub metric: Metric,
    /// What a run does.
    #[serde(default)]
    pub program: Program,
    /// Known reasons of tensors without unit scale.
    #[serde(default)]
    pub reasons: Vec<Reason>,
    /// The texts that it needs. Settings name them by the same paths.
    pub files: Vec<DataFile>,
    /// Another experiment: every run starts from the weights of that one's run with the same
    /// labels and seed.
    pub from: Option<String>,
    /// Whether the weights of finished runs are kept, for experiments that start from them.
    #[serde(default, rename = "keep-weights")]
    pub keep_weights: bool,
    /// Settings of every run, as in a run's `config.toml`.
    pub settings: Table,
    /// The points; all grids together.
    pub grids: Vec<Grid>,
    /// A search before the grid.
    pub tune: Option<Tune>,
    /// What the results are held against.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// The figure.
    pub figure: Figure,
    /// The small size.
    pub quick: Size,
    /// The full size.
    pub full: Size,
}

impl Experiment {
    /// Reads an experiment from its text.
    pub fn from_toml(name: &str, text: &str) -> Result<Self> {
        let mut experiment: Self =
            toml::from_str(text).with_context(|| format!("experiments/{name}.toml"))?;
        experiment.name = name.into();
        experiment.check().with_context(|| format!("experiments/{name}.toml"))?;
        Ok(experiment)
    }

    /// What holds for a size.
    pub fn size(&self, mode: Mode) -> &Size {
        match mode {
            Mode::Quick => &self.quick,
            Mode::Full => &self.full,
        }
    }

    /// Another number of seeds, if one is given.
    pub fn override_seeds(&mut self, mode: Mode, seeds: Option<u64>) {
        let size = match mode {
            Mode::Quick => &mut self.quick,
            Mode::Full => &mut self.full,
        };
        size.seeds = seeds.unwrap_or(size.seeds).max(1);
    }

    /// Names of the axes in the order of the table.
    pub fn columns(&self) -> Vec<&str> {
        let mut columns: Vec<&str> = Vec::new();
        for axis in self.grids.iter().flat_map(|grid| &grid.axes) {
            if !columns.contains(&&axis.name[..]) {
                columns.push(&axis.name);
            }
        }
        columns
    }

    /// Whether every selection names labels that exist.
    fn check(&self) -> Result<()> {
        let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for point in self.points(Mode::Full)?.into_iter().chain(self.points(Mode::Quick)?) {
            for (name, label) in point.labels {
                let labels = known.entry(name).or_default();
                if !labels.contains(&label) {
                    labels.push(label);
                }
            }
        }
        let named = |name: &String| {
            let names: Vec<_> = known.keys().map(String::as_str).collect();
            let list = names.join(", ");
            ensure!(known.contains_key(name), "no axis or tag `{name}`, expected one of: {list}");
            Ok(())
        };
        for claim in &self.claims {
            let check = || -> Result<()> {
                match &claim.test {
                    Test::Equal { left, right }
                    | Test::Worse { left, right }
                    | Test::NotWorse { left, right } => {
                        left.check(&known)?;
                        right.check(&known)?;
                    }
                    Test::Steady { points, along, across, .. }
                    | Test::Moves { points, along, across, .. } => {
                        points.check(&known)?;
                        named(along)?;
                        named(across)?;
                    }
                    Test::Below { points, .. } => points.check(&known)?,
                }
                claim.over.iter().try_for_each(named)
            };
            check().with_context(|| format!("claim `{}`", claim.text))?;
        }
        if let Some(tune) = &self.tune {
            tune.points.check(&known).context("tune")?;
            tune.by.iter().try_for_each(named).context("tune")?;
            ensure!(tune.factor > 1.0, "tune: the factor is {}, expected above 1", tune.factor);
            ensure!(!tune.seeds.is_empty(), "tune: no seeds");
            for start in &tune.start {
                start.points.check(&known).context("tune")?;
                let value = start.value;
                ensure!(value > 0.0, "tune: a start is {value}, expected a positive number");
            }
        }
        for reason in &self.reasons {
            let context = || format!("reason `{}`", reason.reason);
            reason.points.check(&known).with_context(context)?;
            for kind in &reason.kinds {
                let known = KINDS.join(", ");
                ensure!(
                    KINDS.contains(&&kind[..]),
                    "reason `{}`: no kind `{kind}`, expected one of: {known}",
                    reason.reason
                );
            }
        }
        let (series, panels) = match &self.figure {
            Figure::Dots { rows, panels, .. } => (rows, panels.as_slice()),
            Figure::Lines { series, panels, .. } => (series, panels.as_slice()),
            Figure::Exponents { series, lines } => (series, &lines[..]),
        };
        series.iter().chain(panels).try_for_each(named).context("figure")
    }
}

/// Every experiment below `root`, in the order of their names.
pub fn all(root: &Path) -> Result<Vec<Experiment>> {
    let folder = root.join("experiments");
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            files.push(path);
        }
    }
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(path).with_context(|| format!("no {}", path.display()))?;
        Experiment::from_toml(&name, &text)
    };
    files.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reading checks grids, selections and figures of both sizes.
    #[test]
    fn every_experiment_of_the_repository_reads_and_has_three_seeds() {
        let experiments = all(&crate::process::root()).expect("experiments/*.toml");
        assert!(experiments.len() >= 5);
        for experiment in experiments {
            for mode in [Mode::Quick, Mode::Full] {
                let name = &experiment.name;
                assert!(experiment.size(mode).seeds >= 3, "{name}");
                assert!(!experiment.points(mode).expect(name).is_empty(), "{name}");
            }
        }
    }
}
