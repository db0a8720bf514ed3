//! Products of matrices on the vector units, in f32.

use std::fmt::Write;

use super::kernel::{Builder, Kernel, folded};
use super::{fill, scalar_literal};
use crate::ir::{Entry, Product, Rounded, TensorId};
use crate::memory::Memory;

const SMALL: &str = include_str!("../wgsl/matmul_small.wgsl");
const TEMPLATE: &str = include_str!("../wgsl/matmul.wgsl");
/// Elements of the inner axis that are staged at once.
const BK: usize = 16;

/// The shape of a tile: rows, columns, and of both those of one thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tile {
    /// Rows.
    pub bm: usize,
    /// Columns.
    pub bn: usize,
    /// Rows of a thread, 4 or 8.
    pub tm: usize,
    /// Columns of a thread, 4 or 8.
    pub tn: usize,
}

impl From<[usize; 4]> for Tile {
    fn from([bm, bn, tm, tn]: [usize; 4]) -> Self {
        Self { bm, bn, tm, tn }
    }
}

impl Tile {
    const LARGE: Self = Self { bm: 128, bn: 128, tm: 8, tn: 8 };
    const MIDDLE: Self = Self { bm: 64, bn: 64, tm: 4, tn: 4 };
    const SMALL: Self = Self { bm: 32, bn: 32, tm: 4, tn: 4 };

    fn threads(self) -> usize {
        self.bm / self.tm * (self.bn / self.tn)
    }
}

/// The tile for a product: the largest of which there are enough.
pub(crate) fn tile(op: &Product) -> Tile {
    const ENOUGH: usize = 96;
    let count = |tile: Tile| op.batch * op.m.div_ceil(tile.bm) * op.n.div_ceil(tile.bn);
    [Tile::LARGE, Tile::MIDDLE]
        .into_iter()
        .find(|tile| count(*tile) >= ENOUGH)
        .unwrap_or(if op.m.min(op.n) >= 64 { Tile::MIDDLE } else { Tile::SMALL })
}

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

/// An operand as it is stored.
struct Stored {
    tensor: TensorId,
    rows: usize,
    columns: usize,
    /// The inner axis runs along the columns.
    along_inner: bool,
    /// Name of the function that reads four neighbours of a row.
    name: &'static str,
}

/// The function that reads four neighbours; those outside are 0.
fn reader(builder: &mut Builder<'_>, stored: &Stored) -> String {
    let Stored { tensor, rows, columns, name, .. } = *stored;
    let x = builder.bind(tensor);
    let dtype = builder.dtype(tensor);
    let head = format!("fn {name}(batch: u32, row: u32, column: u32) -> vec4<f32> {{\n");
    let start = format!("batch * {}u + row * {columns}u + column", rows * columns);
    let body = if columns.is_multiple_of(4) {
        let bits = builder.library.decoded(dtype, &format!("x{x}_codes(({start}) / 4u)"));
        format!(
            "    if (row >= {rows}u || column >= {columns}u) {{ return vec4<f32>(0.0); }}\n    \
             return bitcast<vec4<f32>>({bits});\n}}\n"
        )
    } else {
        let each: Vec<String> = (0..4)
            .map(|lane| {
                format!(
                    "x{x}_code(min({start} + {lane}u, batch * {0}u + {1}u))",
                    rows * columns,
                    (rows * columns).saturating_sub(1)
                )
            })
            .collect();
        let bits = builder.library.decoded(dtype, &format!("vec4<u32>({})", each.join(", ")));
        format!(
            "    let inside = (vec4<u32>(column) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>({columns}u)) & vec4<bool>(row < {rows}u);\n    \
             return select(vec4<f32>(0.0), bitcast<vec4<f32>>({bits}), inside);\n}}\n"
        )
    };
    head + &body
}

