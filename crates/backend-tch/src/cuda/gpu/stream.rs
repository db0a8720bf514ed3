//! A queue on the GPU: memory, copies, launches, capture and replay.

use std::cell::RefCell;
use std::ffi::c_void;

use cudarc::driver::{result as driver, sys};
use onesigma_backend::{Error, Result};

use super::failed;
use crate::cuda::source::Kernel;

/// Bytes of pinned memory through which small uploads go without waiting.
const PINNED_BYTES: usize = 4 << 20;

/// A queue.
pub(crate) struct Stream {
    pub(crate) raw: sys::CUstream,
    pinned: RefCell<Pinned>,
}

/// Pinned memory: parts before `used` may still be read by the GPU.
struct Pinned {
    memory: *mut u8,
    used: usize,
}

/// A captured queue.
pub(crate) struct Graph(sys::CUgraphExec);

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it was instantiated, and the queue is empty when the device goes.
        let _ = unsafe { driver::graph::exec_destroy(self.0) };
    }
}

impl Stream {
    pub(crate) fn new() -> Result<Self> {
        let raw = driver::stream::create(driver::stream::StreamKind::NonBlocking)
            .map_err(|error| failed("stream", error))?;
        // SAFETY: freed when the stream is dropped.
        let memory = unsafe { driver::malloc_host(PINNED_BYTES, 0) }
            .map_err(|error| failed("pinned memory", error))?;
        let pinned = RefCell::new(Pinned { memory: memory.cast(), used: 0 });
        Ok(Self { raw, pinned })
    }

    /// Bytes of the device that no one uses.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        driver::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        // SAFETY: the engine frees it.
        unsafe { driver::malloc_sync(bytes.max(1)) }.map_err(|error| {
            let available = self.free_bytes().unwrap_or(0);
            match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    Error::OutOfMemory { needed: bytes as u64, available }
                }
                _ => failed("allocation", error),
            }
        })
    }

    pub(crate) fn free(&self, address: u64) {
        // SAFETY: it came from `allocate`; an error would have no one to go to.
        let _ = unsafe { driver::free_sync(address) };
    }

    pub(crate) fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range was allocated.
        unsafe { driver::memset_d8_async(address, 0, bytes, self.raw) }
            .map_err(|error| failed("memset", error))
    }

    /// Fills with pseudo-random codes: in each byte the sign and the lowest bits change, so that
    /// elements of every format are between 2^-31 and 2.
    pub(crate) fn scramble(&self, address: u64, bytes: usize) -> Result<()> {
        let mut state = 1_u64;
        let mut code = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            0x30 | ((state >> 56) as u8 & 0x8f)
        };
        let first: Vec<u8> = (0..bytes.min(PINNED_BYTES)).map(|_| code()).collect();
        self.upload(address, &first)?;
        let mut done = first.len();
        while done < bytes {
            let more = done.min(bytes - done);
            self.copy(address, address + done as u64, more)?;
            done += more;
        }
        Ok(())
    }

    pub(crate) fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut pinned = self.pinned.borrow_mut();
        if bytes.len() > PINNED_BYTES {
            // SAFETY: the range was allocated; the source lives until the queue is empty.
            unsafe { driver::memcpy_htod_async(to, bytes, self.raw) }
                .map_err(|error| failed("upload", error))?;
            return self.synchronize();
        }
        if pinned.used + bytes.len() > PINNED_BYTES {
            self.synchronize()?;
            pinned.used = 0;
        }
        // SAFETY: the part is within the pinned memory and no copy reads it.
        let part = unsafe {
            let part = pinned.memory.add(pinned.used);
            std::slice::from_raw_parts_mut(part, bytes.len())
        };
        part.copy_from_slice(bytes);
        pinned.used += bytes.len();
        // SAFETY: the range was allocated; the pinned part is not touched before the queue is
        // empty.
        unsafe { driver::memcpy_htod_async(to, part, self.raw) }
            .map_err(|error| failed("upload", error))
    }

    pub(crate) fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the range was allocated; the target lives until the queue is empty.
        unsafe { driver::memcpy_dtoh_async(bytes, from, self.raw) }
            .map_err(|error| failed("download", error))?;
        self.synchronize()
    }

    pub(crate) fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 || from == to {
            return Ok(());
        }
        // SAFETY: both ranges were allocated.
        unsafe { driver::memcpy_dtod_async(to, from, bytes, self.raw) }
            .map_err(|error| failed("copy", error))
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives.
        unsafe { driver::stream::synchronize(self.raw) }.map_err(|error| failed("queue", error))
    }

    pub(crate) fn launch(&self, function: usize, kernel: &Kernel, arguments: &[u64]) -> Result<()> {
        debug_assert_eq!(arguments.len(), kernel.params);
        let mut pointers: [*mut c_void; 40] = [std::ptr::null_mut(); 40];
        for (pointer, argument) in pointers.iter_mut().zip(arguments) {
            *pointer = std::ptr::from_ref(argument).cast_mut().cast();
        }
        let [x, y, z] = kernel.grid;
        // SAFETY: the function was compiled from this kernel, whose parameters are pointers to
        // tensors of the sizes it was generated for.
        unsafe {
            driver::launch_kernel(
                function as sys::CUfunction,
                (x, y, z),
                (kernel.threads, 1, 1),
                0,
                self.raw,
                &mut pointers[..arguments.len()],
            )
        }
        .map_err(|error| failed(&kernel.label, error))
    }

    /// Captures what `queue` queues.
    pub(crate) fn capture(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        // Relaxed: libraries may allocate in between.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives, and the capture ends below in any case.
        unsafe { driver::stream::begin_capture(self.raw, mode) }
            .map_err(|error| failed("capture", error))?;
        let queued = queue();
        // SAFETY: a capture is under way.
        let graph = unsafe { driver::stream::end_capture(self.raw) };
        queued?;
        let graph = graph.map_err(|error| failed("capture", error))?;
        // SAFETY: the graph was captured just now, and is not needed once it is instantiated.
        let instance = unsafe {
            let instance = driver::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = driver::graph::destroy(graph);
            instance
        };
        instance.map(Graph).map_err(|error| failed("replay", error))
    }

    pub(crate) fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: graph and stream live.
        unsafe { driver::graph::launch(graph.0, self.raw) }.map_err(|error| failed("replay", error))
    }

    /// Milliseconds that what `queue` queues takes.
    pub(crate) fn time(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        use driver::event;
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let timed = |error| failed("timer", error);
        let [start, end] =
            [event::create(flags).map_err(timed)?, event::create(flags).map_err(timed)?];
        // SAFETY: events and stream live.
        unsafe { event::record(start, self.raw) }.map_err(timed)?;
        let queued = queue();
        // SAFETY: as above; the events are destroyed after their last use.
        let elapsed = unsafe {
            let recorded = event::record(end, self.raw);
            let elapsed = recorded
                .and_then(|()| event::synchronize(end))
                .and_then(|()| event::elapsed(start, end));
            let _ = (event::destroy(start), event::destroy(end));
            elapsed
        };
        queued?;
        elapsed.map_err(timed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nothing is queued any more; errors would have no one to go to.
        unsafe {
            let _ = driver::stream::synchronize(self.raw);
            let _ = driver::stream::destroy(self.raw);
            let _ = driver::free_host(self.pinned.get_mut().memory.cast());
        }
    }
}
