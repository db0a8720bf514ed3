//! Questions with answers within a text, in the form of SQuAD (arXiv 1606.05250).
//!
//! A folder has `train*.json` and `dev*.json`; of a single file every tenth paragraph is measured
//! on. A text that is too long for one sequence is cut into windows that overlap by half; a window
//! that does not hold the whole answer has its ends at the first token, as a question without an
//! answer has.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::examples::{Row, join};
use crate::Error;
use crate::corpus::{SPLIT_EVERY, hex};
use crate::tokenizer::Subwords;

/// A question, the text with its answer, and the bytes of the answer in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The question.
    pub question: String,
    /// The text.
    pub context: String,
    /// First byte and one past the last; `None` if there is no answer.
    pub answer: Option<(usize, usize)>,
}

/// Questions in two splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Questions {
    /// To train on.
    pub training: Vec<Question>,
    /// To measure on.
    pub validation: Vec<Question>,
    /// SHA-256 of the files' contents, in order.
    pub sha256: String,
}

#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    question: String,
    #[serde(default)]
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    /// In letters, not bytes.
    answer_start: usize,
}

impl Questions {
    /// Reads questions; see the [module](self).
    ///
    /// # Errors
    /// [`Error::DataMissing`], [`Error::DataEmpty`]; [`Error::Examples`] for a file of another
    /// form or an answer that does not stand where it says; [`Error::Io`].
    pub fn from_path(path: &Path) -> Result<Self, Error> {
        let meta = fs::metadata(path).map_err(|_| Error::DataMissing { path: path.into() })?;
        let mut digest = Sha256::new();
        let (training, validation) = if meta.is_file() {
            let mut training = read(path, &mut digest)?;
            let mut n = 0;
            let validation = training.extract_if(.., |_| {
                n += 1;
                n % SPLIT_EVERY == 0
            });
            let validation: Vec<Vec<Question>> = validation.collect();
            (training, validation)
        } else {
            let found = |prefix: &str| -> Result<PathBuf, Error> {
                let entries = fs::read_dir(path).map_err(Error::io("read", path))?;
                let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
                files.sort();
                let fits = |file: &PathBuf| {
                    let name = file.file_name().unwrap_or_default().to_string_lossy();
                    name.starts_with(prefix) && name.ends_with(".json")
                };
                files.into_iter().find(fits).ok_or_else(|| Error::Examples {
                    path: path.into(),
                    line: 0,
                    reason: format!("no {prefix}*.json; expected train*.json and dev*.json"),
                })
            };
            (read(&found("train")?, &mut digest)?, read(&found("dev")?, &mut digest)?)
        };
        let (training, validation) = (training.concat(), validation.concat());
        if training.is_empty() || validation.is_empty() {
            return Err(Error::DataEmpty { path: path.into() });
        }
        Ok(Self { training, validation, sha256: hex(&digest.finalize()) })
    }
}

/// The questions of a file, by paragraph.
fn read(path: &Path, digest: &mut Sha256) -> Result<Vec<Vec<Question>>, Error> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    digest.update((text.len() as u64).to_le_bytes());
    digest.update(text.as_bytes());
    let file: File = serde_json::from_str(&text).map_err(|error| Error::Examples {
        path: path.into(),
        line: error.line(),
        reason: format!("{error}; expected the form of SQuAD"),
    })?;
    let paragraphs = file.data.into_iter().flat_map(|article| article.paragraphs);
    paragraphs.map(|paragraph| questions(path, paragraph)).collect()
}

fn questions(path: &Path, paragraph: Paragraph) -> Result<Vec<Question>, Error> {
    let Paragraph { context, qas } = paragraph;
    let ask = |asked: Asked| {
        let answer = match asked.answers.first() {
            None => None,
            Some(answer) => {
                let start = context.char_indices().nth(answer.answer_start).map(|(byte, _)| byte);
                let fits = |start: &usize| context[*start..].starts_with(&answer.text);
                let start = start.filter(fits).ok_or_else(|| Error::Examples {
                    path: path.into(),
                    line: 0,
                    reason: format!(
                        "the answer `{}` does not stand at letter {} of its text",
                        answer.text, answer.answer_start
                    ),
                })?;
                Some((start, start + answer.text.len())).filter(|(a, b)| a < b)
            }
        };
        Ok(Question { question: asked.question, context: context.clone(), answer })
    };
    qas.into_iter().map(ask).collect()
}

