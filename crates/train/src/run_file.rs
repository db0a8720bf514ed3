//! Run files: a [`Config`] in TOML, with settings put over it one by one.
//!
//! ```
//! use onesigma_train::run_file;
//!
//! let mut table = run_file::parse("recipe = 'f32'\n[model]\nhidden = 64\n", "run.toml")?;
//! run_file::set(&mut table, "model.layers=2")?;
//! run_file::set(&mut table, "data = books.txt")?; // no TOML value: a string
//! let config = run_file::config(table, "run.toml")?;
//! assert_eq!((config.model.hidden, config.model.layers), (64, 2));
//! # Ok::<(), onesigma_train::Error>(())
//! ```

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::Error;
use crate::config::Config;

mod settings;

pub use onesigma_ops::nearest;
pub use settings::{digest, overlay, set_path};

/// The table of a file.
///
/// # Errors
/// [`Error::Config`] if there is no such file, or for what is not TOML; [`Error::Io`].
pub fn read(path: &Path) -> Result<Table, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            Error::Config { path: path.into(), reason: "no such configuration file".into() }
        }
        _ => Error::io("read", path)(source),
    })?;
    // Read as a configuration first: its errors name line and column.
    from_toml::<Config>(&text, path)?;
    parse(&text, &path.to_string_lossy())
}

/// The table of a text; `origin` names it in messages.
///
/// # Errors
/// [`Error::Config`] for what is not TOML.
pub fn parse(text: &str, origin: &str) -> Result<Table, Error> {
    text.parse().map_err(|error: toml::de::Error| Error::Config {
        path: origin.into(),
        reason: error.to_string().trim_end().to_owned(),
    })
}

/// Any value from TOML; an unknown entry is refused with the known one that is nearest to it.
///
/// # Errors
/// [`Error::Config`].
pub fn from_toml<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| Error::Config {
        path: path.into(),
        reason: with_nearest(error.to_string().trim_end()),
    })
}

/// Puts a setting, `KEY=VALUE`, over a table. The key may lead into tables, as `model.hidden`; a
/// value that is not TOML is a string.
///
/// # Errors
/// [`Error::Setting`] without `=`, or for a key that leads through something else than a table.
pub fn set(table: &mut Table, setting: &str) -> Result<(), Error> {
    let wrong = |expected: &str| Error::Setting {
        name: "--set",
        given: format!("`{setting}`"),
        expected: expected.into(),
    };
    let (key, value) = setting.split_once('=').ok_or_else(|| wrong("KEY=VALUE"))?;
    let (key, value) = (key.trim(), value.trim());
    if key.is_empty() {
        return Err(wrong("KEY=VALUE"));
    }
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
    match set_path(table, key, value) {
        true => Ok(()),
        false => Err(wrong("a key that leads through tables, as model.hidden")),
    }
}

/// The configuration of a table; `origin` names it in messages.
///
/// # Errors
/// [`Error::Config`] for a wrong or unknown entry, with the nearest known one.
pub fn config(table: Table, origin: &str) -> Result<Config, Error> {
    table.try_into().map_err(|error: toml::de::Error| Error::Config {
        path: origin.into(),
        reason: with_nearest(error.to_string().trim_end()),
    })
}

/// Most names that a message lists beside the nearest one.
const FEW: usize = 12;

/// A message of the parser with `did you mean` where it names an unknown field or variant and the
/// known ones; of many, only the nearest is named.
fn with_nearest(message: &str) -> String {
    let quoted = |text: &str| -> Vec<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let Some(at) = ["unknown field", "unknown variant"].iter().find_map(|kind| message.find(kind))
    else {
        return message.to_owned();
    };
    let names = quoted(&message[at..]);
    match names.split_first().and_then(|(given, known)| nearest(given, known)) {
        Some(near) => {
            let (before, rest) = message[at..].split_once(", expected").unwrap_or((message, ""));
            // What follows on further lines says where.
            let (known, place) = rest.find('\n').map_or((rest, ""), |end| rest.split_at(end));
            let known = match names.len() {
                ..=FEW => format!(" (expected{known})"),
                _ => String::new(),
            };
            format!("{}{before}, did you mean `{near}`?{known}{place}", &message[..at])
        }
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_with_the_nearest_one_at_any_depth() {
        for (text, words) in [
            ("stepz = 3", ["stepz", "did you mean `steps`?", "run.toml"]),
            ("[model]\nhiden = 3", ["hiden", "did you mean `hidden`?", "run.toml"]),
            ("schedule = 'cosin'", ["cosin", "did you mean `cosine`?", "run.toml"]),
            ("[model]\nhidden = 'x'", ["hidden", "invalid type", "run.toml"]),
        ] {
            let path = Path::new("run.toml");
            let from_text = from_toml::<Config>(text, path).expect_err(text).to_string();
            let table = parse(text, "run.toml").expect("TOML");
            let from_table = config(table, "run.toml").expect_err(text).to_string();
            for message in [from_text, from_table] {
                for word in words {
                    assert!(message.contains(word), "no `{word}` in {message}");
                }
            }
        }
    }

    #[test]
    fn settings_go_over_the_file() {
        let mut table = parse("steps = 3\n[model]\nhidden = 8", "run.toml").expect("TOML");
        for setting in ["steps=5", "model.heads = 2", "recipe=f32", "sample_prompt='a = b'"] {
            set(&mut table, setting).expect(setting);
        }
        let config = config(table.clone(), "run.toml").expect("a configuration");
        assert_eq!((config.steps, config.model.hidden, config.model.heads), (5, 8, 2));
        assert_eq!((config.recipe.as_str(), config.sample_prompt.as_str()), ("f32", "a = b"));
        for wrong in ["steps", "=5", "steps.x=5"] {
            assert!(set(&mut table, wrong).expect_err(wrong).is_usage());
        }
    }

    #[test]
    fn tables_are_laid_over_each_other() {
        let mut base = parse("a = 1\n[t]\nx = 1\ny = 1", "base").expect("TOML");
        overlay(&mut base, &parse("b = 2\n[t]\ny = 2", "over").expect("TOML"));
        assert_eq!(base, parse("a = 1\nb = 2\n[t]\nx = 1\ny = 2", "both").expect("TOML"));
    }
}
