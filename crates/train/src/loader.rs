//! Batches prepared ahead of time on a thread of their own.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::Error;
use crate::batch::{Batch, TrainingBatches};

/// A thread that keeps a few batches ready.
///
/// Dropping the loader ends the thread: the channel closes and the thread's next send fails.
#[derive(Debug)]
pub struct Loader {
    batches: Option<Receiver<Batch>>,
    thread: Option<JoinHandle<()>>,
    next_step: u64,
}

impl Loader {
    /// Starts preparing the batches of `first_step`, `first_step + 1`, and so on, at most `ahead`
    /// of them (at least one) waiting at a time.
    ///
    /// # Errors
    /// [`Error::Loader`] if the system gives no thread.
    pub fn start(
        mut source: Box<dyn TrainingBatches>,
        first_step: u64,
        ahead: usize,
    ) -> Result<Self, Error> {
        let (sender, batches) = sync_channel(ahead.max(1));
        let thread = std::thread::Builder::new()
            .name("onesigma-loader".into())
            .spawn(move || {
                for step in first_step.. {
                    if sender.send(source.batch(step)).is_err() {
                        break;
                    }
                }
            })
            .map_err(|error| Error::Loader { step: first_step, reason: error.to_string() })?;
        Ok(Self { batches: Some(batches), thread: Some(thread), next_step: first_step })
    }

    /// The next batch, in the order of steps.
    ///
    /// # Errors
    /// [`Error::Loader`] if the thread has died.
    pub fn next_batch(&mut self) -> Result<Batch, Error> {
        let step = self.next_step;
        let stopped = |reason: &str| Error::Loader { step, reason: reason.into() };
        let batches = self.batches.as_ref().ok_or_else(|| stopped("it was shut down"))?;
        match batches.recv() {
            Ok(batch) => {
                self.next_step += 1;
                Ok(batch)
            }
            Err(_) => {
                self.batches = None;
                let panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
                Err(stopped(if panicked { "its thread panicked" } else { "its thread ended" }))
            }
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by `next_batch`, or nobody asked again.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Sampler;

    fn sampler() -> Sampler {
        let tokens: Vec<u16> = (0..2000u16).collect();
        Sampler::new(tokens, "training", 2, 16, 5).expect("long enough")
    }

    #[test]
    fn gives_the_same_batches_as_the_sampler_from_any_step() {
        let mut direct = sampler();
        let mut loader = Loader::start(Box::new(sampler()), 17, 3).expect("a thread");
        for step in 17..200 {
            assert_eq!(loader.next_batch().expect("a batch"), direct.batch(step));
        }
    }

    #[test]
    fn dropping_it_early_ends_the_thread() {
        let loader = Loader::start(Box::new(sampler()), 0, 2).expect("a thread");
        drop(loader); // hangs here if the thread does not notice
    }

    #[test]
    fn a_dead_thread_is_an_error_and_stays_one() {
        let (sender, receiver) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            let _keep = sender;
            std::panic::resume_unwind(Box::new("the source broke"));
        });
        let mut loader = Loader { batches: Some(receiver), thread: Some(thread), next_step: 4 };
        let error = loader.next_batch().expect_err("the thread panicked");
        assert!(matches!(&error, Error::Loader { step: 4, reason } if reason.contains("panicked")));
        assert!(loader.next_batch().is_err());
    }
}
