//! The auto-scaler on layers one by one: the graph that it makes of regular layers has, node for
//! node, the scales of the layers that are built scaled.

use onesigma_graph::{DType, Distribution, Graph, Module, Op, Role, SlotKind, ValueId};
use onesigma_ops::unit_scale::UnitScale;
use onesigma_ops::{
    Attention, Constraint, Conv1d, Error, GeluForm, Linear, MhsaWeights, MlpWeights,
    Parametrisation, Scales, TransformerLayer, TransformerResidual, conv1d, cross_entropy, dropout,
    elementwise, embedding, gaussian_scales, gelu, hardtanh, layer_norm, linear, linear_readout,
    matmul, mse_loss, relu, residual_apply, rms_norm, sigmoid, silu, silu_glu, softmax, sum, tanh,
    transformer_layer,
};

const SCALED: [Parametrisation; 3] =
    [Parametrisation::Unit, Parametrisation::UMup, Parametrisation::MuS];

/// A graph under construction.
struct Net {
    module: Module,
    graph: Graph,
    parameters: Vec<ValueId>,
}

impl Net {
    fn new() -> Self {
        Self { module: Module::new(), graph: Graph::new(), parameters: Vec::new() }
    }

    fn input(&mut self, name: &str, shape: &[usize], dtype: DType) -> ValueId {
        let slot = self.module.slot(name, SlotKind::Input, shape, dtype, Role::Data);
        self.module.read(&mut self.graph, slot.expect("a new name"))
    }

    fn data(&mut self, shape: &[usize]) -> ValueId {
        let name = format!("x{}", self.module.slots().len());
        self.input(&name, shape, DType::F32)
    }

    fn weight(&mut self, shape: &[usize]) -> ValueId {
        let name = format!("w{}", self.module.slots().len());
        let slot = self.module.slot(&name, SlotKind::State, shape, DType::F32, Role::MasterWeight);
        let value = self.module.read(&mut self.graph, slot.expect("a new name"));
        self.parameters.push(value);
        value
    }

    fn layer(&mut self, p: Parametrisation, x: ValueId, fan_out: usize) -> ValueId {
        let weight = self.weight(&[fan_out, self.graph.shape(x).last()]);
        let free = Linear::unconstrained();
        linear(&mut self.graph, p, x, weight, None, free).expect("it fits")
    }
}

type Network = fn(Parametrisation, &mut Net) -> Result<ValueId, Error>;

/// What computes, in order: op, scales.
fn scales(graph: &Graph) -> Vec<(String, Vec<f64>, Vec<f64>)> {
    let computes = |op: &Op| !op.is_movement() && !matches!(op, Op::Slot(_));
    let nodes = graph.nodes().iter().filter(|node| computes(&node.op));
    nodes.map(|node| (format!("{:?}", node.op), node.alpha.clone(), node.beta.clone())).collect()
}

fn same(title: &str, by_hand: &Graph, automatic: &Graph) {
    let (a, b) = (scales(by_hand), scales(automatic));
    assert_eq!(a.len(), b.len(), "{title}: {a:#?}\n{b:#?}");
    let close = |a: &[f64], b: &[f64]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a / b - 1.0).abs() < 1e-12)
    };
    for (a, b) in a.iter().zip(&b) {
        assert!(close(&a.1, &b.1) && close(&a.2, &b.2), "{title}: by hand {a:?}, found {b:?}");
    }
}

fn check(title: &str, network: Network) {
    for p in SCALED {
        let mut by_hand = Net::new();
        network(p, &mut by_hand).expect("it builds");
        let mut regular = Net::new();
        let loss = network(Parametrisation::Regular, &mut regular).expect("it builds");
        let scaled = UnitScale::new(p)
            .apply(&regular.graph, loss, &regular.parameters)
            .unwrap_or_else(|error| panic!("{title} in {p}: {error}"));
        same(&format!("{title} in {p}"), &by_hand.graph, &scaled.graph);
    }
}

/// The mean squared error of an activation, which is a cut edge.
fn closed(p: Parametrisation, net: &mut Net, y: ValueId) -> Result<ValueId, Error> {
    let shape = net.graph.shape(y).dims().to_vec();
    let target = net.data(&shape);
    mse_loss(&mut net.graph, p, y, target, true)
}

