//! `cargo xtask matrix`: every combination of features that should build, checked.

use anyhow::{Context, Result};

use crate::process::{self, cargo_with, root};
use crate::release::skip;

/// Arguments of `cargo xtask matrix`.
#[derive(Debug, Default, clap::Args)]
pub struct Arguments {
    /// List the combinations, check nothing
    #[arg(long)]
    list: bool,
}

/// Features of the face that need a toolkit of their own to build: left to machines that have it.
const ELSEWHERE: [&str; 2] = ["candle-cuda", "candle-metal"];

/// Checks libraries and programs, default features off: none, each alone, all together. Tests run
/// with the default features in `cargo xtask test`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let has_libtorch = ["LIBTORCH", "LIBTORCH_USE_PYTORCH"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    for (package, features) in rows()? {
        if arguments.list {
            println!("{package} [{}]", features.join(","));
            continue;
        }
        let (kept, tch): (Vec<String>, Vec<String>) =
            features.into_iter().partition(|feature| has_libtorch || feature != "tch");
        if !tch.is_empty() {
            skip(
                "libtorch, for the feature `tch`,",
                "pip install torch==2.11.0 and LIBTORCH_USE_PYTORCH=1, or LIBTORCH=FOLDER",
            )?;
            if kept.is_empty() {
                continue;
            }
        }
        let mut check = cargo_with(["check", "--package", package, "--no-default-features"]);
        process::run(check.args(["--features", &kept.join(",")]))?;
    }
    Ok(())
}

/// Packages with the features of each check.
fn rows() -> Result<Vec<(&'static str, Vec<String>)>> {
    let mut rows = Vec::new();
    for (package, manifest) in [
        ("onesigma-format", "crates/format/Cargo.toml"), // no_std, no allocation
        ("onesigma", "crates/onesigma/Cargo.toml"),
    ] {
        let features = features(manifest)?;
        rows.push((package, Vec::new()));
        rows.extend(features.iter().map(|feature| (package, vec![feature.clone()])));
        if features.len() > 1 {
            rows.push((package, features));
        }
    }
    Ok(rows)
}

/// The features of a manifest that build anywhere.
fn features(manifest: &str) -> Result<Vec<String>> {
    let path = root().join(manifest);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let table: toml::Table = text.parse().with_context(|| path.display().to_string())?;
    let features = table.get("features").and_then(|features| features.as_table());
    let names = features.into_iter().flat_map(toml::Table::keys);
    let built = names.filter(|name| *name != "default" && !ELSEWHERE.contains(&name.as_str()));
    Ok(built.cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_each_and_all_are_checked() {
        let rows = rows().expect("manifests");
        let of = |package: &str| -> Vec<Vec<String>> {
            let own = rows.iter().filter(|(name, _)| *name == package);
            own.map(|(_, features)| features.clone()).collect()
        };
        assert!(of("onesigma-format").contains(&vec!["std".to_owned()]));
        let face = of("onesigma");
        assert!(face.contains(&Vec::new()) && face.contains(&vec!["candle".to_owned()]));
        assert!(face.last().is_some_and(|all| all.contains(&"cpu".to_owned()) && all.len() > 2));
    }
}
