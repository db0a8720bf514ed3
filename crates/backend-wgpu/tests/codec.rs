//! Shaders decode every code and encode every class of f32 as `onesigma-format` does, bit for bit.
#![allow(clippy::print_stdout)] // a skip is said aloud

mod common;

use onesigma_backend::{Backend, noise};
use onesigma_backend_wgpu::{Options, WgpuBackend};
use onesigma_format::{Conversion, Format, decode, encode, encode_slice};
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

/// Some pairs have a shorter way, as all values of one format are numbers of the other.
#[test]
fn every_code_is_cast_to_every_format() -> Outcome {
    let Some(backend) = common::backend(&Options::default()) else { return Ok(()) };
    for from in narrow() {
        // A cast to its own format is none.
        let to: Vec<(Format, Conversion)> = narrow()
            .filter(|&to| to != from)
            .flat_map(|to| [Conversion::SATURATE, Conversion::SPECIAL].map(|how| (to, how)))
            .collect();
        let codes = 0..1_u32 << from.bits();
        let bytes: Vec<u8> =
            codes.clone().flat_map(|code| code.to_le_bytes()[..from.bytes()].to_vec()).collect();
        let (_, found) = casts(&backend, from, &bytes, &to)?;
        for (&(format, how), found) in to.iter().zip(&found) {
            for (code, found) in codes.clone().zip(found.chunks(format.bytes())) {
                let expected = encode(decode(code, from), format, how, 0).to_le_bytes();
                let expected = &expected[..format.bytes()];
                assert_eq!(found, expected, "code {code:#x} of {from} to {format} by {how:?}");
            }
        }
    }
    Ok(())
}

/// Long casts between narrow formats, where a thread takes several quads: the last are not whole.
#[test]
fn long_casts_between_narrow_formats() -> Outcome {
    let Some(backend) = common::backend(&Options::default()) else { return Ok(()) };
    let numel = (1 << 20) + 2057;
    for (from, to) in [(Format::BF16, Format::E4M3), (Format::E4M3, Format::F16)] {
        let code =
            |at: usize| (at.wrapping_mul(2_654_435_761) >> 7) as u32 & ((1 << from.bits()) - 1);
        let bytes: Vec<u8> =
            (0..numel).flat_map(|at| code(at).to_le_bytes()[..from.bytes()].to_vec()).collect();
        let how = Conversion::SATURATE;
        let (_, found) = casts(&backend, from, &bytes, &[(to, how)])?;
        for (at, found) in found[0].chunks(to.bytes()).enumerate() {
            let expected = encode(decode(code(at), from), to, how, 0).to_le_bytes();
            assert_eq!(found, &expected[..to.bytes()], "element {at}, {from} to {to}");
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

#[test]
fn f32_of_every_kind_are_encoded_by_every_rule() -> Outcome {
    let Some(backend) = common::backend(&Options::default()) else { return Ok(()) };
    let patterns = strata();
    let values: Vec<f32> = patterns.iter().map(|&bits| f32::from_bits(bits)).collect();
    let codes: Vec<u8> = patterns.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    for format in narrow() {
        let to: Vec<(Format, Conversion)> = Conversion::all().map(|how| (format, how)).collect();
        let (program, found) = casts(&backend, Format::F32, &codes, &to)?;
        let nodes = program.entries()[0].graph.nodes();
        let casts: Vec<u32> = nodes
            .iter()
            .filter(|node| matches!(node.op, Op::Cast { .. }))
            .map(|node| node.stream)
            .collect();
        for (((_, how), found), stream) in to.iter().zip(found).zip(casts) {
            let mut expected = vec![0; found.len()];
            encode_slice(format, *how, noise([7, 9], 3, stream), &values, &mut expected)?;
            let width = format.bytes();
            for (at, pair) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
                let bits = patterns[at];
                assert_eq!(pair.0, pair.1, "f32 {bits:#010x} to {format} by {how:?}");
            }
        }
    }
    Ok(())
}
