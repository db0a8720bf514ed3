//! Budgets of memory: `512MiB` on the command line and in configurations.

use std::fmt;
use std::str::FromStr;

use onesigma_backend::{Device, NullBackend};
use onesigma_graph::passes::recompute::{self, EntryFit};
use serde::{Deserialize, Serialize};

use crate::program::TrainingProgram;
use crate::{Error, Result};

/// Units by their name, largest first.
const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// What a single letter means when a size is read: binary units, as for most command lines.
const LETTERS: [(&str, u64); 3] = [("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

/// Bytes that a program may take: the arena with state, inputs and temporary tensors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Budget(pub u64);

impl FromStr for Budget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Setting {
            name: "--memory",
            given: text.into(),
            expected: "a size such as 512MiB (or 512M), 1.5GiB, 800MB or 100000000".into(),
        };
        let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.trim();
        let mut units = UNITS.iter().chain(&LETTERS);
        let known = units.find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let scale = match known {
            Some((_, scale)) => *scale,
            None if unit.is_empty() => 1,
            None => return Err(wrong()),
        };
        let bytes = number * scale as f64;
        if !(1.0..9e18).contains(&bytes) {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, scale): &&(&str, u64)| self.0.is_multiple_of(*scale);
        match UNITS.iter().find(whole) {
            Some((name, scale)) => write!(f, "{}{name}", self.0 / scale),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl TryFrom<String> for Budget {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Budget> for String {
    fn from(budget: Budget) -> Self {
        budget.to_string()
    }
}

/// How a program was made to fit.
#[derive(Clone, PartialEq, Debug)]
pub struct MemoryFit {
    /// Bytes that it may take.
    pub budget: Budget,
    /// The device by whose rates it was decided what to recompute.
    pub device: String,
    /// What changed, entry by entry; entries that fitted are left out.
    pub entries: Vec<EntryFit>,
}

impl TrainingProgram {
    /// Makes the program fit a budget by recomputing what costs least on `device`. Every result
    /// keeps its bits.
    ///
    /// # Errors
    /// [`Error::Graph`] with the least that it can be made to fit, if the budget is below.
    pub fn fit(mut self, budget: Budget, device: Device) -> Result<Self> {
        let name = device.name.clone();
        let device = NullBackend::new(device);
        let bytes = usize::try_from(budget.0).unwrap_or(usize::MAX);
        let fitted = recompute::fit(&self.program, bytes, &|graph, node| {
            device.op_cost(graph, node).seconds
        })?;
        self.program = fitted.program;
        self.memory = Some(MemoryFit { budget, device: name, entries: fitted.entries });
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("1.5 GiB", 3 << 29),
            ("800mb", 800_000_000),
            ("123", 123),
            ("64KiB", 64 << 10),
            ("20M", 20 << 20),
            ("2g", 2 << 30),
        ] {
            let budget: Budget = text.parse().expect(text);
            assert_eq!(budget, Budget(bytes));
            assert_eq!(budget.to_string().parse::<Budget>().expect("its own text"), budget);
        }
        assert_eq!(Budget(512 << 20).to_string(), "512MiB");
        for text in ["", "MiB", "-1MiB", "1TiBs", "0", "1e99", "1.2.3MB"] {
            let error = text.parse::<Budget>().expect_err(text);
            assert!(error.is_usage() && error.to_string().contains("--memory"), "{error}");
        }
    }
}
