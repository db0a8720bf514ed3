//! What libraries compute on the GPU — products on tensor cores, cuDNN's attention — against f64,
//! at sizes that the conformance suite does not reach.
//!
//! Errors are relative, over the whole tensor: `|found - exact| / |exact|` in the Euclidean norm.
#![allow(clippy::print_stdout)] // a skip says why

use std::error::Error;
use std::f64::consts::FRAC_2_PI;

use onesigma_backend::{Backend, Engine, RefBackend};
use onesigma_backend_tch::TchBackend;
use onesigma_format::{Conversion, Format, Noise, decode_slice, encode_slice, philox};
use onesigma_graph::expr::Expr;
use onesigma_graph::{
    DType, EntryId, Graph, Module, Op, Program, Role, Shape, SlotId, SlotKind, ValueId,
};

type Outcome<T> = Result<T, Box<dyn Error>>;
type Build = dyn Fn(&mut Graph, &[ValueId]) -> onesigma_graph::Result<Vec<ValueId>>;

/// F16 rounds a result by up to 2^-11.
const F16_ROUNDING: f64 = 4.9e-4;
/// Tensor cores keep about 14 bits of an FP8 accumulator (arXiv 2412.19437, section 3.3.2).
const FP8_ACCUMULATION: f64 = 6.2e-5 * 8.0;
/// Attention weights, below 1, are rounded to F16 before the second product.
const ATTENTION: f64 = 3.0 * F16_ROUNDING;

struct Case {
    program: Program,
    inputs: Vec<SlotId>,
    outputs: Vec<SlotId>,
}

impl Case {
    fn new(inputs: &[(Vec<usize>, Format)], build: &Build) -> Outcome<Self> {
        let mut module = Module::new();
        let mut graph = Graph::new();
        let (mut slots, mut values) = (Vec::new(), Vec::new());
        for (n, (shape, format)) in inputs.iter().enumerate() {
            let (name, dtype) = (format!("x{n}"), DType::Float(*format));
            let role = Role::Activation;
            slots.push(module.slot(&name, SlotKind::Input, shape.clone(), dtype, role)?);
            values.push(module.read(&mut graph, slots[n]));
        }
        let mut outputs = Vec::new();
        for (n, value) in build(&mut graph, &values)?.into_iter().enumerate() {
            let info = graph.value(value).clone();
            let (name, kind) = (format!("y{n}"), SlotKind::Output);
            outputs.push(module.slot(&name, kind, info.shape, info.dtype, info.role)?);
            graph.write(outputs[n], value);
        }
        module.entry("main", graph)?;
        Ok(Self { program: Program::new(module)?, inputs: slots, outputs })
    }

    fn codes(&self, n: usize) -> Outcome<Vec<u8>> {
        let slot = &self.program.slots()[self.inputs[n].index()];
        let mut values = vec![0.0; slot.shape.numel()];
        philox::fill_normal(Noise { tensor: n as u32, ..Noise::default() }, &mut values);
        let mut codes = vec![0; slot.bytes()];
        let format = slot.dtype.format().ok_or("no float")?;
        encode_slice(format, Conversion::SATURATE, Noise::default(), &values, &mut codes)?;
        Ok(codes)
    }

    fn run(&self, engine: &mut dyn Engine) -> Outcome<()> {
        for (n, &slot) in self.inputs.iter().enumerate() {
            engine.write(slot, &self.codes(n)?)?;
        }
        // Once launch by launch, then captured and replayed.
        for _ in 0..3 {
            engine.run(EntryId::new(0), 1)?;
        }
        Ok(())
    }

    /// The error of each result.
    fn errors(&self, backend: &dyn Backend) -> Outcome<Vec<f64>> {
        let mut engine = backend.compile(&self.program)?;
        self.run(&mut *engine)?;
        let mut exact = RefBackend::exact().executor(&self.program)?;
        self.run(&mut exact)?;
        let mut errors = Vec::new();
        for &slot in &self.outputs {
            let info = &self.program.slots()[slot.index()];
            let mut codes = vec![0; info.bytes()];
            engine.read(slot, &mut codes)?;
            let mut found = vec![0.0; info.shape.numel()];
            decode_slice(info.dtype.format().ok_or("no float")?, &codes, &mut found)?;
            let exact = exact.tensor(slot)?.ok_or("no result")?;
            let square = |sum: f64, x: f64| sum + x * x;
            let differences = found.iter().zip(exact).map(|(&a, &b)| f64::from(a) - b);
            let error = differences.fold(0.0, square) / exact.iter().copied().fold(0.0, square);
            errors.push(error.sqrt());
        }
        Ok(errors)
    }
}

