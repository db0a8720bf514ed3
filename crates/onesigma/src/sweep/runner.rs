//! Takes the runs of a sweep, one process each.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onesigma_train::telemetry::End;
use onesigma_train::trainer::Summary;
use onesigma_train::{Error, atomic};
use serde::Serialize;

use super::spec::{Metric, Run};
use super::workers::parallel;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Outcome {
    /// With a value.
    Done {
        /// The metric.
        value: f64,
        /// Steps taken.
        steps: u64,
        /// Tokens per second, of whatever else ran.
        tokens_per_s: f64,
    },
    /// With a loss that is no number.
    Diverged,
    /// With an error.
    Failed {
        /// What it said.
        error: String,
    },
    /// Not at all, or not to its end.
    Open,
}

/// Where and how runs are taken.
#[derive(Debug)]
pub struct Runner<'a> {
    /// The command line; without it, runs that are not finished stay open.
    pub program: Option<&'a Path>,
    /// Holds a folder for each run.
    pub folder: &'a Path,
    /// Runs at a time.
    pub jobs: usize,
    /// Threads of each.
    pub threads: usize,
    /// What is compared.
    pub metric: Metric,
    /// Set to end: processes are interrupted, save and can be continued.
    pub stop: &'a AtomicBool,
}

impl Runner<'_> {
    /// The folder of a run.
    pub fn folder(&self, run: &Run) -> PathBuf {
        self.folder.join(&run.id)
    }

    /// Takes every run that is not finished; `each` is told of each that is, and whether it was
    /// before. Gives the outcomes in the order of the runs.
    pub fn take(
        &self,
        runs: &[Run],
        each: &(dyn Fn(usize, &Outcome, bool) + Sync),
    ) -> Vec<Outcome> {
        let one = |index: usize| -> Result<Outcome, Infallible> {
            let run = &runs[index];
            let before = self.read(run);
            let is_old = before != Outcome::Open;
            let outcome = match self.program {
                Some(program) if !is_old && !self.stop.load(Ordering::Relaxed) => {
                    self.run(program, run)
                }
                _ => before,
            };
            if outcome != Outcome::Open {
                each(index, &outcome, is_old);
            }
            Ok(outcome)
        };
        let Ok(outcomes) = parallel(self.jobs, (0..runs.len()).collect(), one);
        outcomes
    }

    /// What a run has left.
    fn read(&self, run: &Run) -> Outcome {
        let folder = self.folder(run);
        let summary = fs::read(folder.join("summary.json")).ok();
        let Some(summary) = summary.and_then(|s| serde_json::from_slice::<Summary>(&s).ok()) else {
            return Outcome::Open;
        };
        if summary.end == End::Interrupted {
            return Outcome::Open;
        }
        let value = match self.metric {
            Metric::ValidationLoss => f64::from(summary.validation_loss),
            Metric::BestValidationLoss => {
                summary.best.map_or(f64::NAN, |(_, loss)| f64::from(loss))
            }
            Metric::TrainingLoss => f64::from(summary.training_loss),
            Metric::ValidationAccuracy => summary.validation_accuracy.unwrap_or(f64::NAN),
            Metric::TokensPerS => summary.tokens_per_s,
        };
        match value.is_finite() {
            true => {
                let (steps, tokens_per_s) = (summary.steps, summary.tokens_per_s);
                Outcome::Done { value, steps, tokens_per_s }
            }
            false => Outcome::Diverged,
        }
    }

    /// Starts or continues a run and waits for its end.
    fn run(&self, program: &Path, run: &Run) -> Outcome {
        match self.execute(program, run) {
            Ok(status) if status.success() => self.read(run),
            Ok(status) if self.stop.load(Ordering::Relaxed) || status.code() == Some(130) => {
                // The other runs have been told by the same signal, or are now.
                self.stop.store(true, Ordering::Relaxed);
                Outcome::Open
            }
            Ok(status) => {
                let log = fs::read_to_string(self.folder(run).join("log.txt")).unwrap_or_default();
                let line = log.lines().rfind(|line| line.starts_with("error"));
                Outcome::Failed { error: line.map_or(status.to_string(), str::to_owned) }
            }
            Err(error) => Outcome::Failed { error: error.to_string() },
        }
    }

    fn execute(&self, program: &Path, run: &Run) -> Result<ExitStatus, Error> {
        let folder = self.folder(run);
        let io = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Io { action, path, source }
        };
        fs::create_dir_all(&folder).map_err(io("create", &folder))?;
        let mut command = Command::new(program);
        command.args(["train", "--quiet"]);
        if folder.join("config.toml").exists() {
            command.arg("--resume").arg(&folder);
        } else {
            let path = folder.join("settings.toml");
            atomic::write(&path, run.settings.to_string().as_bytes())?;
            command.arg(path).arg("--out").arg(&folder);
        }
        let path = folder.join("log.txt");
        let log = File::create(&path).map_err(io("write", &path))?;
        let output = log.try_clone().map_err(io("write", &path))?;
        command.env("RAYON_NUM_THREADS", self.threads.to_string());
        command.stdin(Stdio::null()).stdout(output).stderr(log);
        let mut child = command.spawn().map_err(io("start", program))?;
        let mut is_told = false;
        loop {
            if let Some(status) = child.try_wait().map_err(io("wait for", program))? {
                return Ok(status);
            }
            if !is_told && self.stop.load(Ordering::Relaxed) {
                interrupt(&mut child);
                is_told = true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Asks a process to save and end. Where there are no signals, it is ended; its last checkpoint
/// stays.
fn interrupt(child: &mut Child) {
    let asked = cfg!(unix)
        && Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .is_ok_and(|status| status.success());
    if !asked {
        // It may have ended by itself.
        let _ = child.kill();
    }
}
