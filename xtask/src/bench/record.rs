//! What a run of `cargo xtask bench` leaves: one JSON file, never overwritten.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::machine::Machine;
use super::statistics;
use crate::process::root;

/// Of the form below; a reader refuses what is newer.
pub const VERSION: u32 = 1;

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// When, UTC, as `2026-01-31T12:00:00Z`.
    pub date: String,
    /// What was measured; `-dirty` if the work tree differed from it.
    pub commit: String,
    /// The compiler.
    pub rustc: String,
    /// On what.
    pub machine: Machine,
    /// Backends and their devices, with the limits that were measured just before.
    pub devices: Vec<Device>,
    /// Everything that was timed.
    pub cases: Vec<Case>,
    /// What was not, and why.
    pub skipped: Vec<Skipped>,
}

/// A backend that was there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub backend: String,
    /// Its device, in words.
    pub device: String,
    /// Bytes that programs can use.
    pub memory_bytes: Option<u64>,
    /// Peak rates, if the backend can measure them.
    pub limits: Option<Value>,
}

/// One program on one backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// codec, gemm, kernel, layer or step.
    pub suite: String,
    /// What it was interleaved with, and what is common to that.
    pub group: String,
    /// A format or a recipe.
    pub case: String,
    /// The backend.
    pub backend: String,
    /// For charts over sizes.
    pub width: Option<usize>,
    /// What an item is: tokens, elements, FLOP.
    pub unit: String,
    /// Items of one run.
    pub items: f64,
    /// Time of one run in milliseconds, one number a sample, one start after another.
    pub times_ms: Vec<f64>,
    /// How often the program was started, each time for as many samples.
    #[serde(default = "once")]
    pub launches: usize,
    /// The least time that the device's measured rates allow.
    pub limit_ms: Option<f64>,
    /// Bytes of the plan.
    pub planned_bytes: u64,
    /// Bytes that the engine allocated.
    pub allocated_bytes: u64,
}

/// Something that was not measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// A backend, or a case on it.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// A line of the measuring program.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Line {
    /// A backend that is there.
    Device(Device),
    /// A finished case.
    Case(Case),
    /// What is left out.
    Skipped(Skipped),
}

fn once() -> usize {
    1
}

impl Case {
    /// Its times with where they come from.
    pub fn samples(&self) -> statistics::Samples<'_> {
        statistics::Samples { times: &self.times_ms, launches: self.launches }
    }

    /// What names it in another record.
    pub fn key(&self) -> (&str, &str, &str) {
        (&self.group, &self.case, &self.backend)
    }

    /// Median time of a run, in milliseconds.
    pub fn median_ms(&self) -> f64 {
        statistics::median(&self.times_ms)
    }

    /// Items a second at the median.
    pub fn rate(&self) -> f64 {
        self.items / self.median_ms() * 1e3
    }

    /// Share of the limit that is reached: 1 is as fast as the device's rates allow.
    pub fn of_limit(&self) -> Option<f64> {
        self.limit_ms.map(|limit| limit / self.median_ms())
    }
}

impl Record {
    /// Adds what another start of the program measured; a case that is there gets more samples.
    pub fn add(&mut self, case: Case) {
        let known = self.cases.iter_mut().find(|other| other.key() == case.key());
        match known {
            Some(known) => {
                known.times_ms.extend(case.times_ms);
                known.launches += case.launches;
            }
            None => self.cases.push(case),
        }
    }

    /// An empty one of this machine, commit and moment.
    pub fn here() -> Self {
        let git = |words: &[&str]| crate::release::git(words).ok();
        let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).unwrap_or_default();
        let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
        let rustc = Command::new("rustc").arg("--version").output();
        let rustc = rustc.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        Self {
            version: VERSION,
            date: now(),
            commit: if dirty.is_empty() { commit } else { format!("{commit}-dirty") },
            rustc: rustc.unwrap_or_default(),
            machine: Machine::here(),
            devices: Vec::new(),
            cases: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Reads a record.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let record: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no record of `cargo xtask bench`", path.display()))?;
        ensure!(
            record.version <= VERSION,
            "{} has version {}, this xtask reads up to {VERSION}",
            path.display(),
            record.version
        );
        Ok(record)
    }

