//! The sweep file, and the runs that it stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use onesigma_format::philox;
use onesigma_train::config::Config;
use onesigma_train::run_file::{self, overlay, set_path};
use onesigma_train::{Error, Result};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// A sweep file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Title of table and figure; if absent, the name of the file.
    #[serde(default)]
    pub title: Option<String>,
    /// Seeds of each point: 0, 1, .. of them.
    #[serde(default = "one")]
    pub seeds: u64,
    /// What is compared.
    #[serde(default)]
    pub metric: Metric,
    /// Settings of every run, as in a run file.
    #[serde(default)]
    pub settings: Table,
    /// Keys with the values that are combined, each with each.
    #[serde(default)]
    pub grid: BTreeMap<String, Vec<Value>>,
    /// Random draws, each combined with each point of the grid.
    #[serde(default)]
    pub random: Option<Random>,
    /// The figure; what is absent follows from the keys.
    #[serde(default)]
    pub figure: Figure,
}

fn one() -> u64 {
    1
}

/// What the runs of a sweep are compared by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The last validation loss.
    #[default]
    ValidationLoss,
    /// The lowest validation loss of all evaluations.
    BestValidationLoss,
    /// The last training loss.
    TrainingLoss,
    /// The last validation accuracy; higher is better.
    ValidationAccuracy,
    /// Tokens trained on per second; higher is better.
    TokensPerS,
}

impl Metric {
    /// Its name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::ValidationLoss => "validation loss",
            Self::BestValidationLoss => "lowest validation loss",
            Self::TrainingLoss => "training loss",
            Self::ValidationAccuracy => "validation accuracy",
            Self::TokensPerS => "tokens per second",
        }
    }

    /// Whether a higher value is better.
    pub fn is_higher_better(self) -> bool {
        matches!(self, Self::ValidationAccuracy | Self::TokensPerS)
    }
}

/// Random draws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    /// How many.
    pub draws: u64,
    /// Their seed.
    #[serde(default)]
    pub seed: u64,
    /// What each key is drawn from.
    pub keys: BTreeMap<String, Draw>,
}

/// What a value is drawn from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// A number between two bounds, evenly.
    Uniform([f64; 2]),
    /// A number between two positive bounds, evenly in its logarithm.
    Log([f64; 2]),
    /// A whole number between two bounds, which it may be.
    Integer([i64; 2]),
    /// One of a list.
    Choice(Vec<Value>),
}

/// What the figure shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The key on the horizontal axis.
    #[serde(default)]
    pub x: Option<String>,
    /// The keys that tell the curves apart.
    #[serde(default)]
    pub series: Option<Vec<String>>,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Name of its folder: a digest of its settings.
    pub id: String,
    /// The keys that differ between points, with its values.
    pub point: BTreeMap<String, Value>,
    /// Its seed.
    pub seed: u64,
    /// All of its settings.
    pub settings: Table,
}

