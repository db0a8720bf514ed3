//! Line charts as SVG.
//!
//! The tasks of the workspace include this file as well, so it needs nothing else of this crate.

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

/// Colours that stay apart for the colour-blind (Okabe and Ito, 2008), and two greys.
pub const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(0, 0, 0),
];

/// A point of a curve with its spread.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    /// Horizontal position.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// Lowest and highest value, drawn as a bar if they differ.
    pub spread: [f64; 2],
}

impl From<(f64, f64)> for Point {
    /// A point without spread.
    fn from((x, y): (f64, f64)) -> Self {
        Self { x, y, spread: [y; 2] }
    }
}

impl Point {
    fn is_finite(&self) -> bool {
        [self.x, self.y, self.spread[0], self.spread[1]].iter().all(|value| value.is_finite())
    }
}

/// One curve.
#[derive(Clone, PartialEq, Debug)]
pub struct Curve {
    /// Its name in the legend; empty for none.
    pub label: String,
    /// Its points, in rising order of `x`. Those that are not finite are left out.
    pub points: Vec<Point>,
}

/// What is drawn.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Chart {
    /// Above the chart.
    pub title: String,
    /// Below the horizontal axis.
    pub x: String,
    /// Beside the vertical axis.
    pub y: String,
    /// Names of the positions 0, 1, .. where they are no numbers.
    pub names: Vec<String>,
    /// Whether the horizontal axis is logarithmic.
    pub is_log: bool,
    /// Whether each point has a dot.
    pub has_dots: bool,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// The drawing.
///
/// # Errors
/// Without a point, and what the drawing library says.
pub fn svg(chart: &Chart) -> Result<String, String> {
    let all =
        || chart.curves.iter().flat_map(|curve| curve.points.iter().filter(|p| p.is_finite()));
    if all().next().is_none() {
        return Err(format!("no points to draw for `{}`", chart.title));
    }
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (880, 520)).into_drawing_area();
        let (low, high) = range(all().map(|point| point.x), chart.is_log);
        let y = range(all().flat_map(|point| point.spread), false);
        let y = y.0..y.1;
        let drawn = match chart.is_log {
            true => draw(&area, chart, (low..high).log_scale(), y),
            false => draw(&area, chart, low..high, y),
        };
        drawn.map_err(|error| error.to_string())?;
        area.present().map_err(|error| error.to_string())?;
    }
    Ok(text)
}

/// Smallest and largest value with a little room, never an empty range.
fn range(values: impl Iterator<Item = f64>, is_log: bool) -> (f64, f64) {
    let fold = |(l, h): (f64, f64), v: f64| (l.min(v), h.max(v));
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), fold);
    if is_log {
        let room = (high / low).powf(0.04);
        return (low / room, high * room);
    }
    let room = if high > low { (high - low) * 0.06 } else { low.abs().max(1.0) * 0.1 };
    (low - room, high + room)
}

fn draw<X>(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    chart: &Chart,
    x: X,
    y: std::ops::Range<f64>,
) -> Result<(), Box<dyn std::error::Error>>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let failed = |error: DrawingAreaErrorKind<std::io::Error>| error.to_string();
    area.fill(&WHITE).map_err(failed)?;
    let mut canvas = ChartBuilder::on(area)
        .caption(&chart.title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    let name = |at: &f64| match chart.names.get(at.round() as usize) {
        Some(name) if (at - at.round()).abs() < 1e-9 => name.clone(),
        _ if chart.names.is_empty() => format!("{at}"),
        _ => String::new(),
    };
    canvas
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(&chart.x)
        .y_desc(&chart.y)
        .x_label_formatter(&name)
        .x_labels(if chart.names.is_empty() { 8 } else { chart.names.len() * 2 })
        .label_style(("sans-serif", 14))
        .draw()
        .map_err(failed)?;
    for (index, Curve { label, points }) in chart.curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points: Vec<Point> = points.iter().copied().filter(Point::is_finite).collect();
        let line = points.iter().map(|point| (point.x, point.y));
        let curve = canvas.draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)));
        let curve = curve.map_err(failed)?;
        if !label.is_empty() {
            curve.label(label).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3))
            });
        }
        if chart.has_dots {
            let dots = line.map(|at| Circle::new(at, 3, colour.filled()));
            canvas.draw_series(dots).map_err(failed)?;
        }
        let spread = points.iter().filter(|point| point.spread[0] < point.spread[1]);
        let bars = spread
            .map(|point| PathElement::new(point.spread.map(|value| (point.x, value)), colour));
        canvas.draw_series(bars).map_err(failed)?;
    }
    if chart.curves.iter().any(|curve| !curve.label.is_empty()) {
        canvas
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(190, 190, 190))
            .label_font(("sans-serif", 14))
            .draw()
            .map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_its_curves_and_axes() {
        let curves = ["unit-fp8", "unit-f32"].map(|label| Curve {
            label: label.into(),
            points: [(1.0, 5.5), (10.0, 3.0), (20.0, f64::NAN)].map(Point::from).into(),
        });
        let (title, x, y) = ("Loss".into(), "step".into(), "nats".into());
        let mut chart = Chart { title, x, y, curves: curves.into(), ..Chart::default() };
        for (is_log, has_dots) in [(false, false), (true, true)] {
            (chart.is_log, chart.has_dots) = (is_log, has_dots);
            let text = svg(&chart).expect("a chart");
            for word in ["<svg", "Loss", "step", "nats", "unit-fp8", "unit-f32"] {
                assert!(text.contains(word), "{word} is missing");
            }
            assert_eq!(text.contains("<circle"), has_dots);
        }
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        let points = vec![Point::from((0.0, f64::NAN))];
        let curves = vec![Curve { label: "x".into(), points }];
        let empty = Chart { title: "Loss".into(), curves, ..Chart::default() };
        assert!(svg(&empty).expect_err("no point").contains("`Loss`"));
    }
}
