//! The charts of the report.

use std::collections::BTreeMap;

use crate::bench::record::{Case, Record, quantity};
use crate::svg::{self, Bar, Curve, Svg, bars, class, lines};

use super::sources::{Group, Sources, Step, machine, without_machine};

pub mod peers;
mod products;

/// A chart with what has to be said about it.
#[derive(Debug)]
pub struct Chart {
    /// Its file name, and its anchor in the page.
    pub name: String,
    /// One sentence below it.
    pub note: &'static str,
    /// The drawing.
    pub svg: Svg,
}

/// Those that there is something to draw for.
pub fn all(sources: &Sources) -> Vec<Chart> {
    let mut charts = Vec::from_iter(peers::summary(sources));
    charts.extend(throughput(sources));
    charts.extend(peers::peers(sources));
    charts.extend(limit(sources));
    charts.extend(products::products(sources));
    charts.extend(scaling(sources));
    charts.extend(products::growth(sources));
    charts.extend(memory(sources));
    charts.extend(history(sources));
    charts
}

fn chart(name: &str, note: &'static str, svg: Svg) -> Option<Chart> {
    Some(Chart { name: name.into(), note, svg })
}

/// Rows of a chart that can still be read in one look.
const ROWS: usize = 44;

/// What belongs to a machine, in parts of at most [`ROWS`] rows; `draw` gets the words for the end of
/// the title.
fn by_machine<T>(
    (name, note): (&str, &'static str),
    groups: Vec<(String, String, Vec<T>)>,
    draw: impl Fn(&str, &[(String, Vec<T>)]) -> Svg,
) -> Vec<Chart> {
    let mut machines: Vec<(String, Vec<Vec<(String, Vec<T>)>>)> = Vec::new();
    for (machine, group, rows) in groups {
        if !machines.iter().any(|(other, _)| *other == machine) {
            machines.push((machine.clone(), vec![Vec::new()]));
        }
        let Some((_, parts)) = machines.iter_mut().find(|(other, _)| *other == machine) else {
            continue;
        };
        let last = parts.last().map_or(0, |part| part.iter().map(|(_, rows)| rows.len()).sum());
        if last > 0 && last + rows.len() > ROWS {
            parts.push(Vec::new());
        }
        if let Some(part) = parts.last_mut() {
            part.push((group, rows));
        }
    }
    let mut charts = Vec::new();
    for (machine, parts) in machines {
        for (n, part) in parts.iter().enumerate() {
            let (end, mut name) = (format!(": {machine}"), format!("{name}-{}", slug(&machine)));
            let end = match parts.len() {
                1 => end,
                count => {
                    name = format!("{name}-{}", n + 1);
                    format!("{end} ({} of {count})", n + 1)
                }
            };
            charts.push(Chart { name, note, svg: draw(&end, part) });
        }
    }
    charts
}

/// Letters and digits in lower case, with dashes for what is between them.
fn slug(words: &str) -> String {
    let words = words.to_lowercase();
    let parts = words.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-")
}

/// For each group a bar for each step that `value` knows something about, given all of its group.
fn step_bars(
    sources: &Sources,
    value: impl Fn(&Step, &[&Step]) -> Option<(f64, String)>,
) -> Vec<(String, String, Vec<Bar>)> {
    let groups = sources.groups();
    let drawn = groups.iter().map(|Group { name, machine, steps }| {
        let drawn = steps.iter().filter_map(|step| {
            let (value, text) = value(step, steps)?;
            let class = if step.is_peer { "peer".into() } else { class(0) };
            Some(Bar { label: step.name.clone(), value, text, class })
        });
        let name = without_machine(name, machine).to_owned();
        ((*machine).to_owned(), name, drawn.collect::<Vec<_>>())
    });
    drawn.filter(|(_, _, bars)| !bars.is_empty()).collect()
}

/// Tokens a second would put an H200 beside two cores: within a group, the best is 1.
fn throughput(sources: &Sources) -> Vec<Chart> {
    let rate = |step: &Step| step.tokens / step.ms;
    let groups = step_bars(sources, |step, all| {
        let best = all.iter().map(|other| rate(other)).fold(0.0, f64::max);
        Some((rate(step) / best, format!("{}/s", quantity(rate(step) * 1e3, "tokens"))))
    });
    let note = "Training throughput. Bars are relative to the fastest of their group; grey bars are peers.";
    by_machine(("throughput", note), groups, |end, groups| {
        bars(&format!("Training throughput{end}"), groups, None)
    })
}

fn limit(sources: &Sources) -> Vec<Chart> {
    let mut groups: Vec<(String, String, Vec<Bar>)> = Vec::new();
    let mut add = |device: &str, group: &str, bar: Bar| {
        let machine = machine(device);
        match groups.iter_mut().find(|(m, n, _)| m == machine && n == group) {
            Some((_, _, bars)) => bars.push(bar),
            None => groups.push((machine.into(), group.into(), vec![bar])),
        }
    };
    for record in sources.newest() {
        for case in &record.cases {
            let Some(share) = case.of_limit() else { continue };
            let label = format!("{} ({})", case.case, case.backend);
            let text = format!("{:.0} %", 100.0 * share);
            let suite = ["codec", "gemm", "kernel", "layer", "step"];
            let class = class(suite.iter().position(|one| *one == case.suite).unwrap_or(5));
            add(&record.machine.words(), &case.group, Bar { label, value: share, text, class });
        }
    }
    for share in &sources.shares {
        let text = format!("{:.0} %", 100.0 * share.share);
        let bar = Bar { label: share.name.clone(), value: share.share, text, class: class(1) };
        let group = format!("{}, share of the {}", share.device, share.limit);
        add(&share.device, without_machine(&group, machine(&share.device)), bar);
    }
    let note = "Share of the physical limit: the larger of the times that arithmetic and memory \
                traffic need at the peak rates measured in the same run, over the time taken.";
    by_machine(("limit", note), groups, |end, groups| {
        bars(&format!("Share of the physical limit{end}"), groups, Some((1.0, "limit")))
    })
}

fn scaling(sources: &Sources) -> Option<Chart> {
    let newest = sources.newest();
    let mut curves: BTreeMap<String, Vec<(f64, f64, String)>> = BTreeMap::new();
    let mut widths: Vec<usize> = Vec::new();
    let with_width = |record: &Record| -> Vec<Case> {
        record.cases.iter().filter(|c| c.suite == "layer" && c.width.is_some()).cloned().collect()
    };
    for record in &newest {
        for case in with_width(record) {
            let width = case.width.unwrap_or(1);
            // Forward and two products backward, 4 width² each: work grows as width squared.
            let rate = case.rate() * 24.0 * (width as f64).powi(2);
            let hint = format!("width {width}, {}/s", quantity(rate, "FLOP"));
            let label = format!("{} ({})", case.case, case.backend);
            curves.entry(label).or_default().push(((width as f64).log2(), rate, hint));
            widths.push(width);
        }
    }
    widths.sort_unstable();
    widths.dedup();
    (widths.len() > 1).then_some(())?;
    let ticks: Vec<_> = widths.iter().map(|w| ((*w as f64).log2(), w.to_string())).collect();
    chart(
        "scaling",
        "A linear layer from width to four times the width, forward and backward, 2048 tokens.",
        lines(
            "Arithmetic rate by width",
            "width of the layer",
            "FLOP/s",
            &ticks,
            &coloured(curves),
        ),
    )
}

fn memory(sources: &Sources) -> Vec<Chart> {
    let groups = step_bars(sources, |step, all| {
        let most = all.iter().filter_map(|other| other.memory_bytes).fold(0.0, f64::max);
        let bytes = step.memory_bytes?;
        Some((bytes / most, memory_words(bytes)))
    });
    let note = "Memory of a training step. On a processor the peak resident memory of the process, \
                ours and peers'; on a GPU what ours allocates and the peak that peers report; in \
                records ours as planned. Bars are relative to the largest of their group.";
    by_machine(("memory", note), groups, |end, groups| {
        bars(&format!("Memory of a training step{end}"), groups, None)
    })
}

/// Bytes as people read them.
pub fn memory_words(bytes: f64) -> String {
    match bytes / f64::from(1 << 20) {
        big if big > 4096.0 => format!("{:.1} GiB", big / 1024.0),
        small => format!("{small:.1} MiB"),
    }
}

/// Curves by name, each in a colour of its own.
fn coloured<L: Into<String>>(curves: BTreeMap<L, Vec<(f64, f64, String)>>) -> Vec<Curve> {
    let curves = curves.into_iter().enumerate();
    curves
        .map(|(n, (label, points))| Curve { label: label.into(), points, class: class(n) })
        .collect()
}

fn history(sources: &Sources) -> Option<Chart> {
    let newest = *sources.newest().first()?;
    let like: Vec<&Record> =
        sources.records.iter().filter(|r| r.machine.is_like(&newest.machine)).collect();
    let mut curves: BTreeMap<String, Vec<(f64, f64, String)>> = BTreeMap::new();
    for (at, record) in like.iter().enumerate() {
        for case in record.cases.iter().filter(|c| c.suite == "step" && c.width == Some(256)) {
            let rate = case.rate();
            let day = record.date.get(..10).unwrap_or(&record.date);
            let hint = format!("{day}, {}: {}/s", record.commit, quantity(rate, "tokens"));
            let label = format!("{} ({})", case.case, case.backend);
            curves.entry(label).or_default().push((at as f64, rate, hint));
        }
    }
    (!curves.is_empty()).then_some(())?;
    let ticks: Vec<_> = like
        .iter()
        .enumerate()
        .map(|(at, record)| (at as f64, record.commit.chars().take(7).collect()))
        .collect();
    chart(
        "history",
        "Training throughput of the GPT of width 256, one point a record of this machine.",
        lines("History", "commit", "tokens/s", &ticks, &coloured(curves)),
    )
}

/// For tables in pages.
pub fn cell(text: &str) -> String {
    svg::escape(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_that_would_be_long_is_drawn_in_parts() {
        let group = |machine: &str, n: usize, rows: usize| {
            (machine.to_owned(), format!("group {n}"), vec![(); rows])
        };
        let groups = vec![
            group("A, B", 0, 30),
            group("C", 0, 3),
            group("A, B", 1, 14),
            group("A, B", 2, 1),
            group("C", 1, 100),
        ];
        let charts = by_machine(("x", ""), groups, |end, part: &[(String, Vec<()>)]| {
            Svg::new(&format!("T{end}"), 1.0, part.len() as f64)
        });
        let found: Vec<_> =
            charts.iter().map(|c| (c.name.as_str(), c.svg.title.as_str(), c.svg.height)).collect();
        assert_eq!(
            found,
            [
                ("x-a-b-1", "T: A, B (1 of 2)", 2.0),
                ("x-a-b-2", "T: A, B (2 of 2)", 1.0),
                ("x-c-1", "T: C (1 of 2)", 1.0),
                ("x-c-2", "T: C (2 of 2)", 1.0),
            ]
        );
    }
}
