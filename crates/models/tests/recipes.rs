//! Recipes on a whole GPT step: what is multiplied and stored in which format.

mod support;

use onesigma_format::Format;
use onesigma_graph::passes::{apply_recipe::apply_recipe, clean::clean};
use onesigma_graph::{DType, Op, Program, ProgramEntry, Role};
use onesigma_models::GptConfig;
use onesigma_ops::recipes;
use support::GptStep;

fn step_graph(program: &Program) -> &ProgramEntry {
    &program.entries()[0]
}

fn config() -> GptConfig {
    GptConfig { vocab_size: 32, n_positions: 16, n_embd: 32, n_layer: 2, ..GptConfig::default() }
}

#[test]
fn fp8_products_have_one_byte_operands_but_for_the_readout() {
    let recipe = recipes::by_name("unit-fp8").expect("built in");
    let GptStep { step, .. } =
        GptStep::new(config(), recipes::parametrisation(&recipe), [2, 16], false);
    let graph = apply_recipe(&clean(&step_graph(&step.program).graph), &recipe).expect("it fits");
    let (mut fp8, mut readout) = (0, 0);
    for node in graph.nodes().iter().filter(|node| matches!(node.op, Op::MatMul { .. })) {
        let types: Vec<DType> = node.inputs.iter().map(|&x| graph.value(x).dtype).collect();
        if node.name.contains("readout") {
            assert_eq!(types, [DType::Float(Format::F16); 2], "{}", node.name);
            readout += 1;
            continue;
        }
        let gradient = node.inputs.iter().any(|&x| graph.value(x).role == Role::ActivationGrad);
        let formats: Vec<Format> = types.iter().filter_map(|dtype| dtype.format()).collect();
        assert!(formats.iter().all(|format| format.bytes() == 1), "{}: {formats:?}", node.name);
        assert_eq!(formats.contains(&Format::E5M2), gradient, "{}: {formats:?}", node.name);
        fp8 += 1;
    }
    // Six layers forward and twice backward in each of two blocks; the readout.
    assert_eq!((fp8, readout), (2 * 6 * 3, 3));
    for value in graph.values().iter().filter(|value| value.dtype == DType::F32) {
        let states = [Role::MasterWeight, Role::Statistic, Role::Data];
        let written = graph.writes().iter().any(|&(_, id)| graph.value(id) == value);
        assert!(states.contains(&value.role) || written, "{value:?} is stored in F32");
    }
}

#[test]
fn every_built_in_recipe_compiles() {
    for (name, _) in recipes::BUILT_IN {
        let recipe = recipes::by_name(name).expect("built in");
        let GptStep { step, .. } =
            GptStep::new(config(), recipes::parametrisation(&recipe), [2, 16], false);
        let graph = apply_recipe(&clean(&step_graph(&step.program).graph), &recipe);
        assert!(graph.is_ok(), "{name}: {graph:?}");
    }
}
