//! Takes runs, one process each, and remembers their results.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::config::{Experiment, Labels, Mode, Program};
use super::data::{self, DataFolder};
use super::grid::Run;
use super::numerics::{self, Numerics};

/// What is kept of a finished run: `result.json` in its folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The run's name.
    pub id: String,
    /// Labels of its point.
    pub labels: Labels,
    /// Its seed.
    pub seed: u64,
    /// The metric; none if the run has diverged.
    pub value: Option<f64>,
    /// Loss on the training text in nats per token, mean of the last tenth of the steps; none if
    /// it is not finite.
    pub training_loss: Option<f64>,
    /// Share of gradient elements that the recipe's formats flush to zero at the last weights.
    pub flushed_gradients: Option<f64>,
    /// Its learning rate.
    pub rate: Option<f64>,
    /// Steps taken.
    pub steps: u64,
    /// Elements of all parameters.
    pub parameters: u64,
    /// Tokens per second; of a shared machine.
    pub tokens_per_s: f64,
    /// Seconds of the last sitting.
    pub seconds: f64,
    /// Commit of the program that made it.
    pub commit: String,
    /// The machine that it ran on.
    #[serde(default)]
    pub machine: String,
    /// Identity of the text; none where the program does not tell it.
    #[serde(default)]
    pub corpus_sha256: String,
    /// The tensors of its first step, if that is what it looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numerics: Option<Numerics>,
}

impl RunResult {
    /// The result without the single tensors.
    pub fn brief(&self) -> Self {
        Self { numerics: self.numerics.as_ref().map(Numerics::brief), ..self.clone() }
    }
}

/// What `onesigma train` leaves in `summary.json`, as far as it is needed here. JSON has no
/// number for a loss that is not finite.
#[derive(Debug, Deserialize)]
struct Summary {
    steps: u64,
    parameters: u64,
    validation_loss: Option<f64>,
    validation_accuracy: Option<f64>,
    tokens_per_s: f64,
    flushed_gradients: Option<f64>,
    corpus_sha256: String,
}

/// Where and how runs are taken.
#[derive(Debug)]
pub struct Runner<'a> {
    /// The command line; without it, runs that are not finished are left out.
    pub binary: Option<&'a Path>,
    /// The texts.
    pub data: &'a DataFolder,
    /// Holds a folder for each experiment.
    pub out: &'a Path,
    /// The size that is run.
    pub mode: Mode,
    /// Threads of each run.
    pub threads: usize,
    /// Commit of the workspace.
    pub commit: String,
}

