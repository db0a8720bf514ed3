//! Numbers into narrow formats and back: what is rounded, flushed to zero and clipped.
//!
//! ```text
//! cargo run --release -p onesigma-examples --example format_round_trip
//! ```
#![allow(clippy::print_stdout)]

use onesigma::format::{Conversion, Error, Format, Noise, decode_slice, encode_slice, philox};

/// What became of a tensor in a format.
struct Loss {
    snr_db: f64,
    flushed: f64,
    clipped: f64,
}

/// Encodes `source` to nearest even, saturating, and looks at what comes back.
fn round_trip(format: Format, source: &[f32]) -> Result<Loss, Error> {
    let mut codes = vec![0; source.len() * format.bytes()];
    encode_slice(format, Conversion::SATURATE, Noise::default(), source, &mut codes)?;
    let mut back = vec![0.0; source.len()];
    decode_slice(format, &codes, &mut back)?;
    let pairs = || source.iter().zip(&back).map(|(&x, &y)| (f64::from(x), f64::from(y)));
    let power: f64 = pairs().map(|(x, _)| x * x).sum();
    let noise: f64 = pairs().map(|(x, y)| (x - y).powi(2)).sum();
    let share = |hit: &dyn Fn(f64, f64) -> bool| {
        pairs().filter(|&(x, y)| hit(x, y)).count() as f64 / source.len() as f64
    };
    let largest = format.max();
    Ok(Loss {
        snr_db: 10.0 * (power / noise).log10(),
        flushed: share(&|x, y| x != 0.0 && y == 0.0),
        clipped: share(&|x, _| x.abs() > largest),
    })
}

fn main() -> Result<(), Error> {
    // The same tensor at three scales: at σ = 1, as a small gradient, and as a large one.
    let mut unit = vec![0.0; 1 << 16];
    philox::fill_normal(Noise::default(), &mut unit);
    println!("{:<8} {:>9}  {:>9} {:>9} {:>9}", "format", "sigma", "SNR (dB)", "flushed", "clipped");
    for format in [Format::F16, Format::BF16, Format::E5M2, Format::E4M3] {
        for exponent in [0, -12, 12] {
            let scale = f32::powi(2.0, exponent);
            let scaled: Vec<f32> = unit.iter().map(|x| x * scale).collect();
            let loss = round_trip(format, &scaled)?;
            println!(
                "{:<8} {:>9}  {:>9.1} {:>8.2}% {:>8.2}%",
                format.to_string(),
                format!("2^{exponent}"),
                loss.snr_db,
                100.0 * loss.flushed,
                100.0 * loss.clipped,
            );
        }
    }
    Ok(())
}

#[test]
fn a_unit_tensor_fits_and_a_small_one_does_not() -> Result<(), Error> {
    main()?;
    let mut unit = vec![0.0; 1 << 12];
    philox::fill_normal(Noise::default(), &mut unit);
    let fits = round_trip(Format::E4M3, &unit)?;
    assert!(fits.flushed < 0.002 && fits.clipped == 0.0 && fits.snr_db > 30.0, "{}", fits.snr_db);
    let small: Vec<f32> = unit.iter().map(|x| x / 4096.0).collect();
    assert!(round_trip(Format::E4M3, &small)?.flushed > 0.9);
    Ok(())
}
