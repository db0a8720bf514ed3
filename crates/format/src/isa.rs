//! Instruction sets: which there are, and how a function is compiled for each.

use crate::Error;

/// An instruction set that the bulk codecs are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Isa {
    /// What the target always has: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VBMI.
    Avx512,
}

impl Isa {
    /// Every instruction set that the crate knows.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The name, as in `"avx2"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The best that this machine has. Without the `std` feature: that the build assumes.
    #[inline]
    pub fn detect() -> Self {
        if Self::Avx512.is_available() {
            Self::Avx512
        } else if Self::Avx2.is_available() {
            Self::Avx2
        } else {
            Self::Portable
        }
    }

    /// Whether this machine has it.
    #[inline]
    pub fn is_available(self) -> bool {
        #[cfg(all(target_arch = "x86_64", feature = "std"))]
        return match self {
            Self::Portable => true,
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            Self::Avx512 => {
                std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512vbmi")
            }
        };
        #[cfg(not(all(target_arch = "x86_64", feature = "std")))]
        return match self {
            Self::Portable => true,
            Self::Avx2 => {
                cfg!(all(target_feature = "avx2", target_feature = "fma", target_feature = "f16c"))
            }
            Self::Avx512 => cfg!(all(
                target_feature = "avx512f",
                target_feature = "avx512bw",
                target_feature = "avx512dq",
                target_feature = "avx512vl",
                target_feature = "avx512vbmi"
            )),
        };
    }

    pub(crate) fn check(self) -> Result<(), Error> {
        if self.is_available() { Ok(()) } else { Err(Error::Isa { isa: self.name() }) }
    }
}

/// Defines `$name(isa, …)`, which runs `$body` compiled for that instruction set.
macro_rules! per_isa {
    ($(#[$meta:meta])* $visible:vis fn $name:ident<$(const $constant:ident: $type:ty),*>(
        $($argument:ident: $argument_type:ty),* $(,)?
    ) = $body:ident;) => {
        $(#[$meta])*
        $visible fn $name<$(const $constant: $type),*>(isa: $crate::Isa, $($argument: $argument_type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<$(const $constant: $type),*>($($argument: $argument_type),*) {
                $body::<$($constant),*>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
            fn avx512<$(const $constant: $type),*>($($argument: $argument_type),*) {
                $body::<$($constant),*>($($argument),*)
            }
            assert!(isa.is_available()); // what the SAFETY below rests on; a cached load
            match isa {
                // SAFETY: asserted above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => unsafe { avx2::<$($constant),*>($($argument),*) },
                // SAFETY: asserted above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 => unsafe { avx512::<$($constant),*>($($argument),*) },
                _ => $body::<$($constant),*>($($argument),*),
            }
        }
    };
}

pub(crate) use per_isa;
