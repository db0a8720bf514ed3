//! `onesigma numerics`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use onesigma::format::Format;
use onesigma::numerics::{self, ModelReport, Numbers, Report, Request, Start, TensorReport};
use onesigma::ops::recipes;
use onesigma::setup;
use onesigma::train::atomic;
use onesigma::train::checkpoint::Checkpoint;
use onesigma::train::config::Config;
use onesigma::train::numerics::Options;

use super::prepare::{Prepared, prepare};
use super::{Usage, source};

/// Tensors that the summary lists.
const LISTED: usize = 5;

/// [`Options::FORMATS`] as they are given.
const FORMATS: &str = "F16,BF16,E5M2,E4M3,E3M2,E2M3,E2M1";

/// Arguments of `onesigma numerics`.
#[derive(Debug, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "\
Examples:
  onesigma numerics fp16 unit-fp16 unit-fp8
  onesigma numerics unit-fp8 --predict-only --layers 24 --hidden 1024 --heads 16
  onesigma numerics runs/first --steps 0 --formats E4M3,E5M2 --out first.html
  onesigma numerics my-config.toml --recipe fp16 --steps 100 --json > fp16.json"
)]
pub struct Arguments {
    /// Recipes (their default model), configuration files, run folders or checkpoint files
    #[arg(value_name = "MODEL", default_value = "unit-fp8")]
    models: Vec<String>,
    /// Recipe of every model that is no run, in place of its own
    #[arg(long)]
    recipe: Option<String>,
    /// Real steps after which tensors are measured once more; 0 measures the start alone
    /// [default: 10, for runs 0]
    #[arg(long)]
    steps: Option<u64>,
    /// Predict alone: take no step, read no text unless --data names one
    #[arg(long, conflicts_with = "steps")]
    predict_only: bool,
    /// Candidate formats, separated by commas
    #[arg(long, value_delimiter = ',', default_value = FORMATS)]
    formats: Vec<Format>,
    /// The page to write [default: numerics.html, none with --json]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Text to take batches from [default: the model's own]
    #[arg(long, visible_alias = "corpus", value_name = "FILE|DIR")]
    data: Option<String>,
    /// Backend that measures [default: the model's own]
    #[arg(long)]
    backend: Option<String>,
    /// Seed of initialisation and batches
    #[arg(long)]
    seed: Option<u64>,
    /// Sequences in one pass
    #[arg(long)]
    batch: Option<usize>,
    /// Tokens in one sequence
    #[arg(long)]
    seq: Option<usize>,
    /// Transformer blocks
    #[arg(long)]
    layers: Option<usize>,
    /// Attention heads
    #[arg(long)]
    heads: Option<usize>,
    /// Width of the residual stream
    #[arg(long)]
    hidden: Option<usize>,
}

/// A model that the command line names.
struct Named {
    name: String,
    config: Config,
    /// Where it is kept, and in which state, if it is a run.
    run: Option<(PathBuf, Checkpoint)>,
}

/// Predicts, measures, and writes the page.
pub fn run(arguments: &Arguments) -> Result<()> {
    let options = Options { formats: arguments.formats.clone(), ..Options::default() };
    let mut reports = Vec::new();
    for name in &arguments.models {
        let model = find(name, arguments)?;
        eprintln!(
            "{}: {}",
            model.name,
            if arguments.predict_only { "predicting" } else { "measuring" }
        );
        reports.push(report(model, arguments, &options)?);
    }
    let report = Report::new(&options.formats, reports);
    let mut out = io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        for model in &report.models {
            summary(&mut out, model)?;
        }
    }
    let page = arguments.out.clone().or((!arguments.json).then(|| "numerics.html".into()));
    if let Some(path) = page {
        let text = numerics::page(&report)?;
        atomic::write(&path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        if !arguments.json {
            writeln!(out, "page        {} ({} kB)", path.display(), text.len() / 1000)?;
        }
    }
    Ok(())
}

