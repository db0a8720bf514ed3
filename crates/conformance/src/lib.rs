//! The suite that every backend runs: each case a named test, against the f64 reference.
//!
//! A backend crate has one test with `harness = false`:
//!
//! ```no_run
//! # use onesigma_backend::RefBackend;
//! fn main() -> std::process::ExitCode {
//!     onesigma_conformance::main_for(|| Ok(Box::new(RefBackend::rounding())))
//! }
//! ```
//!
//! The environment variable `ONESIGMA_CONFORMANCE` chooses a mode: `test` (all but gradients),
//! `grad` (gradients), `all` (both, the default), `support` (prints which op takes which format),
//! `perf` (prints times). Names filter as in every Rust test: `cargo test -p … -- op::mat_mul`.
//! What a backend does not claim is listed as ignored, with the reason as its kind.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)] // a test harness talks to people

mod cases;
mod casts;
mod check;
mod grads;
mod protocol;
mod report;
mod steps;
pub mod tolerance;

use libtest_mimic::{Arguments, Trial};
use onesigma_backend::{Backend, Error, Result};
use std::process::ExitCode;

/// Makes the backend under test; called for each case.
pub type Make = fn() -> Result<Box<dyn Backend>>;

/// What a case says when it fails.
pub(crate) type Verdict = std::result::Result<(), String>;

/// Runs the suite with the process's arguments.
pub fn main_for(make: Make) -> ExitCode {
    let arguments = Arguments::from_args();
    let backend = match make() {
        Ok(backend) => backend,
        Err(error @ Error::Unavailable { .. }) => {
            println!("skipped: {error}");
            let trial = Trial::test("available", || Ok(())).with_ignored_flag(true);
            return libtest_mimic::run(&arguments, vec![trial.with_kind("skip")]).exit_code();
        }
        Err(error) => {
            eprintln!("the backend cannot be made: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mode = std::env::var("ONESIGMA_CONFORMANCE").unwrap_or_else(|_| "all".to_owned());
    let mut trials = Vec::new();
    if mode == "support" {
        report::support(&*backend);
        return ExitCode::SUCCESS;
    }
    if mode == "perf" {
        return match report::perf(&*backend) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    if mode == "test" || mode == "all" {
        trials.extend(cases::trials(make, &*backend));
        trials.extend(casts::trials(make, &*backend));
        trials.extend(protocol::trials(make, &*backend));
        trials.extend(steps::trials(make, &*backend));
    }
    if mode == "grad" || mode == "all" {
        trials.extend(grads::trials(make));
    }
    if trials.is_empty() {
        eprintln!("ONESIGMA_CONFORMANCE is `{mode}`; expected all, test, grad, support or perf");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A named case.
pub(crate) fn trial(
    name: impl Into<String>,
    make: Make,
    run: impl FnOnce(&dyn Backend) -> Verdict + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        let backend = make().map_err(|error| error.to_string())?;
        Ok(run(&*backend)?)
    })
}

/// A case that is left out, with the reason.
pub(crate) fn skipped(name: impl Into<String>, reason: &str) -> Trial {
    Trial::test(name, || Err("not supported by this backend".into()))
        .with_kind(format!("skip: {reason}"))
        .with_ignored_flag(true)
}
