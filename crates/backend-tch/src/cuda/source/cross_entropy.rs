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
    let threads = vectors.div_ceil(4).next_multiple_of(32).min(1024);
    let count = vectors.div_ceil(threads);
    // Codes stay in registers if they are few; else every pass reads the row again.
    let kept = count * lanes <= 32;
    let load = codec::load(op.logits, lanes, "x0", "i", "code + KEEP(j)");
    let (mut gradient, mut outputs) = (String::new(), 0);
    let mut loss = String::new();
    if op.loss {
        let _ = writeln!(loss, "if (threadIdx.x == 0) ((float*)y0)[row] = loss;");
        outputs += 1;
    }
    let mut upstream = "1.0f".to_owned();
    let mut draws = false;
    if let Some(Gradient { result, upstream: dtype }) = op.gradient {
        upstream = codec::decode(dtype, "upstream_code[0]", false);
        draws = result.draws();
        if draws {
            let (bits, stream) = (codec::random_bits(result.how), result.stream);
            let _ = writeln!(
                gradient,
                "u32 random[{lanes}]; draws<{bits}, {lanes}>(noise_of(seed, step, {stream}u), i, random);"
            );
        }
        let _ = writeln!(gradient, "u32 out[{lanes}];");
        let _ = writeln!(gradient, "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) {{");
        let _ = writeln!(gradient, "const float share = expf(VALUE(j, e) - largest) * rest;");
        let _ = writeln!(
            gradient,
            "const float value = (share - (column + e == target ? 1.0f : 0.0f)) * factor; float rounded;"
        );
        let plain = Rounded { alpha: 1.0, ..result };
        emit_rounded(&mut gradient, &plain, "value", "out[e]", "rounded", "random[e]");
        gradient.push_str("}\n");
        let to = format!("y{outputs}");
        let _ = writeln!(gradient, "{}", codec::store(result.dtype, lanes, &to, "i", "out"));
        outputs += 1;
    }
    let has_gradient = op.gradient.is_some();
    let alpha = op.gradient.map_or(1.0, |gradient| gradient.result.alpha);
    let load_upstream = match op.gradient {
        Some(Gradient { upstream, .. }) => {
            format!(
                "u32 upstream_code[1]; {}",
                codec::load(upstream, 1, "x2", "0", "upstream_code")
            )
        }
        None => String::new(),
    };
    let inputs = if has_gradient { 3 } else { 2 };
    let value = codec::decode(op.logits, &format!("code[KEEP(j) + (e)]"), false);
    let source = fill(
        TEMPLATE,
        &[
            ("parameters", parameters(inputs, outputs, draws)),
            ("threads", threads.to_string()),
            ("classes", op.classes.to_string()),
            ("lanes", lanes.to_string()),
            ("count", count.to_string()),
            ("registers", if kept { count * lanes } else { lanes }.to_string()),
            ("keep", if kept { format!("(j) * {lanes}") } else { "0".to_owned() }),
            ("reload", if kept { String::new() } else { load.clone() }),
            ("load", load),
            ("value", format!("{} * {value}", literal(op.mult))),
            ("mult", literal(op.mult)),
            ("target_load", codec::load(op.logits, 1, "x0", "(u64)row * CLASSES + target", "own")),
            ("target_value", codec::decode(op.logits, "own[0]", false)),
            ("load_upstream", load_upstream),
            ("factor", format!("{} * {upstream}", literal(alpha))),
            ("loss", loss),
            ("has_gradient", u32::from(has_gradient).to_string()),
            ("gradient", gradient),
        ],
    );
    let params = inputs + outputs + if draws { 2 } else { 0 };
    let grid = [op.rows.max(1) as u32, 1, 1];
    Kernel { label: label.to_owned(), source, params, grid, threads: threads as u32 }
}
