//! What the tests of this crate share.

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
