//! How fast are the kernels that are not matrix products, on the shapes of a training step?
//!
//! Throughput in elements of the result; a copy of the same tensor is the limit to compare with.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use onesigma_backend_cpu::adamw::{AdamW, AdamWStep};
use onesigma_backend_cpu::attention::{Attention, AttentionGradients};
use onesigma_backend_cpu::elementwise::{Unary, unary};
use onesigma_backend_cpu::norm::{Norm, NormGradients};
use onesigma_backend_cpu::rows::{gather, scatter_add};
use onesigma_backend_cpu::softmax::{Classification, softmax};
use onesigma_backend_cpu::{Input, Output};
use onesigma_format::{Conversion, Format, Noise, encode_slice, philox};

const ROWS: usize = 2048;
const WIDTH: usize = 256;
const FORMATS: [Format; 3] = [Format::F32, Format::F16, Format::E4M3];

fn tensor(format: Format, count: usize, seed: u64) -> Vec<u8> {
    let mut values = vec![0.0; count];
    philox::fill_normal(Noise { seed, ..Noise::default() }, &mut values);
    let mut bytes = vec![0; count * format.bytes()];
    encode_slice(format, Conversion::SATURATE, Noise::default(), &values, &mut bytes)
        .expect("lengths agree");
    bytes
}

fn name(kernel: &str, format: Format) -> String {
    format!("{kernel}/{}", format.name().unwrap_or("?"))
}

fn rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("rows 2048x256");
    group.throughput(Throughput::Elements((ROWS * WIDTH) as u64));
    for format in FORMATS {
        let x = tensor(format, ROWS * WIDTH, 1);
        let dy = tensor(format, ROWS * WIDTH, 2);
        let mut y = x.clone();
        let mut dweight = tensor(Format::F32, WIDTH, 3);
        group.bench_function(name("copy", format), |b| {
            b.iter(|| black_box(&mut y).copy_from_slice(black_box(&x)));
        });
        group.bench_function(name("softmax", format), |b| {
            b.iter(|| {
                let out = Output::new(&mut y, format);
                softmax(Input::new(&x, format), WIDTH, 1.0, 1.0, out).expect("sizes agree");
            });
        });
        let norm = Norm { width: WIDTH, eps: 1e-5, centred: true };
        group.bench_function(name("layer norm", format), |b| {
            b.iter(|| {
                let out = Output::new(&mut y, format);
                norm.forward(Input::new(&x, format), None, None, 1.0, out).expect("sizes agree");
            });
        });
        group.bench_function(name("layer norm gradient", format), |b| {
            b.iter(|| {
                let gradients = NormGradients {
                    x: Some((Output::new(&mut y, format), 1.0)),
                    weight: Some((Output::new(&mut dweight, Format::F32), 1.0)),
                    bias: None,
                };
                let (x, dy) = (Input::new(&x, format), Input::new(&dy, format));
                norm.backward(x, None, dy, gradients).expect("sizes agree");
            });
        });
        let targets: Vec<u8> =
            (0..ROWS as u32).flat_map(|row| (row % WIDTH as u32).to_le_bytes()).collect();
        let logits = Input::new(&x, format);
        let (classes, mask) = (WIDTH, None);
        let problem = Classification { logits, classes, mult: 1.0, targets: &targets, mask };
        group.bench_function(name("cross entropy gradient", format), |b| {
            b.iter(|| problem.gradient(1.0, Output::new(&mut y, format)).expect("sizes agree"));
        });
        let table = tensor(format, 256 * WIDTH, 4);
        group.bench_function(name("gather", format), |b| {
            b.iter(|| {
                let out = Output::new(&mut y, format);
                gather(Input::new(&table, format), WIDTH, &targets, 1.0, out).expect("sizes agree");
            });
        });
        let mut sums = table.clone();
        group.bench_function(name("scatter add", format), |b| {
            b.iter(|| {
                let out = Output::new(&mut sums, format);
                scatter_add(Input::new(&x, format), WIDTH, &targets, 1.0, out)
                    .expect("sizes agree");
            });
        });
    }
    group.finish();
}

fn attention(c: &mut Criterion) {
    let attention = Attention {
        batch: 8,
        queries: 256,
        keys: 256,
        heads: 4,
        kv_heads: 4,
        width: 64,
        causal: true,
        logit_scale: 0.125,
    };
    let len = 8 * 256 * 4 * 64;
    let mut group = c.benchmark_group("causal attention 8x256x4x64");
    group.throughput(Throughput::Elements(len as u64));
    for format in FORMATS {
        let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| tensor(format, len, seed));
        let [q, k, v, dout] = [&q, &k, &v, &dout].map(|x| Input::new(x, format));
        let [mut out, mut dk, mut dv] = [0, 1, 2].map(|_| vec![0; len * format.bytes()]);
        let mut lse = vec![0; 8 * 4 * 256 * 4];
        group.bench_function(name("forward", format), |b| {
            b.iter(|| {
                let lse = Output::new(&mut lse, Format::F32);
                attention.forward(q, k, v, None, 1.0, Output::new(&mut out, format), lse)
            });
        });
        group.bench_function(name("backward", format), |b| {
            b.iter(|| {
                let gradients = AttentionGradients {
                    q: (Output::new(&mut out, format), 1.0),
                    k: (Output::new(&mut dk, format), 1.0),
                    v: (Output::new(&mut dv, format), 1.0),
                };
                attention.backward(
                    q,
                    k,
                    v,
                    (dout, 1.0),
                    Input::new(&lse, Format::F32),
                    dout,
                    None,
                    gradients,
                )
            });
        });
    }
    group.finish();
}

fn optimiser(c: &mut Criterion) {
    let len = 1 << 20;
    let mut group = c.benchmark_group("adamw 1M");
    group.throughput(Throughput::Elements(len as u64));
    let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, lr_scale: 1.0 };
    let now = AdamWStep { lr: 1e-3, step: 1.0, grad_factor: 1.0 };
    for format in [Format::F32, Format::BF16] {
        let g = tensor(Format::F16, len, 1);
        let mut w = tensor(Format::F32, len, 2);
        let [mut m, mut v] = [0, 1].map(|_| vec![0; len * format.bytes()]);
        group.bench_function(name("moments", format), |b| {
            b.iter(|| {
                let weight = Output::new(&mut w, Format::F32);
                let moments = (Output::new(&mut m, format), Output::new(&mut v, format));
                adam.update(now, weight, Input::new(&g, Format::F16), moments.0, moments.1)
            });
        });
    }
    group.finish();
}

fn functions(c: &mut Criterion) {
    let mut x = vec![0.0; 1024];
    philox::fill_normal(Noise::default(), &mut x);
    let mut y = x.clone();
    let mut group = c.benchmark_group("functions of 1024 numbers");
    group.throughput(Throughput::Elements(1024));
    for op in [Unary::Abs, Unary::Exp, Unary::Ln, Unary::Tanh, Unary::Erf, Unary::Sigmoid] {
        group.bench_function(format!("{op:?}"), |b| {
            b.iter(|| unary(op, black_box(&x), black_box(&mut y)));
        });
    }
    group.finish();
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = rows, attention, optimiser, functions
}
criterion_main!(kernels);
