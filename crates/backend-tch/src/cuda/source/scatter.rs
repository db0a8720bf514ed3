//! The gradient of an embedding: rows of updates summed into the rows of a table, in a fixed
//! order, so that equal runs give equal bits.

use std::fmt::Write;

use onesigma_graph::DType;

use super::group::{Group, Rounded, emit_rounded};
use super::{Kernel, blocks, codec, fill, parameters};

const ORDER: &str = include_str!("../kernels/scatter_order.cu");
const SUM: &str = include_str!("../kernels/scatter_sum.cu");

/// Sum into row `ids[i]` of row `i` of the updates.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Scatter {
    /// Rows of the table.
    pub rows: usize,
    /// Number of ids.
    pub count: usize,
    pub width: usize,
    pub updates: DType,
    pub result: Rounded,
}

impl Scatter {
    /// Words of the two work spaces: first and next place of each row, and the order.
    pub(crate) fn workspaces(&self) -> [usize; 2] {
        [2 * (self.rows + 1), self.count]
    }
}

/// The kernel that lists for each row the ids that name it. Parameters: ids, places, order.
pub(crate) fn order(op: &Scatter, label: &str) -> Kernel {
    let source = fill(
        ORDER,
        &[
            ("parameters", parameters(1, 2, false)),
            ("rows", op.rows.to_string()),
            ("count", op.count.to_string()),
        ],
    );
    let label = format!("{label} (order)");
    Kernel { label, source, params: 3, grid: [1, 1, 1], threads: 1024 }
}

/// The kernel that sums. Parameters: updates, places, order, result, then `seed, step` if it draws.
pub(crate) fn sum(op: &Scatter, label: &str) -> Kernel {
    let lanes = Group::lanes(op.width);
    let threads = op.width.div_ceil(lanes).next_multiple_of(32).min(256);
    let mut store = String::new();
    let draws = op.result.draws();
    if draws {
        let (bits, stream) = (codec::random_bits(op.result.how), op.result.stream);
        let _ = writeln!(
            store,
            "u32 random[{lanes}]; draws<{bits}, {lanes}>(noise_of(seed, step, {stream}u), i, random);"
        );
    }
    let _ = writeln!(store, "u32 out[{lanes}]; float rounded;");
    let _ = writeln!(store, "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) {{");
    emit_rounded(&mut store, &op.result, "total[e]", "out[e]", "rounded", "random[e]");
    let _ = writeln!(store, "}}\n{}", codec::store(op.result.dtype, lanes, "y0", "i", "out"));
    let source = fill(
        SUM,
        &[
            ("parameters", parameters(3, 1, draws)),
            ("threads", threads.to_string()),
            ("rows", op.rows.to_string()),
            ("width", op.width.to_string()),
            ("lanes", lanes.to_string()),
            (
                "load",
                codec::load(
                    op.updates,
                    lanes,
                    "x0",
                    &format!("(u64)order[p] * {} + column", op.width),
                    "code",
                ),
            ),
            ("value", codec::decode(op.updates, "code[e]", false)),
            ("store", store),
        ],
    );
    let params = 4 + if draws { 2 } else { 0 };
    let grid = [op.rows.max(1) as u32, blocks(op.width, threads * lanes), 1];
    Kernel { label: label.to_owned(), source, params, grid, threads: threads as u32 }
}
