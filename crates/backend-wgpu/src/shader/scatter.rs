//! The gradient of an embedding: rows of updates summed into the rows of a table, in a fixed
//! order, so that equal runs give equal bits.

use super::kernel::{Builder, Kernel, folded};
use super::{fill, scalar_literal};
use crate::ir::{Entry, Scatter};
use crate::memory::Memory;

const ORDER: &str = include_str!("../wgsl/scatter_order.wgsl");
const STARTS: &str = include_str!("../wgsl/scatter_starts.wgsl");
const SUM: &str = include_str!("../wgsl/scatter_sum.wgsl");
const THREADS: usize = 64;

/// The kernel that sorts the positions by id.
pub(crate) fn order(entry: &Entry, memory: &Memory, op: &Scatter, label: &str) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    let ids = builder.bind(op.ids);
    let sorted = builder.bind_words(op.sorted);
    let order = builder.bind_words(op.order);
    let text = fill(
        ORDER,
        &[
            ("count", op.count.to_string()),
            ("ids", format!("x{ids}")),
            ("sorted", format!("x{sorted}")),
            ("order", format!("x{order}")),
        ],
    );
    builder.finish(&format!("{label} (order)"), &text, folded(op.count, 256))
}

/// The kernel that finds where the updates of each row begin.
pub(crate) fn starts(entry: &Entry, memory: &Memory, op: &Scatter, label: &str) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    let sorted = builder.bind(op.sorted);
    let starts = builder.bind_words(op.starts);
    let text = fill(
        STARTS,
        &[
            ("count", op.count.to_string()),
            ("rows", op.rows.to_string()),
            ("sorted", format!("x{sorted}")),
            ("starts", format!("x{starts}")),
        ],
    );
    builder.finish(&format!("{label} (starts)"), &text, folded(op.rows + 1, THREADS))
}

/// The kernel that sums.
pub(crate) fn sum(entry: &Entry, memory: &Memory, op: &Scatter, label: &str) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    let starts = builder.bind(op.starts);
    let order = builder.bind(op.order);
    let updates = builder.bind(op.updates);
    let out = builder.bind(op.out);
    let dtype = builder.dtype(op.updates);
    let width = op.width;
    let each = |row: &str, codes: &str, lane: &str, builder: &mut Builder<'_>| {
        let bits = builder.library.decoded(dtype, codes);
        format!(
            "let row{lane} = {row};\n    \
             let end{lane} = x{starts}_code(row{lane} + 1u);\n    \
             for (var at = x{starts}_code(row{lane}); at < end{lane}; at++) {{\n        \
             let update = x{order}_code(at);\n        \
             total{lane} += bitcast<vec4<f32>>({bits}){lane};\n    }}\n    "
        )
    };
    let sum = match width.is_multiple_of(4) {
        true => {
            let quads = width / 4;
            let codes = format!("x{updates}_codes(update * {quads}u + quad % {quads}u)");
            each(&format!("quad / {quads}u"), &codes, "", &mut builder)
        }
        false => ["x", "y", "z", "w"]
            .iter()
            .enumerate()
            .map(|(n, lane)| {
                let i = format!("(4u * quad + {n}u)");
                let codes =
                    format!("vec4<u32>(x{updates}_code(update * {width}u + {i} % {width}u))");
                let text =
                    each(&format!("{i} / {width}u"), &codes, &format!(".{lane}"), &mut builder);
                text.replace(&format!("row.{lane}"), &format!("row_{lane}"))
                    .replace(&format!("end.{lane}"), &format!("end_{lane}"))
            })
            .collect(),
    };
    let quads = (op.rows * width).div_ceil(4);
    let text = fill(
        SUM,
        &[
            ("quads", quads.to_string()),
            ("sum", sum.trim_end().to_owned()),
            ("out", format!("x{out}")),
            ("alpha", scalar_literal(op.alpha)),
        ],
    );
    builder.finish(label, &text, folded(quads, THREADS))
}
