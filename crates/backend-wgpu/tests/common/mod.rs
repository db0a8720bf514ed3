//! What the tests of this crate share.

use std::sync::{Mutex, PoisonError};

use onesigma_backend::Error;
use onesigma_backend_wgpu::{Options, WgpuBackend};

/// A backend with some options; `None`, said aloud, on machines without an adapter.
pub fn backend(options: &Options) -> Option<WgpuBackend> {
    match WgpuBackend::with(options) {
        Ok(backend) => Some(backend),
        Err(error @ Error::Unavailable { .. }) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// As [`backend`], opened once for equal options: a device takes seconds where it has cooperative
/// matrices, as these are checked.
#[allow(dead_code)] // tests that need a device of their own
pub fn shared(options: &Options) -> Option<WgpuBackend> {
    static OPENED: Mutex<Vec<(String, Option<WgpuBackend>)>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let asked = format!("{options:?}");
    if let Some((_, found)) = opened.iter().find(|(options, _)| *options == asked) {
        return found.clone();
    }
    let found = backend(options);
    opened.push((asked, found.clone()));
    found
}
