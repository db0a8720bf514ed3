//! Matrix products by operands, and training steps that grow.

use std::collections::BTreeMap;

use crate::bench::record::quantity;
use crate::svg::{Bar, bars, class, lines};

use super::{Chart, by_machine, chart, coloured};
use crate::report::sources::{Growth, Product, Sources, machine, without_machine};

/// Cases that stand for the others in the chart; the table has all.
const DRAWN: [&str; 3] = ["square", "up forward:", "one token"];

/// Rates by operands, in one group for each device and size.
pub fn products(sources: &Sources) -> Vec<Chart> {
    let mut groups: Vec<((&str, String), Vec<&Product>)> = Vec::new();
    for product in &sources.products {
        if !DRAWN.iter().any(|name| product.sizes.starts_with(name)) {
            continue;
        }
        let machine = machine(&product.device);
        let device = without_machine(&product.device, machine);
        let comma = if device.is_empty() { "" } else { ", " };
        let name = (machine, format!("{device}{comma}{}", product.sizes));
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, own)) => own.push(product),
            None => groups.push((name, vec![product])),
        }
    }
    let drawn = groups
        .into_iter()
        .map(|((machine, name), own)| {
            let most = own.iter().map(|product| product.rate).fold(0.0, f64::max);
            let bar = |product: &Product| {
                let rate = format!("{}/s", quantity(product.rate, "FLOP"));
                Bar {
                    label: product.operands.clone(),
                    value: product.rate / most,
                    text: match product.of_limit {
                        Some(share) => format!("{rate}, {share:.2} of FMA"),
                        None => rate,
                    },
                    class: match product.operands.contains("crate") {
                        true => "peer".into(),
                        false => class(0),
                    },
                }
            };
            (machine.to_owned(), name, own.into_iter().map(bar).collect())
        })
        .collect();
    let note = "Matrix products (m x k x n), relative to the fastest of their group. On a processor \
                beside the rate of independent f32 multiply-adds in the same run, which narrow \
                operands can pass; grey bars are peers.";
    by_machine(("products", note), drawn, |end, groups| {
        bars(&format!("Matrix products by operands{end}"), groups, None)
    })
}

/// A chart for each series in which one size grows.
pub fn growth(sources: &Sources) -> Vec<Chart> {
    const SERIES: [(&str, &str, &str, &str); 3] = [
        ("width", "growth-width", "Training step as it grows wider", "width"),
        ("depth", "growth-depth", "Training step as it grows deeper", "layers"),
        ("sequence", "growth-sequence", "Training step over longer sequences", "tokens"),
    ];
    let drawn = SERIES.into_iter().filter_map(|(series, name, title, x)| {
        let own: Vec<&Growth> = sources.growth.iter().filter(|one| one.series == series).collect();
        let mut curves: BTreeMap<&str, Vec<(f64, f64, String)>> = BTreeMap::new();
        let mut places: Vec<f64> = Vec::new();
        for one in own {
            let hint =
                format!("{} {x}: {}/s, {:.2} ms", one.at, quantity(one.rate, "FLOP"), one.ms);
            curves.entry(&one.device).or_default().push((one.at.log2(), one.rate, hint));
            places.push(one.at);
        }
        places.sort_by(f64::total_cmp);
        places.dedup();
        (places.len() > 1).then_some(())?;
        let ticks: Vec<_> = places.iter().map(|at| (at.log2(), at.to_string())).collect();
        chart(
            name,
            "A step of unit-fp8: a level line means that the time grows as the operations do.",
            lines(title, x, "FLOP/s", &ticks, &coloured(curves)),
        )
    });
    drawn.collect()
}
