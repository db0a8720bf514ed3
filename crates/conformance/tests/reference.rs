//! The reference backend passes its own suite, which tests the suite and the op-by-op executor.

use onesigma_backend::RefBackend;

fn main() -> std::process::ExitCode {
    onesigma_conformance::main_for(|| Ok(Box::new(RefBackend::rounding())))
}
