//! The chapter of the book.

use std::fmt::Write as _;

use crate::bench::record::quantity;

use super::charts::{Chart, ratios};
use super::sources::Sources;

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
    let pairs = ratios(sources);
    if !pairs.is_empty() {
        text += "\n## Beside peers\n\nStep time over the peer's; below 1 is faster.\n\n";
        text += "| measured together | ours over the peer | ratio |\n| --- | --- | --- |\n";
        for (group, pairs) in pairs {
            for (name, ratio) in pairs {
                let _ = writeln!(text, "| {group} | {name} | {ratio:.2} |");
            }
        }
    }
    for chart in charts {
        let (title, name, note) = (&chart.svg.title, chart.name, chart.note);
        let _ = write!(text, "\n## {title}\n\n![{title}](images/bench/{name}.svg)\n\n{note}\n");
    }
    text
}
