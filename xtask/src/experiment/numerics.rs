//! What `onesigma numerics` says about the tensors of a first step: their standard deviations, and
//! how far from 1 they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::config::{Experiment, Labels};
use super::grid::Run;
use super::runner::RunResult;

/// The kinds of tensors that are told apart, in the order of the figure.
pub const KINDS: [&str; 4] = ["activations", "weights", "activation gradients", "weight gradients"];

/// A standard deviation is of unit scale within this factor.
const FACTOR: f64 = 2.0;

/// The tensors of one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Numerics {
    /// Every tensor; left out of reports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<Tensor>,
    /// By kind: number of tensors, and of those within the factor.
    pub counts: BTreeMap<String, [usize; 2]>,
    /// By kind: share of the elements at each exponent, every tensor weighing the same.
    pub exponents: BTreeMap<String, BTreeMap<i32, f64>>,
}

impl Numerics {
    /// Without the single tensors.
    pub fn brief(&self) -> Self {
        Self { tensors: Vec::new(), ..self.clone() }
    }
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Name of the node that makes it.
    pub name: String,
    /// One of [`KINDS`].
    pub kind: String,
    /// Its standard deviation.
    pub sigma: f64,
}

/// The program's own report, as far as it is needed.
#[derive(Deserialize)]
struct Report {
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    parameters: u64,
    tensors: Vec<TensorReport>,
}

#[derive(Deserialize)]
struct TensorReport {
    name: String,
    role: String,
    pass: String,
    measured: Vec<Numbers>,
}

#[derive(Deserialize)]
struct Numbers {
    sigma: f64,
    first_exponent: i32,
    exponents: Vec<f64>,
}

/// The result of a run from the JSON that it printed.
pub fn read(run: &Run, path: &Path) -> Result<RunResult> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let report: Report =
        serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
    let model = report.models.first().with_context(|| format!("no model in {}", path.display()))?;
    let numerics = gather(model);
    ensure!(!numerics.tensors.is_empty(), "{} has no measured tensor", path.display());
    let outside = numerics.tensors.iter().filter(|tensor| !is_unit(tensor.sigma)).count();
    Ok(RunResult {
        id: run.id.clone(),
        labels: run.labels.clone(),
        seed: run.seed,
        value: Some(100.0 * outside as f64 / numerics.tensors.len() as f64),
        training_loss: None,
        flushed_gradients: None,
        rate: None,
        steps: 0,
        parameters: model.parameters,
        tokens_per_s: 0.0,
        seconds: 0.0,
        commit: String::new(),
        machine: String::new(),
        corpus_sha256: String::new(),
        numerics: Some(numerics),
    })
}

fn gather(model: &Model) -> Numerics {
    let mut numerics = Numerics::default();
    for tensor in &model.tensors {
        let kind = match (&tensor.pass[..], &tensor.role[..]) {
            ("weights", _) => KINDS[1],
            ("forward", _) => KINDS[0],
            ("backward", "weight-grad") => KINDS[3],
            ("backward", _) => KINDS[2],
            // What the optimiser makes of them.
            _ => continue,
        };
        let Some(found) = tensor.measured.first() else { continue };
        if kind == KINDS[1] && found.sigma == 0.0 {
            continue; // a bias or a gain, which starts as a constant in every model
        }
        let counts = numerics.counts.entry(kind.into()).or_default();
        counts[0] += 1;
        counts[1] += usize::from(is_unit(found.sigma));
        let shares = numerics.exponents.entry(kind.into()).or_default();
        for (exponent, share) in (found.first_exponent..).zip(&found.exponents) {
            *shares.entry(exponent).or_default() += share;
        }
        let sigma = found.sigma;
        numerics.tensors.push(Tensor { name: tensor.name.clone(), kind: kind.into(), sigma });
    }
    for (kind, shares) in &mut numerics.exponents {
        let count = numerics.counts.get(kind).map_or(1, |counts| counts[0]);
        shares.values_mut().for_each(|share| *share /= count as f64);
    }
    numerics
}

fn is_unit(sigma: f64) -> bool {
    (1.0 / FACTOR..=FACTOR).contains(&sigma)
}

/// Tensors with one name but for numbers, at one point, that are not of unit scale in every seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exception {
    /// Labels of the point.
    pub labels: Labels,
    /// One of [`KINDS`].
    pub kind: String,
    /// Name with `*` for numbers.
    pub tensor: String,
    /// Smallest and largest standard deviation over layers and seeds.
    pub sigma: [f64; 2],
    /// Why, if it is known.
    pub reason: Option<String>,
}

