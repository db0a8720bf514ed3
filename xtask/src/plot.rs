//! Line charts as SVG.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;

/// One curve.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// Its points, in rising order of `x`.
    pub points: Vec<(f64, f64)>,
}

/// What is on the axes.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// Above the chart.
    pub title: &'a str,
    /// Below the horizontal axis.
    pub x: &'a str,
    /// Beside the vertical axis.
    pub y: &'a str,
}

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

/// Draws curves over linear axes into an SVG file. Points that are not finite are left out.
pub fn lines(path: &Path, labels: Labels<'_>, series: &[Series]) -> Result<()> {
    let finite = |&&(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
    let points = || series.iter().flat_map(|one| one.points.iter().filter(finite));
    ensure!(points().next().is_some(), "no points to draw for `{}`", labels.title);
    let (x, y) = (range(points().map(|p| p.0)), range(points().map(|p| p.1)));
    let area = SVGBackend::new(path, (880, 520)).into_drawing_area();
    let draw = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        let mut chart = ChartBuilder::on(&area)
            .caption(labels.title, ("sans-serif", 20))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)
            .map_err(|e| e.to_string())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(labels.x)
            .y_desc(labels.y)
            .label_style(("sans-serif", 14))
            .draw()
            .map_err(|e| e.to_string())?;
        for (index, one) in series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let line = one.points.iter().filter(finite).copied();
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))
                .map_err(|e| e.to_string())?
                .label(&one.label)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(190, 190, 190))
            .label_font(("sans-serif", 14))
            .draw()
            .map_err(|e| e.to_string())?;
        area.present().map_err(|e| e.to_string())?;
        Ok(())
    };
    draw().map_err(anyhow::Error::from_boxed).with_context(|| format!("cannot draw {path:?}"))
}

/// Smallest and largest value with a little room, never an empty range.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let room = if high > low { (high - low) * 0.04 } else { 0.5 };
    (low - room, high + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: Labels<'_> = Labels { title: "Loss", x: "step", y: "nats" };

    #[test]
    fn a_chart_names_its_curves_and_axes() {
        let path = std::env::temp_dir().join(format!("onesigma-plot-{}.svg", std::process::id()));
        let series = ["unit-fp8", "unit-f32"].map(|label| Series {
            label: label.into(),
            points: vec![(0.0, 5.5), (10.0, 3.0), (20.0, f64::NAN)],
        });
        lines(&path, LABELS, &series).expect("a chart");
        let text = std::fs::read_to_string(&path).expect("the file");
        std::fs::remove_file(&path).expect("its own file");
        for word in ["<svg", "Loss", "step", "nats", "unit-fp8", "unit-f32"] {
            assert!(text.contains(word), "{word} is missing");
        }
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        let empty = [Series { label: "x".into(), points: vec![(0.0, f64::NAN)] }];
        assert!(lines(Path::new("unused.svg"), LABELS, &empty).is_err());
    }
}
