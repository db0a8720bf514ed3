//! The gradient of an embedding: rows of updates summed into the rows of a table, in a fixed
//! order, so that equal runs give equal bits.

use std::fmt::Write;

use onesigma_graph::DType;

use super::group::{Group, Rounded, emit_rounded, scaled};
use super::{Kernel, blocks, codec, fill, parameters};

const ORDER: &str = include_str!("../kernels/scatter_order.cu");
const STARTS: &str = include_str!("../kernels/scatter_starts.cu");
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
    /// Words of the work spaces: the ids in order, their positions, and the first of each row.
    pub(crate) fn workspaces(&self) -> [usize; 3] {
        [self.count, self.count, self.rows + 1]
    }
}

/// The kernel that sorts the positions by id. Parameters: ids, sorted ids, positions.
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
    Kernel { label, source, params: 3, grid: [blocks(op.count, 256), 1, 1], threads: 1024 }
}

/// The kernel that finds where the ids of each row start. Parameters: sorted ids, starts.
pub(crate) fn starts(op: &Scatter, label: &str) -> Kernel {
    let source = fill(
        STARTS,
        &[
            ("parameters", parameters(1, 1, false)),
            ("rows", op.rows.to_string()),
            ("count", op.count.to_string()),
        ],
    );
    let label = format!("{label} (starts)");
    Kernel { label, source, params: 2, grid: [blocks(op.count + 1, 256), 1, 1], threads: 256 }
}

/// The kernel that sums. Parameters: updates, starts, positions, result, then `seed, step` if it draws.
pub(crate) fn sum(op: &Scatter, label: &str) -> Kernel {
    let lanes = Group::lanes(op.width);
    let threads = op.width.div_ceil(lanes).next_multiple_of(32).min(256);
    let mut store = String::new();
    let draws = op.result.draws();
    let value = scaled(op.result.alpha, "total[e]");
    let _ = writeln!(
        store,
        "float v_sum[{lanes}]; _Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) v_sum[e] = {value};"
    );
    emit_rounded(&mut store, &op.result, lanes, "_sum", false);
    let _ = writeln!(store, "{}", codec::store(op.result.dtype, lanes, "y0", "i", "w_sum"));
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
                    "word",
                ),
            ),
            ("words", codec::words(op.updates, lanes).to_string()),
            ("unpack", codec::unpack(op.updates, lanes, "word", "value", false)),
            ("store", store),
        ],
    );
    let params = 4 + if draws { 2 } else { 0 };
    let grid = [op.rows.max(1) as u32, blocks(op.width, threads * lanes), 1];
    Kernel { label: label.to_owned(), source, params, grid, threads: threads as u32 }
}
