//! Sentences with classes, from files.
//!
//! * A folder with `train.tsv` and `dev.tsv`, as of SST-2: the first line names the columns,
//!   `sentence` (or `sentence1` and `sentence2`) and `label`.
//! * A folder with files `*.CLASS`, one sentence a line, as the sentence-polarity data's
//!   `rt-polarity.neg` and `.pos`: every tenth line of each is measured on.
//! * One `.tsv` file: every tenth line is measured on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;
use crate::batch::{Batch, Deck, EvaluationBatches, TrainingBatches};
use crate::config::Config;
use crate::corpus::{SPLIT_EVERY, hex};
use crate::tokenizer::{Special, Subwords};

/// A sentence, or two, with its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The text.
    pub first: String,
    /// The second text of a pair.
    pub second: Option<String>,
    /// Number of the class.
    pub class: u32,
}

/// Examples in two splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examples {
    /// Names of the classes, sorted; their place is the number of the class.
    pub classes: Vec<String>,
    /// To train on.
    pub training: Vec<Example>,
    /// To measure on.
    pub validation: Vec<Example>,
    /// SHA-256 of the files' contents, in order.
    pub sha256: String,
}

/// An example before the classes are numbered.
struct Line {
    first: String,
    second: Option<String>,
    label: String,
}

impl Examples {
    /// Reads examples; see the [module](self) for the forms.
    ///
    /// # Errors
    /// [`Error::DataMissing`], [`Error::DataEmpty`]; [`Error::Examples`] with file and line;
    /// [`Error::Io`].
    pub fn from_path(path: &Path) -> Result<Self, Error> {
        let missing = || Error::DataMissing { path: path.into() };
        let meta = fs::metadata(path).map_err(|_| missing())?;
        let mut digest = Sha256::new();
        let (training, validation) = if meta.is_file() {
            split(read_tsv(path, &mut digest)?)
        } else if path.join("train.tsv").is_file() {
            let dev = ["dev.tsv", "valid.tsv", "test.tsv"].map(|name| path.join(name));
            let training = read_tsv(&path.join("train.tsv"), &mut digest)?;
            match dev.iter().find(|file| file.is_file()) {
                Some(dev) => (training, read_tsv(dev, &mut digest)?),
                None => split(training),
            }
        } else {
            by_suffix(path, &mut digest)?
        };
        if training.is_empty() || validation.is_empty() {
            return Err(Error::DataEmpty { path: path.into() });
        }
        let mut classes: Vec<String> =
            training.iter().chain(&validation).map(|line| line.label.clone()).collect();
        classes.sort();
        classes.dedup();
        if classes.len() < 2 {
            let reason = format!("all examples have the class `{}`, expected two", classes[0]);
            return Err(Error::Examples { path: path.into(), line: 1, reason });
        }
        let number = |lines: Vec<Line>| -> Vec<Example> {
            lines
                .into_iter()
                .map(|Line { first, second, label }| {
                    let class = classes.binary_search(&label).unwrap_or_default() as u32;
                    Example { first, second, class }
                })
                .collect()
        };
        let (training, validation) = (number(training), number(validation));
        Ok(Self { classes, training, validation, sha256: hex(&digest.finalize()) })
    }

    /// Numbers the classes as a model does, by `id2label`.
    ///
    /// # Errors
    /// [`Error::Setting`] for a class that the model does not have.
    pub fn renumber(&mut self, id2label: &BTreeMap<String, String>) -> Result<(), Error> {
        let numbers = self.classes.iter().map(|class| {
            let found = id2label.iter().find(|(_, label)| *label == class);
            found.and_then(|(id, _)| id.parse().ok()).ok_or_else(|| Error::Setting {
                name: "label",
                given: class.clone(),
                expected: id2label.values().cloned().collect::<Vec<_>>().join(" or "),
            })
        });
        let numbers: Vec<u32> = numbers.collect::<Result<_, _>>()?;
        for example in self.training.iter_mut().chain(&mut self.validation) {
            example.class = numbers[example.class as usize];
        }
        let mut classes = vec![String::new(); id2label.len()];
        for (class, &number) in self.classes.iter().zip(&numbers) {
            if let Some(own) = classes.get_mut(number as usize) {
                own.clone_from(class);
            }
        }
        self.classes = classes;
        Ok(())
    }

    /// The classes as Hugging Face's `id2label`.
    pub fn id2label(&self) -> BTreeMap<String, String> {
        (0..).map(|n: usize| n.to_string()).zip(self.classes.iter().cloned()).collect()
    }
}

