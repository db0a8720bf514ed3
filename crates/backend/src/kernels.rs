//! What a backend writes that has kernels only: one method for each core op.

use crate::reference::RefKernels;
use crate::{Caps, Error, Result, Support};
use onesigma_format::Noise;
use onesigma_graph::expr::Expr;
use onesigma_graph::passes::legalise::{Supports, node_support};
use onesigma_graph::{DType, Distribution, Graph, Node, Op, ReduceKind, Shape, Value, ValueId};

/// The node that a kernel runs, with the description of operands and results.
///
/// A kernel's result is `alpha` times the op's function, rounded once into the result's element
/// type by its conversion. All shapes and types have been checked.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The node.
    pub node: &'a Node,
    /// Shapes and element types of the operands.
    pub inputs: &'a [&'a Value],
    /// Shapes, element types and conversions of the results.
    pub outputs: &'a [&'a Value],
    /// The program's seed, low word first; zeros if it has none.
    pub seed: [u32; 2],
    /// The program's step; 0 if it has none.
    pub step: u32,
}

impl Call<'_> {
    /// The first result.
    pub fn output(&self) -> &Value {
        self.outputs[0]
    }

    /// Scale of the first result.
    pub fn alpha(&self) -> f64 {
        self.node.alpha[0]
    }

    /// The random numbers of result `output`.
    pub fn noise(&self, output: usize) -> Noise {
        crate::noise(self.seed, self.step, self.node.stream_of(output))
    }

    /// The error of a kernel that does not exist.
    pub fn unsupported(&self, backend: &str) -> Error {
        unsupported(backend, self.node, self.inputs, self.outputs)
    }
}

/// The error that names a node that a backend cannot run, with its element types.
pub fn unsupported(backend: &str, node: &Node, inputs: &[&Value], outputs: &[&Value]) -> Error {
    let list = |values: &[&Value]| {
        values.iter().map(|value| value.describe()).collect::<Vec<_>>().join(", ")
    };
    Error::Unsupported {
        backend: backend.to_owned(),
        op: node.op.name(),
        node: node.name.clone(),
        types: format!("operands ({}) and results ({})", list(inputs), list(outputs)),
    }
}

/// Refuses a graph with a node that a backend denies; fused ops are taken as they are or as their
/// decomposition.
///
/// # Errors
/// [`Error::Unsupported`] for the first such node.
pub fn expect_supported(backend: &str, graph: &Graph, supports: &Supports<'_>) -> Result<()> {
    let denied = |node: &&Node| node_support(graph, node, supports) == Support::No;
    let Some(node) = graph.nodes().iter().find(denied) else { return Ok(()) };
    let values = |ids: &[ValueId]| ids.iter().map(|&id| graph.value(id)).collect::<Vec<_>>();
    Err(unsupported(backend, node, &values(&node.inputs), &values(&node.outputs)))
}

/// One method for each core op, of which three are required: the others run on the host until the
/// device has kernels for them. [`OpByOp`](crate::OpByOp) makes a [`Backend`](crate::Backend) of
/// it: it keeps slots and frames, runs nodes in order and frees tensors after their last use.
pub trait Kernels {
    /// A tensor on the device. Its shape and element type are those of its [`Value`].
    type Tensor;

    /// Short name: `cpu`.
    fn name(&self) -> &str;

    /// What the device is and can hold.
    fn caps(&self) -> Caps;

    /// As [`Backend::supports`](crate::Backend::supports). Fused ops: `Native` calls
    /// [`fused`](Self::fused), `Emulated` runs their decomposition.
    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support;

    /// A tensor from little-endian codes.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::OutOfMemory`]; so for every method.
    fn upload(&self, shape: &Shape, dtype: DType, bytes: &[u8]) -> Result<Self::Tensor>;

