//! The texts of the experiments: never part of the repository, always given by path.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use toml::{Table, Value};

use super::config::Experiment;

/// In place of a text: bytes that are drawn independently, all but NUL equally likely.
pub const UNIFORM: &str = "uniform-bytes";

/// A megabyte of such bytes, the same every time (the generator of Steele, Lea and Flood, 2014).
pub fn uniform_bytes() -> Vec<u8> {
    let mut state = 0u64;
    let draw = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let high = (mixed ^ (mixed >> 31)) >> 32;
        ((high * 255) >> 32) as u8 + 1
    };
    std::iter::repeat_with(draw).take(1 << 20).collect()
}

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
                if path == UNIFORM {
                    *path = others(UNIFORM).to_string_lossy().into_owned();
                    continue;
                }
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
        let bytes = uniform_bytes();
        let mut counts = [0u32; 256];
        bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
        // 4112 of each on average, deviation 64: five of them are 320.
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| count.abs_diff(4112) < 320));
        let settings = folder.resolve(&experiment.settings, |run| run.into());
        assert_eq!(settings["data"].as_str(), Some("/nowhere/corpus/b.txt"));
    }
}
