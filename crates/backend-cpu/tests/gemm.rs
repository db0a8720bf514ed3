//! The matrix product against a naive one in f64.

mod common;

use common::{FORMATS, Tensor, assert_close, tolerance};
use onesigma_backend_cpu::gemm::{GemmItem, GemmShape, Matrix, gemm};
use onesigma_backend_cpu::{Error, Isa};
use onesigma_format::Format;

/// Sizes `(m, n, k)`: ones, odd ones, more than a tile, more than a block in each direction.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (3, 5, 7),
    (14, 32, 16),
    (33, 65, 129),
    (1, 300, 40),
    (200, 1, 513),
    (70, 96, 300),
    (530, 40, 33),
];

/// A stored `rows × columns` matrix, or its transpose stored.
fn operand(format: Format, rows: usize, columns: usize, turned: bool, seed: u64) -> (Tensor, bool) {
    (Tensor::normal(format, rows * columns, 1.0, seed), turned)
}

fn view<'a>((x, turned): &'a (Tensor, bool), rows: usize, columns: usize) -> Matrix<'a> {
    if *turned {
        Matrix::new(x.input(), rows).transposed()
    } else {
        Matrix::new(x.input(), columns)
    }
}

fn value((x, turned): &(Tensor, bool), rows: usize, columns: usize, at: (usize, usize)) -> f64 {
    if *turned { x.values[at.1 * rows + at.0] } else { x.values[at.0 * columns + at.1] }
}

fn check(shape: (usize, usize, usize), a_format: Format, b_format: Format, c_format: Format) {
    let (m, n, k) = shape;
    for turned in [(false, false), (false, true), (true, false), (true, true)] {
        let a = operand(a_format, m, k, turned.0, 1);
        let b = operand(b_format, k, n, turned.1, 2);
        let alpha = 1.0 / (k as f32).sqrt();
        let mut c = Tensor::room(c_format, m * n);
        let shape = GemmShape { m, n, k };
        gemm(shape, alpha, view(&a, m, k), view(&b, k, n), &[GemmItem::default()], c.output())
            .unwrap();
        let found = c.read();
        for row in 0..m {
            for column in 0..n {
                let (mut sum, mut size) = (0.0, 0.0);
                for i in 0..k {
                    let term = value(&a, m, k, (row, i)) * value(&b, k, n, (i, column));
                    sum += term;
                    size += term.abs();
                }
                let error = size * k as f64 * tolerance::GEMM_PER_TERM;
                assert_close(
                    &format!("{shape:?} {turned:?} {a_format:?}·{b_format:?} [{row},{column}]"),
                    c_format,
                    found[row * n + column],
                    sum * f64::from(alpha),
                    error * f64::from(alpha),
                );
            }
        }
    }
}

/// One test, because the instruction set is a setting of the process.
#[test]
fn agrees_with_f64_on_every_instruction_set() {
    for isa in Isa::available() {
        assert_eq!(isa.limit(), isa);
        for shape in SHAPES {
            check(shape, Format::F32, Format::F32, Format::F32);
            check(shape, Format::E4M3, Format::E5M2, Format::BF16);
        }
        for a in FORMATS {
            for b in FORMATS {
                check((17, 33, 19), a, b, Format::F32);
            }
            check((17, 33, 19), Format::E4M3, Format::F16, a);
        }
        // A few rows have kernels of their own, over blocks of 64 along K.
        for m in 1..=5 {
            for k in [1, 40, 63, 64, 65, 200] {
                for b in [Format::F32, Format::F16, Format::BF16, Format::E4M3, Format::E5M2] {
                    check((m, 70, k), Format::F32, b, Format::F32);
                    check((m, 70, k), b, b, Format::F32);
                }
                check((m, 70, k), Format::E5M2, Format::E4M3, Format::F16);
            }
        }
    }
}

#[test]
fn batches_and_shared_operands_match_single_products() {
    let (m, n, k) = (9, 40, 21);
    let a = Tensor::normal(Format::E4M3, 3 * m * k, 1.0, 5);
    let b = Tensor::normal(Format::E4M3, k * n, 1.0, 6);
    let shape = GemmShape { m, n, k };
    let items: Vec<_> = (0..3).map(|i| GemmItem { a: i * m * k, b: 0, c: i * m * n }).collect();
    let mut all = Tensor::room(Format::F32, 3 * m * n);
    let (left, right) = (Matrix::new(a.input(), k), Matrix::new(b.input(), n));
    gemm(shape, 0.5, left, right, &items, all.output()).unwrap();
    let mut single = Tensor::room(Format::F32, 3 * m * n);
    for item in &items {
        gemm(shape, 0.5, left, right, &[*item], single.output()).unwrap();
    }
    assert_eq!(all.bytes, single.bytes);
}

#[test]
fn threads_do_not_change_a_bit() {
    let shape = GemmShape { m: 190, n: 210, k: 700 };
    let a = Tensor::normal(Format::F32, shape.m * shape.k, 1.0, 1);
    let b = Tensor::normal(Format::E5M2, shape.k * shape.n, 1.0, 2);
    let run = |threads| {
        let mut c = Tensor::room(Format::F16, shape.m * shape.n);
        let (left, right) = (Matrix::new(a.input(), shape.k), Matrix::new(b.input(), shape.n));
        onesigma_backend_cpu::on_threads(threads, || {
            gemm(shape, 0.1, left, right, &[GemmItem::default()], c.output()).unwrap();
        })
        .unwrap();
        c.bytes
    };
    for threads in [2, 3, 7] {
        assert_eq!(run(1), run(threads), "{threads} threads");
    }
}

#[test]
fn small_bf16_numbers_are_not_flushed() {
    let tiny = 2.0_f32.powi(-130);
    let a = Tensor::from_f32(Format::BF16, &[tiny, 0.0]);
    let b = Tensor::from_f32(Format::BF16, &[2.0_f32.powi(120), 0.0]);
    let mut c = Tensor::room(Format::F32, 1);
    let shape = GemmShape { m: 1, n: 1, k: 2 };
    let (left, right) = (Matrix::new(a.input(), 2), Matrix::new(b.input(), 1));
    gemm(shape, 1.0, left, right, &[GemmItem::default()], c.output()).unwrap();
    assert_eq!(c.read(), [2.0_f64.powi(-10)]);
}

#[test]
fn empty_sizes_write_zero_or_nothing() {
    let empty = Tensor::room(Format::F32, 0);
    let mut c = Tensor::room(Format::F16, 6);
    let shape = GemmShape { m: 2, n: 3, k: 0 };
    let (left, right) = (Matrix::new(empty.input(), 0), Matrix::new(empty.input(), 3));
    gemm(shape, 1.0, left, right, &[GemmItem::default()], c.output()).unwrap();
    assert_eq!(c.read(), [0.0; 6]);
    let shape = GemmShape { m: 0, n: 3, k: 0 };
    gemm(shape, 1.0, left, right, &[GemmItem::default()], c.output()).unwrap();
}

#[test]
fn an_operand_that_is_too_short_is_refused() {
    let a = Tensor::normal(Format::F32, 5, 1.0, 1);
    let mut c = Tensor::room(Format::F32, 9);
    let shape = GemmShape { m: 3, n: 3, k: 2 };
    let matrix = Matrix::new(a.input(), 2);
    let error = gemm(shape, 1.0, matrix, matrix, &[GemmItem::default()], c.output()).unwrap_err();
    assert!(matches!(error, Error::Shape { kernel: "gemm", .. }));
}
