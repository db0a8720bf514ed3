//! Softmax and cross-entropy: the loss of each row, the gradient of the logits, or both in one
//! pass. The gradient may take the place of the logits.

use std::fmt::Write;

use onesigma_graph::DType;

use super::group::{Group, Rounded, emit_rounded};
use super::{Kernel, codec, fill, literal, parameters};

const TEMPLATE: &str = include_str!("../kernels/cross_entropy.cu");

/// What is computed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct CrossEntropy {
    pub rows: usize,
    pub classes: usize,
    pub logits: DType,
    pub mult: f64,
    /// The loss of each row is written, in F32.
    pub loss: bool,
    /// The gradient is written; its `alpha` contains `mult` and the weight of a row.
    pub gradient: Option<Gradient>,
}

/// The gradient of the logits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Gradient {
    pub result: Rounded,
    /// Type of the upstream gradient, a scalar.
    pub upstream: DType,
}

/// The kernel. Parameters: logits, targets, upstream gradient (if there is a gradient), then the
/// losses and the gradient as far as they are written, then `seed, step` if it draws.
pub(crate) fn kernel(op: &CrossEntropy, label: &str) -> Kernel {
    let lanes = Group::lanes(op.classes);
    let vectors = op.classes.div_ceil(lanes);
    let threads = vectors.div_ceil(4).next_multiple_of(32).min(512);
    let count = vectors.div_ceil(threads);
    let words = codec::words(op.logits, lanes);
    // Logits stay in registers if they are few; else every pass reads the row again.
    let kept = count * words <= 32;
    let load = codec::load(op.logits, lanes, "x0", "i", "kept + KEEP(j)");
    let unpack = codec::unpack(op.logits, lanes, "(kept + KEEP(j))", "x", false);
    let (mut gradient, mut outputs) = (String::new(), 0);
    let mut loss = String::new();
    if op.loss {
        let _ = writeln!(loss, "if (threadIdx.x == 0) ((float*)y0)[row] = loss;");
        outputs += 1;
    }
    let (mut load_upstream, mut draws, mut alpha) = (String::new(), false, 1.0);
    if let Some(Gradient { result, upstream }) = op.gradient {
        draws = result.draws();
        alpha = result.alpha;
        load_upstream = format!(
            "u32 one[1]; {} {}",
            codec::load(upstream, 1, "x2", "0", "one"),
            codec::unpack(upstream, 1, "one", "&upstream", false),
        );
        let plain = Rounded { alpha: 1.0, ..result };
        emit_rounded(&mut gradient, &plain, lanes, "_g", false);
        let to = format!("y{outputs}");
        let _ = writeln!(gradient, "{}", codec::store(result.dtype, lanes, &to, "i", "w_g"));
        outputs += 1;
    }
    let has_gradient = op.gradient.is_some();
    let inputs = if has_gradient { 3 } else { 2 };
    let target = format!(
        "u32 one[1]; {} {}",
        codec::load(op.logits, 1, "x0", "(u64)row * CLASSES + target", "one"),
        codec::unpack(op.logits, 1, "one", "&own", false),
    );
    let source = fill(
        TEMPLATE,
        &[
            ("parameters", parameters(inputs, outputs, draws)),
            ("threads", threads.to_string()),
            ("classes", op.classes.to_string()),
            ("lanes", lanes.to_string()),
            ("count", count.to_string()),
            ("registers", if kept { count * words } else { words }.to_string()),
            ("keep", if kept { format!("(j) * {words}") } else { "0".to_owned() }),
            ("together", if threads == 512 { 2 } else { 1 }.to_string()),
            ("reload", if kept { unpack } else { format!("{load} {unpack}") }),
            ("load", if kept { load } else { String::new() }),
            ("mult", literal(op.mult)),
            ("target_load", target),
            ("load_upstream", load_upstream),
            ("alpha", literal(alpha)),
            ("loss", loss),
            ("has_gradient", u32::from(has_gradient).to_string()),
            ("gradient", gradient),
        ],
    );
    let params = inputs + outputs + if draws { 2 } else { 0 };
    let grid = [op.rows.max(1) as u32, 1, 1];
    Kernel { label: label.to_owned(), source, params, grid, threads: threads as u32 }
}
