//! `cargo xtask pictures`: the drawings of the book's chapter on unit scaling, computed anew, and
//! the curves of its page on NVIDIA GPUs.

use std::fs;

use anyhow::Result;
use onesigma_format::{Format, Noise, philox};

use crate::curves;
use crate::process::root;
use crate::svg::Svg;

/// Arguments of `cargo xtask pictures`.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Writes every picture.
pub fn run(_: &Arguments) -> Result<()> {
    let folder = root().join("docs/src/images/unit-scaling");
    fs::create_dir_all(&folder)?;
    for (name, svg) in [("node", node()), ("ranges", ranges()), ("layers", layers())] {
        fs::write(folder.join(format!("{name}.svg")), svg.file())?;
        println!("docs/src/images/unit-scaling/{name}.svg");
    }
    curves::draw()
}

/// A node with its scales, forward and backward.
fn node() -> Svg {
    let mut svg = Svg::new("A node carries its scales", 860.0, 250.0);
    svg.text(16.0, 26.0, "title", "start", "A node carries its scales");
    let boxes = [(60.0, "x, σ = 1"), (340.0, "f"), (620.0, "y, σ = 1")];
    for (y, words, class, from) in
        [(70.0, "y = α · f(x)", "s0", true), (160.0, "dx = β · (∂f/∂x)ᵀ dy", "s1", false)]
    {
        for (n, (x, name)) in boxes.iter().enumerate() {
            let name = match (from, n) {
                (false, 0) => "dx, σ = 1",
                (false, 1) => "transpose of ∂f/∂x",
                (false, _) => "dy, σ = 1",
                (true, _) => name,
            };
            svg.rect([*x, y, 180.0, 44.0], &format!("{class} band"), name);
            svg.text(x + 90.0, y + 27.0, "name", "middle", name);
        }
        let scale = if from { "× α" } else { "× β" };
        for (a, b) in [(240.0, 340.0), (520.0, 620.0)] {
            let (tail, tip) = if from { (a, b) } else { (b, a) };
            let back = if from { -9.0 } else { 9.0 };
            let y = y + 22.0;
            svg.path(&[(tail, y), (tip, y)], &format!("curve {class}"));
            svg.path(
                &[(tip + back, y - 5.0), (tip, y), (tip + back, y + 5.0)],
                &format!("curve {class}"),
            );
        }
        svg.text(if from { 570.0 } else { 290.0 }, y + 13.0, "name", "middle", scale);
        svg.text(16.0, y - 8.0, "axis-name", "start", words);
    }
    svg
}

