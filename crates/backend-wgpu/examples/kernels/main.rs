//! Rates of the kernels on the first adapter, or the one that is named: products with several
//! tiles, casts, norms and element-wise ops beside a device copy, and a training step of a GPT.
//!
//! ```text
//! kernels [--small] [--device NAME] [device] [rows] [vectors] [matrices] [model] [gpt]
//! ```
//!
//! Prints a table, and with `OUT` set writes `$OUT/kernels_….json`.
#![allow(clippy::print_stdout)] // it is a program

mod gpt;
mod products;
mod rows;

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use onesigma_backend::{Backend, Engine};
use onesigma_backend_wgpu::{Options, Tuning, WgpuBackend};
use onesigma_format::{Conversion, Format};
use onesigma_graph::{DType, EntryId, Graph, Module, Program, Role, SlotKind, ValueId};
use serde_json::{Value as Json, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

const SUITES: [&str; 5] = ["rows", "vectors", "matrices", "model", "gpt"];

/// A program of one op on operands of given shapes and formats.
fn program(
    operands: &[(Vec<usize>, Format)],
    build: impl Fn(&mut Graph, &[ValueId]) -> onesigma_graph::Result<ValueId>,
) -> Outcome<Program> {
    let mut module = Module::new();
    let mut graph = Graph::new();
    let mut inputs = Vec::new();
    for (n, (shape, format)) in operands.iter().enumerate() {
        let dtype = DType::Float(*format);
        let name = format!("x{n}");
        let slot = module.slot(&name, SlotKind::State, shape.clone(), dtype, Role::Activation)?;
        inputs.push(module.read(&mut graph, slot));
    }
    let y = build(&mut graph, &inputs)?;
    let value = graph.value(y).clone();
    let slot = module.slot("y", SlotKind::State, value.shape, value.dtype, Role::Activation)?;
    graph.write(slot, y);
    module.entry("main", graph)?;
    Ok(Program::new(module)?)
}

/// Random codes whose values are finite and of moderate size.
fn codes(numel: usize, format: Format, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let values: Vec<f32> = (0..numel)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    let mut bytes = vec![0; numel * format.bytes()];
    let noise = onesigma_format::Noise::default();
    let filled =
        onesigma_format::encode_slice(format, Conversion::SATURATE, noise, &values, &mut bytes);
    assert!(filled.is_ok(), "the lengths agree");
    bytes
}

/// Seconds of a run: median of five submissions, by the clock of the device if it has one.
fn seconds(engine: &mut onesigma_backend_wgpu::WgpuEngine, times: usize) -> Outcome<f64> {
    // A device that was idle takes a while to raise its clocks.
    let start = Instant::now();
    while start.elapsed().as_millis() < 100 {
        engine.run(EntryId::new(0), times)?;
        engine.synchronize()?;
    }
    let mut all = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let found = match engine.step_time(EntryId::new(0), times)? {
            Some(time) => time.as_secs_f64(),
            None => {
                engine.run(EntryId::new(0), times)?;
                engine.synchronize()?;
                start.elapsed().as_secs_f64() / times as f64
            }
        };
        all.push(found);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[2])
}

struct Bench {
    backend: WgpuBackend,
    rows: Vec<Json>,
    tuning: Tuning,
    small: bool,
    /// Operands that were made, by number of elements, format and seed.
    made: HashMap<(usize, Format, u32), Vec<u8>>,
}

impl Bench {
    fn engine(
        &mut self,
        tuning: Tuning,
        operands: &[(Vec<usize>, Format)],
        build: impl Fn(&mut Graph, &[ValueId]) -> onesigma_graph::Result<ValueId>,
    ) -> Outcome<(Program, onesigma_backend_wgpu::WgpuEngine, Vec<Vec<u8>>)> {
        let program = program(operands, build)?;
        let mut engine = self.backend.tuned(tuning).engine(&program)?;
        let mut contents = Vec::new();
        for (n, (shape, format)) in operands.iter().enumerate() {
            let (numel, seed) = (shape.iter().product(), n as u32 + 1);
            let made = self.made.entry((numel, *format, seed));
            let bytes = made.or_insert_with(|| codes(numel, *format, seed)).clone();
            engine.write(program.find_slot(&format!("x{n}"))?, &bytes)?;
            contents.push(bytes);
        }
        Ok((program, engine, contents))
    }
}

/// What the adapters offer.
fn describe() {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    for adapter in pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY)) {
        println!("{:?}", adapter.get_info());
        println!("{:?}", adapter.features());
        println!("{:?}", adapter.limits());
        for p in adapter.cooperative_matrix_properties() {
            println!(
                "matrices of {}x{}x{}: {:?}, sums {:?}",
                p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type
            );
        }
    }
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let device =
        arguments.iter().position(|a| a == "--device").and_then(|at| arguments.get(at + 1));
    let options = Options { device: device.cloned(), ..Options::default() };
    let backend = WgpuBackend::with(&options)?;
    println!("{}: {}", backend.caps().device, backend.abilities());
    if has("device") {
        describe();
    }
    let device = backend.caps().device;
    let small = has("--small");
    let mut bench =
        Bench { backend, rows: Vec::new(), tuning: Tuning::default(), small, made: HashMap::new() };
    let all = !SUITES.iter().any(|name| has(name));
    let report = |what: &str, result: Outcome<()>| {
        if let Err(error) = result {
            println!("{what} failed: {error}");
        }
    };
    if all || has("rows") {
        report("rows", bench.rows());
    }
    if all || has("vectors") {
        report("vectors", bench.vectors());
    }
    if all || has("matrices") {
        report("matrices", bench.matrices());
    }
    if all || has("model") {
        report("model", bench.model());
    }
    if all || has("gpt") {
        report("gpt", bench.gpt("unit-fp8"));
        report("gpt", bench.gpt("f32"));
    }
    if let Some(folder) = std::env::var_os("OUT") {
        let suites: Vec<&str> = SUITES.into_iter().filter(|name| all || has(name)).collect();
        let name = format!("kernels_{}", suites.join("_"));
        let text = serde_json::to_string_pretty(&json!({"device": device, "rows": bench.rows}))?;
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.json")), text)?;
    }
    Ok(())
}
