//! Names of formats: `Display`, `FromStr`, serde.

use core::{fmt, str::FromStr};

use crate::{Error, Format, Specials};

const NAMES: &[(&str, Format)] = &[
    ("F32", Format::F32),
    ("F16", Format::F16),
    ("BF16", Format::BF16),
    ("E5M2", Format::E5M2),
    ("E4M3", Format::E4M3),
    ("E5M2FNUZ", Format::E5M2FNUZ),
    ("E4M3FNUZ", Format::E4M3FNUZ),
    ("E4M3B11FNUZ", Format::E4M3B11FNUZ),
    ("E4M3IEEE", Format::E4M3_IEEE),
    ("E3M4", Format::E3M4),
    ("E3M2", Format::E3M2),
    ("E2M3", Format::E2M3),
    ("E2M1", Format::E2M1),
    ("E8M0", Format::E8M0),
    ("INT8", Format::INT8),
    ("INT4", Format::INT4),
    // Other names that mean the same, accepted and never printed.
    ("FP32", Format::F32),
    ("FLOAT32", Format::F32),
    ("FP16", Format::F16),
    ("FLOAT16", Format::F16),
    ("BFLOAT16", Format::BF16),
    ("E4M3FN", Format::E4M3),
    ("E4M3_IEEE", Format::E4M3_IEEE),
    ("E3M2FN", Format::E3M2),
    ("E2M3FN", Format::E2M3),
    ("E2M1FN", Format::E2M1),
    ("E8M0FNU", Format::E8M0),
];

const ENDINGS: &[(&str, Specials)] = &[
    ("ieee", Specials::Ieee),
    ("finitenan", Specials::FiniteNan),
    ("fnuz", Specials::Fnuz),
    ("finite", Specials::Finite),
    ("scale", Specials::Scale),
    ("integer", Specials::Integer),
];

impl Format {
    /// The name of a named constant, such as `"E4M3"`; `None` for other parameters, which
    /// `Display` prints as for example `e5m3b15-ieee`.
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(_, format)| *format == self).map(|(name, _)| *name)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.name() {
            return f.pad(name);
        }
        let (ending, _) = ENDINGS.iter().find(|(_, s)| *s == self.specials()).ok_or(fmt::Error)?;
        write!(f, "e{}m{}b{}-{ending}", self.exponent_bits(), self.mantissa_bits(), self.bias())
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Format {
    type Err = Error;

    /// Parses what `Display` prints, without regard to case, and a few common other names.
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some((_, format)) = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            return Ok(*format);
        }
        parameters(text).ok_or(Error::UnknownFormat)?
    }
}

/// Reads `e5m3b15-ieee`; `None` if the text has not this shape.
fn parameters(text: &str) -> Option<Result<Format, Error>> {
    let (numbers, ending) = text.rsplit_once('-')?;
    let (_, specials) = ENDINGS.iter().find(|(name, _)| name.eq_ignore_ascii_case(ending))?;
    let rest = numbers.strip_prefix(['e', 'E'])?;
    let (exponent, rest) = rest.split_once(['m', 'M'])?;
    let (mantissa, bias) = rest.split_once(['b', 'B'])?;
    let format =
        Format::new(exponent.parse().ok()?, mantissa.parse().ok()?, bias.parse().ok()?, *specials);
    Some(format)
}

#[cfg(feature = "serde")]
mod serialise {
    use core::fmt;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use crate::Format;

    impl Serialize for Format {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    impl<'de> Deserialize<'de> for Format {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Name;
            impl de::Visitor<'_> for Name {
                type Value = Format;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("the name of a number format")
                }

                fn visit_str<E: de::Error>(self, text: &str) -> Result<Format, E> {
                    text.parse().map_err(E::custom)
                }
            }
            deserializer.deserialize_str(Name)
        }
    }
}
