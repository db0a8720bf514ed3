//! From a node of a program to an instruction: everything that does not change from run to run is
//! worked out here once.

use onesigma_backend::lowering::Rounded;
use onesigma_backend::{Error, Result, Support};
use onesigma_format::{Conversion, Format};
use onesigma_graph::expr::{Expr, Instr};
use onesigma_graph::{DType, Distribution, Node, Op, Place, ProgramEntry, ReduceKind, Shape};

use crate::adamw::AdamW;
use crate::attention::Attention;
use crate::expression::{Expression, Space, is_supported};
use crate::gemm::{GemmItem, GemmShape};
use crate::norm::Norm;
use crate::random::Draw;
use crate::reduce::{Combine, Reduction};

/// An operand in the arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub(crate) place: Place,
    pub(crate) dtype: DType,
}

/// A result in the arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) place: Place,
    pub(crate) dtype: DType,
    pub(crate) how: Conversion,
    pub(crate) alpha: f32,
    /// Stream of its random bits.
    pub(crate) stream: u32,
}

/// One operand of a concatenation, or the one of another movement.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) dims: Vec<usize>,
    pub(crate) from_offset: usize,
    pub(crate) from_strides: Vec<usize>,
    pub(crate) to_offset: usize,
    pub(crate) to_strides: Vec<usize>,
}

/// What an instruction does, with its sizes.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Gemm {
        shape: GemmShape,
        batch: Vec<GemmItem>,
        /// Columns of the operands as they are stored.
        columns: [usize; 2],
        transposed: [bool; 2],
    },
    Map {
        expression: Expression,
        space: Space,
        /// Which operands the result replaces.
        in_place: Vec<bool>,
    },
    Reduce(Box<Reduction>),
    Gather {
        width: usize,
    },
    ScatterAdd {
        width: usize,
    },
    Copy(Vec<Copy>),
    Random(Draw),
    Softmax {
        width: usize,
        mult: f32,
    },
    SoftmaxGrad {
        width: usize,
        mult: f32,
        y_scale: f32,
    },
    Norm(Norm),
    NormGrad(Norm),
    Attention(Attention),
    /// With the factor that undoes the forward scale.
    AttentionGrad(Attention, f32),
    CrossEntropy {
        classes: usize,
        mult: f32,
        /// 1 / rows for the mean, 1 for the sum.
        factor: f64,
        /// The mean over what a mask counts; `factor` is without it then.
        mean_of_mask: bool,
    },
    CrossEntropyGrad {
        classes: usize,
        mult: f32,
        factor: f64,
        mean_of_mask: bool,
    },
    AdamW(AdamW),
}

/// A node ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub(crate) kind: Kind,
    pub(crate) inputs: Vec<Operand>,
    pub(crate) outputs: Vec<Target>,
    /// Rows of the first result: the product of all axes but the last.
    pub(crate) rows: usize,
    /// Index of the node in its graph.
    pub(crate) node: usize,
    /// Op, types and sizes, for messages and profiles.
    pub(crate) label: String,
}

impl Instruction {
    /// Whether the result depends on the seed.
    pub(crate) fn draws(&self) -> bool {
        let stochastic = |target: &Target| target.how.random_bits() > 0;
        matches!(self.kind, Kind::Random(_)) || self.outputs.iter().any(stochastic)
    }
}

