//! Charts as SVG that follow the reader's theme: bars and lines, inside a page or as a file.
//!
//! Colours are classes. A page brings its own style; a file carries one, light or dark as the
//! reader's system says.

use std::fmt::Write as _;

/// A drawing.
#[derive(Clone, Debug)]
pub struct Svg {
    /// What it shows, for those who cannot see it.
    pub title: String,
    /// Width in pixels at full size.
    pub width: f64,
    /// Height in pixels at full size.
    pub height: f64,
    body: String,
}

/// The style of a file, the same classes as in `report/page/style.css`.
const STYLE: &str = "\
svg{--page:#fff;--text:#1a1f27;--soft:#5a6472;--line:#dde1e8;--s0:#2456c9;--s1:#c2410c;--s2:#2f7d5b;--s3:#7c3aed;--s4:#b7791f;--s5:#0e7490;--peer:#9aa5b4}\
@media(prefers-color-scheme:dark){svg{--page:#171b21;--text:#e6e9ee;--soft:#9aa5b4;--line:#2b323c;--s0:#7aa5ff;--s1:#ff8552;--s2:#56c596;--s3:#b794ff;--s4:#e2b04a;--s5:#5fd0e6;--peer:#5a6472}}\
.ground{fill:var(--page)}";

/// What both kinds of drawing need.
pub const COMMON: &str = "\
.chart{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\
.chart text{fill:var(--soft)}.chart .name{fill:var(--text)}.chart .title{fill:var(--text);font-weight:600;font-size:15px}\
.chart .value{paint-order:stroke;stroke:var(--panel,var(--page));stroke-width:4px;stroke-linejoin:round}\
.chart .axis{stroke:var(--line);fill:none}.chart .limit{stroke:var(--text);stroke-dasharray:4 3;fill:none}\
.chart .s0{fill:var(--s0);stroke:var(--s0)}.chart .s1{fill:var(--s1);stroke:var(--s1)}.chart .s2{fill:var(--s2);stroke:var(--s2)}\
.chart .s3{fill:var(--s3);stroke:var(--s3)}.chart .s4{fill:var(--s4);stroke:var(--s4)}.chart .s5{fill:var(--s5);stroke:var(--s5)}\
.chart .peer{fill:var(--peer);stroke:var(--peer)}.chart rect{stroke-width:0}\
.chart text.in{stroke:none;font-variant-numeric:tabular-nums}\
.chart .band{opacity:.16}.chart .curve{fill:none;stroke-width:2;stroke-dasharray:none}";

/// For text and attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Svg {
    /// An empty drawing.
    pub fn new(title: &str, width: f64, height: f64) -> Self {
        Self { title: title.into(), width, height, body: String::new() }
    }

    /// Adds text; `anchor` is start, middle or end.
    pub fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = escape(text);
        let _ = write!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// Adds a rectangle with a hint.
    pub fn rect(&mut self, [x, y, width, height]: [f64; 4], class: &str, hint: &str) {
        let hint = escape(hint);
        let _ = write!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             class=\"{class}\" rx=\"2\"><title>{hint}</title></rect>"
        );
    }

    /// Adds a line through points.
    pub fn path(&mut self, points: &[(f64, f64)], class: &str) {
        let words = points
            .iter()
            .enumerate()
            .map(|(n, (x, y))| format!("{}{x:.1} {y:.1}", if n == 0 { "M" } else { "L" }));
        let d: String = words.collect();
        let _ = write!(self.body, "<path d=\"{d}\" class=\"{class}\"/>");
    }

    /// Adds a dot with a hint.
    pub fn dot(&mut self, (x, y): (f64, f64), radius: f64, class: &str, hint: &str) {
        let hint = escape(hint);
        let _ = write!(
            self.body,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" class=\"{class}\">\
             <title>{hint}</title></circle>"
        );
    }

    /// As part of a page.
    pub fn inline(&self) -> String {
        let Self { title, width, height, body } = self;
        let title = escape(title);
        format!(
            "<svg class=\"chart\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
             aria-label=\"{title}\" style=\"max-width:{width:.0}px\">{body}</svg>"
        )
    }

    /// A line down a chart at `x`, below its name.
    fn limit(&mut self, x: f64, top: f64, words: &str) {
        self.path(&[(x, top - 6.0), (x, self.height - 8.0)], "limit");
        self.text(x, top - 10.0, "limit-name", "middle", words);
    }

    /// As a file.
    pub fn file(&self) -> String {
        let Self { title, width, height, body } = self;
        let title = escape(title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" width=\"{width:.0}\" \
             height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\
             <title>{title}</title><style>{STYLE}{COMMON}</style>\
             <rect class=\"ground\" width=\"100%\" height=\"100%\"/>{body}</svg>\n"
        )
    }
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// To its left.
    pub label: String,
    /// Its length.
    pub value: f64,
    /// To its right.
    pub text: String,
    /// Its colour.
    pub class: String,
}

