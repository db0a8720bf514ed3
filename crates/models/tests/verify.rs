//! The verifier on whole models: every constant that it proves is the measured ratio of the
//! scaled gradient to the true gradient of the same function; a fault put in is found and mended.

mod support;

use onesigma_graph::{Graph, ValueId};
use onesigma_models::config::{Activation, Norm, NormPosition, Positions};
use onesigma_models::{
    BertConfig, BertInputs, BertTask, GptConfig, MaskedTokens, ParamSpec, Params,
    bert_classification_loss, bert_masked_lm_loss, bert_pre_training_loss, bert_span_loss,
    gpt_loss,
};
use onesigma_ops::verify::{Mend, Violation, exact_gradients, verify};
use onesigma_ops::{Constraint, Error, Parametrisation};
use support::{Input, Step, bert_inputs, dot, numbers};

type Build = Box<dyn Fn(&mut Graph, &mut Params, &[ValueId]) -> onesigma_models::Result<ValueId>>;

/// A model with what it reads.
struct Case {
    title: String,
    p: Parametrisation,
    specs: Vec<ParamSpec>,
    inputs: fn() -> Vec<Input>,
    build: Build,
}

fn gpt_inputs() -> Vec<Input> {
    let ids = |name, stream| Input { name, shape: vec![2, 6], values: numbers(12, 11, stream) };
    vec![ids("tokens", 1000), ids("targets", 1001)]
}

fn gpt_cases() -> Vec<Case> {
    let base = GptConfig {
        vocab_size: 11,
        n_positions: 7,
        n_embd: 8,
        n_layer: 2,
        n_head: 4,
        initializer_range: 0.5,
        attention_mult: 2.0,
        loss_mult: 0.7,
        ..GptConfig::default()
    };
    let llama = GptConfig {
        activation_function: Activation::Swiglu,
        norm: Norm::RmsNorm,
        positions: Positions::Rotary,
        n_kv_head: Some(2),
        n_inner: Some(12),
        bias: false,
        ..base.clone()
    };
    let variants = [
        ("gpt-2", base.clone()),
        ("tied", GptConfig { tie_word_embeddings: Some(true), ..base.clone() }),
        ("llama", llama.clone()),
        ("tied llama", GptConfig { tie_word_embeddings: Some(true), ..llama }),
        ("post-norm", GptConfig { norm_position: Some(NormPosition::Post), ..base.clone() }),
        (
            "branch-end norm",
            GptConfig { norm_position: Some(NormPosition::BranchEnd), ..base.clone() },
        ),
        ("odd widths", GptConfig { n_inner: Some(20), residual_mult: 0.5, ..base }),
    ];
    let mut cases = Vec::new();
    for p in Parametrisation::ALL {
        for (name, config) in &variants {
            let specs = config.parameters(p).expect("a possible model");
            let config = config.clone();
            let build: Build = Box::new(move |graph, params, x| {
                Ok(gpt_loss(graph, params, &config, p, x[0], x[1], true)?.loss)
            });
            let title = format!("{name} in {p}");
            cases.push(Case { title, p, specs, inputs: gpt_inputs, build });
        }
    }
    cases
}