/// The GPU if there is one, and the emulation if it is built in and fast enough for a test.
fn devices(emulate: bool) -> Outcome<Vec<TchBackend>> {
    let mut devices = Vec::new();
    #[cfg(feature = "emulate")]
    if emulate {
        devices.push(TchBackend::emulated()?);
    }
    let _ = emulate;
    match TchBackend::cuda() {
        Ok(backend) => devices.push(backend),
        Err(error @ onesigma_backend::Error::Unavailable { .. }) => println!("skipped: {error}"),
        Err(error) => return Err(error.into()),
    }
    Ok(devices)
}

fn product(
    left: Format,
    right: Format,
    to: Format,
    flags: [bool; 2],
    lead: usize,
) -> Outcome<Case> {
    let (m, n, k) = (128, 256, 384);
    let [transpose_left, transpose_right] = flags;
    let dims = |turned: bool, a: usize, b: usize| {
        let mut dims = if turned { vec![b, a] } else { vec![a, b] };
        if lead > 1 {
            dims.insert(0, lead);
        }
        dims
    };
    let inputs = [(dims(transpose_left, m, k), left), (dims(transpose_right, k, n), right)];
    Case::new(&inputs, &move |graph, x| {
        let op = Op::MatMul { transpose_left, transpose_right };
        let product = graph.op(op, x).alpha(0.25);
        Ok(vec![product.stored_as(DType::Float(to), Conversion::SATURATE).one()?])
    })
}

const FLAGS: [[bool; 2]; 4] = [[false, true], [false, false], [true, false], [true, true]];

