//! Tasks, and the two things tasks share: scratch memory and a disjointly written output.
//!
//! How work is cut into tasks depends on sizes only, never on the number of threads, and no sum
//! crosses a task except through partial results that are added in a fixed order. So every result
//! is the same for any number of threads.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::team::Team;
pub(crate) use crate::team::for_each_task;

/// Elements that make a task worth sending to another thread in a memory-bound kernel.
pub(crate) const TASK_ELEMENTS: usize = 8 * 1024;

/// Rows per task when a row has `width` elements.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (TASK_ELEMENTS / width.max(1)).max(1)
}

/// Calls `task(range)` for consecutive ranges of `rows`, [`rows_per_task`] each.
pub(crate) fn for_each_row_block(
    rows: usize,
    width: usize,
    task: impl Fn(std::ops::Range<usize>) + Sync,
) {
    let block = rows_per_task(width);
    for_each_task(rows.div_ceil(block), |i| task(i * block..rows.min((i + 1) * block)));
}

/// A mutable slice that tasks write at the same time, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose users promise (`Shared::slice`) to touch disjoint parts.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// The part from `start` of `len` elements; bounds are checked.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part outside the shared slice");
        // SAFETY: inside the slice by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// A 64-byte-aligned piece of scratch memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes that all threads together hold as scratch.
static SCRATCH_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Bytes of scratch memory that the process holds for kernels, all threads together.
pub(crate) fn scratch_bytes() -> usize {
    SCRATCH_BYTES.load(Ordering::Relaxed)
}

/// Whether a thread has got more scratch since [`level_scratch`].
static GREW: AtomicBool = AtomicBool::new(false);

/// Gives every thread of the team as much scratch as any of them had to get, so that it does not
/// matter which thread runs a task in the steps to come. Called by the leader between steps, when
/// no scratch is in use.
pub(crate) fn level_scratch(team: &Team) {
    if !GREW.swap(false, Ordering::Relaxed) {
        return;
    }
    let most: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let descending =
        |free: &mut Vec<Vec<Line>>| free.sort_by_key(|own| std::cmp::Reverse(own.len()));
    team.on_each(|| {
        SCRATCH.with_borrow_mut(|free| {
            descending(free);
            let mut most = most.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let count = most.len().max(free.len());
            most.resize(count, 0);
            for (most, own) in most.iter_mut().zip(&*free) {
                *most = own.len().max(*most);
            }
        });
    });
    let most = most.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    team.on_each(|| {
        SCRATCH.with_borrow_mut(|free| {
            let count = free.len().max(most.len());
            free.reserve_exact(count - free.len());
            free.resize_with(count, Vec::new);
            descending(free);
            for (own, &lines) in free.iter_mut().zip(&most) {
                grow(own, lines);
            }
        });
    });
}

fn grow(lines: &mut Vec<Line>, need: usize) {
    if lines.len() < need {
        SCRATCH_BYTES.fetch_add((need - lines.len()) * 64, Ordering::Relaxed);
        lines.resize(need, Line([0; 64]));
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Element types that any bit pattern is a valid value of.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for usize {}
impl Plain for f32 {}

/// Scratch of this thread that is given back, and kept for the next user, when it is dropped.
///
/// After the first step of a program every buffer exists on every thread ([`level_scratch`]), so
/// that steps do not allocate. Contents are left over from the previous user.
pub(crate) struct Scratch<T: Plain> {
    lines: Vec<Line>,
    len: usize,
    _element: PhantomData<T>,
}

impl<T: Plain> Scratch<T> {
    pub(crate) fn new(len: usize) -> Self {
        let mut lines = SCRATCH.with_borrow_mut(|free| {
            // The smallest that fits, else the largest: sizes repeat from step to step.
            let need = (len * size_of::<T>()).div_ceil(64);
            let fit =
                (0..free.len()).filter(|&i| free[i].len() >= need).min_by_key(|&i| free[i].len());
            let any = fit.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
            any.map(|i| free.swap_remove(i)).unwrap_or_default()
        });
        let need = (len * size_of::<T>()).div_ceil(64);
        if lines.len() < need {
            GREW.store(true, Ordering::Relaxed);
            grow(&mut lines, need);
        }
        Self { lines, len, _element: PhantomData }
    }
}

impl<T: Plain> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        SCRATCH.with_borrow_mut(|free| free.push(lines));
    }
}

impl<T: Plain> std::ops::Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the lines are initialised, aligned to 64 and hold at least `len` elements of a
        // type that any bits are valid for.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> std::ops::DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
