//! `onesigma run`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use onesigma::backend::Engine;
use onesigma::format::{Conversion, decode_slice, encode};
use onesigma::graph::{DType, Program, Slot, SlotId, SlotKind};
use onesigma::train::checkpoint::{self, StateFile, Tensor};
use onesigma::train::session;

use super::{Usage, profile};

/// Arguments of `onesigma run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Inputs are given by slot name, as numbers or as raw little-endian files of one frame, or one frame
for each step. `seed` and `step` are filled in unless they are given. State that no file holds is
made by the program's `init` entry, if it has one.

Examples:
  onesigma compile --recipe unit-fp8 -o program.osp
  onesigma run program.osp
  onesigma run program.osp --entry train_step --times 4 --input lr=0.5 \\
      --input tokens=@tokens.u32 --input targets=@targets.u32 --save-state state.safetensors
  onesigma run program.osp --entry generate_step --state state.safetensors \\
      --input prompt=@prompt.u32 --input position=11 --output next_logits=@logits.f32")]
pub struct Arguments {
    /// The program file
    program: PathBuf,
    /// The entry to run [default: list slots and entries]
    #[arg(long)]
    entry: Option<String>,
    /// Steps to run
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// Where it runs; see `onesigma backends`
    #[arg(long, default_value = "cpu")]
    backend: String,
    /// Seed of every random number
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of steps done before, for the `step` input
    #[arg(long, default_value_t = 0)]
    first_step: u32,
    /// Weights and other state, as safetensors: a checkpoint, or what --save-state wrote
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// An input: SLOT=NUMBER,NUMBER,... or SLOT=@FILE
    #[arg(long = "input", value_name = "SLOT=VALUE")]
    inputs: Vec<String>,
    /// Where an output goes, one frame for each step, raw: SLOT=@FILE [default: small outputs are
    /// printed]
    #[arg(long = "output", value_name = "SLOT=@FILE")]
    outputs: Vec<String>,
    /// Print where the time went, op by op, and write the trace to a file for Perfetto
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Write the state after the run, as safetensors
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
}

/// Elements of an output that is printed rather than counted.
const PRINTED: usize = 16;

/// Reads the file and runs, or describes, the program.
pub fn run(arguments: &Arguments) -> Result<()> {
    let path = &arguments.program;
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (program, description) =
        Program::from_bytes(&bytes).with_context(|| path.display().to_string())?;
    let mut out = io::stdout().lock();
    let Some(entry) = &arguments.entry else {
        return describe(&mut out, &program, &description);
    };
    let entry = program.find_entry(entry).map_err(|error| Usage(error.to_string()))?;
    let inputs = inputs(&program, arguments)?;
    let outputs = outputs(&program, &arguments.outputs)?;
    let backend = onesigma::backends::open(&arguments.backend)?;
    let mut engine = backend.compile(&program)?;
    let engine = engine.as_mut();
    make_state(&program, engine, arguments)?;
    for (slot, bytes) in &inputs {
        engine.write(*slot, bytes)?;
    }
    let times = arguments.times as usize;
    if arguments.profile.is_some() {
        profile::begin(engine)?;
    }
    engine.run(entry, times)?;
    if let Some(path) = &arguments.profile {
        profile::end(&mut out, &program, &engine.take_spans(), backend.as_ref(), path)?;
    }
    let written = program.entries()[entry.index()].graph.writes();
    for &(slot, _) in written {
        let info = &program.slots()[slot.index()];
        if info.kind != SlotKind::Output {
            continue;
        }
        let mut bytes = vec![0; info.bytes() * times];
        engine.read(slot, &mut bytes)?;
        match outputs.get(&slot.index()) {
            Some(path) => fs::write(path, &bytes)
                .with_context(|| format!("cannot write {}", path.display()))?,
            None => print(&mut out, info, &bytes)?,
        }
    }
    if let Some(path) = &arguments.save_state {
        checkpoint::write_tensors(path, state(&program, engine)?)?;
    }
    Ok(())
}

fn describe(
    out: &mut impl Write,
    program: &Program,
    description: &BTreeMap<String, String>,
) -> Result<()> {
    for (name, text) in description {
        writeln!(out, "{name:<12}{text}")?;
    }
    writeln!(out, "{:<12}{} bytes", "arena", program.arena_bytes())?;
    for kind in [SlotKind::Input, SlotKind::Output, SlotKind::State] {
        for slot in program.slots().iter().filter(|slot| slot.kind == kind) {
            let kind = format!("{kind:?}").to_lowercase();
            writeln!(out, "{kind:<12}{:<40} {} {}", slot.name, slot.dtype, slot.shape)?;
        }
    }
    for entry in program.entries() {
        let (nodes, bytes) = (entry.graph.nodes().len(), entry.temporary_bytes);
        writeln!(out, "{:<12}{:<40} {nodes} instructions, {bytes} bytes", "entry", entry.name)?;
    }
    Ok(())
}