fn bert_cases() -> Vec<Case> {
    let base = BertConfig {
        vocab_size: 13,
        hidden_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 20,
        max_position_embeddings: 6,
        initializer_range: 0.5,
        ..BertConfig::default()
    };
    let mut cases = Vec::new();
    for p in Parametrisation::ALL {
        for task in
            [BertTask::MaskedLm, BertTask::PreTraining, BertTask::Classification, BertTask::Span]
        {
            for (position, tied) in [(NormPosition::Post, true), (NormPosition::Pre, false)] {
                let config = BertConfig {
                    norm_position: position,
                    tie_word_embeddings: Some(tied),
                    ..base.clone()
                };
                let specs = config.parameters(task, p).expect("a possible model");
                let build: Build = Box::new(move |graph, params, x| {
                    let inputs =
                        BertInputs { tokens: x[0], segments: Some(x[1]), mask: Some(x[2]) };
                    let masked = MaskedTokens { rows: x[3], targets: x[4], counted: x[5] };
                    let (c, labels) = (&config, x[6]);
                    let out = match task {
                        BertTask::MaskedLm => {
                            bert_masked_lm_loss(graph, params, c, p, inputs, masked, true)
                        }
                        BertTask::PreTraining => bert_pre_training_loss(
                            graph, params, c, p, inputs, masked, labels, true,
                        ),
                        BertTask::Classification => bert_classification_loss(
                            graph, params, c, p, inputs, labels, None, true,
                        ),
                        _ => bert_span_loss(graph, params, c, p, inputs, x[7], None, true),
                    };
                    Ok(out?.loss)
                });
                let title = format!("{task:?} {position:?} in {p}");
                cases.push(Case { title, p, specs, inputs: bert_inputs, build });
            }
        }
    }
    cases
}

/// Values of the parameters in a graph.
fn parameters(graph: &Graph, specs: &[ParamSpec]) -> Vec<ValueId> {
    let find = |spec: &ParamSpec| {
        let slot = graph.nodes().iter().find(|node| node.name == spec.name);
        slot.unwrap_or_else(|| panic!("no {}", spec.name)).outputs[0]
    };
    specs.iter().map(find).collect()
}

impl Case {
    /// The step after a change of its forward graph.
    fn step(&self, change: impl FnOnce(&mut Graph, ValueId)) -> Step {
        Step::new(self.specs.clone(), self.p, (self.inputs)(), false, |graph, params, x| {
            let loss = (self.build)(graph, params, x)?;
            change(graph, loss);
            Ok(loss)
        })
    }

    /// By how much every gradient is too large, and what one constant leaves unexplained; `None`
    /// for gradients that are rounding, as the keys' biases have.
    fn measure(&self, change: impl FnOnce(&mut Graph)) -> Vec<Option<(f64, f64)>> {
        let scaled = self.step(|graph, _| change(graph));
        let exact =
            self.step(|graph, _| *graph = exact_gradients(graph).expect("scales are finite"));
        let (of_scaled, of_exact) = (scaled.run_exact(), exact.run_exact());
        let ratio = |(a, b)| {
            let (scaled, exact) = (of_scaled(a), of_exact(b));
            let size = dot(&exact, &exact);
            if size.sqrt() < 1e-12 {
                return None;
            }
            let ratio = dot(&scaled, &exact) / size;
            let rest: Vec<f64> = scaled.iter().zip(&exact).map(|(s, e)| s - ratio * e).collect();
            Some((ratio, (dot(&rest, &rest) / dot(&scaled, &scaled)).sqrt()))
        };
        scaled
            .slots
            .grads
            .iter()
            .copied()
            .zip(exact.slots.grads.iter().copied())
            .map(ratio)
            .collect()
    }

    fn check(&self) {
        let mut constants = Vec::new();
        self.step(|graph, loss| {
            let values = parameters(graph, &self.specs);
            let proof = verify(graph, loss, &values)
                .unwrap_or_else(|error| panic!("{}: {error}", self.title));
            constants = values.iter().map(|&value| proof.constant(value)).collect();
        });
        let mut compared = 0;
        for ((spec, constant), measured) in
            self.specs.iter().zip(constants).zip(self.measure(|_| {}))
        {
            let title = format!("{}: {}", self.title, spec.name);
            let constant = constant.unwrap_or_else(|| panic!("{title} is not used"));
            let Some((ratio, rest)) = measured else { continue };
            assert!(rest < 1e-10, "{title}: {rest:e}");
            assert!((constant / ratio - 1.0).abs() < 1e-10, "{title}: {constant} {ratio}");
            if self.p == Parametrisation::Regular {
                assert_eq!(constant, 1.0, "{title}");
            }
            compared += 1;
        }
        // All but the biases of the keys and an unused pooler.
        assert!(compared + 4 >= self.specs.len(), "{}: {compared}", self.title);
    }
}

