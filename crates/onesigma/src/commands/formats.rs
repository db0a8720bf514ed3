//! `onesigma formats`: list the number formats, print code tables, convert raw files.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use onesigma_format::{
    BlockFormat, Conversion, Format, Noise, Overflow, Rounding, convert_slice, decode,
};
use serde_json::{Value, json};

/// Arguments of `onesigma formats`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  onesigma formats
  onesigma formats show e4m3
  onesigma formats show e2m1 --json
  onesigma formats convert --from f32 --to e4m3 weights.f32 weights.e4m3
  onesigma formats convert --from e5m2 --to f32 - - < codes > values

A format is named (E4M3, without regard to case) or given by parameters, such as e5m3b15-ieee.";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the value of every code of a format
    Show {
        /// The format, of at most 16 bits
        format: Format,
    },
    /// Convert raw little-endian codes from one format to another
    ///
    /// Formats of at most 8 bits have one code a byte, wider ones two or four bytes.
    Convert(Convert),
}

#[derive(Debug, clap::Args)]
struct Convert {
    /// Format of the input
    #[arg(long)]
    from: Format,
    /// Format of the output
    #[arg(long)]
    to: Format,
    /// What happens between two representable values
    #[arg(long, value_enum, default_value_t = RoundingName::NearestEven)]
    rounding: RoundingName,
    /// What happens beyond the largest value
    #[arg(long, value_enum, default_value_t = OverflowName::Saturate)]
    overflow: OverflowName,
    /// Seed of stochastic rounding
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Random bits an element in stochastic rounding
    #[arg(long, default_value = "32", value_parser = ["8", "16", "32"])]
    random_bits: String,
    /// Input file; `-` is standard input
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Output file; `-` is standard output
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum RoundingName {
    NearestEven,
    NearestAway,
    TowardZero,
    Up,
    Down,
    Stochastic,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum OverflowName {
    Saturate,
    Special,
}

/// Lists formats, prints a code table or converts a file.
///
/// # Errors
/// When a format has too many codes to print, or the input cannot be read or is no whole number of
/// codes, or the output cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        None => list(arguments.json),
        Some(Command::Show { format }) => show(*format, arguments.json),
        Some(Command::Convert(convert)) => {
            ensure!(!arguments.json, "`formats convert` writes raw codes; leave out --json");
            convert.run()
        }
    }
}

fn list(as_json: bool) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    if as_json {
        let formats: Vec<Value> = Format::NAMED.iter().map(|format| summary(*format)).collect();
        serde_json::to_writer_pretty(&mut out, &formats)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    writeln!(
        out,
        "{:<12} {:>4} {:>3} {:>3} {:>4} {:>11} {:>11} {:>11} {:>10}  special values",
        "format", "bits", "exp", "man", "bias", "max", "min normal", "min subnorm", "precision"
    )?;
    for format in Format::NAMED {
        let special = match (format.has_infinity(), format.has_nan()) {
            (true, _) => "inf, NaN",
            (false, true) => "NaN",
            (false, false) => "none",
        };
        writeln!(
            out,
            "{:<12} {:>4} {:>3} {:>3} {:>4} {:>11} {:>11} {:>11} {:>10}  {special}",
            format.to_string(),
            format.bits(),
            format.exponent_bits(),
            format.mantissa_bits(),
            format.bias(),
            short(format.max()),
            short(format.min_normal()),
            short(format.min_subnormal()),
            short(format.epsilon()),
        )?;
    }
    writeln!(
        out,
        "\n{:<12} {:>5} {:>12} {:>12}",
        "block format", "block", "scale", "bits/element"
    )?;
    for (name, format) in BlockFormat::NAMED {
        writeln!(
            out,
            "{name:<12} {:>5} {:>12} {:>12}",
            format.block_len(),
            format.scale().to_string(),
            format.bits_per_element()
        )?;
    }
    Ok(out.flush()?)
}

/// Four significant digits, without an exponent where that is short.
fn short(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value) {
        let text = format!("{value}");
        if text.len() <= 9 { text } else { format!("{value:.6}") }
    } else {
        format!("{value:.3e}")
    }
}

fn summary(format: Format) -> Value {
    json!({
        "name": format.to_string(),
        "bits": format.bits(),
        "exponent_bits": format.exponent_bits(),
        "mantissa_bits": format.mantissa_bits(),
        "bias": format.bias(),
        "max": format.max(),
        "min_normal": format.min_normal(),
        "min_subnormal": format.min_subnormal(),
        "has_inf": format.has_infinity(),
        "has_nan": format.has_nan(),
    })
}

/// A value as JSON: a number, or a word where JSON has no number for it.
fn json_value(value: f32) -> Value {
    if value.is_nan() {
        json!("nan")
    } else if value.is_infinite() {
        json!(if value > 0.0 { "inf" } else { "-inf" })
    } else if value == 0.0 && value.is_sign_negative() {
        json!("-0")
    } else {
        json!(f64::from(value))
    }
}

