//! The figure of a sweep: the metric over one key, a curve for each value of the others.

use std::collections::BTreeMap;

use toml::Value;

use super::report::Row;
use super::spec::{Spec, plain};
use crate::chart::{self, Chart, Curve, Point};

/// The figure as SVG; none while no point has a mean.
///
/// # Errors
/// What the drawing library says.
pub fn svg(spec: &Spec, rows: &[Row], title: &str) -> Result<Option<String>, String> {
    chart(spec, rows, title).map(|chart| chart::svg(&chart)).transpose()
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
    let mut curves: BTreeMap<String, Vec<Point>> = BTreeMap::new();
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
        let point = Point { x: at, y: mean, spread: [low, high] };
        curves.entry(labels.join(", ")).or_default().push(point);
    }
    curves.values_mut().for_each(|points| points.sort_by(|a, b| a.x.total_cmp(&b.x)));
    let positions: Vec<f64> = curves.values().flatten().map(|point| point.x).collect();
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
        has_dots: true,
        curves: curves.into_iter().map(|(label, points)| Curve { label, points }).collect(),
    })
}

fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Integer(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        _ => None,
    }
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
        let labels: Vec<&str> = found.curves.iter().map(|curve| &*curve.label).collect();
        assert_eq!(labels, ["f32", "unit-fp8"]);
        assert_eq!(found.curves[0].points.iter().map(|p| p.x).collect::<Vec<_>>(), [0.01, 1.0]);
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
