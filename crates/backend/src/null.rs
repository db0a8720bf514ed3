//! A backend without hardware: checks that a program fits a described device, and what it costs.
//!
//! It compiles as every backend does and refuses what does not fit or is not supported, but its
//! engine only keeps slots: a run checks frames and computes nothing. `onesigma compile` uses it.

use crate::{
    Backend, Caps, Engine, Error, Report, Result, Support, expect_frames, expect_writable,
    inputs_read,
};
use onesigma_format::Format;
use onesigma_graph::{DType, EntryId, Graph, Node, Op, Program, Slot, SlotId, SlotKind, Value};
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
        let (index, count) = (entry.index(), program.entries().len());
        let entry = program.entries().get(index).ok_or(Error::UnknownEntry { index, count })?;
        let graph = &entry.graph;
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
            for node in entry.graph.nodes() {
                let support =
                    onesigma_graph::passes::legalise::node_support(&entry.graph, node, &supports);
                if support == Support::No {
                    let values = |ids: &[_]| -> Vec<&Value> {
                        ids.iter().map(|&id| entry.graph.value(id)).collect()
                    };
                    let (inputs, outputs) = (values(&node.inputs), values(&node.outputs));
                    return Err(crate::kernels::unsupported("null", node, &inputs, &outputs));
                }
            }
        }
        let (needed, available) = (program.arena_bytes() as u64, self.device.memory_bytes);
        if needed > available {
            return Err(Error::OutOfMemory { needed, available });
        }
        let slots = program.slots().iter().map(|slot| (slot.clone(), Vec::new())).collect();
        let entries = program.entries().iter().map(|entry| inputs_read(program, entry)).collect();
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

/// Keeps what the host writes; slots that nobody wrote read as zeros.
struct NullEngine {
    slots: Vec<(Slot, Vec<u8>)>,
    entries: Vec<Vec<SlotId>>,
    report: Report,
}

impl NullEngine {
    fn slot(&mut self, slot: SlotId) -> Result<&mut (Slot, Vec<u8>)> {
        let (index, count) = (slot.index(), self.slots.len());
        self.slots.get_mut(index).ok_or(Error::UnknownSlot { index, count })
    }
}

impl Engine for NullEngine {
    fn write(&mut self, slot: SlotId, bytes: &[u8]) -> Result<()> {
        let (info, content) = self.slot(slot)?;
        expect_writable(&info.name, info.kind, info.bytes(), bytes.len())?;
        bytes.clone_into(content);
        Ok(())
    }

    fn read(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()> {
        let (info, content) = self.slot(slot)?;
        let frame = info.bytes();
        if bytes.len().checked_rem(frame).unwrap_or(bytes.len()) != 0 {
            return Err(Error::WrongSize { slot: info.name.clone(), frame, found: bytes.len() });
        }
        bytes.fill(0);
        if let Some(start) = content.len().checked_sub(bytes.len()) {
            bytes.copy_from_slice(&content[start..]);
        }
        Ok(())
    }

    fn run(&mut self, entry: EntryId, times: usize) -> Result<()> {
        let (index, count) = (entry.index(), self.entries.len());
        let reads = self.entries.get(index).ok_or(Error::UnknownEntry { index, count })?;
        for slot in reads {
            let (info, content) = &self.slots[slot.index()];
            let found = content.len().checked_div(info.bytes()).unwrap_or(1);
            if info.kind == SlotKind::Input && times > 0 {
                expect_frames(&info.name, found, times)?;
            }
        }
        Ok(())
    }

    fn report(&self) -> Report {
        self.report.clone()
    }
}
