//! A backend of one's own: three kernels on `Vec<f32>`, and a whole training step runs on it.
//!
//! ```text
//! cargo run --release -p onesigma-examples --example custom_backend
//! ```
//!
//! What a backend does not do itself runs on the host, so it can begin this small. The book's
//! chapter on extending goes on from here; `templates/backend` is the same with every format,
//! `templates/engine` a backend that compiles whole programs.
#![allow(clippy::print_stdout)]

use std::error::Error as StdError;

use onesigma::backend::{Backend, Call, Caps, Error, Kernels, OpByOp, Result, Support};
use onesigma::format::{decode_slice, encode_slice};
use onesigma::graph::expr::Expr;
use onesigma::graph::{DType, Op, ReduceKind, Shape};
use onesigma::train::batch::Batch;
use onesigma::train::config::{Config, ModelConfig};
use onesigma::{backends, setup};

/// A device whose memory holds f32, whatever a tensor's format: values are rounded, not packed.
struct Loops;

fn device(error: onesigma::format::Error) -> Error {
    Error::Device { backend: "loops".into(), reason: error.to_string() }
}

/// The end of every kernel: times `alpha`, rounded once into the result's format.
fn finish(call: &Call<'_>, mut values: Vec<f32>) -> Result<Vec<f32>> {
    let to = call.output();
    values.iter_mut().for_each(|value| *value *= call.alpha() as f32);
    let Some(format) = to.dtype.format() else { return Ok(values) };
    let mut codes = vec![0; to.bytes()];
    encode_slice(format, to.conversion, call.noise(0), &values, &mut codes).map_err(device)?;
    decode_slice(format, &codes, &mut values).map_err(device)?;
    Ok(values)
}

/// Calls `take` with each index of `shape` and the expression's value there, in order.
fn each(
    call: &Call<'_>,
    x: &[&Vec<f32>],
    expr: &Expr,
    shape: &Shape,
    mut take: impl FnMut(&[usize], f32),
) {
    let strides: Vec<_> = call.inputs.iter().map(|x| x.shape.broadcast_strides(shape)).collect();
    let own = shape.strides();
    for flat in 0..shape.numel() {
        let index: Vec<usize> = own.iter().zip(shape.dims()).map(|(s, d)| flat / s % d).collect();
        let at = |s: &[usize]| index.iter().zip(s).map(|(i, s)| i * s).sum::<usize>();
        let operands: Vec<f64> = x.iter().zip(&strides).map(|(x, s)| x[at(s)].into()).collect();
        take(&index, expr.eval(&operands, &index) as f32);
    }
}

impl Kernels for Loops {
    type Tensor = Vec<f32>;

    fn name(&self) -> &str {
        "loops"
    }

    fn caps(&self) -> Caps {
        Caps { device: "nested loops".into(), memory_bytes: None, deterministic: true }
    }

    fn supports(&self, op: &Op, _: &[DType], _: DType) -> Support {
        match op {
            Op::MatMul { .. } | Op::Map { .. } | Op::Reduce { .. } => Support::Native,
            _ => Support::Emulated,
        }
    }

    fn upload(&self, _: &Shape, dtype: DType, bytes: &[u8]) -> Result<Vec<f32>> {
        let Some(format) = dtype.format() else {
            let words = bytes.as_chunks().0.iter();
            return Ok(words.map(|word| u32::from_le_bytes(*word) as f32).collect());
        };
        let mut values = vec![0.0; bytes.len() / format.bytes()];
        decode_slice(format, bytes, &mut values).map_err(device)?;
        Ok(values)
    }

    fn download(&self, x: &Vec<f32>, _: &Shape, dtype: DType, bytes: &mut [u8]) -> Result<()> {
        let Some(format) = dtype.format() else {
            for (word, value) in bytes.as_chunks_mut().0.iter_mut().zip(x) {
                *word = (*value as u32).to_le_bytes();
            }
            return Ok(());
        };
        // The values are representable already, so that no rounding is left to do.
        let exact = onesigma::format::Conversion::SATURATE;
        encode_slice(format, exact, onesigma::format::Noise::default(), x, bytes).map_err(device)
    }

