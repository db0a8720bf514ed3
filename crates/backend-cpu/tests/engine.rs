//! Programs on the CPU engine: core ops against f64, slots, entries, errors.

mod common;

use common::{Tensor, assert_all_close, assert_close, decode_all, tolerance};
use onesigma_backend::{Backend, Engine, Error};
use onesigma_backend_cpu::CpuBackend;
use onesigma_format::Format;
use onesigma_graph::{
    DType, EntryId, Graph, Module, Op, Program, ReduceKind, Role, Shape, SlotId, SlotKind, ValueId,
};

/// A program with one entry that makes one output from float inputs.
struct Case {
    program: Program,
    inputs: Vec<SlotId>,
    output: SlotId,
}

impl Case {
    fn new(
        operands: &[(DType, &[usize])],
        build: impl FnOnce(&mut Graph, &[ValueId]) -> ValueId,
    ) -> Self {
        let mut module = Module::new();
        let mut graph = Graph::new();
        let mut inputs = Vec::new();
        for (at, (dtype, dims)) in operands.iter().enumerate() {
            let name = format!("x{at}");
            inputs.push(
                module
                    .slot(&name, SlotKind::Input, Shape::from(*dims), *dtype, Role::Data)
                    .unwrap(),
            );
        }
        let values: Vec<ValueId> =
            inputs.iter().map(|&slot| module.read(&mut graph, slot)).collect();
        let result = build(&mut graph, &values);
        let (shape, dtype) = (graph.shape(result).clone(), graph.value(result).dtype);
        let output = module.slot("y", SlotKind::Output, shape, dtype, Role::Data).unwrap();
        graph.write(output, result);
        module.entry("run", graph).unwrap();
        Self { program: Program::new(module).unwrap(), inputs, output }
    }

    fn run(&self, operands: &[&[u8]]) -> Tensor {
        let mut engine = CpuBackend::new().compile(&self.program).unwrap();
        for (slot, bytes) in self.inputs.iter().zip(operands) {
            engine.write(*slot, bytes).unwrap();
        }
        engine.run(EntryId::new(0), 1).unwrap();
        let slot = &self.program.slots()[self.output.index()];
        let format = slot.dtype.format().unwrap_or(Format::F32);
        let mut result = Tensor::room(format, slot.shape.numel());
        engine.read(self.output, &mut result.bytes).unwrap();
        result
    }
}

fn float(format: Format) -> DType {
    DType::Float(format)
}

#[test]
fn a_map_over_broadcast_operands_and_coordinates_agrees_with_f64() {
    let dims: [&[usize]; 4] = [&[3, 1, 50], &[7, 1], &[], &[7, 50]];
    let types = [Format::E4M3, Format::F16, Format::F32, Format::BF16];
    let operands: Vec<_> = types.iter().zip(dims).map(|(f, d)| (float(*f), d)).collect();
    let expression = |x: &[onesigma_graph::expr::Term]| {
        use onesigma_graph::expr::Term;
        let sum = x[0].clone() * x[1].clone() + x[2].clone().exp();
        let masked = Term::index(1).less(Term::index(2)).select(sum.tanh(), x[3].clone());
        masked.clone() * masked + Term::index(0)
    };
    let case = Case::new(&operands, |graph, x| {
        graph.map(x, expression).unwrap().alpha(0.5).one().unwrap()
    });
    let sizes = [150, 7, 1, 350];
    let x: Vec<Tensor> =
        (0..4).map(|i| Tensor::normal(types[i], sizes[i], 1.0, i as u64)).collect();
    let bytes: Vec<&[u8]> = x.iter().map(|x| &x.bytes[..]).collect();
    let found = case.run(&bytes);
    let expr = onesigma_graph::expr::Expr::new(4, expression);
    let mut expected = Vec::new();
    for i in 0..3 {
        for j in 0..7 {
            for k in 0..50 {
                let at = [
                    x[0].values[i * 50 + k],
                    x[1].values[j],
                    x[2].values[0],
                    x[3].values[j * 50 + k],
                ];
                expected.push(0.5 * expr.eval(&at, &[i, j, k]));
            }
        }
    }
    assert_all_close("map", &found, &expected, 1e-6);
}

