//! Our steps beside those of peers that were measured in the same run.

use crate::svg::{Bar, Row, bars, class, dots};

use super::{Chart, by_machine, chart};
use crate::report::sources::{Group, Sources, Step, without_machine};

/// A group that has steps of ours and of peers.
pub struct Pairs<'a> {
    /// The group.
    pub group: Group<'a>,
    /// Our steps.
    pub own: Vec<&'a Step>,
    /// Peers, each with the ratio of each of our times to its own where the two are comparable.
    pub peers: Vec<(&'a Step, Vec<Option<f64>>)>,
}

/// A peer's name without the recipe that it was timed beside.
pub fn peer_name(step: &Step) -> &str {
    step.name.split(", beside").next().unwrap_or(&step.name)
}

/// Every group with both.
pub fn pairs(sources: &Sources) -> Vec<Pairs<'_>> {
    let mut found = Vec::new();
    for group in sources.groups() {
        let (peers, own): (Vec<&Step>, Vec<&Step>) = group.steps.iter().partition(|s| s.is_peer);
        if peers.is_empty() || own.is_empty() {
            continue;
        }
        let ratios = |peer: &Step| -> Vec<Option<f64>> {
            // A peer that was timed beside one recipe is held against that alone.
            let beside = peer.name.split_once(", beside ").map(|(_, recipe)| recipe);
            let is_comparable = |step: &Step| beside.is_none_or(|r| step.name.starts_with(r));
            own.iter().map(|step| is_comparable(step).then(|| step.ms / peer.ms)).collect()
        };
        let peers = peers.into_iter().map(|peer| (peer, ratios(peer))).collect();
        found.push(Pairs { group, own, peers });
    }
    found
}

const NOTE: &str = "Step time over the peer's in the same run: below 1 is faster.";

/// Every pair, a row for each peer and a dot for each recipe of ours.
pub fn peers(sources: &Sources) -> Vec<Chart> {
    let pairs = pairs(sources);
    let groups = pairs.iter().map(|Pairs { group, own, peers }| {
        let series = |ratios: &[Option<f64>]| -> Vec<(String, f64)> {
            let named = own.iter().zip(ratios);
            named.filter_map(|(own, ratio)| Some((own.name.clone(), (*ratio)?))).collect()
        };
        let rows = peers.iter().map(|(peer, ratios)| (peer_name(peer).to_owned(), series(ratios)));
        let name = without_machine(&group.name, group.machine).to_owned();
        (group.machine.to_owned(), name, rows.collect())
    });
    by_machine(("peers", NOTE), groups.collect(), |end, groups| {
        // Each recipe has one colour in the whole chart.
        let mut series: Vec<String> = Vec::new();
        let names = groups.iter().flat_map(|(_, rows)| rows).flat_map(|(_, ratios)| ratios);
        for (name, _) in names {
            if !series.contains(name) {
                series.push(name.clone());
            }
        }
        let row = |(label, ratios): &(String, Vec<(String, f64)>)| {
            let of = |name: &String| ratios.iter().find(|(own, _)| own == name).map(|(_, r)| *r);
            Row { label: label.clone(), values: series.iter().map(of).collect() }
        };
        let groups: Vec<(String, Vec<Row>)> = groups
            .iter()
            .map(|(name, rows)| (name.clone(), rows.iter().map(row).collect()))
            .collect();
        dots(&format!("Step time beside each peer's{end}"), &series, &groups, (1.0, "peer"))
    })
}

/// The recipe that the summary is about.
const RECIPE: &str = "unit-fp8 (";

/// The first group of each machine and backend of ours, in the order of the results.
pub fn first_groups(sources: &Sources) -> Vec<Pairs<'_>> {
    let mut seen: Vec<(String, String)> = Vec::new();
    let mut found = Vec::new();
    for pairs in pairs(sources) {
        let Some(own) = pairs.own.iter().find(|step| step.name.starts_with(RECIPE)) else {
            continue;
        };
        let key = (pairs.group.machine.to_owned(), own.name.clone());
        if !seen.contains(&key) {
            seen.push(key);
            found.push(pairs);
        }
    }
    found
}

/// FP8 beside everybody, one group for each machine and backend: the picture of the README.
pub fn summary(sources: &Sources) -> Option<Chart> {
    let groups = first_groups(sources).into_iter().map(|Pairs { group, own, peers }| {
        let at = own.iter().position(|step| step.name.starts_with(RECIPE)).unwrap_or(0);
        let bars = peers.iter().filter_map(|(peer, ratios)| {
            let value = ratios[at]?;
            let class = class(if value < 1.0 { 2 } else { 1 });
            Some(Bar { label: peer_name(peer).into(), value, text: format!("{value:.2}"), class })
        });
        (format!("{}, {}", own[at].name, group.name), bars.collect())
    });
    let groups: Vec<(String, Vec<Bar>)> = groups.collect();
    (!groups.is_empty()).then_some(())?;
    let title = "Training step in FP8: time over each peer's";
    chart("peers", NOTE, bars(title, &groups, Some((1.0, "peer"))))
}
