//! What an engine needs of a device: memory, kernels, products, attention, replay.

use std::rc::Rc;

use onesigma_backend::{Caps, Result};

use super::ir::AttentionSpec;
use super::lower::Abilities;
use super::source::Kernel;
use super::source::matmul::Product;

/// A compiled kernel of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Function(pub usize);

/// A prepared product of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Prepared(pub usize);

/// A captured entry of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Replay(pub usize);

/// A device with a queue of its own: what is queued runs in order. Addresses are plain numbers;
/// memory that was allocated lives as long as the device.
pub(crate) trait Device: Abilities {
    /// What the device is.
    fn caps(&self) -> Caps;

    /// Bytes that programs can still use; `None` if the device has no limit of its own.
    fn free_bytes(&self) -> Option<u64>;

    /// Bytes filled with zeros.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back.
    fn free(&self, address: u64);

    /// Copies from the host; the source may be changed afterwards.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Copies to the host, after everything that is queued.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Queues filling with zeros.
    fn clear(&self, address: u64, bytes: usize) -> Result<()>;

    /// Queues a copy on the device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Compiles kernels, several at a time.
    fn compile(&self, kernels: &[&Kernel]) -> Result<Vec<Function>>;

    /// Queues a kernel.
    fn launch(&self, function: Function, kernel: &Kernel, arguments: &[u64]) -> Result<()>;

    /// Queues filling with codes of no special values, on which products can be timed: on zeros
    /// they would be faster than on data.
    fn scramble(&self, address: u64, bytes: usize) -> Result<()>;

    /// Prepares products and finds their fastest algorithms. Left and right operand, result and the
    /// tensor of the epilogue are at these addresses; content and results are lost.
    fn prepare(&self, product: &Product, at: [u64; 4]) -> Result<Prepared>;

    /// Queues a product.
    fn multiply(&self, prepared: Prepared, at: [u64; 4]) -> Result<()>;

    /// Queues attention: output and log-sum-exp, in the library's memory.
    fn attention(&self, spec: &AttentionSpec, inputs: [u64; 3]) -> Result<[Rc<dyn Held>; 2]>;

    /// Queues the gradients of attention.
    fn attention_grad(&self, spec: &AttentionSpec, inputs: [u64; 6]) -> Result<[Rc<dyn Held>; 3]>;

    /// Milliseconds that what `queue` queues takes; 0 if the device has no clock.
    fn time(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<f32>;

    /// Waits until the queue is empty.
    fn synchronize(&self) -> Result<()>;

    /// Captures what `queue` queues instead of running it; `None` if the device does not replay.
    fn capture(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Replay>>;

    /// Queues a captured entry.
    fn replay(&self, replay: Replay) -> Result<()>;

    /// Bytes that libraries hold besides what was allocated here.
    fn library_bytes(&self) -> usize;
}

/// Memory of a library, free for others when it is dropped.
pub(crate) trait Held {
    fn address(&self) -> u64;
}
