//! Buffers: made, waited for, read.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use onesigma_backend::{Error, Result};
use wgpu::{Buffer, BufferDescriptor, BufferUsages, ErrorFilter, PollType, SubmissionIndex};

use super::{Gpu, failed};

/// What comes of mapping a buffer, and who waits for it.
#[derive(Default)]
struct Mapping {
    result: Option<std::result::Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

impl Gpu {
    /// Makes a buffer; `before` is what the program has so far.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub(crate) fn buffer(
        &self,
        bytes: usize,
        usage: BufferUsages,
        before: usize,
    ) -> Result<Buffer> {
        let needed = (before + bytes) as u64;
        if let Some(available) = self.memory_bytes.filter(|available| needed > *available) {
            return Err(Error::OutOfMemory { needed, available });
        }
        let filters = [ErrorFilter::OutOfMemory, ErrorFilter::Validation, ErrorFilter::Internal];
        let (buffer, [memory, validation, internal]) = self.watched(filters, || {
            self.device.create_buffer(&BufferDescriptor {
                label: None,
                size: bytes as u64,
                usage,
                mapped_at_creation: false,
            })
        });
        if memory.is_some() {
            return Err(Error::OutOfMemory { needed, available: before as u64 });
        }
        match internal.or(validation) {
            Some(error) => Err(failed(error)),
            None => Ok(buffer),
        }
    }

    /// Waits for a submission, or for all.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn wait(&self, submission: Option<SubmissionIndex>) -> Result<()> {
        let wait = PollType::Wait { submission_index: submission, timeout: None };
        let polled = self.device.poll(wait);
        self.check()?;
        polled.map(|_| ()).map_err(failed)
    }

    /// The content of a range of buffers, each given with its first byte and number of bytes
    /// (multiples of four).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`]; always in a page, which cannot wait.
    pub(crate) fn download(&self, parts: &[(&Buffer, usize, usize)]) -> Result<Vec<u8>> {
        if cfg!(target_family = "wasm") {
            return Err(failed("a page cannot wait for the device: use `read_async`"));
        }
        pollster::block_on(self.download_async(parts))
    }

    /// As [`download`](Self::download), for callers that can be suspended.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub(crate) async fn download_async(
        &self,
        parts: &[(&Buffer, usize, usize)],
    ) -> Result<Vec<u8>> {
        let bytes: usize = parts.iter().map(|part| part.2).sum();
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let staging = self.buffer(bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST, 0)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut at = 0;
        for &(buffer, offset, bytes) in parts {
            encoder.copy_buffer_to_buffer(buffer, offset as u64, &staging, at, bytes as u64);
            at += bytes as u64;
        }
        self.queue.submit([encoder.finish()]);
        let mapping: Arc<Mutex<Mapping>> = Arc::default();
        let told = Arc::clone(&mapping);
        staging.slice(..).map_async(wgpu::MapMode::Read, move |result| {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            told.result = Some(result);
            if let Some(waker) = told.waker.take() {
                waker.wake();
            }
        });
        // A browser polls by itself.
        self.wait(None)?;
        let mapped = poll_fn(|context| {
            let mut mapping = mapping.lock().unwrap_or_else(PoisonError::into_inner);
            match mapping.result.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    mapping.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        });
        mapped.await.map_err(failed)?;
        self.check()?;
        let view = staging.slice(..).get_mapped_range().map_err(failed)?;
        Ok(view.to_vec())
    }
}
