//! Every code block of the book and the README is compiled, read or run.
//!
//! `rust` blocks are documentation tests of the crate that includes their page. `sh` blocks run
//! here, a page at a time in a folder of its own, with models shrunk and `cargo` left out. `toml`
//! and `json` blocks are read by the code they are meant for. What cannot run on any machine says
//! so: `sh,no_run`.
#![cfg(feature = "cpu")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use onesigma::ops::{recipes, rules};
use onesigma::train::config::Config;

/// What a block may be. `text` is output, a drawing or a scheme with gaps; `wgsl` is held to the
/// shader that `onesigma-backend-wgpu` generates by a test there.
const LANGUAGES: [&str; 8] = ["rust", "sh", "sh,no_run", "toml", "json", "text", "html", "wgsl"];

/// What the book calls the files of its blocks.
const SWEEP: &str = "rates.toml";
const RUN: &str = "run.toml";

/// A fenced block.
struct Block {
    page: PathBuf,
    line: usize,
    language: String,
    text: String,
}

impl Block {
    fn place(&self) -> String {
        format!("{}:{}", self.page.display(), self.line)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// README and every page of the book.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    let mut folders = vec![root().join("docs/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the book") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// The blocks of a page, those inside list items too.
fn blocks(page: &Path) -> Vec<Block> {
    let text = fs::read_to_string(page).expect("a page");
    let mut blocks: Vec<Block> = Vec::new();
    let mut open: Option<usize> = None;
    for (at, line) in text.lines().enumerate() {
        let word = line.trim_start();
        let indent = line.len() - word.len();
        match (open, word.strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(indent);
                let (page, language) = (page.to_path_buf(), language.trim().to_owned());
                blocks.push(Block { page, line: at + 1, language, text: String::new() });
            }
            (Some(_), Some("")) => open = None,
            (Some(indent), _) => {
                let block = blocks.last_mut().expect("an open block");
                block.text += line.get(indent..).unwrap_or(word);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{}: a block does not end", page.display());
    blocks
}

fn all(language: &str) -> Vec<Block> {
    let blocks = pages().into_iter().flat_map(|page| blocks(&page));
    blocks.filter(|block| block.language == language).collect()
}

#[test]
fn every_block_says_what_it_is() {
    for page in pages() {
        for block in blocks(&page) {
            let known = LANGUAGES.contains(&&*block.language);
            assert!(known, "{}: a block is `{}`", block.place(), block.language);
        }
    }
}

#[test]
fn rust_blocks_are_documentation_tests() {
    let crates = root().join("crates");
    let mut sources = String::new();
    for entry in fs::read_dir(crates).expect("crates") {
        let lib = entry.expect("an entry").path().join("src/lib.rs");
        sources += &fs::read_to_string(lib).unwrap_or_default();
    }
    for block in all("rust") {
        let page = block.page.strip_prefix(root()).expect("a page of the workspace").display();
        let include = format!("include_str!(\"../../../{page}\")");
        assert!(sources.contains(&include), "{}: no crate has {include}", block.place());
    }
}

#[test]
fn toml_blocks_are_recipes_run_files_or_sweeps() {
    let blocks = all("toml");
    assert!(!blocks.is_empty());
    for block in blocks {
        let place = block.place();
        if block.text.contains("[[rules]]") {
            recipes::from_toml(&block.text, &place).unwrap_or_else(|e| panic!("{place}: {e}"));
        } else if block.text.contains("[grid]") {
            // `shell_blocks_run` runs it under this name.
            let runs = all("sh").iter().any(|b| b.page == block.page && b.text.contains(SWEEP));
            assert!(runs, "{place}: no block of the page runs {SWEEP}");
        } else {
            let dir = common::folder();
            let file = dir.path().join("run.toml");
            fs::write(&file, &block.text).expect("room");
            Config::from_file(&file).unwrap_or_else(|error| panic!("{place}: {error}"));
        }
    }
}

#[test]
fn json_blocks_are_rule_cases() {
    for block in all("json") {
        let place = block.place();
        let case: rules::Case =
            serde_json::from_str(&block.text).unwrap_or_else(|error| panic!("{place}: {error}"));
        rules::expected(&case).unwrap_or_else(|error| panic!("{place}: {error}"));
    }
}

/// `onesigma` for the book: the same program with its models shrunk, and `cargo` that builds
/// nothing. Flags later on the line win, so the small sizes stand behind the book's own.
fn shims(dir: &Path) -> std::io::Result<()> {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(dir.join("target/release"))?;
    let program = env!("CARGO_BIN_EXE_onesigma");
    let model = "--layers 1 --heads 2 --hidden 16 --seq 32 --batch 2";
    let train = "--eval-batches 1 --eval-every 4 --save-every 2 --steps 4 --steps-per-call 2";
    let onesigma = format!(
        r#"#!/usr/bin/env bash
case " $* " in
  *" --resume "*) exec "{program}" "$@" ;;
  *" --init-from "*) exec "{program}" "$@" --seq 32 --batch 2 {train} ;;
  *" --data "*) data=() ;;
  *) data=(--data my-book.txt) ;;
esac
case "$1" in
  train) exec "{program}" "$@" "${{data[@]}}" {model} {train} ;;
  sweep) exec "{program}" "$@" --set model.layers=1 --set model.seq=16 --set batch=1 ;;
  compile) exec "{program}" "$@" {model} ;;
  numerics)
    case "$2" in
      runs/*) exec "{program}" "$@" ;;
      *) [[ " $* " == *" --predict-only "* ]] && exec "{program}" "$@" {model}
         exec "{program}" "$@" "${{data[@]}}" {model} --steps 1 ;;
    esac ;;
  *) exec "{program}" "$@" ;;
esac
"#
    );
    let cargo = "#!/usr/bin/env bash\necho \"not run here: cargo $*\"\n";
    for (path, text) in [
        (bin.join("onesigma"), &*onesigma),
        (dir.join("target/release/onesigma"), &*onesigma),
        (bin.join("cargo"), cargo),
    ] {
        fs::write(&path, text)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// What the book's commands take as given; the run `runs/first` only where the page makes none.
fn given(dir: &Path, text_of_page: &str) {
    let text = common::text_file(dir);
    fs::copy(&text, dir.join("my-book.txt")).expect("room");
    fs::create_dir(dir.join("gpt2")).expect("room");
    fs::write(dir.join("gpt2/tokenizer.json"), byte_level_tokenizer()).expect("room");
    let lines: String =
        (0..400).map(|n| format!("{{\"body\": \"article {n} on {n}\"}}\n")).collect();
    fs::write(dir.join("articles.jsonl.zst"), zstd_frame(lines.as_bytes())).expect("room");
    fs::write(dir.join("my-config.toml"), "recipe = \"unit-fp16\"\n").expect("room");
    // One frame for the sizes that `compile` is given.
    for name in ["tokens.u32", "targets.u32"] {
        fs::write(dir.join(name), [0; 2 * 32 * 4]).expect("room");
    }
    if !text_of_page.contains("--out runs/first") {
        let mut train = vec!["train", "--quiet", "--data", "my-book.txt", "--out", "runs/first"];
        train.extend(common::TINY);
        let outcome = common::onesigma_in(dir, &train);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }
    fs::create_dir(dir.join("my-books")).expect("room");
    fs::copy(&text, dir.join("my-books/one.txt")).expect("room");
    let sentences = |count: usize| -> String {
        let lines = (0..count).map(|n| format!("this film is {}\t{}\n", n * 7, n % 2));
        std::iter::once("sentence\tlabel\n".to_owned()).chain(lines).collect()
    };
    fs::create_dir(dir.join("sst2")).expect("room");
    fs::write(dir.join("sst2/train.tsv"), sentences(64)).expect("room");
    fs::write(dir.join("sst2/dev.tsv"), sentences(16)).expect("room");
    let bert = root().join("crates/models/tests/golden/bert");
    fs::create_dir(dir.join("bert-base-uncased")).expect("room");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(bert.join(file), dir.join("bert-base-uncased").join(file)).expect("room");
    }
}

/// A page's TOML blocks under the names that its commands use, a sweep with fewer and shorter runs.
fn written(dir: &Path, page: &Path) {
    for block in blocks(page).into_iter().filter(|block| block.language == "toml") {
        let small = [
            ("draws = 8", "draws = 1"),
            ("seeds = 2", "seeds = 1"),
            ("steps = 500", "steps = 2"),
            ("[10, 100]", "[1, 2]"),
        ];
        let small = small.iter().fold(block.text.clone(), |text, (a, b)| text.replace(a, b));
        let name = if block.text.contains("[grid]") { SWEEP } else { RUN };
        fs::write(dir.join(name), small).expect("room");
    }
}

/// A `tokenizer.json` whose tokens are the bytes.
fn byte_level_tokenizer() -> String {
    // GPT-2's letters for bytes: printable ones are themselves, the others follow from 256 on.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..256_u32 {
        let letter = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        let letter = char::from_u32(letter).expect("a letter").to_string();
        vocabulary.insert(letter, byte.into());
    }
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    tokenizer.to_string()
}

/// A Zstandard frame (RFC 8878) of one raw block.
fn zstd_frame(content: &[u8]) -> Vec<u8> {
    let size = content.len() as u32;
    assert!(size < 1 << 17, "one block");
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0]; // magic; one segment, size in four bytes
    frame.extend(size.to_le_bytes());
    frame.extend(&(size << 3 | 1).to_le_bytes()[..3]); // last block, raw
    frame.extend(content);
    frame
}

/// Whether a block needs what only a download brings: then it is not run, and said so.
fn downloads(block: &Block) -> Option<&'static str> {
    ["cargo xtask fetch", "onesigma data wikitext103"]
        .into_iter()
        .find(|words| block.text.contains(words))
}

#[test]
#[allow(clippy::print_stdout)]
fn shell_blocks_run() {
    if !Command::new("bash").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no bash, so the shell blocks of the book are not run");
        return;
    }
    let mut ran = 0;
    for page in pages() {
        let shell = blocks(&page).into_iter().filter(|block| block.language == "sh");
        let shell: Vec<Block> = shell.collect();
        if shell.is_empty() {
            continue;
        }
        let dir = common::folder();
        shims(dir.path()).expect("room");
        written(dir.path(), &page);
        given(dir.path(), &fs::read_to_string(&page).expect("a page"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(dir.path().join("bin")).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(paths).expect("no colon in a temporary folder");
        for block in shell {
            if let Some(words) = downloads(&block) {
                println!("not run: {} begins with a download, `{words}`", block.place());
                continue;
            }
            let mut bash = Command::new("bash");
            bash.args(["-euo", "pipefail", "-c", &block.text]).env("PATH", &path);
            bash.env("ONESIGMA_CACHE", dir.path().join("cache"));
            let outcome = common::run(bash.current_dir(dir.path()));
            let place = block.place();
            assert_eq!(outcome.code, Some(0), "{place}\n{}{}", outcome.stdout, outcome.stderr);
            ran += 1;
        }
    }
    assert!(ran >= 5, "{ran} blocks");
    for block in all("sh,no_run") {
        println!("not run: {} says so", block.place());
    }
}
