//! `onesigma rules`: lists of cases through the binary.

use std::io::Write;
use std::process::{Command, Stdio};

mod common;

use common::{Outcome, folder, onesigma};
use serde_json::{Value, json};

/// Figures of the Python package `unit-scaling` 0.3.5; see the file.
const GOLDEN: &str = include_str!("../../ops/tests/golden/unit_scaling.json");
const TOLERANCE: f64 = 1e-6;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Whether `found` has the output and gradients of `golden`, and no others.
fn agree(found: &Value, golden: &Value) -> bool {
    let close = |a: &Value, b: &Value| (number(a) / number(b) - 1.0).abs() < TOLERANCE;
    let keys = |value: &Value| -> Vec<String> {
        value["grads"].as_object().expect("an object").keys().cloned().collect()
    };
    let all = |key: &String| close(&found["grads"][key], &golden["grads"][key]);
    close(&found["output"], &golden["output"])
        && keys(found) == keys(golden)
        && keys(golden).iter().all(all)
}

fn piped(arguments: &[&str], input: &str) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_onesigma"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn every_golden_case_comes_back_measured_and_expected() {
    let golden: Value = serde_json::from_str(GOLDEN).expect("JSON");
    let cases = golden["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 101);
    // The questions alone: no figure can come back from the input.
    let questions: Vec<Value> = cases
        .iter()
        .map(|case| {
            json!({"op": case["op"], "shapes": case["shapes"], "args": case["args"],
                   "constraint": case["constraint"]})
        })
        .collect();
    let dir = folder();
    let path = dir.path().join("cases.json");
    std::fs::write(&path, Value::from(questions).to_string()).expect("room");
    let outcome = onesigma(&["rules", "--json", path.to_str().expect("UTF-8"), "--backend", "cpu"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let answers: Vec<Value> = serde_json::from_str(&outcome.stdout).expect("a JSON list");
    assert_eq!(answers.len(), cases.len());
    for (answer, case) in answers.iter().zip(cases) {
        assert_eq!((&answer["op"], &answer["args"]), (&case["op"], &case["args"]));
        assert!(agree(answer, case), "measured {answer}\ngolden {case}");
        assert!(agree(&answer["expected"], case), "expected {answer}\ngolden {case}");
    }
    let convolutions = answers.iter().filter(|answer| answer["op"] == "conv1d").count();
    assert_eq!(convolutions, 8);
}

#[test]
fn cases_come_from_standard_input_too() {
    let case = r#"[{"op": "relu", "shapes": {"input": [64]}, "constraint": "gmean"}]"#;
    for words in [&["rules", "--json"][..], &["rules", "--json", "-"]] {
        let outcome = piped(words, case);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let answers: Value = serde_json::from_str(&outcome.stdout).expect("a JSON list");
        let (found, expected) = (&answers[0]["output"], &answers[0]["expected"]["output"]);
        assert!((number(found) / number(expected) - 1.0).abs() < TOLERANCE, "{answers}");
    }
}

#[test]
fn what_is_no_list_of_cases_is_refused() {
    for (text, words) in [
        ("", &["list of rule cases", "line 1"][..]),
        ("{", &["list of rule cases", "line 1"]),
        (r#"[{"shapes": {}}]"#, &["missing field `op`"]),
        (r#"[{"op": "gelu", "shapes": {"input": [-3]}}]"#, &["list of rule cases", "-3"]),
        (
            r#"[{"op": "gelu", "shapes": {"input": [4]}}, {"op": "swish", "shapes": {}}]"#,
            &["case 2 of 2", "`swish`", "conv1d"],
        ),
        (
            r#"[{"op": "linear", "shapes": {"input": [4, 3], "weight": [5, 2]}}]"#,
            &["case 1 of 1", "found 3", "2"],
        ),
        (
            r#"[{"op": "gelu", "shapes": {"input": [4]}, "constraint": "to_left_grad_scale"}]"#,
            &["to_left_grad_scale", "takes 3 scales"],
        ),
    ] {
        let outcome = piped(&["rules", "--json"], text);
        assert_eq!(outcome.code, Some(2), "{text}: {}", outcome.stderr);
        assert!(outcome.stderr.starts_with("error: "), "{}", outcome.stderr);
        assert!(outcome.stdout.is_empty(), "{}", outcome.stdout);
        for word in words {
            assert!(outcome.stderr.contains(word), "no `{word}` in: {}", outcome.stderr);
        }
    }
    let outcome = onesigma(&["rules", "--json", "/nonexistent/cases.json"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("/nonexistent/cases.json"), "{}", outcome.stderr);
    let outcome = piped(&["rules", "--json", "--backend", "abacus"], "[]");
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("abacus"), "{}", outcome.stderr);
}

#[test]
fn the_constants_of_a_model_are_proved_and_listed() {
    let words = ["rules", "verify", "--layers", "2", "--hidden", "32", "--heads", "2"];
    let constants = |parametrisation: &str| {
        let outcome = onesigma(&[&words[..], &["--parametrisation", parametrisation]].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(outcome.stdout.contains("proved: "), "{}", outcome.stdout);
        let rows = outcome.stdout.lines().filter(|line| line.contains(".weight"));
        let constant = |row: &str| {
            let words: Vec<&str> = row.split_whitespace().collect();
            words[words.len() - 2].parse::<f64>().expect("a constant")
        };
        rows.map(constant).collect::<Vec<f64>>()
    };
    // Two tables, six matrices in each layer, the readout.
    assert_eq!(constants("regular"), [1.0; 15]);
    let scaled = constants("u-mup");
    assert_eq!(scaled.len(), 15);
    assert!(scaled.iter().all(|constant| *constant > 0.0 && *constant != 1.0), "{scaled:?}");
    // One factor both ways: all parameters share the constant of the loss, 16 x 128 positions.
    let loss = 2048.0 * 256.0 / 255_f64.sqrt();
    for constant in constants("mu-s") {
        assert!((constant / loss - 1.0).abs() < 1e-6, "{constant} {loss}");
    }
    let outcome = onesigma(&["compile", "--layers", "1"]);
    assert!(outcome.stdout.contains("gradients   proved right"), "{}", outcome.stdout);
}