/// What the backend makes of an op on these types.
pub(crate) fn supports(op: &Op, inputs: &[DType], output: DType) -> Support {
    let float = |dtype: &DType| dtype.format().is_some();
    let integer = |at: usize| inputs.get(at) == Some(&DType::U32);
    let floats = |range: std::ops::Range<usize>| {
        range.into_iter().all(|at| inputs.get(at).is_some_and(float))
    };
    let all = inputs.iter().all(float);
    let ok = match op {
        Op::Slot(_) => return Support::Native,
        op if op.is_movement() => inputs.iter().all(|dtype| *dtype == output),
        _ if !float(&output) => false,
        Op::Map { expr, .. } | Op::Reduce { expr, .. } => is_supported(expr),
        Op::Gather => floats(0..1) && integer(1),
        Op::ScatterAdd { .. } => floats(0..1) && integer(1),
        Op::CrossEntropy { .. } => floats(0..1) && integer(1) && (inputs.len() < 3 || integer(2)),
        Op::CrossEntropyGrad { .. } => {
            floats(0..1) && integer(1) && floats(2..3) && (inputs.len() < 4 || integer(3))
        }
        Op::Attention { .. } => floats(0..3) && (inputs.len() < 4 || integer(3)),
        Op::AttentionGrad { .. } => floats(0..6) && (inputs.len() < 7 || integer(6)),
        Op::AdamW(_) => floats(0..5) && integer(5) && floats(6..7),
        Op::MatMul { .. }
        | Op::Cast { .. }
        | Op::Random { .. }
        | Op::Softmax { .. }
        | Op::SoftmaxGrad { .. }
        | Op::LayerNorm { .. }
        | Op::LayerNormGrad { .. }
        | Op::RmsNorm { .. }
        | Op::RmsNormGrad { .. } => all,
        _ => false,
    };
    if ok { Support::Native } else { Support::No }
}

/// The instruction of a node, or `None` for one that only names memory.
pub(crate) fn compile(entry: &ProgramEntry, node: &Node) -> Result<Option<Instruction>> {
    if matches!(node.op, Op::Slot(_) | Op::Reshape { .. }) {
        return Ok(None);
    }
    let graph = &entry.graph;
    let inputs: Vec<Operand> = node
        .inputs
        .iter()
        .map(|&id| Operand { place: entry.places[id.index()], dtype: graph.value(id).dtype })
        .collect();
    let outputs: Vec<Target> = node
        .outputs
        .iter()
        .enumerate()
        .map(|(at, &id)| {
            let Rounded { alpha, dtype, how, stream } = Rounded::of(graph, node, at);
            Target { place: entry.places[id.index()], dtype, how, alpha: alpha as f32, stream }
        })
        .collect();
    let unsupported = || {
        let name = |dtype: DType| dtype.to_string();
        let types: Vec<String> = inputs
            .iter()
            .map(|operand| name(operand.dtype))
            .chain(outputs.iter().map(|target| format!("-> {}", name(target.dtype))))
            .collect();
        Error::Unsupported {
            backend: crate::backend::NAME.to_owned(),
            op: node.op.name(),
            node: node.name.clone(),
            types: types.join(" "),
        }
    };
    let dtypes: Vec<DType> = inputs.iter().map(|operand| operand.dtype).collect();
    for output in &outputs {
        let rule = crate::tensor::expect_rule(output.how);
        if rule.is_err() || supports(&node.op, &dtypes, output.dtype) == Support::No {
            return Err(unsupported());
        }
    }
    let shapes: Vec<&Shape> = node.inputs.iter().map(|&id| graph.shape(id)).collect();
    let result = graph.shape(node.outputs[0]);
    let kind = kind(&node.op, &shapes, result, &inputs, &outputs).ok_or_else(unsupported)?;
    let sizes: Vec<String> =
        node.inputs.iter().chain(&node.outputs).map(|&id| graph.value(id).describe()).collect();
    let label = format!("{} {} {}", node.op.name(), node.op.attributes(), sizes.join(", "));
    let node = graph.value(node.outputs[0]).producer.index();
    let rows = result.rows();
    Ok(Some(Instruction { kind, inputs, outputs, rows, node, label }))
}

