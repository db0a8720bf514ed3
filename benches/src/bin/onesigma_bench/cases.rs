//! What is measured: programs of one op, of one layer, and whole training steps.

use onesigma::format::Format;
use onesigma::graph::recipe::Recipe;
use onesigma::graph::{
    DType, Graph, Module, Op, Program, Result, Role, Shape, SlotId, SlotKind, ValueId, autodiff,
    passes,
};
use onesigma::ops::{Linear, Parametrisation, linear, recipes};
use onesigma::train::config::{Config, ModelConfig};

/// Cases that are measured round by round.
pub struct Group {
    pub suite: &'static str,
    /// What the cases have in common.
    pub name: String,
    /// What an item of the throughput is.
    pub unit: &'static str,
    pub cases: Vec<Case>,
    /// For charts over sizes.
    pub width: Option<usize>,
}

/// One program to measure.
pub struct Case {
    /// A format or a recipe.
    pub name: String,
    /// Items done by one run.
    pub items: f64,
    pub work: Work,
}

/// How the program is made; what a backend supports decides about it.
pub enum Work {
    Program(Box<dyn Fn() -> Result<Program>>),
    Step(Box<Config>),
}

/// All groups; `quick` leaves out the large sizes.
pub fn groups(quick: bool) -> Vec<Group> {
    let mut groups = vec![codec(if quick { 1 << 20 } else { 1 << 22 })];
    groups.extend([512, 1024].into_iter().filter(|&n| !quick || n <= 512).map(gemm));
    groups.push(kernels(2048, 256));
    let widths = [128, 256, 512, 1024];
    groups.extend(widths.into_iter().filter(|&n| !quick || n <= 512).map(layer));
    groups.extend([128, 256, 512].into_iter().filter(|&n| !quick || n <= 256).map(step));
    groups
}

/// A program with operands as state, `build` over them, and results as state.
fn program(
    operands: &[(Shape, DType)],
    build: impl FnOnce(&mut Graph, &[ValueId]) -> Result<Vec<ValueId>>,
) -> Result<Program> {
    let mut module = Module::new();
    let mut graph = Graph::new();
    let state = |module: &mut Module, name: String, shape: &Shape, dtype| {
        module.slot(&name, SlotKind::State, shape.clone(), dtype, Role::Activation)
    };
    let mut values = Vec::new();
    for (n, (shape, dtype)) in operands.iter().enumerate() {
        let slot: SlotId = state(&mut module, format!("x{n}"), shape, *dtype)?;
        values.push(module.read(&mut graph, slot));
    }
    for (n, result) in build(&mut graph, &values)?.into_iter().enumerate() {
        let (shape, dtype) = (graph.shape(result).clone(), graph.value(result).dtype);
        let slot = state(&mut module, format!("y{n}"), &shape, dtype)?;
        graph.write(slot, result);
    }
    module.entry("run", passes::clean::clean(&graph))?;
    Program::new(module)
}

fn codec(elements: usize) -> Group {
    let pairs = [
        (Format::F32, Format::E4M3),
        (Format::F32, Format::E5M2),
        (Format::F32, Format::F16),
        (Format::F32, Format::BF16),
        (Format::E4M3, Format::F32),
        (Format::E5M2, Format::F32),
    ];
    let cases = pairs.map(|(from, to)| Case {
        name: format!("{from} to {to}"),
        items: elements as f64,
        work: Work::Program(Box::new(move || {
            program(&[([elements].into(), DType::Float(from))], |graph, x| {
                let to = DType::Float(to);
                Ok(vec![graph.op(Op::Cast { to }, &[x[0]]).one()?])
            })
        })),
    });
    let name = format!("cast of {elements} elements");
    Group { suite: "codec", name, unit: "elements", cases: cases.into(), width: None }
}

fn gemm(n: usize) -> Group {
    let operands = [
        (Format::F32, Format::F32, Format::F32),
        (Format::BF16, Format::BF16, Format::BF16),
        (Format::F16, Format::F16, Format::F16),
        (Format::E4M3, Format::E4M3, Format::F16),
        (Format::E5M2, Format::E4M3, Format::F16),
    ];
    let cases = operands.map(|(left, right, out)| Case {
        name: format!("{left} x {right} to {out}"),
        items: 2.0 * (n as f64).powi(3),
        work: Work::Program(Box::new(move || {
            let operand = |format| (Shape::from([n, n]), DType::Float(format));
            program(&[operand(left), operand(right)], |graph, x| {
                let product = graph.matmul(x[0], x[1]).alpha((n as f64).powf(-0.5));
                Ok(vec![product.stored_as(DType::Float(out), Default::default()).one()?])
            })
        })),
    });
    let name = format!("product of {n} x {n} matrices");
    Group { suite: "gemm", name, unit: "FLOP", cases: cases.into(), width: Some(n) }
}

