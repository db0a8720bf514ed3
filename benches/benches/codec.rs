//! How fast are the codecs beside a copy of as many bytes, `half` and `float8`?
//!
//! `cargo bench -p onesigma-benches --bench codec`. The figures that the project reports come from
//! `cargo xtask formats speed`.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use onesigma_format::{
    BlockFormat, Blocks, Conversion, Format, Isa, Layout, Noise, Packing, Rounding,
    decode_slice_on, encode_slice_on, philox,
};

const ELEMENTS: usize = 1 << 20;

fn source() -> Vec<f32> {
    let mut values = vec![0.0; ELEMENTS];
    philox::fill_normal(Noise { seed: 1, ..Noise::default() }, &mut values);
    values
}

/// A copy that reads and writes as many bytes as the conversion.
fn copy(group: &mut BenchmarkGroup<'_, WallTime>, bytes_per_element: usize) {
    let from = vec![1_u8; ELEMENTS * bytes_per_element / 2];
    let mut to = from.clone();
    group.bench_function("copy", |bencher| {
        bencher.iter(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    });
}

fn formats(criterion: &mut Criterion) {
    let source = source();
    for format in [Format::F16, Format::BF16, Format::E4M3, Format::E5M2] {
        let mut codes = vec![0; ELEMENTS * format.bytes()];
        let mut values = vec![0.0; ELEMENTS];
        let mut group = criterion.benchmark_group(format!("F32 to {format}"));
        group.throughput(Throughput::Elements(ELEMENTS as u64));
        copy(&mut group, 4 + format.bytes());
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (name, rounding) in [
                ("nearest-even", Rounding::NearestEven),
                ("stochastic-8", Rounding::Stochastic { bits: 8 }),
            ] {
                let how = Conversion { rounding, ..Conversion::SATURATE };
                group.bench_function(format!("{name} {}", isa.name()), |bencher| {
                    bencher.iter(|| {
                        encode_slice_on(isa, format, how, Noise::default(), &source, &mut codes)
                    });
                });
            }
        }
        peer_encode(&mut group, format, &source);
        group.finish();

        let mut group = criterion.benchmark_group(format!("{format} to F32"));
        group.throughput(Throughput::Elements(ELEMENTS as u64));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            group.bench_function(isa.name(), |bencher| {
                bencher.iter(|| decode_slice_on(isa, format, &codes, &mut values));
            });
        }
        group.finish();
    }
}

fn peer_encode(group: &mut BenchmarkGroup<'_, WallTime>, format: Format, source: &[f32]) {
    if format == Format::F16 {
        let mut codes = vec![f16::ZERO; ELEMENTS];
        group.bench_function("half", |b| b.iter(|| codes.convert_from_f32_slice(source)));
    } else if format == Format::BF16 {
        let mut codes = vec![bf16::ZERO; ELEMENTS];
        group.bench_function("half", |b| b.iter(|| codes.convert_from_f32_slice(source)));
    } else if format == Format::E4M3 {
        let mut codes = vec![0_u8; ELEMENTS];
        group.bench_function("float8", |b| {
            b.iter(|| {
                for (value, code) in source.iter().zip(&mut codes) {
                    *code = F8E4M3::from_f32(*value).to_bits();
                }
            });
        });
    } else {
        let mut codes = vec![0_u8; ELEMENTS];
        group.bench_function("float8", |b| {
            b.iter(|| {
                for (value, code) in source.iter().zip(&mut codes) {
                    *code = F8E5M2::from_f32(*value).to_bits();
                }
            });
        });
    }
}

fn blocks(criterion: &mut Criterion) {
    let source = source();
    for (name, format) in BlockFormat::NAMED {
        let blocks = Blocks::new(*format, Layout::line(ELEMENTS), Packing::Packed);
        let (mut scales, mut codes) = (vec![0; blocks.scale_bytes()], vec![0; blocks.code_bytes()]);
        let mut values = vec![0.0; ELEMENTS];
        let mut group = criterion.benchmark_group(format!("F32 and {name}"));
        group.throughput(Throughput::Elements(ELEMENTS as u64));
        group.bench_function("encode", |bencher| {
            bencher.iter(|| {
                let (how, noise) = (Conversion::SATURATE, Noise::default());
                blocks.encode(how, noise, &source, &mut scales, &mut codes)
            });
        });
        group.bench_function("decode", |bencher| {
            bencher.iter(|| blocks.decode(&scales, &codes, &mut values));
        });
        group.finish();
    }
}

criterion_group!(codec, formats, blocks);
criterion_main!(codec);
