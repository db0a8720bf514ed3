//! Products of a few thousand terms: a thread for each quad of the result.

use super::unaligned;
use crate::ir::{Entry, Product, TensorId};
use crate::memory::Memory;
use crate::shader::fill;
use crate::shader::kernel::{Builder, Kernel, folded};

const SMALL: &str = include_str!("../../wgsl/matmul_small.wgsl");

/// Whether a product is too small for tiles to pay.
pub(crate) fn is_small(op: &Product) -> bool {
    op.m.saturating_mul(op.n).saturating_mul(op.k).saturating_mul(op.batch) <= 8192
}

/// The kernel of a small product.
pub(crate) fn small(entry: &Entry, memory: &Memory, op: &Product, label: &str) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    let Product { batch, m, n, k, .. } = *op;
    let mut reader = |tensor: TensorId, name: &str, at: [String; 4]| {
        let x = builder.bind(tensor);
        let each = at.map(|at| format!("x{x}_code({at})"));
        let codes = format!("vec4<u32>({})", each.join(", "));
        let bits = builder.library.decoded(builder.dtype(tensor), &codes);
        format!(
            "fn {name}(batch: u32, at: u32, k: u32) -> vec4<f32> {{\n    \
             return bitcast<vec4<f32>>({bits});\n}}\n"
        )
    };
    let left = match op.transpose_left {
        true => format!("batch * {}u + k * {m}u + at", m * k),
        false => format!("batch * {}u + at * {k}u + k", m * k),
    };
    let right = [0, 1, 2, 3].map(|lane| {
        let column = format!("min(at + {lane}u, {}u)", n - 1);
        match op.transpose_right {
            true => format!("batch * {}u + {column} * {k}u + k", n * k),
            false => format!("batch * {}u + k * {n}u + {column}", n * k),
        }
    });
    let left = reader(op.left, "left", [left.clone(), left.clone(), left.clone(), left]);
    let readers = left + &reader(op.right, "right", right);
    let mut results = String::new();
    if n.is_multiple_of(4) {
        builder.round(&mut results, &op.result, "sum", None, "(start / 4u)", "r");
        let store = builder.store(op.out, "(start / 4u)", "r_codes");
        results.push_str(&store);
    } else {
        results = unaligned(&mut builder, op.out, &op.result, "sum", n);
    }
    let quads = n.div_ceil(4);
    let text = fill(
        SMALL,
        &[
            ("count", (quads * m * batch).to_string()),
            ("quads", quads.to_string()),
            ("m", m.to_string()),
            ("n", n.to_string()),
            ("k", k.to_string()),
            ("batch_count", (quads * m).to_string()),
            ("numel", (m * n).to_string()),
            ("results", results),
        ],
    );
    builder.finish(label, &(readers + &text), folded(quads * m * batch, 64))
}