/// Statement that fetches the block of thread `index` of a tile from inner element `k` on.
fn fetch(stored: &Stored, extent: usize, index: &str, first: &str, k: &str) -> String {
    let name = stored.name;
    let inner = BK / 4;
    match stored.along_inner {
        true => format!(
            "for (var j = 0u; j < 4u; j++) {{ block[j] = {name}(batch, {first} + 4u * ({index} / {inner}u) + j, {k} + 4u * ({index} % {inner}u)); }}"
        ),
        false => {
            let quads = extent / 4;
            format!(
                "for (var j = 0u; j < 4u; j++) {{ block[j] = {name}(batch, {k} + 4u * ({index} / {quads}u) + j, {first} + 4u * ({index} % {quads}u)); }}"
            )
        }
    }
}

/// Statement that puts a block into its tile, by rows of the inner axis.
fn stage(stored: &Stored, extent: usize, index: &str, tile: &str) -> String {
    let quads = extent / 4;
    let inner = BK / 4;
    match stored.along_inner {
        true => format!(
            "{{ let at = 4u * ({index} % {inner}u) * {quads}u + {index} / {inner}u; \
             {tile}[at] = vec4<f32>(block[0].x, block[1].x, block[2].x, block[3].x); \
             {tile}[at + {quads}u] = vec4<f32>(block[0].y, block[1].y, block[2].y, block[3].y); \
             {tile}[at + {}u] = vec4<f32>(block[0].z, block[1].z, block[2].z, block[3].z); \
             {tile}[at + {}u] = vec4<f32>(block[0].w, block[1].w, block[2].w, block[3].w); }}",
            2 * quads,
            3 * quads
        ),
        false => format!(
            "{{ let at = 4u * ({index} / {quads}u) * {quads}u + {index} % {quads}u; \
             {tile}[at] = block[0]; {tile}[at + {quads}u] = block[1]; \
             {tile}[at + {}u] = block[2]; {tile}[at + {}u] = block[3]; }}",
            2 * quads,
            3 * quads
        ),
    }
}

/// The kernel. Where `n` is no multiple of four the result is F32.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    op: &Product,
    tile: Tile,
    label: &str,
) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    let Tile { bm, bn, tm, tn } = tile;
    let threads = tile.threads();
    let across = bn / tn;
    let left = Stored {
        tensor: op.left,
        rows: if op.transpose_left { op.k } else { op.m },
        columns: if op.transpose_left { op.m } else { op.k },
        along_inner: !op.transpose_left,
        name: "left",
    };
    let right = Stored {
        tensor: op.right,
        rows: if op.transpose_right { op.n } else { op.k },
        columns: if op.transpose_right { op.k } else { op.n },
        along_inner: op.transpose_right,
        name: "right",
    };
    let (left_blocks, right_blocks) = (bm / 4 * (BK / 4), bn / 4 * (BK / 4));
    let both = |text: &dyn Fn(&Stored, usize, &str, &str) -> String| {
        format!(
            "if (thread < {left_blocks}u) {{ {} }} else if (thread < {}u) {{ {} }}",
            text(&left, bm, "thread", "first_row"),
            left_blocks + right_blocks,
            text(&right, bn, &format!("(thread - {left_blocks}u)"), "first_column")
        )
    };
    let fetch_at = |k: &'static str| {
        both(&move |stored: &Stored, extent, index: &str, first: &str| {
            fetch(stored, extent, index, first, k)
        })
    };
    let staged = both(&|stored: &Stored, extent, index: &str, _: &str| {
        stage(stored, extent, index, &format!("{}_tile", stored.name))
    });
    let mut accumulators = String::new();
    let mut multiply = String::new();
    let (row_quads, column_quads) = (tm / 4, tn / 4);
    for quad in 0..row_quads {
        let _ = writeln!(
            multiply,
            "            let a{quad} = left_tile[inner * {}u + down + {}u];",
            bm / 4,
            quad * bm / tm
        );
    }
    for quad in 0..column_quads {
        let _ = writeln!(
            multiply,
            "            let b{quad} = right_tile[inner * {}u + across + {}u];",
            bn / 4,
            quad * across
        );
    }
    for row in 0..tm {
        for quad in 0..column_quads {
            let _ = writeln!(accumulators, "    var sum{row}_{quad} = vec4<f32>(0.0);");
            let lane = ["x", "y", "z", "w"][row % 4];
            let _ =
                writeln!(multiply, "            sum{row}_{quad} += a{}.{lane} * b{quad};", row / 4);
        }
    }
    let results = results(&mut builder, op, tile);
    let (row_tiles, column_tiles) = (op.m.div_ceil(bm), op.n.div_ceil(bn));
    let tiles = row_tiles * column_tiles * op.batch;
    let readers = reader(&mut builder, &left) + &reader(&mut builder, &right);
    let text = fill(
        TEMPLATE,
        &[
            ("bm", bm.to_string()),
            ("bn", bn.to_string()),
            ("bk", BK.to_string()),
            ("tm", tm.to_string()),
            ("tn", tn.to_string()),
            ("left_quads", (BK * bm / 4).to_string()),
            ("right_quads", (BK * bn / 4).to_string()),
            ("threads", threads.to_string()),
            ("threads_across", across.to_string()),
            ("tiles", tiles.to_string()),
            ("column_tiles", column_tiles.to_string()),
            ("row_tiles", row_tiles.to_string()),
            ("batch_tiles", (row_tiles * column_tiles).to_string()),
            ("k", op.k.to_string()),
            ("accumulators", accumulators.trim_end().to_owned()),
            ("fetch", fetch_at("0u")),
            ("fetch_next", fetch_at("(k + 16u)")),
            ("stage", staged),
            ("multiply", multiply.trim_end().to_owned()),
            ("results", results.trim_end().to_owned()),
        ],
    );
    builder.finish(label, &(readers + &text), folded(tiles, 1))
}