fn show(format: Format, as_json: bool) -> Result<()> {
    ensure!(
        format.bits() <= 16,
        "{format} has 2^{} codes; `formats show` prints formats of at most 16 bits",
        format.bits()
    );
    let codes = 0..1_u32 << format.bits();
    let mut out = BufWriter::new(io::stdout().lock());
    if as_json {
        let mut table = summary(format);
        table["values"] = codes.map(|code| json_value(decode(code, format))).collect();
        serde_json::to_writer(&mut out, &table)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    writeln!(
        out,
        "{format}: {} bits, bias {}, max {}, min normal {}, min subnormal {}\n",
        format.bits(),
        format.bias(),
        short(format.max()),
        short(format.min_normal()),
        short(format.min_subnormal())
    )?;
    let digits = format.bits().div_ceil(4) as usize;
    let columns = 4;
    let rows = codes.end.div_ceil(columns);
    for row in 0..rows {
        for column in 0..columns {
            let code = column * rows + row;
            if code < codes.end {
                let value = match json_value(decode(code, format)) {
                    Value::String(word) => word,
                    number => number.as_f64().map_or_else(String::new, |v| format!("{v}")),
                };
                let binary = format!("{code:0width$b}", width = format.bits() as usize);
                write!(out, "{code:0digits$x} {binary} {value:<16}")?;
            }
        }
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

impl Convert {
    fn run(&self) -> Result<()> {
        let standard_input = self.input == Path::new("-");
        let name = if standard_input {
            "standard input".to_owned()
        } else {
            format!("`{}`", self.input.display())
        };
        let mut input: Box<dyn Read> = if standard_input {
            Box::new(io::stdin().lock())
        } else {
            let file =
                File::open(&self.input).with_context(|| format!("cannot open the input {name}"))?;
            let metadata = file.metadata()?;
            ensure!(!metadata.is_dir(), "the input {name} is a folder; give a file of raw codes");
            if metadata.is_file() {
                self.check_length(&name, metadata.len())?;
            }
            Box::new(file)
        };
        if self.output == Path::new("-") {
            let mut out = BufWriter::new(io::stdout().lock());
            self.stream(&name, &mut input, &mut out)?;
            return Ok(out.flush()?);
        }
        // A new name until all is written: a failure leaves an older output as it was.
        let exists = fs::metadata(&self.output);
        let special = exists.as_ref().is_ok_and(|metadata| !metadata.is_file());
        let target = if special { self.output.clone() } else { partial(&self.output)? };
        let describe = || format!("cannot write the output `{}`", self.output.display());
        let written = File::create(&target).map_err(anyhow::Error::from).and_then(|file| {
            let mut out = BufWriter::new(file);
            self.stream(&name, &mut input, &mut out)?;
            Ok(out.flush()?)
        });
        if special {
            return written.with_context(describe);
        }
        let renamed = written.and_then(|()| Ok(fs::rename(&target, &self.output)?));
        if renamed.is_err() {
            let _ = fs::remove_file(&target); // the first error is the one to report
        }
        renamed.with_context(describe)
    }

    fn check_length(&self, name: &str, bytes: u64) -> Result<()> {
        let rest = bytes % self.from.bytes() as u64;
        if rest != 0 {
            bail!(
                "{name} has {bytes} bytes, which is no whole number of {} codes of {} bytes each \
                 ({rest} left over); check --from",
                self.from,
                self.from.bytes()
            );
        }
        Ok(())
    }

    fn stream(&self, name: &str, input: &mut dyn Read, output: &mut dyn Write) -> Result<()> {
        const ELEMENTS: usize = 1 << 16;
        let how = Conversion {
            rounding: match self.rounding {
                RoundingName::NearestEven => Rounding::NearestEven,
                RoundingName::NearestAway => Rounding::NearestAway,
                RoundingName::TowardZero => Rounding::TowardZero,
                RoundingName::Up => Rounding::Up,
                RoundingName::Down => Rounding::Down,
                RoundingName::Stochastic => {
                    Rounding::Stochastic { bits: self.random_bits.parse()? }
                }
            },
            overflow: match self.overflow {
                OverflowName::Saturate => Overflow::Saturate,
                OverflowName::Special => Overflow::Special,
            },
        };
        let mut noise = Noise { seed: self.seed, ..Noise::default() };
        let mut source = vec![0; ELEMENTS * self.from.bytes()];
        let mut target = vec![0; ELEMENTS * self.to.bytes()];
        let mut total = 0;
        loop {
            let read = fill(input, &mut source).with_context(|| format!("cannot read {name}"))?;
            total += read as u64;
            let count = read / self.from.bytes();
            let (source, target) =
                (&source[..count * self.from.bytes()], &mut target[..count * self.to.bytes()]);
            convert_slice(self.from, self.to, how, noise, source, target)?;
            output.write_all(target)?;
            noise.offset += count as u64;
            if read < ELEMENTS * self.from.bytes() {
                return self.check_length(name, total);
            }
        }
    }
}

/// Reads until the buffer is full or the input ends.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Name beside `path` for a file that is not complete yet.
fn partial(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        bail!("the output `{}` is no file name", path.display());
    };
    let mut partial = name.to_owned();
    partial.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(partial))
}
