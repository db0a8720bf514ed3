//! The suite that every backend runs, on the first adapter of this machine.
#![allow(clippy::print_stdout)] // what it runs on is said aloud

use std::sync::OnceLock;

use onesigma_backend::{Backend, Result};
use onesigma_backend_wgpu::{CooperativeMatrices, Options, WgpuBackend};

/// With cooperative matrices of software drivers, too.
fn open() -> Result<WgpuBackend> {
    let matrices = CooperativeMatrices::Everywhere;
    WgpuBackend::with(&Options { matrices, ..Options::default() })
}

/// Opening a device takes longer than most cases, and engines share nothing else of it.
fn shared() -> Result<Box<dyn Backend>> {
    static SHARED: OnceLock<WgpuBackend> = OnceLock::new();
    if SHARED.get().is_none() {
        // Of two that come at once, one is dropped.
        let backend = open()?;
        println!("on {}: {}", backend.caps().device, backend.abilities());
        let _ = SHARED.set(backend);
    }
    match SHARED.get() {
        Some(backend) => Ok(Box::new(backend.clone())),
        None => open().map(|backend| Box::new(backend) as Box<dyn Backend>),
    }
}

fn main() -> std::process::ExitCode {
    onesigma_conformance::main_for(shared)
}
