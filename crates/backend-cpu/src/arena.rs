//! The one block of memory that holds every tensor of a program.

use onesigma_graph::Place;

/// Zeroed memory, aligned as the plan's places are.
pub(crate) struct Arena {
    lines: Vec<Line>,
    bytes: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A way to the arena that does not borrow it.
///
/// Instructions read some places and write others of one arena at the same time; that they do not
/// overlap was checked when the program was validated.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it is an address and a length; every access is `unsafe` with its own promise.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Arena {
    /// `None` if there is not so much memory.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        let mut lines = Vec::new();
        let count = bytes.div_ceil(64);
        lines.try_reserve_exact(count).ok()?;
        lines.resize(count, Line([0; 64]));
        Some(Self { lines, bytes })
    }

    pub(crate) fn memory(&mut self) -> Memory {
        Memory { start: self.lines.as_mut_ptr().cast(), bytes: self.bytes }
    }

    /// The bytes at a place.
    pub(crate) fn at(&mut self, place: Place) -> &mut [u8] {
        // SAFETY: the arena is borrowed mutably for as long as the slice lives.
        unsafe { self.memory().write(place) }
    }
}

impl Memory {
    fn check(&self, place: Place) {
        let end = place.offset.checked_add(place.bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "a place outside the arena");
    }

    /// Bytes to read.
    ///
    /// # Safety
    /// The arena lives, and nothing writes this place while the slice is in use.
    pub(crate) unsafe fn read<'a>(self, place: Place) -> &'a [u8] {
        self.check(place);
        // SAFETY: inside the arena; not written meanwhile by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(place.offset), place.bytes) }
    }

    /// Bytes to write.
    ///
    /// # Safety
    /// The arena lives, and nothing else reads or writes this place while the slice is in use.
    pub(crate) unsafe fn write<'a>(self, place: Place) -> &'a mut [u8] {
        self.check(place);
        // SAFETY: inside the arena; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(place.offset), place.bytes) }
    }
}
