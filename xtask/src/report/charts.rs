//! The charts of the report.

use std::collections::BTreeMap;

use crate::bench::record::{Case, Record, quantity};
use crate::svg::{self, Bar, Curve, Svg, bars, class, lines};

use super::sources::{Sources, Step};

mod products;

/// A chart with what has to be said about it.
#[derive(Debug)]
pub struct Chart {
    /// Its file name, and its anchor in the page.
    pub name: &'static str,
    /// One sentence below it.
    pub note: &'static str,
    /// The drawing.
    pub svg: Svg,
}

/// Those that there is something to draw for.
pub fn all(sources: &Sources) -> Vec<Chart> {
    [
        throughput(sources),
        peers(sources),
        limit(sources),
        products::products(sources),
        scaling(sources),
    ]
    .into_iter()
    .flatten()
    .chain(products::growth(sources))
    .chain(memory(sources))
    .chain(history(sources))
    .collect()
}

fn chart(name: &'static str, note: &'static str, svg: Svg) -> Option<Chart> {
    Some(Chart { name, note, svg })
}

/// Groups with a bar for each step that `value` knows something about.
fn step_bars(
    groups: &[(String, Vec<&Step>)],
    value: impl Fn(&Step) -> Option<(f64, String)>,
) -> Vec<(String, Vec<Bar>)> {
    let drawn = groups.iter().map(|(name, steps)| {
        let drawn = steps.iter().filter_map(|step| {
            let (value, text) = value(step)?;
            let class = if step.is_peer { "peer".into() } else { class(0) };
            Some(Bar { label: step.name.clone(), value, text, class })
        });
        (name.clone(), drawn.collect::<Vec<_>>())
    });
    drawn.filter(|(_, bars)| !bars.is_empty()).collect()
}

/// Tokens a second would put an H200 beside two cores: within a group, the best is 1.
fn throughput(sources: &Sources) -> Option<Chart> {
    let groups = sources.groups();
    let best = |steps: &[&Step]| steps.iter().map(|s| s.tokens / s.ms).fold(0.0, f64::max);
    let drawn: Vec<_> = groups
        .iter()
        .flat_map(|group| {
            let best = best(&group.1);
            step_bars(std::slice::from_ref(group), |step| {
                let rate = step.tokens / step.ms;
                Some((rate / best, format!("{}/s", quantity(rate * 1e3, "tokens"))))
            })
        })
        .collect();
    (!drawn.is_empty()).then_some(())?;
    chart(
        "throughput",
        "Training throughput. Bars are relative to the fastest of their group; grey bars are peers.",
        bars("Training throughput by backend and recipe", &drawn, None),
    )
}

/// Times of peers over ours, in groups that have both.
pub fn ratios(sources: &Sources) -> Vec<(String, Vec<(String, f64)>)> {
    let mut found = Vec::new();
    for (name, steps) in sources.groups() {
        let (peers, own): (Vec<&Step>, Vec<&Step>) = steps.into_iter().partition(|s| s.is_peer);
        let mut pairs = Vec::new();
        for step in &own {
            for peer in &peers {
                // A peer that was timed beside one recipe is held against that alone.
                let beside = peer.name.split_once(", beside ").map(|(_, recipe)| recipe);
                if beside.is_none_or(|recipe| step.name.starts_with(recipe)) {
                    let peer_name = peer.name.split(", beside").next().unwrap_or(&peer.name);
                    pairs.push((format!("{} over {peer_name}", step.name), step.ms / peer.ms));
                }
            }
        }
        if !pairs.is_empty() {
            found.push((name, pairs));
        }
    }
    found
}

fn peers(sources: &Sources) -> Option<Chart> {
    let groups: Vec<(String, Vec<Bar>)> = ratios(sources)
        .into_iter()
        .map(|(name, pairs)| {
            let bar = |(label, value): (String, f64)| Bar {
                label,
                value,
                text: format!("{value:.2}"),
                class: class(if value < 1.0 { 2 } else { 1 }),
            };
            (name, pairs.into_iter().map(bar).collect())
        })
        .collect();
    (!groups.is_empty()).then_some(())?;
    chart(
        "peers",
        "Step time over the peer's in the same run: below 1 is faster.",
        bars("Step time, ratio to each peer", &groups, Some((1.0, "peer"))),
    )
}

fn limit(sources: &Sources) -> Option<Chart> {
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    for record in sources.newest() {
        let mut add = |group: String, bar: Bar| match groups.iter_mut().find(|(n, _)| *n == group) {
            Some((_, bars)) => bars.push(bar),
            None => groups.push((group, vec![bar])),
        };
        for case in &record.cases {
            let Some(share) = case.of_limit() else { continue };
            let label = format!("{} ({})", case.case, case.backend);
            let text = format!("{:.0} %", 100.0 * share);
            let suite = ["codec", "gemm", "kernel", "layer", "step"];
            let class = class(suite.iter().position(|one| *one == case.suite).unwrap_or(5));
            add(case.group.clone(), Bar { label, value: share, text, class });
        }
    }
    for share in &sources.shares {
        let label = format!("{}, of the {}", share.name, share.limit);
        let bar = Bar {
            label,
            value: share.share,
            text: format!("{:.0} %", 100.0 * share.share),
            class: class(1),
        };
        match groups.iter_mut().find(|(name, _)| *name == share.device) {
            Some((_, bars)) => bars.push(bar),
            None => groups.push((share.device.clone(), vec![bar])),
        }
    }
    (!groups.is_empty()).then_some(())?;
    chart(
        "limit",
        "Share of the physical limit: the larger of the times that arithmetic and memory traffic \
         need at the peak rates measured in the same run, over the time taken.",
        bars("Share of the physical limit", &groups, Some((1.0, "limit"))),
    )
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
    let curves: Vec<Curve> = curves
        .into_iter()
        .enumerate()
        .map(|(n, (label, points))| Curve { label, points, class: class(n) })
        .collect();
    chart(
        "scaling",
        "A linear layer from width to four times the width, forward and backward, 2048 tokens.",
        lines("Arithmetic rate by width", "width of the layer", "FLOP/s", &ticks, &curves),
    )
}

fn memory(sources: &Sources) -> Option<Chart> {
    let groups: Vec<_> = sources
        .groups()
        .iter()
        .flat_map(|group| {
            let most = group.1.iter().filter_map(|s| s.memory_bytes).fold(0.0, f64::max);
            step_bars(std::slice::from_ref(group), |step| {
                let bytes = step.memory_bytes?;
                let mebibytes = bytes / f64::from(1 << 20);
                let text = match mebibytes {
                    big if big > 4096.0 => format!("{:.1} GiB", big / 1024.0),
                    small => format!("{small:.1} MiB"),
                };
                Some((bytes / most, text))
            })
        })
        .collect();
    (!groups.is_empty()).then_some(())?;
    chart(
        "memory",
        "Memory of a training step. On a processor the peak resident memory of the process, ours and \
         peers'; on a GPU what ours allocates and the peak that peers report; in records ours as \
         planned. Bars are relative to the largest of their group.",
        bars("Memory of a training step", &groups, None),
    )
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
    let curves: Vec<Curve> = curves
        .into_iter()
        .enumerate()
        .map(|(n, (label, points))| Curve { label, points, class: class(n) })
        .collect();
    chart(
        "history",
        "Training throughput of the GPT of width 256, one point a record of this machine.",
        lines("History", "commit", "tokens/s", &ticks, &curves),
    )
}

/// For tables in pages.
pub fn cell(text: &str) -> String {
    svg::escape(text)
}