/// Questions as rows `[CLS] question [SEP] window of the text [SEP]`.
pub(crate) fn encode(
    questions: &[Question],
    pieces: &Subwords,
    seq: usize,
) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for Question { question, context, answer } in questions {
        let mut asked = pieces.encode(question)?;
        asked.truncate(seq.saturating_sub(3) / 2);
        let text = pieces.pieces(context)?;
        let ids: Vec<u32> = text.iter().map(|piece| piece.id).collect();
        // The pieces that the answer touches.
        let touched = answer.and_then(|(start, end)| {
            let first = text.iter().position(|piece| piece.end > start)?;
            let last = text.iter().rposition(|piece| piece.start < end)?;
            (first <= last).then_some((first, last))
        });
        let room = seq.saturating_sub(3 + asked.len()).max(1);
        let mut from = 0;
        loop {
            let to = ids.len().min(from + room);
            let before = asked.len() + 2;
            let ends = match touched {
                Some((first, last)) if from <= first && last < to => {
                    [first, last].map(|at| (before + at - from) as u32)
                }
                _ => [0, 0],
            };
            let row = join(pieces.special()?, &asked, Some(&ids[from..to]), seq);
            rows.push(Row { targets: ends.to_vec(), ..row });
            if to == ids.len() {
                break;
            }
            from += room.div_ceil(2);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: &str = "In été 1910 the old mill burned. The new mill stands by the river.";

    fn pieces() -> Subwords {
        let text = format!("{CONTEXT} where does what when");
        Subwords::train(std::iter::repeat_n(text.as_str(), 9), 200, true).expect("enough room")
    }

    fn file(start: usize) -> String {
        serde_json::json!({"data": [{"paragraphs": [{
            "context": CONTEXT,
            "qas": [
                {"question": "when", "answers": [{"text": "1910", "answer_start": start}]},
                {"question": "what", "answers": []},
            ],
        }]}]})
        .to_string()
    }

    #[test]
    fn answers_are_found_by_letter() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::write(dir.path().join("train-v1.json"), file(7)).expect("room");
        fs::write(dir.path().join("dev-v1.json"), file(7)).expect("room");
        let found = Questions::from_path(dir.path()).expect("questions");
        let (start, end) = found.training[0].answer.expect("an answer");
        assert_eq!(&CONTEXT[start..end], "1910");
        assert_eq!(found.validation[1].answer, None);

        fs::write(dir.path().join("dev-v1.json"), file(8)).expect("room");
        let error = Questions::from_path(dir.path()).expect_err("it stands elsewhere");
        assert!(error.to_string().contains("`1910`"), "{error}");
        fs::write(dir.path().join("dev-v1.json"), "{\n\"data\": 3}").expect("room");
        let error = Questions::from_path(dir.path()).expect_err("another form");
        assert!(error.to_string().contains("line 2"), "{error}");
        fs::remove_file(dir.path().join("dev-v1.json")).expect("its own file");
        assert!(Questions::from_path(dir.path()).is_err());
    }

    #[test]
    fn the_ends_are_the_answers_pieces_in_every_window() {
        let pieces = pieces();
        let start = CONTEXT.find("new mill").expect("it is there");
        let answer = Some((start, start + "new mill".len()));
        let question = Question { question: "where".into(), context: CONTEXT.into(), answer };
        for seq in [64, 14] {
            let rows = encode(std::slice::from_ref(&question), &pieces, seq).expect("a text");
            assert_eq!(rows.len() > 1, seq == 14);
            let mut found = 0;
            for row in &rows {
                assert!(row.tokens.len() <= seq);
                let [first, last] = [row.targets[0] as usize, row.targets[1] as usize];
                if last == 0 {
                    continue;
                }
                let text = pieces.decode(&row.tokens[first..=last]).expect("tokens");
                assert_eq!(text, "new mill");
                found += 1;
            }
            assert!(found >= 1, "{rows:?}");
        }
    }
}