/// Statements that scale, round and write the sums of a thread.
fn results(builder: &mut Builder<'_>, op: &Product, tile: Tile) -> String {
    let Tile { bm, bn, tm, tn } = tile;
    let across = bn / tn;
    let mut text = String::new();
    for row in 0..tm {
        let at = format!("4u * (down + {}u) + {}u", row / 4 * (bm / tm), row % 4);
        for quad in 0..tn / 4 {
            let column = format!("4u * (across + {}u)", quad * across);
            let name = format!("r{row}_{quad}");
            let _ = writeln!(
                text,
                "    {{ let row = first_row + {at}; let column = first_column + {column};\n    if (row < {}u && column < {}u) {{",
                op.m, op.n
            );
            let _ = writeln!(
                text,
                "    let start = batch * {}u + row * {}u + column;",
                op.m * op.n,
                op.n
            );
            let value = format!("sum{row}_{quad}");
            if op.n.is_multiple_of(4) {
                builder.round(&mut text, &op.result, &value, None, "(start / 4u)", &name);
                let store = builder.store(op.out, "(start / 4u)", &format!("{name}_codes"));
                text.push_str(&store);
            } else {
                text.push_str(&unaligned(builder, op.out, &op.result, &value, op.n));
            }
            text.push_str("    } }\n");
        }
    }
    text
}

/// Statements that write four F32 numbers one by one.
fn unaligned(
    builder: &mut Builder<'_>,
    out: TensorId,
    result: &Rounded,
    value: &str,
    n: usize,
) -> String {
    let x = builder.bind_words(out);
    let mut text = format!(
        "    let scaled = bitcast<vec4<u32>>({value} * {});\n",
        scalar_literal(result.alpha)
    );
    for lane in 0..4 {
        let _ = writeln!(
            text,
            "    if (column + {lane}u < {n}u) {{ x{x}_put(start + {lane}u, scaled[{lane}]); }}"
        );
    }
    text
}
