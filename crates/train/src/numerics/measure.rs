//! Runs a probe and collects the statistics of its tensors.
//!
//! Tensors are read through output slots, as many in one program as a budget of bytes allows;
//! more tensors take more programs, each of which runs the part of the step that its tensors need.
//! One tensor at a time is decoded on the host. Two measurements of one state are equal, bit for
//! bit, on a backend that is deterministic.

use onesigma_backend::Backend;
use onesigma_format::{Conversion, Format, decode_slice};
use onesigma_graph::passes::clean::clean;
use onesigma_graph::passes::legalise::legalise;
use onesigma_graph::{DType, Program, Role, SlotId, SlotKind};
use serde::Serialize;

use super::{Collector, Pass, Probe, Tap, TensorStatistics};
use crate::checkpoint::Tensor;
use crate::{Result, session};

/// How to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Candidate formats.
    pub formats: Vec<Format>,
    /// Bytes of tensors that one program may keep for the host; one tensor may exceed it.
    pub budget_bytes: usize,
}

impl Options {
    /// The formats that training uses or could use, widest first.
    pub const FORMATS: [Format; 7] = [
        Format::F16,
        Format::BF16,
        Format::E5M2,
        Format::E4M3,
        Format::E3M2,
        Format::E2M3,
        Format::E2M1,
    ];
}

impl Default for Options {
    fn default() -> Self {
        Self { formats: Self::FORMATS.to_vec(), budget_bytes: 256 << 20 }
    }
}

/// Where to measure.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// Every state slot, sorted by name, as [`Session::state`](crate::session::Session::state)
    /// gives them; tensors that the step does not read are ignored.
    pub state: &'a [Tensor],
    /// Bytes of the inputs: seed, step, learning rate, batch.
    pub inputs: &'a [(SlotId, Vec<u8>)],
}

/// A tensor with its statistics.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Name of the node that makes it.
    pub name: String,
    /// Name of its op.
    pub op: &'static str,
    /// What it is for.
    pub role: Role,
    /// Layer that it belongs to.
    pub layer: Option<u32>,
    /// The part of the step that makes it.
    pub pass: Pass,
    /// Extents.
    pub shape: Vec<usize>,
    /// What was measured.
    pub statistics: TensorStatistics,
}

/// Measures every tensor of a probe, in the order of [`Probe::taps`].
///
/// # Errors
/// [`Error::CheckpointMismatch`](crate::Error::CheckpointMismatch) if the state is not that of the
/// step; those of the backend.
pub fn measure(
    probe: &Probe,
    backend: &dyn Backend,
    moment: Moment<'_>,
    options: &Options,
) -> Result<Vec<Measured>> {
    let mut measured: Vec<Option<TensorStatistics>> = vec![None; probe.taps.len()];
    let mut chunk = Vec::new();
    let mut bytes = 0;
    for (index, tap) in probe.taps.iter().enumerate() {
        if tap.slot.is_some() {
            measured[index] = Some(state_statistics(probe, tap, moment.state, options)?);
            continue;
        }
        let own = probe.graph.value(tap.value).bytes();
        if !chunk.is_empty() && bytes + own > options.budget_bytes {
            run(probe, &chunk, backend, moment, options, &mut measured)?;
            chunk.clear();
            bytes = 0;
        }
        chunk.push(index);
        bytes += own;
    }
    run(probe, &chunk, backend, moment, options, &mut measured)?;
    let each = probe.taps.iter().zip(measured);
    Ok(each
        .filter_map(|(tap, statistics)| {
            Some(Measured {
                name: tap.name.clone(),
                op: tap.op,
                role: tap.role,
                layer: tap.layer,
                pass: tap.pass,
                shape: tap.shape.dims().to_vec(),
                statistics: statistics?,
            })
        })
        .collect())
}

/// Runs the step as far as the tensors `chunk` need it, and looks at them.
fn run(
    probe: &Probe,
    chunk: &[usize],
    backend: &dyn Backend,
    moment: Moment<'_>,
    options: &Options,
    measured: &mut [Option<TensorStatistics>],
) -> Result<()> {
    if chunk.is_empty() {
        return Ok(());
    }
    let mut module = probe.module.clone();
    let mut graph = probe.graph.without_writes();
    let mut slots = Vec::with_capacity(chunk.len());
    for &index in chunk {
        let tap = &probe.taps[index];
        let name = format!("tap.{index}");
        let dtype = graph.value(tap.value).dtype;
        let slot =
            module.slot(&name, SlotKind::Output, tap.shape.clone(), dtype, Role::Statistic)?;
        graph.write(slot, tap.value);
        slots.push(slot);
    }
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let legal = legalise(&clean(&graph), &supports, false)?;
    let entry = module.entry("probe", legal.graph)?;
    let program = Program::new(module)?;
    let mut engine = backend.compile(&program)?;
    session::restore(&program, engine.as_mut(), moment.state)?;
    for (slot, bytes) in moment.inputs {
        engine.write(*slot, bytes)?;
    }
    engine.run(entry, 1)?;
    let mut bytes = Vec::new();
    for (&index, slot) in chunk.iter().zip(slots) {
        let tap = &probe.taps[index];
        let info = &program.slots()[slot.index()];
        bytes.resize(info.bytes(), 0);
        engine.read(slot, &mut bytes)?;
        let stored = info.dtype.format().unwrap_or(Format::F32);
        measured[index] = Some(collect(stored, &bytes, tap, options)?);
    }
    Ok(())
}

fn state_statistics(
    probe: &Probe,
    tap: &Tap,
    state: &[Tensor],
    options: &Options,
) -> Result<TensorStatistics> {
    let name = tap.slot.map_or("", |slot| &probe.module.slot_info(slot).name);
    let found = state.iter().find(|tensor| tensor.name == name);
    let tensor = found.ok_or_else(|| crate::Error::CheckpointMismatch {
        what: format!("tensor `{name}`"),
        found: "missing".into(),
        expected: format!("{} {}", DType::Float(tap.format), tap.shape),
    })?;
    collect(tap.format, &tensor.bytes, tap, options)
}

/// Decodes `bytes` of format `stored` in parts and collects.
fn collect(stored: Format, bytes: &[u8], tap: &Tap, options: &Options) -> Result<TensorStatistics> {
    let own: (Format, Conversion) = (tap.format, tap.conversion);
    let mut collector = Collector::new(own, &options.formats);
    let mut values = vec![0.0; (1 << 16).min(bytes.len() / stored.bytes())];
    for part in bytes.chunks(values.len().max(1) * stored.bytes()) {
        let values = &mut values[..part.len() / stored.bytes()];
        decode_slice(stored, part, values)?;
        collector.add(values)?;
    }
    Ok(collector.finish())
}
