//! What building and opening the page needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{self, cargo_with};

/// What pages are compiled for.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// A tool that is not there, with the remedy.
#[derive(Debug, PartialEq)]
pub struct Missing(String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether code can be compiled for pages.
pub fn has_target() -> bool {
    let mut rustc = Command::new("rustc");
    let found = rustc.args(["--print", "target-libdir", "--target", TARGET]).output();
    let folder = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    folder.is_ok_and(|folder| Path::new(&folder).is_dir())
}

/// Looks for everything that the page needs; gives the Chromium.
///
/// # Errors
/// The first that is missing.
pub fn find(browser: Option<&Path>) -> Result<PathBuf, Missing> {
    if !has_target() {
        let remedy = format!("`rustup target add {TARGET}`");
        return Err(Missing(format!("the target {TARGET} is not installed: {remedy}")));
    }
    let lock = fs::read_to_string(process::root().join("Cargo.lock")).unwrap_or_default();
    let wanted = locked(&lock, "wasm-bindgen").unwrap_or_default();
    bindgen(&wanted, version(Path::new("wasm-bindgen")).as_deref())?;
    let found = match browser {
        Some(path) => version(path).map(|_| path.to_owned()),
        None => process::chromium(),
    };
    found.ok_or_else(|| {
        Missing(match browser {
            Some(path) => format!("{} does not start: name a Chromium", path.display()),
            None => "no Chromium in PATH: `apt-get install chromium`, or name one by `--browser`"
                .to_owned(),
        })
    })
}

/// Whether wasm-bindgen, which says `found`, has the version of the crate: others refuse its output.
fn bindgen(wanted: &str, found: Option<&str>) -> Result<(), Missing> {
    let remedy = format!("`cargo install wasm-bindgen-cli --version {wanted}`");
    match found.map(|text| text.trim_start_matches("wasm-bindgen ")) {
        Some(version) if version == wanted => Ok(()),
        Some(version) => Err(Missing(format!(
            "wasm-bindgen is {version}, the crate in Cargo.lock {wanted}: {remedy}"
        ))),
        None => Err(Missing(format!("wasm-bindgen is not installed: {remedy}"))),
    }
}

/// What a program says of its version.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// The version of a package in a Cargo.lock.
fn locked(lock: &str, name: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let lock: Lock = toml::from_str(lock).ok()?;
    lock.package.into_iter().find(|package| package.name == name).map(|package| package.version)
}

/// Builds the page; gives its folder.
pub fn page() -> Result<PathBuf> {
    let folder = process::root().join("examples/browser");
    let mut build =
        cargo_with(["build", "--release", "--package", "onesigma-browser", "--target", TARGET]);
    let module = process::built(&mut build, |message| {
        let files = message["filenames"].as_array()?.iter();
        let mut paths = files.filter_map(|file| file.as_str().map(PathBuf::from));
        paths.find(|path| path.ends_with("onesigma_browser.wasm"))
    })?;
    let module = module.context("the build named no onesigma_browser.wasm")?;
    let mut bindgen = Command::new("wasm-bindgen");
    bindgen.args(["--target", "web", "--out-dir"]).arg(folder.join("pkg")).arg(module);
    process::run(&mut bindgen)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wasm_bindgen_has_to_be_of_the_crates_version() {
        let lock = "version = 4\n[[package]]\nname = \"wasm-bindgen\"\nversion = \"0.2.130\"\n";
        let wanted = locked(lock, "wasm-bindgen").unwrap();
        assert_eq!(wanted, "0.2.130");
        assert_eq!(bindgen(&wanted, Some("wasm-bindgen 0.2.130")), Ok(()));
        for found in [Some("wasm-bindgen 0.2.13"), None] {
            let Missing(text) = bindgen(&wanted, found).unwrap_err();
            assert!(text.contains("`cargo install wasm-bindgen-cli --version 0.2.130`"), "{text}");
        }
    }

    #[test]
    fn the_workspaces_own_lock_file_names_wasm_bindgen() {
        let lock = fs::read_to_string(process::root().join("Cargo.lock")).unwrap();
        assert!(locked(&lock, "wasm-bindgen").is_some());
    }
}
