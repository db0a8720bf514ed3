//! The codecs against a copy of the same number of bytes, in one run.
#![allow(clippy::print_stdout)]

use std::{fs, hint::black_box, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use onesigma_format::{
    BlockFormat, Blocks, Conversion, Format, Isa, Layout, Noise, Overflow, Packing, Rounding,
    decode_slice_on, encode_slice_on, philox,
};
use serde::Serialize;

/// Arguments of `cargo xtask formats speed`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Elements of each array.
    #[arg(long, default_value_t = 16 << 20)]
    elements: usize,
    /// Repetitions; the median of each is reported.
    #[arg(long, default_value_t = 21)]
    repeat: usize,
    /// Measure only the rows whose name contains this, as in "avx512 F32 to E4M3"; nothing is
    /// written then.
    #[arg(long)]
    only: Option<String>,
    /// Where the result goes.
    #[arg(long, default_value = "docs/results/formats_speed.json")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Report {
    /// What was measured and how.
    method: String,
    cpu: String,
    /// Runnable tasks over the last minute when the run began: 1 or less means a quiet machine.
    load_average: Option<f64>,
    elements: usize,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    isa: &'static str,
    conversion: String,
    /// Bytes read and written for one element.
    bytes_per_element: f64,
    million_elements_per_second: f64,
    copy_million_elements_per_second: f64,
    /// Time of the copy over time of the codec.
    ratio_to_copy: f64,
    /// The least ratio that this project asks for; none for what is only reported.
    bar: Option<f64>,
    met: Option<bool>,
}

/// Measures, prints a table and writes the JSON file.
///
/// # Errors
/// When the file cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let count = arguments.elements;
    let load_average = load_average();
    let mut source = vec![0.0; count];
    philox::fill_normal(Noise { seed: 1, ..Noise::default() }, &mut source);
    let mut bench = Bench {
        repeat: arguments.repeat,
        count,
        source,
        only: arguments.only.clone(),
        rows: Vec::new(),
    };
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for format in [Format::F16, Format::BF16, Format::E4M3, Format::E5M2] {
            bench.format(isa, format)?;
        }
        for (_, format) in BlockFormat::NAMED {
            bench.blocks(isa, *format)?;
        }
    }
    let report = Report {
        method:
            "one thread; median times of alternating runs of the codec and of a copy that reads \
                 and writes as many bytes in all; source N(0, 1); ratio = copy time / codec time"
                .into(),
        cpu: cpu_name(),
        load_average,
        elements: count,
        rows: bench.rows,
    };
    let missed = report.rows.iter().filter(|row| row.met == Some(false)).count();
    if arguments.only.is_some() {
        println!("{} rows, {missed} below their bar", report.rows.len());
        return Ok(());
    }
    if let Some(folder) = arguments.out.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(&report)? + "\n";
    fs::write(&arguments.out, text)
        .with_context(|| format!("cannot write {}", arguments.out.display()))?;
    println!("{} rows, {missed} below their bar; {}", report.rows.len(), arguments.out.display());
    Ok(())
}

struct Bench {
    repeat: usize,
    count: usize,
    source: Vec<f32>,
    only: Option<String>,
    rows: Vec<Row>,
}

impl Bench {
    fn format(&mut self, isa: Isa, format: Format) -> Result<()> {
        let bytes = format.bytes();
        let mut codes = vec![1; self.count * bytes];
        let mut values = vec![1.0; self.count];
        let bytes_per_element = (4 + bytes) as f64;
        let nearest = match isa {
            Isa::Avx512 => Some(0.8),
            Isa::Avx2 => Some(0.5),
            _ => None,
        };
        let stochastic =
            |bits| Conversion { rounding: Rounding::Stochastic { bits }, ..Conversion::SATURATE };
        let toward_zero =
            Conversion { rounding: Rounding::TowardZero, overflow: Overflow::Saturate };
        let rules = [
            ("nearest-even", Conversion::SATURATE, nearest),
            ("nearest-even special", Conversion::SPECIAL, nearest),
            ("toward-zero", toward_zero, None),
            ("stochastic-8", stochastic(8), nearest.map(|_| 0.3).filter(|_| isa == Isa::Avx512)),
            ("stochastic-16", stochastic(16), None),
            ("stochastic-32", stochastic(32), None),
        ];
        let source = std::mem::take(&mut self.source);
        for (name, how, bar) in rules {
            self.row(isa, format!("F32 to {format} {name}"), bytes_per_element, bar, || {
                Ok(encode_slice_on(isa, format, how, Noise::default(), &source, &mut codes)?)
            })?;
        }
        self.row(isa, format!("{format} to F32"), bytes_per_element, nearest, || {
            Ok(decode_slice_on(isa, format, &codes, &mut values)?)
        })?;
        self.source = source;
        Ok(())
    }

