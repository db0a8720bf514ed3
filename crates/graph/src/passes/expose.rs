//! Makes the f32 result of every op a tensor of its own, before it is rounded into its format.
//!
//! A node whose result has a narrow format becomes the same node with an F32 result and a cast
//! with the node's conversion and random stream. As results are computed in f32 and rounded once
//! (the numeric contract of backends), everything downstream keeps its bits; what a format flushes,
//! clips or rounds can be seen by comparing the two.

use super::Renaming;
use crate::{DType, Graph, Op, Result, ValueId};
use onesigma_format::Conversion;

/// A tensor before and after it is rounded into its format, in the graph that [`expose`] gives.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Exposed {
    /// The F32 result of the op; for movement ops and slots the tensor itself.
    pub exact: ValueId,
    /// What the rest of the graph reads: `exact` itself if the tensor is not rounded.
    pub stored: ValueId,
    /// Element type of `stored`.
    pub dtype: DType,
    /// How `exact` is rounded into it.
    pub conversion: Conversion,
}

/// Rewrites a graph; gives it with one entry for every value of the old graph, by its index.
///
/// # Errors
/// None for a graph whose nodes were checked when they were built; else those of
/// [`NodeBuilder::all`](crate::NodeBuilder::all).
pub fn expose(graph: &Graph) -> Result<(Graph, Vec<Exposed>)> {
    let mut result = graph.successor();
    let mut renamed = Renaming::new(graph);
    let mut all: Vec<Option<Exposed>> = vec![None; graph.values().len()];
    for node in graph.nodes() {
        let outputs = result.carry(node, graph, renamed.all(&node.inputs));
        let is_copy = matches!(node.op, Op::Slot(_)) || node.op.is_movement();
        let outer = result.set_layer(node.layer);
        for (output, (&old, &exact)) in node.outputs.iter().zip(&outputs).enumerate() {
            let (dtype, conversion) = (graph.value(old).dtype, graph.value(old).conversion);
            let is_narrow = matches!(dtype, DType::Float(_)) && dtype != DType::F32;
            let mut stored = exact;
            if is_narrow && !is_copy {
                result.values[exact.index()].dtype = DType::F32;
                let producer = result.value(exact).producer.index();
                if let Op::Cast { to } = &mut result.nodes[producer].op {
                    *to = DType::F32;
                }
                stored = result
                    .op(Op::Cast { to: dtype }, &[exact])
                    .stored_as(dtype, conversion)
                    .named_fully(graph.value_name(old))
                    .role(graph.value(old).role)
                    .one()?;
                if let Some(cast) = result.nodes.last_mut() {
                    cast.stream = node.stream_of(output);
                }
            }
            renamed.set(old, stored);
            all[old.index()] = Some(Exposed { exact, stored, dtype, conversion });
        }
        result.set_layer(outer);
    }
    renamed.writes(graph, &mut result);
    result.continue_streams_of(graph);
    // Every value is the result of a node, so none is missing.
    Ok((result, all.into_iter().flatten().collect()))
}
