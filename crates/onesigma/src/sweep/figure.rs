//! The figure of a sweep: the metric over one key, a curve for each value of the others.

use std::collections::BTreeMap;

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use toml::Value;

use super::report::Row;
use super::spec::{Spec, plain};

/// Colours that stay apart for the colour-blind (Okabe and Ito, 2008), and two greys.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(0, 0, 0),
];

/// Points of a curve: position, mean, lowest and highest value.
type Points = Vec<(f64, f64, f64, f64)>;

/// What is drawn.
struct Chart {
    title: String,
    x: String,
    y: String,
    /// Names of positions that are no numbers, in their order.
    names: Vec<String>,
    is_log: bool,
    curves: BTreeMap<String, Points>,
}

/// The figure as SVG; none while no point has a mean.
///
/// # Errors
/// What the drawing library says.
pub fn svg(spec: &Spec, rows: &[Row], title: &str) -> Result<Option<String>, String> {
    let Some(chart) = chart(spec, rows, title) else { return Ok(None) };
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (880, 520)).into_drawing_area();
        let all = || chart.curves.values().flatten();
        let (low, high) = range(all().map(|p| p.0), chart.is_log);
        let y = range(all().flat_map(|p| [p.2, p.3]), false);
        let y = y.0..y.1;
        let drawn = match chart.is_log {
            true => draw(&area, &chart, (low..high).log_scale(), y),
            false => draw(&area, &chart, low..high, y),
        };
        drawn.map_err(|error| error.to_string())?;
        area.present().map_err(|error| error.to_string())?;
    }
    Ok(Some(text))
}

/// Sorts rows into curves.
fn chart(spec: &Spec, rows: &[Row], title: &str) -> Option<Chart> {
    let keys = spec.keys();
    let varies = |key: &&str| rows.iter().any(|row| row.point.get(*key) != rows[0].point.get(*key));
    let is_number = |key: &&str| rows.iter().all(|row| number(row.point.get(*key)).is_some());
    // The rate first: it is what most sweeps are about.
    let mut candidates: Vec<&str> = keys.iter().copied().filter(varies).filter(is_number).collect();
    candidates.sort_by_key(|key| *key != "lr");
    let x = spec.figure.x.as_deref().or(candidates.first().copied()).or(keys.first().copied())?;
    let random = spec.random.as_ref();
    let is_drawn = |key: &str| random.is_some_and(|random| random.keys.contains_key(key));
    let series: Vec<String> = match &spec.figure.series {
        Some(series) => series.clone(),
        // A random value is nearly never the same twice: it makes no curve.
        None => keys
            .iter()
            .filter(|key| **key != x && varies(key) && !is_drawn(key))
            .map(|key| (*key).to_owned())
            .collect(),
    };
    let mut names: Vec<String> = Vec::new();
    let mut curves: BTreeMap<String, Points> = BTreeMap::new();
    for row in rows {
        let (Some(value), Some(mean)) = (row.point.get(x), row.mean()) else { continue };
        let at = number(Some(value)).unwrap_or_else(|| {
            let name = plain(value);
            let place = names.iter().position(|own| *own == name).unwrap_or(names.len());
            if place == names.len() {
                names.push(name);
            }
            place as f64
        });
        let labels = series.iter().filter_map(|key| Some((key, row.point.get(key)?)));
        let labels: Vec<String> = labels
            .map(|(key, value)| match value {
                Value::String(text) => text.clone(),
                other => format!("{key} {other}"),
            })
            .collect();
        let low = row.values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = row.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        curves.entry(labels.join(", ")).or_default().push((at, mean, low, high));
    }
    curves.values_mut().for_each(|points| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let positions: Vec<f64> = curves.values().flatten().map(|point| point.0).collect();
    let low = positions.iter().copied().fold(f64::INFINITY, f64::min);
    let high = positions.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let is_log = names.is_empty() && low > 0.0 && high / low >= 8.0;
    let y = spec.metric.name().to_owned();
    (!positions.is_empty()).then(|| Chart {
        title: title.into(),
        x: x.into(),
        y,
        names,
        is_log,
        curves,
    })
}

fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Integer(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        _ => None,
    }
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
    for (index, (label, points)) in chart.curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let line = points.iter().map(|&(x, mean, _, _)| (x, mean));
        let curve = canvas.draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)));
        let curve = curve.map_err(failed)?;
        if !label.is_empty() {
            curve.label(label).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3))
            });
        }
        let dots = line.map(|at| Circle::new(at, 3, colour.filled()));
        canvas.draw_series(dots).map_err(failed)?;
        let spread = points.iter().filter(|(_, _, low, high)| low < high);
        let bars = spread.map(|&(x, _, low, high)| PathElement::new([(x, low), (x, high)], colour));
        canvas.draw_series(bars).map_err(failed)?;
    }
    if chart.curves.keys().any(|label| !label.is_empty()) {
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
    use std::path::Path;

    use onesigma_train::run_file;

    use super::*;

    fn rows(spec: &str, points: &[(&str, f64)]) -> (Spec, Vec<Row>) {
        let spec: Spec = run_file::from_toml(spec, Path::new("s.toml")).expect("a sweep");
        let rows = points
            .iter()
            .map(|(point, value)| Row {
                point: toml::from_str(point).expect("a point"),
                values: vec![*value, value + 0.1],
                diverged: 0,
                failed: 0,
                open: 0,
            })
            .collect();
        (spec, rows)
    }

    #[test]
    fn a_wide_range_of_rates_is_drawn_over_its_logarithm_by_recipe() {
        let (spec, rows) = rows(
            "grid = { lr = [0.01, 1.0], recipe = ['f32', 'unit-fp8'] }",
            &[
                ("lr = 0.01\nrecipe = 'f32'", 3.0),
                ("lr = 1.0\nrecipe = 'f32'", 2.0),
                ("lr = 1.0\nrecipe = 'unit-fp8'", 1.0),
            ],
        );
        let found = chart(&spec, &rows, "T").expect("points");
        assert!(found.is_log);
        assert_eq!(found.curves.keys().collect::<Vec<_>>(), ["f32", "unit-fp8"]);
        assert_eq!(found.curves["f32"].iter().map(|p| p.0).collect::<Vec<_>>(), [0.01, 1.0]);
        let text = svg(&spec, &rows, "Rates").expect("a drawing").expect("points");
        for word in ["<svg", "Rates", "lr", "validation loss", "f32", "unit-fp8"] {
            assert!(text.contains(word), "{word} is missing");
        }
    }

    #[test]
    fn names_have_places_and_nothing_makes_no_figure() {
        let (spec, mut rows) = rows(
            "grid = { optimizer = ['adamw', 'lion'] }",
            &[("optimizer = 'adamw'", 3.0), ("optimizer = 'lion'", 2.0)],
        );
        let text = svg(&spec, &rows, "Optimisers").expect("a drawing").expect("points");
        assert!(text.contains("adamw") && text.contains("lion"), "{text}");
        rows.iter_mut().for_each(|row| row.open = 1);
        assert_eq!(svg(&spec, &rows, "Nothing").expect("no drawing"), None);
    }
}
