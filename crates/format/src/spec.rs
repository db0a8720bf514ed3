//! `Format`: a number format as a value, and what follows from its parameters.

use crate::Error;

/// Which codes do not stand for finite numbers, and how the sign is stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Specials {
    /// IEEE 754: the highest exponent holds infinity (mantissa 0) and NaN.
    Ieee,
    /// No infinity; all magnitude bits set is NaN (`fn`; E4M3 of the OCP OFP8 specification).
    FiniteNan,
    /// No infinity, no negative zero; the code of negative zero is NaN (`fnuz`).
    Fnuz,
    /// Every code is a finite number (the 6- and 4-bit formats of OCP MX).
    Finite,
    /// Unsigned powers of two, no zero; the highest code is NaN (E8M0 of OCP MX §5.4.1).
    Scale,
    /// Two's complement, value = code · 2^-bias, used symmetrically: the lowest code is never
    /// produced. `exponent_bits` is 0 and `mantissa_bits` the magnitude bits.
    Integer,
}

/// A number format: one sign bit, then exponent, then mantissa, from the high bit to the low.
///
/// With biased exponent `e` and mantissa `m`, a code stands for
/// `±2^(e - bias) · (1 + m/2^mantissa_bits)` if `e > 0`, and for
/// `±2^(1 - bias) · m/2^mantissa_bits` if `e = 0`; [`Specials`] lists the exceptions.
///
/// Every value of a `Format` is exact in `f32`.
///
/// ```
/// use onesigma_format::Format;
///
/// let format: Format = "e4m3".parse()?;
/// assert_eq!(format, Format::E4M3);
/// assert_eq!((format.bytes(), format.max(), format.min_normal()), (1, 448.0, 1.0 / 64.0));
/// # Ok::<(), onesigma_format::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Format {
    exponent_bits: u8,
    mantissa_bits: u8,
    bias: i16,
    specials: Specials,
}

impl Format {
    /// IEEE 754 binary32.
    pub const F32: Self = Self::raw(8, 23, 127, Specials::Ieee);
    /// IEEE 754 binary16.
    pub const F16: Self = Self::raw(5, 10, 15, Specials::Ieee);
    /// bfloat16: the high half of binary32.
    pub const BF16: Self = Self::raw(8, 7, 127, Specials::Ieee);
    /// OCP OFP8 E5M2: IEEE-like, with infinity and NaN.
    pub const E5M2: Self = Self::raw(5, 2, 15, Specials::Ieee);
    /// OCP OFP8 E4M3 (`e4m3fn`): no infinity, largest value 448.
    pub const E4M3: Self = Self::raw(4, 3, 7, Specials::FiniteNan);
    /// E5M2 with bias 16, no infinity, one zero (Graphcore, AMD MI300).
    pub const E5M2FNUZ: Self = Self::raw(5, 2, 16, Specials::Fnuz);
    /// E4M3 with bias 8, no infinity, one zero (Graphcore, AMD MI300).
    pub const E4M3FNUZ: Self = Self::raw(4, 3, 8, Specials::Fnuz);
    /// E4M3 with bias 11, no infinity, one zero.
    pub const E4M3B11FNUZ: Self = Self::raw(4, 3, 11, Specials::Fnuz);
    /// E4M3 as IEEE 754 would define it: infinity and NaN, largest value 240.
    pub const E4M3_IEEE: Self = Self::raw(4, 3, 7, Specials::Ieee);
    /// E3M4 as IEEE 754 would define it: largest value 15.5.
    pub const E3M4: Self = Self::raw(3, 4, 3, Specials::Ieee);
    /// OCP MX FP6 E3M2: finite only, largest value 28.
    pub const E3M2: Self = Self::raw(3, 2, 3, Specials::Finite);
    /// OCP MX FP6 E2M3: finite only, largest value 7.5.
    pub const E2M3: Self = Self::raw(2, 3, 1, Specials::Finite);
    /// OCP MX FP4 E2M1: finite only, largest value 6.
    pub const E2M1: Self = Self::raw(2, 1, 1, Specials::Finite);
    /// OCP MX scale: the powers of two from 2^-127 to 2^127.
    pub const E8M0: Self = Self::raw(8, 0, 127, Specials::Scale);
    /// Symmetric 8-bit integers, -127 to 127.
    pub const INT8: Self = Self::raw(0, 7, 0, Specials::Integer);
    /// Symmetric 4-bit integers, -7 to 7.
    pub const INT4: Self = Self::raw(0, 3, 0, Specials::Integer);