#[test]
fn constants_of_gpt_are_the_measured_ratios() {
    gpt_cases().iter().for_each(Case::check);
}

#[test]
fn constants_of_bert_are_the_measured_ratios() {
    bert_cases().iter().for_each(Case::check);
}

/// Changes the scales of a node found by its name, and gives what the verifier says.
fn fault(
    case: &Case,
    node: &str,
    change: impl Fn(f64, &mut Vec<f64>),
) -> (Box<Violation>, Vec<Option<(f64, f64)>>) {
    let break_it = |graph: &mut Graph| {
        let at = graph.nodes().iter().position(|own| own.name == node);
        let at = at.unwrap_or_else(|| panic!("no node {node}"));
        let id = onesigma_graph::NodeId::new(at);
        let (alpha, mut beta) = (graph.node(id).alpha.clone(), graph.node(id).beta.clone());
        change(alpha[0], &mut beta);
        graph.set_scales(id, &alpha, &beta).expect("finite scales");
    };
    let mut found = None;
    case.step(|graph, loss| {
        break_it(graph);
        let values = parameters(graph, &case.specs);
        let Err(Error::CutEdge(violation)) = verify(graph, loss, &values) else {
            panic!("{node} is not missed")
        };
        let mended = violation.mend(graph).expect("it can be applied");
        verify(&mended, loss, &values).unwrap_or_else(|error| panic!("{node} after mend: {error}"));
        found = Some(violation);
    });
    (found.expect("it ran"), case.measure(break_it))
}

#[test]
fn faults_in_gpt_are_named_with_layer_and_remedy() {
    let cases = gpt_cases();
    let case = |title: &str| {
        cases.iter().find(|case| case.title == title).unwrap_or_else(|| panic!("no {title}"))
    };
    let gpt = case("gpt-2 in u-mup");
    let constraint = Mend::Constraint(Constraint::ToOutputScale);
    for (node, layer) in [
        ("layers.1.attention.c_proj.linear", 1),
        ("layers.0.attention.v_proj.linear", 0),
        ("layers.0.attention.attention", 0),
        ("layers.1.mlp.gelu", 1),
    ] {
        let (violation, measured) = fault(gpt, node, |_, beta| beta[0] *= 1.7);
        assert_eq!((violation.edge.name.as_str(), violation.edge.layer), (node, Some(layer)));
        assert_eq!(violation.mend, constraint, "{violation}");
        let text = violation.to_string();
        for word in [node, &format!("layer {layer}"), "`to_output_scale`"] {
            assert!(text.contains(word), "no {word} in: {text}");
        }
        assert!(measured.iter().flatten().any(|(_, rest)| *rest > 1e-3), "{node} does no harm");
    }
    // A residual that is out of balance: the factor of its start has to fit that of its end.
    let node = "layers.1.mlp.residual_split";
    let (violation, _) = fault(gpt, node, |_, beta| beta[0] *= 0.7);
    assert_eq!(violation.edge.name, node);
    let Mend::Beta(beta) = violation.mend else { panic!("{violation}") };
    assert!((beta * 0.7 / violation.edge.beta - 1.0).abs() < 1e-9, "{violation}");
    // A weight on a cut edge is free.
    gpt.step(|graph, loss| {
        let name = "layers.1.mlp.c_fc.linear";
        let at = graph.nodes().iter().position(|own| own.name == name).expect("it is there");
        let id = onesigma_graph::NodeId::new(at);
        let (alpha, mut beta) = (graph.node(id).alpha.clone(), graph.node(id).beta.clone());
        beta[1] *= 3.0;
        graph.set_scales(id, &alpha, &beta).expect("finite scales");
        let values = parameters(graph, &gpt.specs);
        verify(graph, loss, &values).expect("cut edges are free");
    });
    // The table of a tied model is none.
    let (violation, _) = fault(case("tied in u-mup"), "readout.linear", |_, beta| beta[1] *= 3.0);
    assert_eq!(violation.value, "transformer.wte.weight");
    assert_eq!(violation.edge.op, "Gather", "{violation}");
}
