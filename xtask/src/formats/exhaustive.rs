//! Every f32 through the bulk encoders, against the scalar reference.
#![allow(clippy::print_stdout)]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::{Result, bail, ensure};
use onesigma_format::{
    Conversion, Format, Isa, Noise, Overflow, Rounding, decode, decode_slice_on, encode,
    encode_slice_on, philox,
};

/// Arguments of `cargo xtask formats exhaustive`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Formats to check, by name; default: every named format of at most 8 bits.
    #[arg(long, value_delimiter = ',')]
    formats: Vec<Format>,
    /// Rounding rules to check; default: all.
    #[arg(long, value_delimiter = ',')]
    rounding: Vec<String>,
    /// Instruction sets to check (portable, avx2, avx512); default: the best of this machine.
    #[arg(long, value_delimiter = ',')]
    isa: Vec<String>,
    /// Check every N-th block of 65536 inputs only (1: all of them).
    #[arg(long, default_value_t = 1)]
    every: u64,
    /// Threads; default: all cores.
    #[arg(long)]
    threads: Option<usize>,
}

const BLOCK: usize = 1 << 16;
const BLOCKS: u64 = 1 << 16;

const OVERFLOWS: [Overflow; 2] = [Overflow::Saturate, Overflow::Special];

/// The reference over one block under both overflow rules, with format and rounding known to the
/// compiler.
type Reference = fn(&[f32], &[u32], &mut [Vec<u16>; 2]);

struct Rule {
    name: &'static str,
    rounding: Rounding,
    reference: Reference,
}

/// One instance of the reference for each rounding rule, so that its branches on it are decided
/// when this is compiled: all 2^32 inputs take seconds instead of minutes.
macro_rules! rules {
    ($format:ident, $($name:literal $rounding:expr;)*) => {
        vec![$({
            const ROUNDING: Rounding = $rounding;
            fn reference(values: &[f32], random: &[u32], codes: &mut [Vec<u16>; 2]) {
                let [saturate, special] = codes;
                let codes = saturate.iter_mut().zip(special);
                for ((value, random), (saturate, special)) in values.iter().zip(random).zip(codes) {
                    let code = |overflow| {
                        let how = Conversion { rounding: ROUNDING, overflow };
                        encode(*value, Format::$format, how, *random)
                    };
                    let a = code(Overflow::Saturate);
                    // Below the largest magnitude the rule is not consulted (E8M0: any code).
                    let bare = a & ((1 << (Format::$format.bits() - 1)) - 1);
                    let last = Format::$format.max_code();
                    let asked = !Format::$format.is_signed() || bare == last || bare == 1;
                    let b = if asked { code(Overflow::Special) } else { a };
                    (*saturate, *special) = (a as u16, b as u16);
                }
            }
            Rule { name: $name, rounding: ROUNDING, reference }
        }),*]
    };
}

macro_rules! formats {
    ($($format:ident)*) => {
        vec![$((Format::$format, rules!($format,
            "nearest-even" Rounding::NearestEven;
            "nearest-away" Rounding::NearestAway;
            "toward-zero" Rounding::TowardZero;
            "up" Rounding::Up;
            "down" Rounding::Down;
            "stochastic-8" Rounding::Stochastic { bits: 8 };
            "stochastic-16" Rounding::Stochastic { bits: 16 };
            "stochastic-32" Rounding::Stochastic { bits: 32 };
        ))),*]
    };
}

fn known() -> Vec<(Format, Vec<Rule>)> {
    formats! {
        F16 BF16 E5M2 E4M3 E5M2FNUZ E4M3FNUZ E4M3B11FNUZ E4M3_IEEE E3M4 E3M2 E2M3 E2M1 E8M0
        INT8 INT4
    }
}

