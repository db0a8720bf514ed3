//! Running one case on one backend.

use std::error::Error;
use std::time::Instant;

use onesigma::backend::{Device, Engine, NullBackend};
use onesigma::backends;
use onesigma::format::{Conversion, Noise, encode_slice, philox};
use onesigma::graph::passes::legalise::legalise;
use onesigma::graph::{EntryId, Module, Program, SlotId, SlotKind};
use onesigma::setup;
use onesigma::train::batch::Batch;
use onesigma::train::program::TrainEntries;
use onesigma::train::session::Session;
use serde_json::{Value, json};

use crate::cases::{Case, Group, Work};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What takes the runs.
enum Runner {
    Engine { engine: Box<dyn Engine>, entry: EntryId },
    Session { session: Box<Session>, batch: Batch, step: u64 },
}

/// A case on a backend, with the samples so far.
pub struct Running {
    backend: String,
    case: String,
    items: f64,
    runner: Runner,
    /// Runs in a sample; none before the first.
    runs: Option<usize>,
    times_ms: Vec<f64>,
    limit_ms: Option<f64>,
    planned_bytes: usize,
    allocated_bytes: usize,
}

impl Running {
    /// Compiles, fills the state, and takes one run to warm up.
    pub fn start(backend: &str, case: &Case, limits: Option<&Device>) -> Outcome<Self> {
        let opened = backends::open(backend)?;
        let null = limits.map(|limits| NullBackend::new(limits.clone()));
        let limit = |program: &Program, entry| -> Outcome<Option<f64>> {
            let Some(null) = &null else { return Ok(None) };
            Ok(Some(null.cost(program, entry)?.seconds * 1e3))
        };
        let (runner, limit_ms, report) = match &case.work {
            Work::Program(make) => {
                let supports = |op: &_, inputs: &[_], output| opened.supports(op, inputs, output);
                let own = make()?;
                let limit_ms = limit(&own, EntryId::new(0))?;
                let mut module = Module::new();
                for slot in own.slots() {
                    module.slot(
                        &slot.name,
                        slot.kind,
                        slot.shape.clone(),
                        slot.dtype,
                        slot.role,
                    )?;
                }
                for entry in own.entries() {
                    module.entry(&entry.name, legalise(&entry.graph, &supports, false)?.graph)?;
                }
                let program = Program::new(module)?;
                let mut engine = opened.compile(&program)?;
                fill(&program, &mut *engine)?;
                let report = engine.report();
                let entry = EntryId::new(0);
                (Runner::Engine { engine, entry }, limit_ms, report)
            }
            Work::Step(config) => {
                let mut session = setup::session_on(config, opened)?;
                session.init(1)?;
                let program = session.program();
                let limit_ms = match program.entries.train {
                    TrainEntries::Whole(entry) => limit(&program.program, entry)?,
                    TrainEntries::Split { .. } => None,
                };
                let tokens = |shift: usize| {
                    let count = config.batch * config.model.seq;
                    (shift..shift + count).map(|at| (at * at % 251) as _).collect()
                };
                let batch =
                    Batch { step: 0, inputs: tokens(0), targets: tokens(1), more: Vec::new() };
                let report = session.report();
                (Runner::Session { session: Box::new(session), batch, step: 0 }, limit_ms, report)
            }
        };
        let mut running = Self {
            backend: backend.into(),
            case: case.name.clone(),
            items: case.items,
            runner,
            runs: None,
            times_ms: Vec::new(),
            limit_ms,
            planned_bytes: report.planned_bytes,
            allocated_bytes: report.allocated_bytes,
        };
        // Twice: devices capture or compile what they replay in the first runs.
        running.run(1)?;
        running.run(1)?;
        Ok(running)
    }

    fn run(&mut self, times: usize) -> Outcome<()> {
        match &mut self.runner {
            Runner::Engine { engine, entry } => engine.run(*entry, times)?,
            Runner::Session { session, batch, step } => {
                for _ in 0..times {
                    session.train(*step, &[1e-3], std::slice::from_ref(batch))?;
                    *step += 1;
                }
            }
        }
        Ok(())
    }

    /// Takes one sample.
    pub fn sample(&mut self, sample_ms: f64) -> Outcome<()> {
        let runs = match self.runs {
            Some(runs) => runs,
            None => {
                let start = Instant::now();
                self.run(1)?;
                let one = start.elapsed().as_secs_f64() * 1e3;
                let runs = (sample_ms / one.max(1e-3)).ceil().clamp(1.0, 1e4) as usize;
                *self.runs.insert(runs)
            }
        };
        let start = Instant::now();
        self.run(runs)?;
        self.times_ms.push(start.elapsed().as_secs_f64() * 1e3 / runs as f64);
        Ok(())
    }

    /// The line to print.
    pub fn finish(self, group: &Group) -> Value {
        json!({
            "kind": "case", "suite": group.suite, "group": group.name, "case": self.case,
            "backend": self.backend, "width": group.width, "unit": group.unit,
            "items": self.items, "runs_per_sample": self.runs, "times_ms": self.times_ms,
            "limit_ms": self.limit_ms, "planned_bytes": self.planned_bytes,
            "allocated_bytes": self.allocated_bytes,
        })
    }
}

/// Normal numbers into every state slot.
fn fill(program: &Program, engine: &mut dyn Engine) -> Outcome<()> {
    for (at, slot) in program.slots().iter().enumerate() {
        let (SlotKind::State, Some(format)) = (slot.kind, slot.dtype.format()) else { continue };
        let mut values = vec![0.0; slot.shape.numel()];
        philox::fill_normal(Noise { tensor: at as u32, ..Noise::default() }, &mut values);
        let mut codes = vec![0; slot.bytes()];
        encode_slice(format, Conversion::SATURATE, Noise::default(), &values, &mut codes)?;
        engine.write(SlotId::new(at), &codes)?;
    }
    Ok(())
}
