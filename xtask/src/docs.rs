//! What README, changelog and book say about files, pages and tasks, held against what is there.
//!
//! Tests alone: `cargo xtask test` runs them. Code blocks are tested in
//! `crates/onesigma/tests/book.rs`, next to the program that they run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::root;

fn markdown(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            markdown(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    markdown(&root().join("docs/src"), &mut pages);
    pages
}

/// The text of a page without its fenced blocks.
fn prose(page: &Path) -> String {
    let text = fs::read_to_string(page).expect("a page");
    let mut fenced = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

/// The anchors that mdBook gives a page's headings.
fn anchors(page: &Path) -> Vec<String> {
    let text = prose(page);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| -> String {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = prose(&page);
        for link in links(&text) {
            if link.contains("://") || link.contains(' ') {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().expect("a folder").join(path),
            };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            let found = anchor.is_empty() || anchors(&target).iter().any(|one| one == anchor);
            assert!(found, "{}: no heading {anchor} in {path}", page.display());
        }
    }
}

#[test]
fn the_summary_lists_every_page() {
    let book = root().join("docs/src");
    let text = fs::read_to_string(book.join("SUMMARY.md")).expect("a summary");
    let mut pages = Vec::new();
    markdown(&book, &mut pages);
    for page in pages {
        let path = page.strip_prefix(&book).expect("in the book").to_string_lossy().into_owned();
        let listed = path == "SUMMARY.md" || text.contains(&format!("]({path})"));
        assert!(listed, "{path} is not in SUMMARY.md");
    }
}

#[test]
fn included_files_are_there() {
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        for rest in text.split("{{#include ").skip(1) {
            let path = rest.split(['}', ':']).next().expect("a path");
            let target = page.parent().expect("a folder").join(path);
            assert!(target.exists(), "{}: {path} is missing", page.display());
        }
    }
}

/// `cargo xtask …` as it stands in a line: up to the end of the code span, the line or a comment.
fn tasks(text: &str) -> Vec<Vec<String>> {
    let whole = text.split("cargo xtask ").skip(1).filter_map(|rest| {
        let line = rest.split(['`', '\n', '#', '|', ';', '>', '<']).next()?;
        let words = line.split_whitespace().take_while(|word| *word != "&&");
        let words = words.map(|word| word.trim_end_matches([',', '.', ')']).to_owned());
        Some(words.collect::<Vec<_>>())
    });
    whole.filter(|words| words.first().is_some_and(|word| word != "…" && word != "...")).collect()
}

#[test]
fn tasks_in_the_text_exist() {
    use clap::Parser as _;
    let mut checked = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        for words in tasks(&text) {
            let line = ["cargo xtask".to_owned()].into_iter().chain(words.iter().cloned());
            if let Err(error) = crate::Arguments::try_parse_from(line) {
                use clap::error::ErrorKind::{InvalidSubcommand, UnknownArgument};
                // A place holder or a missing value is prose; an unknown word is a mistake.
                let wrong = [InvalidSubcommand, UnknownArgument].contains(&error.kind());
                assert!(!wrong, "{}: cargo xtask {}: {error}", page.display(), words.join(" "));
            }
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}