/// Runs the check and prints one line for each format and rule.
///
/// # Errors
/// On the first disagreement, with the input and both codes.
pub fn run(args: &Arguments) -> Result<()> {
    let isas = chosen_isas(&args.isa)?;
    let threads =
        args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let every = args.every.max(1);
    let wanted = |format: &Format| {
        if args.formats.is_empty() { format.bits() <= 8 } else { args.formats.contains(format) }
    };
    let start = Instant::now();
    let mut inputs = 0_u64;
    for (format, rules) in known().into_iter().filter(|(format, _)| wanted(format)) {
        check_decoding(format, &isas)?;
        for rule in rules {
            if !args.rounding.is_empty() && !args.rounding.iter().any(|name| name == rule.name) {
                continue;
            }
            let begin = Instant::now();
            let checked = check(format, &rule, &isas, every, threads)?;
            inputs += checked;
            println!(
                "{:<12} {:<13} {checked} inputs equal, {:.1} s",
                format.to_string(),
                rule.name,
                begin.elapsed().as_secs_f64()
            );
        }
    }
    ensure!(inputs > 0, "nothing to check: no known format or rule has the names given");
    println!(
        "{inputs} encodings under each overflow rule agree, {:.0} s",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn chosen_isas(names: &[String]) -> Result<Vec<Isa>> {
    if names.is_empty() {
        return Ok(vec![Isa::detect()]);
    }
    let mut isas = Vec::new();
    for name in names {
        match Isa::ALL.into_iter().find(|isa| isa.name() == name) {
            Some(isa) if isa.is_available() => isas.push(isa),
            Some(_) => bail!("this machine has no {name}"),
            None => bail!("unknown instruction set `{name}`; known: portable, avx2, avx512"),
        }
    }
    Ok(isas)
}

fn check(format: Format, rule: &Rule, isas: &[Isa], every: u64, threads: usize) -> Result<u64> {
    let next = AtomicU64::new(0);
    let work = || -> Result<u64> {
        let mut values = vec![0.0_f32; BLOCK];
        let mut random = vec![0_u32; BLOCK];
        let mut expected = [vec![0_u16; BLOCK], vec![0_u16; BLOCK]];
        let mut bytes = vec![0_u8; BLOCK * format.bytes()];
        let mut checked = 0;
        loop {
            let block = next.fetch_add(every, Ordering::Relaxed);
            if block >= BLOCKS {
                return Ok(checked);
            }
            let first = block * BLOCK as u64;
            for (value, bits) in values.iter_mut().zip(first..) {
                *value = f32::from_bits(bits as u32);
            }
            let noise = Noise { seed: 0x5eed, tensor: 1, step: 2, offset: first };
            if let Rounding::Stochastic { bits } = rule.rounding {
                draws(noise, bits, &mut random);
            }
            (rule.reference)(&values, &random, &mut expected);
            for (overflow, expected) in OVERFLOWS.into_iter().zip(&expected) {
                let how = Conversion { rounding: rule.rounding, overflow };
                for &isa in isas {
                    encode_slice_on(isa, format, how, noise, &values, &mut bytes)?;
                    compare(format, how, isa, &values, expected, &bytes)?;
                }
            }
            checked += BLOCK as u64;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut total = 0;
        for worker in workers {
            total += worker.join().expect("workers do not panic")?;
        }
        Ok(total)
    })
}

/// The draws of consecutive elements, cut from whole words; `noise.offset` is a multiple of 4.
fn draws(noise: Noise, bits: u8, random: &mut [u32]) {
    let per_word = 32 / usize::from(bits);
    let mut words = vec![0; random.len() / per_word];
    philox::fill_u32(Noise { offset: noise.offset / per_word as u64, ..noise }, &mut words);
    for (index, random) in random.iter_mut().enumerate() {
        *random = words[index / per_word] >> (index % per_word * usize::from(bits));
    }
}

fn compare(
    format: Format,
    how: Conversion,
    isa: Isa,
    values: &[f32],
    expected: &[u16],
    bytes: &[u8],
) -> Result<()> {
    let found = |index: usize| match format.bytes() {
        1 => u16::from(bytes[index]),
        _ => u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]),
    };
    let wrong = match format.bytes() {
        1 => expected.iter().zip(bytes).any(|(code, byte)| *code != u16::from(*byte)),
        _ => {
            let codes = bytes.as_chunks().0.iter();
            expected.iter().zip(codes).any(|(code, pair)| *code != u16::from_le_bytes(*pair))
        }
    };
    if wrong {
        let index = (0..values.len()).find(|&i| found(i) != expected[i]).unwrap_or(0);
        bail!(
            "{format} {how:?} {}: {:e} (bits {:08x}) gave code {:x}, the reference {:x}",
            isa.name(),
            values[index],
            values[index].to_bits(),
            found(index),
            expected[index]
        );
    }
    Ok(())
}

fn check_decoding(format: Format, isas: &[Isa]) -> Result<()> {
    let codes: Vec<u32> = (0..1 << format.bits()).collect();
    let bytes: Vec<u8> =
        codes.iter().flat_map(|code| code.to_le_bytes()[..format.bytes()].to_vec()).collect();
    let mut values = vec![0.0; codes.len()];
    for &isa in isas {
        decode_slice_on(isa, format, &bytes, &mut values)?;
        for (code, value) in codes.iter().zip(&values) {
            let expected = decode(*code, format);
            ensure!(
                value.to_bits() == expected.to_bits(),
                "{format} {}: code {code:x} decodes to {value:e}, the reference to {expected:e}",
                isa.name()
            );
        }
    }
    Ok(())
}