/// A run or checkpoint, a configuration file, or a recipe with the default model.
fn find(name: &str, arguments: &Arguments) -> Result<Named> {
    let path = Path::new(name);
    let is_config = name.ends_with(".toml") && path.is_file();
    if path.exists() && !is_config {
        let checkpoint = source::checkpoint(path)?;
        let mut config = source::config(&checkpoint)?;
        refuse_sizes(name, arguments)?;
        set(&mut config.backend, arguments.backend.clone());
        // The weights are those of the run, not of what it started from.
        config.init_from = None;
        return Ok(Named { name: name.into(), config, run: Some((path.into(), checkpoint)) });
    }
    let mut config = Config::default();
    if is_config {
        config = Config::from_file(path)?;
    } else if recipes::BUILT_IN.iter().any(|(known, _)| *known == name) {
        config.recipe = name.into();
    } else {
        let known: Vec<&str> = recipes::BUILT_IN.iter().map(|(name, _)| *name).collect();
        return Err(Usage(format!(
            "unknown model `{name}`, expected a recipe ({}), a configuration file, a run folder \
             or a checkpoint file",
            known.join(", ")
        ))
        .into());
    }
    set(&mut config.recipe, arguments.recipe.clone());
    set(&mut config.backend, arguments.backend.clone());
    set(&mut config.seed, arguments.seed);
    set(&mut config.batch, arguments.batch);
    set(&mut config.model.seq, arguments.seq);
    set(&mut config.model.layers, arguments.layers);
    set(&mut config.model.heads, arguments.heads);
    set(&mut config.model.hidden, arguments.hidden);
    config.validate()?;
    Ok(Named { name: name.into(), config, run: None })
}

/// A run has its sizes and its recipe.
fn refuse_sizes(name: &str, arguments: &Arguments) -> Result<()> {
    let given = [
        ("--recipe", arguments.recipe.is_some()),
        ("--seed", arguments.seed.is_some()),
        ("--batch", arguments.batch.is_some()),
        ("--seq", arguments.seq.is_some()),
        ("--layers", arguments.layers.is_some()),
        ("--heads", arguments.heads.is_some()),
        ("--hidden", arguments.hidden.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => Err(Usage(format!(
            "{flag} does not go with {name}, a run that has its own; give its config.toml instead"
        ))
        .into()),
    }
}

fn report(model: Named, arguments: &Arguments, options: &Options) -> Result<ModelReport> {
    let Named { name, mut config, run } = model;
    if let Some(data) = &arguments.data {
        config.data.clone_from(data);
        config.valid = None;
    }
    if arguments.predict_only && arguments.data.is_none() {
        let request = Request { name, config: &config, start: Start::Init, data: None, after: &[] };
        return Ok(numerics::model(&request, options)?);
    }
    let Prepared { config, data, weights, .. } =
        prepare(config, run.as_ref().map(|(path, _)| path.as_path()))?;
    let steps = arguments.steps.unwrap_or(if run.is_some() { 0 } else { 10 });
    let after = match (arguments.predict_only, steps) {
        (true, _) => vec![],
        (false, 0) => vec![0],
        (false, steps) => vec![0, steps],
    };
    let state = match (&run, weights) {
        (Some((_, checkpoint)), _) => Some((checkpoint.state.step, checkpoint.tensors.clone())),
        (None, Some(weights)) => {
            let mut session = setup::session(&config)?;
            session.init(config.seed)?;
            weights.load(&mut session)?;
            Some((0, session.state()?))
        }
        (None, None) => None,
    };
    let start = match &state {
        Some((step, tensors)) => Start::State { step: *step, tensors },
        None => Start::Init,
    };
    let data = Some(&*data.training);
    let request = Request { name, config: &config, start, data, after: &after };
    Ok(numerics::model(&request, options)?)
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// The tensors at risk, in words.
fn summary(out: &mut impl Write, model: &ModelReport) -> Result<()> {
    let when = match model.snapshots.last() {
        Some(snapshot) => format!("before step {}", snapshot.step),
        None => "predicted".to_owned(),
    };
    let ModelReport { name, recipe, parameters, .. } = model;
    writeln!(out, "model       {name} ({recipe}, {parameters} parameters, {when})")?;
    at_risk(out, model)
}

/// How many tensors are near one sigma, and those that lose most in their format.
pub fn at_risk(out: &mut impl Write, model: &ModelReport) -> Result<()> {
    let list = model.by_risk();
    let alive = list.iter().filter(|(_, n)| n.rms > 0.0).count();
    let near = list.iter().filter(|(_, n)| n.rms > 0.0 && (0.5..2.0).contains(&n.sigma)).count();
    writeln!(out, "tensors     {alive}, {near} of them within a factor of 2 of one sigma")?;
    writeln!(out, "at risk     share lost, sigma, format, tensor")?;
    for (tensor, numbers) in list.iter().take(LISTED) {
        writeln!(out, "  {}", line(tensor, numbers))?;
    }
    Ok(())
}

fn line(tensor: &TensorReport, numbers: &Numbers) -> String {
    let own = &numbers.own;
    format!(
        "{:>8.4} %  {:>9.2e}  {:<5} {} {}",
        100.0 * own.risk(),
        numbers.sigma,
        tensor.format,
        tensor.role,
        tensor.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_formats_are_those_of_the_library() {
        let formats: Vec<String> = Options::FORMATS.iter().map(Format::to_string).collect();
        assert_eq!(FORMATS, formats.join(","));
    }
}
