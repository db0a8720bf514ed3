//! Sweeps: one training run for every point of a grid, or for random draws.
//!
//! [`Spec`] is the sweep file; it expands into [`Run`]s, each known by its settings. [`runner`]
//! takes them in processes of their own, and continues what was killed. [`report`] makes one table
//! of them and [`figure`] one figure.

pub mod figure;
pub mod report;
pub mod runner;
mod spec;
mod workers;

pub use spec::{Draw, Figure, Metric, Random, Run, Spec};
