//! The suite that every backend runs, on the GPU; skipped where there is none.

fn main() -> std::process::ExitCode {
    onesigma_conformance::main_for(|| Ok(Box::new(onesigma_backend_tch::TchBackend::cuda()?)))
}
