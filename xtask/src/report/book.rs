//! The chapter of the book.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use crate::bench::record::quantity;

use super::charts::peers::{Pairs, first_groups, pairs, peer_name};
use super::charts::{Chart, memory_words};
use super::sources::{Sources, Step};

const INTRODUCTION: &str = "\
# Benchmark results

Made by `cargo xtask report --docs` from the files under `docs/results`. `cargo xtask report` alone writes the same with every case in sortable tables, as one HTML page that loads nothing: `target/report.html`.

How it is measured: `cargo xtask bench` runs every backend that is built in on every device that it finds, in three starts of one program, as processes of one build differ by up to a tenth in where they find their memory. Cases of one group are interleaved, round by round, so that whatever else the machine does falls on all of them; times are medians, ± half the distance of the quartiles. A case's limit is the larger of the times that its arithmetic and its memory traffic need at the peak rates that were measured just before; programs of several ops add the limits of their ops. Records say the machine, the commit and the load, and are never overwritten. `cargo xtask bench --compare last` prints ratios to an earlier record of the same machine with their 99 % intervals, over starts and samples, and exits 1 if one is slower beyond it and beyond `--tolerance`.

Peers are programs of ours under `benches/peers`; each says why if it cannot run.
";

/// The whole page.
pub fn chapter(sources: &Sources, charts: &[Chart]) -> String {
    let mut text = INTRODUCTION.to_owned();
    for record in sources.newest() {
        let load = record.machine.load.unwrap_or(f64::NAN);
        let _ = writeln!(
            text,
            "\n## {}\n\nCommit {}, {}, {}; load before {load:.1}.\n",
            record.machine.words(),
            record.commit,
            record.date,
            record.rustc
        );
        text += "| measured together | case | backend | median | ± | rate | of the limit |\n";
        text += "| --- | --- | --- | --- | --- | --- | --- |\n";
        for case in &record.cases {
            let share = case.of_limit();
            let share = share.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.3} ms | {:.1} % | {}/s | {share} |",
                case.group,
                case.case,
                case.backend,
                case.median_ms(),
                100.0 * crate::bench::spread(&case.times_ms),
                quantity(case.rate(), &case.unit),
            );
        }
    }
    let pairs = pairs(sources);
    if !pairs.is_empty() {
        text +=
            "\n## Beside peers\n\nStep time over the peer's in the same run; below 1 is faster.\n";
    }
    for Pairs { group, own, peers } in pairs {
        let names: Vec<&str> = own.iter().map(|step| step.name.as_str()).collect();
        let _ = writeln!(text, "\n### {}\n\n| peer | {} |", group.name, names.join(" | "));
        let _ = writeln!(text, "| --- |{}", " --- |".repeat(names.len()));
        for (peer, ratios) in peers {
            let ratio = |ratio: &Option<f64>| ratio.map_or("–".into(), |r| format!("{r:.2}"));
            let ratios: Vec<String> = ratios.iter().map(ratio).collect();
            let _ = writeln!(text, "| {} | {} |", peer_name(peer), ratios.join(" | "));
        }
    }
    for chart in charts {
        let (title, name, note) = (&chart.svg.title, &chart.name, chart.note);
        let _ = write!(text, "\n## {title}\n\n![{title}](images/bench/{name}.svg)\n\n{note}\n");
    }
    text
}

/// Where the README has its table.
const MARKS: [&str; 2] =
    ["<!-- results: cargo xtask report --docs -->\n", "<!-- end of results -->"];

/// The README with the table of today's results, all contenders of one run each.
///
/// # Errors
/// If the README has no place for it.
pub fn readme(old: &str, sources: &Sources) -> Result<String> {
    let place = || old.split_once(MARKS[0]).zip(old.split_once(MARKS[1]));
    let ((before, _), (_, after)) = place().context("README.md has no marks of results")?;
    let mut table = String::new();
    for Pairs { group, .. } in first_groups(sources) {
        let mut steps: Vec<&Step> = group.steps.clone();
        steps.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        let _ = writeln!(table, "\n| {} | ms a step | memory |", group.name);
        table += "| --- | ---: | ---: |\n";
        for step in steps {
            let name = peer_name(step);
            let name = if step.is_peer { name.to_owned() } else { format!("**{name}**") };
            let memory = step.memory_bytes.map_or("–".into(), memory_words);
            let _ = writeln!(table, "| {name} | {:.1} | {memory} |", step.ms);
        }
        let source = group.steps.first().map_or("", |step| &step.source);
        let file = source.rsplit_once("docs/results/").map_or(source, |(_, file)| file);
        let _ = writeln!(table, "\nFrom [{file}](docs/results/{file}).");
    }
    Ok(format!("{before}{}{table}\n{}{after}", MARKS[0], MARKS[1]))
}