fn find(program: &Program, name: &str, kind: SlotKind) -> Result<SlotId> {
    let slot = program.find_slot(name).map_err(|error| Usage(error.to_string()))?;
    let found = program.slots()[slot.index()].kind;
    if found != kind {
        let (found, kind) = (format!("{found:?}"), format!("{kind:?}"));
        let (found, kind) = (found.to_lowercase(), kind.to_lowercase());
        return Err(Usage(format!("slot `{name}` is no {kind} slot, its kind is {found}")).into());
    }
    Ok(slot)
}

fn pair(argument: &str) -> Result<(&str, &str)> {
    let usage = || Usage(format!("`{argument}`: expected SLOT=VALUE or SLOT=@FILE"));
    Ok(argument.split_once('=').ok_or_else(usage)?)
}

/// The bytes of every input that is given or can be filled in.
fn inputs(program: &Program, arguments: &Arguments) -> Result<Vec<(SlotId, Vec<u8>)>> {
    let mut inputs = Vec::new();
    if let Some(slot) = program.seed() {
        inputs.push((slot, arguments.seed.to_le_bytes().to_vec()));
    }
    if let Some(slot) = program.step() {
        let first = arguments.first_step;
        let steps = (0..arguments.times).flat_map(|i| first.wrapping_add(i).to_le_bytes());
        inputs.push((slot, steps.collect()));
    }
    for argument in &arguments.inputs {
        let (name, value) = pair(argument)?;
        let slot = find(program, name, SlotKind::Input)?;
        let bytes = match value.strip_prefix('@') {
            Some(path) => fs::read(path).with_context(|| format!("cannot read {path}"))?,
            None => numbers(&program.slots()[slot.index()], value)?,
        };
        inputs.retain(|(other, _)| *other != slot);
        inputs.push((slot, bytes));
    }
    Ok(inputs)
}

fn numbers(slot: &Slot, text: &str) -> Result<Vec<u8>> {
    let wrong = |number: &str, expected: &str| {
        Usage(format!("slot `{}`: `{number}` is no {expected}", slot.name))
    };
    let mut bytes = Vec::new();
    for number in text.split(',') {
        match slot.dtype {
            DType::U32 => {
                let number: u32 = number.parse().map_err(|_| wrong(number, "unsigned integer"))?;
                bytes.extend(number.to_le_bytes());
            }
            DType::Float(format) => {
                let value: f32 = number.parse().map_err(|_| wrong(number, "number"))?;
                let code = encode(value, format, Conversion::SATURATE, 0);
                bytes.extend(&code.to_le_bytes()[..format.bytes()]);
            }
        }
    }
    Ok(bytes)
}

fn outputs(program: &Program, arguments: &[String]) -> Result<BTreeMap<usize, PathBuf>> {
    let mut outputs = BTreeMap::new();
    for argument in arguments {
        let (name, value) = pair(argument)?;
        let slot = find(program, name, SlotKind::Output)?;
        let path = value
            .strip_prefix('@')
            .ok_or_else(|| Usage(format!("`{argument}`: expected SLOT=@FILE")))?;
        outputs.insert(slot.index(), path.into());
    }
    Ok(outputs)
}

/// State from a file, or from the program's own `init`.
fn make_state(program: &Program, engine: &mut dyn Engine, arguments: &Arguments) -> Result<()> {
    if let Some(file) = &arguments.state {
        let file = StateFile::open(file)?;
        return Ok(session::restore_from(program, engine, &file.tensors()?)?);
    }
    if let Some(slot) = program.seed() {
        engine.write(slot, &arguments.seed.to_le_bytes())?;
    }
    if let Some(slot) = program.step() {
        engine.write(slot, &0_u32.to_le_bytes())?;
    }
    if let Ok(init) = program.find_entry("init") {
        engine.run(init, 1)?;
    }
    Ok(())
}

fn state(program: &Program, engine: &mut dyn Engine) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for (index, slot) in program.slots().iter().enumerate() {
        if slot.kind == SlotKind::State {
            let mut bytes = vec![0; slot.bytes()];
            engine.read(SlotId::new(index), &mut bytes)?;
            let (name, shape) = (slot.name.clone(), slot.shape.dims().to_vec());
            tensors.push(Tensor { name, format: slot.dtype.to_string(), shape, bytes });
        }
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

fn print(out: &mut impl Write, slot: &Slot, bytes: &[u8]) -> Result<()> {
    let numel = slot.shape.numel().max(1);
    if numel > PRINTED {
        writeln!(out, "{}: {} {}, see --output", slot.name, slot.dtype, slot.shape)?;
        return Ok(());
    }
    for (step, frame) in bytes.chunks_exact(slot.bytes().max(1)).enumerate() {
        let mut values = vec![0.0; numel];
        match slot.dtype.format() {
            Some(format) => decode_slice(format, frame, &mut values)?,
            None => {
                for (word, value) in frame.as_chunks().0.iter().zip(&mut values) {
                    *value = u32::from_le_bytes(*word) as f32;
                }
            }
        }
        let values: Vec<String> = values.iter().map(f32::to_string).collect();
        writeln!(out, "{} {step}: {}", slot.name, values.join(" "))?;
    }
    Ok(())
}
