//! What can go wrong: wrong lengths, unknown names, impossible parameters.

/// Errors of this crate.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice has not the length that the format and the other slice ask for.
    #[error("{what}: {found} given, {expected} expected")]
    Length {
        /// Which slice, and in which unit.
        what: &'static str,
        /// The length that was given.
        found: usize,
        /// The length that fits.
        expected: usize,
    },
    /// No format has this name, and it is no parameter form either.
    #[error(
        "unknown format; known are F32 F16 BF16 E5M2 E4M3 E5M2FNUZ E4M3FNUZ E4M3B11FNUZ E4M3IEEE \
         E3M4 E3M2 E2M3 E2M1 E8M0 INT8 INT4, or parameters such as e5m3b15-ieee \
         (endings: ieee, finitenan, fnuz, finite, scale, integer)"
    )]
    UnknownFormat,
    /// No block format has this name.
    #[error(
        "unknown block format; known are MXFP8_E4M3 MXFP8_E5M2 MXFP6_E3M2 MXFP6_E2M3 MXFP4 MXINT8 \
         NVFP4"
    )]
    UnknownBlockFormat,
    /// Blocks were to run along a dimension that the shape has not.
    #[error("blocks along axis {axis} of a shape with {dimensions} dimensions (axes count from 0)")]
    Axis {
        /// The axis that was given.
        axis: usize,
        /// Dimensions of the shape.
        dimensions: usize,
    },
    /// A tensor has more elements than memory has addresses.
    #[error("the product of the dimensions does not fit in memory")]
    TooLarge,
    /// A scale for the whole tensor must be a positive normal number.
    #[error("tensor scale {scale}; a positive normal f32 is expected, 1 for MX formats")]
    TensorScale {
        /// The scale that was given.
        scale: f32,
    },
    /// The parameters describe no format that this crate can hold.
    #[error("impossible format: {reason}")]
    Parameters {
        /// Which limit is broken.
        reason: &'static str,
    },
    /// Stochastic rounding takes 8, 16 or 32 random bits an element.
    #[error("stochastic rounding with {bits} random bits; choose 8, 16 or 32")]
    RandomBits {
        /// The number of bits that was given.
        bits: u8,
    },
    /// The instruction set is not there on this machine or in this build.
    #[error("this machine or build has no {isa}; ask Isa::detect() for the best that is there")]
    Isa {
        /// Name of the instruction set.
        isa: &'static str,
    },
}
