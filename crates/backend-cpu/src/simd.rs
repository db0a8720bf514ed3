//! Which vector unit runs the kernels, and how one source becomes a version for each.

use std::sync::atomic::{AtomicU8, Ordering};

/// A vector instruction set that the kernels have a version for, slowest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Isa {
    /// Whatever the compilation target guarantees.
    Portable = 1,
    /// x86-64 with AVX2 and FMA.
    Avx2 = 2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VBMI.
    Avx512 = 3,
    /// The same with the BF16 dot product, which runs FP8 products at twice the f32 rate.
    Avx512Bf16 = 4,
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

impl Isa {
    /// Every instruction set of this list that the machine has, slowest first.
    pub fn available() -> Vec<Self> {
        let best = Self::detect();
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16]
            .into_iter()
            .filter(|isa| *isa <= best)
            .collect()
    }

    /// Its name, for people.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Bf16 => "AVX-512 BF16",
        }
    }

    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi");
            return match (avx2, avx512) {
                (_, true) if is_x86_feature_detected!("avx512bf16") => Self::Avx512Bf16,
                (_, true) => Self::Avx512,
                (true, _) => Self::Avx2,
                _ => Self::Portable,
            };
        }
        #[allow(unreachable_code)]
        Self::Portable
    }

    /// What the process uses unless it is told otherwise: `ONESIGMA_ISA` (`portable`, `avx2`,
    /// `avx512`, `avx512-bf16`) if the machine has it, else the best one. That the BF16 dot product
    /// exists does not make it fast (on some processors it runs at half the f32 rate), so it is
    /// used where it is *measured* to be faster.
    fn choose() -> Self {
        let best = Self::detect();
        let named = std::env::var("ONESIGMA_ISA").ok().and_then(|name| match name.as_str() {
            "portable" => Some(Self::Portable),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            "avx512-bf16" => Some(Self::Avx512Bf16),
            _ => None,
        });
        match named {
            Some(isa) => isa.min(best),
            None if best == Self::Avx512Bf16 && !crate::limits::bf16_pays() => Self::Avx512,
            None => best,
        }
    }

    /// The instruction set in use: the best one of this machine, or what `ONESIGMA_ISA` or
    /// [`Isa::limit`] say.
    #[inline]
    pub fn current() -> Self {
        match CHOSEN.load(Ordering::Relaxed) {
            1 => Self::Portable,
            2 => Self::Avx2,
            3 => Self::Avx512,
            4 => Self::Avx512Bf16,
            _ => {
                // Threads that come here together may measure differently; the first one counts.
                let chosen = Self::choose() as u8;
                let _ = CHOSEN.compare_exchange(0, chosen, Ordering::Relaxed, Ordering::Relaxed);
                Self::current()
            }
        }
    }

    /// Uses at most `self` in the whole process from now on, for tests and comparisons.
    ///
    /// What the machine does not have is never used. Returns what is used from now on.
    pub fn limit(self) -> Self {
        let used = self.min(Self::detect());
        CHOSEN.store(used as u8, Ordering::Relaxed);
        used
    }
}

/// Defines a function once and compiles it for each [`Isa`]; the call picks one at run time.
///
/// The name in brackets is a `const bool` that the body can read: whether `mul_add` is one
/// instruction (see [`fma`]).
macro_rules! simd_fn {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident[$fma:ident $(, $T:ident : $bound:path)?](
            $($arg:ident : $ty:ty),* $(,)?
        ) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name$(<$T: $bound>)?($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const $fma: bool $(, $T: $bound)?>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma")]
                fn avx512$(<$T: $bound>)?($($arg: $ty),*) $(-> $ret)? {
                    body::<true $(, $T)?>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2$(<$T: $bound>)?($($arg: $ty),*) $(-> $ret)? {
                    body::<true $(, $T)?>($($arg),*)
                }
                match $crate::simd::Isa::current() {
                    // SAFETY: `Isa::current` returns only what the machine was found to have.
                    $crate::simd::Isa::Avx512 | $crate::simd::Isa::Avx512Bf16 => return unsafe {
                        avx512$(::<$T>)?($($arg),*)
                    },
                    // SAFETY: as above.
                    $crate::simd::Isa::Avx2 => return unsafe { avx2$(::<$T>)?($($arg),*) },
                    $crate::simd::Isa::Portable => {}
                }
            }
            body::<false $(, $T)?>($($arg),*)
        }
    };
}
pub(crate) use simd_fn;

/// `a · b + c`: rounded once where `FMA`, else twice (a software `mul_add` costs a call).
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}
