//! Number formats for low-precision training: FP8, FP16 and narrower, exact and at memory speed.
//!
//! A [`Format`] is a value: exponent bits, mantissa bits, bias and special values. Every float of
//! at most 16 bits whose values are exact in `f32` is one constant. How a conversion rounds and
//! what it does on overflow are arguments ([`Conversion`]), never global state.
//!
//! ```
//! use onesigma_format::{Conversion, Format, Noise, decode_slice, encode_slice};
//!
//! let source = [0.1_f32, -3.0, 1e9];
//! let mut codes = [0_u8; 3];
//! encode_slice(Format::E4M3, Conversion::SATURATE, Noise::default(), &source, &mut codes)?;
//! let mut back = [0.0_f32; 3];
//! decode_slice(Format::E4M3, &codes, &mut back)?;
//! assert_eq!(back, [0.1015625, -3.0, 448.0]);
//! # Ok::<(), onesigma_format::Error>(())
//! ```
//!
//! [`encode`] and [`decode`] are the scalar reference: short, `const`, written to be read. The
//! slice functions use the widest vector unit found at run time and agree with the reference bit
//! for bit.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

mod block;
mod bulk;
mod conversion;
mod convert;
mod error;
mod interop;
mod isa;
mod names;
mod normal;
pub mod philox;
mod scalar;
mod spec;
mod statistics;

pub use block::{BlockFormat, Blocks, Layout, Packing};
pub use bulk::{decode_slice, decode_slice_on, encode_slice, encode_slice_on};
pub use conversion::{Conversion, Noise, Overflow, Rounding};
pub use convert::convert_slice;
pub use error::Error;
pub use interop::{Storage, decode_storage, encode_storage};
pub use isa::Isa;
pub use scalar::{decode, encode};
pub use spec::{Format, Specials};
pub use statistics::{Statistics, encode_slice_with_statistics};

/// The example of the page that goes with the package.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The examples of the book's chapter on formats.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/formats.md")]
struct Book;