impl Runner<'_> {
    /// The result of a run: the one that is there, or after starting or continuing it; none if it
    /// is not finished and nothing may be run.
    pub fn result(&self, run: &Run, experiment: &Experiment) -> Result<Option<RunResult>> {
        let folder = self.folder(&experiment.name).join("runs").join(&run.id);
        let path = folder.join("result.json");
        if let Ok(text) = fs::read(&path) {
            let result = serde_json::from_slice(&text);
            return result.map(Some).with_context(|| format!("{} is damaged", path.display()));
        }
        let Some(binary) = self.binary else { return Ok(None) };
        let started = Instant::now();
        let take = || match experiment.program {
            Program::Train => {
                self.train(binary, run, &folder)?;
                read(run, experiment, &folder)
            }
            Program::Numerics => {
                self.look(binary, run, &folder)?;
                numerics::read(run, &folder.join("numerics.json"))
            }
        };
        let mut result = take().with_context(|| format!("run {}", run.id))?;
        result.seconds = started.elapsed().as_secs_f64();
        result.commit.clone_from(&self.commit);
        result.machine = crate::demo::machine();
        write_whole(&path, &serde_json::to_string_pretty(&result)?)?;
        if experiment.program == Program::Train && !experiment.keep_weights {
            // The result is all that is needed of it from now on.
            let checkpoints = folder.join("checkpoints");
            fs::remove_dir_all(&checkpoints).with_context(|| checkpoints.display().to_string())?;
        }
        let value = result.value.map_or("diverged".into(), |value| format!("{value:.4}"));
        println!("  {} {value} ({:.0} s)", run.id, result.seconds);
        Ok(Some(result))
    }

    /// Where an experiment's runs and reports are.
    pub fn folder(&self, experiment: &str) -> PathBuf {
        self.out.join(experiment).join(self.mode.name())
    }

    /// Starts or continues a run and waits for its end.
    fn train(&self, binary: &Path, run: &Run, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("no {}", folder.display()))?;
        let mut command = Command::new(binary);
        command.args(["train", "--quiet", "--measure-gradients"]);
        if folder.join("config.toml").exists() {
            command.arg("--resume").arg(folder);
        } else {
            let config = self.settings(run, folder)?;
            command.arg("--config").arg(config).arg("--out").arg(folder);
        }
        self.execute(&mut command, folder, None)
    }

    /// Measures the tensors of a run's first step.
    fn look(&self, binary: &Path, run: &Run, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("no {}", folder.display()))?;
        let mut command = Command::new(binary);
        command.arg("numerics").arg(self.settings(run, folder)?);
        command.args(["--steps", "0", "--json", "--formats", "F16,E4M3,E5M2"]);
        self.execute(&mut command, folder, Some(&folder.join("numerics.json")))
    }

    /// Writes the settings of a run as a configuration file.
    fn settings(&self, run: &Run, folder: &Path) -> Result<PathBuf> {
        let uniform = self.out.join(data::UNIFORM);
        if run.settings.get("data").and_then(toml::Value::as_str) == Some(data::UNIFORM) {
            // Runs share it, so that it must never be there in part.
            let own = folder.join(data::UNIFORM);
            fs::write(&own, data::uniform_bytes()).context("cannot write uniform bytes")?;
            fs::rename(&own, &uniform).context("cannot place uniform bytes")?;
        }
        let other = |place: &str| {
            if place == data::UNIFORM {
                return uniform.clone();
            }
            let (experiment, id) = place.split_once('/').unwrap_or(("", place));
            self.folder(experiment).join("runs").join(id)
        };
        let path = folder.join("settings.toml");
        write_whole(&path, &toml::to_string(&self.data.resolve(&run.settings, other))?)?;
        Ok(path)
    }

    /// Runs a command to its end; its output goes to `output`, or with its errors to `log.txt`.
    fn execute(&self, command: &mut Command, folder: &Path, output: Option<&Path>) -> Result<()> {
        let create = |path: &Path| File::create(path).with_context(|| path.display().to_string());
        let log = folder.join("log.txt");
        let errors = create(&log)?;
        match output {
            Some(path) => command.stdout(create(path)?),
            None => command.stdout(errors.try_clone()?),
        };
        // Recipes are named by their path below the workspace root.
        command.current_dir(crate::process::root());
        command.env("RAYON_NUM_THREADS", self.threads.to_string());
        command.stdin(Stdio::null()).stderr(errors);
        let binary = Path::new(command.get_program()).to_owned();
        let status = command.status().with_context(|| format!("no {}", binary.display()))?;
        if !status.success() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let error = text.lines().rfind(|line| line.starts_with("error")).unwrap_or("");
            bail!("{status}; {error} (all of it in {})", log.display());
        }
        Ok(())
    }
}

/// The result that a run folder holds.
fn read(run: &Run, experiment: &Experiment, folder: &Path) -> Result<RunResult> {
    let path = folder.join("summary.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let summary: Summary = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no summary", path.display()))?;
    let wanted = run.settings.get("steps").and_then(toml::Value::as_integer);
    ensure!(
        wanted.is_none_or(|steps| steps == summary.steps as i64),
        "{} stopped after {} steps; start again to continue",
        run.id,
        summary.steps
    );
    let losses = training_losses(folder)?;
    let last = &losses[losses.len() - losses.len().div_ceil(10)..];
    let training = last.iter().sum::<f64>() / last.len() as f64;
    Ok(RunResult {
        id: run.id.clone(),
        labels: run.labels.clone(),
        seed: run.seed,
        value: experiment.metric.of(summary.validation_loss, summary.validation_accuracy),
        training_loss: Some(training).filter(|loss| loss.is_finite()),
        flushed_gradients: summary.flushed_gradients,
        rate: run.settings.get("lr").and_then(toml::Value::as_float),
        steps: summary.steps,
        parameters: summary.parameters,
        tokens_per_s: summary.tokens_per_s,
        seconds: 0.0,
        commit: String::new(),
        machine: String::new(),
        corpus_sha256: summary.corpus_sha256,
        numerics: None,
    })
}

/// Training losses by step; NaN where one was not finite.
pub fn training_losses(folder: &Path) -> Result<Vec<f64>> {
    let path = folder.join("metrics.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    let mut losses = Vec::new();
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line)?;
        if record["kind"] == "train" {
            losses.push(record["loss"].as_f64().unwrap_or(f64::NAN));
        }
    }
    Ok(losses)
}