/// Share of a normal variable's magnitudes in each binade `[2^e, 2^(e+1))`.
fn binades(sigma: f64) -> Vec<(i32, f64)> {
    // erf by its power series; beyond 4 it is 1 to eight digits.
    let erf = |x: f64| -> f64 {
        if x > 4.0 {
            return 1.0;
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    };
    let below = |x: f64| erf(x / sigma / std::f64::consts::SQRT_2);
    (-30..18).map(|e| (e, below(f64::from(e + 1).exp2()) - below(f64::from(e).exp2()))).collect()
}

/// Where N(0, σ) lies in the ranges of the narrow formats.
fn ranges() -> Svg {
    let mut svg = Svg::new("A tensor of σ = 1 lies in the middle of every format", 860.0, 400.0);
    svg.text(16.0, 26.0, "title", "start", &svg.title.clone());
    let x = |log2: f64| 110.0 + (log2 + 28.0) / 46.0 * 720.0;
    for (sigma, class, name) in
        [(1.0, "s0", "σ = 1"), (f64::exp2(-16.0), "s1", "σ = 2⁻¹⁶, a gradient without scaling")]
    {
        let mut widest = (0.0, 0.0);
        for (e, share) in binades(sigma) {
            if share > 1e-4 {
                let height = share * 330.0;
                let hint = format!("{name}: {:.2} % in 2^{e}", 100.0 * share);
                let left = x(f64::from(e));
                svg.rect([left + 0.5, 170.0 - height, x(1.0) - x(0.0) - 1.0, height], class, &hint);
                if share > widest.1 {
                    widest = (left, share);
                }
            }
        }
        svg.text(widest.0 + 8.0, 52.0, "name", "middle", name);
    }
    let formats = [Format::F16, Format::E5M2, Format::E4M3, Format::BF16];
    for (row, format) in formats.into_iter().enumerate() {
        let y = 196.0 + 36.0 * row as f64;
        let [least, normal, most] =
            [format.min_subnormal(), format.min_normal(), format.max()].map(f64::log2);
        let clip = |v: f64| v.clamp(-28.0, 18.0);
        let name = format.to_string();
        svg.text(100.0, y + 15.0, "name", "end", &name);
        let (a, b, c) = (x(clip(least)), x(clip(normal)), x(clip(most)));
        svg.rect([a, y, b - a, 20.0], "s2 band", &format!("{name}: subnormal from 2^{least}"));
        svg.rect(
            [b, y, c - b, 20.0],
            "s2",
            &format!("{name}: normal, 2^{normal} to {}", format.max()),
        );
    }
    for e in (-28..=16).step_by(4) {
        let at = x(f64::from(e));
        svg.path(&[(at, 170.0), (at, 342.0)], "axis");
        svg.text(at, 360.0, "tick", "middle", &format!("2^{e}"));
    }
    svg.text(
        470.0,
        386.0,
        "axis-name",
        "middle",
        "magnitude; green: normal numbers, pale green: subnormal",
    );
    svg
}

const ROWS: usize = 64;
const WIDTH: usize = 256;
const LAYERS: usize = 8;

/// `x [rows, k]` times `w [n, k]` transposed, or not: then `w` is `[k, n]`.
fn product(x: &[f32], w: &[f32], k: usize, n: usize, transposed: bool) -> Vec<f32> {
    let mut y = vec![0.0; x.len() / k * n];
    for (x, y) in x.chunks(k).zip(y.chunks_mut(n)) {
        for (p, &x) in x.iter().enumerate() {
            for (j, y) in y.iter_mut().enumerate() {
                *y += x * if transposed { w[j * k + p] } else { w[p * n + j] };
            }
        }
    }
    y
}

fn sigma(values: &[f32]) -> f64 {
    let square: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
    (square / values.len() as f64).sqrt()
}

fn normal(tensor: usize, count: usize, std: f32) -> Vec<f32> {
    let mut values = vec![0.0; count];
    philox::fill_normal(Noise { tensor: tensor as u32, ..Noise::default() }, &mut values);
    values.iter_mut().for_each(|value| *value *= std);
    values
}

/// σ of activations and of gradients after each of a stack of linear layers with ReLU, width 256
/// to 1024 and back, and of each layer's weight gradient.
struct Scales {
    activations: Vec<f64>,
    gradients: Vec<f64>,
    weight_gradients: Vec<f64>,
}

/// Runs the stack; weights start with `std`. `unit`: the scales of the rules `linear` and `relu`.
fn stack(std: f32, unit: bool) -> Scales {
    let width = |layer: usize| if layer.is_multiple_of(2) { WIDTH } else { 4 * WIDTH };
    let relu = |x: &f32| x.max(0.0);
    // relu(x) of a normal x has this root mean square about its mean; its derivative √(1/2).
    let (alpha_relu, beta_relu) =
        ((2.0 / (1.0 - std::f64::consts::FRAC_1_PI)).sqrt(), 2_f64.sqrt());
    let scale = |power: f64, size: usize| if unit { (size as f64).powf(power) as f32 } else { 1.0 };
    let (fore, back) = if unit {
        ((alpha_relu * beta_relu).sqrt() as f32, (alpha_relu * beta_relu).sqrt() as f32)
    } else {
        (1.0, 1.0)
    };
    let mut x = normal(1000, ROWS * WIDTH, 1.0);
    let mut kept = Vec::new();
    let mut found =
        Scales { activations: Vec::new(), gradients: Vec::new(), weight_gradients: Vec::new() };
    for layer in 0..LAYERS {
        let (k, n) = (width(layer), width(layer + 1));
        let w = normal(layer, n * k, std);
        let mut z = product(&x, &w, k, n, true);
        // Forward and backward agree inside the stack: the geometric mean of both ideals.
        let common = scale(-0.25, k) * scale(-0.25, n);
        z.iter_mut().for_each(|value| *value *= common);
        let y: Vec<f32> = z.iter().map(|z| relu(z) * fore).collect();
        found.activations.push(sigma(&y));
        kept.push((x, w, z, k, n, common));
        x = y;
    }
    // The upstream gradient of a mean over rows and columns, or of unit scale.
    let start = if unit { 1.0 } else { 1.0 / (ROWS * WIDTH) as f32 };
    let mut dy = normal(2000, x.len(), start);
    for (x, w, z, k, n, common) in kept.into_iter().rev() {
        let dz: Vec<f32> =
            dy.iter().zip(&z).map(|(dy, z)| if *z > 0.0 { dy * back } else { 0.0 }).collect();
        let columns = |values: &[f32], width: usize| -> Vec<f32> {
            (0..width).flat_map(|j| values.chunks(width).map(move |row| row[j])).collect()
        };
        let dw = product(&columns(&dz, n), &x, ROWS, k, false);
        found.weight_gradients.push(sigma(&dw) * f64::from(scale(-0.5, ROWS)));
        dy = product(&dz, &w, n, k, false);
        dy.iter_mut().for_each(|value| *value *= common);
        found.gradients.push(sigma(&dy));
    }
    found.gradients.reverse();
    found.weight_gradients.reverse();
    found
}

/// σ by layer without scaling and with it, over the range of E5M2.
fn layers() -> Svg {
    let mut svg = Svg::new("σ through eight layers, before the first step", 860.0, 430.0);
    svg.text(16.0, 26.0, "title", "start", &svg.title.clone());
    let panels = [
        (70.0, "weights N(0, 0.02²), mean loss", stack(0.02, false)),
        (480.0, "unit scaling", stack(1.0, true)),
    ];
    let y = |value: f64| 60.0 + (6.0 - value.log2()) / 36.0 * 300.0;
    for (left, name, scales) in &panels {
        let normal = Format::E5M2.min_normal();
        let least = Format::E5M2.min_subnormal();
        svg.rect([*left, y(64.0), 350.0, y(normal) - y(64.0)], "s2 band", "normal numbers of E5M2");
        svg.text(left + 344.0, y(normal) - 6.0, "tick", "end", "E5M2: normal above");
        svg.path(&[(*left, y(least)), (left + 350.0, y(least))], "limit");
        svg.text(left + 344.0, y(least) + 15.0, "tick", "end", "below half of this: zero");
        svg.text(*left, 50.0, "name", "start", name);
        for e in (-30..=6).step_by(6) {
            let at = y(f64::from(e).exp2());
            svg.path(&[(*left, at), (left + 350.0, at)], "axis");
            svg.text(left - 8.0, at + 4.0, "tick", "end", &format!("2^{e}"));
        }
        let lists = [&scales.activations, &scales.gradients, &scales.weight_gradients];
        for (list, class) in lists.into_iter().zip(["s0", "s1", "s3"]) {
            let at = |n: usize| left + 25.0 + n as f64 * 43.0;
            let points: Vec<_> = list.iter().enumerate().map(|(n, s)| (at(n), y(*s))).collect();
            svg.path(&points, &format!("curve {class}"));
            for (point, sigma) in points.into_iter().zip(list) {
                svg.dot(point, 4.0, class, &format!("σ = 2^{:.1}", sigma.log2()));
            }
        }
        svg.text(left + 175.0, 382.0, "axis-name", "middle", "layer, first to last");
    }
    for (n, (name, class)) in [
        ("activation", "s0"),
        ("gradient of the activation", "s1"),
        ("gradient of the weight", "s3"),
    ]
    .into_iter()
    .enumerate()
    {
        let x = 70.0 + 230.0 * n as f64;
        svg.rect([x, 405.0, 18.0, 6.0], class, name);
        svg.text(x + 25.0, 412.0, "name", "start", name);
    }
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binades_of_a_normal_variable_add_up() {
        for sigma in [1.0, f64::exp2(-16.0)] {
            let all: f64 = binades(sigma).iter().map(|(_, share)| share).sum();
            assert!((all - 1.0).abs() < 1e-3, "{all}");
        }
        // P(1 <= |z| < 2) = erf(√2) - erf(1/√2).
        let share = binades(1.0).into_iter().find(|(e, _)| *e == 0).map(|(_, share)| share);
        assert!(share.is_some_and(|share| (share - 0.271_81).abs() < 1e-4), "{share:?}");
    }

    #[test]
    fn the_picture_shows_what_the_chapter_says() {
        let all = |s: &Scales| -> Vec<f64> {
            [&s.activations[..], &s.gradients, &s.weight_gradients].concat()
        };
        let unit = all(&stack(1.0, true));
        assert!(unit.iter().all(|sigma| (0.5..2.0).contains(sigma)), "{unit:?}");
        let regular = stack(0.02, false);
        let least = Format::E5M2.min_subnormal();
        let gradients = [&regular.gradients[..], &regular.weight_gradients].concat();
        assert!(gradients.iter().all(|sigma| *sigma < least), "{gradients:?}");
    }

    #[test]
    fn committed_pictures_are_those_that_are_drawn() {
        for (name, svg) in [("node", node()), ("ranges", ranges()), ("layers", layers())] {
            let path = root().join(format!("docs/src/images/unit-scaling/{name}.svg"));
            let committed = fs::read_to_string(path).expect("a picture");
            assert!(committed == svg.file(), "{name}.svg is old: cargo xtask pictures");
        }
    }
}
