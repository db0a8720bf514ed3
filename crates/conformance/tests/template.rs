//! The skeleton under `templates/backend` compiles, stays short, and passes the suite.

#[path = "../../../templates/backend/src/lib.rs"]
#[rustfmt::skip]
mod template;

fn main() -> std::process::ExitCode {
    let code = include_str!("../../../templates/backend/src/lib.rs");
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    let lines = code.lines().filter(is_code).count();
    assert!(lines < 100, "the skeleton has {lines} lines of code, expected fewer than 100");
    onesigma_conformance::main_for(|| Ok(Box::new(template::backend()?)))
}
