//! The default corpus: the text of this workspace's own locked dependencies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{Metadata, MetadataCommand, Package};

use super::{Document, files_below, relative_name};
use crate::Error;

/// The packages whose text makes the corpus `cargo`, sorted: written by many hands, rich in prose,
/// without generated tables, and under licences that allow it (MIT, Apache-2.0, Unlicense).
pub const PACKAGES: [&str; 17] = [
    "aho-corasick",
    "anyhow",
    "clap_builder",
    "half",
    "indicatif",
    "log",
    "memchr",
    "num-traits",
    "rayon",
    "rayon-core",
    "serde",
    "serde_core",
    "serde_json",
    "toml",
    "tracing",
    "tracing-core",
    "tracing-subscriber",
];

/// The text files of [`PACKAGES`], by package and then by path.
pub(super) fn documents(dir: &Path) -> Result<Vec<Document>, Error> {
    let metadata = metadata(dir)?;
    let mut documents = Vec::new();
    for name in PACKAGES {
        // Of several locked versions the highest is the one that new code uses.
        let package = metadata
            .packages
            .iter()
            .filter(|package| package.name.as_str() == name && package.source.is_some())
            .max_by(|a, b| a.version.cmp(&b.version))
            .ok_or_else(|| Error::NoWorkspace {
                dir: dir.into(),
                reason: format!("its Cargo.lock does not have the package `{name}`"),
            })?;
        documents.extend(package_documents(package)?);
    }
    Ok(documents)
}

/// Asks cargo where the locked packages lie: for this machine's target alone, so that nothing is
/// fetched that a build would not fetch, and without the network unless it is needed.
fn metadata(dir: &Path) -> Result<Metadata, Error> {
    let mut options = vec!["--locked".to_owned()];
    if let Some(host) = host_triple() {
        options.extend(["--filter-platform".to_owned(), host]);
    }
    let ask = |offline: bool| {
        let mut options = options.clone();
        if offline {
            options.push("--offline".to_owned());
        }
        MetadataCommand::new().current_dir(dir).other_options(options).exec()
    };
    ask(true).or_else(|_| ask(false)).map_err(|error| Error::NoWorkspace {
        dir: dir.into(),
        reason: error.to_string().lines().next().unwrap_or("no answer from cargo").to_owned(),
    })
}

/// The triple of the compiler in use; none if there is no compiler to ask.
fn host_triple() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

/// `src/**/*.rs`, `docs/**/*.md` and the readme of one package, sorted by path.
fn package_documents(package: &Package) -> Result<Vec<Document>, Error> {
    let manifest = package.manifest_path.as_std_path();
    let root = manifest.parent().unwrap_or(manifest);
    let mut files: Vec<PathBuf> = Vec::new();
    for (folder, extension) in [("src", "rs"), ("docs", "md")] {
        let folder = root.join(folder);
        if folder.is_dir() {
            let below = files_below(&folder)?;
            files.extend(below.into_iter().filter(|f| f.extension() == Some(extension.as_ref())));
        }
    }
    let listing = fs::read_dir(root).map_err(Error::io("read", root))?;
    for entry in listing {
        let path = entry.map_err(Error::io("read", root))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_uppercase();
        if name.starts_with("README") && path.is_file() {
            files.push(path);
        }
    }
    files.sort_by_cached_key(|file| relative_name(root, file));
    files
        .into_iter()
        .map(|file| {
            let name = format!("{}/{}", package.name, relative_name(root, &file));
            let text = fs::read(&file).map_err(Error::io("read", &file))?;
            Ok(Document { name, text })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::corpus::Corpus;

    use super::*;

    #[test]
    fn this_workspace_yields_the_same_corpus_every_time() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let corpus = Corpus::cargo(here).expect("the tests run inside the workspace");
        assert!((3_000_000..=8_500_000).contains(&corpus.len()), "{} bytes", corpus.len());
        let share = corpus.validation.len() as f64 / corpus.len() as f64;
        assert!((0.04..0.2).contains(&share), "validation is {share} of the text");
        let root = here.ancestors().nth(2).expect("the workspace root");
        assert_eq!(corpus.sha256, Corpus::cargo(root).expect("again").sha256);
    }

    #[test]
    fn outside_a_workspace_the_error_names_the_remedy() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let error = Corpus::cargo(dir.path()).expect_err("no manifest here");
        assert!(matches!(error, Error::NoWorkspace { .. }));
        assert!(error.to_string().contains("--data"), "{error}");
    }

    #[test]
    fn another_workspace_lacks_the_packages_and_says_which() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let manifest =
            "[package]\nname = \"other\"\nedition = \"2021\"\n[lib]\npath = \"lib.rs\"\n";
        fs::write(dir.path().join("Cargo.toml"), manifest).expect("a manifest");
        fs::write(dir.path().join("lib.rs"), "").expect("a source file");
        let lock = "version = 4\n\n[[package]]\nname = \"other\"\nversion = \"0.0.0\"\n";
        fs::write(dir.path().join("Cargo.lock"), lock).expect("a lock file");
        let error = Corpus::cargo(dir.path()).expect_err("no dependencies");
        assert!(error.to_string().contains("aho-corasick"), "{error}");
    }
}
