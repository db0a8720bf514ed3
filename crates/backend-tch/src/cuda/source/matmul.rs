//! Matrix products of any formats and sizes, for those that the tensor cores do not take.

use std::fmt::Write;

use onesigma_graph::DType;

use super::group::{Rounded, emit_rounded, scaled};
use super::{Kernel, codec, fill, parameters};

const TEMPLATE: &str = include_str!("../kernels/matmul.cu");

/// `c [batch, m, n] = alpha a b`, row-major.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    /// Whether each item of the batch has a right operand of its own.
    pub right_batched: bool,
    pub left: DType,
    pub right: DType,
    /// The left operand is stored `[m, k]`, else `[k, m]`.
    pub left_by_k: bool,
    /// The right operand is stored `[n, k]`, else `[k, n]`.
    pub right_by_k: bool,
    pub result: Rounded,
    /// Elements between the items of a batch of left operands, right operands and results, if they
    /// do not follow each other.
    pub steps: Option<[usize; 3]>,
    pub epilogue: Epilogue,
}

/// What a product does with its sums before they are rounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Epilogue {
    #[default]
    None,
    /// The result is the GELU (in its form with tanh) of the sums, which are kept beside it.
    Gelu,
    /// The result is the sums times the derivative of GELU at a tensor of the result's shape.
    GeluGrad,
}

impl Product {
    /// Elements between the items of a batch: left operands, right operands, results.
    pub(crate) fn batch_steps(&self) -> [usize; 3] {
        let right = if self.right_batched { self.n * self.k } else { 0 };
        self.steps.unwrap_or([self.m * self.k, right, self.m * self.n])
    }
}

/// The kernel. Parameters: left, right, result, then `seed, step` if it draws.
pub(crate) fn kernel(op: &Product, label: &str) -> Kernel {
    let Product { m, n, k, batch, .. } = *op;
    let place = |by_k: bool, outer: &str, extent: usize| match by_k {
        true => format!("(u64)({outer}) * {k} + p"),
        false => format!("(u64)p * {extent} + ({outer})"),
    };
    let mut store = String::new();
    let draws = op.result.draws();
    let _ = writeln!(store, "float v_c[1] = {{{}}};", scaled(op.result.alpha, "total[r][c]"));
    emit_rounded(&mut store, &op.result, 1, "_c", false);
    let _ = writeln!(store, "{}", codec::store(op.result.dtype, 1, "y0", "i", "w_c"));
    let load = |dtype: DType, from: &str, at: &str| {
        let (load, unpack) = (
            codec::load(dtype, 1, from, at, "one"),
            codec::unpack(dtype, 1, "one", "&value", false),
        );
        format!("u32 one[1]; {load} {unpack}")
    };
    let source = fill(
        TEMPLATE,
        &[
            ("parameters", parameters(2, 1, draws)),
            ("m", m.to_string()),
            ("n", n.to_string()),
            ("k", k.to_string()),
            ("right_step", if op.right_batched { k * n } else { 0 }.to_string()),
            (
                "load_left",
                load(op.left, "x0", &format!("left_base + {}", place(op.left_by_k, "row", m))),
            ),
            (
                "load_right",
                load(
                    op.right,
                    "x1",
                    &format!("right_base + {}", place(op.right_by_k, "column", n)),
                ),
            ),
            // Threads walk along the axis that lies together in memory.
            ("left_by_k", u32::from(op.left_by_k).to_string()),
            ("right_by_k", u32::from(op.right_by_k).to_string()),
            ("store", store),
        ],
    );
    let params = 3 + if draws { 2 } else { 0 };
    let grid = [n.div_ceil(64).max(1) as u32, m.div_ceil(64).max(1) as u32, batch.max(1) as u32];
    Kernel { label: label.to_owned(), source, params, grid, threads: 256 }
}