    /// Every named format, widest first.
    pub const NAMED: &'static [Self] = &[
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::E5M2,
        Self::E4M3,
        Self::E5M2FNUZ,
        Self::E4M3FNUZ,
        Self::E4M3B11FNUZ,
        Self::E4M3_IEEE,
        Self::E3M4,
        Self::E3M2,
        Self::E2M3,
        Self::E2M1,
        Self::E8M0,
        Self::INT8,
        Self::INT4,
    ];

    const fn raw(exponent_bits: u8, mantissa_bits: u8, bias: i16, specials: Specials) -> Self {
        Self { exponent_bits, mantissa_bits, bias, specials }
    }

    /// A format by its parameters.
    ///
    /// # Errors
    /// [`Error::Parameters`] if it is wider than 16 bits (and not F32), too narrow to hold a
    /// number beside its special values, or has values that are not exact in `f32`.
    pub const fn new(
        exponent_bits: u8,
        mantissa_bits: u8,
        bias: i16,
        specials: Specials,
    ) -> Result<Self, Error> {
        let format = Self::raw(exponent_bits, mantissa_bits, bias, specials);
        if exponent_bits == 8 && mantissa_bits == 23 && bias == 127 {
            return match specials {
                Specials::Ieee => Ok(format),
                _ => Err(Error::Parameters { reason: "32 bits only as IEEE binary32" }),
            };
        }
        if exponent_bits > 8 || mantissa_bits > 15 || format.bits() > 16 {
            return Err(Error::Parameters { reason: "more than 16 bits or 8 exponent bits" });
        }
        let enough = match specials {
            Specials::Ieee => exponent_bits >= 2 && mantissa_bits >= 1,
            Specials::FiniteNan => exponent_bits >= 1 && exponent_bits + mantissa_bits >= 2,
            Specials::Fnuz | Specials::Finite => exponent_bits >= 1,
            Specials::Scale => exponent_bits >= 2 && mantissa_bits == 0,
            Specials::Integer => exponent_bits == 0 && mantissa_bits >= 1,
        };
        if !enough {
            return Err(Error::Parameters { reason: "too few bits for this kind of format" });
        }
        if bias > 300 || bias < -300 {
            return Err(Error::Parameters { reason: "bias beyond ±300" });
        }
        if format.quantum_exponent() < -149 || format.max() > f32::MAX as f64 {
            return Err(Error::Parameters { reason: "values that are not exact in f32" });
        }
        Ok(format)
    }

    /// Width of the exponent field; 0 for integers.
    pub const fn exponent_bits(self) -> u32 {
        self.exponent_bits as u32
    }

    /// Width of the mantissa field, without the hidden bit; the magnitude bits of integers.
    pub const fn mantissa_bits(self) -> u32 {
        self.mantissa_bits as u32
    }

    /// What is subtracted from the exponent field; for integers, the number of fraction bits.
    pub const fn bias(self) -> i32 {
        self.bias as i32
    }

    /// Which codes are special.
    pub const fn specials(self) -> Specials {
        self.specials
    }

    /// Width of a code in bits, sign included.
    pub const fn bits(self) -> u32 {
        let sign = match self.specials {
            Specials::Scale => 0,
            _ => 1,
        };
        sign + self.exponent_bits as u32 + self.mantissa_bits as u32
    }

    /// Bytes that one unpacked code takes: 1, 2 or 4.
    pub const fn bytes(self) -> usize {
        match self.bits() {
            0..=8 => 1,
            9..=16 => 2,
            _ => 4,
        }
    }

    /// Whether the format has a sign.
    pub const fn is_signed(self) -> bool {
        !matches!(self.specials, Specials::Scale)
    }

    /// Whether this is [`Format::F32`], whose conversions are copies.
    pub const fn is_f32(self) -> bool {
        self.mantissa_bits == 23
    }

    /// Whether the format has infinities.
    pub const fn has_infinity(self) -> bool {
        matches!(self.specials, Specials::Ieee)
    }

    /// Whether the format has NaN.
    pub const fn has_nan(self) -> bool {
        !matches!(self.specials, Specials::Finite | Specials::Integer)
    }

    /// Largest finite value.
    pub const fn max(self) -> f64 {
        let code = self.max_code();
        match self.specials {
            Specials::Integer => code as f64 * pow2(-self.bias()),
            Specials::Scale => pow2(code as i32 - self.bias()),
            _ => {
                let p = self.mantissa_bits();
                let exponent = (code >> p) as i32;
                let mantissa = code & ((1 << p) - 1);
                if exponent == 0 {
                    mantissa as f64 * pow2(self.quantum_exponent())
                } else {
                    (mantissa | 1 << p) as f64 * pow2(exponent - self.bias() - p as i32)
                }
            }
        }
    }

    /// Smallest positive value with full precision; the smallest positive value where there are
    /// no subnormals (integers, E8M0).
    pub const fn min_normal(self) -> f64 {
        match self.specials {
            Specials::Integer | Specials::Scale => pow2(-self.bias()),
            _ => pow2(self.min_exponent()),
        }
    }

    /// Smallest positive value.
    pub const fn min_subnormal(self) -> f64 {
        pow2(self.quantum_exponent())
    }

    /// Distance from 1 to the next larger value: 2^-mantissa_bits (integers: 2^-bias).
    pub const fn epsilon(self) -> f64 {
        match self.specials {
            Specials::Integer => pow2(-self.bias()),
            _ => pow2(-(self.mantissa_bits as i32)),
        }
    }

    /// Code of the largest finite value (its sign bit, if any, is 0).
    pub const fn max_code(self) -> u32 {
        let all_ones = (1u32 << (self.exponent_bits as u32 + self.mantissa_bits as u32)) - 1;
        match self.specials {
            Specials::Ieee => (((1u32 << self.exponent_bits) - 1) << self.mantissa_bits) - 1,
            Specials::FiniteNan | Specials::Scale => all_ones - 1,
            Specials::Fnuz | Specials::Finite | Specials::Integer => all_ones,
        }
    }

    /// The canonical positive NaN; where the format has none, the code that takes its place in
    /// conversions: the largest value (as the saturating conversions of the PTX ISA do).
    pub const fn nan_code(self) -> u32 {
        match self.specials {
            Specials::Ieee => (self.max_code() + 1) | 1 << (self.mantissa_bits - 1),
            Specials::FiniteNan | Specials::Fnuz | Specials::Scale => self.max_code() + 1,
            Specials::Finite | Specials::Integer => self.max_code(),
        }
    }

    /// Positive code that stands for an overflow under [`Overflow::Special`](crate::Overflow).
    pub(crate) const fn special_code(self) -> u32 {
        if self.has_nan() { self.max_code() + 1 } else { self.max_code() }
    }

    /// Exponent of the smallest normal number. Integers are floats that are all subnormal.
    pub(crate) const fn min_exponent(self) -> i32 {
        match self.specials {
            Specials::Integer => self.mantissa_bits as i32 - self.bias as i32,
            Specials::Scale => -(self.bias as i32),
            _ => 1 - self.bias as i32,
        }
    }

    /// Exponent of the smallest positive value.
    pub(crate) const fn quantum_exponent(self) -> i32 {
        self.min_exponent() - self.mantissa_bits as i32
    }

    /// The bit that holds the sign, or 0.
    pub(crate) const fn sign_bit(self) -> u32 {
        if self.is_signed() { 1 << (self.bits() - 1) } else { 0 }
    }
}

/// 2^exponent, exact for the exponents of normal f64.
pub(crate) const fn pow2(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}
