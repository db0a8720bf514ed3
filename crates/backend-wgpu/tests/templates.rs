//! Each shader template on sizes that take several workgroups, ragged ends and every branch, beside
//! the f64 reference; with subgroups, and with nothing but what every WebGPU device has.
#![allow(clippy::print_stdout)] // a skip is said aloud

mod common;

use onesigma_backend::{Backend, RefBackend};
use onesigma_backend_wgpu::{Options, Tuning, WgpuBackend};
use onesigma_format::{Conversion, Format, Noise, decode, encode_slice};
use onesigma_graph::{
    AdamWConfig, DType, EntryId, Graph, Module, Op, Program, ReduceKind, Role, SlotId, SlotKind,
    ValueId,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// An operand: its shape, and its elements in order.
enum Operand {
    Float(Vec<usize>, Format),
    /// Integers below a bound.
    Words(Vec<usize>, u32),
}

fn float(shape: &[usize]) -> Operand {
    Operand::Float(shape.to_vec(), Format::F32)
}

impl Operand {
    fn slot(&self) -> (Vec<usize>, DType) {
        match self {
            Self::Float(shape, format) => (shape.clone(), DType::Float(*format)),
            Self::Words(shape, _) => (shape.clone(), DType::U32),
        }
    }

    fn bytes(&self, seed: u32) -> Vec<u8> {
        let numel: usize = self.slot().0.iter().product();
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let words = (0..numel).map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        });
        match self {
            Self::Words(_, below) => words.flat_map(|w| (w % below).to_le_bytes()).collect(),
            Self::Float(_, format) => {
                let values: Vec<f32> =
                    words.map(|w| (w >> 8) as f32 / (1 << 23) as f32 - 1.0).collect();
                let mut bytes = vec![0; numel * format.bytes()];
                let how = Conversion::SATURATE;
                encode_slice(*format, how, Noise::default(), &values, &mut bytes)
                    .expect("the lengths agree");
                bytes
            }
        }
    }
}

/// Results of a graph of operands, as numbers.
fn results(
    backend: &dyn Backend,
    program: &Program,
    operands: &[Operand],
    outputs: &[SlotId],
) -> Result<Vec<Vec<f64>>, Box<dyn std::error::Error>> {
    let mut engine = backend.compile(program)?;
    for (n, operand) in operands.iter().enumerate() {
        engine.write(program.find_slot(&format!("x{n}"))?, &operand.bytes(n as u32 + 1))?;
    }
    engine.run(EntryId::new(0), 1)?;
    let mut all = Vec::new();
    for &slot in outputs {
        let about = &program.slots()[slot.index()];
        let mut bytes = vec![0; about.bytes()];
        engine.read(slot, &mut bytes)?;
        let format = about.dtype.format().ok_or("a float")?;
        let codes = bytes.chunks(format.bytes()).map(|code| {
            let mut word = [0; 4];
            word[..code.len()].copy_from_slice(code);
            f64::from(decode(u32::from_le_bytes(word), format))
        });
        all.push(codes.collect());
    }
    Ok(all)
}

/// Holds every device there is to the reference: `|found - expected| / |expected|` over each result.
fn holds(
    operands: &[Operand],
    allowed: f64,
    build: impl Fn(&mut Graph, &[ValueId]) -> onesigma_graph::Result<Vec<ValueId>>,
) -> Outcome {
    holds_with(Tuning::default(), operands, allowed, build)
}

