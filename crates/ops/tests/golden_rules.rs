//! The rules against figures of the reference library: `golden/unit_scaling.json`, measured by
//! running the Python package `unit-scaling` 0.3.5 (its own words are in the file).

use onesigma_backend::{Backend, RefBackend};
use onesigma_backend_cpu::CpuBackend;
use onesigma_ops::rules::{Case, Figures, expected, measure};
use onesigma_ops::{Error, LearningRateRule, ParamKind, ResidualRule, TransformerResidual};
use serde::Deserialize;

const GOLDEN: &str = include_str!("golden/unit_scaling.json");
const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<GoldenCase>,
    transformer_residual: Vec<Taus>,
    learning_rate: Vec<Rate>,
}

#[derive(Deserialize)]
struct GoldenCase {
    #[serde(flatten)]
    case: Case,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Deserialize)]
struct Taus {
    residual_mult: f64,
    residual_attn_ratio: f64,
    layers: usize,
    taus: Vec<f64>,
}

#[derive(Deserialize)]
struct Rate {
    mup_type: String,
    shape: Vec<usize>,
    depth: Option<usize>,
    adam: f64,
    sgd_readout_none: f64,
    sgd_readout_to_output_scale: f64,
}

fn golden() -> Golden {
    serde_json::from_str(GOLDEN).expect("the golden file is well formed")
}

#[test]
fn formulas_agree_with_the_reference_library() {
    let golden = golden();
    assert_eq!(golden.cases.len(), 101);
    for GoldenCase { case, figures } in golden.cases {
        let found = expected(&case).expect("a known case");
        let difference = found.difference(&figures);
        assert!(difference < TOLERANCE, "{case:?}\n{found:?}\n{figures:?}");
    }
}

fn measured_scales_agree(backend: &dyn Backend) {
    for GoldenCase { case, figures } in golden().cases {
        let found = measure(&case, backend).expect("the backend runs every op");
        let difference = found.figures.difference(&figures);
        assert!(difference < TOLERANCE, "{case:?}\n{found:?}\n{figures:?}");
        assert!(found.deviation < 1e-5, "{case:?}\n{found:?}");
    }
}

#[test]
fn measured_scales_in_f64_agree_with_the_reference_library() {
    measured_scales_agree(&RefBackend::exact());
}

#[test]
fn measured_scales_of_the_cpu_agree_with_the_reference_library() {
    measured_scales_agree(&CpuBackend::new());
}

#[test]
fn residual_weights_agree_with_the_reference_library() {
    for Taus { residual_mult, residual_attn_ratio, layers, taus } in golden().transformer_residual {
        let rule = TransformerResidual { residual_mult, residual_attn_ratio };
        assert_eq!(taus.len(), layers);
        for (index, expected) in taus.into_iter().enumerate() {
            let tau =
                rule.tau(ResidualRule::DepthAware, index, layers).expect("a branch of the model");
            assert!((tau - expected).abs() < TOLERANCE, "{index} of {layers}: {tau}");
        }
    }
}

#[test]
fn learning_rates_agree_with_the_reference_library() {
    for rate in golden().learning_rate {
        let kind = match rate.mup_type.as_str() {
            "weight" => ParamKind::Weight,
            "output" => ParamKind::Readout,
            "bias" => ParamKind::Bias,
            "norm" => ParamKind::Norm,
            other => panic!("unknown kind {other} in the golden file"),
        };
        for (rule, expected) in [
            (LearningRateRule::U_MUP, rate.adam),
            (LearningRateRule::U_MUP, rate.sgd_readout_none),
            (LearningRateRule::U_MUP_SGD_CONSTRAINED, rate.sgd_readout_to_output_scale),
            (LearningRateRule::UNIFORM, 1.0),
        ] {
            let factor = rule.factor(kind, &rate.shape, rate.depth);
            assert!((factor / expected - 1.0).abs() < TOLERANCE, "{rule:?} {kind:?}: {factor}");
        }
    }
}

/// Rules of the paper that the library lacks: as measured by this crate's own formulas.
#[test]
fn rules_beyond_the_reference_library_are_measured_as_expected() {
    let mut cases = Vec::new();
    for op in ["relu", "tanh", "sigmoid", "hardtanh"] {
        for constraint in ["none", "gmean", "to_grad_input_scale"] {
            cases.push(serde_json::json!(
                {"op": op, "shapes": {"input": [16, 32]}, "constraint": constraint}
            ));
        }
    }
    cases.push(serde_json::json!(
        {"op": "hardtanh", "shapes": {"input": [16, 32]}, "args": {"mult": 0.5}}
    ));
    for constraint in ["none", "to_output_scale", "amean", "hmean"] {
        cases.push(serde_json::json!({
            "op": "weighted_add", "shapes": {"input": [4, 8], "other": [8], "third": [4, 8]},
            "args": {"weights": [0.5, 2.0, 1.5]}, "constraint": constraint,
        }));
    }
    for case in cases {
        let case: Case = serde_json::from_value(case).expect("a case");
        let expected = expected(&case).expect("a rule");
        for backend in [&RefBackend::exact() as &dyn Backend, &CpuBackend::new()] {
            let found = measure(&case, backend).expect("it runs");
            assert!(found.figures.difference(&expected) < TOLERANCE, "{case:?} {found:?}");
            assert!(found.deviation < 1e-5, "{case:?} {found:?}");
        }
    }
}

#[test]
fn dropout_in_training_keeps_its_mask() {
    let case = r#"{"op": "dropout", "shapes": {"input": [64, 64]}, "args": {"p": 0.25}}"#;
    let case: Case = serde_json::from_str(case).expect("a case");
    let found = measure(&case, &RefBackend::exact()).expect("it runs");
    assert!(found.figures.difference(&expected(&case).expect("a rule")) < TOLERANCE);
}

#[test]
fn malformed_cases_say_what_is_wrong() {
    for (text, part) in [
        (r#"{"op": "lineal", "shapes": {}}"#, "no such rule; there are: linear"),
        (r#"{"op": "linear", "shapes": {"input": [2, 3]}}"#, "no shape for operand `weight`"),
        (r#"{"op": "gelu", "shapes": {"input": [0]}}"#, "expected 1 to 2^29 elements"),
        (r#"{"op": "gelu", "shapes": {"input": [2]}, "args": {"mult": "x"}}"#, "`mult` is \"x\""),
        (r#"{"op": "gelu", "shapes": {"input": [2]}, "args": {"mult": 0}}"#, "`mult` is 0"),
        (r#"{"op": "residual_apply", "shapes": {"input": [2]}}"#, "`tau` is NaN"),
        (r#"{"op": "gelu", "shapes": {"input": [2]}, "constraint": "mean"}"#, "named `mean`"),
        (r#"{"op": "conv1d", "shapes": {"input": [2, 4, 8], "weight": [4, 3, 2]}}"#, "4/1"),
        (r#"{"op": "conv1d", "shapes": {"input": [2, 4, 3], "weight": [4, 4, 5]}}"#, "at most 3"),
        (
            r#"{"op": "conv1d", "shapes": {"input": [2, 4, 8], "weight": [4, 4, 2]},
                "args": {"stride": 0}}"#,
            "`stride` is 0, expected at least 1",
        ),
    ] {
        let case: Case = serde_json::from_str(text).expect("well-formed JSON");
        let error: Error = expected(&case).expect_err("the case is wrong");
        assert!(error.to_string().contains(part), "{error}");
        assert!(measure(&case, &RefBackend::exact()).is_err());
    }
}