    /// Every record of a folder, oldest first.
    pub fn all(folder: &Path) -> Result<Vec<(PathBuf, Self)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                found.push((path.clone(), Self::read(&path)?));
            }
        }
        found.sort_by(|(_, a), (_, b)| a.date.cmp(&b.date));
        Ok(found)
    }

    /// Writes the record under a name that is free; gives its path from the workspace root.
    pub fn keep(&self, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder)?;
        let stem = format!("{}-{}", self.date.replace([':', 'Z'], ""), self.commit);
        for n in 0_u32.. {
            let suffix = if n == 0 { String::new() } else { format!("-{n}") };
            let path = folder.join(format!("{stem}{suffix}.json"));
            let file = fs::OpenOptions::new().write(true).create_new(true).open(&path);
            match file {
                Ok(file) => {
                    serde_json::to_writer_pretty(file, self)?;
                    return Ok(path.strip_prefix(root()).unwrap_or(&path).to_path_buf());
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot write {}", path.display()));
                }
            }
        }
        unreachable!("four thousand million records of one second")
    }

    /// For the terminal.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}, commit {}, load {:.1}\n",
            self.machine.words(),
            self.commit,
            self.machine.load.unwrap_or(f64::NAN)
        );
        let mut group = "";
        for case in &self.cases {
            if case.group != group {
                group = &case.group;
                let _ = writeln!(text, "\n{}: {group}", case.suite);
            }
            let spread = statistics::spread(&case.times_ms);
            let limit = case
                .of_limit()
                .map_or(String::new(), |x| format!("{:5.1} % of the limit", 100.0 * x));
            let _ = writeln!(
                text,
                "  {:<7} {:<24} {:>10.4} ms ±{:>4.1} %  {:>9}/s  {limit}",
                case.backend,
                case.case,
                case.median_ms(),
                100.0 * spread,
                quantity(case.rate(), &case.unit),
            );
        }
        text
    }
}

/// `12.3 M tokens`: three digits and a prefix.
pub fn quantity(value: f64, unit: &str) -> String {
    let (scale, prefix) = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")]
        .into_iter()
        .find(|(scale, _)| value >= *scale)
        .unwrap_or((1.0, ""));
    let value = value / scale;
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!(
        "{value:.digits$} {prefix}{}{unit}",
        if unit == "FLOP" || prefix.is_empty() { "" } else { " " }
    )
}

/// The moment in UTC. The calendar is Hinnant's `civil_from_days`.
fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    date(seconds)
}

fn date(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86400) as i64, seconds % 86400);
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z - era * 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A record with one case.
    pub fn record(date: &str, times_ms: &[f64]) -> Record {
        let case = Case {
            suite: "step".into(),
            group: "GPT of width 256".into(),
            case: "unit-fp8".into(),
            backend: "cpu".into(),
            width: Some(256),
            unit: "tokens".into(),
            items: 2048.0,
            times_ms: times_ms.to_vec(),
            launches: 1,
            limit_ms: Some(50.0),
            planned_bytes: 1 << 20,
            allocated_bytes: 2 << 20,
        };
        let mut record = Record::here();
        record.date = date.into();
        record.cases.push(case);
        record
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_798_761_599), "2026-12-31T23:59:59Z");
    }

    #[test]
    fn records_are_kept_side_by_side() {
        let folder = std::env::temp_dir().join(format!("onesigma-record-{}", std::process::id()));
        let record = record("2026-01-02T03:04:05Z", &[100.0]);
        let (one, two) = (record.keep(&folder).expect("room"), record.keep(&folder).expect("room"));
        assert_ne!(one, two);
        let all = Record::all(&folder).expect("both");
        fs::remove_dir_all(&folder).expect("its own folder");
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].1.cases[0].times_ms, [100.0]);
    }

    #[test]
    fn quantities_have_three_digits() {
        assert_eq!(quantity(12_345.0, "tokens"), "12.3 k tokens");
        assert_eq!(quantity(1.51e15, "FLOP"), "1510 TFLOP");
        assert_eq!(quantity(7.0, "tokens"), "7.00 tokens");
    }
}