/// Every tenth line apart.
fn split(lines: Vec<Line>) -> (Vec<Line>, Vec<Line>) {
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for (n, line) in lines.into_iter().enumerate() {
        if n % SPLIT_EVERY == SPLIT_EVERY - 1 { &mut validation } else { &mut training }.push(line);
    }
    (training, validation)
}

/// A file's text; old data sets are not always UTF-8, then each byte is a Latin-1 letter.
fn read(path: &Path, digest: &mut Sha256) -> Result<String, Error> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    digest.update((bytes.len() as u64).to_le_bytes());
    digest.update(&bytes);
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => error.as_bytes().iter().map(|&byte| char::from(byte)).collect(),
    })
}

fn read_tsv(path: &Path, digest: &mut Sha256) -> Result<Vec<Line>, Error> {
    let text = read(path, digest)?;
    let wrong =
        |line: usize, reason: String| Error::Examples { path: path.into(), line: line + 1, reason };
    let mut lines = text.lines().enumerate();
    let header = lines.next().map(|(_, line)| line).unwrap_or_default();
    let names: Vec<&str> = header.split('\t').map(str::trim).collect();
    let column = |name: &str| names.iter().position(|own| *own == name);
    let first = column("sentence").or_else(|| column("sentence1"));
    let (Some(first), Some(label)) = (first, column("label")) else {
        let reason = format!(
            "the columns are {}; expected `sentence` (or `sentence1` and `sentence2`) and `label`, \
             separated by tabs",
            names.join(", ")
        );
        return Err(wrong(0, reason));
    };
    let second = column("sentence2");
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(n, line)| {
            let fields: Vec<&str> = line.split('\t').collect();
            if fields.len() != names.len() {
                let (found, expected) = (fields.len(), names.len());
                return Err(wrong(n, format!("{found} columns, expected {expected}")));
            }
            let text = |at: usize| fields[at].trim().to_owned();
            Ok(Line { first: text(first), second: second.map(text), label: text(label) })
        })
        .collect()
}

/// Files named for their class.
fn by_suffix(folder: &Path, digest: &mut Sha256) -> Result<(Vec<Line>, Vec<Line>), Error> {
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for file in files {
        let known = ["txt", "md", "xml", "json", "csv"];
        let Some(class) = file.extension().and_then(|class| class.to_str()) else { continue };
        if !file.is_file() || known.contains(&class) {
            continue;
        }
        let lines = read(&file, digest)?
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|line| Line { first: line.into(), second: None, label: class.into() })
            .collect();
        let (mut own, mut held_out) = split(lines);
        training.append(&mut own);
        validation.append(&mut held_out);
    }
    Ok((training, validation))
}

/// A padded sequence with what is to be predicted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub tokens: Vec<u32>,
    pub segments: Vec<u32>,
    /// One for a class, two for the ends of an answer.
    pub targets: Vec<u32>,
}

/// `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`, of at most `seq` tokens: the longer
/// part is cut first.
pub(crate) fn join(special: Special, first: &[u32], second: Option<&[u32]>, seq: usize) -> Row {
    let Special { start, end, .. } = special;
    let added = if second.is_some() { 3 } else { 2 };
    let room = seq.saturating_sub(added);
    let (mut a, mut b) = (first.len(), second.map_or(0, <[u32]>::len));
    if a + b > room {
        // Both get half; what one does not need goes to the other.
        let half = room / 2;
        (a, b) = match (a <= half, b <= room - half) {
            (true, _) => (a, room - a),
            (_, true) => (room - b, b),
            _ => (room - (room - half), room - half),
        };
    }
    let mut tokens = vec![start];
    tokens.extend(&first[..a]);
    tokens.push(end);
    let mut segments = vec![0; tokens.len()];
    if let Some(second) = second {
        tokens.extend(&second[..b]);
        tokens.push(end);
        segments.resize(tokens.len(), 1);
    }
    Row { tokens, segments, targets: Vec::new() }
}

/// Examples as rows.
pub(crate) fn encode(
    examples: &[Example],
    pieces: &Subwords,
    seq: usize,
) -> Result<Vec<Row>, Error> {
    examples
        .iter()
        .map(|example| {
            let first = pieces.encode(&example.first)?;
            let second = example.second.as_ref().map(|text| pieces.encode(text)).transpose()?;
            let row = join(pieces.special()?, &first, second.as_deref(), seq);
            Ok(Row { targets: vec![example.class], ..row })
        })
        .collect()
}

