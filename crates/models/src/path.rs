//! By which constant unit scaling changes a gradient on its way.

use onesigma_graph::{Graph, ValueId};

/// The product of `beta/alpha` from `from` back to `to`: the scaled gradient of `to` is this
/// constant times the true gradient, both from the same gradient of `from`. `None` if `from` does
/// not depend on `to`.
///
/// Where several ways lead from one to the other the first operand's is taken: inside a model the
/// constants of all ways agree, which is what the cut-edge rule demands.
pub(crate) fn gradient_constant(graph: &Graph, from: ValueId, to: ValueId) -> Option<f64> {
    let mut constants: Vec<Option<f64>> = vec![None; graph.values().len()];
    constants[to.index()] = Some(1.0);
    for node in graph.nodes() {
        let way = node
            .inputs
            .iter()
            .zip(&node.beta)
            .find_map(|(input, beta)| constants[input.index()].map(|constant| constant * beta));
        for (output, alpha) in node.outputs.iter().zip(&node.alpha) {
            if let Some(constant) = way.filter(|_| *output != to) {
                constants[output.index()] = Some(constant / alpha);
            }
        }
    }
    constants[from.index()]
}
