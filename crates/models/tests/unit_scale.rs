//! The auto-scaler on whole models: from the regular graph it makes the one that the same
//! definition gives in a scaled parametrisation. Loss and every gradient agree in f64.

mod support;

use onesigma_graph::{Graph, Op, ValueId};
use onesigma_models::config::{Activation, Norm, NormPosition, Positions};
use onesigma_models::{
    BertConfig, BertInputs, BertTask, GptConfig, Init, MaskedTokens, ParamSpec, Params,
    bert_classification_loss, bert_masked_lm_loss, bert_pre_training_loss, bert_span_loss,
    gpt_loss,
};
use onesigma_ops::unit_scale::{Scaled, UnitScale};
use onesigma_ops::{Parametrisation, TransformerResidual};
use support::{Input, Step, bert_inputs, dot, numbers};

type Build = Box<
    dyn Fn(
        Parametrisation,
        &mut Graph,
        &mut Params,
        &[ValueId],
    ) -> onesigma_models::Result<ValueId>,
>;

struct Case {
    title: String,
    p: Parametrisation,
    specs: [Vec<ParamSpec>; 2],
    inputs: fn() -> Vec<Input>,
    options: UnitScale,
    build: Build,
}

fn parameters(graph: &Graph, specs: &[ParamSpec]) -> Vec<ValueId> {
    let find = |spec: &ParamSpec| {
        let slot = graph.nodes().iter().find(|node| node.name == spec.name);
        slot.unwrap_or_else(|| panic!("no {}", spec.name)).outputs[0]
    };
    specs.iter().map(find).collect()
}

impl Case {
    /// Loss and gradients of the scaled definition, and of the scaled regular graph; and the
    /// latter's report.
    fn check(&self) -> Scaled {
        let [regular_specs, specs] = &self.specs;
        let by_hand =
            Step::new(specs.clone(), self.p, (self.inputs)(), false, |graph, params, x| {
                (self.build)(self.p, graph, params, x)
            });
        let mut scaled = None;
        // The specs of the scaled model give both the same weights.
        let automatic =
            Step::new(specs.clone(), self.p, (self.inputs)(), false, |graph, params, x| {
                let loss = (self.build)(Parametrisation::Regular, graph, params, x)?;
                let values = parameters(graph, regular_specs);
                let result = self.options.apply(graph, loss, &values).expect("it scales");
                *graph = result.graph.clone();
                // The step goes on with the ids that it gave out.
                assert_eq!(result.parameters, parameters(graph, specs), "{}", self.title);
                let loss = result.loss;
                scaled = Some(result);
                Ok(loss)
            });
        let (expected, found) = (by_hand.run_exact(), automatic.run_exact());
        let apart = |a: &[f64], b: &[f64]| {
            let wrong: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            (dot(&wrong, &wrong) / dot(b, b).max(1e-20)).sqrt()
        };
        let loss = apart(&found(automatic.slots.loss), &expected(by_hand.slots.loss));
        assert!(loss < 1e-12, "{}: loss {loss:e}", self.title);
        let slots = by_hand.slots.grads.iter().zip(&automatic.slots.grads);
        for (spec, (&by_hand, &automatic)) in specs.iter().zip(slots) {
            let (expected, found) = (expected(by_hand), found(automatic));
            if dot(&expected, &expected).sqrt() < 1e-9 {
                assert!(dot(&found, &found).sqrt() < 1e-9, "{}: {}", self.title, spec.name);
                continue;
            }
            let error = apart(&found, &expected);
            let ratio = dot(&found, &expected) / dot(&expected, &expected);
            assert!(error < 1e-12, "{}: {} {error:e}, ratio {ratio}", self.title, spec.name);
        }
        scaled.expect("it was built")
    }
}

fn residual(mult: f64, ratio: f64) -> TransformerResidual {
    TransformerResidual { residual_mult: mult, residual_attn_ratio: ratio }
}

fn gpt_inputs() -> Vec<Input> {
    let ids = |name, stream| Input { name, shape: vec![2, 6], values: numbers(12, 11, stream) };
    vec![ids("tokens", 1000), ids("targets", 1001)]
}

