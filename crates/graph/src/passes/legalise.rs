//! Makes a graph runnable on a backend that lacks fused ops or formats.
//!
//! A pure function of the graph and of what the backend supports. A fused op that is not there
//! runs in F32 if that is there, else as its decomposition; a core op without kernels for its
//! formats reads upcast operands, or makes an F32 result that a cast rounds. Every rewrite is
//! recorded with its numeric effect.

use super::Renaming;
use crate::{DType, Error, Graph, Node, Op, Result, Value, ValueId, decompose};
use std::fmt;

/// What a backend makes of an op with given element types.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Support {
    /// The op cannot run; legalisation decomposes fused ops and fails for core ops.
    No,
    /// The op runs through a detour (decoded copies, a slower unit) with the same results.
    Emulated,
    /// The op runs as it stands.
    Native,
}

/// What a backend supports: `Backend::supports` as a function of op, types of the operands and
/// type of a result.
pub type Supports<'a> = dyn Fn(&Op, &[DType], DType) -> Support + 'a;

/// Support of a node: the least over its results. Slots need none: they are bytes.
pub fn node_support(graph: &Graph, node: &Node, supports: &Supports<'_>) -> Support {
    if matches!(node.op, Op::Slot(_)) {
        return Support::Native;
    }
    let inputs: Vec<DType> = node.inputs.iter().map(|&input| graph.value(input).dtype).collect();
    let outputs = node.outputs.iter().map(|&output| graph.value(output).dtype);
    outputs.map(|output| supports(&node.op, &inputs, output)).min().unwrap_or(Support::No)
}

/// How a node was rewritten.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum RewriteKind {
    /// A fused op runs as core ops.
    Decomposed,
    /// Operands are cast to F32 first.
    OperandsUpcast(Vec<DType>),
    /// The result is made in F32 and cast to its type.
    ResultCast(DType),
}

/// One rewrite.
#[derive(Clone, PartialEq, Debug)]
pub struct Rewrite {
    /// Name of the node.
    pub node: String,
    /// Name of its op.
    pub op: &'static str,
    /// What was done.
    pub kind: RewriteKind,
}

impl Rewrite {
    /// What it changes in the numbers.
    pub fn effect(&self) -> &'static str {
        match self.kind {
            RewriteKind::Decomposed => {
                "intermediate tensors are rounded to F32; results agree to a few F32 roundings"
            }
            RewriteKind::OperandsUpcast(_) => "none: every value of a format is exact in F32",
            RewriteKind::ResultCast(_) => {
                "none beyond the contract: the F32 result is rounded once into its format"
            }
        }
    }
}

impl fmt::Display for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, op, kind } = self;
        match kind {
            RewriteKind::Decomposed => write!(f, "{node}: {op} runs as core ops")?,
            RewriteKind::OperandsUpcast(types) => {
                let types: Vec<String> = types.iter().map(ToString::to_string).collect();
                write!(f, "{node}: {op} reads {} upcast to F32", types.join(", "))?;
            }
            RewriteKind::ResultCast(dtype) => {
                write!(f, "{node}: {op} makes F32, cast to {dtype}")?;
            }
        }
        write!(f, " ({})", self.effect())
    }
}

/// A legal graph and how it differs.
#[derive(Clone, PartialEq, Debug)]
pub struct Legalised {
    /// The graph, of which the backend supports every node.
    pub graph: Graph,
    /// What was rewritten, in execution order.
    pub rewrites: Vec<Rewrite>,
}

/// Rewrites a graph so that `supports` denies none of its nodes.
///
/// # Errors
/// [`Error::Unsupported`] for a node that no rewrite helps, or that `strict` forbids to rewrite.
pub fn legalise(graph: &Graph, supports: &Supports<'_>, strict: bool) -> Result<Legalised> {
    let mut pass = Pass { result: graph.successor(), rewrites: Vec::new(), supports, strict };
    let mut renamed = Renaming::new(graph);
    for node in graph.nodes() {
        let inputs = renamed.all(&node.inputs);
        let outputs = pass.node(graph, node, inputs)?;
        renamed.set_all(&node.outputs, &outputs);
    }
    renamed.writes(graph, &mut pass.result);
    pass.result.continue_streams_of(graph);
    Ok(Legalised { graph: pass.result, rewrites: pass.rewrites })
}

struct Pass<'a> {
    result: Graph,
    rewrites: Vec<Rewrite>,
    supports: &'a Supports<'a>,
    strict: bool,
}

/// Which side of a node is put into F32.
#[derive(Clone, Copy)]
struct Detour {
    operands: bool,
    results: bool,
}

