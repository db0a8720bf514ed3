//! Any bytes as a program file, and what is valid on the CPU backend, whose kernels are unsafe code
//! inside: no access outside its memory.
#![no_main]

#[path = "../../../backend/tests/programs/mod.rs"]
mod programs;

use libfuzzer_sys::fuzz_target;
use onesigma_backend_cpu::CpuBackend;
use std::sync::LazyLock;

static BACKEND: LazyLock<CpuBackend> =
    LazyLock::new(|| CpuBackend::with_threads(1).expect("one thread"));

fuzz_target!(|data: &[u8]| {
    if let Some(program) = programs::read(data) {
        programs::run(&program, &*BACKEND);
    }
});