fn holds_with(
    tuning: Tuning,
    operands: &[Operand],
    allowed: f64,
    build: impl Fn(&mut Graph, &[ValueId]) -> onesigma_graph::Result<Vec<ValueId>>,
) -> Outcome {
    let mut module = Module::new();
    let mut graph = Graph::new();
    let mut inputs = Vec::new();
    for (n, operand) in operands.iter().enumerate() {
        let (shape, dtype) = operand.slot();
        let slot =
            module.slot(&format!("x{n}"), SlotKind::State, shape, dtype, Role::Activation)?;
        inputs.push(module.read(&mut graph, slot));
    }
    let values = build(&mut graph, &inputs)?;
    let mut outputs = Vec::new();
    for (n, &value) in values.iter().enumerate() {
        let (shape, dtype) = (graph.value(value).shape.clone(), graph.value(value).dtype);
        let slot =
            module.slot(&format!("y{n}"), SlotKind::Output, shape, dtype, Role::Activation)?;
        graph.write(slot, value);
        outputs.push(slot);
    }
    module.entry("main", graph)?;
    let program = Program::new(module)?;
    let expected = results(&RefBackend::rounding(), &program, operands, &outputs)?;
    for portable in [false, true] {
        let options = Options { portable, tuning, ..Options::default() };
        let Some(backend): Option<WgpuBackend> = common::backend(&options) else { return Ok(()) };
        let found = results(&backend, &program, operands, &outputs)?;
        for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let norm = |values: &mut dyn Iterator<Item = f64>| {
                values.map(|value| value * value).sum::<f64>().sqrt()
            };
            let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let error = off / norm(&mut expected.iter().copied()).max(f64::MIN_POSITIVE);
            // A NaN never passes.
            assert!(error <= allowed, "result {n}, portable {portable}: {error:.1e}");
        }
    }
    Ok(())
}

/// `matmul.wgsl`: several tiles, ragged in every direction, operands as they are and transposed.
#[test]
fn matmul() -> Outcome {
    let (m, n, k) = (150, 138, 77);
    for (transpose_left, transpose_right) in
        [(false, false), (false, true), (true, false), (true, true)]
    {
        let left = if transpose_left { [2, k, m] } else { [2, m, k] };
        let right = if transpose_right { [2, n, k] } else { [2, k, n] };
        holds(&[float(&left), float(&right)], 1e-6, |graph, x| {
            Ok(vec![graph.op(Op::MatMul { transpose_left, transpose_right }, x).alpha(0.5).one()?])
        })?;
    }
    Ok(())
}

/// `matmul.wgsl` where nothing is ragged and operands are narrow.
#[test]
fn matmul_of_whole_tiles() -> Outcome {
    let narrow = |shape: [usize; 2]| Operand::Float(shape.to_vec(), Format::E4M3);
    holds(&[narrow([128, 64]), narrow([64, 192])], 1e-6, |graph, x| {
        Ok(vec![graph.matmul(x[0], x[1]).one()?])
    })
}

/// `matmul_small.wgsl`.
#[test]
fn matmul_small() -> Outcome {
    holds(&[float(&[3, 5, 7]), float(&[3, 7, 9])], 1e-6, |graph, x| {
        Ok(vec![graph.matmul(x[0], x[1]).one()?])
    })
}

/// `reduce_rows.wgsl` and `reduce_columns.wgsl`: one workgroup an output, several parts, both kinds.
#[test]
fn reductions() -> Outcome {
    for (shape, axes) in [([3, 20_001], [1]), ([300, 70], [0]), ([70, 300], [1])] {
        for kind in [ReduceKind::Sum, ReduceKind::Max] {
            holds(&[float(&shape)], 2e-5, |graph, x| {
                let op = graph.reduce(kind, x, &axes, false, |x| x[0].clone() * x[0].clone());
                Ok(vec![op?.one()?])
            })?;
        }
    }
    Ok(())
}

/// `rows.wgsl` with `team.wgsl` and `team_subgroup.wgsl`: rows of few and of many quads.
#[test]
fn rows() -> Outcome {
    for width in [4, 36, 1032] {
        let matrix = float(&[33, width]);
        let (weight, bias) = (float(&[width]), float(&[width]));
        holds(&[matrix, weight, bias], 1e-6, |graph, x| {
            let softmax = graph.op(Op::Softmax { mult: 1.5 }, &x[..1]).one()?;
            let layer = graph.op(Op::LayerNorm { eps: 1e-5 }, x).one()?;
            let rms = graph.op(Op::RmsNorm { eps: 1e-5 }, &x[..2]).one()?;
            Ok(vec![softmax, layer, rms])
        })?;
        let matrix = || float(&[33, width]);
        holds(&[matrix(), matrix(), float(&[width]), float(&[width])], 1e-5, |graph, x| {
            let softmax = Op::SoftmaxGrad { mult: 1.5, forward_alpha: 2.0 };
            let mut all = vec![graph.op(softmax, &x[..2]).one()?];
            all.extend(graph.op(Op::LayerNormGrad { eps: 1e-5 }, x).all()?);
            all.extend(graph.op(Op::RmsNormGrad { eps: 1e-5 }, &x[..3]).all()?);
            Ok(all)
        })?;
    }
    Ok(())
}