fn gpt_case(name: &str, p: Parametrisation, config: &GptConfig) -> Case {
    let mut options =
        UnitScale::new(p).residual(residual(config.residual_mult, config.residual_attn_ratio));
    if let Some(tau) = config.residual_tau {
        options = options.tau(tau);
    }
    let specs = [Parametrisation::Regular, p].map(|p| config.parameters(p).expect("possible"));
    let config = config.clone();
    let build: Build = Box::new(move |p, graph, params, x| {
        Ok(gpt_loss(graph, params, &config, p, x[0], x[1], true)?.loss)
    });
    Case { title: format!("{name} in {p}"), p, specs, inputs: gpt_inputs, options, build }
}

fn gpt_config() -> GptConfig {
    GptConfig {
        vocab_size: 11,
        n_positions: 7,
        n_embd: 8,
        n_layer: 3,
        n_head: 4,
        attention_mult: 2.0,
        loss_mult: 0.7,
        residual_mult: 0.5,
        residual_attn_ratio: 1.5,
        tie_word_embeddings: Some(false),
        norm_position: Some(NormPosition::Pre),
        ..GptConfig::default()
    }
}

const SCALED: [Parametrisation; 3] =
    [Parametrisation::Unit, Parametrisation::UMup, Parametrisation::MuS];

#[test]
fn a_regular_gpt_becomes_the_scaled_one() {
    let base = gpt_config();
    let llama = GptConfig {
        activation_function: Activation::Swiglu,
        norm: Norm::RmsNorm,
        positions: Positions::Rotary,
        n_kv_head: Some(2),
        n_inner: Some(20),
        bias: false,
        ..base.clone()
    };
    let with = |position| GptConfig { norm_position: Some(position), ..base.clone() };
    for (name, config) in [
        ("gpt-2", base.clone()),
        ("full length", GptConfig { n_positions: 6, ..base.clone() }),
        ("tied", GptConfig { tie_word_embeddings: Some(true), ..base.clone() }),
        ("gelu_new", GptConfig { activation_function: Activation::GeluNew, ..base.clone() }),
        ("silu", GptConfig { activation_function: Activation::Silu, ..base.clone() }),
        ("llama", llama.clone()),
        ("tied llama", GptConfig { tie_word_embeddings: Some(true), ..llama }),
        ("post-norm", with(NormPosition::Post)),
        ("branch-end norm", with(NormPosition::BranchEnd)),
        ("fixed tau", GptConfig { residual_tau: Some(0.3), ..base.clone() }),
        ("odd widths", GptConfig { n_inner: Some(21), bias: false, ..base }),
    ] {
        for p in SCALED {
            gpt_case(name, p, &config).check();
        }
    }
}

#[test]
fn dropout_gets_its_scales_and_keeps_its_masks() {
    let config = GptConfig {
        embd_pdrop: 0.1,
        attn_pdrop: 0.2,
        resid_pdrop: 0.3,
        n_kv_head: Some(2),
        ..gpt_config()
    };
    // The masks of two graphs with other nodes are other masks: the scales are compared.
    for p in SCALED {
        let case = gpt_case("dropout", p, &config);
        let mut graphs = Vec::new();
        for own in [p, Parametrisation::Regular] {
            Step::new(case.specs[1].clone(), p, gpt_inputs(), false, |graph, params, x| {
                let loss = (case.build)(own, graph, params, x)?;
                if own != p {
                    let values = parameters(graph, &case.specs[0]);
                    let scaled = case.options.apply(graph, loss, &values).expect("it scales");
                    *graph = scaled.graph;
                    graphs.push(graph.clone());
                    return Ok(scaled.loss);
                }
                graphs.push(graph.clone());
                Ok(loss)
            });
        }
        let scales = |graph: &Graph| -> Vec<(Op, Vec<f64>, Vec<f64>)> {
            let scaled = graph.nodes().iter().filter(|node| !node.op.is_movement());
            scaled.map(|node| (node.op.clone(), node.alpha.clone(), node.beta.clone())).collect()
        };
        let (by_hand, automatic) = (scales(&graphs[0]), scales(&graphs[1]));
        assert_eq!(by_hand.len(), automatic.len(), "{p}");
        for (n, (a, b)) in by_hand.iter().zip(&automatic).enumerate() {
            let close = |a: &[f64], b: &[f64]| {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a / b - 1.0).abs() < 1e-12)
            };
            let name = &graphs[0].nodes()[n].name;
            assert!(close(&a.1, &b.1) && close(&a.2, &b.2), "{p} {name}: {a:?} {b:?}");
        }
    }
}

