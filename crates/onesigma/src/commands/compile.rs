//! `onesigma compile`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use onesigma::graph::file::Description;
use onesigma::graph::passes::recompute::EntryFit;
use onesigma::graph::passes::saved::saved;
use onesigma::graph::{Graph, Op, Program, ProgramEntry, SlotKind, ValueId, print};
use onesigma::numerics::{self, Request, Start};
use onesigma::setup;
use onesigma::train::memory::MemoryFit;
use onesigma::train::numerics::Options;

use super::Usage;
use super::settings::Settings;

/// Arguments of `onesigma compile`.
#[derive(Debug, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "\
Examples:
  onesigma compile --recipe unit-fp8
  onesigma compile --recipe f32 --layers 12 --hidden 768 --heads 12 --seq 1024 --batch 8
  onesigma compile --recipe unit-fp8 -o program.osp
  onesigma compile --recipe unit-fp8 --memory 24MiB
  onesigma compile --text | less
  onesigma compile --layers 1 --dot train_step | dot -Tsvg > step.svg"
)]
pub struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Print every instruction with shapes, formats and scales
    #[arg(long, conflicts_with = "dot")]
    text: bool,
    /// Print one entry as Graphviz
    #[arg(long, value_name = "ENTRY")]
    dot: Option<String>,
    /// Write the program to a file that `onesigma run` takes
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["text", "dot"])]
    output: Option<PathBuf>,
}

/// Plans the program and prints the plan.
pub fn run(arguments: &Arguments) -> Result<()> {
    let config = arguments.settings.config()?;
    let training = setup::program(&config)?;
    let program = &training.program;
    let mut out = io::stdout().lock();
    if arguments.text {
        out.write_all(print::program_text(program).as_bytes())?;
        return Ok(());
    }
    if let Some(name) = &arguments.dot {
        let entry =
            program.entries().iter().find(|entry| entry.name == *name).ok_or_else(|| {
                let known: Vec<_> = program.entries().iter().map(|entry| &entry.name[..]).collect();
                Usage(format!("unknown entry `{name}`, expected one of: {}", known.join(", ")))
            })?;
        out.write_all(print::graph_dot(name, &entry.graph).as_bytes())?;
        return Ok(());
    }
    if let Some(path) = &arguments.output {
        let description = Description::from([
            ("backend".to_owned(), config.backend.clone()),
            ("config".to_owned(), serde_json::to_string(&config)?),
            ("producer".to_owned(), concat!("onesigma ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("recipe".to_owned(), config.recipe.clone()),
        ]);
        let bytes = program.to_bytes(&description)?;
        fs::write(path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(out, "written     {} ({} bytes)", path.display(), bytes.len())?;
    }
    summary(&mut out, &config.recipe, training.parameter_count, program)?;
    if let Some(fit) = &training.memory {
        memory(&mut out, fit, program.arena_bytes())?;
    }
    let proven = setup::prove(&config)?.len();
    writeln!(out, "gradients   proved right up to a constant each, {proven} parameters")?;
    let request = Request {
        name: config.recipe.clone(),
        config: &config,
        start: Start::Init,
        data: None,
        after: &[],
    };
    writeln!(out, "numerics    predicted; `onesigma numerics` measures too")?;
    super::numerics::at_risk(&mut out, &numerics::model(&request, &Options::default())?)?;
    for rewrite in &training.rewrites {
        writeln!(out, "rewritten   {rewrite}")?;
    }
    Ok(())
}

/// The plan: memory, entries, and what each holds.
pub fn summary(
    out: &mut impl Write,
    recipe: &str,
    parameters: usize,
    program: &Program,
) -> Result<()> {
    writeln!(out, "recipe      {recipe}")?;
    writeln!(out, "parameters  {parameters}")?;
    writeln!(out, "arena       {}", mebibytes(program.arena_bytes()))?;
    for kind in [SlotKind::State, SlotKind::Input, SlotKind::Output] {
        let slots = program.slots().iter().filter(|slot| slot.kind == kind);
        let bytes: usize = slots.map(|slot| slot.bytes()).sum();
        writeln!(out, "  {:<9} {}", format!("{kind:?}").to_lowercase(), mebibytes(bytes))?;
    }
    writeln!(out, "entries")?;
    for entry in program.entries() {
        writeln!(
            out,
            "  {:<14} {:>5} ops, {} temporary ({} alive at once)",
            entry.name,
            entry.graph.nodes().iter().filter(|node| !matches!(node.op, Op::Slot(_))).count(),
            mebibytes(entry.temporary_bytes),
            mebibytes(entry.live_bytes),
        )?;
        for (name, count) in op_counts(entry) {
            write!(out, "    {count} {name}")?;
        }
        writeln!(out)?;
        let kept = format_bytes(&entry.graph, saved(&entry.graph));
        if !kept.is_empty() {
            let list = kept.iter().map(|(format, (tensors, bytes))| {
                format!("{} {format} ({tensors})", mebibytes(*bytes))
            });
            let list: Vec<String> = list.collect();
            writeln!(out, "    saved for the backward pass: {}", list.join(", "))?;
        }
        let all = (0..entry.graph.values().len()).map(ValueId::new).collect();
        for (format, (tensors, bytes)) in format_bytes(&entry.graph, all) {
            writeln!(out, "    {format:<8} {tensors:>5} tensors, {}", mebibytes(bytes))?;
        }
    }
    Ok(())
}

/// What keeping the budget costs.
pub fn memory(out: &mut impl Write, fit: &MemoryFit, arena_bytes: usize) -> Result<()> {
    let MemoryFit { budget, device, entries } = fit;
    writeln!(out, "memory      {} of {budget} allowed", mebibytes(arena_bytes))?;
    for EntryFit { entry, temporary_bytes: [before, after], repeated, seconds, repeated_seconds } in
        entries
    {
        writeln!(
            out,
            "  {entry:<14} {repeated:>5} ops run again: {} of temporaries instead of {}, {:.1} % more \
             time (by the rates of {device})",
            mebibytes(*after),
            mebibytes(*before),
            100.0 * repeated_seconds / seconds,
        )?;
    }
    Ok(())
}

fn op_counts(entry: &ProgramEntry) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for node in entry.graph.nodes() {
        if !matches!(node.op, Op::Slot(_)) {
            *counts.entry(node.op.name()).or_default() += 1;
        }
    }
    counts
}

/// Number and bytes of the tensors of each element type.
fn format_bytes(graph: &Graph, values: Vec<ValueId>) -> BTreeMap<String, (usize, usize)> {
    let mut formats: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for value in values.into_iter().map(|value| graph.value(value)) {
        let (tensors, bytes) = formats.entry(value.dtype.to_string()).or_default();
        *tensors += 1;
        *bytes += value.bytes();
    }
    formats
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}
