//! `cargo xtask release`: what has to hold before crates are published. Publishes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::libtorch;
use crate::process::{self, cargo, cargo_with, has_cargo_command, root};

/// Arguments of `cargo xtask release`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Leave out `cargo publish --dry-run`, which builds every crate once more
    #[arg(long)]
    no_publish: bool,
    /// Revision that the public interface is compared with [default: the newest tag]
    #[arg(long, value_name = "REV")]
    baseline: Option<String>,
}

/// Changelog, smallest Rust version, interface, licences, packages; cheap ones first.
pub fn run(arguments: &Arguments) -> Result<()> {
    let metadata = metadata()?;
    let own = published(&metadata);
    changelog()?;
    let version = own.values().next().context("no crate is published")?;
    println!("publishing order: {}", order(&metadata).join(", "));
    msrv()?;
    deny()?;
    semver(&metadata, arguments.baseline.as_deref())?;
    if arguments.no_publish {
        eprintln!("skipped: cargo publish --dry-run (--no-publish)");
        return Ok(());
    }
    // With --workspace, cargo resolves the crates of this workspace among themselves, in order.
    let mut publish = cargo_with(["publish", "--workspace", "--dry-run", "--locked"]);
    if let Err(reason) = libtorch::provide(&mut publish) {
        eprintln!(
            "skipped: building onesigma-backend-tch as packed needs libtorch 2.11 ({reason})"
        );
        publish.args(["--exclude", "onesigma-backend-tch"]);
    }
    if is_dirty()? {
        eprintln!("note: the work tree has changes that are not committed; they are packed too");
        publish.arg("--allow-dirty");
    }
    process::run(&mut publish)?;
    println!("version {version} can be published");
    Ok(())
}

/// `cargo deny check`; skipped with a message where it is not installed.
pub fn deny() -> Result<()> {
    if !has_cargo_command("deny") {
        return skip("cargo deny", "cargo install cargo-deny --locked");
    }
    process::run(&mut cargo_with(["deny", "check"]))
}

/// Compares the public interfaces of published default members with a revision; skipped with a
/// message where the tool is missing or nothing was ever released. Of the other backends only a
/// constructor is public.
fn semver(metadata: &Value, baseline: Option<&str>) -> Result<()> {
    if !has_cargo_command("semver-checks") {
        return skip("cargo semver-checks", "cargo install cargo-semver-checks --locked");
    }
    let newest = git(&["describe", "--tags", "--abbrev=0"]).ok();
    let Some(revision) = baseline.map(str::to_owned).or(newest) else {
        eprintln!("skipped: semver check: no release is tagged yet; --baseline REV names one");
        return Ok(());
    };
    let (default, own) = (ids(&metadata["workspace_default_members"]), published(metadata));
    let mut check =
        cargo_with(["semver-checks", "--default-features", "--baseline-rev", &revision]);
    for package in packages(metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        let is_default = default.iter().any(|id| package["id"] == id.as_str());
        if is_default && own.contains_key(name) {
            check.args(["--package", name]);
        }
    }
    process::run(&mut check)
}

/// No dependency of a published crate asks for a newer Rust than `rust-version`, and, where rustup
/// has that toolchain, the default members build with it. Clippy checks the standard library's
/// part in `cargo xtask ci`, from the same number.
pub fn msrv() -> Result<()> {
    let metadata = metadata()?;
    let stated = stated_version(&metadata)?;
    let used = used_by_default(&metadata)?;
    let newer: Vec<String> = packages(&metadata)
        .filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)))
        .filter_map(|package| {
            let wants = package["rust_version"].as_str()?;
            (numbers(wants) > numbers(&stated))
                .then(|| format!("{} {} wants {wants}", package["name"], package["version"]))
        })
        .collect();
    ensure!(
        newer.is_empty(),
        "rust-version is {stated}, but {}; take older versions (`cargo update -p NAME --precise \
         VERSION`) or state a newer Rust in Cargo.toml",
        newer.join(", ")
    );
    println!("{} packages of the default build are content with Rust {stated}", used.len());
    let installed = Command::new("rustup").args(["toolchain", "list"]).output();
    let installed =
        installed.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let Some(toolchain) = installed.lines().find(|line| line.starts_with(&stated)) else {
        return skip(
            &format!("a build with Rust {stated}"),
            &format!("rustup toolchain install {stated} --profile minimal"),
        );
    };
    let toolchain = toolchain.split_whitespace().next().unwrap_or(toolchain);
    let mut check = Command::new("rustup");
    check.args(["run", toolchain, "cargo", "check", "--all-targets"]).current_dir(root());
    process::run(check.env_remove("RUSTUP_TOOLCHAIN").env("CARGO_TARGET_DIR", "target/msrv"))
}

/// Says what is left out and how to get it.
pub fn skip(what: &str, how: &str) -> Result<()> {
    eprintln!("skipped: {what} is not installed; to have it: {how}");
    Ok(())
}

