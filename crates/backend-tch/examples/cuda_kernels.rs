//! Times single kernels of the CUDA backend beside the limits of the GPU, in the same run: casts
//! with a transposed copy beside a device copy, an FP8 linear layer beside its bare products.
//!
//! Prints one line of JSON for each.
#![allow(clippy::print_stdout)] // it is a program

use std::error::Error;
use std::time::Instant;

use onesigma_backend::{Backend, Engine};
use onesigma_backend_tch::TchBackend;
use onesigma_format::{Conversion, Format, Noise, encode_slice, philox};
use onesigma_graph::{
    DType, EntryId, Graph, Module, Op, Program, Role, Shape, SlotId, SlotKind, ValueId,
};

const E4M3: DType = DType::Float(Format::E4M3);
const E5M2: DType = DType::Float(Format::E5M2);
const F16: DType = DType::Float(Format::F16);

/// Turns of each, seconds before and of timing in a turn, and runs of one call.
const TURNS: usize = 4;
const WHILE: f64 = 0.4;
const RUNS: usize = 20;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A program under construction: states in, states out.
struct Bench {
    module: Module,
    graph: Graph,
    inputs: Vec<SlotId>,
    states: usize,
}

impl Bench {
    fn new() -> Self {
        Self { module: Module::new(), graph: Graph::new(), inputs: Vec::new(), states: 0 }
    }

    fn state(&mut self, shape: [usize; 2], dtype: DType) -> Outcome<SlotId> {
        self.states += 1;
        let name = format!("s{}", self.states);
        Ok(self.module.slot(&name, SlotKind::State, shape, dtype, Role::Activation)?)
    }

    fn input(&mut self, shape: [usize; 2], dtype: DType) -> Outcome<ValueId> {
        let slot = self.state(shape, dtype)?;
        self.inputs.push(slot);
        Ok(self.module.read(&mut self.graph, slot))
    }

    fn keep(&mut self, value: ValueId) -> Outcome<()> {
        let info = self.graph.value(value).clone();
        let dims = [info.shape.dims()[0], info.shape.dims()[1]];
        let slot = self.state(dims, info.dtype)?;
        self.graph.write(slot, value);
        Ok(())
    }

    fn cast(&mut self, value: ValueId, to: DType) -> Outcome<ValueId> {
        let cast = self.graph.op(Op::Cast { to }, &[value]);
        Ok(cast.stored_as(to, Conversion::SATURATE).one()?)
    }

    fn product(&mut self, a: ValueId, b: ValueId, flags: [bool; 2]) -> Outcome<ValueId> {
        let [transpose_left, transpose_right] = flags;
        let op = Op::MatMul { transpose_left, transpose_right };
        let product = self.graph.op(op, &[a, b]).alpha(0.01);
        Ok(product.stored_as(F16, Conversion::SATURATE).one()?)
    }

    /// An engine for it, warm.
    fn engine(self, backend: &dyn Backend) -> Outcome<Box<dyn Engine>> {
        let Self { mut module, graph, inputs, .. } = self;
        module.entry("main", graph)?;
        let program = Program::new(module)?;
        let mut engine = backend.compile(&program)?;
        for (n, &slot) in inputs.iter().enumerate() {
            fill(&mut *engine, slot, &program, n as u32)?;
        }
        engine.run(EntryId::new(0), 5)?;
        Ok(engine)
    }
}

/// Milliseconds of one run of each, least and median.
///
/// The GPU lowers its clock as it warms up, and raises it again in easier work: each runs for a
/// while before it is timed, and they take turns.
fn times<const N: usize>(mut engines: [Box<dyn Engine>; N]) -> Outcome<[[f64; 2]; N]> {
    let mut times = [(); N].map(|()| Vec::new());
    for _ in 0..TURNS {
        for (engine, times) in engines.iter_mut().zip(&mut times) {
            let turn = Instant::now();
            while turn.elapsed().as_secs_f64() < 2.0 * WHILE {
                let start = Instant::now();
                engine.run(EntryId::new(0), RUNS)?;
                if turn.elapsed().as_secs_f64() > WHILE {
                    times.push(start.elapsed().as_secs_f64() * 1e3 / RUNS as f64);
                }
            }
        }
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        [times[0], times[times.len() / 2]]
    }))
}