fn kind(
    op: &Op,
    shapes: &[&Shape],
    result: &Shape,
    inputs: &[Operand],
    outputs: &[Target],
) -> Option<Kind> {
    let width = || shapes[0].last();
    Some(match op {
        Op::MatMul { transpose_left, transpose_right } => {
            matmul(shapes[0].dims(), shapes[1].dims(), [*transpose_left, *transpose_right])
        }
        Op::Map { expr, shape } => map(expr, shape, shapes, inputs, outputs)?,
        Op::Cast { .. } => map(&Expr::identity(), result, shapes, inputs, outputs)?,
        Op::Reduce { kind, expr, shape, axes, .. } => {
            let combine = match kind {
                ReduceKind::Sum => Combine::Sum,
                ReduceKind::Max => Combine::Max,
            };
            reduce(combine, expr, shape, axes, shapes)?
        }
        Op::Gather => Kind::Gather { width: width() },
        Op::ScatterAdd { .. } => Kind::ScatterAdd { width: width() },
        Op::Permute { .. } | Op::Slice { .. } | Op::Concat { .. } => {
            Kind::Copy(copies(op, shapes, result))
        }
        Op::Random { distribution, .. } => Kind::Random(match *distribution {
            Distribution::Uniform { low, high } => {
                Draw::Uniform { low: low as f32, high: high as f32 }
            }
            Distribution::Normal { mean, std } => {
                Draw::Normal { mean: mean as f32, std: std as f32 }
            }
            Distribution::Bernoulli { p } => Draw::Bernoulli { p: p as f32 },
        }),
        Op::Softmax { mult } => Kind::Softmax { width: width(), mult: *mult as f32 },
        Op::SoftmaxGrad { mult, forward_alpha } => Kind::SoftmaxGrad {
            width: width(),
            mult: *mult as f32,
            y_scale: (1.0 / forward_alpha) as f32,
        },
        Op::LayerNorm { eps } => Kind::Norm(norm(width(), *eps, true)),
        Op::LayerNormGrad { eps } => Kind::NormGrad(norm(width(), *eps, true)),
        Op::RmsNorm { eps } => Kind::Norm(norm(width(), *eps, false)),
        Op::RmsNormGrad { eps } => Kind::NormGrad(norm(width(), *eps, false)),
        Op::Attention { causal, logit_scale } => {
            Kind::Attention(attention(shapes, *causal, *logit_scale)?)
        }
        Op::AttentionGrad { causal, logit_scale, forward_alpha } => {
            let attention = attention(shapes, *causal, *logit_scale)?;
            Kind::AttentionGrad(attention, (1.0 / forward_alpha) as f32)
        }
        Op::CrossEntropy { mult, mean } => {
            let mean_of_mask = *mean && inputs.len() > 2;
            let over_rows = *mean && !mean_of_mask;
            let factor = if over_rows { 1.0 / shapes[0].rows() as f64 } else { 1.0 };
            Kind::CrossEntropy { classes: width(), mult: *mult as f32, factor, mean_of_mask }
        }
        Op::CrossEntropyGrad { mult, mean } => {
            let mean_of_mask = *mean && inputs.len() > 3;
            let over_rows = *mean && !mean_of_mask;
            let factor = if over_rows { mult / shapes[0].rows() as f64 } else { *mult };
            Kind::CrossEntropyGrad { classes: width(), mult: *mult as f32, factor, mean_of_mask }
        }
        Op::AdamW(config) => Kind::AdamW(AdamW {
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.eps as f32,
            weight_decay: config.decay as f32,
            lr_scale: config.lr_scale as f32,
        }),
        _ => return None,
    })
}

fn norm(width: usize, eps: f64, centred: bool) -> Norm {
    Norm { width, eps: eps as f32, centred }
}

fn attention(shapes: &[&Shape], causal: bool, logit_scale: f64) -> Option<Attention> {
    let (&[batch, queries, heads, width], &[_, keys, kv_heads, _]) =
        (shapes[0].dims(), shapes[1].dims())
    else {
        return None;
    };
    let logit_scale = logit_scale as f32;
    Some(Attention { batch, queries, keys, heads, kv_heads, width, causal, logit_scale })
}

fn matmul(left: &[usize], right: &[usize], transposed: [bool; 2]) -> Kind {
    let (left_lead, left) = left.split_at(left.len() - 2);
    let (right_lead, right) = right.split_at(right.len() - 2);
    let (mut m, k) = if transposed[0] { (left[1], left[0]) } else { (left[0], left[1]) };
    let n = if transposed[1] { right[0] } else { right[1] };
    let items: usize = left_lead.iter().product();
    let batch = if right_lead.is_empty() {
        m *= items;
        vec![GemmItem::default()]
    } else {
        (0..items).map(|i| GemmItem { a: i * m * k, b: i * k * n, c: i * m * n }).collect()
    };
    Kind::Gemm { shape: GemmShape { m, n, k }, batch, columns: [left[1], right[1]], transposed }
}

