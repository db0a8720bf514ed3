//! The suite that every backend runs, on the CUDA kernels emulated on the host.

fn main() -> std::process::ExitCode {
    onesigma_conformance::main_for(|| Ok(Box::new(onesigma_backend_tch::TchBackend::emulated()?)))
}