/// Normal numbers: zeros would be faster than real data.
fn fill(engine: &mut dyn Engine, slot: SlotId, program: &Program, stream: u32) -> Outcome<()> {
    let info = &program.slots()[slot.index()];
    let format = info.dtype.format().ok_or("no float")?;
    let chunk = 1 << 20;
    let mut values = vec![0.0; chunk];
    philox::fill_normal(Noise { tensor: stream, ..Noise::default() }, &mut values);
    let mut codes = vec![0; chunk * format.bytes()];
    encode_slice(format, Conversion::SATURATE, Noise::default(), &values, &mut codes)?;
    let bytes: Vec<u8> = codes.iter().copied().cycle().take(info.bytes()).collect();
    Ok(engine.write(slot, &bytes)?)
}

fn copies(backend: &dyn Backend) -> Outcome<()> {
    let shape = [16384, 8192];
    let numel = Shape::from(shape).numel();
    let mut bench = Bench::new();
    for _ in 0..4 {
        let x = bench.input(shape, F16)?;
        bench.keep(x)?;
    }
    let copy = bench.engine(backend)?;
    let mut engines = vec![copy];
    for to in [E4M3, E5M2] {
        let mut bench = Bench::new();
        for _ in 0..4 {
            let x = bench.input(shape, F16)?;
            let cast = bench.cast(x, to)?;
            let turned = bench.graph.permute(cast, &[1, 0])?;
            bench.keep(cast)?;
            bench.keep(turned)?;
        }
        engines.push(bench.engine(backend)?);
    }
    let engines: [Box<dyn Engine>; 3] = engines.try_into().map_err(|_| "three engines")?;
    let [copy, casts @ ..] = times(engines)?;
    // Both move four bytes for each element.
    let rate = |times: [f64; 2]| times.map(|ms| 16.0 * numel as f64 / ms / 1e9);
    for (name, cast) in ["E4M3", "E5M2"].into_iter().zip(casts) {
        let line = serde_json::json!({
            "kernel": format!("F16 to {name}, row-major and transposed"), "shape": shape,
            "copy_tb_s": rate(copy), "cast_tb_s": rate(cast), "of_copy": copy[1] / cast[1],
        });
        println!("{line}");
    }
    Ok(())
}

fn linear(backend: &dyn Backend, tokens: usize, fan_in: usize, fan_out: usize) -> Outcome<()> {
    let mut bench = Bench::new();
    let (x, dy) = (bench.input([tokens, fan_in], F16)?, bench.input([tokens, fan_out], F16)?);
    let w = bench.input([fan_out, fan_in], F16)?;
    let (x, w, dy) = (bench.cast(x, E4M3)?, bench.cast(w, E4M3)?, bench.cast(dy, E5M2)?);
    for (a, b, flags) in [(x, w, [false, true]), (dy, w, [false; 2]), (dy, x, [true, false])] {
        let product = bench.product(a, b, flags)?;
        bench.keep(product)?;
    }
    let layer = bench.engine(backend)?;
    let mut bench = Bench::new();
    let shapes = [
        ([tokens, fan_in], [fan_out, fan_in], E4M3),
        ([tokens, fan_out], [fan_in, fan_out], E5M2),
        ([fan_out, tokens], [fan_in, tokens], E5M2),
    ];
    for (left, right, dtype) in shapes {
        let (a, b) = (bench.input(left, dtype)?, bench.input(right, E4M3)?);
        let product = bench.product(a, b, [false, true])?;
        bench.keep(product)?;
    }
    let bare = bench.engine(backend)?;
    let [layer, bare] = times([layer, bare])?;
    let flops = 6.0 * tokens as f64 * fan_in as f64 * fan_out as f64;
    let rate = |times: [f64; 2]| times.map(|ms| flops / ms / 1e9);
    let line = serde_json::json!({
        "kernel": "FP8 linear layer, forward and backward", "tokens": tokens,
        "fan_in": fan_in, "fan_out": fan_out, "layer_ms": layer[1], "bare_ms": bare[1],
        "layer_tflop_s": rate(layer), "bare_tflop_s": rate(bare), "of_bare": bare[1] / layer[1],
    });
    println!("{line}");
    Ok(())
}

fn main() -> Outcome<()> {
    let backend = TchBackend::cuda()?;
    println!("{}", serde_json::json!({ "device": backend.caps().device }));
    copies(&backend)?;
    linear(&backend, 16384, 4096, 4096)?;
    linear(&backend, 16384, 4096, 16384)
}
