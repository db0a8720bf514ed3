//! The folder of one run: `config.toml`, `metrics.jsonl`, `checkpoints/`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::telemetry::Record;
use crate::{Error, atomic, run_file};

/// A run folder that is open for writing metrics.
///
/// ```
/// use onesigma_train::config::Config;
/// use onesigma_train::run_dir::RunDir;
/// let folder = std::env::temp_dir().join(format!("onesigma-run-{}", std::process::id()));
/// RunDir::create(&folder, &Config::default())?;
/// assert_eq!(RunDir::config::<Config>(&folder)?, Config::default());
/// // A folder holds one run.
/// assert!(RunDir::create(&folder, &Config::default()).is_err());
/// # std::fs::remove_dir_all(&folder).unwrap();
/// # Ok::<(), onesigma_train::Error>(())
/// ```
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    metrics: File,
}

impl RunDir {
    /// Makes a new run folder and writes its configuration.
    ///
    /// # Errors
    /// [`Error::RunExists`] if the folder already holds a configuration; [`Error::Io`];
    /// [`Error::Config`] if `config` has no TOML form.
    pub fn create<C: Serialize>(root: &Path, config: &C) -> Result<Self, Error> {
        let config_path = root.join("config.toml");
        if config_path.exists() {
            return Err(Error::RunExists { path: root.into() });
        }
        let checkpoints = root.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        let text = toml::to_string(config).map_err(|error| Error::Config {
            path: config_path.clone(),
            reason: error.to_string(),
        })?;
        let path = root.join("metrics.jsonl");
        let metrics = File::create(&path).map_err(Error::io("create", &path))?;
        // Last, because its presence is what makes the folder a run.
        atomic::write(&config_path, text.as_bytes())?;
        Ok(Self { root: root.into(), metrics })
    }

    /// The configuration of an existing run.
    ///
    /// # Errors
    /// [`Error::NoRun`] if `root` is no run folder; [`Error::Config`] if its
    /// configuration does not parse.
    pub fn config<C: DeserializeOwned>(root: &Path) -> Result<C, Error> {
        let path = root.join("config.toml");
        let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoRun {
                path: root.into(),
                reason: if root.is_dir() { "it has no config.toml" } else { "there is none" },
            },
            _ => Error::io("read", &path)(source),
        })?;
        run_file::from_toml(&text, &path)
    }

    /// Replaces the configuration of an existing run, which is continued with another length.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] if `config` has no TOML form.
    pub fn rewrite_config<C: Serialize>(&self, config: &C) -> Result<(), Error> {
        let path = self.root.join("config.toml");
        let text = toml::to_string(config)
            .map_err(|error| Error::Config { path: path.clone(), reason: error.to_string() })?;
        atomic::write(&path, text.as_bytes())
    }

    /// Opens an existing run to continue after `steps_done` steps: metrics of later steps, and a
    /// last line that was cut off, are removed, so that no step appears twice.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] for a metrics line, other than the last, that does not
    /// parse.
    pub fn resume(root: &Path, steps_done: u64) -> Result<Self, Error> {
        let path = root.join("metrics.jsonl");
        let mut kept = Vec::new();
        for (number, line, record) in read_records(&path)? {
            match record {
                Ok(record) if record.steps_done() <= steps_done => kept.push(line),
                Ok(_) => {}
                Err(reason) => {
                    let reason = format!("line {number}: {reason}");
                    return Err(Error::Config { path, reason });
                }
            }
        }
        let mut text = kept.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        atomic::write(&path, text.as_bytes())?;
        let checkpoints = root.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        let metrics =
            OpenOptions::new().append(true).open(&path).map_err(Error::io("write", &path))?;
        Ok(Self { root: root.into(), metrics })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Adds lines to `metrics.jsonl` with one write.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn log(&mut self, records: &[Record]) -> Result<(), Error> {
        let path = self.root.join("metrics.jsonl");
        let mut text = Vec::new();
        for record in records {
            serde_json::to_writer(&mut text, record)
                .map_err(|error| Error::Config { path: path.clone(), reason: error.to_string() })?;
            text.push(b'\n');
        }
        self.metrics.write_all(&text).map_err(Error::io("write", &path))
    }

    /// Returns once the metrics have reached the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<(), Error> {
        self.metrics.sync_data().map_err(Error::io("sync", &self.root.join("metrics.jsonl")))
    }

    /// Every line of the metrics of the run in `root`; a last line that was cut off is left out.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] for another line that does not parse.
    pub fn metrics(root: &Path) -> Result<Vec<Record>, Error> {
        let path = root.join("metrics.jsonl");
        read_records(&path)?
            .into_iter()
            .map(|(number, _, record)| {
                record.map_err(|reason| Error::Config {
                    path: path.clone(),
                    reason: format!("line {number}: {reason}"),
                })
            })
            .collect()
    }
}

type Line = (usize, String, Result<Record, String>);

/// The lines of a metrics file with their numbers; one without a final newline is dropped.
fn read_records(path: &Path) -> Result<Vec<Line>, Error> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    for number in 1.. {
        let mut line = String::new();
        let count = reader.read_line(&mut line).map_err(Error::io("read", path))?;
        if count == 0 || !line.ends_with('\n') {
            break;
        }
        line.pop();
        let record = serde_json::from_str(&line).map_err(|error| error.to_string());
        lines.push((number, line, record));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Config {
        steps: u64,
        recipe: String,
    }

    fn config() -> Config {
        Config { steps: 10, recipe: "unit-fp8".into() }
    }

    fn train(step: u64) -> Record {
        Record::Train { step, loss: 5.5 - step as f32, rate: 0.25, grad_norm: None }
    }

    #[test]
    fn a_run_keeps_its_configuration_and_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path().join("run");
        let run = RunDir::create(&root, &config()).expect("a new run");
        assert!(run.checkpoints().is_dir());
        assert_eq!(RunDir::config::<Config>(&root).expect("its configuration"), config());
        let error = RunDir::create(&root, &config()).expect_err("already there");
        assert!(matches!(error, Error::RunExists { .. }));
        let missing = RunDir::config::<Config>(dir.path()).expect_err("no run here");
        assert!(matches!(missing, Error::NoRun { .. }));
    }

    #[test]
    fn resuming_drops_later_steps_and_a_torn_line() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut run = RunDir::create(dir.path(), &config()).expect("a new run");
        let evaluation = Record::Evaluation { step: 2, loss: 4.0, accuracy: None };
        run.log(&[train(0), train(1), evaluation.clone(), train(2), train(3)]).expect("room");
        run.metrics.write_all(br#"{"kind":"train","st"#).expect("room");
        assert_eq!(RunDir::metrics(dir.path()).expect("its lines").len(), 5);

        let mut run = RunDir::resume(dir.path(), 2).expect("a run to continue");
        run.log(&[train(2)]).expect("room");
        let records = RunDir::metrics(dir.path()).expect("its lines");
        assert_eq!(records, [train(0), train(1), evaluation, train(2)]);
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut run = RunDir::create(dir.path(), &config()).expect("a new run");
        run.log(&[train(0)]).expect("room");
        run.metrics.write_all(b"nonsense\n").expect("room");
        run.log(&[train(1)]).expect("room");
        let error = RunDir::resume(dir.path(), 2).expect_err("line 2 is broken");
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
