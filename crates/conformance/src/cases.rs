//! Every op: shapes, transposes, batches, edge values, and every format that a backend claims.

use crate::check::{Operand, against_reference, text};
use crate::{Make, Verdict, skipped, tolerance, trial};
use libtest_mimic::Trial;
use onesigma_backend::{Backend, Support};
use onesigma_format::{Conversion, Format, Overflow, Rounding};
use onesigma_graph::expr::{Expr, Term};
use onesigma_graph::{AdamWConfig, DType, Distribution, Op, ReduceKind, Shape};

/// One op on given operands.
#[derive(Clone)]
pub(crate) struct Case {
    pub name: String,
    pub op: Op,
    pub operands: Vec<Operand>,
    pub alpha: f64,
    /// Element type of the results; `None` leaves it to the op.
    pub store: Option<(DType, Conversion)>,
}

impl Case {
    fn new(name: impl Into<String>, op: Op, operands: &[Operand]) -> Self {
        let alpha = if op.is_movement() { 1.0 } else { 0.625 };
        Self { name: name.into(), op, operands: operands.to_vec(), alpha, store: None }
    }

    fn with_operands_in(&self, format: Format) -> Self {
        let mut case = self.clone();
        case.name = format!("{}/from_{}", self.name, name_of(format));
        for operand in &mut case.operands {
            if operand.dtype != DType::U32 {
                operand.dtype = DType::Float(format);
            }
        }
        case
    }

    fn stored_in(&self, format: Format) -> Self {
        let mut case = self.clone();
        case.name = format!("{}/into_{}", self.name, name_of(format));
        case.store = Some((DType::Float(format), Conversion::SATURATE));
        if let Op::Cast { to } = &mut case.op {
            *to = DType::Float(format);
        }
        case
    }

    /// What the backend makes of it as it stands.
    fn support(&self, backend: &dyn Backend) -> Support {
        let inputs: Vec<DType> = self.operands.iter().map(|operand| operand.dtype).collect();
        let movement = self.op.is_movement().then(|| inputs[0]);
        let output = self.store.map(|(dtype, _)| dtype).or(movement).unwrap_or(DType::F32);
        backend.supports(&self.op, &inputs, output)
    }

    pub fn run(&self, backend: &dyn Backend) -> Verdict {
        let build = |graph: &mut onesigma_graph::Graph, x: &[_]| {
            let node = graph.op(self.op.clone(), x).alpha(self.alpha);
            match self.store {
                Some((dtype, how)) => node.stored_as(dtype, how).all(),
                None => node.all(),
            }
        };
        against_reference(backend, &self.operands, &build, tolerance::of(&self.op)).map_err(text)
    }
}

pub(crate) fn name_of(format: Format) -> String {
    format.to_string().to_lowercase()
}

fn map(inputs: usize, shape: impl Into<Shape>, build: impl FnOnce(&[Term]) -> Term) -> Op {
    Op::Map { expr: Expr::new(inputs, build), shape: shape.into() }
}

fn reduce(
    kind: ReduceKind,
    shape: impl Into<Shape>,
    axes: &[usize],
    keep_dims: bool,
    inputs: usize,
    build: impl FnOnce(&[Term]) -> Term,
) -> Op {
    let expr = Expr::new(inputs, build);
    Op::Reduce { kind, expr, shape: shape.into(), axes: axes.to_vec(), keep_dims }
}

const SPECIAL: [f64; 12] = [
    0.0,
    -0.0,
    1.0,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    1e-40,
    -1e-40,
    1e-45,
    3e38,
    -3e38,
    -2.5,
];

type Unary = fn(&Term) -> Term;
type Binary = fn(&Term, &Term) -> Term;
/// Leading axes left and right, then m, k and n.
type Sizes = (&'static [usize], &'static [usize], usize, usize, usize);