/// Horizontal bars in named groups, from 0; a dashed line at `limit`.
pub fn bars(title: &str, groups: &[(String, Vec<Bar>)], limit: Option<(f64, &str)>) -> Svg {
    const WIDTH: f64 = 860.0;
    const ROW: f64 = 21.0;
    let rows: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let top = if limit.is_some() { 62.0 } else { 44.0 };
    let height = top + rows as f64 * ROW + groups.len() as f64 * 30.0 + 8.0;
    let mut svg = Svg::new(title, WIDTH, height);
    svg.text(16.0, 26.0, "title", "start", title);
    let longest = groups.iter().flat_map(|(_, bars)| bars).map(|bar| bar.label.chars().count());
    let left = 28.0 + 7.4 * longest.max().unwrap_or(0) as f64;
    let values = groups.iter().flat_map(|(_, bars)| bars).map(|bar| bar.value);
    let largest = values.chain(limit.map(|(value, _)| value)).fold(0.0, f64::max).max(1e-300);
    // Nothing but a text stands to the right of a bar.
    let after = |bar: &Bar| 24.0 + 7.2 * bar.text.chars().count() as f64;
    let right = groups.iter().flat_map(|(_, bars)| bars).map(after).fold(110.0, f64::max);
    let scale = (WIDTH - left - right) / largest;
    if let Some((value, words)) = limit {
        svg.limit(left + value * scale, top, words);
    }
    let mut y = top;
    for (name, bars) in groups {
        svg.text(16.0, y + 14.0, "name", "start", name);
        y += 22.0;
        for bar in bars {
            svg.text(left - 8.0, y + 14.0, "name", "end", &bar.label);
            let length = (bar.value * scale).max(1.0);
            let hint = format!("{}, {}: {}", name, bar.label, bar.text);
            svg.rect([left, y + 3.0, length, ROW - 6.0], &bar.class, &hint);
            svg.text(left + length + 7.0, y + 14.0, "value", "start", &bar.text);
            y += ROW;
        }
        y += 8.0;
    }
    svg
}

/// One row of [`dots`].
#[derive(Clone, Debug)]
pub struct Row {
    /// To its left.
    pub label: String,
    /// A value for each series, where there is one.
    pub values: Vec<Option<f64>>,
}

/// Rows in named groups with a dot for each series, from 0; figures to the right in the colours of
/// the dots, and a dashed line at `limit`.
pub fn dots(
    title: &str,
    series: &[String],
    groups: &[(String, Vec<Row>)],
    (limit, words): (f64, &str),
) -> Svg {
    const WIDTH: f64 = 860.0;
    const ROW: f64 = 21.0;
    const FIGURE: f64 = 38.0;
    let rows = || groups.iter().flat_map(|(_, rows)| rows);
    let longest = series.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let columns = if longest > 32 { 2 } else { 3 };
    let top = 66.0 + 20.0 * series.len().div_ceil(columns) as f64;
    let height = top + rows().count() as f64 * ROW + groups.len() as f64 * 30.0 + 8.0;
    let mut svg = Svg::new(title, WIDTH, height);
    svg.text(16.0, 26.0, "title", "start", title);
    for (n, name) in series.iter().enumerate() {
        let (column, line) = ((n % columns) as f64, (n / columns) as f64);
        let (x, y) = (22.0 + column * 825.0 / columns as f64, 50.0 + line * 20.0);
        svg.dot((x, y - 4.0), 5.0, &class(n), name);
        svg.text(x + 12.0, y, "name", "start", name);
    }
    let longest = rows().map(|row| row.label.chars().count()).max().unwrap_or(0);
    let left = 28.0 + 7.4 * longest as f64;
    let right = WIDTH - 24.0 - FIGURE * series.len() as f64;
    let values = rows().flat_map(|row| row.values.iter().flatten().copied());
    let scale = (right - left) / values.fold(limit, f64::max).max(1e-300);
    svg.limit(left + limit * scale, top, words);
    let mut y = top;
    for (name, rows) in groups {
        svg.text(16.0, y + 14.0, "name", "start", name);
        y += 22.0;
        for row in rows {
            svg.text(left - 8.0, y + 14.0, "name", "end", &row.label);
            svg.path(&[(left, y + 10.0), (right, y + 10.0)], "axis");
            for (n, value) in row.values.iter().enumerate() {
                let Some(value) = value else { continue };
                let hint = format!("{name}, {} beside {}: {value:.3}", series[n], row.label);
                svg.dot((left + value * scale, y + 10.0), 5.0, &class(n), &hint);
                let at = right + FIGURE * (n + 1) as f64 + 8.0;
                svg.text(at, y + 14.0, &format!("in {}", class(n)), "end", &format!("{value:.2}"));
            }
            y += ROW;
        }
        y += 8.0;
    }
    svg
}

