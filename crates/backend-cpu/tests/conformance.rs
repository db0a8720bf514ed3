//! The suite that every backend runs, on the CPU backend.

fn main() -> std::process::ExitCode {
    onesigma_conformance::main_for(|| Ok(Box::new(onesigma_backend_cpu::CpuBackend::new())))
}
