//! `cargo xtask matrix`: every combination of features that should build, checked.

use anyhow::Result;

use crate::process::{self, cargo_with};
use crate::release::skip;

/// Arguments of `cargo xtask matrix`.
#[derive(Debug, Default, clap::Args)]
pub struct Arguments {
    /// List the combinations, check nothing
    #[arg(long)]
    list: bool,
}

/// A package, its features, and what must be there to build it.
struct Row {
    package: &'static str,
    features: &'static [&'static str],
    /// Why the row is left out on this machine, if it is.
    missing: fn() -> Option<(&'static str, &'static str)>,
}

const fn row(package: &'static str, features: &'static [&'static str]) -> Row {
    Row { package, features, missing: || None }
}

/// Default features are off in every row; those that are wanted are named.
const ROWS: [Row; 7] = [
    row("onesigma-format", &[]), // no_std, no allocation
    row("onesigma-format", &["std"]),
    row("onesigma", &[]),
    row("onesigma", &["cpu"]),
    row("onesigma", &["candle"]),
    row("onesigma", &["cpu", "candle"]),
    Row { package: "onesigma", features: &["cpu", "candle", "tch"], missing: libtorch },
];

fn libtorch() -> Option<(&'static str, &'static str)> {
    let found = ["LIBTORCH", "LIBTORCH_USE_PYTORCH"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    (!found).then_some((
        "libtorch, for the feature `tch`",
        "pip install torch==2.11.0 and LIBTORCH_USE_PYTORCH=1, or LIBTORCH=FOLDER",
    ))
}

/// Checks libraries and programs of each row; tests have the default features in `xtask test`.
pub fn run(arguments: &Arguments) -> Result<()> {
    for Row { package, features, missing } in &ROWS {
        let features = features.join(",");
        if arguments.list {
            println!("{package} [{features}]");
            continue;
        }
        if let Some((what, how)) = missing() {
            skip(what, how)?;
            continue;
        }
        let mut check = cargo_with(["check", "--package", package, "--no-default-features"]);
        process::run(check.args(["--features", &features]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::root;

    /// The features in a manifest.
    fn features(manifest: &str) -> Vec<String> {
        let text = std::fs::read_to_string(root().join(manifest)).expect("a manifest");
        let table: toml::Table = text.parse().expect("TOML");
        let features = table["features"].as_table().expect("features");
        features.keys().cloned().collect()
    }

    #[test]
    fn every_backend_is_in_the_matrix() {
        // Those that need a toolkit of their own to build are checked where that is.
        let elsewhere = ["default", "candle-cuda", "candle-metal"];
        for feature in features("crates/onesigma/Cargo.toml") {
            let in_matrix = ROWS.iter().any(|row| row.features.contains(&&*feature));
            assert!(in_matrix || elsewhere.contains(&&*feature), "feature {feature}");
        }
    }
}
