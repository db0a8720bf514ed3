//! What this machine can do at most, measured in a fraction of a second: multiply-adds without
//! memory, and a copy without arithmetic.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use onesigma_backend::Device;
use onesigma_backend::null::Rate;

use crate::Isa;
use crate::team::Team;

/// Vectors whose sums do not wait for each other: latency times throughput of a multiply-add.
const CHAINS: usize = 12;
const ROUNDS: usize = 400_000;
/// Bytes that each thread copies: more than its share of the caches.
const COPIED: usize = 32 << 20;

/// Peak rates of a team's threads together; the caller leads it.
pub(crate) fn measure(team: &Team, memory_bytes: u64) -> Device {
    let isa = Isa::current();
    let single = rate(team, || multiply_adds(isa));
    let mut matmul = vec![Rate { bits: 32, flops: single }];
    if isa == Isa::Avx512Bf16 {
        // FP8 values are exact in BF16, and products of 8-bit formats run as its dot products.
        matmul.insert(0, Rate { bits: 8, flops: rate(team, || dot_products(isa)) });
    }
    Device {
        name: format!("this machine, {} threads, measured", team.threads()),
        memory_bytes,
        bytes_per_second: copy_bandwidth(team),
        matmul,
        flops: single / 2.0, // one operation where a multiply-add is two
    }
}

/// Best of several runs of `work`, which gives its number of operations, on every thread at once.
fn rate(team: &Team, work: impl Fn() -> usize + Sync) -> f64 {
    let run = || {
        let operations = AtomicUsize::new(0);
        let start = Instant::now();
        team.on_each(|| {
            operations.fetch_add(work(), Ordering::Relaxed);
        });
        operations.into_inner() as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| run()).fold(0.0, f64::max)
}

/// Whether BF16 dot products run well above the f32 rate of this processor: best of a few runs of
/// some 20 µs each. Where they pay they are about twice as fast, where they do not, half as fast, so
/// the answer does not hang on chance.
pub(crate) fn bf16_pays() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        const SHORT: usize = 4_000;
        let best = |work: fn() -> usize| {
            let run = || {
                let start = Instant::now();
                let operations = work();
                operations as f64 / start.elapsed().as_secs_f64().max(1e-9)
            };
            (0..7).map(|_| run()).fold(0.0, f64::max)
        };
        // SAFETY: asked only where `Isa` found AVX-512 with BF16.
        let dots = best(|| unsafe { dot512(SHORT) });
        // SAFETY: as above.
        let multiply_adds = best(|| unsafe { wide512(SHORT) });
        return dots > 1.25 * multiply_adds;
    }
    #[allow(unreachable_code)]
    false
}

fn copy_bandwidth(team: &Team) -> f64 {
    let threads = team.threads();
    let pairs: Vec<_> = (0..threads)
        .map(|_| std::sync::Mutex::new((vec![1_u8; COPIED], vec![2_u8; COPIED])))
        .collect();
    let turn = AtomicUsize::new(0);
    rate(team, || {
        let index = turn.fetch_add(1, Ordering::Relaxed) % threads;
        let mut pair = pairs[index].lock().unwrap_or_else(|error| error.into_inner());
        let (from, to) = &mut *pair;
        to.copy_from_slice(black_box(from));
        black_box(to);
        2 * COPIED
    })
}

/// A loop of f32 multiply-adds; gives the number of operations.
fn multiply_adds(isa: Isa) -> usize {
    #[cfg(target_arch = "x86_64")]
    match isa {
        // SAFETY: the instruction set was found on this machine.
        Isa::Avx512 | Isa::Avx512Bf16 => return unsafe { wide512(ROUNDS) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { wide256() },
        _ => {}
    }
    let _ = isa;
    let mut sums = [[0.0_f32; 8]; CHAINS];
    let (x, y) = (black_box(0.5), black_box(0.25));
    for _ in 0..ROUNDS {
        for sum in sums.as_flattened_mut() {
            *sum = x * *sum + y;
        }
    }
    black_box(sums);
    ROUNDS * CHAINS * 8 * 2
}

/// A loop of BF16 dot products; gives the number of operations.
fn dot_products(isa: Isa) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Bf16 {
        // SAFETY: the instruction set was found on this machine.
        return unsafe { dot512(ROUNDS) };
    }
    multiply_adds(isa)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn wide512(rounds: usize) -> usize {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps, _mm512_setzero_ps};
    let (x, y) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(x, *sum, y);
        }
    }
    black_box(sums);
    rounds * CHAINS * 16 * 2
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot512(rounds: usize) -> usize {
    use std::arch::x86_64::{__m512bh, _mm512_dpbf16_ps, _mm512_set1_epi16, _mm512_setzero_ps};
    let half = black_box(0x3f00_i16); // 0.5
    // SAFETY: both are 512 bits of plain data.
    let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi16(half)) };
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, x);
        }
    }
    black_box(sums);
    rounds * CHAINS * 32 * 2
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn wide256() -> usize {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps};
    let (x, y) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
    let mut sums = [_mm256_setzero_ps(); CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(x, *sum, y);
        }
    }
    black_box(sums);
    ROUNDS * CHAINS * 8 * 2
}
