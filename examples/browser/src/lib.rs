//! A page that trains a small GPT in FP8: the book, chapter Any GPU, says how to build and open it.
//!
//! [`text`] makes sums in words, [`Trainer`] is the model with its state on the device, and `page`
//! is what `index.html` calls.

#[cfg(target_family = "wasm")]
mod page;
mod program;
pub mod text;
mod trainer;

pub use trainer::Trainer;

/// Any failure, for people.
pub type Error = Box<dyn std::error::Error>;
