//! `onesigma data wikitext103`: the raw WikiText-103 of Merity et al. (arXiv 1609.07843).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use onesigma::download;

/// The author's own copy; the original address is gone.
const URL: &str = "https://wikitext.smerity.com/wikitext-103-raw-v1.zip";
/// Of the archive as it was published, 191984949 bytes.
const SHA256: &str = "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794";
/// What the archive holds.
const FILES: [&str; 3] = ["wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"];

/// Arguments of `onesigma data wikitext103`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The text is under CC BY-SA 3.0. A download that breaks off continues where it was.

Examples:
  onesigma data wikitext103
  onesigma data wikitext103 --out /big/disk --url https://mirror.example/wikitext-103-raw-v1.zip")]
pub struct Arguments {
    /// Folder for the three texts
    #[arg(long, value_name = "DIR", default_value = "data/wikitext103")]
    out: PathBuf,
    /// Another place to download from
    #[arg(long, default_value = URL)]
    url: String,
    /// The archive's SHA-256, if it is another archive
    #[arg(long, value_name = "HEX", default_value = SHA256)]
    sha256: String,
    /// Keep the archive as well
    #[arg(long)]
    keep_archive: bool,
}

/// Downloads, checks and unpacks.
pub fn run(out: &mut impl Write, arguments: &Arguments) -> Result<()> {
    let folder = &arguments.out;
    if FILES.iter().all(|name| folder.join(name).is_file()) {
        writeln!(out, "{} is there already", folder.display())?;
        return usage(out, folder);
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let archive = folder.join("wikitext-103-raw-v1.zip");
    let expected = arguments.sha256.to_lowercase();
    if !archive.is_file() || download::digest(&archive)? != expected {
        let bar = ProgressBar::new(0);
        let style = "{bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        let show = &mut |have, total: Option<u64>| {
            bar.set_length(total.unwrap_or(have));
            bar.set_position(have);
        };
        let fetched = download::fetch(&arguments.url, &archive, Some(&expected), show);
        bar.finish_and_clear();
        fetched?;
    }
    unpack(&archive, folder)?;
    if !arguments.keep_archive {
        fs::remove_file(&archive)
            .with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    usage(out, folder)
}

/// Writes the three texts of the archive, each whole or not at all.
fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    let broken = || format!("{} is no archive of WikiText-103", archive.display());
    let mut zip = zip::ZipArchive::new(File::open(archive)?).with_context(broken)?;
    for name in FILES {
        let found = (0..zip.len()).find(|&index| {
            let entry = zip.name_for_index(index).and_then(Result::ok);
            entry.is_some_and(|entry| entry.rsplit('/').next() == Some(name))
        });
        let Some(index) = found else { bail!("{}: it has no {name}", broken()) };
        let mut entry = zip.by_index(index).with_context(broken)?;
        let part = folder.join(format!("{name}.part"));
        let mut file =
            File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        // The reader compares the checksum at the end.
        io::copy(&mut entry, &mut file).with_context(|| format!("{name} in {}", broken()))?;
        file.sync_all()?;
        fs::rename(&part, folder.join(name))?;
    }
    Ok(())
}

fn usage(out: &mut impl Write, folder: &Path) -> Result<()> {
    for name in FILES {
        let path = folder.join(name);
        writeln!(out, "{:>11} bytes  {}", fs::metadata(&path)?.len(), path.display())?;
    }
    let (train, valid) = (folder.join(FILES[0]), folder.join(FILES[1]));
    writeln!(out, "train: onesigma train --data {} --valid {}", train.display(), valid.display())?;
    Ok(())
}
