//! `cargo xtask coverage`: which lines the tests run, crate by crate.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{self, cargo_with, has_cargo_command, root};
use crate::release::{git, skip};

/// Arguments of `cargo xtask coverage`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Keep the table: docs/results/coverage.md
    #[arg(long)]
    keep: bool,
    /// Print the table of the instrumented tests that ran last; runs nothing
    #[arg(long)]
    last: bool,
    /// Write a page for each file to target/llvm-cov/html as well
    #[arg(long)]
    html: bool,
    /// Passed on to `cargo test`, for example `-p onesigma-format`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// What `cargo llvm-cov report --json --summary-only` says.
#[derive(Deserialize)]
struct Export {
    data: Vec<Data>,
}

#[derive(Deserialize)]
struct Data {
    files: Vec<FileSummary>,
}

#[derive(Deserialize)]
struct FileSummary {
    filename: PathBuf,
    summary: Summary,
}

#[derive(Deserialize)]
struct Summary {
    lines: Counts,
    functions: Counts,
}

#[derive(Clone, Copy, Default, Deserialize, Debug, PartialEq)]
struct Counts {
    count: u64,
    covered: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.covered += other.covered;
    }

    fn percent(self) -> f64 {
        100.0 * self.covered as f64 / self.count.max(1) as f64
    }
}

/// Runs the tests with instrumented code and prints the share of lines by crate.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !has_cargo_command("llvm-cov") {
        return skip(
            "cargo llvm-cov",
            "cargo install cargo-llvm-cov --locked && rustup component add llvm-tools",
        );
    }
    if !arguments.last {
        let mut test = cargo_with(["llvm-cov", "--no-report", "test"]);
        process::run(test.args(&arguments.rest))?;
    }
    // Tests kill programs, which leave half a profile.
    let report = ["llvm-cov", "report", "--failure-mode", "all", "--json", "--summary-only"];
    let report = cargo_with(report).output()?;
    let export: Export = serde_json::from_slice(&report.stdout).with_context(|| {
        format!("cargo llvm-cov report: {}", String::from_utf8_lossy(&report.stderr))
    })?;
    let files = export.data.into_iter().flat_map(|data| data.files);
    let table = table(&by_crate(files));
    print!("{table}");
    if arguments.keep {
        let commit = git(&["rev-parse", "--short", "HEAD"])?;
        let page = format!(
            "# Test coverage\n\nLines and functions that `cargo xtask coverage` reaches, tests \
             themselves left out where they stand in files of their own; commit {commit}. Code for \
             instruction sets that the machine lacks and for GPUs is not reached here.\n\n{table}"
        );
        std::fs::write(root().join("docs/results/coverage.md"), page)?;
        println!("wrote docs/results/coverage.md");
    }
    if arguments.html {
        process::run(&mut cargo_with(["llvm-cov", "report", "--failure-mode", "all", "--html"]))?;
    }
    Ok(())
}

/// Lines and functions of each crate; those of tests are no code to be tested.
fn by_crate(files: impl Iterator<Item = FileSummary>) -> BTreeMap<String, [Counts; 2]> {
    let mut crates: BTreeMap<String, [Counts; 2]> = BTreeMap::new();
    for FileSummary { filename, summary } in files {
        let Ok(path) = filename.strip_prefix(root()) else { continue };
        let Some(name) = crate_of(path) else { continue };
        let sums = crates.entry(name).or_default();
        sums[0].add(summary.lines);
        sums[1].add(summary.functions);
    }
    crates
}

/// The folder of a source file's crate; none for a file of tests.
fn crate_of(path: &Path) -> Option<String> {
    let words: Vec<&str> = path.iter().filter_map(|word| word.to_str()).collect();
    let is_test = words.contains(&"tests") || words.last() == Some(&"tests.rs");
    match words[..] {
        _ if is_test => None,
        ["crates", name, ..] => Some(name.to_owned()),
        [name, ..] => Some(name.to_owned()),
        [] => None,
    }
}

fn table(crates: &BTreeMap<String, [Counts; 2]>) -> String {
    let mut text = "| crate | lines | reached | functions | reached |\n".to_owned();
    text += "| --- | ---: | ---: | ---: | ---: |\n";
    let mut all = [Counts::default(); 2];
    let mut row = |name: &str, [lines, functions]: [Counts; 2]| {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {name} | {} | {:.1} % | {} | {:.1} % |",
            lines.count,
            lines.percent(),
            functions.count,
            functions.percent()
        );
    };
    for (name, sums) in crates {
        all.iter_mut().zip(sums).for_each(|(all, own)| all.add(*own));
        row(name, *sums);
    }
    row("**all**", all);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_summed_by_crate_without_tests() {
        let file = |name: &str, count, covered| FileSummary {
            filename: root().join(name),
            summary: Summary {
                lines: Counts { count, covered },
                functions: Counts { count: 2, covered: 1 },
            },
        };
        let files = [
            file("crates/format/src/lib.rs", 10, 5),
            file("crates/format/src/scalar.rs", 30, 30),
            file("crates/train/src/checkpoint/tests.rs", 100, 100),
            file("crates/onesigma/tests/common/mod.rs", 100, 100),
            file("xtask/src/main.rs", 10, 0),
        ];
        let found = table(&by_crate(files.into_iter()));
        for row in [
            "| format | 40 | 87.5 % | 4 | 50.0 % |",
            "| xtask | 10 | 0.0 % | 2 | 50.0 % |",
            "| **all** | 50 | 70.0 % | 6 | 50.0 % |",
        ] {
            assert!(found.contains(row), "{row} in {found}");
        }
        assert!(!found.contains("train") && !found.contains("onesigma"));
    }
}