/// Padded rows in shuffled epochs, or one after another to measure on.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    deck: Deck,
    batch: usize,
    batches: usize,
    seq: usize,
    pad: u32,
}

impl Rows {
    pub(crate) fn new(rows: Vec<Row>, config: &Config, pieces: &Subwords) -> Result<Self, Error> {
        let (batch, seq) = (config.batch, config.model.seq);
        if seq < 3 {
            let expected = "at least 3: text between the tokens that BERT adds".to_owned();
            return Err(Error::Setting { name: "--seq", given: seq.to_string(), expected });
        }
        Ok(Self {
            deck: Deck::new(rows.len(), config.seed),
            rows,
            batch,
            batches: config.eval_batches,
            seq,
            pad: pieces.special()?.pad,
        })
    }

    /// Targets come one kind after another, `[kinds, batch]`; entries without an example repeat
    /// the first one and do not count.
    fn collect(&self, step: u64, examples: &[Option<usize>]) -> Batch {
        let kinds = self.rows[0].targets.len();
        let mut result = Batch { step, ..Batch::default() };
        let (mut segments, mut mask) = (Vec::new(), Vec::new());
        for example in examples {
            let row = &self.rows[example.unwrap_or_default()];
            let padding = self.seq - row.tokens.len();
            let fill = |to: &mut Vec<u32>, values: &[u32], rest: u32| {
                to.extend(values);
                to.extend(std::iter::repeat_n(rest, padding));
            };
            fill(&mut result.inputs, &row.tokens, self.pad);
            fill(&mut segments, &row.segments, 0);
            fill(&mut mask, &vec![1; row.tokens.len()], 0);
        }
        let mut counted = Vec::new();
        for kind in 0..kinds {
            for example in examples {
                result.targets.push(self.rows[example.unwrap_or_default()].targets[kind]);
                counted.push(u32::from(example.is_some()));
            }
        }
        result.more = vec![segments, mask, counted];
        result
    }
}

impl TrainingBatches for Rows {
    fn batch(&mut self, step: u64) -> Batch {
        let first = step * self.batch as u64;
        let chosen: Vec<Option<usize>> =
            (first..first + self.batch as u64).map(|n| Some(self.deck.card(n))).collect();
        self.collect(step, &chosen)
    }

    fn copy(&self) -> Box<dyn TrainingBatches> {
        Box::new(self.clone())
    }
}

impl EvaluationBatches for Rows {
    fn count(&self) -> usize {
        self.rows.len().div_ceil(self.batch).min(self.batches).max(1)
    }