/// One curve of [`lines`].
#[derive(Clone, Debug)]
pub struct Curve {
    /// In the legend.
    pub label: String,
    /// In rising order of x, with a hint for each.
    pub points: Vec<(f64, f64, String)>,
    /// Its colour.
    pub class: String,
}

/// Curves over a logarithmic (base 2) or an evenly spaced horizontal axis, from 0 upwards.
pub fn lines(
    title: &str,
    x_name: &str,
    y_name: &str,
    ticks: &[(f64, String)],
    curves: &[Curve],
) -> Svg {
    const WIDTH: f64 = 860.0;
    let height = 350.0 + 20.0 * curves.len().div_ceil(3) as f64;
    let mut svg = Svg::new(title, WIDTH, height);
    svg.text(16.0, 26.0, "title", "start", title);
    let (left, right, top, bottom) = (76.0, WIDTH - 30.0, 58.0, 300.0);
    let xs = ticks.iter().map(|(x, _)| *x);
    let (low, high) = xs.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
    let span = if high > low { high - low } else { 1.0 };
    let inset = if high > low { 0.0 } else { 0.5 };
    let largest =
        curves.iter().flat_map(|c| &c.points).map(|p| p.1).fold(0.0, f64::max).max(1e-300);
    let step = 10_f64.powf(largest.log10().floor());
    let step = [0.2, 0.5, 1.0, 2.0].map(|f| f * step).into_iter().find(|s| largest / s <= 6.0);
    let step = step.unwrap_or(largest / 4.0);
    let roof = (largest / step).ceil() * step;
    let at = |x: f64, y: f64| {
        let x = left + ((x - low) / span + inset) * (right - left);
        (x, bottom - y / roof * (bottom - top))
    };
    for n in 0..=(roof / step).round() as usize {
        let y = at(low, n as f64 * step).1;
        svg.path(&[(left, y), (right, y)], "axis");
        let value = match n {
            0 => "0".to_owned(),
            _ => crate::bench::record::quantity(n as f64 * step, ""),
        };
        svg.text(left - 8.0, y + 4.0, "tick", "end", value.trim());
    }
    for (x, name) in ticks {
        svg.text(at(*x, 0.0).0, bottom + 20.0, "tick", "middle", name);
    }
    svg.text(left, top - 12.0, "axis-name", "start", y_name);
    svg.text((left + right) / 2.0, bottom + 40.0, "axis-name", "middle", x_name);
    for (n, curve) in curves.iter().enumerate() {
        let points: Vec<_> = curve.points.iter().map(|(x, y, _)| at(*x, *y)).collect();
        svg.path(&points, &format!("curve {}", curve.class));
        for (place, (_, _, hint)) in points.iter().zip(&curve.points) {
            svg.dot(*place, 4.0, &curve.class, &format!("{}: {hint}", curve.label));
        }
        let (x, y) = (left + (n % 3) as f64 * 258.0, bottom + 66.0 + (n / 3) as f64 * 20.0);
        svg.rect([x, y - 9.0, 18.0, 6.0], &curve.class, &curve.label);
        svg.text(x + 25.0, y, "name", "start", &curve.label);
    }
    svg
}

/// The colour of the `n`th thing.
pub fn class(n: usize) -> String {
    format!("s{}", n % 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_can_be_read_and_is_escaped() {
        let bar = Bar { label: "a<b".into(), value: 2.0, text: "2 ms".into(), class: class(0) };
        let svg = bars("Times", &[("GPT & co".into(), vec![bar])], Some((1.0, "peer"))).file();
        for word in ["a&lt;b", "GPT &amp; co", "2 ms", "peer", "prefers-color-scheme"] {
            assert!(svg.contains(word), "{word} in {svg}");
        }
    }

    #[test]
    fn every_value_is_a_dot_and_a_figure() {
        let row = Row { label: "peer".into(), values: vec![Some(0.5), None, Some(1.25)] };
        let series = ["a", "b", "c"].map(str::to_owned);
        let svg = dots("t", &series, &[("g".into(), vec![row])], (1.0, "peer")).inline();
        // Three in the legend.
        assert_eq!(svg.matches("<circle").count(), 3 + 2, "{svg}");
        assert!(svg.contains(">0.50<") && svg.contains(">1.25<") && svg.contains("in s2"), "{svg}");
    }

    #[test]
    fn one_point_is_drawn_within_the_frame() {
        let points = vec![(8.0, 5.0, "5".to_owned())];
        let curve = Curve { label: "one".into(), points, class: class(0) };
        let svg = lines("t", "x", "y", &[(8.0, "256".into())], &[curve]).inline();
        assert!(svg.contains("cx=\"453.0\"") && !svg.contains("NaN"), "{svg}");
    }
}