impl Spec {
    /// Reads a sweep file.
    ///
    /// # Errors
    /// [`Error::Config`] for a file that is not there or not a sweep, with the nearest known key;
    /// [`Error::Io`].
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::Config {
            path: path.into(),
            reason: format!("cannot read the sweep file ({error})"),
        })?;
        run_file::from_toml(&text, path)
    }

    /// Keys that differ between points, in the order of the table.
    pub fn keys(&self) -> Vec<&str> {
        let random = self.random.iter().flat_map(|random| random.keys.keys());
        self.grid.keys().chain(random).map(String::as_str).collect()
    }

    /// Every run, all points of one seed before the next; `over` is put over the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that is named twice, an empty list, bounds that are none, or
    /// settings that no run can have.
    pub fn runs(&self, over: &Table, origin: &Path) -> Result<Vec<Run>> {
        let wrong = |reason: String| Error::Config { path: origin.into(), reason };
        let keys = self.keys();
        let distinct: BTreeSet<&str> = keys.iter().copied().collect();
        if distinct.len() < keys.len() {
            return Err(wrong("a key is both in `grid` and in `random.keys`".into()));
        }
        if keys.is_empty() {
            return Err(wrong("nothing differs between runs: give `grid` or `random`".into()));
        }
        if self.seeds == 0 {
            return Err(wrong("`seeds` is 0, expected at least 1".into()));
        }
        let mut base = self.settings.clone();
        overlay(&mut base, over);
        let mut runs = Vec::new();
        let points = self.points().map_err(wrong)?;
        let first = base.get("seed").and_then(Value::as_integer).unwrap_or(0) as u64;
        for seed in first..first + self.seeds {
            for point in &points {
                let mut settings = base.clone();
                for (key, value) in point {
                    if !set_path(&mut settings, key, value.clone()) {
                        return Err(wrong(format!(
                            "`{key}` leads through something else than tables"
                        )));
                    }
                }
                settings.entry("seed").or_insert(Value::Integer(seed as i64));
                if !point.contains_key("seed") {
                    settings.insert("seed".into(), Value::Integer(seed as i64));
                }
                let config: Config = run_file::config(settings.clone(), &origin.to_string_lossy())?;
                config.validate()?;
                // Tables are in the order of their keys, so equal settings have equal digests.
                let id = format!("{:016x}", run_file::digest(&settings.to_string()));
                runs.push(Run { id, point: point.clone(), seed, settings });
            }
        }
        Ok(runs)
    }

    /// The points of the grid, each with each random draw.
    fn points(&self) -> std::result::Result<Vec<BTreeMap<String, Value>>, String> {
        let mut points = vec![BTreeMap::new()];
        for (key, values) in &self.grid {
            if values.is_empty() {
                return Err(format!("`grid.{key}` has no values"));
            }
            let with = |point: &BTreeMap<String, Value>, value: &Value| {
                let mut point = point.clone();
                point.insert(key.clone(), value.clone());
                point
            };
            points = points.iter().flat_map(|p| values.iter().map(move |v| with(p, v))).collect();
        }
        let Some(random) = &self.random else { return Ok(points) };
        if random.draws == 0 || random.keys.is_empty() {
            return Err("`random` needs `draws` of at least 1 and `keys`".into());
        }
        let mut all = Vec::new();
        for point in &points {
            for draw in 0..random.draws {
                let mut point = point.clone();
                for (number, (key, from)) in random.keys.iter().enumerate() {
                    let unit = unit(random.seed, draw, number as u32);
                    let value = from
                        .value(unit)
                        .map_err(|reason| format!("`random.keys.{key}`: {reason}"))?;
                    point.insert(key.clone(), value);
                }
                all.push(point);
            }
        }
        Ok(all)
    }
}

impl Draw {
    /// The value at `unit` of the way, which is from 0 to below 1.
    fn value(&self, unit: f64) -> std::result::Result<Value, String> {
        let ordered = |low: f64, high: f64| low.is_finite() && high.is_finite() && low < high;
        match self {
            Self::Uniform([low, high]) if ordered(*low, *high) => {
                Ok(Value::Float(low + (high - low) * unit))
            }
            Self::Log([low, high]) if ordered(*low, *high) && *low > 0.0 => {
                let drawn = (low.ln() + (high / low).ln() * unit).exp();
                // Four digits are as good, and can be read and typed again.
                Ok(Value::Float(format!("{drawn:.3e}").parse().unwrap_or(drawn)))
            }
            Self::Integer([low, high]) if low <= high => {
                let count = (high - low) as f64 + 1.0;
                Ok(Value::Integer(low + (count * unit) as i64))
            }
            Self::Choice(list) if !list.is_empty() => {
                Ok(list[(list.len() as f64 * unit) as usize].clone())
            }
            Self::Log(_) => Err("expected two positive bounds, the lower first".into()),
            Self::Choice(_) => Err("expected at least one choice".into()),
            _ => Err("expected two bounds, the lower first".into()),
        }
    }
}