#[test]
fn reductions_over_any_axes_agree_with_f64() {
    let dims = [5, 130, 33];
    let x = Tensor::normal(Format::E5M2, 5 * 130 * 33, 1.0, 3);
    let axes_cases: [&[usize]; 8] = [&[], &[0], &[1], &[2], &[0, 1], &[1, 2], &[0, 2], &[0, 1, 2]];
    for axes in axes_cases {
        for kind in [ReduceKind::Sum, ReduceKind::Max] {
            let case = Case::new(&[(float(Format::E5M2), &dims)], |graph, x| {
                let axes: Vec<isize> = axes.iter().map(|axis| *axis as isize).collect();
                let node = graph.reduce(kind, x, &axes, false, |x| x[0].square()).unwrap();
                node.alpha(2.0).one().unwrap()
            });
            let found = case.run(&[&x.bytes]).read();
            let kept: Vec<usize> = (0..3).filter(|axis| !axes.contains(axis)).collect();
            let count: usize = kept.iter().map(|axis| dims[*axis]).product();
            let start = if kind == ReduceKind::Sum { 0.0 } else { f64::NEG_INFINITY };
            let mut expected = vec![start; count];
            for (at, value) in x.values.iter().enumerate() {
                let index = [at / (130 * 33), at / 33 % 130, at % 33];
                let to = kept.iter().fold(0, |to, axis| to * dims[*axis] + index[*axis]);
                match kind {
                    ReduceKind::Sum => expected[to] += value * value,
                    ReduceKind::Max => expected[to] = expected[to].max(value * value),
                }
            }
            for (found, expected) in found.iter().zip(&expected) {
                let error = tolerance::REDUCE * expected.abs() * 20.0;
                let what = format!("{kind:?} over {axes:?}");
                assert_close(&what, Format::F32, *found, 2.0 * expected, error);
            }
        }
    }
}

#[test]
fn movement_keeps_every_code() {
    for format in [Format::E4M3, Format::F16, Format::F32] {
        let x = Tensor::normal(format, 2 * 3 * 5 * 4, 1.0, 9);
        let width = format.bytes();
        let case = Case::new(&[(float(format), &[2, 3, 5, 4])], |graph, x| {
            let turned = graph.op(Op::Permute { axes: vec![2, 0, 3, 1] }, x).one().unwrap();
            let part = Op::Slice { axis: 2, start: 1, len: 2 };
            let part = graph.op(part, &[turned]).one().unwrap();
            let head = Op::Slice { axis: 2, start: 0, len: 1 };
            let head = graph.op(head, &[turned]).one().unwrap();
            graph.op(Op::Concat { axis: 2 }, &[part, head, part]).one().unwrap()
        });
        let found = case.run(&[&x.bytes]);
        let mut expected = Vec::new();
        for c in 0..5 {
            for a in 0..2 {
                for d in [1, 2, 0, 1, 2] {
                    for b in 0..3 {
                        let at = (((a * 3 + b) * 5 + c) * 4 + d) * width;
                        expected.extend_from_slice(&x.bytes[at..at + width]);
                    }
                }
            }
        }
        assert_eq!(found.bytes, expected, "{format:?}");
    }
}