    fn blocks(&mut self, isa: Isa, format: BlockFormat) -> Result<()> {
        for packing in [Packing::Unpacked, Packing::Packed] {
            if packing == Packing::Packed && format.element().bits() == 8 {
                continue; // the same bytes
            }
            let blocks = Blocks::new(format, Layout::line(self.count), packing);
            let mut scales = vec![1; blocks.scale_bytes()];
            let mut codes = vec![1; blocks.code_bytes()];
            let mut values = vec![1.0; self.count];
            let stored = (scales.len() + codes.len()) as f64 / self.count as f64;
            let bar = (isa == Isa::Avx512).then_some(0.5);
            let packed = format!("{packing:?}").to_lowercase();
            let source = std::mem::take(&mut self.source);
            self.row(isa, format!("F32 to {format} {packed}"), 4.0 + stored, bar, || {
                let (how, noise) = (Conversion::SATURATE, Noise::default());
                Ok(blocks.encode_on(isa, how, noise, &source, &mut scales, &mut codes)?)
            })?;
            self.row(isa, format!("{format} {packed} to F32"), 4.0 + stored, bar, || {
                Ok(blocks.decode_on(isa, &scales, &codes, &mut values)?)
            })?;
            self.source = source;
        }
        Ok(())
    }

    fn row(
        &mut self,
        isa: Isa,
        conversion: String,
        bytes_per_element: f64,
        bar: Option<f64>,
        mut codec: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        if self
            .only
            .as_ref()
            .is_some_and(|only| !format!("{} {conversion}", isa.name()).contains(only))
        {
            return Ok(());
        }
        let half = (self.count as f64 * bytes_per_element / 2.0) as usize;
        let (from, mut to) = (vec![1_u8; half], vec![2_u8; half]);
        let (mut copies, mut codecs) = (Vec::new(), Vec::new());
        codec()?;
        for _ in 0..self.repeat.max(1) {
            let start = Instant::now();
            black_box(&mut to).copy_from_slice(black_box(&from));
            copies.push(start.elapsed().as_secs_f64());
            let start = Instant::now();
            codec()?;
            codecs.push(start.elapsed().as_secs_f64());
        }
        let (copy, codec) = (median(&mut copies), median(&mut codecs));
        let ratio = copy / codec;
        let rate = |seconds: f64| (self.count as f64 / seconds / 1e6).round();
        let row = Row {
            isa: isa.name(),
            conversion,
            bytes_per_element,
            million_elements_per_second: rate(codec),
            copy_million_elements_per_second: rate(copy),
            ratio_to_copy: (ratio * 100.0).round() / 100.0,
            bar,
            met: bar.map(|bar| ratio >= bar),
        };
        println!(
            "{:<9} {:<34} {:>6} M/s  copy {:>6} M/s  ratio {:.2}{}",
            row.isa,
            row.conversion,
            row.million_elements_per_second,
            row.copy_million_elements_per_second,
            row.ratio_to_copy,
            match (row.bar, row.met) {
                (Some(bar), Some(true)) => format!("  (bar {bar})"),
                (Some(bar), _) => format!("  (bar {bar}: MISSED)"),
                _ => String::new(),
            }
        );
        self.rows.push(row);
        Ok(())
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned()
}

fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