#[test]
fn element_wise_layers_on_cut_edges_keep_their_ideal_scales() {
    const NONE: Constraint = Constraint::None;
    let all: [(&str, fn(&mut Graph, Parametrisation, ValueId) -> Result<ValueId, Error>); 12] = [
        ("relu", |graph, p, x| relu(graph, p, x, NONE)),
        ("tanh", |graph, p, x| tanh(graph, p, x, NONE)),
        ("sigmoid", |graph, p, x| sigmoid(graph, p, x, NONE)),
        ("hardtanh", |graph, p, x| hardtanh(graph, p, x, 1.0, NONE)),
        ("wide hardtanh", |graph, p, x| hardtanh(graph, p, x, 0.3, NONE)),
        ("gelu", |graph, p, x| gelu(graph, p, x, GeluForm::Erf, 1.0, NONE)),
        ("gelu of 1.7 x", |graph, p, x| gelu(graph, p, x, GeluForm::Erf, 1.7, NONE)),
        ("gelu_new of 0.3 x", |graph, p, x| gelu(graph, p, x, GeluForm::Tanh, 0.3, NONE)),
        ("silu", |graph, p, x| silu(graph, p, x, 1.0, NONE)),
        ("silu of 2.3 x", |graph, p, x| silu(graph, p, x, 2.3, NONE)),
        ("softmax", |graph, p, x| softmax(graph, p, x, -1, 0.7, NONE)),
        ("dropout", |graph, p, x| dropout(graph, p, x, 0.3, true)),
    ];
    for (title, layer) in all {
        for p in SCALED {
            let build = |p| {
                let mut net = Net::new();
                let x = net.data(&[6, 8]);
                let x = net.layer(p, x, 8);
                let y = layer(&mut net.graph, p, x).expect("it fits");
                let loss = closed(p, &mut net, y).expect("it fits");
                (net, loss)
            };
            let (by_hand, _) = build(p);
            let (regular, loss) = build(Parametrisation::Regular);
            let scaled = UnitScale::new(p).apply(&regular.graph, loss, &regular.parameters);
            let scaled = scaled.unwrap_or_else(|error| panic!("{title} in {p}: {error}"));
            same(&format!("{title} in {p}"), &by_hand.graph, &scaled.graph);
            assert!(scaled.kept.is_empty(), "{title}: {:?}", scaled.kept);
        }
    }
}

/// `tau` of the only branch of a network.
fn one_branch(p: Parametrisation) -> f64 {
    let weights = TransformerResidual::default();
    weights.tau(p.scheme().residual, 0, 1).expect("there is one")
}

#[test]
fn layers_in_a_branch_get_the_constraint_of_the_parametrisation() {
    check("a branch", |p, net| {
        let x = net.data(&[6, 8]);
        let x = net.layer(p, x, 8);
        let weight = net.weight(&[8, 8]);
        let bias = net.weight(&[8]);
        let norm = net.weight(&[8]);
        let constraint = p.scheme().constraint;
        let y = residual_apply(&mut net.graph, p, x, one_branch(p), |graph, x| {
            let x = rms_norm(graph, p, x, Some(norm), 1, 1e-5)?;
            let x = linear(graph, p, x, weight, Some(bias), p.hidden())?;
            let x = tanh(graph, p, x, constraint)?;
            softmax(graph, p, x, -1, 1.0, constraint)
        });
        let y = y?;
        closed(p, net, y)
    });
}

#[test]
fn a_given_tau_replaces_the_rule() {
    for p in SCALED {
        let build = |p: Parametrisation| {
            let mut net = Net::new();
            let x = net.data(&[6, 8]);
            let mut x = net.layer(p, x, 8);
            for _ in 0..3 {
                let weight = net.weight(&[8, 8]);
                x = residual_apply(&mut net.graph, p, x, 0.4, |graph, x| {
                    linear(graph, p, x, weight, None, p.hidden())
                })
                .expect("it fits");
            }
            let loss = closed(p, &mut net, x).expect("it fits");
            (net, loss)
        };
        let (by_hand, _) = build(p);
        let (regular, loss) = build(Parametrisation::Regular);
        let scaled = UnitScale::new(p).tau(0.4).apply(&regular.graph, loss, &regular.parameters);
        same("three branches", &by_hand.graph, &scaled.expect("it scales").graph);
        let refused = UnitScale::new(p).tau(-1.0).apply(&regular.graph, loss, &regular.parameters);
        assert!(refused.expect_err("no weight").to_string().contains("`tau` is -1"));
    }
}

