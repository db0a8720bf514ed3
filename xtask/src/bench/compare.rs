//! Two records, case by case.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::machine::Machine;
use super::record::Record;
use super::statistics::ratio_interval;

/// The record that `name` means: a file, the start of a commit, or `last`; the latter two are the
/// newest of this machine.
pub fn base(folder: &Path, name: &str, machine: &Machine) -> Result<(PathBuf, Record)> {
    let path = Path::new(name);
    if path.is_file() {
        return Ok((path.to_path_buf(), Record::read(path)?));
    }
    let fits = |record: &Record| name == "last" || record.commit.starts_with(name);
    let mut all = Record::all(folder)?;
    all.retain(|(_, record)| fits(record) && record.machine.is_like(machine));
    all.pop().with_context(|| {
        format!(
            "--compare {name}: no record of this machine ({}) in {} and no such file; \
             `cargo xtask bench` makes one",
            machine.words(),
            folder.display()
        )
    })
}

/// A case that both records have.
#[derive(Debug)]
struct Pair {
    name: String,
    old_ms: f64,
    new_ms: f64,
    /// The 99 % interval of new over old.
    interval: (f64, f64),
}

/// Every case of two records.
#[derive(Debug)]
pub struct Comparison {
    pairs: Vec<Pair>,
    tolerance: f64,
    /// Cases that only one of them has.
    alone: Vec<String>,
    remarks: Vec<String>,
}

impl Comparison {
    /// A case counts as changed if the whole interval of its ratio is beyond `tolerance`.
    pub fn new(old: &Record, new: &Record, tolerance: f64) -> Self {
        let name = |case: &super::record::Case| {
            format!("{} | {} | {}", case.backend, case.group, case.case)
        };
        let (mut pairs, mut alone) = (Vec::new(), Vec::new());
        for case in &new.cases {
            match old.cases.iter().find(|other| other.key() == case.key()) {
                Some(other) => pairs.push(Pair {
                    name: name(case),
                    old_ms: other.median_ms(),
                    new_ms: case.median_ms(),
                    interval: ratio_interval(other.samples(), case.samples()),
                }),
                None => alone.push(format!("{} (new)", name(case))),
            }
        }
        let is_gone =
            |case: &&super::record::Case| !new.cases.iter().any(|other| other.key() == case.key());
        alone.extend(old.cases.iter().filter(is_gone).map(|c| format!("{} (gone)", name(c))));
        let mut remarks = Vec::new();
        if !old.machine.is_like(&new.machine) {
            remarks.push(format!(
                "the machines differ: {} and {}",
                old.machine.words(),
                new.machine.words()
            ));
        }
        let busy = |record: &Record| record.machine.load.is_some_and(|load| load > 1.0);
        if busy(old) || busy(new) {
            remarks.push("something else was running: ratios of loaded machines say little".into());
        }
        Self { pairs, tolerance, alone, remarks }
    }

    /// Cases that both have.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Cases that are slower beyond their noise.
    pub fn regressions(&self) -> usize {
        self.pairs.iter().filter(|pair| pair.interval.0 > 1.0 + self.tolerance).count()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for remark in &self.remarks {
            writeln!(f, "note: {remark}")?;
        }
        writeln!(f, "{:>10} {:>10} {:>7}  99 % interval", "old ms", "new ms", "new/old")?;
        for pair in &self.pairs {
            let (low, high) = pair.interval;
            let verdict = if low > 1.0 + self.tolerance {
                "slower"
            } else if high < 1.0 / (1.0 + self.tolerance) {
                "faster"
            } else {
                ""
            };
            writeln!(
                f,
                "{:>10.4} {:>10.4} {:>7.3}  {low:.3} to {high:.3}  {verdict:<6}  {}",
                pair.old_ms,
                pair.new_ms,
                pair.new_ms / pair.old_ms,
                pair.name
            )?;
        }
        for name in &self.alone {
            writeln!(f, "not in both: {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::record;

    fn samples(scale: f64) -> Vec<f64> {
        (0..15).map(|n| scale * (100.0 + f64::from(n * 7 % 5))).collect()
    }

    #[test]
    fn a_slowdown_beyond_the_noise_is_a_regression() {
        let old = record("2026-01-01T00:00:00Z", &samples(1.0));
        let regressions = |scale| {
            let new = record("2026-01-02T00:00:00Z", &samples(scale));
            Comparison::new(&old, &new, 0.05).regressions()
        };
        assert_eq!([regressions(1.2), regressions(1.03), regressions(0.8)], [1, 0, 0]);
    }

    #[test]
    fn noise_is_no_regression() {
        let noisy = |shift: usize| -> Vec<f64> {
            (0..15).map(|n| 100.0 + 40.0 * ((n + shift) * 7 % 5) as f64).collect()
        };
        let (old, new) = (record("a", &noisy(0)), record("b", &noisy(2)));
        assert_eq!(Comparison::new(&old, &new, 0.05).regressions(), 0);
    }

    #[test]
    fn a_base_that_is_not_there_is_named() {
        let folder = std::env::temp_dir().join("onesigma-no-records");
        let error = base(&folder, "abc123", &Machine::here()).expect_err("there is none");
        assert!(error.to_string().contains("abc123"), "{error}");
    }
}
