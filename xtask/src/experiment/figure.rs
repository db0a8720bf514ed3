//! The figure of an experiment, as SVG on white, so that it reads on light and dark pages.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;

use super::config::{Experiment, Figure, Labels};
use super::numerics::KINDS;
use super::report::{Row, number};
use super::runner::RunResult;
use crate::plot::COLOURS;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Draws the experiment's figure of its rows.
pub fn draw(
    path: &Path,
    experiment: &Experiment,
    rows: &[Row],
    results: &[RunResult],
) -> Result<()> {
    if let Figure::Exponents { series, lines } = &experiment.figure {
        return exponents(path, experiment, results, series, lines);
    }
    let rows: Vec<&Row> = rows.iter().filter(|row| row.spread.count > 0).collect();
    ensure!(!rows.is_empty(), "no point of `{}` has a finite result to draw", experiment.name);
    let panels = match &experiment.figure {
        Figure::Dots { panels, .. } | Figure::Lines { panels, .. } => panels.as_deref(),
        Figure::Exponents { .. } => None,
    };
    let panels = split(&rows, panels);
    let most = panels.iter().map(|(_, rows)| rows.len()).max().unwrap_or(1) as u32;
    let (width, height) = match experiment.figure {
        Figure::Dots { .. } => (900, 110 + 24 * most),
        Figure::Lines { .. } | Figure::Exponents { .. } => (900, 440),
    };
    let per_row = if panels.len() > 1 { 2 } else { 1 };
    let lines = panels.len().div_ceil(per_row);
    let area = SVGBackend::new(path, (width, height * lines as u32)).into_drawing_area();
    let all = || -> Drawn {
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        let (y, own) = (bounds(&rows), area.split_evenly((lines, per_row)));
        for ((name, rows), area) in panels.iter().zip(&own) {
            let title = if name.is_empty() { experiment.title.clone() } else { name.clone() };
            match &experiment.figure {
                Figure::Dots { colour, rows: names, .. } => {
                    dots(area, &title, experiment, rows, colour, names, y)?;
                }
                Figure::Lines { x, log, series, .. } => {
                    lines_over(area, &title, experiment, rows, (x, *log), series, y)?;
                }
                Figure::Exponents { .. } => {}
            }
        }
        area.present().map_err(|e| e.to_string())?;
        Ok(())
    };
    all().map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

/// Rows by the value of a label, in order of appearance.
fn split<'a>(rows: &[&'a Row], by: Option<&str>) -> Vec<(String, Vec<&'a Row>)> {
    let mut groups: Vec<(String, Vec<&Row>)> = Vec::new();
    for &row in rows {
        let name = by.and_then(|by| row.labels.get(by)).cloned().unwrap_or_default();
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((name, vec![row])),
        }
    }
    groups
}

/// The values of some labels, joined.
fn joined(labels: &Labels, names: &[String]) -> String {
    let own: Vec<_> =
        names.iter().filter_map(|name| labels.get(name)).map(String::as_str).collect();
    own.join(", ")
}

/// Range of all values with some room.
fn bounds(rows: &[&Row]) -> (f64, f64) {
    let values = || rows.iter().flat_map(|row| row.values.values().flatten().copied());
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let room = if high > low { 0.06 * (high - low) } else { 0.5 };
    (low - room, high + room)
}