#[test]
fn convolutions_are_recognised_with_their_strides_and_groups() {
    check("convolutions", |p, net| {
        let mut x = net.data(&[2, 4, 30]);
        for (fan_out, fan_in, kernel, stride, padding, dilation, groups) in [
            (6, 4, 3, 1, 0, 1, 1),
            (8, 3, 2, 2, 1, 1, 2),
            (8, 1, 3, 1, 2, 2, 8),
            (4, 8, 1, 3, 0, 1, 1),
        ] {
            let weight = net.weight(&[fan_out, fan_in, kernel]);
            let bias = net.weight(&[fan_out]);
            let constraint = Constraint::None;
            let options =
                Conv1d { stride, padding, dilation, groups, constraint, ..Conv1d::default() };
            x = conv1d(&mut net.graph, p, x, weight, Some(bias), options)?;
        }
        closed(p, net, x)
    });
}

#[test]
fn embeddings_norms_products_and_readouts() {
    check("a classifier", |p, net| {
        let ids = net.input("ids", &[5, 6], DType::U32);
        let labels = net.input("labels", &[5, 6], DType::U32);
        let tables = [net.weight(&[9, 8]), net.weight(&[6, 8])];
        let x = embedding(&mut net.graph, p, ids, tables[0])?;
        let x = sum(&mut net.graph, p, &[x, tables[1]])?;
        let (weight, bias) = (net.weight(&[8]), net.weight(&[8]));
        let x = layer_norm(&mut net.graph, p, x, Some(weight), Some(bias), 1, 1e-5)?;
        let up = net.layer(p, x, 12);
        let x = silu_glu(&mut net.graph, p, up, up, 0.5)?;
        let (weight, bias) = (net.weight(&[7, 12]), net.weight(&[7]));
        let logits = linear_readout(&mut net.graph, p, x, weight, Some(bias))?;
        cross_entropy(&mut net.graph, p, logits, labels, 1.3, false)
    });
}

#[test]
fn products_of_activations_are_constrained_where_they_have_to_be() {
    check("a product of parts of one value", |p, net| {
        let x = net.data(&[3, 6, 8]);
        let x = net.layer(p, x, 8);
        let turned = net.graph.permute(x, &[0, 2, 1])?;
        let y = matmul(&mut net.graph, p, x, turned, p.scheme().constraint)?;
        closed(p, net, y)
    });
    check("a product of two trunks", |p, net| {
        let (a, b) = (net.data(&[3, 6, 8]), net.data(&[3, 8, 5]));
        let (a, b) = (net.layer(p, a, 8), net.layer(p, b, 5));
        let y = matmul(&mut net.graph, p, a, b, Constraint::None)?;
        closed(p, net, y)
    });
}

#[test]
fn blocks_are_scaled_as_their_definition_is() {
    let options = |p: Parametrisation| {
        let weights = TransformerResidual::default();
        let rule = p.scheme().residual;
        let tau = |branch| weights.tau(rule, branch, 2).expect("two branches");
        TransformerLayer {
            heads: 2,
            taus: [tau(0), tau(1)],
            attention: Attention { mult: 1.5, ..Attention::default() },
            dropout: 0.1,
            mult: 0.8,
            eps: 1e-5,
        }
    };
    for p in [Parametrisation::Unit, Parametrisation::UMup] {
        let build = |own: Parametrisation| {
            let mut net = Net::new();
            let x = net.data(&[2, 6, 8]);
            let x = net.layer(own, x, 8);
            let qkv = MhsaWeights { qkv: net.weight(&[24, 8]), output: net.weight(&[8, 8]) };
            let weights = MlpWeights {
                up: net.weight(&[20, 8]),
                gate: net.weight(&[20, 8]),
                down: net.weight(&[8, 20]),
            };
            let y = transformer_layer(&mut net.graph, own, x, qkv, weights, options(p));
            let loss = closed(own, &mut net, y.expect("it fits")).expect("it fits");
            (net, loss)
        };
        let (by_hand, _) = build(p);
        let (regular, loss) = build(Parametrisation::Regular);
        let scaled = UnitScale::new(p).apply(&regular.graph, loss, &regular.parameters);
        same("a layer", &by_hand.graph, &scaled.expect("it scales").graph);
    }
}

