//! Running the command line from tests.
#![allow(dead_code)] // each test file uses its own part

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use onesigma::train::run_dir::RunDir;
use onesigma::train::telemetry::Record;

/// A model that trains at once.
pub const TINY: [&str; 20] = [
    "--layers",
    "1",
    "--heads",
    "2",
    "--hidden",
    "16",
    "--seq",
    "32",
    "--batch",
    "2",
    "--steps",
    "8",
    "--steps-per-call",
    "2",
    "--eval-batches",
    "1",
    "--eval-every",
    "4",
    "--save-every",
    "2",
];

/// What a process left.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The command line with arguments.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onesigma"));
    // Nothing outside of the test's own folders is written.
    command.args(arguments).env("ONESIGMA_CACHE", "off");
    command
}

/// Runs the command line in the package's folder.
pub fn onesigma(arguments: &[&str]) -> Outcome {
    run(&mut command(arguments))
}

/// Runs the command line in `dir`.
pub fn onesigma_in(dir: &Path, arguments: &[&str]) -> Outcome {
    run(command(arguments).current_dir(dir))
}

/// A temporary folder.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A text of 20 kB with something to learn in it.
pub fn text_file(dir: &Path) -> PathBuf {
    let mut text = String::new();
    for n in 0..600u32 {
        let _ = writeln!(text, "{n} squared is {}, and so on.", n * n);
    }
    let path = dir.join("text.txt");
    std::fs::write(&path, text).expect("room");
    path
}

/// Lines about losses, which have to be the same on every run.
pub fn losses(run: &Path) -> Vec<Record> {
    let records = RunDir::metrics(run).expect("a run");
    records.into_iter().filter(|record| !matches!(record, Record::Speed { .. })).collect()
}
