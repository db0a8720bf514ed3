//! What formats do to the tensors of a real training step: measured, tensor by tensor.
//!
//! A [`Probe`] is a training step in which every tensor can be seen as it is before it is rounded
//! into its format (see [`expose`](onesigma_graph::passes::expose)). [`measure`] runs it at a
//! given state on a given batch and gives [`TensorStatistics`] for each: mean, root mean square,
//! maximum, histogram of exponents, and what the recipe's format and every candidate would flush,
//! clip and round. The state does not change.

mod measure;
mod probe;
mod statistics;

pub use measure::{Measured, Moment, Options, measure};
pub use probe::{Pass, Probe, Tap};
pub use statistics::{Collector, FormatStatistics, Histogram, TensorStatistics};