fn mat_muls() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes: [Sizes; 8] = [
        (&[], &[], 17, 33, 19),
        (&[], &[], 1, 1, 1),
        (&[], &[], 1, 67, 5),
        (&[], &[], 64, 48, 32),
        (&[3], &[3], 5, 7, 9),
        (&[2, 3], &[2, 3], 4, 1, 6),
        (&[2, 3], &[], 4, 8, 6),
        (&[5], &[], 1, 16, 3),
    ];
    for (lead, right_lead, m, k, n) in sizes {
        for (transpose_left, transpose_right) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            if transpose_left && right_lead.len() < lead.len() {
                continue;
            }
            let dims = |lead: &[usize], swap: bool, a: usize, b: usize| {
                [lead, &(if swap { [b, a] } else { [a, b] })].concat()
            };
            let flags = [transpose_left, transpose_right].map(|t| if t { "t" } else { "n" });
            cases.push(Case::new(
                format!("mat_mul/{lead:?}x{right_lead:?}/{m}x{k}x{n}/{}", flags.concat()),
                Op::MatMul { transpose_left, transpose_right },
                &[
                    Operand::normal(dims(lead, transpose_left, m, k)),
                    Operand::normal(dims(right_lead, transpose_right, k, n)),
                ],
            ));
        }
    }
    let mut infinite = vec![1.0; 6];
    infinite[1] = f64::INFINITY;
    infinite[5] = f64::NAN;
    cases.push(Case::new(
        "mat_mul/special_values",
        Op::MatMul { transpose_left: false, transpose_right: false },
        &[Operand::values([3, 2], &infinite), Operand::positive([2, 4])],
    ));
    cases
}

fn expressions() -> Vec<Case> {
    let mut cases = Vec::new();
    let unary: [(&str, Unary); 11] = [
        ("neg", |x| -x.clone()),
        ("abs", Term::abs),
        ("exp", Term::exp),
        ("ln", Term::ln),
        ("sqrt", Term::sqrt),
        ("rsqrt", Term::rsqrt),
        ("tanh", Term::tanh),
        ("erf", Term::erf),
        ("sigmoid", Term::sigmoid),
        ("sin", Term::sin),
        ("cos", Term::cos),
    ];
    for (name, f) in unary {
        let positive = matches!(name, "ln" | "sqrt" | "rsqrt");
        let x = if positive { Operand::positive([5, 7]) } else { Operand::normal([5, 7]) };
        cases.push(Case::new(format!("map/{name}"), map(1, [5, 7], |x| f(&x[0])), &[x]));
        let edge = Operand::values([5], &[0.0, f64::INFINITY, f64::NAN, 1.0, 30.0]);
        let edges = format!("map/{name}/special_values");
        cases.push(Case::new(edges, map(1, [5], |x| f(&x[0])), &[edge]));
    }
    let binary: [(&str, Binary); 9] = [
        ("add", |a, b| a.clone() + b.clone()),
        ("sub", |a, b| a.clone() - b.clone()),
        ("mul", |a, b| a.clone() * b.clone()),
        ("div", |a, b| a.clone() / b.clone()),
        ("min", |a, b| a.min(b.clone())),
        ("max", |a, b| a.max(b.clone())),
        ("less", |a, b| a.less(b.clone())),
        ("less_equal", |a, b| a.less_equal(b.clone())),
        ("equal", |a, b| a.equal(b.clone())),
    ];
    for (name, f) in binary {
        let op = map(2, [3, 17], |x| f(&x[0], &x[1]));
        let pair = [Operand::normal([3, 17]), Operand::normal([3, 17])];
        cases.push(Case::new(format!("map/{name}"), op, &pair));
        let op = map(2, [12, 12], |x| f(&x[0], &x[1]));
        let edges = [Operand::values([12], &SPECIAL), Operand::values([12, 1], &SPECIAL)];
        let mut case = Case::new(format!("map/{name}/special_values"), op, &edges);
        case.alpha = 1.0;
        cases.push(case);
    }
    for other in [vec![], vec![1], vec![5], vec![3, 1], vec![2, 1, 5], vec![1, 3, 1]] {
        let op = map(2, [2, 3, 5], |x| x[0].clone() * x[1].clone() + 1.0);
        let name = format!("map/broadcast/{other:?}");
        cases.push(Case::new(name, op, &[Operand::normal([2, 3, 5]), Operand::normal(other)]));
    }
    cases.push(Case::new(
        "map/index_and_ids",
        map(1, [4, 6], |x| Term::index(1).equal(x[0].clone()).select(Term::index(0) + 1.0, -1.0)),
        &[Operand::ids([4, 1], 6)],
    ));
    cases.push(Case::new("map/fill", map(0, [3, 5], |_| Term::constant(1.5)), &[]));
    for shape in [[1, 1, 1], [2, 3, 4], [3, 1, 37], [1, 129, 1]] {
        for (kind, word) in [(ReduceKind::Sum, "sum"), (ReduceKind::Max, "max")] {
            for (axes, keep) in [
                (vec![2], true),
                (vec![0], false),
                (vec![1], false),
                (vec![0, 2], true),
                (vec![0, 1, 2], false),
                (vec![], false),
            ] {
                let op =
                    reduce(kind, shape, &axes, keep, 2, |x| x[0].clone() * x[1].clone() - 0.25);
                let last = Operand::normal([shape[2]]);
                let name = format!("reduce/{word}/{shape:?}/{axes:?}/{keep}");
                cases.push(Case::new(name, op, &[Operand::normal(shape), last]));
            }
        }
    }
    let op = reduce(ReduceKind::Max, [3, 4], &[1], false, 1, |x| x[0].clone());
    cases.push(Case::new("reduce/max/special_values", op, &[Operand::values([3, 4], &SPECIAL)]));
    cases
}

