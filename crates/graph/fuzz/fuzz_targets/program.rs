//! Any bytes as a program file: an error, or a valid program that can be printed, priced and run
//! on the null backend and on the reference.
#![no_main]

#[path = "../../../backend/tests/programs/mod.rs"]
mod programs;

use libfuzzer_sys::fuzz_target;
use onesigma_backend::RefBackend;

fuzz_target!(|data: &[u8]| {
    if let Some(program) = programs::read(data) {
        programs::look(&program);
        programs::run(&program, &RefBackend::rounding());
    }
});
