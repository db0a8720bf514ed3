//! Values of the graph: ids, element types, roles.

use crate::Shape;
use onesigma_format::{Conversion, Format};
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub(crate) u32);

        impl $name {
            /// The id with this index; whether it exists is checked where it is used.
            pub const fn new(index: usize) -> Self {
                Self(index as u32)
            }

            /// Position in its table.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A tensor of one graph.
    ValueId,
    "%"
);
id!(
    /// An op of one graph.
    NodeId,
    "#"
);
id!(
    /// A named tensor of a program that the host or other entries see.
    SlotId,
    "@"
);
id!(
    /// An entry of a program.
    EntryId,
    "!"
);

/// Type of one element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum DType {
    /// A floating-point number in one of the formats of `onesigma-format`.
    Float(Format),
    /// An unsigned 32-bit integer: token ids, step counters, seeds.
    U32,
}

impl DType {
    /// IEEE binary32.
    pub const F32: Self = Self::Float(Format::F32);

    /// Bytes of one element in memory.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Float(format) => format.bytes(),
            Self::U32 => 4,
        }
    }

    /// The format of a float, `None` for an integer.
    pub const fn format(self) -> Option<Format> {
        match self {
            Self::Float(format) => Some(format),
            Self::U32 => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(format) => write!(f, "{format}"),
            Self::U32 => f.write_str("U32"),
        }
    }
}

/// What a tensor is for; recipes choose formats by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Role {
    /// A parameter as the forward and backward passes see it.
    Weight,
    /// The copy of a parameter that the optimiser updates.
    MasterWeight,
    /// The result of a forward op.
    Activation,
    /// A forward result that is kept for the backward pass.
    SavedActivation,
    /// Gradient of the loss for an activation.
    ActivationGrad,
    /// Gradient of the loss for a parameter.
    WeightGrad,
    /// First moment of an optimiser (momentum).
    FirstMoment,
    /// Second moment of an optimiser.
    SecondMoment,
    /// Losses, norms, maxima, log-sum-exp, learning rates: always F32.
    Statistic,
    /// Inputs from the host: token ids, masks, seeds.
    Data,
    /// What is sent between devices.
    Communication,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Weight => "weight",
            Self::MasterWeight => "master-weight",
            Self::Activation => "activation",
            Self::SavedActivation => "saved-activation",
            Self::ActivationGrad => "activation-grad",
            Self::WeightGrad => "weight-grad",
            Self::FirstMoment => "first-moment",
            Self::SecondMoment => "second-moment",
            Self::Statistic => "statistic",
            Self::Data => "data",
            Self::Communication => "communication",
        };
        f.write_str(text)
    }
}

/// A tensor of the graph.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Value {
    /// Extents.
    pub shape: Shape,
    /// Element type in memory.
    pub dtype: DType,
    /// How the f32 result of the producing op is rounded into `dtype`.
    pub conversion: Conversion,
    /// What the tensor is for.
    pub role: Role,
    /// The op that makes it.
    pub producer: NodeId,
    /// Which of the producer's outputs it is.
    pub output: usize,
}

impl Value {
    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> usize {
        self.shape.numel().saturating_mul(self.dtype.bytes())
    }

    /// `E4M3 [8, 256]`, for messages and listings.
    pub fn describe(&self) -> String {
        format!("{} {}", self.dtype, self.shape)
    }
}
