//! What a lane needs to know about a conversion, worked out once per call.

use crate::{Conversion, Format, Overflow, Rounding, Specials};

/// Constants of one encoding. All codes are without sign unless said otherwise.
#[derive(Clone, Copy)]
pub(crate) struct EncodePlan {
    /// Mantissa bits of the format.
    pub mantissa_bits: u32,
    /// Bits of f32's mantissa that a normal number loses.
    pub dropped: u32,
    /// Exponent field in f32 of the smallest normal number, at least 1.
    pub minimum_field: u32,
    /// f32 bits to which larger positive values are cut: their code is that of an overflow.
    pub clamp: u32,
    /// The same for negative values, where a directed rule makes it differ.
    pub clamp_negative: u32,
    /// Code of infinity.
    pub infinity: u32,
    /// Code of NaN.
    pub nan: u32,
    /// The sign bit, for floats.
    pub sign: u32,
    /// How far f32's sign bit is from it.
    pub sign_shift: u32,
    /// The sign bit where a NaN keeps its sign.
    pub nan_sign: u32,
    /// The code that takes no sign: 0 where there is no negative zero, else no code.
    pub unsigned_code: u32,
    /// All ones if the sign is two's complement, else 0.
    pub complement: u32,
    /// The bits of a code, where two's complement needs cutting.
    pub mask: u32,
}

impl EncodePlan {
    /// `None` where the lanes do not reach: binary32, E8M0, exponents below f32's normal range.
    pub fn new(format: Format, how: Conversion) -> Option<Self> {
        let minimum = format.min_exponent();
        if format.is_f32() || minimum < -126 || matches!(format.specials(), Specials::Scale) {
            return None;
        }
        let integer = matches!(format.specials(), Specials::Integer);
        let fnuz = matches!(format.specials(), Specials::Fnuz);
        let special = match how.overflow {
            Overflow::Saturate => format.max_code(),
            Overflow::Special => format.special_code(),
        };
        // Cutting at the value that the overflow code would have makes rounding end there.
        let dropped = 23 - format.mantissa_bits();
        let clamp = |inward: bool| {
            let code = if inward { format.max_code() } else { special };
            if code == format.max_code() {
                (format.max() as f32).to_bits()
            } else if code >> format.mantissa_bits() == 0 {
                (code as f32 * format.min_subnormal() as f32).to_bits()
            } else {
                let rebias = (minimum + 126) as u32;
                (code << dropped) + (rebias << 23)
            }
        };
        let toward_zero = how.rounding == Rounding::TowardZero;
        Some(Self {
            mantissa_bits: format.mantissa_bits(),
            dropped,
            minimum_field: (minimum + 127) as u32,
            clamp: clamp(toward_zero || how.rounding == Rounding::Down),
            clamp_negative: clamp(toward_zero || how.rounding == Rounding::Up),
            infinity: special,
            nan: format.nan_code(),
            sign: if integer { 0 } else { format.sign_bit() },
            sign_shift: 32 - format.bits(),
            nan_sign: if format.has_nan() && !fnuz { format.sign_bit() } else { 0 },
            unsigned_code: if fnuz { 0 } else { u32::MAX },
            complement: if integer { u32::MAX } else { 0 },
            mask: if integer { (1 << format.bits()) - 1 } else { u32::MAX },
        })
    }

    /// Whether the sign is a bit that every code has, zero and NaN included.
    pub fn is_plain(&self) -> bool {
        self.complement == 0 && self.unsigned_code != 0 && self.nan_sign == self.sign
    }

    /// Whether 64 bits lie between f32's subnormals and the format's quantum, so that no random
    /// draw rounds them up.
    pub fn is_far(&self) -> bool {
        self.minimum_field >= 64
    }

    /// Whether, besides, every power of two that counts in quanta is a normal f32.
    pub fn counts_in_floats(&self) -> bool {
        self.is_far() && self.clamp.max(self.clamp_negative) < 254 << 23
    }

    /// Whether format and f32 have the same exponent range.
    pub fn is_cut_f32(&self) -> bool {
        self.minimum_field == 1 && self.mantissa_bits >= 1
    }

    /// Whether f32 addition can do the nearest-even rounding: the power of two that is added must
    /// exist in f32, and no operand that matters may be subnormal.
    pub fn addition_is_exact(&self) -> bool {
        (self.clamp >> 23) + self.dropped <= 254 && self.minimum_field >= 32
    }
}

/// Constants of one decoding of a float; integers and scales have none.
#[derive(Clone, Copy)]
pub(crate) struct DecodePlan {
    /// How far the mantissa moves up.
    pub shift: u32,
    /// What makes an exponent field f32's, as f32 bits.
    pub rebias: u32,
    /// First magnitude with a hidden bit.
    pub first_normal: u32,
    /// Value of magnitude 1.
    pub quantum: f32,
    /// Largest finite magnitude.
    pub max: u32,
    /// Magnitude of infinity, or a magnitude that never occurs.
    pub infinity: u32,
    /// The sign bit.
    pub sign: u32,
    /// How far the sign bit is from f32's.
    pub sign_shift: u32,
    /// The code whose sign is no sign: that of NaN in `fnuz` formats, else no code.
    pub nan: u32,
}

impl DecodePlan {
    pub fn new(format: Format) -> Option<Self> {
        if format.is_f32() || matches!(format.specials(), Specials::Scale | Specials::Integer) {
            return None;
        }
        if format.min_exponent() < -126 {
            return None;
        }
        // With f32's own exponent range, f32 is normal exactly where the format is.
        let same_range = format.min_exponent() == -126;
        let never = u32::MAX;
        let infinity = if format.has_infinity() { format.max_code() + 1 } else { never };
        let fnuz = matches!(format.specials(), Specials::Fnuz);
        Some(Self {
            shift: 23 - format.mantissa_bits(),
            rebias: ((127 - format.bias()) as u32) << 23,
            first_normal: if same_range { 0 } else { 1 << format.mantissa_bits() },
            quantum: if same_range { 1.0 } else { format.min_subnormal() as f32 },
            max: format.max_code(),
            infinity,
            sign: format.sign_bit(),
            sign_shift: 32 - format.bits(),
            nan: if fnuz { format.sign_bit() } else { never },
        })
    }
}