fn movements() -> Vec<Case> {
    let x = |shape: &[usize]| Operand::normal(shape.to_vec());
    let mut cases = Vec::new();
    for (shape, axes) in [
        (vec![3, 5], vec![1, 0]),
        (vec![2, 3, 4], vec![2, 0, 1]),
        (vec![2, 3, 4, 5], vec![0, 2, 1, 3]),
        (vec![1, 7, 1, 3], vec![3, 2, 1, 0]),
        (vec![4], vec![0]),
    ] {
        let name = format!("permute/{shape:?}/{axes:?}");
        cases.push(Case::new(name, Op::Permute { axes }, &[x(&shape)]));
    }
    let op = Op::Reshape { shape: [2, 1, 6].into() };
    cases.push(Case::new("reshape", op, &[x(&[3, 4])]));
    for (axis, start, len) in [(0, 1, 1), (1, 0, 2), (1, 2, 1), (2, 3, 4)] {
        let name = format!("slice/{axis}/{start}/{len}");
        cases.push(Case::new(name, Op::Slice { axis, start, len }, &[x(&[2, 3, 7])]));
    }
    for axis in 0..3 {
        let mut shapes = [[2, 3, 4]; 3];
        shapes[1][axis] = 1;
        let parts: Vec<Operand> = shapes.iter().map(|shape| x(shape)).collect();
        cases.push(Case::new(format!("concat/{axis}"), Op::Concat { axis }, &parts));
    }
    let ids = Operand { dtype: DType::U32, ..Operand::values([2, 2], &[4.0, 0.0, 9.0, 4.0]) };
    cases.push(Case::new("gather", Op::Gather, &[x(&[5, 7]), ids.clone()]));
    let op = Op::ScatterAdd { rows: 5 };
    cases.push(Case::new("scatter_add", op.clone(), &[x(&[2, 2, 3]), ids]));
    cases.push(Case::new("scatter_add/many", op, &[x(&[97, 3]), Operand::ids([97], 5)]));
    cases.push(Case::new("cast", Op::Cast { to: DType::F32 }, &[x(&[5, 13])]));
    cases
}

fn randoms() -> Vec<Case> {
    let shape = Shape::from([37, 5]);
    [
        ("uniform", Distribution::Uniform { low: -1.0, high: 2.0 }),
        ("normal", Distribution::Normal { mean: 0.5, std: 1.5 }),
        ("bernoulli", Distribution::Bernoulli { p: 0.3 }),
    ]
    .map(|(name, distribution)| {
        let op = Op::Random { distribution, shape: shape.clone() };
        Case::new(format!("random/{name}"), op, &[])
    })
    .into()
}

