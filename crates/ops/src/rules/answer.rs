//! Lists of cases, answered: what `onesigma rules` reads and writes as JSON.

use super::{Case, Figures, expected, measure};
use crate::{Error, Result};
use onesigma_backend::Backend;
use serde::{Deserialize, Serialize};

/// A case with its measured and expected scales. As JSON, the case's fields stand beside `output`
/// and `grads` (measured), `expected` (an object with `output` and `grads`) and `deviation`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Answer {
    /// The case.
    #[serde(flatten)]
    pub case: Case,
    /// Ratios of the scaled to the plain op, as the backend computes them.
    #[serde(flatten)]
    pub measured: Figures,
    /// Scales from the formulas.
    pub expected: Figures,
    /// Part of the measured tensors that one constant does not explain; see
    /// [`Measured`](super::Measured).
    pub deviation: f64,
}

/// Measures a case on a backend and evaluates its formulas.
///
/// # Errors
/// As [`expected`] and [`measure`].
pub fn answer(case: Case, backend: &dyn Backend) -> Result<Answer> {
    let expected = expected(&case)?;
    let measured = measure(&case, backend)?;
    Ok(Answer { case, measured: measured.figures, expected, deviation: measured.deviation })
}

/// Answers every case of a JSON list, or of the list `cases` of a JSON object, and gives a JSON
/// list of [`Answer`]s in the same order.
///
/// # Errors
/// [`Error::CaseSyntax`] for text of another form; [`Error::CaseOf`] for the first case that
/// fails, with its number and the error of [`answer`].
pub fn answer_json(text: &str, backend: &dyn Backend) -> Result<String> {
    #[derive(Deserialize)]
    struct Listed {
        cases: Vec<Case>,
    }
    let syntax = |error: serde_json::Error| Error::CaseSyntax { reason: error.to_string() };
    let cases = match text.trim_start().starts_with('{') {
        true => serde_json::from_str::<Listed>(text).map_err(syntax)?.cases,
        false => serde_json::from_str(text).map_err(syntax)?,
    };
    let count = cases.len();
    let one = |(at, case)| {
        let source = |error| Error::CaseOf { number: at + 1, count, source: Box::new(error) };
        answer(case, backend).map_err(source)
    };
    let answers: Vec<Answer> = cases.into_iter().enumerate().map(one).collect::<Result<_>>()?;
    serde_json::to_string_pretty(&answers).map_err(syntax)
}

#[cfg(test)]
mod tests {
    use super::*;
    use onesigma_backend::RefBackend;

    #[test]
    fn a_list_is_answered_and_reads_back() -> Result<()> {
        let case = r#"{"op": "add", "shapes": {"input": [4, 8], "other": [8]}, "args": {},
                       "constraint": "hmean"}"#;
        let backend = RefBackend::exact();
        let text = answer_json(&format!("[{case}]"), &backend)?;
        assert_eq!(text, answer_json(&format!("{{\"cases\": [{case}]}}"), &backend)?);
        let value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        let (found, expected) =
            (&value[0]["grads"]["other"], &value[0]["expected"]["grads"]["other"]);
        let number = |value: &serde_json::Value| value.as_f64().expect("a number");
        assert!((number(found) - number(expected)).abs() < 1e-6);
        assert_eq!(value[0]["constraint"], "hmean");
        assert!(answer_json(&text, &backend).is_ok(), "an answer is a case again");
        Ok(())
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "3", "{}", "[{}]"] {
            let error = answer_json(text, &RefBackend::exact()).expect_err("no list of cases");
            assert!(error.to_string().starts_with("list of rule cases: "), "{error}");
        }
    }
}
