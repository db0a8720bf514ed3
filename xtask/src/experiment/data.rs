//! The texts of the experiments: never part of the repository, always given by path.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use toml::{Table, Value};

use super::config::Experiment;

/// The folder below which all texts are.
#[derive(Clone, Debug)]
pub struct DataFolder {
    root: PathBuf,
}

impl DataFolder {
    /// The folder at `root`; [`check`](Self::check) looks into it.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Whether every text of an experiment is there.
    pub fn check(&self, experiment: &Experiment) -> Result<()> {
        for file in &experiment.files {
            let path = self.root.join(&file.path);
            ensure!(
                path.exists(),
                "the experiment `{}` needs {} ({}), and there is no {}; give the folder that has \
                 it with `--data DIR`",
                experiment.name,
                file.path,
                file.what,
                path.display()
            );
        }
        Ok(())
    }

    /// Settings with full paths in place of the short ones: of the texts, and of the run among
    /// `others` that it starts from.
    pub fn resolve(&self, settings: &Table, others: impl Fn(&str) -> PathBuf) -> Table {
        let mut settings = settings.clone();
        if let Some(Value::String(path)) = settings.get_mut("init_from") {
            *path = others(path).to_string_lossy().into_owned();
        }
        for key in ["data", "valid"] {
            if let Some(Value::String(path)) = settings.get_mut(key)
                && path != "cargo"
            {
                *path = self.root.join(&path).to_string_lossy().into_owned();
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_text_is_named_with_what_it_is() {
        let text = r#"
            title = "T"
            question = "?"
            metric = "bits-per-byte"
            files = [{ path = "corpus/b.txt", what = "a book" }]
            settings = { data = "corpus/b.txt" }
            grids = [{ axes = [{ name = "seq", key = "model.seq", values = [1] }] }]
            figure = { kind = "lines", x = "seq", series = [] }
            quick = { seeds = 1 }
            full = { seeds = 1 }
        "#;
        let experiment = Experiment::from_toml("books", text).expect("an experiment");
        let folder = DataFolder::new(Path::new("/nowhere"));
        let error = folder.check(&experiment).expect_err("no such folder").to_string();
        for word in ["`books`", "corpus/b.txt", "a book", "/nowhere/corpus/b.txt", "--data"] {
            assert!(error.contains(word), "no `{word}` in: {error}");
        }
        let settings = folder.resolve(&experiment.settings, |run| run.into());
        assert_eq!(settings["data"].as_str(), Some("/nowhere/corpus/b.txt"));
    }
}