    /// The little-endian codes of a tensor; `bytes` has their length.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn download(
        &self,
        tensor: &Self::Tensor,
        shape: &Shape,
        dtype: DType,
        bytes: &mut [u8],
    ) -> Result<()>;

    /// [`Op::MatMul`].
    ///
    /// # Errors
    /// [`Error::Device`].
    fn mat_mul(
        &self,
        call: &Call<'_>,
        left: &Self::Tensor,
        right: &Self::Tensor,
        transpose_left: bool,
        transpose_right: bool,
    ) -> Result<Self::Tensor>;

    /// [`Op::Map`].
    ///
    /// # Errors
    /// [`Error::Device`].
    fn map(&self, call: &Call<'_>, inputs: &[&Self::Tensor], expr: &Expr) -> Result<Self::Tensor>;

    /// [`Op::Reduce`] of an expression over `shape`.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn reduce(
        &self,
        call: &Call<'_>,
        inputs: &[&Self::Tensor],
        kind: ReduceKind,
        expr: &Expr,
        shape: &Shape,
        axes: &[usize],
    ) -> Result<Self::Tensor>;

    /// [`Op::Gather`].
    ///
    /// # Errors
    /// [`Error::Device`].
    fn gather(
        &self,
        call: &Call<'_>,
        table: &Self::Tensor,
        ids: &Self::Tensor,
    ) -> Result<Self::Tensor> {
        on_host(self, call, &[table, ids])
    }

    /// [`Op::ScatterAdd`].
    ///
    /// # Errors
    /// [`Error::Device`].
    fn scatter_add(
        &self,
        call: &Call<'_>,
        updates: &Self::Tensor,
        ids: &Self::Tensor,
    ) -> Result<Self::Tensor> {
        on_host(self, call, &[updates, ids])
    }

    /// [`Op::Permute`].
    ///
    /// # Errors
    /// [`Error::Device`].
    fn permute(&self, call: &Call<'_>, x: &Self::Tensor, _axes: &[usize]) -> Result<Self::Tensor> {
        on_host(self, call, &[x])
    }

    /// [`Op::Reshape`].
    ///
    /// # Errors
    /// [`Error::Device`].
    fn reshape(&self, call: &Call<'_>, x: &Self::Tensor) -> Result<Self::Tensor> {
        on_host(self, call, &[x])
    }

    /// [`Op::Slice`].
    ///
    /// # Errors
    /// [`Error::Device`].
    fn slice(
        &self,
        call: &Call<'_>,
        x: &Self::Tensor,
        _axis: usize,
        _start: usize,
        _len: usize,
    ) -> Result<Self::Tensor> {
        on_host(self, call, &[x])
    }

    /// [`Op::Concat`].
    ///
    /// # Errors
    /// [`Error::Device`].
    fn concat(
        &self,
        call: &Call<'_>,
        inputs: &[&Self::Tensor],
        _axis: usize,
    ) -> Result<Self::Tensor> {
        on_host(self, call, inputs)
    }

    /// [`Op::Cast`].
    ///
    /// # Errors
    /// [`Error::Device`].
    fn cast(&self, call: &Call<'_>, x: &Self::Tensor) -> Result<Self::Tensor> {
        on_host(self, call, &[x])
    }

    /// [`Op::Random`]: element `i` is made of word `i` of the stream `call.noise(0)`.
    ///
    /// ```text
    /// Uniform     low + (high - low) * uniform(word)
    /// Normal      mean + std * normal(word)
    /// Bernoulli   1 where uniform(word) < p, else 0
    /// ```
    ///
    /// with `uniform` and `normal` of `onesigma_format::philox`.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn random(&self, call: &Call<'_>, _distribution: Distribution) -> Result<Self::Tensor> {
        on_host(self, call, &[])
    }

    /// A fused op that [`supports`](Self::supports) calls `Native`: all its results.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the backend has fused kernels.
    fn fused(&self, call: &Call<'_>, _inputs: &[&Self::Tensor]) -> Result<Vec<Self::Tensor>> {
        Err(call.unsupported(self.name()))
    }
}

/// Runs a node on the host, by the reference kernels: downloads operands, uploads the result.
///
/// # Errors
/// Those of the transfers.
pub fn on_host<K: Kernels + ?Sized>(
    kernels: &K,
    call: &Call<'_>,
    inputs: &[&K::Tensor],
) -> Result<K::Tensor> {
    let mut operands = Vec::with_capacity(inputs.len());
    for (tensor, value) in inputs.iter().zip(call.inputs) {
        let mut codes = vec![0; value.bytes()];
        kernels.download(tensor, &value.shape, value.dtype, &mut codes)?;
        operands.push(codes);
    }
    let operands: Vec<&[u8]> = operands.iter().map(Vec::as_slice).collect();
    let value = call.output();
    match codes_on_host(call, &operands)?.first() {
        Some(codes) => kernels.upload(&value.shape, value.dtype, codes),
        None => Err(call.unsupported(kernels.name())),
    }
}

/// Runs a core op on the host, by the reference kernels: from little-endian codes of the operands to
/// those of the results. A backend without [`Kernels`] begins with it.
///
/// # Errors
/// [`Error::Unsupported`] for a fused op, which runs as its
/// [decomposition](onesigma_graph::decompose()).
pub fn codes_on_host(call: &Call<'_>, inputs: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
    let host = RefKernels { exact: false };
    let mut operands = Vec::with_capacity(inputs.len());
    for (codes, value) in inputs.iter().zip(call.inputs) {
        operands.push(host.upload(&value.shape, value.dtype, codes)?);
    }
    let operands: Vec<&Vec<f64>> = operands.iter().collect();
    let mut results = Vec::with_capacity(call.outputs.len());
    for (result, value) in dispatch(&host, call, &operands)?.iter().zip(call.outputs) {
        let mut codes = vec![0; value.bytes()];
        host.download(result, &value.shape, value.dtype, &mut codes)?;
        results.push(codes);
    }
    Ok(results)
}

/// Runs the kernel of a node.
pub(crate) fn dispatch<K: Kernels>(
    kernels: &K,
    call: &Call<'_>,
    x: &[&K::Tensor],
) -> Result<Vec<K::Tensor>> {
    let one = match &call.node.op {
        Op::MatMul { transpose_left, transpose_right } => {
            kernels.mat_mul(call, x[0], x[1], *transpose_left, *transpose_right)
        }
        Op::Map { expr, .. } => kernels.map(call, x, expr),
        Op::Reduce { kind, expr, shape, axes, .. } => {
            kernels.reduce(call, x, *kind, expr, shape, axes)
        }
        Op::Gather => kernels.gather(call, x[0], x[1]),
        Op::ScatterAdd { .. } => kernels.scatter_add(call, x[0], x[1]),
        Op::Permute { axes } => kernels.permute(call, x[0], axes),
        Op::Reshape { .. } => kernels.reshape(call, x[0]),
        Op::Slice { axis, start, len } => kernels.slice(call, x[0], *axis, *start, *len),
        Op::Concat { axis } => kernels.concat(call, x, *axis),
        Op::Cast { .. } => kernels.cast(call, x[0]),
        Op::Random { distribution, .. } => kernels.random(call, *distribution),
        op if op.is_fused() => return kernels.fused(call, x),
        _ => Err(call.unsupported(kernels.name())),
    };
    one.map(|tensor| vec![tensor])
}
