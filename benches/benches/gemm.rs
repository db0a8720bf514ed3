//! How near is the matrix product to what the machine can do, for each layout of a training step?
//!
//! GFLOP/s beside a loop of nothing but fused multiply-adds and beside the `gemm` crate on the same
//! f32 numbers, all in this run.
//!
//! ```text
//! cargo bench --bench gemm [-- [--threads N] [--rounds N] [--json FILE] [part of a case's name]]
//! ```
//!
//! Everything is timed in turn, round after round, so that a disturbance hits all alike; a rate is
//! that of the median round, and so is the ratio to the multiply-adds of the same round.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use onesigma_backend_cpu::gemm::{GemmItem, GemmShape, Matrix, gemm};
use onesigma_backend_cpu::{Input, Output};
use onesigma_format::{Conversion, Format, Noise, encode_slice, philox};

/// Seconds of one call of `work`.
fn seconds(work: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// f32 GFLOP/s of all threads together in a loop of multiply-adds that touches no memory.
fn fma_peak() -> f64 {
    const ROUNDS: usize = 500_000;
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
    let elapsed = seconds(&mut || {
        rayon::broadcast(|_| black_box(work()));
    });
    (rayon::current_num_threads() * ROUNDS * LANES * 2) as f64 / elapsed / 1e9
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

/// A call of one kernel on data of its own.
type Call = Box<dyn FnMut()>;

fn ours(shape: GemmShape, turned: (bool, bool), formats: [Format; 3]) -> Call {
    let GemmShape { m, n, k } = shape;
    let (a, b) = (tensor(formats[0], m * k, 1), tensor(formats[1], k * n, 2));
    let mut c = vec![0_u8; m * n * formats[2].bytes()];
    Box::new(move || {
        let left = Matrix::new(Input::new(&a, formats[0]), if turned.0 { m } else { k });
        let right = Matrix::new(Input::new(&b, formats[1]), if turned.1 { k } else { n });
        let left = if turned.0 { left.transposed() } else { left };
        let right = if turned.1 { right.transposed() } else { right };
        let out = Output::new(&mut c, formats[2]);
        gemm(shape, 0.1, left, right, &[GemmItem::default()], out).expect("shapes agree");
    })
}

/// The `gemm` crate on f32.
fn peer(shape: GemmShape, turned: (bool, bool)) -> Call {
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
    Box::new(move || {
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

const KINDS: [(&str, Option<[Format; 3]>); 6] = [
    ("gemm crate f32", None),
    ("f32", Some([Format::F32; 3])),
    ("f16", Some([Format::F16; 3])),
    ("bf16", Some([Format::BF16; 3])),
    ("e4m3 e4m3", Some([Format::E4M3, Format::E4M3, Format::F16])),
    ("e4m3 e5m2", Some([Format::E4M3, Format::E5M2, Format::F16])),
];

/// What follows a flag on the command line.
fn flag(name: &str) -> Option<String> {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.nth(1)
}

fn main() {
    let number = |name| flag(name).and_then(|value| value.parse::<usize>().ok());
    let all = std::thread::available_parallelism().map_or(1, |count| count.get());
    let threads = number("--threads").unwrap_or(all);
    let rounds = number("--rounds").unwrap_or(15);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("first use");
    let report = onesigma_backend_cpu::on_threads(threads, || run(threads, rounds));
    if let Some(path) = flag("--json") {
        let text = serde_json::to_string_pretty(&report.expect("threads")).expect("plain data");
        std::fs::write(path, text + "\n").expect("the file can be written");
    }
}

fn run(threads: usize, rounds: usize) -> serde_json::Value {
    let flags = ["--threads", "--rounds", "--json"].map(flag);
    let wanted = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with("--") && !flags.contains(&Some(arg.clone())));
    let wanted = wanted.unwrap_or_default();
    println!("{threads} threads, {}", onesigma_backend_cpu::Isa::current().label());
    println!("GFLOP/s (part of the f32 multiply-adds of the same round)");
    print!("{:<30}", "case");
    KINDS.iter().for_each(|(name, _)| print!(" {name:>18}"));
    println!();
    let (mut cases, mut peaks) = (Vec::new(), Vec::new());
    for (name, shape, a, b) in CASES.iter().filter(|case| case.0.contains(&wanted)) {
        let flops = (2 * shape.m * shape.n * shape.k) as f64;
        // Enough calls that a turn lasts about 10 ms.
        let repeats = ((2e9 / flops) as usize).clamp(1, 2000);
        let mut calls: Vec<Call> = KINDS
            .iter()
            .map(|(_, formats)| match formats {
                None => peer(*shape, (*a, *b)),
                Some(formats) => ours(*shape, (*a, *b), *formats),
            })
            .collect();
        calls.iter_mut().for_each(|call| call());
        let mut rates = vec![Vec::new(); KINDS.len()];
        for _ in 0..rounds {
            let peak = fma_peak();
            peaks.push(peak);
            for (call, rates) in calls.iter_mut().zip(&mut rates) {
                let elapsed = seconds(&mut || (0..repeats).for_each(|_| call()));
                let rate = flops * repeats as f64 / elapsed / 1e9;
                rates.push((rate, rate / peak));
            }
        }
        print!("{name:<30}");
        for ((kind, _), rates) in KINDS.iter().zip(&rates) {
            let rate = median(rates.iter().map(|rate| rate.0));
            let ratio = median(rates.iter().map(|rate| rate.1));
            print!(" {rate:>10.1} ({:>3.0} %)", ratio * 100.0);
            cases.push(serde_json::json!({
                "case": name, "m": shape.m, "n": shape.n, "k": shape.k, "operands": kind,
                "gflops": (rate * 10.0).round() / 10.0, "of_fma": (ratio * 1e3).round() / 1e3,
            }));
        }
        println!();
    }
    let peak = median(peaks.into_iter());
    println!("f32 multiply-adds: {peak:.0} GFLOP/s");
    serde_json::json!({
        "threads": threads, "rounds": rounds, "fma_gflops": peak.round(),
        "kernels": onesigma_backend_cpu::Isa::current().label(), "cases": cases,
    })
}