/// Strides of the operands over `shape`, then those of its coordinates: 0 where not used.
fn accesses(expr: &Expr, shape: &Shape, shapes: &[&Shape]) -> Vec<Vec<usize>> {
    let mut strides: Vec<Vec<usize>> =
        shapes.iter().map(|operand| operand.broadcast_strides(shape)).collect();
    for axis in 0..shape.rank() {
        let mut own = vec![0; shape.rank()];
        let used = expr.instrs().contains(&Instr::Index(axis as u16));
        own[axis] = usize::from(used);
        strides.push(own);
    }
    strides
}

fn map(
    expr: &Expr,
    shape: &Shape,
    shapes: &[&Shape],
    inputs: &[Operand],
    outputs: &[Target],
) -> Option<Kind> {
    let space = Space::new(shape.dims(), &accesses(expr, shape, shapes));
    let expression = Expression::new(expr, &space.operands, shapes.len())?;
    let target = outputs[0].place;
    let in_place = inputs.iter().map(|operand| operand.place.overlaps(target)).collect();
    Some(Kind::Map { expression, space, in_place })
}

fn reduce(
    combine: Combine,
    expr: &Expr,
    shape: &Shape,
    axes: &[usize],
    shapes: &[&Shape],
) -> Option<Kind> {
    let strides = accesses(expr, shape, shapes);
    let part = |reduced: bool| {
        let own = |axis: &usize| axes.contains(axis) == reduced;
        let pick =
            |all: &[usize]| (0..shape.rank()).filter(own).map(|axis| all[axis]).collect::<Vec<_>>();
        let strides: Vec<Vec<usize>> = strides.iter().map(|all| pick(all)).collect();
        Space::new(&pick(shape.dims()), &strides)
    };
    let (kept, reduced) = (part(false), part(true));
    let innermost = (0..shape.rank()).rev().find(|&axis| shape.dims()[axis] != 1);
    let by_vectors = innermost.is_none_or(|axis| !axes.contains(&axis));
    let walked = if by_vectors { &kept } else { &reduced };
    let expression = Expression::new(expr, &walked.operands, shapes.len())?;
    Some(Kind::Reduce(Box::new(Reduction { kept, reduced, combine, by_vectors, expression })))
}

fn copies(op: &Op, shapes: &[&Shape], result: &Shape) -> Vec<Copy> {
    let to = result.strides();
    let whole = |from_strides: Vec<usize>, from_offset: usize| Copy {
        dims: result.dims().to_vec(),
        from_offset,
        from_strides,
        to_offset: 0,
        to_strides: to.clone(),
    };
    let from = shapes[0].strides();
    match op {
        Op::Permute { axes } => vec![whole(axes.iter().map(|&axis| from[axis]).collect(), 0)],
        Op::Slice { axis, start, .. } => {
            let offset = start * from[*axis];
            vec![whole(from, offset)]
        }
        Op::Concat { axis } => {
            let mut at = 0;
            let mut parts = Vec::new();
            for shape in shapes {
                parts.push(Copy {
                    dims: shape.dims().to_vec(),
                    from_offset: 0,
                    from_strides: shape.strides(),
                    to_offset: at * to[*axis],
                    to_strides: to.clone(),
                });
                at += shape.dims()[*axis];
            }
            parts
        }
        _ => Vec::new(),
    }
}

impl Operand {
    /// The format; operands that reach a float kernel have one.
    pub(crate) fn format(&self) -> Format {
        self.dtype.format().unwrap_or(Format::F32)
    }
}

impl Target {
    /// As [`Operand::format`].
    pub(crate) fn format(&self) -> Format {
        self.dtype.format().unwrap_or(Format::F32)
    }
}