impl Pass<'_> {
    fn node(&mut self, from: &Graph, node: &Node, inputs: Vec<ValueId>) -> Result<Vec<ValueId>> {
        if node_support(from, node, self.supports) != Support::No {
            return Ok(self.result.carry(node, from, inputs));
        }
        if self.strict {
            return Err(unsupported(from, node));
        }
        for (operands, results) in [(false, true), (true, false), (true, true)] {
            let detour = Detour { operands, results };
            if self.serves(from, node, detour) {
                return self.detour(from, node, inputs, detour);
            }
        }
        if !node.op.is_fused() {
            return Err(unsupported(from, node));
        }
        self.record(node, RewriteKind::Decomposed);
        // The core ops may need casts in turn.
        let only_this = single(from, node);
        let parts = decompose(&only_this.graph, |_| true)?;
        let mut renamed = Renaming::new(&parts);
        let mut operands = inputs.iter();
        for part in parts.nodes() {
            if let (Op::Slot(_), Some(&operand)) = (&part.op, operands.clone().next()) {
                operands.next();
                renamed.set(part.outputs[0], operand);
                continue;
            }
            let inputs = renamed.all(&part.inputs);
            let outputs = self.node(&parts, part, inputs)?;
            renamed.set_all(&part.outputs, &outputs);
        }
        Ok(parts.writes().iter().map(|&(_, value)| renamed.get(value)).collect())
    }

    fn record(&mut self, node: &Node, kind: RewriteKind) {
        self.rewrites.push(Rewrite { node: node.name.clone(), op: node.op.name(), kind });
    }

    /// Whether the backend runs the node and its casts with a side in F32.
    fn serves(&self, from: &Graph, node: &Node, detour: Detour) -> bool {
        if node.op.is_movement() && !(detour.operands && detour.results)
            || matches!(node.op, Op::Cast { .. })
        {
            return false;
        }
        let cast = |from: DType, to: DType| {
            from == to || (self.supports)(&Op::Cast { to }, &[from], to) != Support::No
        };
        let types = |ids: &[ValueId]| -> Vec<DType> {
            ids.iter().map(|&id| from.value(id).dtype).collect()
        };
        let (own_inputs, own_outputs) = (types(&node.inputs), types(&node.outputs));
        let widen = |types: &[DType]| -> Vec<DType> { types.iter().map(|&t| wide(t)).collect() };
        let inputs = if detour.operands { widen(&own_inputs) } else { own_inputs.clone() };
        let outputs = if detour.results { widen(&own_outputs) } else { own_outputs.clone() };
        let changes = inputs != own_inputs || outputs != own_outputs;
        changes
            && own_inputs.iter().zip(&inputs).all(|(&own, &new)| cast(own, new))
            && own_outputs.iter().zip(&outputs).all(|(&own, &new)| cast(new, own))
            && outputs
                .iter()
                .all(|&output| (self.supports)(&node.op, &inputs, output) != Support::No)
    }

    fn detour(
        &mut self,
        from: &Graph,
        node: &Node,
        mut inputs: Vec<ValueId>,
        detour: Detour,
    ) -> Result<Vec<ValueId>> {
        let outer = self.result.set_layer(node.layer);
        if detour.operands {
            let mut types = Vec::new();
            for input in &mut inputs {
                let value = self.result.value(*input);
                let (dtype, role) = (value.dtype, value.role);
                if wide(dtype) != dtype {
                    types.push(dtype);
                    let name = format!("{}.upcast", node.name);
                    let cast = self.result.op(Op::Cast { to: DType::F32 }, &[*input]);
                    *input = cast.named_fully(name).role(role).one()?;
                }
            }
            if !types.is_empty() {
                self.record(node, RewriteKind::OperandsUpcast(types));
            }
        }
        let mut outputs = self.result.carry(node, from, inputs);
        if detour.results {
            for output in &mut outputs {
                let value = self.result.value(*output).clone();
                if wide(value.dtype) == value.dtype {
                    continue;
                }
                self.record(node, RewriteKind::ResultCast(value.dtype));
                let raw = &mut self.result.values[output.index()];
                raw.dtype = DType::F32;
                raw.conversion = onesigma_format::Conversion::SATURATE;
                let cast = self
                    .result
                    .op(Op::Cast { to: value.dtype }, &[*output])
                    .stored_as(value.dtype, value.conversion)
                    .named_fully(node.name.clone())
                    .one()?;
                self.result.values[cast.index()].role = value.role;
                // The cast rounds what the node would have rounded, with the same random bits.
                if let Some(last) = self.result.nodes.last_mut() {
                    last.stream = node.stream_of(value.output);
                }
                *output = cast;
            }
        }
        self.result.set_layer(outer);
        Ok(outputs)
    }
}

/// F32 for every float, integers as they are.
fn wide(dtype: DType) -> DType {
    match dtype {
        DType::Float(_) => DType::F32,
        DType::U32 => DType::U32,
    }
}

/// A node on its own: its operands are slots, and its results are written to slots.
fn single(from: &Graph, node: &Node) -> Single {
    let mut graph = Graph::with_streams_from(node.stream);
    graph.set_layer(node.layer);
    let slot = |n: usize| crate::SlotId::new(n);
    let inputs: Vec<ValueId> = node
        .inputs
        .iter()
        .enumerate()
        .map(|(n, &input)| {
            let Value { shape, dtype, role, .. } = from.value(input).clone();
            let name = format!("operand{n}");
            let kind = crate::SlotKind::Input;
            graph.read(slot(n), &crate::Slot { name, kind, shape, dtype, role })
        })
        .collect();
    let outputs = graph.carry(node, from, inputs);
    for (n, &output) in outputs.iter().enumerate() {
        graph.write(slot(node.inputs.len() + n), output);
    }
    Single { graph }
}

struct Single {
    graph: Graph,
}

fn unsupported(graph: &Graph, node: &Node) -> Error {
    let list = |ids: &[ValueId]| {
        ids.iter().map(|&id| graph.value(id).describe()).collect::<Vec<_>>().join(", ")
    };
    Error::Unsupported {
        node: node.name.clone(),
        op: node.op.name(),
        inputs: list(&node.inputs),
        output: list(&node.outputs),
    }
}
