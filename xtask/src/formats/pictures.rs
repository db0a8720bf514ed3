//! The pictures of the formats chapter.
#![allow(clippy::print_stdout)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow};
use onesigma_format::{Conversion, Format, Noise, decode, decode_slice, encode_slice, philox};
use plotters::prelude::*;

use crate::plot::COLOURS;

/// Arguments of `cargo xtask formats pictures`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder of the pictures.
    #[arg(long, default_value = "docs/src/images")]
    out: PathBuf,
}

const COMPARED: [Format; 8] = [
    Format::E5M2,
    Format::E4M3,
    Format::E3M4,
    Format::E3M2,
    Format::E2M3,
    Format::E2M1,
    Format::BF16,
    Format::F16,
];

/// Draws all pictures.
///
/// # Errors
/// When a file cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    fs::create_dir_all(&arguments.out)?;
    type Draw = fn(&Path) -> Result<()>;
    let pictures: [(&str, Draw); 3] = [
        ("formats_grid.svg", value_grid),
        ("formats_error.svg", relative_error),
        ("formats_normal.svg", normal_distribution),
    ];
    for (name, draw) in pictures {
        let path = arguments.out.join(name);
        draw(&path).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Every positive value of the narrow formats, as a tick on a logarithmic axis.
fn value_grid(path: &Path) -> Result<()> {
    let formats: Vec<Format> = Format::NAMED
        .iter()
        .copied()
        .filter(|format| format.bits() <= 8 && *format != Format::E8M0)
        .collect();
    let root = SVGBackend::new(path, (900, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Positive values of the narrow formats", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(110)
        .build_cartesian_2d(-18.0..17.0, -0.5..formats.len() as f64 - 0.5)?;
    let name = |y: &f64| {
        let row = y.round();
        let near = (y - row).abs() < 0.01 && row >= 0.0;
        let format = near.then(|| formats.iter().rev().nth(row as usize)).flatten();
        format.map_or_else(String::new, Format::to_string)
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_labels(18)
        .y_labels(formats.len() + 1)
        .y_label_formatter(&name)
        .x_label_formatter(&|x| format!("2^{x:.0}"))
        .x_desc("value")
        .draw()?;
    for (row, format) in formats.iter().rev().enumerate() {
        let codes = 1..=format.max_code();
        let colour = COLOURS[row % 6];
        chart.draw_series(codes.map(|code| {
            let x = f64::from(decode(code, *format)).log2();
            let (low, high) = (row as f64 - 0.28, row as f64 + 0.28);
            PathElement::new(vec![(x, low), (x, high)], colour)
        }))?;
    }
    root.present()?;
    Ok(())
}

/// Encodes and decodes, nearest-even and saturating.
fn through(format: Format, values: &[f32]) -> Result<Vec<f32>> {
    let mut codes = vec![0; values.len() * format.bytes()];
    encode_slice(format, Conversion::SATURATE, Noise::default(), values, &mut codes)?;
    let mut back = vec![0.0; values.len()];
    decode_slice(format, &codes, &mut back)?;
    Ok(back)
}

type Curve = (Format, Vec<(f64, f64)>);

fn curves(path: &Path, title: &str, x: &str, y: &str, top: f64, curves: &[Curve]) -> Result<()> {
    let points = || curves.iter().flat_map(|(_, points)| points);
    let left = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let last = points().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
    let right = last + 4.0; // room for the legend
    let bottom = points().map(|point| point.1).fold(f64::INFINITY, f64::min).floor();
    let root = SVGBackend::new(path, (900, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(left..right, bottom..top)?;
    chart
        .configure_mesh()
        .x_labels(16)
        .x_label_formatter(&|x| format!("2^{x:.0}"))
        .x_desc(x)
        .y_desc(y)
        .light_line_style(WHITE)
        .draw()?;
    for ((format, points), colour) in curves.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(format.to_string())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Largest relative error of values within half a power of two of a magnitude.
fn relative_error(path: &Path) -> Result<()> {
    const SAMPLES: usize = 512;
    let mut all = Vec::new();
    for format in COMPARED {
        let mut points = Vec::new();
        for eighth in -26 * 8..18 * 8 {
            let magnitude = f64::from(eighth) / 8.0;
            let values: Vec<f32> = (0..SAMPLES)
                .map(|sample| (magnitude - 0.5 + sample as f64 / SAMPLES as f64).exp2() as f32)
                .collect();
            let worst = through(format, &values)?
                .iter()
                .zip(&values)
                .map(|(found, value)| f64::from((found - value).abs() / value))
                .fold(0.0, f64::max);
            points.push((magnitude, worst.max(1e-6).log2()));
        }
        all.push((format, points));
    }
    let title = "Largest relative error, nearest-even, saturating";
    curves(path, title, "magnitude", "log2 of the relative error", 1.0, &all)
}

/// Signal-to-noise ratio of normally distributed values.
fn normal_distribution(path: &Path) -> Result<()> {
    let mut unit = vec![0.0; 1 << 16];
    philox::fill_normal(Noise { seed: 2026, ..Noise::default() }, &mut unit);
    let mut all = Vec::new();
    for format in COMPARED {
        let mut points = Vec::new();
        for quarter in -24 * 4..=17 * 4 {
            let exponent = f64::from(quarter) / 4.0;
            let sigma = exponent.exp2() as f32;
            let values: Vec<f32> = unit.iter().map(|value| value * sigma).collect();
            let (mut signal, mut noise) = (0.0, 0.0);
            for (found, value) in through(format, &values)?.iter().zip(&values) {
                signal += f64::from(*value).powi(2);
                noise += (f64::from(*found) - f64::from(*value)).powi(2);
            }
            points.push((exponent, 10.0 * (signal / noise).log10()));
        }
        all.push((format, points));
    }
    let title = "Signal-to-noise ratio of N(0, σ²) after encoding";
    curves(path, title, "σ", "dB", 80.0, &all)
}
