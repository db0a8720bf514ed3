//! Work on several items at a time.
//!
//! The tasks of the workspace include this file as well, so it needs nothing else of this crate.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// `work` on every item, `jobs` at a time; results in the order of the items.
///
/// # Errors
/// The first error; after it no further item is begun.
pub fn parallel<T: Send, R: Send, E: Send>(
    jobs: usize,
    items: Vec<T>,
    work: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let count = items.len();
    let left = Mutex::new(items.into_iter().enumerate());
    let results = Mutex::new(Vec::with_capacity(count));
    let failure = Mutex::new(None);
    let each = || {
        while lock(&failure).is_none() {
            // A statement of its own, so that the queue is free while the item is worked on.
            let next = lock(&left).next();
            let Some((index, item)) = next else { return };
            match work(item) {
                Ok(result) => lock(&results).push((index, result)),
                Err(error) => {
                    lock(&failure).get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, count.max(1)) {
            scope.spawn(each);
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// What is behind a lock: every change is whole, so a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_keep_their_order_and_the_first_error_stops() {
        let squares = parallel(3, (0..20).collect(), |n| Ok::<_, String>(n * n));
        assert_eq!(squares, Ok((0..20).map(|n| n * n).collect::<Vec<_>>()));
        let begun = AtomicUsize::new(0);
        let error = parallel(1, (0..20).collect(), |n: usize| {
            begun.fetch_add(1, Ordering::Relaxed);
            if n < 3 { Ok(n) } else { Err("three") }
        });
        assert_eq!(error, Err("three"));
        assert_eq!(begun.into_inner(), 4);
        assert_eq!(parallel(8, Vec::<u8>::new(), Ok::<_, String>), Ok(Vec::new()));
    }
}