#[test]
fn gather_and_scatter_add_agree_with_f64_and_survive_bad_ids() {
    let ids = [3_u32, 0, 3, 9, 2, 3];
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let table = Tensor::normal(Format::F32, 4 * 5, 1.0, 1);
    let case = Case::new(&[(DType::F32, &[4, 5]), (DType::U32, &[2, 3])], |graph, x| {
        graph.op(Op::Gather, x).alpha(2.0).one().unwrap()
    });
    let found = case.run(&[&table.bytes, &bytes]).read();
    for (i, id) in ids.iter().enumerate() {
        for j in 0..5 {
            match table.values.get(*id as usize * 5 + j) {
                Some(value) => assert_eq!(found[i * 5 + j], 2.0 * value),
                None => assert!(found[i * 5 + j].is_nan()),
            }
        }
    }
    let updates = Tensor::normal(Format::E4M3, 6 * 5, 1.0, 2);
    let operands: [(DType, &[usize]); 2] = [(float(Format::E4M3), &[6, 5]), (DType::U32, &[6])];
    let case = Case::new(&operands, |graph, x| {
        graph.op(Op::ScatterAdd { rows: 4 }, x).alpha(0.5).one().unwrap()
    });
    let found = case.run(&[&updates.bytes, &bytes]);
    let mut expected = vec![0.0; 20];
    for (i, id) in ids.iter().enumerate().filter(|(_, id)| **id < 4) {
        for j in 0..5 {
            expected[*id as usize * 5 + j] += 0.5 * updates.values[i * 5 + j];
        }
    }
    assert_all_close("scatter add", &found, &expected, tolerance::REDUCE);
}

#[test]
fn matrix_products_fold_or_batch_leading_axes() {
    for (right, shared) in [(vec![5, 6], true), (vec![2, 3, 5, 6], false)] {
        let right_len: usize = right.iter().product();
        let a = Tensor::normal(Format::E4M3, 2 * 3 * 4 * 5, 1.0, 1);
        let b = Tensor::normal(Format::E4M3, right_len, 1.0, 2);
        let operands = [(float(Format::E4M3), &[2, 3, 4, 5][..]), (float(Format::E4M3), &right)];
        let case =
            Case::new(&operands, |graph, x| graph.matmul(x[0], x[1]).alpha(0.5).one().unwrap());
        let found = case.run(&[&a.bytes, &b.bytes]);
        let mut expected = Vec::new();
        for item in 0..6 {
            for m in 0..4 {
                for n in 0..6 {
                    let at = |k: usize| if shared { k * 6 + n } else { item * 30 + k * 6 + n };
                    let terms = (0..5).map(|k| a.values[item * 20 + m * 5 + k] * b.values[at(k)]);
                    expected.push(0.5 * terms.sum::<f64>());
                }
            }
        }
        assert_all_close("matmul", &found, &expected, 1e-6);
    }
}

/// State `w` and input `x`: each step writes `w + x` to `w` and the old `w` to output `old`.
fn accumulator() -> (Program, SlotId, SlotId, SlotId) {
    let mut module = Module::new();
    let w = module.slot("w", SlotKind::State, [4], DType::F32, Role::MasterWeight).unwrap();
    let x = module.slot("x", SlotKind::Input, [4], DType::F32, Role::Data).unwrap();
    let old = module.slot("old", SlotKind::Output, [4], DType::F32, Role::Data).unwrap();
    let mut graph = Graph::new();
    let (w_old, step) = (module.read(&mut graph, w), module.read(&mut graph, x));
    let w_new = graph.map(&[w_old, step], |x| x[0].clone() + x[1].clone()).unwrap().one().unwrap();
    graph.write(w, w_new);
    graph.write(old, w_old);
    module.entry("step", graph).unwrap();
    (Program::new(module).unwrap(), w, x, old)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn read(engine: &mut dyn Engine, slot: SlotId, len: usize) -> Vec<f64> {
    let mut out = vec![0; len * 4];
    engine.read(slot, &mut out).unwrap();
    decode_all(Format::F32, &out)
}

#[test]
fn many_steps_equal_many_runs() {
    let (program, w, x, old) = accumulator();
    let frames: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let mut engine = CpuBackend::with_threads(2).unwrap().compile(&program).unwrap();
    engine.write(w, &bytes(&[1.0; 4])).unwrap();
    engine.write(x, &bytes(&frames)).unwrap();
    engine.run(EntryId::new(0), 3).unwrap();
    assert_eq!(read(&mut *engine, w, 4), [13.0, 16.0, 19.0, 22.0]);
    let all = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0, 11.0];
    assert_eq!(read(&mut *engine, old, 12), all);
    assert_eq!(read(&mut *engine, old, 4), all[8..]);

    let mut single = CpuBackend::new().compile(&program).unwrap();
    single.write(w, &bytes(&[1.0; 4])).unwrap();
    for frame in frames.chunks(4) {
        single.write(x, &bytes(frame)).unwrap();
        single.run(EntryId::new(0), 1).unwrap();
    }
    assert_eq!(read(&mut *single, w, 4), read(&mut *engine, w, 4));
}