fn fused() -> Vec<Case> {
    let x = |shape: &[usize]| Operand::normal(shape.to_vec());
    let mut cases = Vec::new();
    for shape in [vec![5, 17], vec![9], vec![2, 3, 1], vec![1, 64]] {
        let d = shape[shape.len() - 1];
        let tag = format!("{shape:?}");
        let pair = [x(&shape), x(&shape)];
        cases.push(Case::new(format!("softmax/{tag}"), Op::Softmax { mult: 1.5 }, &pair[..1]));
        let op = Op::SoftmaxGrad { mult: 1.5, forward_alpha: 2.0 };
        cases.push(Case::new(format!("softmax_grad/{tag}"), op, &pair));
        let norm = [x(&shape), x(&[d]), x(&[d])];
        let grad = [x(&shape), x(&shape), x(&[d]), x(&[d])];
        for n in 1..=3 {
            let op = Op::LayerNorm { eps: 1e-3 };
            cases.push(Case::new(format!("layer_norm/{tag}/{n}"), op, &norm[..n]));
            let op = Op::LayerNormGrad { eps: 1e-3 };
            cases.push(Case::new(format!("layer_norm_grad/{tag}/{n}"), op, &grad[..n + 1]));
        }
        for n in 1..=2 {
            let op = Op::RmsNorm { eps: 1e-3 };
            cases.push(Case::new(format!("rms_norm/{tag}/{n}"), op, &norm[..n]));
            let op = Op::RmsNormGrad { eps: 1e-3 };
            cases.push(Case::new(format!("rms_norm_grad/{tag}/{n}"), op, &grad[..n + 1]));
        }
    }
    let large = Operand::values([2, 3], &[1e4, 0.0, -1e4, 500.0, 500.0, 499.0]);
    cases.push(Case::new("softmax/large_values", Op::Softmax { mult: 1.0 }, &[large]));
    for (b, s, t, h, n, d, causal) in [
        (2, 5, 5, 2, 2, 8, true),
        (2, 5, 5, 2, 2, 8, false),
        (1, 3, 7, 4, 2, 5, true),
        (1, 7, 3, 6, 2, 4, false),
        (1, 1, 9, 3, 1, 16, true),
        (1, 1, 1, 1, 1, 1, true),
        (1, 67, 67, 1, 1, 16, true),
    ] {
        let tag =
            format!("{b}x{s}x{t}/heads_{h}_{n}/{d}/{}", if causal { "causal" } else { "full" });
        let [q, k] = [[b, s, h, d], [b, t, n, d]];
        let logit_scale = 1.0 / (d as f64).sqrt();
        let op = Op::Attention { causal, logit_scale };
        cases.push(Case::new(format!("attention/{tag}"), op, &[x(&q), x(&k), x(&k)]));
        let op = Op::AttentionGrad { causal, logit_scale, forward_alpha: 0.5 };
        // Any log-sum-exp above the logits stands for one.
        let lse = Operand::positive([b, h, s]);
        cases.push(Case::new(
            format!("attention_grad/{tag}"),
            op,
            &[x(&q), x(&k), x(&k), x(&q), lse.clone(), x(&q)],
        ));
        if t == 1 {
            continue;
        }
        // Padding: a ragged end in the first item, a hole in the others.
        let hidden = |item: usize, key: usize| if item == 0 { key + 2 > t } else { key == 1 };
        let mask: Vec<f64> =
            (0..b * t).map(|n| f64::from(u8::from(!hidden(n / t, n % t)))).collect();
        let mask = Operand { dtype: DType::U32, ..Operand::values([b, t], &mask) };
        let op = Op::Attention { causal, logit_scale };
        let operands = [x(&q), x(&k), x(&k), mask.clone()];
        cases.push(Case::new(format!("attention/{tag}/masked"), op, &operands));
        let op = Op::AttentionGrad { causal, logit_scale, forward_alpha: 0.5 };
        let operands = [x(&q), x(&k), x(&k), x(&q), lse, x(&q), mask];
        cases.push(Case::new(format!("attention_grad/{tag}/masked"), op, &operands));
    }
    for (mean, word) in [(true, "mean"), (false, "sum")] {
        for shape in [[4, 3, 10], [1, 1, 1], [2, 1, 33]] {
            let ids = Operand::ids([shape[0], shape[1]], shape[2] as u32);
            let logits = x(&shape);
            let tag = format!("{shape:?}/{word}");
            let op = Op::CrossEntropy { mult: 1.25, mean };
            let pair = [logits, ids, Operand::values([], &[2.0])];
            cases.push(Case::new(format!("cross_entropy/{tag}"), op, &pair[..2]));
            let op = Op::CrossEntropyGrad { mult: 1.25, mean };
            cases.push(Case::new(format!("cross_entropy_grad/{tag}"), op, &pair));
            for below in [1, 2] {
                // None counted, and about half.
                let mask = Operand::ids([shape[0], shape[1]], below);
                let [logits, ids, d_loss] = pair.clone();
                let op = Op::CrossEntropy { mult: 1.25, mean };
                let operands = [logits.clone(), ids.clone(), mask.clone()];
                let tag = format!("{tag}/masked_{below}");
                cases.push(Case::new(format!("cross_entropy/{tag}"), op, &operands));
                let op = Op::CrossEntropyGrad { mult: 1.25, mean };
                let operands = [logits, ids, d_loss, mask];
                cases.push(Case::new(format!("cross_entropy_grad/{tag}"), op, &operands));
            }
        }
    }
    let ids = |values: &[f64]| Operand { dtype: DType::U32, ..Operand::values([2], values) };
    let op = Op::CrossEntropy { mult: 1.0, mean: true };
    let operands = [x(&[2, 5]), ids(&[1.0, 9.0]), ids(&[3.0, 0.0])];
    cases.push(Case::new("cross_entropy/target_beyond_left_out", op, &operands));
    let no_key = Operand { dtype: DType::U32, ..Operand::values([1, 3], &[0.0; 3]) };
    let op = Op::Attention { causal: false, logit_scale: 0.5 };
    let heads = x(&[1, 3, 2, 4]);
    let operands = [heads.clone(), heads.clone(), heads, no_key];
    cases.push(Case::new("attention/no_key", op, &operands));
    let beyond = Operand { dtype: DType::U32, ..Operand::values([2], &[1.0, 5.0]) };
    let op = Op::CrossEntropy { mult: 1.0, mean: true };
    cases.push(Case::new("cross_entropy/target_beyond", op, &[x(&[2, 5]), beyond]));
    let config = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, lr_scale: 0.5 };
    for (name, step, factor) in [("first", 0, 1.0), ("later", 900, 0.25), ("skipped", 3, 0.0)] {
        let w = x(&[3, 7]);
        let scalar = |value| Operand::values([], &[value]);
        let mut case = Case::new(
            format!("adam_w/{name}"),
            Op::AdamW(config),
            &[
                w.clone(),
                w.clone(),
                w.clone(),
                Operand::positive([3, 7]),
                scalar(0.01),
                Operand::scalar_u32(step),
                scalar(factor),
            ],
        );
        case.alpha = 1.0;
        cases.push(case);
    }
    cases
}

