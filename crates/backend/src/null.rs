//! A backend without hardware: checks that a program fits a described device, and what it costs.
//!
//! It compiles as every backend does and refuses what does not fit or is not supported, but its
//! engine only keeps slots: a run checks frames and computes nothing. `onesigma compile` uses it.

use crate::kernels::expect_supported;
use crate::{
    Backend, Caps, Engine, Error, HostSlot, Report, Result, Support, expect_readable, find_entry,
    find_slot, find_slot_mut, inputs_read,
};
use onesigma_format::Format;
use onesigma_graph::{
    DType, EntryId, Graph, Node, Op, Program, ProgramEntry, SlotId, SlotKind, Value,
};
use serde::{Deserialize, Serialize};

/// A device as its data sheet describes it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Device {
    /// Its name, for reports.
    pub name: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Memory traffic in bytes a second.
    pub bytes_per_second: f64,
    /// Matrix products in operations a second, by width of the operands: the first entry whose
    /// `bits` is at least the wider operand's decides; none means that the format is not there.
    pub matmul: Vec<Rate>,
    /// All other arithmetic, in operations a second.
    pub flops: f64,
}

/// A rate of matrix products.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rate {
    /// Widest operand in bits.
    pub bits: u32,
    /// Operations (a multiplication and an addition are two) a second.
    pub flops: f64,
}

impl Device {
    /// One core of a server with AVX-512: f32 arithmetic, every format decoded on the way.
    pub fn server_core(memory_bytes: u64) -> Self {
        Self {
            name: "server core, AVX-512".to_owned(),
            memory_bytes,
            bytes_per_second: 1e10,
            matmul: vec![Rate { bits: 32, flops: 1.9e11 }],
            flops: 2e10,
        }
    }

    /// NVIDIA H100 SXM, dense tensor cores (data sheet, 2023).
    pub fn h100() -> Self {
        Self {
            name: "NVIDIA H100 SXM".to_owned(),
            memory_bytes: 80_000_000_000,
            bytes_per_second: 3.35e12,
            matmul: vec![
                Rate { bits: 8, flops: 1.979e15 },
                Rate { bits: 16, flops: 9.89e14 },
                Rate { bits: 32, flops: 6.7e13 },
            ],
            flops: 6.7e13,
        }
    }

    fn matmul_rate(&self, bits: u32) -> Option<f64> {
        self.matmul.iter().find(|rate| rate.bits >= bits).map(|rate| rate.flops)
    }
}

/// Cost of one node.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct OpCost {
    /// Name of the node.
    pub node: String,
    /// Name of its op.
    pub op: &'static str,
    /// Arithmetic operations; a multiplication and an addition are two.
    pub flops: f64,
    /// Bytes of operands and results.
    pub bytes: f64,
    /// The larger of the times that arithmetic and memory traffic take, in seconds.
    pub seconds: f64,
}

/// Cost of one entry.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Cost {
    /// Each node, in execution order.
    pub ops: Vec<OpCost>,
    /// Sum of operations.
    pub flops: f64,
    /// Operations in matrix products.
    pub matmul_flops: f64,
    /// Sum of bytes.
    pub bytes: f64,
    /// Estimated time: the sum over the nodes, nothing overlapping.
    pub seconds: f64,
}

/// Compiles for a described device.
///
/// ```
/// use onesigma_backend::{Backend, Device, NullBackend};
/// # use onesigma_graph::{DType, Graph, Module, Program, Role, SlotKind};
/// #
/// # let mut module = Module::new();
/// # let count = module.slot("count", SlotKind::State, [], DType::F32, Role::Statistic)?;
/// # let mut graph = Graph::new();
/// # let old = module.read(&mut graph, count);
/// # let new = graph.map(&[old], |x| x[0].clone() + 1.0)?.one()?;
/// # graph.write(count, new);
/// # let step = module.entry("step", graph)?;
/// # let program = Program::new(module)?;
///
/// // What the entry `step` of `program` would cost on an H100.
/// let backend = NullBackend::new(Device::h100());
/// let cost = backend.cost(&program, step)?;
/// assert!(cost.bytes > 0.0 && cost.seconds > 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct NullBackend {
    device: Device,
}

impl NullBackend {
    /// A backend for this device.
    pub fn new(device: Device) -> Self {
        Self { device }
    }