fn dots(
    area: &Area<'_>,
    title: &str,
    experiment: &Experiment,
    rows: &[&Row],
    colour: &str,
    names: &[String],
    range: (f64, f64),
) -> Drawn {
    let labels: Vec<String> = rows.iter().map(|row| joined(&row.labels, names)).collect();
    let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let groups: Vec<String> =
        split(rows, Some(colour)).into_iter().map(|(group, _)| group).collect();
    let count = rows.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 17))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(8 * longest as u32 + 16)
        .build_cartesian_2d(range.0..range.1, -0.5..count - 0.5)
        .map_err(|e| e.to_string())?;
    let name = |y: &f64| {
        let index = count - 1.0 - y;
        let near = (index - index.round()).abs() < 1e-6;
        labels.get(index.round().max(0.0) as usize).filter(|_| near).cloned().unwrap_or_default()
    };
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(experiment.metric.label())
        .x_labels(6)
        .y_labels(2 * rows.len() + 1)
        .y_label_formatter(&name)
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(|e| e.to_string())?;
    for (index, row) in rows.iter().enumerate() {
        let y = count - 1.0 - index as f64;
        let group = row.labels.get(colour).cloned().unwrap_or_default();
        let place = groups.iter().position(|other| *other == group).unwrap_or(0);
        let colour = COLOURS[place % COLOURS.len()];
        let seeds = row
            .values
            .values()
            .flatten()
            .map(|&value| Circle::new((value, y), 3, colour.mix(0.45).filled()));
        chart.draw_series(seeds).map_err(|e| e.to_string())?;
        let Some(mean) = row.spread.mean else { continue };
        let half = row.spread.deviation.unwrap_or(0.0);
        let bar = PathElement::new([(mean - half, y), (mean + half, y)], colour.stroke_width(2));
        chart.draw_series([bar]).map_err(|e| e.to_string())?;
        let mark = PathElement::new([(mean, y - 0.3), (mean, y + 0.3)], colour.stroke_width(3));
        chart.draw_series([mark]).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn lines_over(
    area: &Area<'_>,
    title: &str,
    experiment: &Experiment,
    rows: &[&Row],
    (x, log): (&str, bool),
    series: &[String],
    range: (f64, f64),
) -> Drawn {
    let at = |row: &Row| row.labels.get(x).and_then(|label| label.parse::<f64>().ok());
    let places: Vec<f64> = rows.iter().filter_map(|row| at(row)).collect();
    let low = places.iter().copied().fold(f64::INFINITY, f64::min);
    let high = places.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !low.is_finite() {
        return Err(format!("no point has a number on the axis `{x}`").into());
    }
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(title, ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(58);
    let names = |row: &Row| joined(&row.labels, series);
    let label = experiment.metric.label();
    if log {
        let room = (high / low).powf(0.03).max(1.05);
        let axis = (low / room..high * room).log_scale().base(2.0);
        let chart =
            builder.build_cartesian_2d(axis, range.0..range.1).map_err(|e| e.to_string())?;
        curves(chart, rows, x, label, &at, &names, (low, high))
    } else {
        let room = if high > low { 0.03 * (high - low) } else { 0.5 };
        let chart = builder
            .build_cartesian_2d(low - room..high + room, range.0..range.1)
            .map_err(|e| e.to_string())?;
        curves(chart, rows, x, label, &at, &names, (low, high))
    }
}

fn curves<'a, X>(
    mut chart: ChartContext<
        'a,
        SVGBackend<'a>,
        Cartesian2d<X, plotters::coord::types::RangedCoordf64>,
    >,
    rows: &[&Row],
    x: &str,
    label: &str,
    at: &dyn Fn(&Row) -> Option<f64>,
    names: &dyn Fn(&Row) -> String,
    (low, high): (f64, f64),
) -> Drawn
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64> + 'a,
{
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(x)
        .y_desc(label)
        .x_label_formatter(&|value| number(*value))
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(|e| e.to_string())?;
    let mut groups: Vec<(String, Vec<&Row>)> = Vec::new();
    for &row in rows {
        let name = names(row);
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((name, vec![row])),
        }
    }
    for (index, (name, rows)) in groups.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut points: Vec<(f64, f64, f64)> = Vec::new();
        let mut level = None;
        for row in rows {
            let (Some(mean), half) = (row.spread.mean, row.spread.deviation.unwrap_or(0.0)) else {
                continue;
            };
            match at(row) {
                Some(place) => points.push((place, mean, half)),
                None => level = Some(mean),
            }
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let bars = points.iter().map(|&(x, y, half)| {
            PathElement::new([(x, y - half), (x, y + half)], colour.mix(0.6).stroke_width(2))
        });
        chart.draw_series(bars).map_err(|e| e.to_string())?;
        let marks = points.iter().map(|&(x, y, _)| Circle::new((x, y), 3, colour.filled()));
        chart.draw_series(marks).map_err(|e| e.to_string())?;
        let line: Vec<(f64, f64)> = match level {
            Some(level) => vec![(low, level), (high, level)],
            None => points.iter().map(|&(x, y, _)| (x, y)).collect(),
        };
        let drawn = match level {
            Some(_) => chart
                .draw_series(DashedLineSeries::new(line, 6, 4, colour.stroke_width(2)))
                .map_err(|e| e.to_string())?,
            None => chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))
                .map_err(|e| e.to_string())?,
        };
        drawn
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(190, 190, 190))
        .label_font(("sans-serif", 13))
        .draw()
        .map_err(|e| e.to_string())?;
    Ok(())
}

