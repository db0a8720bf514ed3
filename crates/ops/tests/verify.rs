//! Graphs that are wrong on purpose: the verifier names the edge, and its remedy makes the graph
//! right, which is checked by running it.

use onesigma_backend::{Engine, RefBackend};
use onesigma_format::{Noise, philox};
use onesigma_graph::{
    DType, Graph, Module, NodeId, Op, Program, ReduceKind, Role, SlotId, SlotKind, ValueId,
    autodiff,
};
use onesigma_ops::verify::{Mend, Violation, exact_gradients};
use onesigma_ops::{
    Attention, Constraint, Error, GeluForm, Linear, Parametrisation, Scales, add, attention,
    cross_entropy, embedding, gelu, layer_norm, linear, matmul, residual_add, residual_apply,
    residual_split, rms_norm, softmax, verify,
};

const P: Parametrisation = Parametrisation::UMup;
const FREE: Linear = Linear { scale_power: [0.5; 3], constraint: Constraint::None };

/// A graph under construction with parameters and one input.
struct Net {
    module: Module,
    graph: Graph,
    slots: Vec<SlotId>,
    parameters: Vec<ValueId>,
}

impl Net {
    fn new() -> Self {
        let (module, graph) = (Module::new(), Graph::new());
        Self { module, graph, slots: Vec::new(), parameters: Vec::new() }
    }

    fn data(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let slot = self.module.slot(name, SlotKind::Input, shape, DType::F32, Role::Data);
        self.slots.push(slot.expect("a new name"));
        self.module.read(&mut self.graph, self.slots[self.slots.len() - 1])
    }

    fn ids(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let slot = self.module.slot(name, SlotKind::Input, shape, DType::U32, Role::Data);
        self.slots.push(slot.expect("a new name"));
        self.module.read(&mut self.graph, self.slots[self.slots.len() - 1])
    }

    fn parameter(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let slot = self.module.slot(name, SlotKind::State, shape, DType::F32, Role::MasterWeight);
        self.slots.push(slot.expect("a new name"));
        let value = self.module.read(&mut self.graph, self.slots[self.slots.len() - 1]);
        self.parameters.push(value);
        value
    }

    /// A linear layer with a weight of its own, in a scope of its name.
    fn linear(&mut self, name: &str, x: ValueId, fan_out: usize, options: Linear) -> ValueId {
        let fan_in = self.graph.shape(x).last();
        let weight = self.parameter(&format!("{name}.weight"), &[fan_out, fan_in]);
        let build = |graph: &mut Graph| linear(graph, P, x, weight, None, options);
        self.graph.scoped(name, build).expect("it fits")
    }

    /// A scalar with a gradient of every element.
    fn loss(&mut self, y: ValueId) -> ValueId {
        let axes: Vec<isize> = (0..self.graph.shape(y).rank() as isize).collect();
        let square = self.graph.reduce(ReduceKind::Sum, &[y], &axes, false, |x| x[0].square());
        square.and_then(|node| node.one()).expect("it reduces")
    }