#[test]
fn fp8_products_of_every_layout_are_right() -> Outcome<()> {
    for backend in devices(true)? {
        for flags in FLAGS {
            for (left, right) in [
                (Format::E4M3, Format::E4M3),
                (Format::E5M2, Format::E4M3),
                (Format::E4M3, Format::E5M2),
            ] {
                for to in [Format::F16, Format::BF16, Format::F32] {
                    let [error] = product(left, right, to, flags, 1)?.errors(&backend)?[..] else {
                        return Err("one result".into());
                    };
                    let allowed = FP8_ACCUMULATION + to.epsilon() / 2.0;
                    assert!(error < allowed, "{left} {right} to {to} {flags:?}: {error:e}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn wide_products_of_every_layout_are_right() -> Outcome<()> {
    for backend in devices(false)? {
        for flags in FLAGS {
            for format in [Format::F16, Format::BF16, Format::F32] {
                for lead in [1, 3] {
                    let case = product(format, format, format, flags, lead)?;
                    let [error] = case.errors(&backend)?[..] else {
                        return Err("one result".into());
                    };
                    let allowed = 1e-6 + format.epsilon() / 2.0;
                    assert!(error < allowed, "{format} {flags:?} {lead}: {error:e}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn products_that_share_an_operand_are_right() -> Outcome<()> {
    for backend in devices(true)? {
        for format in [Format::E4M3, Format::F16, Format::BF16] {
            let x = (vec![128, 384], format);
            let inputs = [x, (vec![256, 384], format), (vec![256, 384], format)];
            let case = Case::new(&inputs, &move |graph, x| {
                let op = || Op::MatMul { transpose_left: false, transpose_right: true };
                let mut results = Vec::new();
                for &weight in &x[1..] {
                    let product = graph.op(op(), &[x[0], weight]).alpha(0.25);
                    let to = DType::Float(Format::BF16);
                    let product = product.stored_as(to, Conversion::SATURATE).one()?;
                    // Results of a batch are temporary tensors.
                    let to = DType::F32;
                    let cast = graph.op(Op::Cast { to }, &[product]);
                    results.push(cast.stored_as(to, Conversion::SATURATE).one()?);
                }
                Ok(results)
            })?;
            for (n, error) in case.errors(&backend)?.into_iter().enumerate() {
                let allowed = FP8_ACCUMULATION + Format::BF16.epsilon() / 2.0;
                assert!(error < allowed, "{format}, result {n}: {error:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn gelu_within_a_product_is_right() -> Outcome<()> {
    for backend in devices(false)? {
        for format in [Format::F16, Format::BF16] {
            let sizes = [vec![128, 384], vec![256, 384], vec![128, 64], vec![256, 64]];
            let inputs = sizes.map(|size| (size, format));
            let case = Case::new(&inputs, &move |graph, x| {
                let (to, how) = (DType::Float(format), Conversion::SATURATE);
                let mut products = Vec::new();
                for operands in [&x[..2], &x[2..]] {
                    let op = Op::MatMul { transpose_left: false, transpose_right: true };
                    products.push(graph.op(op, operands).stored_as(to, how).one()?);
                }
                let gelu = Expr::new(1, |x| {
                    let x = x[0].clone();
                    let inner = x.clone() + x.square() * x.clone() * 0.044715;
                    x * ((inner * FRAC_2_PI.sqrt()).tanh() + 1.0) * 0.5
                });
                let gradient = &gelu.gradients()[0];
                let active =
                    graph.map(&products[..1], |x| gelu.apply(x))?.stored_as(to, how).one()?;
                let slope =
                    graph.map(&products, |x| gradient.apply(x))?.stored_as(to, how).one()?;
                Ok(vec![active, slope])
            })?;
            for (n, error) in case.errors(&backend)?.into_iter().enumerate() {
                // The sums are rounded before the derivative is taken.
                let allowed = 2.0 * format.epsilon();
                assert!(error < allowed, "{format}, result {n}: {error:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn attention_and_its_gradients_are_right() -> Outcome<()> {
    for backend in devices(false)? {
        for format in [Format::F16, Format::BF16] {
            for (causal, keys) in [(true, 128), (false, 128), (false, 192)] {
                let (q, k) = (vec![2, 128, 2, 64], vec![2, keys, 2, 64]);
                let inputs = [(q.clone(), format), (k.clone(), format), (k, format), (q, format)];
                let case = Case::new(&inputs, &move |graph, x| {
                    let dtype = DType::Float(format);
                    let how = Conversion::SATURATE;
                    let op = Op::Attention { causal, logit_scale: 0.125 };
                    let forward = graph.op(op, &x[..3]).alphas(vec![1.5, 1.0]).all()?;
                    let scaled = graph.op(Op::Cast { to: dtype }, &[forward[0]]);
                    let output = scaled.stored_as(dtype, how).one()?;
                    let op = Op::AttentionGrad { causal, logit_scale: 0.125, forward_alpha: 1.5 };
                    let operands = [x[0], x[1], x[2], forward[0], forward[1], x[3]];
                    let mut results = vec![output];
                    results.extend(graph.op(op, &operands).alphas(vec![0.5, 0.5, 0.5]).all()?);
                    Ok(results)
                })?;
                let allowed = ATTENTION * format.epsilon() / Format::F16.epsilon();
                for (n, error) in case.errors(&backend)?.into_iter().enumerate() {
                    assert!(error < allowed, "{format} {causal} {keys}, result {n}: {error:e}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_matrix_of_bytes_turns_in_the_pass_that_makes_it() -> Outcome<()> {
    for backend in devices(true)? {
        for shape in [[128, 384], [48, 80], [33, 7]] {
            let inputs = [(shape.to_vec(), Format::F16)];
            let case = Case::new(&inputs, &|graph, x| {
                let to = DType::Float(Format::E4M3);
                let cast = graph.op(Op::Cast { to }, x);
                let cast = cast.stored_as(to, Conversion::SATURATE).one()?;
                Ok(vec![cast, graph.permute(cast, &[1, 0])?])
            })?;
            let mut engine = backend.compile(&case.program)?;
            case.run(&mut *engine)?;
            let numel = Shape::from(shape).numel();
            let [mut plain, mut turned] = [vec![0; numel], vec![0; numel]];
            engine.read(case.outputs[0], &mut plain)?;
            engine.read(case.outputs[1], &mut turned)?;
            for (at, &code) in plain.iter().enumerate() {
                let (row, column) = (at / shape[1], at % shape[1]);
                assert_eq!(code, turned[column * shape[0] + row], "{shape:?} {row} {column}");
            }
        }
    }
    Ok(())
}