/// The distinct names that some labels give the results, in order of appearance.
fn distinct(results: &[RunResult], labels: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for result in results {
        let name = joined(&result.labels, labels);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Shares of elements by exponent, mean over runs: one panel for each kind of tensor, a line of
/// them for each value of the labels `lines`.
fn exponents(
    path: &Path,
    experiment: &Experiment,
    results: &[RunResult],
    series: &[String],
    lines: &[String],
) -> Result<()> {
    let (names, rows) = (distinct(results, series), distinct(results, lines));
    let curve = |row: &str, kind: &str, name: &str| -> Vec<(f64, f64)> {
        let mut shares: BTreeMap<i32, f64> = BTreeMap::new();
        let is_own = |result: &&RunResult| {
            joined(&result.labels, series) == name && joined(&result.labels, lines) == row
        };
        let own = || results.iter().filter(is_own);
        for result in own() {
            let all = result.numerics.iter().flat_map(|numerics| &numerics.exponents);
            for (_, histogram) in all.filter(|(other, _)| *other == kind) {
                for (exponent, share) in histogram {
                    *shares.entry(*exponent).or_default() += share / own().count() as f64;
                }
            }
        }
        shares.into_iter().map(|(exponent, share)| (f64::from(exponent), 100.0 * share)).collect()
    };
    let of_kind = |row: &str, kind: &str| -> Panel {
        let curves = names.iter().map(|name| (name.clone(), curve(row, kind, name)));
        let title = if row.is_empty() { kind.to_owned() } else { format!("{row}: {kind}") };
        Panel { title, curves: curves.collect() }
    };
    let panels: Vec<Panel> =
        rows.iter().flat_map(|row| KINDS.iter().map(move |kind| of_kind(row, kind))).collect();
    let points = panels.iter().flat_map(|panel| &panel.curves).flat_map(|(_, curve)| curve);
    let shown: Vec<f64> = points.filter(|(_, share)| *share > 0.05).map(|(x, _)| *x).collect();
    ensure!(!shown.is_empty(), "no histogram of `{}` to draw", experiment.name);
    let low = shown.iter().copied().fold(f64::INFINITY, f64::min) - 1.0;
    let high = shown.iter().copied().fold(f64::NEG_INFINITY, f64::max) + 2.0;
    let down = panels.len().div_ceil(2);
    let area = SVGBackend::new(path, (900, 340 * down as u32)).into_drawing_area();
    let draw = || -> Drawn {
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        for (panel, area) in panels.iter().zip(&area.split_evenly((down, 2))) {
            panel.draw(area, (low, high))?;
        }
        area.present().map_err(|e| e.to_string())?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

/// One panel of histograms.
struct Panel {
    title: String,
    /// Each with its name.
    curves: Vec<(String, Vec<(f64, f64)>)>,
}

impl Panel {
    fn draw(&self, area: &Area<'_>, (low, high): (f64, f64)) -> Drawn {
        let shares = self.curves.iter().flat_map(|(_, curve)| curve).map(|(_, share)| *share);
        let top = shares.fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 17))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(low..high, 0.0..1.08 * top)
            .map_err(|e| e.to_string())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("exponent: floor of log2 of the magnitude")
            .y_desc("% of elements")
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(|e| e.to_string())?;
        for (index, (name, curve)) in self.curves.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            chart
                .draw_series(LineSeries::new(curve.iter().copied(), colour.stroke_width(2)))
                .map_err(|e| e.to_string())?
                .label(name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(190, 190, 190))
            .label_font(("sans-serif", 12))
            .draw()
            .map_err(|e| e.to_string())?;
        Ok(())
    }
}