    /// For every parameter the least-squares ratio of the graph's gradient to the true one, and
    /// what it leaves unexplained.
    fn measure(&self, graph: &Graph, loss: ValueId) -> Vec<(f64, f64)> {
        let mut module = self.module.clone();
        let mut outputs = Vec::new();
        for (entry, graph) in
            [("scaled", graph.clone()), ("exact", exact_gradients(graph).expect("finite scales"))]
        {
            let mut graph = graph;
            let gradients = autodiff::gradients(&mut graph, loss, &self.parameters, None);
            let mut slots = Vec::new();
            for (n, gradient) in gradients.expect("differentiable").into_iter().enumerate() {
                let shape = graph.shape(gradient).clone();
                let (name, role) = (format!("{entry}.{n}"), Role::Statistic);
                let slot = module.slot(&name, SlotKind::Output, shape, DType::F32, role);
                slots.push(slot.expect("a new name"));
                graph.write(slots[n], gradient);
            }
            outputs.push(slots);
            module.entry(entry, graph).expect("slots exist");
        }
        let program = Program::new(module).expect("a valid program");
        let mut engine = RefBackend::exact().executor(&program).expect("it runs");
        for (tensor, &slot) in self.slots.iter().enumerate() {
            let info = &program.slots()[slot.index()];
            let noise = Noise { seed: 11, tensor: tensor as u32, step: 0, offset: 0 };
            let bytes: Vec<u8> = if info.dtype == DType::U32 {
                let mut ids = vec![0_u32; info.shape.numel()];
                philox::fill_u32(noise, &mut ids);
                ids.iter().flat_map(|id| (id % 5).to_le_bytes()).collect()
            } else {
                let mut values = vec![0.0_f32; info.shape.numel()];
                philox::fill_normal(noise, &mut values);
                values.iter().flat_map(|value| (0.5 * value).to_le_bytes()).collect()
            };
            engine.write(slot, &bytes).expect("right size");
        }
        for entry in ["scaled", "exact"] {
            engine.run(program.find_entry(entry).expect("it is there"), 1).expect("it runs");
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let ratio = |(&scaled, &exact): (&SlotId, &SlotId)| {
            let read = |slot| engine.tensor(slot).expect("a slot").expect("written").clone();
            let (scaled, exact) = (read(scaled), read(exact));
            let ratio = dot(&scaled, &exact) / dot(&exact, &exact);
            let rest: Vec<f64> = scaled.iter().zip(&exact).map(|(s, e)| s - ratio * e).collect();
            (ratio, (dot(&rest, &rest) / dot(&scaled, &scaled)).sqrt())
        };
        outputs[0].iter().zip(&outputs[1]).map(ratio).collect()
    }

    /// Proves a graph and checks every constant by running it.
    fn prove(&self, graph: &Graph, loss: ValueId) {
        let proof = verify(graph, loss, &self.parameters).expect("the graph is right");
        for (value, (ratio, rest)) in self.parameters.iter().zip(self.measure(graph, loss)) {
            let constant = proof.constant(*value).expect("the loss depends on it");
            let name = graph.value_name(*value);
            assert!(rest < 1e-12, "{name}: {rest:e}");
            assert!((constant / ratio - 1.0).abs() < 1e-12, "{name}: {constant} {ratio}");
        }
    }

    /// The break of the rule, which must show in the gradients.
    fn refute(&self, graph: &Graph, loss: ValueId) -> Violation {
        let Err(Error::CutEdge(violation)) = verify(graph, loss, &self.parameters) else {
            panic!("the graph is wrong")
        };
        let wrong = self.measure(graph, loss).iter().any(|(_, rest)| *rest > 1e-3);
        assert!(wrong, "{violation}: but every gradient is proportional to the true one");
        *violation
    }
}

#[test]
fn a_branch_whose_products_differ() {
    let mut net = Net::new();
    let x = net.data("x", &[6, 8]);
    let x = net.linear("first", x, 8, FREE);
    let (branch, skip) = residual_split(&mut net.graph, P, x, 0.5).expect("it splits");
    let up = net.linear("up", branch, 32, FREE);
    let act = gelu(&mut net.graph, P, up, GeluForm::Erf, 1.0, Constraint::None).expect("it fits");
    let down = net.linear("down", act, 8, FREE);
    let y = residual_add(&mut net.graph, P, down, skip, 0.5).expect("it fits");
    let y = net.linear("last", y, 4, FREE);
    let loss = net.loss(y);
    // Up and down mirror each other, so the activation alone is to blame.
    let violation = net.refute(&net.graph, loss);
    assert_eq!((violation.edge.name.as_str(), violation.edge.operand), ("gelu", 0));
    assert_eq!(violation.mend, Mend::Constraint(Constraint::ToOutputScale));
    assert_eq!(violation.value, "first.linear");
    let text = violation.to_string();
    for word in ["`first.linear`", "`up.linear` -> `gelu` (Map", "`to_output_scale`"] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
    net.prove(&violation.mend(&net.graph).expect("a constraint"), loss);
    for constraint in
        [Constraint::GMean, Constraint::ToGradInputScale, Constraint::Custom(|s| s[0])]
    {
        net.prove(&violation.constrain(&net.graph, constraint).expect("two scales"), loss);
    }
}

#[test]
fn a_residual_whose_ends_have_different_weights() {
    let mut net = Net::new();
    let x = net.data("x", &[6, 8]);
    let x = net.linear("first", x, 8, FREE);
    let (branch, skip) = residual_split(&mut net.graph, P, x, 0.5).expect("it splits");
    let up = net.linear("up", branch, 32, FREE);
    let down = net.linear("down", up, 8, FREE);
    let y = residual_add(&mut net.graph, P, down, skip, 0.7).expect("it fits");
    let loss = net.loss(y);
    let violation = net.refute(&net.graph, loss);
    assert_eq!(violation.edge.name, "residual_split");
    // The weights of branch and skip at the sum are as 0.7 to 1; the skip has 1/sqrt(1.25).
    let Mend::Beta(beta) = violation.mend else { panic!("{violation}") };
    assert!((beta - 0.7 / 1.25_f64.sqrt()).abs() < 1e-12, "{beta}");
    net.prove(&violation.mend(&net.graph).expect("a scale"), loss);
}

#[test]
fn a_tied_table_with_a_scale_for_each_use() {
    let mut net = Net::new();
    let (tokens, targets) = (net.ids("tokens", &[7]), net.ids("targets", &[7]));
    let table = net.parameter("table", &[5, 8]);
    let x = embedding(&mut net.graph, P, tokens, table).expect("it fits");
    // With one embedding the ideal scales of both uses give one constant; the sum's factor spoils
    // it.
    let positions = net.parameter("positions", &[7, 8]);
    let x = add(&mut net.graph, P, x, positions, Constraint::None).expect("it fits");
    let x = net.linear("hidden", x, 8, FREE);
    let logits = net
        .graph
        .scoped("readout", |graph| linear(graph, P, x, table, None, Linear::readout()))
        .expect("it fits");
    let loss = cross_entropy(&mut net.graph, P, logits, targets, 1.0, true).expect("it fits");
    let violation = net.refute(&net.graph, loss);
    assert_eq!(violation.value, "table");
    assert_eq!((violation.edge.name.as_str(), violation.edge.op), ("embedding", "Gather"));
    assert_eq!(violation.constants[1].0, "readout.linear");
    let mended = violation.mend(&net.graph).expect("a scale");
    net.prove(&mended, loss);
    // The lookup's gradient has the readout's constant now.
    let proof = verify(&mended, loss, &net.parameters).expect("it is right");
    let constant = proof.constant(table).expect("it is used");
    assert!((constant / violation.constants[1].1 - 1.0).abs() < 1e-12);
}

#[test]
fn a_wrong_constraint_in_an_attention_branch() {
    // Two heads of four query features, one key-value head: the layers' sizes differ.
    for wrong in ["q_proj", "k_proj", "v_proj", "c_proj"] {
        let mut net = Net::new();
        let x = net.data("x", &[2, 6, 10]);
        let x = net.linear("first", x, 10, FREE);
        let (branch, skip) = residual_split(&mut net.graph, P, x, 0.5).expect("it splits");
        let norm = layer_norm(&mut net.graph, P, branch, None, None, 1, 1e-5).expect("it fits");
        let free = |name| if name == wrong { FREE } else { Linear::default() };
        let q = net.linear("q_proj", norm, 8, free("q_proj"));
        let k = net.linear("k_proj", norm, 4, free("k_proj"));
        let v = net.linear("v_proj", norm, 4, free("v_proj"));
        let mut qkv = [q, k, v];
        for (value, heads) in qkv.iter_mut().zip([2, 1, 1]) {
            *value = net.graph.reshape(*value, [2, 6, heads, 4]).expect("it fits");
        }
        let y = attention(&mut net.graph, P, qkv, Attention::default()).expect("it fits");
        let y = net.graph.reshape(y, [2, 6, 8]).expect("it fits");
        let y = net.linear("c_proj", y, 10, free("c_proj"));
        let y = residual_add(&mut net.graph, P, y, skip, 0.5).expect("it fits");
        let loss = net.loss(y);
        let violation = net.refute(&net.graph, loss);
        assert_eq!(violation.edge.name, format!("{wrong}.linear"));
        assert_eq!(violation.mend, Mend::Constraint(Constraint::ToOutputScale));
        net.prove(&violation.mend(&net.graph).expect("a constraint"), loss);
    }
}

#[test]
fn attention_from_parts_needs_constraints_over_both_operands() {
    let mut net = Net::new();
    let x = net.data("x", &[3, 6, 8]);
    let x = net.linear("first", x, 8, FREE);
    // Fewer keys than queries: else the scales of the two products mirror each other.
    let slice = Op::Slice { axis: 1, start: 0, len: 5 };
    let seen = net.graph.op(slice, &[x]).one().expect("it fits");
    let q = net.linear("q", x, 8, Linear::default());
    let [k, v] = ["k", "v"].map(|name| net.linear(name, seen, 8, Linear::default()));
    let k = net.graph.permute(k, &[0, 2, 1]).expect("it fits");
    let none = Constraint::None;
    let graph = &mut net.graph;
    let logits = graph.scoped("logits", |graph| matmul(graph, P, q, k, none)).expect("it fits");
    let weights = softmax(graph, P, logits, -1, 1.0, Constraint::GMean).expect("it fits");
    let y = graph.scoped("mix", |graph| matmul(graph, P, weights, v, none)).expect("it fits");
    let loss = net.loss(y);
    let mut graph = net.graph.clone();
    let mut named = Vec::new();
    while let Err(Error::CutEdge(violation)) = verify(&graph, loss, &net.parameters) {
        assert!(named.len() < 3, "it does not end");
        graph = violation.mend(&graph).expect("a constraint");
        named.push(violation.edge.name);
    }
    assert!(!named.is_empty() && named.iter().all(|name| name.ends_with("matmul")), "{named:?}");
    net.prove(&graph, loss);
}

#[test]
fn several_faults_are_named_one_after_the_other() {
    let mut net = Net::new();
    let mut x = net.data("x", &[6, 8]);
    for layer in 0..3 {
        let (inner, tau) = ([12, 20, 28][layer], 0.3 + layer as f64);
        x = net.linear(&format!("in{layer}"), x, 8, FREE);
        let (branch, skip) = residual_split(&mut net.graph, P, x, tau).expect("it splits");
        let up = net.linear(&format!("up{layer}"), branch, inner, FREE);
        let down = net.linear(&format!("down{layer}"), up, 8, Linear::default());
        x = residual_add(&mut net.graph, P, down, skip, tau).expect("it fits");
    }
    let loss = net.loss(x);
    let mut graph = net.graph.clone();
    let mut named = Vec::new();
    while let Err(Error::CutEdge(violation)) = verify(&graph, loss, &net.parameters) {
        assert!(named.len() < 3, "it does not end");
        graph = violation.mend(&graph).expect("a constraint");
        named.push(violation.edge.name);
    }
    // From the loss back.
    assert_eq!(named, ["up2.linear", "up1.linear", "up0.linear"]);
    net.prove(&graph, loss);
}

#[test]
fn two_ops_to_blame_together() {
    let mut net = Net::new();
    let x = net.data("x", &[6, 8]);
    let x = net.linear("first", x, 8, FREE);
    let y = residual_apply(&mut net.graph, P, x, 0.5, |graph, x| {
        let act = gelu(graph, P, x, GeluForm::Tanh, 1.0, Constraint::None)?;
        softmax(graph, P, act, -1, 2.0, Constraint::None)
    });
    let loss = net.loss(y.expect("it fits"));
    let first = net.refute(&net.graph, loss);
    assert_eq!(first.mend, Mend::Constraint(Constraint::ToOutputScale));
    let half = first.mend(&net.graph).expect("a constraint");
    let second = net.refute(&half, loss);
    let mut both = [first.edge.name, second.edge.name.clone()];
    both.sort();
    assert_eq!(both, ["gelu", "softmax"]);
    net.prove(&second.mend(&half).expect("a constraint"), loss);
}

#[test]
fn two_losses_of_one_state_need_one_constant() {
    let mut net = Net::new();
    let x = net.data("x", &[6, 8]);
    let labels = net.ids("labels", &[6]);
    let x = net.linear("trunk", x, 8, FREE);
    let a = net.linear("a", x, 5, FREE);
    let b = net.linear("b", x, 9, FREE);
    let a = cross_entropy(&mut net.graph, P, a, labels, 1.0, true).expect("it fits");
    let b = cross_entropy(&mut net.graph, P, b, labels, 1.0, false).expect("it fits");
    let loss = add(&mut net.graph, Parametrisation::Regular, a, b, Constraint::None);
    let loss = loss.expect("scalars");
    let mut graph = net.graph.clone();
    let mut steps = 0;
    while let Err(Error::CutEdge(violation)) = verify(&graph, loss, &net.parameters) {
        steps += 1;
        assert!(steps < 6, "it does not end: {violation}");
        assert_eq!(violation.value, "trunk.linear");
        graph = violation.mend(&graph).expect("a mending");
    }
    assert!(steps > 0);
    net.prove(&graph, loss);
}

#[test]
fn data_comparisons_and_second_results_need_no_constant() {
    let mut net = Net::new();
    let x = net.data("x", &[2, 6, 8]);
    let x = net.linear("first", x, 8, FREE);
    // Data that is used twice with different scales; an operand that is compared only.
    let mask = net.data("mask", &[6, 8]);
    let graph = &mut net.graph;
    let shifted = add(graph, P, x, mask, Constraint::None).expect("it broadcasts");
    let gate = graph.map(&[shifted, x], |x| x[1].less(0.3).select(x[0].clone(), 0.0));
    let gated = gate.expect("one shape").beta(&[1.0, 77.0]).named("gate").one().expect("it fits");
    let scaled = add(graph, P, gated, mask, Constraint::GMean).expect("it broadcasts");
    let y = rms_norm(graph, P, scaled, None, 1, 1e-5).expect("it fits");
    let loss = net.loss(y);
    net.prove(&net.graph, loss);
    let proof = verify(&net.graph, loss, &net.parameters).expect("it is right");
    assert_eq!(proof.constant(mask), None);
}

#[test]
fn a_graph_with_its_backward_pass_is_proved_by_its_forward_part() {
    let mut net = Net::new();
    let x = net.data("x", &[6, 8]);
    let x = net.linear("first", x, 8, FREE);
    let loss = net.loss(x);
    let before = verify(&net.graph, loss, &net.parameters).expect("it is right");
    let mut graph = net.graph.clone();
    autodiff::gradients(&mut graph, loss, &net.parameters, None).expect("differentiable");
    let after = verify(&graph, loss, &net.parameters).expect("it is right");
    let constant = |proof: &verify::Proof| proof.constant(net.parameters[0]);
    assert_eq!(constant(&before), constant(&after));
}

#[test]
fn what_autodiff_refuses_or_drops_is_refused() {
    let mut net = Net::new();
    let x = net.data("x", &[6, 8]);
    let x = net.linear("first", x, 8, FREE);
    let graph = &mut net.graph;
    let largest = graph.reduce(ReduceKind::Max, &[x], &[0, 1], false, |x| x[0].clone());
    let loss = largest.expect("axes").named("largest").one().expect("it fits");
    let message = verify(graph, loss, &net.parameters).expect_err("no gradient").to_string();
    assert!(message.contains("largest"), "{message}");

    let mut net = Net::new();
    let x = net.data("x", &[2, 6, 8]);
    let x = net.linear("first", x, 8, FREE);
    let qkv = net.graph.reshape(x, [2, 6, 2, 4]).expect("it fits");
    let op = Op::Attention { causal: false, logit_scale: 0.5 };
    let results = net.graph.op(op, &[qkv; 3]).all().expect("it fits");
    let loss = net.loss(results[1]);
    let message = verify(&net.graph, loss, &net.parameters).expect_err("dropped").to_string();
    assert!(message.contains("attention"), "{message}");
}

#[test]
fn scales_are_replaced_within_the_limits_of_the_builder() {
    let mut net = Net::new();
    let x = net.data("x", &[6, 8]);
    let y = net.linear("first", x, 8, FREE);
    let flat = net.graph.reshape(y, [48]).expect("it fits");
    let id = net.graph.value(y).producer;
    net.graph.set_scales(id, &[0.5], &[0.25, 2.0]).expect("one result, two operands");
    assert_eq!(net.graph.node(id).beta, [0.25, 2.0]);
    let view = net.graph.value(flat).producer;
    for (id, alpha, beta) in [
        (id, vec![0.5], vec![0.25]),
        (id, vec![f64::NAN], vec![0.25, 2.0]),
        (view, vec![0.5], vec![1.0]),
        (NodeId::new(99), vec![1.0], vec![]),
    ] {
        assert!(net.graph.set_scales(id, &alpha, &beta).is_err(), "{id} {alpha:?} {beta:?}");
    }
    assert_eq!(Scales::ones().exact(), Scales::ones());
}
