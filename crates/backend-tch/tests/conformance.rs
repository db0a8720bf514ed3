//! The suite that every backend runs, on libtorch's CPU device.

fn main() -> std::process::ExitCode {
    onesigma_conformance::main_for(|| Ok(Box::new(onesigma_backend_tch::TchBackend::cpu())))
}
