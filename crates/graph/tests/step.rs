//! A whole small training step: built, differentiated, given formats, planned.

use onesigma_format::Format;
use onesigma_graph::recipe::{Recipe, Rule, Use};
use onesigma_graph::{
    AdamWConfig, DType, Error, Graph, Module, Op, Program, Role, SlotKind, autodiff, passes, print,
};

/// `loss = CE(W2 silu(W1 x))` with AdamW on both weights.
fn module() -> Result<Module, Error> {
    let mut module = Module::new();
    let step = module.step_slot()?;
    let lr = module.slot("lr", SlotKind::Input, [], DType::F32, Role::Statistic)?;
    let x = module.slot("x", SlotKind::Input, [2, 8, 16], DType::F32, Role::Data)?;
    let t = module.slot("t", SlotKind::Input, [2, 8], DType::U32, Role::Data)?;
    let loss_slot = module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let mut graph = Graph::new();
    let [step, lr, x, t] = [step, lr, x, t].map(|slot| module.read(&mut graph, slot));
    let mut parameters = Vec::new();
    for (name, shape) in [("w1", [32, 16]), ("w2", [10, 32])] {
        let state = |module: &mut Module, suffix: &str, role| {
            module.slot(&format!("{name}{suffix}"), SlotKind::State, shape, DType::F32, role)
        };
        let w = state(&mut module, "", Role::MasterWeight)?;
        let m = state(&mut module, ".m", Role::FirstMoment)?;
        let v = state(&mut module, ".v", Role::SecondMoment)?;
        parameters.push([w, m, v]);
    }
    let reads: Vec<[_; 3]> =
        parameters.iter().map(|slots| slots.map(|slot| module.read(&mut graph, slot))).collect();
    let linear = Op::MatMul { transpose_left: false, transpose_right: true };
    let h = graph.op(linear.clone(), &[x, reads[0][0]]).alpha(0.25).beta(&[0.25, 0.25]).one()?;
    let a = graph.map(&[h], |h| h[0].clone() * h[0].sigmoid())?.alpha(1.7).beta(&[1.7]).one()?;
    let logits = graph.op(linear, &[a, reads[1][0]]).one()?;
    let loss = graph.op(Op::CrossEntropy { mult: 1.0, mean: true }, &[logits, t]).one()?;
    let weights: Vec<_> = reads.iter().map(|read| read[0]).collect();
    let gradients = autodiff::gradients(&mut graph, loss, &weights, None)?;
    let factor = graph.op(
        Op::Map {
            expr: onesigma_graph::expr::Expr::new(0, |_| 1.0.into()),
            shape: onesigma_graph::Shape::scalar(),
        },
        &[],
    );
    let factor = factor.role(Role::Statistic).one()?;
    let config = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, lr_scale: 1.0 };
    for ((slots, read), gradient) in parameters.iter().zip(&reads).zip(gradients) {
        let inputs = [read[0], gradient, read[1], read[2], lr, step, factor];
        let updated = graph.op(Op::AdamW(config), &inputs).all()?;
        for (&slot, value) in slots.iter().zip(updated) {
            graph.write(slot, value);
        }
    }
    graph.write(loss_slot, loss);
    module.entry("train_step", graph)?;
    Ok(module)
}

fn fp8() -> Recipe {
    let mut recipe = Recipe::uniform("fp8", Format::F16);
    for (role, format) in [
        (Role::Weight, Format::E4M3),
        (Role::Activation, Format::E4M3),
        (Role::ActivationGrad, Format::E5M2),
    ] {
        recipe.rules.insert(0, Rule::new(role, Use::Matmul, format));
    }
    recipe
}

#[test]
fn state_is_updated_in_place() -> Result<(), Error> {
    let program = Program::new(module()?)?;
    let entry = &program.entries()[0];
    for &(slot, value) in entry.graph.writes() {
        assert_eq!(entry.places[value.index()], program.slot_place(slot), "{slot}");
    }
    Ok(())
}