    /// What an entry costs on the device.
    ///
    /// # Errors
    /// [`Error::UnknownEntry`].
    pub fn cost(&self, program: &Program, entry: EntryId) -> Result<Cost> {
        let graph = &find_entry(program.entries(), entry)?.graph;
        let ops: Vec<OpCost> = graph.nodes().iter().map(|node| self.op_cost(graph, node)).collect();
        let sum = |of: fn(&OpCost) -> f64| ops.iter().map(of).sum();
        let matmul = |cost: &OpCost| if cost.op == "MatMul" { cost.flops } else { 0.0 };
        Ok(Cost {
            flops: sum(|cost| cost.flops),
            matmul_flops: ops.iter().map(matmul).sum(),
            bytes: sum(|cost| cost.bytes),
            seconds: sum(|cost| cost.seconds),
            ops,
        })
    }

    /// What a node costs on the device.
    pub fn op_cost(&self, graph: &Graph, node: &Node) -> OpCost {
        let flops = flops(graph, node);
        let bytes = traffic(graph, node);
        let products =
            matches!(node.op, Op::MatMul { .. } | Op::Attention { .. } | Op::AttentionGrad { .. });
        let bits = node
            .inputs
            .iter()
            .filter(|_| products)
            .filter_map(|&input| graph.value(input).dtype.format())
            .map(Format::bits)
            .max();
        let rate = match (&node.op, bits) {
            (Op::MatMul { .. }, Some(bits)) => self.device.matmul_rate(bits),
            // Softmax weights are at least 16 bits wide.
            (_, Some(bits)) => self.device.matmul_rate(bits.max(16)),
            _ => None,
        };
        let seconds =
            (flops / rate.unwrap_or(self.device.flops)).max(bytes / self.device.bytes_per_second);
        OpCost { node: node.name.clone(), op: node.op.name(), flops, bytes, seconds }
    }
}

/// Arithmetic operations of a node. Fused ops count as the usual single-pass kernels do.
pub fn flops(graph: &Graph, node: &Node) -> f64 {
    let shape = |operand: usize| &graph.value(node.inputs[operand]).shape;
    let numel = |operand: usize| shape(operand).numel() as f64;
    match &node.op {
        Op::MatMul { transpose_left, .. } => {
            let dims = shape(0).dims();
            let contracted = dims[dims.len() - if *transpose_left { 2 } else { 1 }];
            2.0 * graph.value(node.outputs[0]).shape.numel() as f64 * contracted as f64
        }
        Op::Map { expr, shape } => shape.numel() as f64 * arithmetic(expr),
        Op::Reduce { expr, shape, .. } => shape.numel() as f64 * (arithmetic(expr) + 1.0),
        Op::ScatterAdd { .. } => numel(0),
        Op::Random { shape, .. } => 20.0 * shape.numel() as f64,
        Op::Softmax { .. } | Op::CrossEntropy { .. } | Op::CrossEntropyGrad { .. } => {
            5.0 * numel(0)
        }
        Op::SoftmaxGrad { .. } => 4.0 * numel(0),
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => 6.0 * numel(0),
        Op::LayerNormGrad { .. } | Op::RmsNormGrad { .. } => 12.0 * numel(0),
        Op::Attention { causal, .. } => 2.0 * attention(shape(0).dims(), shape(1).dims(), *causal),
        Op::AttentionGrad { causal, .. } => {
            5.0 * attention(shape(0).dims(), shape(1).dims(), *causal)
        }
        Op::AdamW(_) => 15.0 * numel(0),
        _ => 0.0,
    }
}

/// Operations of one product of queries and keys; about half of them where later keys are masked.
fn attention(q: &[usize], k: &[usize], causal: bool) -> f64 {
    let (&[batch, seq, heads, d], &[_, keys, ..]) = (q, k) else { return 0.0 };
    let (s, t) = (seq as f64, keys as f64);
    let pairs = if causal { s * t - s * (s - 1.0) / 2.0 } else { s * t };
    2.0 * pairs * (batch * heads * d) as f64
}

fn arithmetic(expr: &onesigma_graph::expr::Expr) -> f64 {
    use onesigma_graph::expr::Instr;
    let counts =
        |instr: &&Instr| matches!(instr, Instr::Unary(..) | Instr::Binary(..) | Instr::Select(..));
    expr.instrs().iter().filter(counts).count() as f64
}

/// Bytes of operands and results; views and slots move nothing.
fn traffic(graph: &Graph, node: &Node) -> f64 {
    if matches!(node.op, Op::Slot(_) | Op::Reshape { .. }) {
        return 0.0;
    }
    let results = node.outputs.iter().map(|&id| graph.value(id));
    let moved: usize = results.map(Value::bytes).sum();
    let read: usize = match node.op {
        // Rows that are chosen, not the table.
        Op::Gather => moved,
        Op::Slice { .. } => moved,
        _ => node.inputs.iter().map(|&id| graph.value(id).bytes()).sum(),
    };
    (moved + read) as f64
}