/// Queries, keys, values, gradient of the output, and maybe a mask, through attention and back.
fn attention_holds(
    [batch, queries, keys, heads, kv_heads, width]: [usize; 6],
    causal: bool,
    masked: bool,
) -> Outcome {
    let rows = |count, heads| Operand::Float(vec![batch, count, heads, width], Format::F16);
    let mut operands = vec![
        rows(queries, heads),
        rows(keys, kv_heads),
        rows(keys, kv_heads),
        rows(queries, heads),
    ];
    if masked {
        operands.push(Operand::Words(vec![batch, keys], 3));
    }
    // As the suite allows for gradients of attention.
    let fused = Tuning { logits_bytes: Some(0), ..Tuning::default() };
    holds_with(fused, &operands, 1e-5, |graph, x| {
        let logit_scale = 1.5;
        let mut inputs = x[..3].to_vec();
        inputs.extend(x.get(4));
        let op = Op::Attention { causal, logit_scale };
        let mut all = graph.op(op, &inputs).alpha(2.0).all()?;
        let mut inputs = vec![x[0], x[1], x[2], all[0], all[1], x[3]];
        inputs.extend(x.get(4));
        let op = Op::AttentionGrad { causal, logit_scale, forward_alpha: 2.0 };
        all.extend(graph.op(op, &inputs).all()?);
        Ok(all)
    })
}

/// `attention.wgsl`, `attention_query_grad.wgsl`, `attention_key_grad.wgsl` with `across.wgsl` and
/// `across_subgroup.wgsl`: several blocks of queries and keys, both ragged.
#[test]
fn causal_attention_with_shared_keys() -> Outcome {
    attention_holds([2, 75, 83, 4, 2, 32], true, false)
}

#[test]
fn attention_with_a_mask() -> Outcome {
    attention_holds([2, 41, 67, 2, 2, 64], false, true)
}

/// Heads that are no multiple of what the threads of a block take.
#[test]
fn attention_of_heads_of_odd_size() -> Outcome {
    attention_holds([1, 40, 40, 1, 1, 20], true, true)
}

/// The largest heads: smaller blocks.
#[test]
fn attention_of_large_heads() -> Outcome {
    attention_holds([1, 50, 50, 1, 1, 128], true, false)
}

/// `scatter_order.wgsl`, `scatter_starts.wgsl`, `scatter_sum.wgsl`, and rows gathered: more ids than a
/// workgroup takes, some of them beyond the table, rows that are no whole quads.
#[test]
fn scatter_and_gather() -> Outcome {
    for width in [8, 5] {
        let ids = || Operand::Words(vec![700], 60);
        holds(&[float(&[700, width]), ids()], 1e-6, |graph, x| {
            Ok(vec![graph.op(Op::ScatterAdd { rows: 53 }, x).one()?])
        })?;
        holds(&[float(&[60, width]), ids()], 0.0, |graph, x| {
            Ok(vec![graph.op(Op::Gather, x).one()?])
        })?;
    }
    Ok(())
}

/// Cross-entropy with its gradient, AdamW: chains that fusion makes of their definitions.
#[test]
fn cross_entropy_and_adam_w() -> Outcome {
    let logits = float(&[19, 1001]);
    holds(&[logits, Operand::Words(vec![19], 1001), float(&[])], 1e-5, |graph, x| {
        let (mult, mean) = (1.5, true);
        Ok(vec![
            graph.op(Op::CrossEntropy { mult, mean }, &x[..2]).one()?,
            graph.op(Op::CrossEntropyGrad { mult, mean }, x).one()?,
        ])
    })?;
    let matrix = || float(&[37, 9]);
    let operands =
        [matrix(), matrix(), matrix(), matrix(), float(&[]), Operand::Words(vec![], 5), float(&[])];
    holds(&operands, 1e-5, |graph, x| {
        let square = graph.map(&[x[3]], |x| x[0].clone() * x[0].clone())?.one()?;
        let inputs = [x[0], x[1], x[2], square, x[4], x[5], x[6]];
        graph
            .op(
                Op::AdamW(AdamWConfig {
                    beta1: 0.9,
                    beta2: 0.99,
                    eps: 1e-8,
                    decay: 0.1,
                    lr_scale: 0.5,
                }),
                &inputs,
            )
            .all()
    })
}
