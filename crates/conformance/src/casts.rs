//! Casts and random numbers, bit for bit.

use crate::cases::name_of;
use crate::check::{Bench, Operand, text};
use crate::{Make, Verdict, skipped, trial};
use libtest_mimic::Trial;
use onesigma_backend::{Backend, Support, noise};
use onesigma_format::{Conversion, Format, decode, encode_slice, philox};
use onesigma_graph::{DType, Distribution, Op, Shape};

/// Values on and around every code and tie of a format, and the special values of F32.
fn probes(format: Format) -> Vec<f32> {
    let mut values = vec![
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
    ];
    let count = 1_u32 << format.bits().min(16);
    let stride = (count / 2048).max(1) | 1;
    for code in (0..count).step_by(stride as usize) {
        let (low, high) = (decode(code, format), decode((code + 1) % count, format));
        let middle = ((f64::from(low) + f64::from(high)) / 2.0) as f32;
        for value in [low, middle] {
            values.extend([value, value.next_up(), value.next_down()]);
        }
        values.push(((f64::from(low) * 3.0 + f64::from(high)) / 4.0) as f32);
    }
    values
}

fn exact_cast(backend: &dyn Backend, from: Format, to: Format) -> Verdict {
    let probes = if from.is_f32() { probes(to) } else { probes(from) };
    let operand = Operand {
        dtype: DType::Float(from),
        ..Operand::values([probes.len()], &probes.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())
    };
    let codes = operand.bytes(0);
    let mut values = vec![0.0; probes.len()];
    onesigma_format::decode_slice(from, &codes, &mut values).map_err(text)?;
    for how in Conversion::all() {
        let build = |graph: &mut onesigma_graph::Graph, x: &[_]| {
            let to = DType::Float(to);
            graph.op(Op::Cast { to }, x).stored_as(to, how).all()
        };
        let bench = Bench::new(std::slice::from_ref(&operand), &build, None).map_err(text)?;
        let stream = stream_of(&bench);
        let mut engine = backend.compile(&bench.program).map_err(text)?;
        let found = bench.run(&mut *engine, std::slice::from_ref(&codes)).map_err(text)?;
        let mut expected = vec![0; probes.len() * to.bytes()];
        let random = noise([7, 9], 3, stream);
        encode_slice(to, how, random, &values, &mut expected).map_err(text)?;
        equal_codes(&found[0], &expected, &values, to, how)?;
    }
    Ok(())
}

fn equal_codes(
    found: &[u8],
    expected: &[u8],
    values: &[f32],
    to: Format,
    how: Conversion,
) -> Verdict {
    let width = to.bytes();
    for (at, (found, expected)) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
        // F32 keeps payloads of NaN or not, as it likes.
        if found != expected && !(to.is_f32() && values[at].is_nan()) {
            return Err(format!(
                "{:e} became code {found:02x?}, expected {expected:02x?} ({how:?})",
                values[at]
            ));
        }
    }
    Ok(())
}

/// Stream of the last node: the op under test.
fn stream_of(bench: &Bench) -> u32 {
    bench.program.entries()[0].graph.nodes().last().map_or(0, |node| node.stream)
}

fn exact_random(backend: &dyn Backend, distribution: Distribution) -> Verdict {
    let shape = Shape::from([1031]);
    let build = |graph: &mut onesigma_graph::Graph, _: &[_]| {
        graph.op(Op::Random { distribution, shape: shape.clone() }, &[]).all()
    };
    let bench = Bench::new(&[], &build, None).map_err(text)?;
    let mut engine = backend.compile(&bench.program).map_err(text)?;
    let found = bench.run(&mut *engine, &[]).map_err(text)?;
    let random = noise([7, 9], 3, stream_of(&bench));
    let mut expected = vec![0.0_f32; 1031];
    match distribution {
        Distribution::Normal { .. } => philox::fill_normal(random, &mut expected),
        Distribution::Uniform { .. } => philox::fill_uniform(random, &mut expected),
        Distribution::Bernoulli { p } => {
            philox::fill_uniform(random, &mut expected);
            expected.iter_mut().for_each(|u| *u = f32::from(u8::from(f64::from(*u) < p)));
        }
    }
    for (at, (bytes, expected)) in found[0].chunks(4).zip(&expected).enumerate() {
        if bytes != expected.to_le_bytes() {
            return Err(format!("element {at} has bytes {bytes:02x?}, expected {expected:e}"));
        }
    }
    Ok(())
}

pub(crate) fn trials(make: Make, backend: &dyn Backend) -> Vec<Trial> {
    let mut trials = Vec::new();
    let claims = |from: Format, to: Format| {
        let to = DType::Float(to);
        backend.supports(&Op::Cast { to }, &[DType::Float(from)], to) != Support::No
    };
    for &format in Format::NAMED {
        for (from, to) in [(Format::F32, format), (format, Format::F32), (format, Format::E4M3)] {
            let name = format!("cast::{}_to_{}", name_of(from), name_of(to));
            if from == to {
                continue;
            }
            trials.push(match claims(from, to) {
                true => trial(name, make, move |backend| exact_cast(backend, from, to)),
                false => skipped(name, "the cast is not claimed"),
            });
        }
    }
    for (name, distribution) in [
        ("uniform", Distribution::Uniform { low: 0.0, high: 1.0 }),
        ("normal", Distribution::Normal { mean: 0.0, std: 1.0 }),
        ("bernoulli", Distribution::Bernoulli { p: 0.3 }),
    ] {
        let name = format!("random_bits::{name}");
        trials.push(trial(name, make, move |backend| exact_random(backend, distribution)));
    }
    trials
}