impl Backend for NullBackend {
    fn name(&self) -> &str {
        "null"
    }

    fn caps(&self) -> Caps {
        Caps {
            device: self.device.name.clone(),
            memory_bytes: Some(self.device.memory_bytes),
            deterministic: true,
        }
    }

    fn supports(&self, op: &Op, inputs: &[DType], _output: DType) -> Support {
        let bits = inputs.iter().filter_map(|dtype| dtype.format()).map(Format::bits).max();
        match op {
            Op::MatMul { .. } if self.device.matmul_rate(bits.unwrap_or(32)).is_none() => {
                Support::No
            }
            _ => Support::Native,
        }
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        program.validate()?;
        let supports = |op: &Op, inputs: &[DType], output| self.supports(op, inputs, output);
        for entry in program.entries() {
            expect_supported(self.name(), &entry.graph, &supports)?;
        }
        let (needed, available) = (program.arena_bytes() as u64, self.device.memory_bytes);
        if needed > available {
            return Err(Error::OutOfMemory { needed, available });
        }
        let new = |slot| NullSlot { host: HostSlot::new(slot), written: 0 };
        let slots = program.slots().iter().map(new).collect();
        let entries = program.entries().iter().map(|entry| Steps::new(program, entry)).collect();
        let mut notes = vec!["nothing is computed".to_owned()];
        for (index, entry) in program.entries().iter().enumerate() {
            let cost = self.cost(program, EntryId::new(index))?;
            notes.push(format!(
                "{}: {:.3} GFLOP, {:.3} MB moved, about {:.3} ms",
                entry.name,
                cost.flops / 1e9,
                cost.bytes / 1e6,
                cost.seconds * 1e3
            ));
        }
        let report = Report { planned_bytes: program.arena_bytes(), allocated_bytes: 0, notes };
        Ok(Box::new(NullEngine { slots, entries, report }))
    }
}

/// A slot that no kernel writes. The frame of a state is kept on the host, too.
struct NullSlot {
    host: HostSlot,
    /// Outputs: frames of the last run, all of them zeros.
    written: usize,
}

/// Slots of an entry.
struct Steps {
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

impl Steps {
    fn new(program: &Program, entry: &ProgramEntry) -> Self {
        let of = |kind: SlotKind, slots: &mut dyn Iterator<Item = SlotId>| {
            let slots = slots.map(SlotId::index);
            slots.filter(|&slot| program.slots()[slot].kind == kind).collect()
        };
        let (reads, writes) = (inputs_read(program, entry), entry.graph.writes());
        Self {
            inputs: of(SlotKind::Input, &mut reads.into_iter()),
            outputs: of(SlotKind::Output, &mut writes.iter().map(|&(slot, _)| slot)),
        }
    }
}

/// Keeps what the host writes; slots that nobody wrote read as zeros.
struct NullEngine {
    slots: Vec<NullSlot>,
    entries: Vec<Steps>,
    report: Report,
}

impl Engine for NullEngine {
    fn write(&mut self, slot: SlotId, bytes: &[u8]) -> Result<()> {
        let host = &mut find_slot_mut(&mut self.slots, slot)?.host;
        if !host.write(bytes)? {
            bytes.clone_into(&mut host.frames);
        }
        Ok(())
    }

    fn read(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()> {
        let NullSlot { host, written } = find_slot(&self.slots, slot)?;
        if host.kind == SlotKind::Output {
            expect_readable(&host.name, host.kind, host.frame_bytes, *written, bytes.len())?;
            bytes.fill(0);
        } else if !host.read(bytes)? {
            match host.frames.is_empty() {
                true => bytes.fill(0),
                false => bytes.copy_from_slice(&host.frames),
            }
        }
        Ok(())
    }

    fn run(&mut self, entry: EntryId, times: usize) -> Result<()> {
        let steps = find_entry(&self.entries, entry)?;
        if times == 0 {
            return Ok(());
        }
        for &slot in &steps.inputs {
            self.slots[slot].host.expect_frames(times)?;
        }
        for &slot in &steps.outputs {
            self.slots[slot].written = times;
        }
        Ok(())
    }

    fn report(&self) -> Report {
        self.report.clone()
    }
}