fn metadata() -> Result<Value> {
    let output = cargo().args(["metadata", "--format-version", "1", "--locked"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

/// Published crates of the workspace and their versions.
fn published(metadata: &Value) -> BTreeMap<&str, &str> {
    packages(metadata)
        .filter(|package| package["source"].is_null() && package["publish"].is_null())
        .filter_map(|package| Some((package["name"].as_str()?, package["version"].as_str()?)))
        .collect()
}

/// Published crates, each after those that it needs.
fn order(metadata: &Value) -> Vec<String> {
    let own = published(metadata);
    let mut rest: BTreeMap<&str, BTreeSet<&str>> = packages(metadata)
        .filter_map(|package| {
            let name = own.get_key_value(package["name"].as_str()?)?.0;
            let needs = package["dependencies"].as_array()?.iter();
            let needs = needs.filter(|d| d["kind"] != "dev").filter_map(|d| d["name"].as_str());
            Some((*name, needs.filter(|need| own.contains_key(need)).collect()))
        })
        .collect();
    let mut order: Vec<String> = Vec::new();
    while let Some(next) = rest.iter().find(|(_, needs)| needs.is_empty()).map(|(name, _)| *name) {
        rest.remove(next);
        rest.values_mut().for_each(|needs| {
            needs.remove(next);
        });
        order.push(next.to_owned());
    }
    order
}

/// A list of ids.
fn ids(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|id| id.as_str().map(str::to_owned)).collect()
}

/// Ids of everything that the default members depend on, build dependencies included and
/// development dependencies not.
fn used_by_default(metadata: &Value) -> Result<BTreeSet<String>> {
    let mut open = ids(&metadata["workspace_default_members"]);
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .context("cargo metadata without a dependency graph")?
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let mut used = BTreeSet::new();
    while let Some(id) = open.pop() {
        let Some(node) = nodes.get(&*id) else { bail!("cargo metadata does not resolve {id}") };
        if !used.insert(id) {
            continue;
        }
        for dep in node["deps"].as_array().into_iter().flatten() {
            let mut kinds = dep["dep_kinds"].as_array().into_iter().flatten();
            if kinds.any(|kind| kind["kind"] != "dev") {
                open.extend(dep["pkg"].as_str().map(str::to_owned));
            }
        }
    }
    Ok(used)
}

fn stated_version(metadata: &Value) -> Result<String> {
    let own = packages(metadata).find(|package| package["source"].is_null());
    let version = own.and_then(|package| package["rust_version"].as_str());
    Ok(version.context("no rust-version in Cargo.toml")?.to_owned())
}

/// `1.89` and `1.89.0` are one version.
fn numbers(version: &str) -> [u32; 3] {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

/// CHANGELOG.md has something to say about what is not released yet.
fn changelog() -> Result<()> {
    let text = std::fs::read_to_string(root().join("CHANGELOG.md"))?;
    ensure!(is_kept(&text), "CHANGELOG.md has no line under `## [Unreleased]`");
    Ok(())
}

fn is_kept(changelog: &str) -> bool {
    let rest = changelog.split("## [Unreleased]").nth(1).unwrap_or_default();
    let section = rest.split("\n## [").next().unwrap_or_default();
    section.lines().any(|line| line.starts_with("- "))
}

fn is_dirty() -> Result<bool> {
    Ok(!git(&["status", "--porcelain"])?.is_empty())
}

/// What git says, without the last end of line.
pub fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").args(arguments).current_dir(root()).output()?;
    let words = arguments.join(" ");
    ensure!(output.status.success(), "git {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_come_after_what_they_need() {
        let metadata = metadata().expect("cargo metadata");
        let order = order(&metadata);
        assert_eq!(order.len(), published(&metadata).len(), "a cycle: {order:?}");
        let at = |name: &str| order.iter().position(|one| one == name).expect("a crate");
        assert!(at("onesigma-format") < at("onesigma-graph"));
        assert!(at("onesigma-train") < at("onesigma"));
    }

    #[test]
    fn published_crates_say_what_crates_io_asks_for() {
        let metadata = metadata().expect("cargo metadata");
        let own = published(&metadata);
        for package in packages(&metadata).filter(|p| p["source"].is_null()) {
            if package["name"].as_str().is_some_and(|name| own.contains_key(name)) {
                for key in ["description", "license", "repository", "rust_version", "readme"] {
                    assert!(package[key].is_string(), "{}: no {key}", package["name"]);
                }
                let manifest = package["manifest_path"].as_str().expect("a path");
                for file in ["LICENSE-MIT", "LICENSE-APACHE"] {
                    let path = std::path::Path::new(manifest).with_file_name(file);
                    assert!(path.is_file(), "{} is not packed", path.display());
                }
            }
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(numbers("1.9") < numbers("1.89") && numbers("1.89") == numbers("1.89.0"));
    }

    #[test]
    fn a_changelog_without_news_is_noticed() {
        assert!(is_kept("## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [0.1.0]\n"));
        assert!(!is_kept("## [Unreleased]\n\n## [0.1.0]\n\n- A thing.\n"));
    }
}