/// All cases in F32.
pub(crate) fn all() -> Vec<Case> {
    [mat_muls(), expressions(), movements(), randoms(), fused()].concat()
}

/// Cases that stand for their op when formats are tried: the first of each op's, of usual size.
pub(crate) fn representatives() -> Vec<Case> {
    let mut seen = Vec::new();
    all()
        .into_iter()
        .filter(|case| {
            let name = case.op.name();
            let new = !seen.contains(&name);
            seen.push(name);
            new
        })
        .collect()
}

pub(crate) fn trials(make: Make, backend: &dyn Backend) -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in all() {
        trials.push(trial(format!("op::{}", case.name), make, move |backend| case.run(backend)));
    }
    for case in representatives() {
        let mut denied = Vec::new();
        for &format in Format::NAMED.iter().filter(|format| !format.is_f32()) {
            let mut variants = vec![case.with_operands_in(format), case.stored_in(format)];
            if case.op.is_movement() {
                variants.pop();
            }
            let narrow = variants[0].clone();
            if matches!(case.op, Op::MatMul { .. }) && format == Format::E5M2 {
                let mut mixed = narrow;
                mixed.name = "mat_mul/from_e5m2_and_e4m3_into_bf16".to_owned();
                mixed.operands[1].dtype = DType::Float(Format::E4M3);
                mixed.store = Some((DType::Float(Format::BF16), Conversion::SPECIAL));
                variants.push(mixed);
            }
            if !case.op.is_movement() && format.bits() == 8 {
                let mut stochastic = case.stored_in(format);
                stochastic.name += "/stochastic";
                let how = Conversion {
                    rounding: Rounding::Stochastic { bits: 16 },
                    overflow: Overflow::Saturate,
                };
                stochastic.store = Some((DType::Float(format), how));
                variants.push(stochastic);
            }
            for variant in variants {
                // Fused ops may be decomposed or upcast, formats that are not claimed are not.
                let claimed = variant.support(backend) != Support::No;
                let operands = !variant.operands.is_empty() || variant.store.is_some();
                if claimed && operands {
                    let name = format!("format::{}", variant.name);
                    trials.push(trial(name, make, move |backend| variant.run(backend)));
                } else if operands && !denied.contains(&name_of(format)) {
                    denied.push(name_of(format));
                }
            }
        }
        if !denied.is_empty() {
            let name = format!("format::{}", case.op.name().to_lowercase());
            trials
                .push(skipped(name, &format!("no {} with {}", case.op.name(), denied.join(", "))));
        }
    }
    trials
}
