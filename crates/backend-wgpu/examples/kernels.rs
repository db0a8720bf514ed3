//! Rates of the kernels on the first adapter, or the one that is named: products with several
//! tiles, casts, norms and element-wise ops beside a device copy, and a training step of a GPT.
//!
//! ```text
//! kernels [--small] [--device NAME] [device] [rows] [vectors] [matrices] [gpt]
//! ```
//!
//! Prints a table, and with `OUT` set writes `$OUT/kernels_….json`.
#![allow(clippy::print_stdout)] // it is a program

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use onesigma_backend::{Backend, Engine};
use onesigma_backend_wgpu::{Options, Tuning, WgpuBackend};
use onesigma_format::{Conversion, Format, decode};
use onesigma_graph::{DType, EntryId, Graph, Module, Op, Program, Role, SlotKind, ValueId};
use serde_json::{Value as Json, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

const SUITES: [&str; 4] = ["rows", "vectors", "matrices", "gpt"];

/// Tiles that are tried; what the numbers mean is told at [`Tuning`].
const VECTORS: [[usize; 7]; 15] = [
    [128, 128, 8, 8, 16, 1, 16],
    [128, 128, 8, 8, 16, 1, 8],
    [128, 128, 8, 8, 16, 2, 8],
    [128, 128, 8, 8, 8, 1, 8],
    [128, 128, 8, 8, 8, 2, 8],
    [128, 128, 8, 8, 32, 1, 8],
    [128, 64, 8, 8, 16, 1, 8],
    [64, 128, 8, 8, 16, 2, 8],
    [64, 64, 8, 8, 16, 2, 8],
    [256, 128, 8, 8, 16, 1, 8],
    [128, 128, 16, 8, 8, 2, 8],
    [256, 128, 16, 8, 8, 2, 8],
    [128, 256, 8, 16, 8, 2, 8],
    [64, 64, 4, 4, 16, 1, 16],
    [64, 64, 4, 4, 32, 1, 8],
];
const MATRICES: [[usize; 5]; 5] = [
    [128, 128, 64, 64, 32],
    [128, 256, 64, 64, 32],
    [256, 128, 64, 64, 32],
    [128, 128, 64, 32, 64],
    [64, 64, 32, 32, 64],
];

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

/// Seconds of a run on the device: median of five submissions.
fn seconds(engine: &mut onesigma_backend_wgpu::WgpuEngine, times: usize) -> Outcome<f64> {
    // A device that was idle takes a while to raise its clocks.
    let start = Instant::now();
    while start.elapsed().as_millis() < 100 {
        engine.run(EntryId::new(0), times)?;
        engine.synchronize()?;
    }
    let mut all = Vec::new();
    for _ in 0..5 {
        let time = engine.step_time(EntryId::new(0), times)?.ok_or("no timestamps")?;
        all.push(time.as_secs_f64());
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

    /// A square product; `tile` as in [`Tuning`]. Compares some elements with f64.
    fn product(
        &mut self,
        format: Format,
        into: Format,
        tuning: Tuning,
        flags: (bool, bool),
    ) -> Outcome<f64> {
        let n = if self.small { 128 } else { 4096 };
        let operands = [(vec![n, n], format), (vec![n, n], format)];
        let op = Op::MatMul { transpose_left: flags.0, transpose_right: flags.1 };
        let (program, mut engine, contents) = self.engine(tuning, &operands, |graph, x| {
            let how = Conversion::SATURATE;
            graph.op(op.clone(), x).stored_as(DType::Float(into), how).one()
        })?;
        let time = seconds(&mut engine, if self.small { 2 } else { 10 })?;
        let slot = program.find_slot("y")?;
        let mut result = vec![0; n * n * into.bytes()];
        engine.read(slot, &mut result)?;
        let value = |bytes: &[u8], format: Format, at: usize| {
            let width = format.bytes();
            let mut word = [0; 4];
            word[..width].copy_from_slice(&bytes[at * width..(at + 1) * width]);
            f64::from(decode(u32::from_le_bytes(word), format))
        };
        let (mut error, mut norm) = (0.0, 0.0);
        for i in 0..97 {
            let (row, column) = ((i * 7919 + 13) % n, (i * 104_729 + 5) % n);
            let exact: f64 = (0..n)
                .map(|k| {
                    let a = if flags.0 { k * n + row } else { row * n + k };
                    let b = if flags.1 { column * n + k } else { k * n + column };
                    value(&contents[0], format, a) * value(&contents[1], format, b)
                })
                .sum();
            error += (value(&result, into, row * n + column) - exact).powi(2);
            norm += exact * exact;
        }
        let tflops = 2.0 * (n as f64).powi(3) / time / 1e12;
        let error = (error / norm).sqrt();
        let tile =
            format!("{:?} {:?}", tuning.matrices.map(Vec::from), tuning.vectors.map(Vec::from));
        println!(
            "product {format} -> {into} {flags:?} {tile}: {tflops:.1} TFLOP/s, error {error:.1e}"
        );
        self.rows.push(json!({
            "bench": "product", "format": format.to_string(), "into": into.to_string(), "n": n,
            "transposed": [flags.0, flags.1], "tile": tile, "tflops": tflops, "error": error,
            "ms": time * 1e3,
        }));
        Ok(tflops)
    }

    fn vectors(&mut self) -> Outcome<()> {
        let plain = (false, false);
        for vectors in VECTORS {
            let tuning = Tuning { vectors: Some(vectors), ..Tuning::default() };
            if let Err(error) = self.product(Format::F32, Format::F32, tuning, plain) {
                println!("product F32 {vectors:?}: {error}");
            }
        }
        for flags in [(false, true), (true, false), (true, true)] {
            self.product(Format::F32, Format::F32, Tuning::default(), flags)?;
        }
        self.product(Format::BF16, Format::BF16, Tuning::default(), plain)?;
        Ok(())
    }

    fn matrices(&mut self) -> Outcome<()> {
        if self.backend.abilities().contains("no cooperative") {
            println!("no cooperative matrices");
            return Ok(());
        }
        let plain = (false, false);
        for matrices in MATRICES {
            self.layouts(matrices)?;
        }
        let chosen = Tuning::default();
        for format in [Format::F16, Format::E4M3, Format::E5M2] {
            for flags in [plain, (false, true), (true, false), (true, true)] {
                self.product(format, Format::F32, chosen, flags)?;
            }
        }
        self.product(Format::F16, Format::F16, chosen, plain)?;
        self.product(Format::E4M3, Format::F16, chosen, plain)?;
        Ok(())
    }

    /// Products by one tile; every operand in both layouts.
    fn layouts(&mut self, matrices: [usize; 5]) -> Outcome<()> {
        let tuning = Tuning { matrices: Some(matrices), ..Tuning::default() };
        for (format, flags) in [
            (Format::F16, (false, false)),
            (Format::F16, (false, true)),
            (Format::F16, (true, false)),
            (Format::E4M3, (false, false)),
            (Format::E4M3, (false, true)),
        ] {
            self.product(format, Format::F32, tuning, flags)?;
        }
        Ok(())
    }

    /// An op whose limit is memory; `bytes` is what it has to move.
    fn memory_bound(
        &mut self,
        name: &str,
        copy: f64,
        operands: &[(Vec<usize>, Format)],
        build: impl Fn(&mut Graph, &[ValueId]) -> onesigma_graph::Result<ValueId>,
    ) -> Outcome<f64> {
        let (program, mut engine, _) = self.engine(self.tuning, operands, build)?;
        let bytes: usize = program.slots().iter().map(|slot| slot.bytes()).sum();
        let time = seconds(&mut engine, if self.small { 2 } else { 20 })?;
        let rate = bytes as f64 / time / 1e9;
        let share = if copy > 0.0 { rate / copy } else { 1.0 };
        println!("{name}: {rate:.0} GB/s, {share:.2} of a copy");
        self.rows.push(json!({
            "bench": "memory", "name": name, "gb_per_s": rate, "of_copy": share, "us": time * 1e6,
        }));
        Ok(rate)
    }

    fn rows(&mut self) -> Outcome<()> {
        let (rows, width) = if self.small { (64, 256) } else { (16_384, 4096) };
        let of = |format: Format| vec![(vec![rows, width], format)];
        // A state copied to another is one kernel that moves words as they are.
        let copy = self.memory_bound("copy F32", 0.0, &of(Format::F32), |_, x| Ok(x[0]))?;
        for (from, to) in [
            (Format::F32, Format::F16),
            (Format::F32, Format::BF16),
            (Format::F32, Format::E4M3),
            (Format::F32, Format::E5M2),
            (Format::BF16, Format::E4M3),
            (Format::BF16, Format::E5M2),
            (Format::F16, Format::E4M3),
            (Format::E4M3, Format::F16),
            (Format::E5M2, Format::BF16),
            (Format::F16, Format::F32),
        ] {
            let to_type = DType::Float(to);
            let narrow = from.bytes() <= 2 && to.bytes() <= 2;
            for quads in if narrow { &[Some(1), Some(2), Some(4)][..] } else { &[None] } {
                let name = match quads {
                    Some(quads) => format!("cast {from} to {to}, {quads} quads"),
                    None => format!("cast {from} to {to}"),
                };
                self.tuning = Tuning { quads: *quads, ..Tuning::default() };
                self.memory_bound(&name, copy, &of(from), |graph, x| {
                    let op = Op::Cast { to: to_type };
                    graph.op(op, x).stored_as(to_type, Conversion::SATURATE).one()
                })?;
            }
            self.tuning = Tuning::default();
        }
        self.memory_bound("gelu F32", copy, &of(Format::F32), |graph, x| {
            graph.map(x, |x| x[0].clone() * (x[0].clone() * 1.702).sigmoid())?.one()
        })?;
        let two = [of(Format::F32), of(Format::F32)].concat();
        self.memory_bound("add F32", copy, &two, |graph, x| {
            graph.map(x, |x| x[0].clone() + x[1].clone())?.one()
        })?;
        for (name, op) in [
            ("softmax", Op::Softmax { mult: 1.0 }),
            ("layer_norm", Op::LayerNorm { eps: 1e-5 }),
            ("rms_norm", Op::RmsNorm { eps: 1e-5 }),
        ] {
            self.memory_bound(name, copy, &of(Format::F32), |graph, x| {
                graph.op(op.clone(), x).one()
            })?;
        }
        self.memory_bound("rms_norm_grad", copy, &two, |graph, x| {
            graph.op(Op::RmsNormGrad { eps: 1e-5 }, x).one()
        })?;
        self.memory_bound("sum of columns", copy, &of(Format::F32), |graph, x| {
            graph.reduce(onesigma_graph::ReduceKind::Sum, x, &[0], false, |x| x[0].clone())?.one()
        })?;
        self.memory_bound("sum of rows", copy, &of(Format::F32), |graph, x| {
            graph.reduce(onesigma_graph::ReduceKind::Sum, x, &[1], false, |x| x[0].clone())?.one()
        })?;
        Ok(())
    }

    /// A training step of a GPT, and how much of it is spent in kernels.
    fn gpt(&mut self, recipe: &str) -> Outcome<()> {
        use onesigma_models::GptConfig;
        use onesigma_models::config::{Activation, Norm};
        use onesigma_ops::recipes;
        use onesigma_train::model::Gpt;
        use onesigma_train::optimizer::Optimizer;
        use onesigma_train::program::{Settings, Target, build};

        let (hidden, layers, seq, batch, vocab) =
            if self.small { (64, 2, 32, 2, 256) } else { (768, 12, 512, 8, 32_768) };
        let loaded = recipes::load(recipe)?;
        let config = GptConfig {
            vocab_size: vocab,
            n_positions: seq,
            n_embd: hidden,
            n_layer: layers,
            n_head: hidden / if self.small { 16 } else { 64 },
            norm: Norm::RmsNorm,
            norm_affine: false,
            bias: false,
            tie_word_embeddings: Some(false),
            activation_function: Activation::GeluNew,
            ..GptConfig::default()
        };
        let model = Gpt::from_config(config, recipes::parametrisation(&loaded))?;
        let settings = Settings {
            batch,
            seq,
            vocabulary: vocab,
            accumulate: 1,
            optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.01 },
            clip: None,
        };
        let backend = &self.backend;
        let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
        let target = Target { supports: &supports, strict: false };
        let built = build(&model, &loaded, settings, target)?;
        let start = Instant::now();
        let mut engine = backend.engine(&built.program)?;
        let prepared = start.elapsed().as_secs_f64();
        for (n, slot) in built.program.slots().iter().enumerate() {
            if slot.kind == SlotKind::Input {
                // Tokens without pattern; rates are the learning rate and factors of the loss.
                let words = (0..slot.shape.numel() as u32).map(|i| match slot.dtype {
                    DType::U32 => (i.wrapping_mul(2_654_435_761) >> 7) % vocab as u32,
                    _ => 1e-3_f32.to_bits(),
                });
                let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
                engine.write(onesigma_graph::SlotId::new(n), &bytes)?;
            }
        }
        engine.run(built.program.find_entry("init")?, 1)?;
        let entry = built.program.find_entry("train_step")?;
        let times = if self.small { 2 } else { 5 };
        engine.run(entry, times)?;
        engine.synchronize()?;
        let mut wall = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            engine.run(entry, times)?;
            engine.synchronize()?;
            wall.push(start.elapsed().as_secs_f64() / times as f64);
        }
        wall.sort_by(f64::total_cmp);
        // As a library that takes one step a call does it.
        let mut singly = Vec::new();
        for _ in 0..3 * times {
            let start = Instant::now();
            engine.run(entry, 1)?;
            engine.synchronize()?;
            singly.push(start.elapsed().as_secs_f64());
        }
        singly.sort_by(f64::total_cmp);
        let singly = singly[singly.len() / 2];
        let mut kernels = Vec::new();
        let mut inside = 0.0;
        if engine.record() {
            engine.run(entry, 2)?;
            let labels = engine.kernels(entry);
            let spans = engine.take_spans();
            for (label, span) in labels.iter().zip(&spans[labels.len()..]) {
                inside += span.elapsed.as_secs_f64();
                kernels.push((span.elapsed.as_secs_f64() * 1e6, label.clone()));
            }
        }
        kernels.sort_by(|a, b| b.0.total_cmp(&a.0));
        let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        let device = engine.step_times(entry, times)?.map(|found| {
            let times = [found.step, found.kernels, found.launches].map(micros);
            println!(
                "    on the device: a step takes {:.0} us, its kernels {:.0}, its launches {:.0}",
                times[0], times[1], times[2]
            );
            json!({"step_us": times[0], "kernels_us": times[1], "launches_us": times[2]})
        });
        println!(
            "gpt {recipe}: {:.2} ms a step, {:.2} singly, {:.2} ms in {} kernels, prepared in {prepared:.1} s",
            wall[1] * 1e3,
            singly * 1e3,
            inside * 1e3,
            kernels.len()
        );
        println!("    {}", engine.report().notes.join("; "));
        for (micros, label) in kernels.iter().take(if self.small { 12 } else { 40 }) {
            println!("    {micros:>9.1} us  {label}");
        }
        self.rows.push(json!({
            "bench": "gpt", "recipe": recipe, "ms": wall[1] * 1e3, "singly_ms": singly * 1e3,
            "in_kernels_ms": inside * 1e3, "device": device,
            "prepared_s": prepared, "kernels": kernels, "notes": engine.report().notes,
        }));
        Ok(())
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
