//! Attention by a library: what it makes is unscaled, and in its own formats.

use onesigma_format::{Conversion, Rounding};
use onesigma_graph::{DType, Graph, Node as Source};

use super::Lowering;
use crate::cuda::ir::{AttentionSpec, Home, Node};
use crate::cuda::source::group::Rounded;

pub(super) fn attention_spec(
    graph: &Graph,
    node: &Source,
    causal: bool,
    scale: f64,
) -> AttentionSpec {
    let [q, k] = [0, 1].map(|at| graph.shape(node.inputs[at]).dims());
    AttentionSpec {
        batch: q[0],
        queries: q[1],
        keys: k[1],
        heads: q[2],
        key_heads: k[2],
        width: q[3],
        causal,
        scale,
        dtype: graph.value(node.inputs[0]).dtype,
    }
}

/// What the library's kernels round to, times `alpha`.
fn plain(spec: &AttentionSpec, alpha: f64) -> Rounded {
    let how = Conversion { rounding: Rounding::NearestEven, ..Conversion::SATURATE };
    Rounded { alpha, dtype: spec.dtype, how, stream: 0 }
}

impl Lowering<'_> {
    pub(super) fn attention(&mut self, node: &Source, causal: bool, scale: f64) {
        let spec = attention_spec(self.graph, node, causal, scale);
        let inputs = [0, 1, 2].map(|at| self.tensor_of(node.inputs[at]));
        let shape = self.shape(node.outputs[0]).clone();
        let raw = self.entry.tensor(shape.numel(), spec.dtype, Home::Library);
        let rows = spec.batch * spec.heads * spec.queries;
        let lse = self.entry.tensor(rows, DType::F32, Home::Library);
        self.emit(&node.name, Node::Attention { spec, inputs, out: raw, lse });
        let result = self.rounded(node, 0);
        let out = if (Rounded { stream: 0, ..result }) == plain(&spec, 1.0) {
            self.of[node.outputs[0].index()] = raw;
            raw
        } else {
            let out = self.result(node.outputs[0]);
            self.scaled(&node.name, raw, &shape, result, out);
            out
        };
        self.raw.insert(out, (raw, lse));
        let lse_value = node.outputs[1];
        if self.graph.value(lse_value).dtype == DType::F32 && node.alpha[1] == 1.0 {
            self.of[lse_value.index()] = lse;
        } else {
            let shape = self.shape(lse_value).clone();
            let result = self.rounded(node, 1);
            let out = self.result(lse_value);
            self.scaled(&node.name, lse, &shape, result, out);
        }
    }

    pub(super) fn attention_grad(
        &mut self,
        node: &Source,
        causal: bool,
        scale: f64,
        forward_alpha: f64,
    ) {
        let spec = attention_spec(self.graph, node, causal, scale);
        let [q, k, v, output, mut lse, mut dy] =
            [0, 1, 2, 3, 4, 5].map(|at| self.tensor_of(node.inputs[at]));
        let shape = self.shape(node.inputs[0]).clone();
        let raw = match self.raw.get(&output) {
            Some(&(raw, own_lse)) => {
                lse = own_lse;
                raw
            }
            None => {
                let raw = self.entry.tensor(shape.numel(), spec.dtype, Home::Temporary);
                self.scaled(&node.name, output, &shape, plain(&spec, 1.0 / forward_alpha), raw);
                raw
            }
        };
        if self.entry.tensors[dy].dtype != spec.dtype {
            let cast = self.entry.tensor(shape.numel(), spec.dtype, Home::Temporary);
            self.scaled(&node.name, dy, &shape, plain(&spec, 1.0), cast);
            dy = cast;
        }
        let outs = [0, 1, 2].map(|output| {
            let numel = self.shape(node.outputs[output]).numel();
            self.entry.tensor(numel, spec.dtype, Home::Library)
        });
        let inputs = [q, k, v, raw, lse, dy];
        self.emit(&node.name, Node::AttentionGrad { spec, inputs, outs });
        for (output, raw) in outs.into_iter().enumerate() {
            let shape = self.shape(node.outputs[output]).clone();
            let result = self.rounded(node, output);
            let out = self.result(node.outputs[output]);
            self.scaled(&node.name, raw, &shape, result, out);
        }
    }
}
