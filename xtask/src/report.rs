//! `cargo xtask report`: every recorded result on one page, and pictures for README and book.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::root;

mod book;
mod charts;
mod page;
mod png;
mod sources;

use charts::Chart;
use sources::Sources;

/// Arguments of `cargo xtask report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Takes in what `cargo xtask bench` keeps under docs/results/bench, and the lines that a run of
`cargo xtask bundle` on another machine brought back: put its *.jsonl files under
docs/results/NAME/ first.")]
pub struct Arguments {
    /// Folder of the results
    #[arg(long, default_value = "docs/results")]
    results: PathBuf,
    /// The page to write
    #[arg(long, default_value = "target/report.html")]
    out: PathBuf,
    /// Write the pictures, the chapter of the book and the README's table as well
    #[arg(long)]
    docs: bool,
}

/// Reads, draws and writes.
pub fn run(arguments: &Arguments) -> Result<()> {
    let sources = Sources::read(&root().join(&arguments.results))?;
    let charts = charts::all(&sources);
    let out = root().join(&arguments.out);
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent)?;
    }
    let html = page::html(&sources, &charts);
    fs::write(&out, html).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{} charts, {} tables: {}", charts.len(), page::TABLES, arguments.out.display());
    if arguments.docs {
        let folder = root().join("docs/src/images/bench");
        pictures(&folder, &charts)?;
        let readme = root().join("README.md");
        let text = book::readme(&fs::read_to_string(&readme)?, &sources)?;
        fs::write(readme, text)?;
        fs::write(root().join("docs/src/benchmarks.md"), book::chapter(&sources, &charts))?;
        println!("wrote README.md's table, docs/src/benchmarks.md and docs/src/images/bench");
    }
    Ok(())
}

/// The charts that the README shows, where a picture that follows the reader's theme is not enough.
const PNGS: [&str; 1] = ["peers"];

/// Every chart as a file, and no other: what there is nothing to draw for any more goes.
fn pictures(folder: &Path, charts: &[Chart]) -> Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_drawn = charts.iter().any(|chart| chart.name == stem);
        let is_png = path.extension().is_some_and(|extension| extension == "png");
        if !is_drawn || (is_png && !PNGS.contains(&stem.as_str())) {
            fs::remove_file(&path)?;
        }
    }
    for chart in charts {
        let path = folder.join(format!("{}.svg", chart.name));
        fs::write(&path, chart.svg.file())?;
        if PNGS.contains(&chart.name.as_str()) {
            png::draw(&path, &chart.svg)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