    fn batch(&self, index: usize) -> Batch {
        let first = index * self.batch;
        let chosen: Vec<Option<usize>> =
            (first..first + self.batch).map(|n| (n < self.rows.len()).then_some(n)).collect();
        self.collect(index as u64, &chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    fn pieces() -> Subwords {
        let text = "good bad film a the was very not";
        Subwords::train(std::iter::repeat_n(text, 9), 80, true).expect("enough room")
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (name, content) in files {
            fs::write(dir.path().join(name), content).expect("room");
        }
        dir
    }

    const TRAIN: &[u8] = b"sentence\tlabel\nthe film was good\t1\nbad\t0\n\nnot good\t0\n";
    const DEV: &[u8] = b"sentence\tlabel\ngood\t1\n";

    #[test]
    fn both_files_of_a_folder_are_read() {
        let dir = folder(&[("train.tsv", TRAIN), ("dev.tsv", DEV)]);
        let found = Examples::from_path(dir.path()).expect("examples");
        assert_eq!((found.training.len(), found.validation.len()), (3, 1));
        assert_eq!(found.classes, ["0", "1"]);
        assert_eq!(found.training[0].first, "the film was good");
        assert_eq!(found.training.iter().map(|one| one.class).collect::<Vec<_>>(), [1, 0, 0]);
        assert_eq!(found.id2label()["1"], "1");
    }

    #[test]
    fn classes_are_numbered_as_a_model_has_them() {
        let dir = folder(&[("train.tsv", TRAIN), ("dev.tsv", DEV)]);
        let mut found = Examples::from_path(dir.path()).expect("examples");
        let label = |id: &str, name: &str| (id.to_owned(), name.to_owned());
        found.renumber(&[label("0", "1"), label("1", "0")].into()).expect("known classes");
        assert_eq!(found.training.iter().map(|one| one.class).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!(found.classes, ["1", "0"]);
        let error = found.renumber(&[label("0", "1")].into()).expect_err("no class 0");
        assert!(error.to_string().contains("label is 0"), "{error}");
    }

    #[test]
    fn files_named_for_their_class_are_split() {
        let lines = "a good film\n".repeat(20);
        let latin = [&b"caf\xe9 bad\n"[..], "bad\n".repeat(19).as_bytes()].concat();
        let dir = folder(&[("x.pos", lines.as_bytes()), ("x.neg", &latin), ("README.txt", b"no")]);
        let found = Examples::from_path(dir.path()).expect("examples");
        assert_eq!((found.training.len(), found.validation.len()), (36, 4));
        assert_eq!(found.classes, ["neg", "pos"]);
        assert_eq!(found.training[0].first, "caf\u{e9} bad");
    }

    #[test]
    fn pairs_have_two_columns() {
        let text =
            "label\tsentence1\tsentence2\n".to_owned() + &"a\tgood\tbad\nb\tx\ty\n".repeat(9);
        let dir = folder(&[("pairs.tsv", text.as_bytes())]);
        let found = Examples::from_path(&dir.path().join("pairs.tsv")).expect("examples");
        assert_eq!(found.training[0].second.as_deref(), Some("bad"));
        assert_eq!((found.training.len(), found.validation.len()), (17, 1));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let message = |train: &[u8]| {
            let dir = folder(&[("train.tsv", train), ("dev.tsv", DEV)]);
            let error = Examples::from_path(dir.path()).expect_err("it is wrong");
            assert!(error.is_usage());
            error.to_string()
        };
        let text = message(b"text\tclass\nx\t1\n");
        assert!(text.contains("line 1") && text.contains("`label`"), "{text}");
        let text = message(b"sentence\tlabel\nx\t1\ny\n");
        assert!(text.contains("line 3: 1 columns, expected 2"), "{text}");
        let text = message(b"sentence\tlabel\nx\t1\n");
        assert!(text.contains("class `1`"), "{text}");
        assert!(message(b"sentence\tlabel\n").contains("no text"));
        assert!(Examples::from_path(Path::new("no/such")).is_err());
    }

    #[test]
    fn long_texts_are_cut_where_they_are_longer() {
        let special = pieces().special().expect("BERT's own");
        let (long, short): (Vec<u32>, Vec<u32>) = ((10..40).collect(), (50..53).collect());
        let row = join(special, &long, None, 12);
        assert_eq!(row.tokens.len(), 12);
        assert_eq!((row.tokens[0], row.tokens[11]), (special.start, special.end));
        let row = join(special, &long, Some(&short), 12);
        assert_eq!(row.tokens[8..11], short[..]);
        assert_eq!(row.segments, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
        let row = join(special, &short, Some(&long), 12);
        assert_eq!(row.tokens[1..4], short[..]);
        assert_eq!(row.tokens.len(), 12);
        let row = join(special, &long, Some(&long), 12);
        assert_eq!((row.tokens.len(), row.segments.iter().sum::<u32>()), (12, 6));
        assert_eq!(join(special, &short, None, 12).tokens.len(), 5);
    }

    #[test]
    fn every_example_is_measured_once_and_the_rest_does_not_count() {
        let pieces = pieces();
        let examples: Vec<Example> = (0..10)
            .map(|n| Example { first: "very good".into(), second: None, class: n % 2 })
            .collect();
        let config = Config {
            batch: 4,
            eval_batches: 100,
            model: ModelConfig { seq: 16, ..ModelConfig::default() },
            ..Config::default()
        };
        let rows = encode(&examples, &pieces, 16).expect("texts");
        let mut rows = Rows::new(rows, &config, &pieces).expect("settings");
        assert_eq!(rows.count(), 3);
        let last = EvaluationBatches::batch(&rows, 2);
        assert_eq!(last.more[2], [1, 1, 0, 0]);
        assert_eq!(last.inputs.len(), 4 * 16);
        let shown: u32 = last.more[1][..16].iter().sum();
        assert_eq!(shown as usize, rows.rows[8].tokens.len());
        // An epoch of training sees each example once.
        let batches = (0..5).map(|step| TrainingBatches::batch(&mut rows, step));
        let seen: u32 = batches.flat_map(|batch| batch.targets).sum();
        assert_eq!(seen, 10);
    }
}
