//! A chart as PNG: drawn by Chromium, kept with a palette, and drawn again only if it changed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::chromium;
use crate::svg::Svg;

/// The text chunk that says which drawing a picture was made from.
const KEY: &str = "onesigma-drawing";

/// Draws `svg`, which lies at `path`, to a file beside it. One that was drawn from the same stays as it
/// is: another version of the browser or other fonts would change every byte of it.
pub fn draw(path: &Path, svg: &Svg) -> Result<()> {
    let png = path.with_extension("png");
    let identity = identity(&svg.file());
    if drawn_from(&png).is_some_and(|found| found == identity) {
        return Ok(());
    }
    let name = png.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some(browser) = chromium() else {
        eprintln!("skipped: no Chromium in PATH, so {name} is not drawn");
        return Ok(());
    };
    let folder = std::env::temp_dir().join(format!("onesigma-report-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let shot = folder.join("shot.png");
    let status = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .args(["--force-device-scale-factor=2", "--blink-settings=preferredColorScheme=1"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("--window-size={:.0},{:.0}", svg.width, svg.height))
        .arg(format!("--screenshot={}", shot.display()))
        .arg(format!("file://{}", path.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let kept = match status.is_ok_and(|status| status.success()) {
        true => keep(&shot, &png, &identity),
        false => {
            eprintln!("skipped: Chromium could not draw {name}");
            Ok(())
        }
    };
    let _ = fs::remove_dir_all(&folder);
    kept.with_context(|| name)
}

/// FNV-1a of 64 bits: stable from one version of Rust to the next.
fn identity(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The identity in a picture, if it is there.
fn drawn_from(path: &Path) -> Option<String> {
    let reader = png::Decoder::new(BufReader::new(File::open(path).ok()?)).read_info().ok()?;
    let texts = &reader.info().uncompressed_latin1_text;
    texts.iter().find(|text| text.keyword == KEY).map(|text| text.text.clone())
}

/// Writes a screenshot with a palette of at most 256 colours: edges of letters have many shades, and
/// the rarest take the nearest of the others.
fn keep(shot: &Path, path: &Path, identity: &str) -> Result<()> {
    let mut decoder = png::Decoder::new(BufReader::new(File::open(shot)?));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let size = reader.output_buffer_size().context("the screenshot is too large")?;
    let mut bytes = vec![0; size];
    let info = reader.next_frame(&mut bytes)?;
    let samples = info.color_type.samples();
    ensure!(samples >= 3, "the screenshot has no colours");
    let colour = |pixel: &[u8]| [pixel[0], pixel[1], pixel[2]];
    let pixels: Vec<[u8; 3]> =
        bytes[..info.buffer_size()].chunks_exact(samples).map(colour).collect();
    let (palette, indices) = reduced(&pixels);
    let mut encoder =
        png::Encoder::new(BufWriter::new(File::create(path)?), info.width, info.height);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette.concat());
    encoder.set_compression(png::Compression::High);
    encoder.set_filter(png::Filter::NoFilter);
    encoder.add_text_chunk(KEY.to_owned(), identity.to_owned())?;
    encoder.write_header()?.write_image_data(&indices)?;
    Ok(())
}

/// A palette, and for each pixel its place there.
fn reduced(pixels: &[[u8; 3]]) -> (Vec<[u8; 3]>, Vec<u8>) {
    let mut counts: HashMap<[u8; 3], usize> = HashMap::new();
    for pixel in pixels {
        *counts.entry(*pixel).or_default() += 1;
    }
    let mut colours: Vec<([u8; 3], usize)> = counts.into_iter().collect();
    colours.sort_by(|(a, n), (b, m)| m.cmp(n).then(a.cmp(b)));
    let palette: Vec<[u8; 3]> = colours.iter().take(256).map(|(colour, _)| *colour).collect();
    let distance = |a: &[u8; 3], b: &[u8; 3]| -> u32 {
        a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum()
    };
    let nearest = |colour: &[u8; 3]| {
        (0..palette.len()).min_by_key(|&n| distance(&palette[n], colour)).unwrap_or(0) as u8
    };
    let places: HashMap<[u8; 3], u8> = colours.iter().map(|(c, _)| (*c, nearest(c))).collect();
    let indices = pixels.iter().map(|pixel| places[pixel]).collect();
    (palette, indices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_colours_stay_and_many_are_joined() {
        let few = [[1, 2, 3], [9, 9, 9], [1, 2, 3]];
        assert_eq!(reduced(&few), (vec![[1, 2, 3], [9, 9, 9]], vec![0, 1, 0]));
        // 300 shades, the first 256 of them twice: the others take one that is near.
        let shade = |n: usize| [(n % 256) as u8, (n / 256 * 200) as u8, 0];
        let many: Vec<[u8; 3]> = (0..300).chain(0..256).map(shade).collect();
        let (palette, indices) = reduced(&many);
        assert_eq!((palette.len(), indices.len()), (256, 556));
        assert_eq!(palette[usize::from(indices[7])], shade(7));
        assert_eq!(palette[usize::from(indices[256 + 7])], shade(7));
    }

    #[test]
    fn a_picture_is_kept_with_its_identity_and_drawn_once() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("onesigma-png-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let (shot, path) = (folder.join("shot.png"), folder.join("chart.png"));
        let mut encoder = png::Encoder::new(File::create(&shot)?, 2, 1);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header()?.write_image_data(&[255, 0, 0, 0, 0, 255])?;
        let svg = Svg::new("a chart", 2.0, 1.0);
        keep(&shot, &path, &identity(&svg.file()))?;
        assert_eq!(drawn_from(&path), Some(identity(&svg.file())));
        assert_ne!(identity("a"), identity("b"));
        // Drawn from this already, so no browser is asked and no byte changes.
        let before = fs::read(&path)?;
        draw(&path.with_extension("svg"), &svg)?;
        assert_eq!(fs::read(&path)?, before);
        Ok(fs::remove_dir_all(folder)?)
    }
}