#[test]
fn states_can_swap() {
    let mut module = Module::new();
    let [a, b] = ["a", "b"].map(|name| {
        module.slot(name, SlotKind::State, [4], DType::F32, Role::MasterWeight).unwrap()
    });
    let mut graph = Graph::new();
    let (a_old, b_old) = (module.read(&mut graph, a), module.read(&mut graph, b));
    graph.write(a, b_old);
    graph.write(b, a_old);
    module.entry("swap", graph).unwrap();
    let mut engine = CpuBackend::new().compile(&Program::new(module).unwrap()).unwrap();
    engine.write(a, &bytes(&[1.0; 4])).unwrap();
    engine.write(b, &bytes(&[2.0; 4])).unwrap();
    engine.run(EntryId::new(0), 3).unwrap();
    assert_eq!(read(&mut *engine, a, 4), [2.0; 4]);
    assert_eq!(read(&mut *engine, b, 4), [1.0; 4]);
}

#[test]
fn wrong_calls_are_refused_and_leave_the_state() {
    let (program, w, x, old) = accumulator();
    let mut engine = CpuBackend::new().compile(&program).unwrap();
    engine.write(w, &bytes(&[1.0; 4])).unwrap();
    let run = engine.run(EntryId::new(0), 1);
    assert!(matches!(run, Err(Error::MissingFrames { found: 0, times: 1, .. })), "{run:?}");
    engine.write(x, &bytes(&[1.0; 8])).unwrap();
    let run = engine.run(EntryId::new(0), 3);
    assert!(matches!(run, Err(Error::MissingFrames { found: 2, times: 3, .. })), "{run:?}");
    assert!(matches!(engine.run(EntryId::new(1), 1), Err(Error::UnknownEntry { .. })));
    assert!(matches!(engine.write(old, &[0; 16]), Err(Error::NotWritable { .. })));
    assert!(matches!(engine.write(w, &[0; 32]), Err(Error::WrongSize { .. })));
    assert!(matches!(engine.write(x, &[0; 15]), Err(Error::WrongSize { .. })));
    assert!(matches!(engine.write(x, &[]), Err(Error::WrongSize { .. })));
    assert!(matches!(engine.write(SlotId::new(9), &[]), Err(Error::UnknownSlot { .. })));
    assert!(matches!(engine.read(w, &mut [0; 15]), Err(Error::WrongSize { .. })));
    assert!(matches!(engine.read(old, &mut [0; 32]), Err(Error::WrongSize { .. })));
    assert_eq!(read(&mut *engine, w, 4), [1.0; 4]);
}

#[test]
fn tensors_without_elements_are_no_trouble() {
    for dims in [[0, 3], [2, 0]] {
        let len: usize = dims.iter().product();
        assert_eq!(len, 0);
        let case = Case::new(&[(DType::F32, &dims), (DType::F32, &[3, dims[1]])], |graph, x| {
            let soft = graph.op(Op::Softmax { mult: 1.0 }, &[x[0]]).one().unwrap();
            let norm = graph.op(Op::LayerNorm { eps: 1e-5 }, &[soft]).one().unwrap();
            let product = Op::MatMul { transpose_left: false, transpose_right: true };
            let product = graph.op(product, &[norm, x[1]]).one().unwrap();
            let sum = graph.reduce(ReduceKind::Sum, &[product], &[0, 1], false, |x| x[0].exp());
            sum.unwrap().one().unwrap()
        });
        let right = vec![0; 3 * dims[1] * 4];
        let found = case.run(&[&[], &right]).read();
        // No rows sum to 0; rows that are products of nothing are zeros.
        assert_eq!(found, [if dims[0] == 0 { 0.0 } else { 6.0 }]);
    }
}