#[test]
fn a_recipe_narrows_matrix_operands_and_storage() -> Result<(), Error> {
    let mut module = module()?;
    module.rewrite(|graph| {
        passes::apply_recipe::apply_recipe(&passes::clean::clean(graph), &fp8())
    })?;
    let program = Program::new(module)?;
    let graph = &program.entries()[0].graph;
    let mut products = 0;
    for node in graph.nodes().iter().filter(|node| matches!(node.op, Op::MatMul { .. })) {
        products += 1;
        let formats: Vec<DType> = node.inputs.iter().map(|&x| graph.value(x).dtype).collect();
        let expected = match node.name.starts_with("grad") {
            true => DType::Float(Format::E5M2),
            false => DType::Float(Format::E4M3),
        };
        assert!(formats.contains(&expected), "{}: {formats:?}", node.name);
        assert!(formats.iter().all(|dtype| dtype.bytes() == 1), "{}: {formats:?}", node.name);
    }
    // Two forward; two for the weights, one for the hidden activation, none for the data.
    assert_eq!(products, 5);
    // silu's result is read by products only, so it is stored in E4M3 without a cast.
    let silu =
        graph.nodes().iter().find(|node| matches!(node.op, Op::Map { .. }) && node.alpha[0] == 1.7);
    let silu = silu.expect("the activation is there");
    assert_eq!(graph.value(silu.outputs[0]).dtype, DType::Float(Format::E4M3));
    assert!(graph.nodes().iter().all(|node| node.name != format!("cast({})", silu.name)));
    Ok(())
}

#[test]
fn the_plan_reuses_memory() -> Result<(), Error> {
    let program = Program::new(module()?)?;
    let entry = &program.entries()[0];
    let all: usize = entry.graph.values().iter().map(|value| value.bytes()).sum();
    assert!(entry.temporary_bytes < all);
    assert!(entry.temporary_bytes >= entry.live_bytes);
    assert!(entry.temporary_bytes as f64 <= 1.2 * entry.live_bytes as f64);
    Ok(())
}

#[test]
fn a_damaged_program_is_refused() -> Result<(), Error> {
    let program = Program::new(module()?)?;
    let text = serde_json::to_string(&program).expect("programs serialise");
    let again: Program = serde_json::from_str(&text).expect("and come back");
    assert_eq!(again, program);
    again.validate()?;
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    value["entries"][0]["places"][9]["offset"] = 1_u64.into();
    let damaged: Program = serde_json::from_value(value.clone()).expect("still a program");
    assert!(matches!(damaged.validate(), Err(Error::InvalidProgram { .. })));
    // A temporary moved onto a parameter that is still read.
    let places = value["entries"][0]["places"].as_array_mut().expect("places");
    for place in places.iter_mut() {
        if place["offset"].as_u64() > Some(program.slot_bytes() as u64) {
            place["offset"] = 0.into();
        }
    }
    let damaged: Program = serde_json::from_value(value).expect("still a program");
    assert!(matches!(damaged.validate(), Err(Error::InvalidProgram { .. })));
    Ok(())
}

#[test]
fn listings_name_ops_formats_and_scales() -> Result<(), Error> {
    let program = Program::new(module()?)?;
    let text = print::program_text(&program);
    assert!(
        text.contains("MatMul") && text.contains("alpha 0.25") && text.contains("entry train_step")
    );
    let dot = print::graph_dot("train_step", &program.entries()[0].graph);
    assert!(dot.starts_with("digraph \"train_step\"") && dot.ends_with("}\n"));
    Ok(())
}

#[test]
fn a_shape_error_names_node_op_and_shapes() -> Result<(), Error> {
    let mut module = Module::new();
    let a = module.slot("a", SlotKind::Input, [2, 3], DType::F32, Role::Data)?;
    let mut graph = Graph::new();
    let a = module.read(&mut graph, a);
    let error = graph.scoped("layers.0", |graph| graph.matmul(a, a).named("up").one());
    let message = error.expect_err("2x3 by 2x3 does not contract").to_string();
    assert_eq!(
        message,
        "layers.0.up: MatMul got [2, 3] and [2, 3], expected one contracted size, \
         found 3 on the left and 2 on the right"
    );
    Ok(())
}

#[test]
fn element_wise_results_replace_operands_that_nothing_reads_again() -> Result<(), Error> {
    let mut module = Module::new();
    let x = module.slot("x", SlotKind::Input, [256], DType::F32, Role::Data)?;
    let y = module.slot("y", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let mut graph = Graph::new();
    let x = module.read(&mut graph, x);
    let a = graph.map(&[x], |x| x[0].exp())?.one()?;
    let b = graph.map(&[a], |a| a[0].tanh())?.one()?; // over a
    let c = graph.map(&[b, a], |v| v[0].clone() * v[1].clone())?; // a is still read here
    let c = c.one()?;
    let sum = graph.reduce(onesigma_graph::ReduceKind::Sum, &[c], &[0], false, |c| c[0].clone());
    let sum = sum?.one()?;
    graph.write(y, sum);
    module.entry("run", graph)?;
    let program = Program::new(module)?;
    let entry = &program.entries()[0];
    let [a, b, c] = [a, b, c].map(|value| entry.places[value.index()].offset);
    assert_ne!(a, b);
    assert!(c == b || c == a);
    assert_eq!(entry.temporary_bytes, 2 * 1024);
    assert_eq!(entry.live_bytes, 2 * 1024);
    Ok(())
}
