//! Each shader template on sizes that take several workgroups, ragged ends and every branch, beside
//! the f64 reference; with subgroups, and with nothing but what every WebGPU device has.
#![allow(clippy::print_stdout)] // a skip is said aloud

mod common;

use onesigma_backend::{Backend, RefBackend};
use onesigma_backend_wgpu::{CooperativeMatrices, Options, Tuning, WgpuBackend};
use onesigma_format::{Conversion, Format, Noise, decode, encode_slice};
use onesigma_graph::{
    AdamWConfig, DType, EntryId, Graph, Module, Op, Program, ReduceKind, Role, SlotId, SlotKind,
    ValueId,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// An operand: its shape, and its elements in order.
enum Operand {
    Float(Vec<usize>, Format),
    /// The same with a NaN here and there.
    WithNan(Vec<usize>, Format),
    /// Integers below a bound.
    Words(Vec<usize>, u32),
}

fn float(shape: &[usize]) -> Operand {
    Operand::Float(shape.to_vec(), Format::F32)
}

impl Operand {
    fn slot(&self) -> (Vec<usize>, DType) {
        match self {
            Self::Float(shape, format) | Self::WithNan(shape, format) => {
                (shape.clone(), DType::Float(*format))
            }
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
            Self::Float(_, format) | Self::WithNan(_, format) => {
                let mut values: Vec<f32> =
                    words.map(|w| (w >> 8) as f32 / (1 << 23) as f32 - 1.0).collect();
                if let Self::WithNan(..) = self {
                    values.iter_mut().skip(500).step_by(1009).for_each(|x| *x = f32::NAN);
                }
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
    holds_with(&Options::default(), operands, allowed, build)
}

fn holds_with(
    options: &Options,
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
        let options = Options { portable, ..options.clone() };
        let Some(backend): Option<WgpuBackend> = common::shared(&options) else { return Ok(()) };
        let found = results(&backend, &program, operands, &outputs)?;
        for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let norm = |values: &mut dyn Iterator<Item = f64>| {
                values.map(|value| value * value).sum::<f64>().sqrt()
            };
            let pairs = found.iter().zip(expected);
            let mut pairs = pairs.filter(|(a, b)| !(a.is_nan() && b.is_nan())).map(|(a, b)| a - b);
            let off = norm(&mut pairs);
            let numbers = expected.iter().copied().filter(|value| !value.is_nan());
            let error = off / norm(&mut { numbers }).max(f64::MIN_POSITIVE);
            // A NaN on one side alone never passes.
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

/// `matmul_matrices.wgsl` where the device has cooperative matrices, else `matmul.wgsl`: narrow
/// operands in both layouts, whole and ragged tiles, NaN, results of several sizes.
#[test]
fn matmul_of_narrow_operands() -> Outcome {
    let types = [
        (Format::E4M3, Format::F32, 1e-6),
        (Format::E5M2, Format::F16, 1e-3),
        (Format::F16, Format::E4M3, 2e-2),
    ];
    let mut types = types.into_iter().cycle();
    let options = Options { matrices: CooperativeMatrices::Everywhere, ..Options::default() };
    for (m, n, k) in [(64, 96, 32), (40, 72, 24)] {
        for (transpose_left, transpose_right) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            for (format, result, allowed) in types.by_ref().take(2) {
                let left = if transpose_left { vec![2, k, m] } else { vec![2, m, k] };
                let right = if transpose_right { vec![2, n, k] } else { vec![2, k, n] };
                let operands =
                    [Operand::WithNan(left, format), Operand::WithNan(right, Format::E4M3)];
                let op = Op::MatMul { transpose_left, transpose_right };
                holds_with(&options, &operands, allowed, |graph, x| {
                    let product = graph.op(op.clone(), x).alpha(0.125);
                    let product = product.stored_as(DType::Float(result), Conversion::SATURATE);
                    Ok(vec![product.one()?])
                })?;
            }
        }
    }
    Ok(())
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
    let options = Options { tuning: fused, ..Options::default() };
    holds_with(&options, &operands, 1e-5, |graph, x| {
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

/// Cross-entropy and its gradient, alone and together, where the gradient takes the statistics of
/// the loss.
fn cross_entropy_holds(logits: Operand, mean: bool, masked: bool) -> Outcome {
    let (shape, _) = logits.slot();
    let (rows, classes) = (shape[0], shape[1] as u32);
    let mut operands = vec![logits, Operand::Words(vec![rows], classes), float(&[])];
    if masked {
        operands.push(Operand::Words(vec![rows], 3));
    }
    let mult = 1.5;
    let loss = |graph: &mut Graph, x: &[ValueId]| {
        let mut inputs = x[..2].to_vec();
        inputs.extend(x.get(3));
        graph.op(Op::CrossEntropy { mult, mean }, &inputs).one()
    };
    let gradient = |graph: &mut Graph, x: &[ValueId]| {
        graph.op(Op::CrossEntropyGrad { mult, mean }, x).alpha(3.0).one()
    };
    holds(&operands, 1e-5, |graph, x| Ok(vec![loss(graph, x)?, gradient(graph, x)?]))?;
    holds(&operands, 1e-5, |graph, x| Ok(vec![gradient(graph, x)?]))
}

/// `cross_entropy.wgsl`, `cross_entropy_grad.wgsl`: rows that one thread, a part of a workgroup and
/// a whole one take, in one round and in several.
#[test]
fn cross_entropy_of_narrow_and_wide_rows() -> Outcome {
    for width in [4, 36, 500, 4100, 9000] {
        cross_entropy_holds(float(&[7, width]), true, false)?;
    }
    Ok(())
}

#[test]
fn cross_entropy_with_a_mask() -> Outcome {
    cross_entropy_holds(float(&[70, 96]), true, true)?;
    cross_entropy_holds(float(&[70, 96]), false, true)
}

#[test]
fn cross_entropy_of_logits_in_f16() -> Outcome {
    cross_entropy_holds(Operand::Float(vec![9, 1004], Format::F16), false, false)
}

/// Rows that are no whole quads take the definition.
#[test]
fn cross_entropy_of_odd_rows() -> Outcome {
    cross_entropy_holds(float(&[19, 1001]), true, false)
}

/// A logit of minus infinity has no share; a target beyond the classes makes the loss NaN, but not
/// where the mask leaves it out.
#[test]
fn cross_entropy_of_special_values() -> Outcome {
    let Some(backend) = common::shared(&Options::default()) else { return Ok(()) };
    let mut module = Module::new();
    let mut slot = |name: &str, kind, shape: &[usize], dtype| {
        module.slot(name, kind, shape.to_vec(), dtype, Role::Activation)
    };
    let logits = slot("x", SlotKind::State, &[3, 8], DType::F32)?;
    let targets = slot("t", SlotKind::State, &[3], DType::U32)?;
    let mask = slot("m", SlotKind::State, &[3], DType::U32)?;
    let one = slot("d", SlotKind::State, &[], DType::F32)?;
    let y = slot("y", SlotKind::Output, &[], DType::F32)?;
    let dx = slot("dx", SlotKind::Output, &[3, 8], DType::F32)?;
    let mut graph = Graph::new();
    let [x, t, m, d] = [logits, targets, mask, one].map(|slot| module.read(&mut graph, slot));
    let (mult, mean) = (1.0, false);
    let loss = graph.op(Op::CrossEntropy { mult, mean }, &[x, t, m]).one()?;
    let gradient = graph.op(Op::CrossEntropyGrad { mult, mean }, &[x, t, d, m]).one()?;
    graph.write(y, loss);
    graph.write(dx, gradient);
    module.entry("main", graph)?;
    let program = Program::new(module)?;
    let mut engine = backend.compile(&program)?;
    let infinite = |at: usize| if at < 5 { f32::NEG_INFINITY } else { 2.0 };
    let rows: Vec<f32> = (0..24).map(|at| if at < 8 { infinite(at) } else { 0.5 }).collect();
    let words =
        |values: &[u32]| -> Vec<u8> { values.iter().flat_map(|w| w.to_le_bytes()).collect() };
    engine.write(logits, &rows.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
    engine.write(one, &1_f32.to_le_bytes())?;
    let mut run =
        |target: u32, counted: u32| -> Result<(f32, Vec<f32>), Box<dyn std::error::Error>> {
            engine.write(targets, &words(&[6, target, 3]))?;
            engine.write(mask, &words(&[1, counted, 0]))?;
            engine.run(EntryId::new(0), 1)?;
            let (mut loss, mut gradient) = ([0; 4], [0; 96]);
            engine.read(y, &mut loss)?;
            engine.read(dx, &mut gradient)?;
            let gradient = gradient.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word));
            Ok((f32::from_le_bytes(loss), gradient.collect()))
        };
    let third = 1.0_f32 / 3.0;
    let (loss, gradient) = run(2, 1)?;
    assert!((loss - 3_f32.ln() - 8_f32.ln()).abs() < 1e-5, "{loss}");
    let expected = [0.0, 0.0, 0.0, 0.0, 0.0, third, third - 1.0, third];
    for (found, expected) in gradient.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found}, {expected}");
    }
    assert!(gradient[16..].iter().all(|&x| x == 0.0), "the last row does not count");
    let (loss, gradient) = run(8, 1)?;
    assert!(loss.is_nan() && gradient[8..16].iter().all(|x| x.is_nan()), "{loss}, {gradient:?}");
    let (loss, gradient) = run(8, 0)?;
    assert!((loss - 3_f32.ln()).abs() < 1e-5, "{loss}");
    assert!(gradient[8..].iter().all(|&x| x == 0.0), "{gradient:?}");
    Ok(())
}

/// `adamw.wgsl`, in F32 and with moments in narrow formats; a step later on.
#[test]
fn adam_w_with_moments_in_several_formats() -> Outcome {
    let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.1, lr_scale: 0.5 };
    for format in [Format::F32, Format::BF16, Format::F16] {
        let of = |format| Operand::Float(vec![37, 12], format);
        let step = Operand::Words(vec![], 5);
        let operands = [
            float(&[37, 12]),
            float(&[37, 12]),
            of(format),
            of(format),
            float(&[]),
            step,
            float(&[]),
        ];
        // A moment that lies on a tie may go either way.
        let allowed = if format.is_f32() { 1e-5 } else { 2e-4 };
        holds(&operands, allowed, |graph, x| {
            let positive = graph.map(&[x[3]], |x| x[0].clone() * x[0].clone())?;
            let square = positive.stored_as(DType::Float(format), Conversion::SATURATE).one()?;
            let inputs = [x[0], x[1], x[2], square, x[4], x[5], x[6]];
            graph.op(Op::AdamW(config), &inputs).all()
        })?;
    }
    Ok(())
}

/// A factor of 0 leaves weights and moments bit for bit, whatever the gradient is.
#[test]
fn adam_w_skips_a_step() -> Outcome {
    let Some(backend) = common::shared(&Options::default()) else { return Ok(()) };
    let mut module = Module::new();
    let mut slots = Vec::new();
    for name in ["w", "g", "m", "v"] {
        slots.push(module.slot(name, SlotKind::State, [8], DType::F32, Role::MasterWeight)?);
    }
    let lr = module.slot("lr", SlotKind::Input, [], DType::F32, Role::Data)?;
    let step = module.slot("t", SlotKind::Input, [], DType::U32, Role::Data)?;
    let factor = module.slot("f", SlotKind::Input, [], DType::F32, Role::Data)?;
    let mut graph = Graph::new();
    let mut x: Vec<ValueId> = slots.iter().map(|&slot| module.read(&mut graph, slot)).collect();
    x.extend([lr, step, factor].map(|slot| module.read(&mut graph, slot)));
    let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.1, lr_scale: 1.0 };
    let new = graph.op(Op::AdamW(config), &x).all()?;
    for (&slot, value) in [slots[0], slots[2], slots[3]].iter().zip(new) {
        graph.write(slot, value);
    }
    module.entry("main", graph)?;
    let program = Program::new(module)?;
    let mut engine = backend.compile(&program)?;
    let bytes =
        |from: f32| -> Vec<u8> { (0..8).flat_map(|n| (from + n as f32).to_le_bytes()).collect() };
    for (&slot, from) in slots.iter().zip([1.0, f32::NAN, 0.5, 2.0]) {
        engine.write(slot, &bytes(from))?;
    }
    engine.write(lr, &0.1_f32.to_le_bytes())?;
    engine.write(step, &3_u32.to_le_bytes())?;
    engine.write(factor, &0_f32.to_le_bytes())?;
    engine.run(EntryId::new(0), 1)?;
    for (slot, from) in [(slots[0], 1.0), (slots[2], 0.5), (slots[3], 2.0)] {
        let mut found = vec![0; 32];
        engine.read(slot, &mut found)?;
        assert_eq!(found, bytes(from));
    }
    Ok(())
}
