//! Development tasks: `cargo xtask demo`, `test`, `bench`, `report`, `ci`, `release`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod browser;
mod bundle;
mod ci;
mod coverage;
mod curves;
mod demo;
#[cfg(test)]
mod docs;
mod experiment;
mod fetch;
mod formats;
mod libtorch;
mod matrix;
mod minilm;
mod pictures;
// Shared with `onesigma sweep`, without its dependencies.
#[path = "../../crates/onesigma/src/chart.rs"]
mod plot;
mod process;
mod release;
mod report;
mod svg;
mod test;

/// Development tasks of Onesigma.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Train a small GPT in FP8 beside the same model in f32, and compare.
    Demo(demo::Arguments),
    /// Measure the claims of the unit-scaling papers at small size.
    Experiment(experiment::Arguments),
    /// Fetch a model that tests check against, to a folder below target/.
    Fetch(fetch::Arguments),
    /// Measure what narrow formats do to a sentence encoder.
    Minilm(minilm::Arguments),
    /// Run every test, documentation tests included.
    Test(test::Arguments),
    /// Check formatting, lints, documentation, licences, and run every test.
    Ci(ci::Arguments),
    /// Check every combination of features that should build.
    Matrix(matrix::Arguments),
    /// Run the tests and report which lines they reach.
    Coverage(coverage::Arguments),
    /// Check what has to hold before crates are published; publishes nothing.
    Release(release::Arguments),
    /// Check, draw and time the number formats.
    Formats(formats::Arguments),
    /// Draw the pictures of the chapter on unit scaling.
    Pictures(pictures::Arguments),
    /// Measure every backend on every device that is there; keep and compare records.
    Bench(bench::Arguments),
    /// Draw every recorded result on one page.
    Report(report::Arguments),
    /// Train the demo page in a real browser.
    Browser(browser::Arguments),
    /// Pack binaries, benchmarks and a script for a GPU machine.
    Bundle(bundle::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Experiment(arguments) => experiment::run(&arguments),
        Task::Fetch(arguments) => fetch::run_task(&arguments),
        Task::Minilm(arguments) => minilm::run_task(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Ci(arguments) => ci::run(&arguments),
        Task::Matrix(arguments) => matrix::run(&arguments),
        Task::Coverage(arguments) => coverage::run(&arguments),
        Task::Release(arguments) => release::run(&arguments),
        Task::Formats(arguments) => formats::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Pictures(arguments) => pictures::run(&arguments),
        Task::Report(arguments) => report::run(&arguments),
        Task::Browser(arguments) => browser::run(&arguments),
        Task::Bundle(arguments) => bundle::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