fn kernels(rows: usize, width: usize) -> Group {
    type Build = fn(&mut Graph, ValueId) -> Result<ValueId>;
    let kernels: [(&str, Build); 4] = [
        ("softmax", |graph, x| graph.op(Op::Softmax { mult: 1.0 }, &[x]).one()),
        ("RMS norm", |graph, x| graph.op(Op::RmsNorm { eps: 1e-5 }, &[x]).one()),
        ("GELU", |graph, x| {
            let gelu = |x: &[onesigma::graph::expr::Term]| {
                x[0].clone() * ((x[0].clone() * 0.5_f64.sqrt()).erf() + 1.0) * 0.5
            };
            graph.map(&[x], gelu)?.one()
        }),
        ("add", |graph, x| graph.map(&[x, x], |x| x[0].clone() + x[1].clone())?.one()),
    ];
    let cases = kernels.map(|(name, build)| Case {
        name: format!("{name}, F16"),
        items: (rows * width) as f64,
        work: Work::Program(Box::new(move || {
            program(&[([rows, width].into(), DType::Float(Format::F16))], |graph, x| {
                let y = build(graph, x[0])?;
                Ok(vec![graph.op(Op::Cast { to: DType::Float(Format::F16) }, &[y]).one()?])
            })
        })),
    });
    let name = format!("rows of {rows} x {width}");
    Group { suite: "kernel", name, unit: "elements", cases: cases.into(), width: None }
}

const TOKENS: usize = 2048;

/// A linear layer from `width` to `4 width`, forward and backward.
fn layer(width: usize) -> Group {
    let cases = ["f32", "bf16", "unit-fp8"].map(|name| Case {
        name: name.into(),
        items: TOKENS as f64,
        work: Work::Program(Box::new(move || {
            let recipe =
                recipes::by_name(name).unwrap_or_else(|_| Recipe::uniform(name, Format::F32));
            let f32 = DType::Float(Format::F32);
            let operands = [
                ([TOKENS, width].into(), f32),
                ([4 * width, width].into(), f32),
                ([TOKENS, 4 * width].into(), f32),
            ];
            let program = program(&operands, |graph, x| {
                let p = Parametrisation::Unit;
                let y = linear(graph, p, x[0], x[1], None, Linear::default()).map_err(|error| {
                    match error {
                        onesigma::ops::Error::Graph(error) => error,
                        other => panic!("the sizes are positive: {other}"),
                    }
                })?;
                let seeded = graph.map(&[y, x[2]], |x| x[0].clone() * x[1].clone())?.one()?;
                let axes = [0, 1];
                let sum = graph
                    .reduce(onesigma::graph::ReduceKind::Sum, &[seeded], &axes, false, |x| {
                        x[0].clone()
                    })?
                    .role(Role::Statistic)
                    .one()?;
                autodiff::gradients(graph, sum, &[x[0], x[1]], None)
            })?;
            let mut module = Module::new();
            for slot in program.slots() {
                module.slot(&slot.name, slot.kind, slot.shape.clone(), slot.dtype, slot.role)?;
            }
            let graph = passes::apply_recipe::apply_recipe(&program.entries()[0].graph, &recipe)?;
            module.entry("run", passes::clean::clean(&graph))?;
            Program::new(module)
        })),
    });
    Group {
        suite: "layer",
        name: format!(
            "linear layer {width} to {}, forward and backward, {TOKENS} tokens",
            4 * width
        ),
        unit: "tokens",
        cases: cases.into(),
        width: Some(width),
    }
}

/// A training step of a GPT: 4 layers, heads of 64, sequences of 256 bytes, AdamW.
fn step(width: usize) -> Group {
    let (batch, seq) = (8, 256);
    let cases = ["f32", "bf16", "unit-fp8"].map(|recipe| {
        let heads = width / 64;
        let model = ModelConfig { layers: 4, heads, hidden: width, seq, ..ModelConfig::default() };
        let config = Config { recipe: recipe.into(), batch, model, ..Config::default() };
        Case {
            name: recipe.into(),
            items: (batch * seq) as f64,
            work: Work::Step(Box::new(config)),
        }
    });
    Group {
        suite: "step",
        name: format!("GPT of width {width}, 4 layers, {batch} x {seq} bytes, AdamW"),
        unit: "tokens",
        cases: cases.into(),
        width: Some(width),
    }
}