/// Number of runs below `folder` with a result.
pub fn finished(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        count += usize::from(entry?.path().join("result.json").exists());
    }
    Ok(count)
}

/// Writes a file that is either whole or not there.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let beside: PathBuf = path.with_file_name(name);
    fs::write(&beside, text).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::experiment::grid::{Point, Stage};
    use crate::experiment::settings::set_path;

    /// A stand-in for `onesigma` that notes its arguments, dies on the first call where `dies` is
    /// given, and else leaves what a run leaves.
    fn stand_in(folder: &Path, dies: bool) -> PathBuf {
        let path = folder.join("onesigma");
        let script = format!(
            r#"#!/bin/sh
echo "$@" >> {calls}
while [ $# -gt 0 ]; do case "$1" in --out|--resume) out=$2 ;; esac; shift; done
mkdir -p $out/checkpoints; touch $out/config.toml
if {dies} && [ ! -e $out/died ]; then touch $out/died; echo "error: killed" >&2; exit 1; fi
echo '{{"kind":"train","step":0,"loss":2.0,"rate":0.1}}' > $out/metrics.jsonl
cat > $out/summary.json <<END
{{"steps": 1, "parameters": 5, "validation_loss": 0.6931471805599453, "tokens_per_s": 1.0,
"flushed_gradients": null, "corpus_sha256": "ab"}}
END
"#,
            calls = folder.join("calls").display()
        );
        fs::write(&path, script).expect("room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its own file");
        path
    }

    fn run(hidden: i64) -> Run {
        let mut point = Point { labels: Labels::new(), settings: toml::Table::new() };
        assert!(set_path(&mut point.settings, "model.hidden", hidden.into()));
        assert!(set_path(&mut point.settings, "steps", 1.into()));
        Run::new(&[], &point, 0, Stage::Main, None).expect("no source")
    }

    fn experiment() -> Experiment {
        let text = r#"
            title = "T"
            question = "?"
            metric = "bits-per-byte"
            files = []
            settings = {}
            grids = [{ axes = [{ name = "seq", key = "model.seq", values = [1] }] }]
            figure = { kind = "lines", x = "seq", series = [] }
            quick = { seeds = 1 }
            full = { seeds = 1 }
        "#;
        Experiment::from_toml("test", text).expect("an experiment")
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("onesigma-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("room");
        folder
    }

    #[test]
    fn a_finished_run_is_not_repeated_and_other_settings_are_another_run() {
        let folder = scratch("finished");
        let binary = stand_in(&folder, false);
        let data = DataFolder::new(&folder);
        let commit = "c".to_owned();
        let (out, mode, experiment) = (&folder, Mode::Quick, experiment());
        let runner = Runner { binary: Some(&binary), data: &data, out, mode, threads: 1, commit };
        let first = runner.result(&run(8), &experiment).expect("a run").expect("a result");
        assert_eq!((first.value, first.steps), (Some(1.0), 1));
        assert_eq!(runner.result(&run(8), &experiment).expect("no run"), Some(first));
        runner.result(&run(9), &experiment).expect("another run");
        let calls = fs::read_to_string(folder.join("calls")).expect("the calls");
        assert_eq!(calls.lines().count(), 2, "{calls}");
        assert_eq!(finished(&runner.folder("test").join("runs")).expect("the folder"), 2);

        let reader = Runner { binary: None, ..runner };
        assert!(reader.result(&run(8), &experiment).expect("a look").is_some());
        assert!(reader.result(&run(10), &experiment).expect("a look").is_none());
        fs::remove_dir_all(folder).expect("its own folder");
    }

    #[test]
    fn a_run_that_died_is_continued() {
        let folder = scratch("died");
        let binary = stand_in(&folder, true);
        let data = DataFolder::new(&folder);
        let commit = String::new();
        let (out, mode, experiment) = (&folder, Mode::Quick, experiment());
        let runner = Runner { binary: Some(&binary), data: &data, out, mode, threads: 1, commit };
        let error = runner.result(&run(8), &experiment).expect_err("it dies");
        assert!(format!("{error:#}").contains("error: killed"), "{error:#}");
        assert!(runner.result(&run(8), &experiment).expect("it lives").is_some());
        let calls = fs::read_to_string(folder.join("calls")).expect("the calls");
        let [first, second] = &calls.lines().collect::<Vec<_>>()[..] else { panic!("{calls}") };
        assert!(first.contains("--config") && second.contains("--resume"), "{calls}");
        fs::remove_dir_all(folder).expect("its own folder");
    }
}