    fn mat_mul(
        &self,
        call: &Call<'_>,
        a: &Vec<f32>, // [.., m, k], or [.., k, m] if transposed
        b: &Vec<f32>, // [.., k, n], or [.., n, k] if transposed
        transpose_a: bool,
        transpose_b: bool,
    ) -> Result<Vec<f32>> {
        let (dims, n) = (call.inputs[0].shape.dims(), call.output().shape.last());
        let [rows, columns] = [dims[dims.len() - 2], dims[dims.len() - 1]];
        let (m, k) = if transpose_a { (columns, rows) } else { (rows, columns) };
        let b_step = if call.inputs[1].shape.rank() == 2 { 0 } else { k * n };
        let mut out = Vec::with_capacity(call.output().shape.numel());
        for flat in 0..call.output().shape.numel() {
            let (batch, i, j) = (flat / (m * n), flat / n % m, flat % n);
            let (a, b) = (&a[batch * m * k..], &b[batch * b_step..]);
            let a = |p| a[if transpose_a { p * m + i } else { i * k + p }];
            let b = |p| b[if transpose_b { j * k + p } else { p * n + j }];
            out.push((0..k).map(|p| a(p) * b(p)).sum());
        }
        finish(call, out)
    }

    fn map(&self, call: &Call<'_>, x: &[&Vec<f32>], expr: &Expr) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        each(call, x, expr, &call.output().shape, |_, value| values.push(value));
        finish(call, values)
    }

    fn reduce(
        &self,
        call: &Call<'_>,
        x: &[&Vec<f32>],
        kind: ReduceKind,
        expr: &Expr,
        shape: &Shape,
        axes: &[usize],
    ) -> Result<Vec<f32>> {
        let strides = shape.reduced(axes, true).broadcast_strides(shape);
        let start = if kind == ReduceKind::Sum { 0.0 } else { f32::NEG_INFINITY };
        let mut values = vec![start; call.output().shape.numel()];
        each(call, x, expr, shape, |index, value| {
            let slot = &mut values[index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>()];
            *slot = if kind == ReduceKind::Sum { *slot + value } else { slot.max(value) };
        });
        finish(call, values)
    }
}

/// Losses of a few steps of a small unit-scaled GPT in FP8 on a backend.
fn losses(backend: Box<dyn Backend>) -> std::result::Result<Vec<f32>, Box<dyn StdError>> {
    let config = Config {
        recipe: "unit-fp8".into(),
        batch: 2,
        model: ModelConfig { layers: 1, heads: 2, hidden: 16, seq: 16, ..ModelConfig::default() },
        ..Config::default()
    };
    let mut session = setup::session_on(&config, backend)?;
    session.init(1)?;
    let text = b"a backend can begin as small as this";
    let tokens = |from: usize| text[from..from + 32].iter().map(|&byte| byte.into()).collect();
    let batch = Batch { step: 0, inputs: tokens(0), targets: tokens(1), more: Vec::new() };
    let mut losses = Vec::new();
    for step in 0..4 {
        losses.extend(session.train(step, &[0.02], std::slice::from_ref(&batch))?);
    }
    Ok(losses)
}

fn main() -> std::result::Result<(), Box<dyn StdError>> {
    let own = losses(Box::new(OpByOp::new(Loops)))?;
    let cpu = losses(backends::open("cpu")?)?;
    println!("{:>6} {:>10} {:>10}", "step", "loops", "cpu");
    for (step, (own, cpu)) in own.iter().zip(&cpu).enumerate() {
        println!("{step:>6} {own:>10.5} {cpu:>10.5}");
    }
    Ok(())
}

#[test]
fn own_kernels_train_as_the_processor_does() -> std::result::Result<(), Box<dyn StdError>> {
    let own = losses(Box::new(OpByOp::new(Loops)))?;
    let cpu = losses(backends::open("cpu")?)?;
    assert!(own.iter().zip(&cpu).all(|(a, b)| (a - b).abs() < 0.02), "{own:?} and {cpu:?}");
    assert!(own[3] < own[0], "{own:?}");
    Ok(())
}
