//! What the kernel tests share: data, decoding, and the one table of tolerances.
#![allow(dead_code)]

use onesigma_backend_cpu::{Input, Output};
use onesigma_format::{Conversion, Format, Noise, decode, encode_slice, philox};

/// Formats that every kernel is tried with.
pub const FORMATS: [Format; 5] =
    [Format::F32, Format::F16, Format::BF16, Format::E4M3, Format::E5M2];

/// Relative error of a kernel's f32 arithmetic, before the result is rounded into its format.
///
/// Relative to the size named beside it, which for sums is the sum of the magnitudes added.
pub mod tolerance {
    /// A product of matrices, for each element summed along K; relative to Σ|a·b|.
    pub const GEMM_PER_TERM: f64 = 6e-8;
    /// Softmax and its gradient; relative to the largest output.
    pub const SOFTMAX: f64 = 2e-6;
    /// Layer and RMS norm and their gradients; relative to the largest output.
    pub const NORM: f64 = 4e-6;
    /// Cross-entropy and its gradient.
    pub const CROSS_ENTROPY: f64 = 2e-6;
    /// Attention and its gradients; relative to the largest output.
    pub const ATTENTION: f64 = 1e-5;
    /// AdamW; relative to the size of the update plus the weight.
    pub const ADAMW: f64 = 1e-6;
    /// Sums over axes; relative to Σ|x|.
    pub const REDUCE: f64 = 2e-7;
}

/// A tensor of a test: codes in a format and the f64 values they stand for.
pub struct Tensor {
    pub format: Format,
    pub bytes: Vec<u8>,
    pub values: Vec<f64>,
}

impl Tensor {
    /// `count` normal numbers times `scale`, rounded into `format`.
    pub fn normal(format: Format, count: usize, scale: f32, seed: u64) -> Self {
        let mut values = vec![0.0; count];
        philox::fill_normal(Noise { seed, ..Noise::default() }, &mut values);
        values.iter_mut().for_each(|x| *x *= scale);
        Self::from_f32(format, &values)
    }

    pub fn from_f32(format: Format, values: &[f32]) -> Self {
        let mut bytes = vec![0; values.len() * format.bytes()];
        encode_slice(format, Conversion::SATURATE, Noise::default(), values, &mut bytes).unwrap();
        let values = decode_all(format, &bytes);
        Self { format, bytes, values }
    }

    /// Room for `count` results, filled with a pattern so that elements never written show.
    pub fn room(format: Format, count: usize) -> Self {
        Self { format, bytes: vec![0x55; count * format.bytes()], values: Vec::new() }
    }

    pub fn input(&self) -> Input<'_> {
        Input::new(&self.bytes, self.format)
    }

    pub fn output(&mut self) -> Output<'_> {
        Output::new(&mut self.bytes, self.format)
    }

    /// The values after a kernel wrote the codes.
    pub fn read(&self) -> Vec<f64> {
        decode_all(self.format, &self.bytes)
    }
}

pub fn decode_all(format: Format, bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(format.bytes())
        .map(|code| {
            let mut word = [0; 4];
            word[..code.len()].copy_from_slice(code);
            f64::from(decode(u32::from_le_bytes(word), format))
        })
        .collect()
}

/// Fails unless `found` is `expected` within `error` (before rounding) and one rounding into
/// `format`.
#[track_caller]
pub fn assert_close(what: &str, format: Format, found: f64, expected: f64, error: f64) {
    let limited = expected.clamp(-format.max(), format.max());
    let rounding = if format.is_f32() { 6e-8 } else { format.epsilon() * 0.51 };
    let allowed = error + rounding * (limited.abs() + error) + format.min_subnormal() * 0.51;
    assert!(
        (found - limited).abs() <= allowed,
        "{what} in {format:?}: found {found}, expected {limited} ± {allowed:e}"
    );
}

/// [`assert_close`] for all elements, with an error relative to the largest expected magnitude.
#[track_caller]
pub fn assert_all_close(what: &str, found: &Tensor, expected: &[f64], relative: f64) {
    let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    let values = found.read();
    assert_eq!(values.len(), expected.len(), "{what}: length");
    for (i, (found_value, expected)) in values.iter().zip(expected).enumerate() {
        let label = format!("{what}[{i}]");
        assert_close(&label, found.format, *found_value, *expected, relative * largest);
    }
}
