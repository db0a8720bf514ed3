//! How near is the matrix product to what the machine can do, for each layout of a training step?
//!
//! Prints GFLOP/s beside a loop of nothing but fused multiply-adds and beside the `gemm` crate on
//! the same f32 numbers, all in this run. Threads: `RAYON_NUM_THREADS` (default: all).
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use onesigma_backend_cpu::gemm::{GemmItem, GemmShape, Matrix, gemm};
use onesigma_backend_cpu::{Input, Output};
use onesigma_format::{Conversion, Format, Noise, encode_slice, philox};

/// Median seconds of `work`, after a warm-up.
fn seconds(mut work: impl FnMut()) -> f64 {
    work();
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// f32 GFLOP/s of all threads together in a loop of multiply-adds that touches no memory.
fn fma_peak() -> f64 {
    const ROUNDS: usize = 2_000_000;
    const LANES: usize = 16 * 12;
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx2,fma")]
    fn wide(x: f32, y: f32) -> f32 {
        use std::arch::x86_64::*;
        let (x, y) = (_mm512_set1_ps(x), _mm512_set1_ps(y));
        let mut sums = [_mm512_setzero_ps(); LANES / 16];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, *sum, y);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }
    let work = || {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512 F was just found; it implies the others.
            return unsafe { wide(black_box(0.5), black_box(0.25)) };
        }
        let mut sums = [0.0_f32; LANES];
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = black_box(0.5) * *sum + 0.25);
        }
        sums.iter().sum()
    };
    let threads = rayon::current_num_threads();
    let elapsed = seconds(|| {
        rayon::broadcast(|_| black_box(work()));
    });
    (threads * ROUNDS * LANES * 2) as f64 / elapsed / 1e9
}

fn tensor(format: Format, count: usize, seed: u64) -> Vec<u8> {
    let mut values = vec![0.0; count];
    philox::fill_normal(Noise { seed, ..Noise::default() }, &mut values);
    let mut bytes = vec![0; count * format.bytes()];
    encode_slice(format, Conversion::SATURATE, Noise::default(), &values, &mut bytes)
        .expect("lengths agree");
    bytes
}

/// `(name, shape, A stored transposed, B stored transposed)`.
const CASES: [(&str, GemmShape, bool, bool); 8] = [
    ("square 1024", GemmShape { m: 1024, n: 1024, k: 1024 }, false, false),
    ("up forward", GemmShape { m: 2048, n: 1024, k: 256 }, false, true),
    ("up forward, [in, out] weight", GemmShape { m: 2048, n: 1024, k: 256 }, false, false),
    ("up input gradient", GemmShape { m: 2048, n: 256, k: 1024 }, false, false),
    ("up weight gradient", GemmShape { m: 1024, n: 256, k: 2048 }, true, false),
    ("down weight gradient", GemmShape { m: 256, n: 1024, k: 2048 }, true, false),
    ("projection forward", GemmShape { m: 2048, n: 256, k: 256 }, false, true),
    ("one token", GemmShape { m: 1, n: 1024, k: 256 }, false, true),
];

fn ours(shape: GemmShape, turned: (bool, bool), formats: [Format; 3]) -> f64 {
    let GemmShape { m, n, k } = shape;
    let (a, b) = (tensor(formats[0], m * k, 1), tensor(formats[1], k * n, 2));
    let mut c = vec![0_u8; m * n * formats[2].bytes()];
    let left = Matrix::new(Input::new(&a, formats[0]), if turned.0 { m } else { k });
    let right = Matrix::new(Input::new(&b, formats[1]), if turned.1 { k } else { n });
    let left = if turned.0 { left.transposed() } else { left };
    let right = if turned.1 { right.transposed() } else { right };
    seconds(|| {
        let out = Output::new(&mut c, formats[2]);
        gemm(shape, 0.1, left, right, &[GemmItem::default()], out).expect("shapes agree");
    })
}

/// The `gemm` crate on f32.
fn peer(shape: GemmShape, turned: (bool, bool)) -> f64 {
    let GemmShape { m, n, k } = shape;
    let (a, b) = (vec![0.5_f32; m * k], vec![0.25_f32; k * n]);
    let mut c = vec![0.0_f32; m * n];
    let strides = |turned, rows: usize, columns: usize| {
        if turned { (rows as isize, 1) } else { (1, columns as isize) }
    };
    let (a_column, a_row) = strides(turned.0, m, k);
    let (b_column, b_row) = strides(turned.1, k, n);
    let threads = rayon::current_num_threads();
    let parallelism =
        if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    seconds(|| {
        // SAFETY: the strides describe the three vectors exactly.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                a_column,
                a_row,
                b.as_ptr(),
                b_column,
                b_row,
                0.0,
                0.1,
                false,
                false,
                false,
                parallelism,
            );
        }
    })
}

fn main() {
    let peak = fma_peak();
    println!("threads {}, f32 multiply-add peak {peak:.0} GFLOP/s", rayon::current_num_threads());
    println!("GFLOP/s (part of that peak); E4M3 and BF16 may pass 100 %: BF16 dot products");
    println!(
        "{:<30} {:>18} {:>18} {:>18} {:>18} {:>18}",
        "case", "gemm crate f32", "f32", "f16", "bf16", "e4m3 -> bf16"
    );
    for (name, shape, a, b) in CASES {
        let flops = (2 * shape.m * shape.n * shape.k) as f64;
        let times = [
            peer(shape, (a, b)),
            ours(shape, (a, b), [Format::F32; 3]),
            ours(shape, (a, b), [Format::F16; 3]),
            ours(shape, (a, b), [Format::BF16; 3]),
            ours(shape, (a, b), [Format::E4M3, Format::E4M3, Format::BF16]),
        ];
        print!("{name:<30}");
        for time in times {
            let rate = flops / time / 1e9;
            print!(" {:>10.1} ({:>3.0} %)", rate, rate / peak * 100.0);
        }
        println!();
    }
}