/// The `number`th number of a draw, from 0 to below 1, by Philox.
fn unit(seed: u64, draw: u64, number: u32) -> f64 {
    let words = philox::philox4x32_10(
        [draw as u32, (draw >> 32) as u32, number, 0x7377_6565],
        [seed as u32, (seed >> 32) as u32],
    );
    let bits = u64::from(words[0]) << 21 ^ u64::from(words[1]) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// A value as tables and labels show it.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<Spec> {
        run_file::from_toml(text, Path::new("sweep.toml"))
    }

    fn runs(text: &str) -> Result<Vec<Run>> {
        spec(text)?.runs(&Table::new(), Path::new("sweep.toml"))
    }

    #[test]
    fn grids_random_draws_and_seeds_are_combined() {
        let text = "
            seeds = 2
            settings = { steps = 5, model = { hidden = 8, heads = 2 } }
            [grid]
            recipe = ['f32', 'unit-fp8']
            'model.hidden' = [8, 16]
            [random]
            draws = 3
            keys = { lr = { log = [1e-3, 1.0] }, weight_decay = { uniform = [0.0, 0.5] }, warmup = { integer = [1, 2] } }
        ";
        let all = runs(text).expect("a sweep");
        assert_eq!(all.len(), 2 * 2 * 2 * 3);
        let ids: BTreeSet<_> = all.iter().map(|run| run.id.clone()).collect();
        assert_eq!(ids.len(), all.len());
        assert_eq!(all, runs(text).expect("the same sweep"));
        for run in &all {
            let config = run_file::config(run.settings.clone(), "run").expect("settings");
            assert_eq!((config.steps, config.model.heads, config.seed), (5, 2, run.seed));
            assert!((1e-3..=1.0).contains(&config.lr.expect("a rate")));
            assert!((0.0..0.5).contains(&config.weight_decay));
            assert!((1..=2).contains(&config.warmup.expect("a number")));
        }
        // Random draws are shared by the points of the grid: what differs is what is compared.
        assert_eq!(all[0].point["lr"], all[3].point["lr"]);
        assert_ne!(all[0].point["lr"], all[1].point["lr"]);
    }

    #[test]
    fn a_run_is_known_by_its_settings_alone() {
        let one = runs("grid = { lr = [0.1, 0.2] }").expect("a sweep");
        let more = runs("grid = { lr = [0.3, 0.2, 0.1] }").expect("a sweep");
        assert_eq!(one[0].id, more[2].id);
        assert_ne!(
            one[0].id,
            runs("settings = { batch = 2 }\ngrid = { lr = [0.1] }").expect("a sweep")[0].id
        );
    }

    #[test]
    fn draws_cover_their_range() {
        let draws: Vec<f64> = (0..2000).map(|draw| unit(7, draw, 0)).collect();
        let mean = draws.iter().sum::<f64>() / 2000.0;
        assert!((mean - 0.5).abs() < 0.03 && draws.iter().all(|u| (0.0..1.0).contains(u)));
        let integer = |u| Draw::Integer([2, 4]).value(u).expect("a number");
        assert_eq!([0.0, 0.34, 0.999].map(integer), [2, 3, 4].map(Value::Integer));
    }

    #[test]
    fn what_makes_no_sweep_is_named() {
        for (text, word) in [
            ("gird = {}", "did you mean `grid`?"),
            ("", "nothing differs"),
            ("grid = { lr = [] }", "grid.lr"),
            ("grid = { stepz = [1] }", "did you mean `steps`?"),
            ("grid = { lr = [-1.0] }", "--lr"),
            ("seeds = 0\ngrid = { lr = [1.0] }", "seeds"),
            ("random = { draws = 1, keys = { lr = { log = [0.0, 1.0] } } }", "random.keys.lr"),
            ("random = { draws = 1, keys = { lr = { even = [0.0, 1.0] } } }", "even"),
            (
                "grid = { lr = [1.0] }\nrandom = { draws = 1, keys = { lr = { log = [0.1, 1.0] } } }",
                "both",
            ),
        ] {
            let error = runs(text).expect_err(text).to_string();
            assert!(error.contains(word), "no `{word}` in: {error}");
        }
    }
}
