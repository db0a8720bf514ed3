//! Work for the driver, which takes its time over shaders, on all processors.

use onesigma_backend::Result;

/// The answers for all items, in their order. A browser has one thread for what it draws with.
///
/// # Errors
/// The first; threads that meet none go on.
#[cfg(target_family = "wasm")]
pub(crate) fn on_processors<T, A>(items: &[T], answer: impl Fn(&T) -> Result<A>) -> Result<Vec<A>> {
    items.iter().map(answer).collect()
}

/// The answers for all items, in their order. A thread's panic goes on in the caller.
///
/// # Errors
/// The first; threads that meet none go on.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn on_processors<T: Sync, A: Send>(
    items: &[T],
    answer: impl Fn(&T) -> Result<A> + Sync,
) -> Result<Vec<A>> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    let threads = thread::available_parallelism().map_or(1, usize::from).min(items.len());
    if threads < 2 {
        return items.iter().map(answer).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, A)>> {
        let mut own = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return Ok(own) };
            own.push((at, answer(item)?));
        }
    };
    let mut all = Vec::with_capacity(items.len());
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            all.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(())
    })?;
    all.sort_by_key(|&(at, _)| at);
    Ok(all.into_iter().map(|(_, answer)| answer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::failed;

    #[test]
    fn answers_come_in_order_and_an_error_ends_them() {
        let items: Vec<usize> = (0..100).collect();
        let doubled = on_processors(&items, |n| Ok(2 * n));
        assert!(
            doubled.is_ok_and(|found| found.iter().enumerate().all(|(n, twice)| 2 * n == *twice))
        );
        let refused = on_processors(&items, |&n| if n == 41 { Err(failed("41")) } else { Ok(n) });
        assert!(refused.is_err_and(|error| error.to_string().contains("41")));
        assert!(on_processors(&[], |n: &usize| Ok(*n)).is_ok_and(|none| none.is_empty()));
    }
}
