//! `cargo xtask report`: every recorded result on one page, and pictures for README and book.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process::root;
use crate::svg::Svg;

mod book;
mod charts;
mod page;
mod sources;

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
    /// Write the pictures and the chapter of the book as well
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
        fs::create_dir_all(&folder)?;
        for chart in &charts {
            picture(&folder, chart.name, &chart.svg)?;
        }
        fs::write(root().join("docs/src/benchmarks.md"), book::chapter(&sources, &charts))?;
        println!("wrote docs/src/benchmarks.md and docs/src/images/bench");
    }
    Ok(())
}

/// The chart as SVG and, where there is a browser to draw it, as PNG.
fn picture(folder: &Path, name: &str, svg: &Svg) -> Result<()> {
    let path = folder.join(format!("{name}.svg"));
    fs::write(&path, svg.file())?;
    let Some(browser) = chromium() else {
        eprintln!("skipped: no Chromium in PATH, so {name}.png is not drawn");
        return Ok(());
    };
    let profile = std::env::temp_dir().join(format!("onesigma-report-{}", std::process::id()));
    let png = folder.join(format!("{name}.png"));
    let status = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .args(["--force-device-scale-factor=2", "--blink-settings=preferredColorScheme=1"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={:.0},{:.0}", svg.width, svg.height))
        .arg(format!("--screenshot={}", png.display()))
        .arg(format!("file://{}", path.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let _ = fs::remove_dir_all(&profile);
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("skipped: Chromium could not draw {name}.png");
    }
    Ok(())
}

/// Chromium's path, if it is there.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests;