fn bert_case(p: Parametrisation, task: BertTask, position: NormPosition, tied: bool) -> Case {
    let config = BertConfig {
        vocab_size: 13,
        hidden_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 20,
        max_position_embeddings: 6,
        norm_position: position,
        tie_word_embeddings: Some(tied),
        residual_mult: 0.7,
        ..BertConfig::default()
    };
    let specs =
        [Parametrisation::Regular, p].map(|p| config.parameters(task, p).expect("possible"));
    let keys = config.attention_keys();
    let build: Build = Box::new(move |p, graph, params, x| {
        let inputs = BertInputs { tokens: x[0], segments: Some(x[1]), mask: Some(x[2]) };
        let masked = MaskedTokens { rows: x[3], targets: x[4], counted: x[5] };
        let (c, labels) = (&config, x[6]);
        let out = match task {
            BertTask::MaskedLm => bert_masked_lm_loss(graph, params, c, p, inputs, masked, true),
            BertTask::PreTraining => {
                bert_pre_training_loss(graph, params, c, p, inputs, masked, labels, true)
            }
            BertTask::Classification => {
                bert_classification_loss(graph, params, c, p, inputs, labels, None, true)
            }
            _ => bert_span_loss(graph, params, c, p, inputs, x[7], None, true),
        };
        Ok(out?.loss)
    });
    let title = format!("{task:?} {position:?} tied {tied} in {p}");
    let options = UnitScale::new(p).residual(residual(0.7, 1.0)).attention_keys(keys);
    Case { title, p, specs, inputs: bert_inputs, options, build }
}

#[test]
fn a_regular_bert_becomes_the_scaled_one() {
    let (post, pre) = (NormPosition::Post, NormPosition::Pre);
    for p in SCALED {
        for (task, position, tied) in [
            (BertTask::MaskedLm, post, false),
            (BertTask::MaskedLm, post, true),
            (BertTask::MaskedLm, pre, true),
            (BertTask::MaskedLm, NormPosition::BranchEnd, false),
            (BertTask::Classification, post, false),
            (BertTask::Span, pre, false),
            (BertTask::PreTraining, post, false),
            (BertTask::PreTraining, pre, true),
        ] {
            bert_case(p, task, position, tied).check();
        }
    }
}

#[test]
fn the_report_names_every_layer_and_what_stays_plain() {
    let config = GptConfig { positions: Positions::Rotary, ..gpt_config() };
    let scaled = gpt_case("gpt", Parametrisation::UMup, &config).check();
    let rule = |node: &str| {
        let found = scaled.replaced.iter().find(|replaced| replaced.node == node);
        found.unwrap_or_else(|| panic!("no {node}")).to_string()
    };
    assert!(rule("layers.0.attention.q_proj.linear").contains("linear (to_output_scale)"));
    assert!(rule("layers.2.mlp.c_proj.linear").contains("linear, mirrored (none)"));
    assert!(rule("layers.1.mlp.gelu").contains("gelu (to_output_scale)"));
    assert!(rule("readout.linear").contains("linear_readout, alpha 0.125000"));
    let taus = scaled.replaced.iter().filter(|replaced| replaced.node.ends_with("residual_add"));
    assert_eq!(taus.count(), 6);
    // Rotations keep the variance, so nothing is to be scaled there.
    assert!(scaled.kept.iter().all(|name| name.ends_with("rotate")), "{:?}", scaled.kept);
    assert_eq!(scaled.kept.len(), 3 * 2 * 2);
}

#[test]
fn weights_that_have_to_start_with_unit_variance_are_those_of_the_scaled_model() {
    for config in [gpt_config(), GptConfig { positions: Positions::Rotary, ..gpt_config() }] {
        let case = gpt_case("gpt", Parametrisation::UMup, &config);
        let scaled = case.check();
        let unit: Vec<&str> = case.specs[1]
            .iter()
            .filter(|spec| spec.init == Init::Normal { std: 1.0 })
            .map(|spec| &spec.name[..])
            .collect();
        let mut found: Vec<&str> = Vec::new();
        for node in scaled.graph.nodes() {
            if matches!(node.op, Op::Slot(slot) if scaled.unit_weights.contains(&slot)) {
                found.push(&node.name);
            }
        }
        found.sort_by_key(|name| unit.iter().position(|own| own == name));
        assert_eq!(found, unit);
    }
}
