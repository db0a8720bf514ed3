//! The page: one file that loads nothing.

use std::fmt::Write as _;

use crate::bench::record::quantity;
use crate::svg;

use super::charts::peers::{Pairs, pairs, peer_name};
use super::charts::{Chart, cell};
use super::sources::Sources;

/// Sortable tables in the page.
pub const TABLES: usize = 4;

/// The pages of `onesigma numerics` begin alike.
const HEAD: &str = include_str!("../../../crates/onesigma/src/numerics/page/head.html");
const STYLE: &str = include_str!("../../../crates/onesigma/src/numerics/page/style.css");

/// A cell: what is shown and, for numbers, what is sorted by.
enum Cell {
    Text(String),
    Number(String, f64),
}

fn text(words: &str) -> Cell {
    Cell::Text(words.into())
}

fn number(value: f64, digits: usize) -> Cell {
    Cell::Number(format!("{value:.digits$}"), value)
}

/// The whole page.
pub fn html(sources: &Sources, charts: &[Chart]) -> String {
    let figures: String = charts
        .iter()
        .map(|chart| {
            let (name, svg, note) = (&chart.name, chart.svg.inline(), cell(chart.note));
            format!(
                "<section class=\"panel\" id=\"{name}\"><div class=\"scroll\">{svg}</div>\
                 <p class=\"hint\">{note}</p></section>\n"
            )
        })
        .collect();
    let links: String = charts
        .iter()
        .map(|chart| format!("<a href=\"#{}\">{}</a>", chart.name, cell(&chart.svg.title)))
        .collect();
    include_str!("page/page.html")
        .replace("{{head}}", HEAD)
        .replace("{{title}}", "Onesigma benchmarks")
        .replace("{{skip}}", "#main")
        .replace("{{skip_words}}", "Skip to the charts")
        .replace("{{brand}}", "benchmarks")
        .replace("{{heading}}", "How fast, beside whom, and how near to the limit")
        .replace("{{style}}", &[STYLE, svg::COMMON, include_str!("page/style.css")].join("\n"))
        .replace("{{script}}", include_str!("page/main.js"))
        .replace("{{machines}}", &machines(sources))
        .replace("{{links}}", &links)
        .replace("{{figures}}", &figures)
        .replace("{{tables}}", &tables(sources))
}

/// A line for each record that counts, newest first.
fn machines(sources: &Sources) -> String {
    let lines = sources.newest().into_iter().map(|record| {
        let devices = record.devices.iter().map(|d| format!("{} on {}", d.backend, d.device));
        let devices: Vec<String> = devices.collect();
        format!(
            "<li><b>{}</b>: {}; {}; commit {}, {}; {}; load {:.1}</li>",
            cell(&record.machine.words()),
            cell(&record.machine.features.join(" ")),
            cell(&devices.join("; ")),
            cell(&record.commit),
            cell(&record.date),
            cell(&record.rustc),
            record.machine.load.unwrap_or(f64::NAN),
        )
    });
    lines.collect()
}

fn tables(sources: &Sources) -> String {
    let cases = sources.newest().into_iter().flat_map(|record| {
        record.cases.iter().map(move |case| {
            let spread = crate::bench::spread(&case.times_ms);
            let share = case.of_limit();
            vec![
                text(&case.suite),
                text(&case.group),
                text(&case.case),
                text(&case.backend),
                number(case.median_ms(), 4),
                number(100.0 * spread, 1),
                Cell::Number(format!("{}/s", quantity(case.rate(), &case.unit)), case.rate()),
                match share {
                    Some(share) => number(100.0 * share, 1),
                    None => Cell::Number("–".into(), -1.0),
                },
                text(&record.machine.words()),
            ]
        })
    });
    let steps = sources.steps.iter().map(|step| {
        let file = step.source.rsplit("docs/").next().unwrap_or(&step.source);
        vec![
            text(&step.name),
            text(&step.model),
            text(&step.device),
            number(step.ms, 3),
            number(step.tokens / step.ms * 1e3, 0),
            match step.memory_bytes {
                Some(bytes) => number(bytes / f64::from(1 << 20), 1),
                None => Cell::Number("–".into(), -1.0),
            },
            text(file),
        ]
    });
    let pairs = pairs(sources);
    let pairs = pairs.iter().flat_map(|Pairs { group, own, peers }| {
        peers.iter().flat_map(move |(peer, ratios)| {
            own.iter().zip(ratios).filter_map(move |(own, ratio)| {
                let peer = text(peer_name(peer));
                Some(vec![text(&own.name), peer, number((*ratio)?, 3), text(&group.name)])
            })
        })
    });
    let products = sources.products.iter().map(|product| {
        vec![
            text(&product.sizes),
            text(&product.operands),
            Cell::Number(format!("{}/s", quantity(product.rate, "FLOP")), product.rate),
            match product.of_limit {
                Some(share) => number(share, 2),
                None => Cell::Number("–".into(), -1.0),
            },
            text(&product.device),
        ]
    });
    let columns = [
        "Suite",
        "Measured together",
        "Case",
        "Backend",
        "Median, ms",
        "± %",
        "Rate",
        "% of the limit",
        "Machine",
    ];
    table("cases", "Every case of the newest records", &columns, cases.collect())
        + &table(
            "steps",
            "Training steps, ours and peers’",
            &["Step", "Model", "Device", "Median, ms", "Tokens/s", "Memory, MiB", "From"],
            steps.collect(),
        )
        + &table(
            "products",
            "Matrix products",
            &["Sizes, m x k x n", "Operands", "Rate", "Over f32 FMA", "Device"],
            products.collect(),
        )
        + &table(
            "ratios",
            "Step time over the peer’s",
            &["Ours", "Peer", "Ratio", "Measured together"],
            pairs.collect(),
        )
}

fn table(id: &str, title: &str, columns: &[&str], rows: Vec<Vec<Cell>>) -> String {
    let mut html = format!(
        "<section class=\"panel\"><h2>{title} <small>{} rows</small></h2><div class=\"scroll\">\
         <table class=\"risk sortable\" id=\"{id}\"><thead><tr>",
        rows.len()
    );
    for column in columns {
        let _ = write!(html, "<th scope=\"col\"><button type=\"button\">{column}</button></th>");
    }
    html += "</tr></thead><tbody>";
    for row in rows {
        html += "<tr>";
        for one in row {
            let _ = match one {
                Cell::Text(words) => write!(html, "<td>{}</td>", cell(&words)),
                Cell::Number(words, value) => {
                    write!(html, "<td class=\"n\" data-value=\"{value}\">{}</td>", cell(&words))
                }
            };
        }
        html += "</tr>\n";
    }
    html + "</tbody></table></div></section>\n"
}