/// The exceptions of scaled models: of points whose weights all have unit scale.
pub fn exceptions(experiment: &Experiment, results: &[RunResult]) -> Vec<Exception> {
    let mut found: BTreeMap<(Labels, String, String), [f64; 2]> = BTreeMap::new();
    for result in results {
        let Some(numerics) = &result.numerics else { continue };
        if numerics.counts.get(KINDS[1]).is_none_or(|[all, unit]| unit < all) {
            continue;
        }
        for tensor in &numerics.tensors {
            let key = (result.labels.clone(), tensor.kind.clone(), starred(&tensor.name));
            let range = found.entry(key).or_insert([f64::INFINITY, f64::NEG_INFINITY]);
            *range = [range[0].min(tensor.sigma), range[1].max(tensor.sigma)];
        }
    }
    let outside = |range: &[f64; 2]| range.iter().any(|&sigma| !is_unit(sigma));
    let exception = |((labels, kind, tensor), sigma): ((Labels, String, String), [f64; 2])| {
        let known = experiment.reasons.iter().find(|reason| {
            reason.tensors.iter().any(|part| tensor.contains(part))
                && (reason.kinds.is_empty() || reason.kinds.contains(&kind))
                && reason.points.fits(&labels)
        });
        let reason = known.map(|reason| reason.reason.clone());
        Exception { labels, kind, tensor, sigma, reason }
    };
    found.into_iter().filter(|(_, range)| outside(range)).map(exception).collect()
}

/// A name with `*` in place of every run of digits that stands alone between dots.
fn starred(name: &str) -> String {
    let word = |word: &str| {
        let number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        if number { "*".to_owned() } else { word.to_owned() }
    };
    name.split('.').map(word).collect::<Vec<_>>().join(".")
}

/// Exceptions as a Markdown table.
pub fn table(exceptions: &[Exception]) -> String {
    let mut text = format!(
        "Tensors of scaled models beyond a factor of {FACTOR} of σ = 1, smallest and largest over \
         layers and seeds:\n\n| points | kind | tensor | σ | reason |\n| --- | --- | --- | --- | --- \
         |\n"
    );
    for Exception { labels, kind, tensor, sigma: [low, high], reason } in exceptions {
        let labels: Vec<_> = labels.values().map(String::as_str).collect();
        let reason = reason.as_deref().unwrap_or("**not explained**");
        let points = labels.join(", ");
        let _ =
            writeln!(text, "| {points} | {kind} | `{tensor}` | {low:.3} to {high:.3} | {reason} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        title = "T"
        question = "?"
        metric = "outside-rate"
        program = "numerics"
        files = []
        settings = {}
        grids = [{ axes = [{ name = "recipe", key = "recipe", values = ["unit-f32"] }] }]
        figure = { kind = "exponents", series = ["recipe"] }
        quick = { seeds = 1 }
        full = { seeds = 1 }
        reasons = [
            { tensors = ["layers.*.mlp"], kinds = ["weights"], reason = "wrong" },
            { tensors = ["x", "layers.*.mlp"], reason = "correlated" },
        ]
    "#;

    /// What `onesigma numerics --json` prints, cut down.
    const REPORT: &str = r#"{"version": 1, "models": [{"name": "x", "parameters": 10, "tensors": [
        {"name": "layers.0.mlp.up", "role": "activation", "pass": "forward", "measured":
            [{"sigma": 0.4, "first_exponent": -2, "exponents": [0.75, 0.25]}]},
        {"name": "layers.1.mlp.up", "role": "activation", "pass": "forward", "measured":
            [{"sigma": 1.1, "first_exponent": -1, "exponents": [0.5, 0.5]}]},
        {"name": "wte", "role": "master-weight", "pass": "weights", "measured":
            [{"sigma": 1.0, "first_exponent": 0, "exponents": [1.0]}]},
        {"name": "bias", "role": "master-weight", "pass": "weights", "measured":
            [{"sigma": 0.0, "first_exponent": 0, "exponents": []}]},
        {"name": "grad(wte)", "role": "weight-grad", "pass": "backward", "measured":
            [{"sigma": 3.0, "first_exponent": 1, "exponents": [1.0]}]},
        {"name": "adamw", "role": "first-moment", "pass": "update", "measured":
            [{"sigma": 9.0, "first_exponent": 3, "exponents": [1.0]}]}
    ]}]}"#;

    #[test]
    fn tensors_are_counted_by_kind_and_exceptions_named_with_their_reason() {
        let experiment = Experiment::from_toml("sigma", TEXT).expect("an experiment");
        let point = &experiment.points(super::super::config::Mode::Quick).expect("points")[0];
        let run = Run::new(&["recipe"], point, 0, super::super::grid::Stage::Main, None);
        let path = std::env::temp_dir().join(format!("onesigma-sigma-{}", std::process::id()));
        fs::write(&path, REPORT).expect("room");
        let result = read(&run.expect("a run"), &path).expect("a result");
        fs::remove_file(&path).expect("its own file");
        // Two of four: the optimiser's tensors do not count.
        assert_eq!((result.value, result.parameters), (Some(50.0), 10));
        let numerics = result.numerics.as_ref().expect("tensors");
        assert_eq!(numerics.counts["activations"], [2, 1]);
        assert_eq!(numerics.exponents["activations"][&-1], 0.375);

        let exceptions = exceptions(&experiment, &[result]);
        let brief: Vec<_> = exceptions
            .iter()
            .map(|one| (&one.tensor[..], one.sigma, one.reason.as_deref()))
            .collect();
        assert_eq!(
            brief,
            [("layers.*.mlp.up", [0.4, 1.1], Some("correlated")), ("grad(wte)", [3.0, 3.0], None),]
        );
        assert!(table(&exceptions).contains("**not explained**"));
    }
}