#[test]
fn rules_of_the_caller_come_first_and_are_constrained_where_they_have_to_be() {
    use onesigma_graph::expr::Expr;
    let cube = || Expr::new(1, |x| x[0].square() * x[0].clone());
    let p = Parametrisation::UMup;
    let scaled = p;
    let mut net = Net::new();
    let x = net.data(&[6, 8]);
    let x = net.layer(p, x, 8);
    let mut net_regular = Net::new();
    let y = net_regular.data(&[6, 8]);
    let y = net_regular.layer(Parametrisation::Regular, y, 8);
    let build = |p, net: &mut Net, x, constraint| {
        let ideal = gaussian_scales(&cube()).expect("it has scales");
        let y = elementwise(&mut net.graph, p, x, "cube", cube(), &ideal, Constraint::None);
        let y = residual_apply(
            &mut net.graph,
            p,
            y.expect("it fits"),
            one_branch(scaled),
            |graph, x| elementwise(graph, p, x, "cube", cube(), &ideal, constraint),
        );
        closed(p, net, y.expect("it fits")).expect("it fits")
    };
    build(p, &mut net, x, Constraint::ToOutputScale);
    let loss = build(Parametrisation::Regular, &mut net_regular, y, Constraint::None);
    let (graph, parameters) = (&net_regular.graph, &net_regular.parameters);

    // Nobody knows the function: it stays plain, and the report says so.
    let plain = UnitScale::new(p).apply(graph, loss, parameters).expect("it scales");
    assert_eq!(plain.kept, ["cube", "cube"]);

    let scaled = UnitScale::new(p)
        .rule("cube", move |graph, node| {
            assert_eq!(graph.shape(node.inputs[0]).dims(), [6, 8]);
            gaussian_scales(&cube())
        })
        .apply(graph, loss, parameters)
        .expect("it scales");
    same("cubes", &net.graph, &scaled.graph);
    let cubes: Vec<_> = scaled.replaced.iter().filter(|op| op.rule == "cube (given)").collect();
    // The first lies on a cut edge, the one in the branch does not.
    assert_eq!([cubes[0].constraint, cubes[1].constraint], [None, Some(Constraint::ToOutputScale)]);

    // A rule of the caller for an op that has one: by the name of the op.
    let scaled = UnitScale::new(p)
        .rule("Reduce", |_, _| Ok(Scales { alpha: 1.0, beta: vec![0.5, 0.5] }))
        .apply(graph, loss, parameters)
        .expect("it scales");
    let node = scaled.graph.node(scaled.graph.value(scaled.loss).producer);
    assert_eq!(node.beta, [0.5, 0.5]);
    let refused = UnitScale::new(p)
        .rule("cube", |_, _| Err(Error::UnknownConstraint { name: "mine".to_owned() }))
        .apply(graph, loss, parameters);
    assert!(refused.expect_err("the rule's own").to_string().contains("mine"));
}

#[test]
fn a_scaled_graph_is_refused() {
    let mut net = Net::new();
    let x = net.data(&[6, 8]);
    let p = Parametrisation::UMup;
    let y = net.layer(p, x, 8);
    let loss = closed(p, &mut net, y).expect("it fits");
    let refused = UnitScale::new(p).apply(&net.graph, loss, &net.parameters);
    let message = refused.expect_err("it has scales").to_string();
    assert!(message.starts_with("`linear` has different scales"), "{message}");
}

#[test]
fn weights_are_drawn_with_unit_deviation() {
    let p = Parametrisation::UMup;
    let mut net = Net::new();
    let x = net.data(&[6, 8]);
    let (weight, bias, norm) = (net.weight(&[8, 8]), net.weight(&[8]), net.weight(&[8]));
    let regular = Parametrisation::Regular;
    let y = linear(&mut net.graph, regular, x, weight, Some(bias), Linear::default());
    let y = rms_norm(&mut net.graph, regular, y.expect("it fits"), Some(norm), 1, 1e-5);
    let loss = closed(regular, &mut net, y.expect("it fits")).expect("it fits");
    let scaled = UnitScale::new(p).apply(&net.graph, loss, &net.parameters).expect("it scales");

    let mut init = Graph::new();
    let mut normal = |shape: &[usize], slot| {
        let distribution = Distribution::Normal { mean: 0.0, std: 0.02 };
        let op = Op::Random { distribution, shape: shape.into() };
        let value = init.op(op, &[]).role(Role::MasterWeight).one().expect("no operands");
        init.write(slot, value);
    };
    let slots: Vec<_> = net
        .parameters
        .iter()
        .map(|&value| match net.graph.node(net.graph.value(value).producer).op {
            Op::Slot(slot) => slot,
            _ => panic!("a parameter is a slot"),
        })
        .collect();
    normal(&[8, 8], slots[0]);
    normal(&[8], slots[1]);
    normal(&[8], slots[2]);
    let unit = scaled.unit_init(&init).expect("it rebuilds");
    let deviations: Vec<f64> = unit
        .nodes()
        .iter()
        .map(|node| match node.op {
            Op::Random { distribution: Distribution::Normal { std, .. }, .. } => std,
            _ => panic!("only random nodes"),
        })
        .collect();
    assert_eq!(deviations, [1.0, 0.02, 0.02]);
    assert_eq!(unit.writes(), init.writes());
    assert_eq!(unit.nodes()[0].stream, init.nodes()[0].stream);
}
