//! How a conversion rounds, what it does on overflow, and where its random bits come from.

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// What happens to a value between two neighbouring representable values.
///
/// The names follow IEEE 754-2019 §4.3. A tie of the nearest-even rule goes to the neighbour with
/// the even significand; in a format without mantissa (E8M0), where all significands are 1, to the
/// larger magnitude (§4.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Rounding {
    /// To the nearest value, ties to the even code.
    #[default]
    NearestEven,
    /// To the nearest value, ties away from zero.
    NearestAway,
    /// To the nearest value that is not larger in magnitude.
    TowardZero,
    /// Toward positive infinity.
    Up,
    /// Toward negative infinity.
    Down,
    /// Up in magnitude with the probability given by the distance, else down.
    ///
    /// The distance to the lower neighbour, as a fraction of the gap, is cut to `bits` bits and
    /// added to that many random bits; a carry rounds up. The result is unbiased up to
    /// 2^-`bits` of the gap, and exactly unbiased where `bits` covers all bits that are dropped.
    Stochastic {
        /// Random bits for one element: 8, 16 or 32.
        bits: u8,
    },
}

impl Rounding {
    /// Every rule, the stochastic one with each number of bits.
    pub const ALL: [Self; 8] = [
        Self::NearestEven,
        Self::NearestAway,
        Self::TowardZero,
        Self::Up,
        Self::Down,
        Self::Stochastic { bits: 8 },
        Self::Stochastic { bits: 16 },
        Self::Stochastic { bits: 32 },
    ];
}

/// What happens to a value whose rounded magnitude exceeds the largest finite one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Overflow {
    /// The largest finite value of the same sign; infinities too.
    #[default]
    Saturate,
    /// Infinity where the format has it, else NaN where it has that, else as `Saturate`.
    ///
    /// As in IEEE 754-2019 §7.4, a rounding rule that points toward zero for the value's sign
    /// delivers the largest finite value instead, unless the value was infinite.
    Special,
}

/// Rounding and overflow rule of one conversion.
///
/// ```
/// use onesigma_format::{Conversion, Format, Overflow, Rounding, decode, encode};
///
/// let e4m3 = |value, how| decode(encode(value, Format::E4M3, how, 0), Format::E4M3);
/// assert_eq!(e4m3(1000.0, Conversion::SATURATE), 448.0);
/// // As a cast in hardware that keeps overflow visible.
/// let how = Conversion { rounding: Rounding::NearestEven, overflow: Overflow::Special };
/// assert!(e4m3(1000.0, how).is_nan());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Conversion {
    /// What happens between two representable values.
    pub rounding: Rounding,
    /// What happens beyond the largest one.
    pub overflow: Overflow,
}

impl Conversion {
    /// Nearest-even, saturating: the usual choice in training.
    pub const SATURATE: Self =
        Self { rounding: Rounding::NearestEven, overflow: Overflow::Saturate };
    /// Nearest-even with infinity or NaN on overflow: IEEE's default.
    pub const SPECIAL: Self = Self { rounding: Rounding::NearestEven, overflow: Overflow::Special };

    /// Every rounding with every rule of overflow.
    ///
    /// ```
    /// assert_eq!(onesigma_format::Conversion::all().count(), 16);
    /// ```
    pub fn all() -> impl Iterator<Item = Self> {
        let with = |overflow| Rounding::ALL.map(|rounding| Self { rounding, overflow });
        [Overflow::Saturate, Overflow::Special].into_iter().flat_map(with)
    }

    /// Random bits that one element needs; 0 for the deterministic rules.
    ///
    /// ```
    /// use onesigma_format::{Conversion, Rounding};
    ///
    /// assert_eq!(Conversion::SATURATE.random_bits(), 0);
    /// let rounding = Rounding::Stochastic { bits: 16 };
    /// assert_eq!(Conversion { rounding, ..Conversion::SATURATE }.random_bits(), 16);
    /// ```
    pub const fn random_bits(self) -> u32 {
        match self.rounding {
            Rounding::Stochastic { bits } => bits as u32,
            _ => 0,
        }
    }
}

/// Where the random bits of a tensor come from: a Philox key and counter.
///
/// The bits of an element are a function of these fields and of its index only, so they do not
/// depend on threads, on how a tensor is cut into slices, or on the backend. See
/// [`philox`](crate::philox) for the layout.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Noise {
    /// Seed of the whole run (the Philox key).
    pub seed: u64,
    /// Which tensor.
    pub tensor: u32,
    /// Which training step.
    pub step: u32,
    /// Index in the tensor of the slice's first element.
    pub offset: u64,
}
