//! Shaders decode every code and encode every class of f32 as `onesigma-format` does, bit for bit.
#![allow(clippy::print_stdout)] // a skip is said aloud

mod common;

use onesigma_backend::{Backend, noise};
use onesigma_backend_wgpu::{Options, WgpuBackend};
use onesigma_format::{Conversion, Format, Overflow, Rounding, decode, encode_slice};
use onesigma_graph::{DType, EntryId, Graph, Module, Op, Program, Role, SlotKind};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn narrow() -> impl Iterator<Item = Format> {
    Format::NAMED.iter().copied().filter(|format| !format.is_f32())
}

/// The results of casts of one operand, as codes.
fn casts(
    backend: &WgpuBackend,
    from: Format,
    codes: &[u8],
    to: &[(Format, Conversion)],
) -> Result<(Program, Vec<Vec<u8>>), Box<dyn std::error::Error>> {
    let numel = codes.len() / from.bytes();
    let mut module = Module::new();
    let (seed, step) = (module.seed_slot()?, module.step_slot()?);
    let dtype = DType::Float(from);
    let x = module.slot("x", SlotKind::Input, [numel], dtype, Role::Activation)?;
    let mut graph = Graph::new();
    let read = module.read(&mut graph, x);
    let mut results = Vec::new();
    for (n, &(format, how)) in to.iter().enumerate() {
        let dtype = DType::Float(format);
        let y = graph.op(Op::Cast { to: dtype }, &[read]).stored_as(dtype, how).one()?;
        let name = format!("y{n}");
        let slot = module.slot(&name, SlotKind::Output, [numel], dtype, Role::Activation)?;
        graph.write(slot, y);
        results.push(slot);
    }
    module.entry("main", graph)?;
    let program = Program::new(module)?;
    let mut engine = backend.compile(&program)?;
    engine.write(x, codes)?;
    engine.write(seed, &[7, 0, 0, 0, 9, 0, 0, 0])?;
    engine.write(step, &3_u32.to_le_bytes())?;
    engine.run(EntryId::new(0), 1)?;
    let mut all = Vec::new();
    for (&slot, (format, _)) in results.iter().zip(to) {
        let mut bytes = vec![0; numel * format.bytes()];
        engine.read(slot, &mut bytes)?;
        all.push(bytes);
    }
    Ok((program, all))
}

#[test]
fn every_code_of_every_format_is_decoded() -> Outcome {
    let Some(backend) = common::backend(&Options::default()) else { return Ok(()) };
    for format in narrow() {
        let count = 1_u32 << format.bits();
        let codes: Vec<u8> =
            (0..count).flat_map(|code| code.to_le_bytes()[..format.bytes()].to_vec()).collect();
        let (_, found) = casts(&backend, format, &codes, &[(Format::F32, Conversion::SATURATE)])?;
        for (code, bits) in (0..count).zip(found[0].as_chunks::<4>().0) {
            let (found, expected) = (u32::from_le_bytes(*bits), decode(code, format).to_bits());
            assert_eq!(found, expected, "code {code:#x} of {format}");
        }
    }
    Ok(())
}

/// f32 of every exponent and sign: both ends, around the middle and around every power of two of
/// the mantissa, and some without pattern.
fn strata() -> Vec<u32> {
    let mut mantissas = vec![0, 1, 2, 0x7f_ffff, 0x7f_fffe];
    for bit in 0..23 {
        let power = 1_u32 << bit;
        mantissas.extend([power, power - 1, power + 1, 0x7f_ffff ^ power, power | power >> 1]);
    }
    let mut state = 1_u32;
    for _ in 0..16 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        mantissas.push(state >> 9);
    }
    mantissas.sort_unstable();
    mantissas.dedup();
    (0..512_u32)
        .flat_map(|top| mantissas.iter().map(move |mantissa| top << 23 | mantissa))
        .collect()
}

fn rules() -> Vec<Conversion> {
    let roundings = [
        Rounding::NearestEven,
        Rounding::NearestAway,
        Rounding::TowardZero,
        Rounding::Up,
        Rounding::Down,
        Rounding::Stochastic { bits: 8 },
        Rounding::Stochastic { bits: 16 },
        Rounding::Stochastic { bits: 32 },
    ];
    let both = [Overflow::Saturate, Overflow::Special];
    let pairs =
        roundings.into_iter().flat_map(|rounding| both.map(|overflow| (rounding, overflow)));
    pairs.map(|(rounding, overflow)| Conversion { rounding, overflow }).collect()
}

#[test]
fn f32_of_every_kind_are_encoded_by_every_rule() -> Outcome {
    let Some(backend) = common::backend(&Options::default()) else { return Ok(()) };
    let patterns = strata();
    let values: Vec<f32> = patterns.iter().map(|&bits| f32::from_bits(bits)).collect();
    let codes: Vec<u8> = patterns.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    for format in narrow() {
        let to: Vec<(Format, Conversion)> = rules().into_iter().map(|how| (format, how)).collect();
        let (program, found) = casts(&backend, Format::F32, &codes, &to)?;
        let nodes = program.entries()[0].graph.nodes();
        let casts: Vec<u32> = nodes
            .iter()
            .filter(|node| matches!(node.op, Op::Cast { .. }))
            .map(|node| node.stream)
            .collect();
        for (((_, how), found), stream) in to.iter().zip(found).zip(casts) {
            let mut expected = vec![0; found.len()];
            encode_slice(format, *how, noise([7, 9], 3, stream, 0), &values, &mut expected)?;
            let width = format.bytes();
            for (at, pair) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
                let bits = patterns[at];
                assert_eq!(pair.0, pair.1, "f32 {bits:#010x} to {format} by {how:?}");
            }
        }
    }
    Ok(())
}
