//! Products of matrices on the vector units, in f32.

mod part;
mod small;

use std::fmt::Write;

use self::part::{Part, Stored, reader};
pub(crate) use self::small::{is_small, small};
use super::kernel::{Builder, Kernel, folded};
use super::{fill, scalar_literal};
use crate::ir::{Entry, Factor, Product, Rounded, TensorId};
use crate::memory::Memory;

const TEMPLATE: &str = include_str!("../../wgsl/matmul.wgsl");

/// The shape of a tile.
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
    /// Elements of the inner axis that are staged at once: 8, 16 or 32.
    pub bk: usize,
    /// Stages in shared memory: 2 save a barrier.
    pub stages: usize,
    /// Threads of a subgroup that lie in a row: 8 make its part of the tile nearly square.
    pub row: usize,
}

impl From<[usize; 7]> for Tile {
    fn from([bm, bn, tm, tn, bk, stages, row]: [usize; 7]) -> Self {
        Self { bm, bn, tm, tn, bk, stages, row }
    }
}

impl Tile {
    const LARGE: Self = Self { bm: 128, bn: 128, tm: 8, tn: 8, bk: 16, stages: 1, row: 8 };
    /// Of one stage, so that more workgroups share a core: with NVIDIA's driver they have 48 KiB.
    const WIDE: Self = Self { bm: 64, bn: 64, tm: 8, tn: 8, bk: 16, stages: 1, row: 8 };
    const MIDDLE: Self = Self { bm: 64, bn: 64, tm: 4, tn: 4, bk: 16, stages: 1, row: 16 };
    const SMALL: Self = Self { bm: 32, bn: 32, tm: 4, tn: 4, bk: 16, stages: 1, row: 8 };

    fn threads(self) -> usize {
        self.bm / self.tm * (self.bn / self.tn)
    }

    fn across(self) -> usize {
        self.bn / self.tn
    }
}

/// The tile for a product: the one that takes the least time on a device with so many cores, by the
/// rates that tiles reach where there are enough of them (one H100, docs/results/wgpu).
pub(crate) fn tile(op: &Product) -> Tile {
    const CORES: usize = 128;
    let time = |tile: Tile, rate: f64| {
        let tiles = op.batch * op.m.div_ceil(tile.bm) * op.n.div_ceil(tile.bn);
        (tiles.div_ceil(CORES) * tile.bm * tile.bn) as f64 / rate
    };
    let known =
        [(Tile::LARGE, 45.0), (Tile::WIDE, 38.0), (Tile::MIDDLE, 32.0), (Tile::SMALL, 16.0)];
    let times = known.map(|(tile, rate)| (tile, time(tile, rate)));
    times.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(Tile::SMALL, |(tile, _)| tile)
}

/// Text for the blocks that a thread moves: both operands' blocks are one row, of which thread `t`
/// takes each of `t + n threads`.
fn moved(
    parts: &[Part<'_>; 2],
    threads: usize,
    indent: &str,
    text: impl Fn(&Part<'_>, &str, usize) -> String,
) -> String {
    let [left, all] = [parts[0].blocks(), parts[0].blocks() + parts[1].blocks()];
    let mut whole = String::new();
    for n in 0..all.div_ceil(threads) {
        let (start, end) = (n * threads, (n + 1) * threads);
        let own = text(&parts[0], &format!("(thread + {start}u)"), n);
        let other = match start >= left {
            true => text(&parts[1], &format!("(thread + {}u)", start - left), n),
            false => text(&parts[1], &format!("(thread - {}u)", left - start), n),
        };
        let (past_left, past_all) = (left.saturating_sub(start), all - start);
        let line = match (end <= left, start >= left, end <= all) {
            (true, ..) => own,
            (_, true, true) => other,
            (_, true, false) => format!("if (thread < {past_all}u) {{ {other} }}"),
            (_, _, true) => {
                format!("if (thread < {past_left}u) {{ {own} }} else {{ {other} }}")
            }
            _ => format!(
                "if (thread < {past_left}u) {{ {own} }} else if (thread < {past_all}u) {{ {other} }}"
            ),
        };
        let _ = writeln!(whole, "{indent}{line}");
    }
    whole
}

/// Statements that multiply what is staged.
fn multiply(tile: Tile, parts: &[Part<'_>; 2], offsets: [&str; 2]) -> String {
    let Tile { tm, tn, bk, .. } = tile;
    let mut text = String::new();
    for inner in 0..bk {
        let quad = |part: &Part<'_>, own: &str, at: usize, offset: &str| {
            let mix = inner / 4 * part.mix();
            let own = if mix == 0 { own.to_owned() } else { format!("({own} ^ {mix}u)") };
            format!("{}_tile[{offset}{own} + {}u]", part.stored.name, inner * part.quads() + at)
        };
        for n in 0..tm / 4 {
            let value = quad(&parts[0], "down", n * tile.bm / tm, offsets[0]);
            let _ = writeln!(text, "        let a{inner}_{n} = {value};");
        }
        for n in 0..tn / 4 {
            let value = quad(&parts[1], "across", n * tile.across(), offsets[1]);
            let _ = writeln!(text, "        let b{inner}_{n} = {value};");
        }
        for row in 0..tm {
            for n in 0..tn / 4 {
                let lane = ["x", "y", "z", "w"][row % 4];
                let _ = writeln!(
                    text,
                    "        sum{row}_{n} = fma(vec4<f32>(a{inner}_{}.{lane}), b{inner}_{n}, sum{row}_{n});",
                    row / 4
                );
            }
        }
    }
    text
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
    let Tile { bm, bn, tm, tn, bk, stages, row } = tile;
    let threads = tile.threads();
    let [left, right] = op.factors();
    let stored = |factor: Factor, block: usize| {
        let Factor { name, tensor, rows, columns, along_inner, extent } = factor;
        let ragged = !extent.is_multiple_of(block) || !op.k.is_multiple_of(bk);
        Stored { tensor, rows, columns, along_inner, name, ragged }
    };
    let (left, right) = (stored(left, bm), stored(right, bn));
    let parts = [
        Part { stored: &left, extent: bm, bk, first: "first_row" },
        Part { stored: &right, extent: bn, bk, first: "first_column" },
    ];
    let sizes = [bk * bm / 4, bk * bn / 4];
    let offsets = sizes.map(|size| match stages {
        1 => String::new(),
        _ => format!("((k / {bk}u) % {stages}u) * {size}u + "),
    });
    let is_left = |part: &Part<'_>| part.first == "first_row";
    let fetch = |k: &str, indent: &str| {
        moved(&parts, threads, indent, |part, index, n| part.fetch(index, k, &format!("block{n}_")))
    };
    let stage = moved(&parts, threads, "        ", |part, index, n| {
        let offset = if is_left(part) { &offsets[0] } else { &offsets[1] };
        part.stage(index, offset, &format!("block{n}_"))
    });
    let mut accumulators = String::new();
    for row in 0..tm {
        for quad in 0..tn / 4 {
            let _ = writeln!(accumulators, "    var sum{row}_{quad} = vec4<f32>(0.0);");
        }
    }
    for n in 0..(parts[0].blocks() + parts[1].blocks()).div_ceil(threads) {
        for j in 0..4 {
            let _ = writeln!(accumulators, "    var block{n}_{j}: vec4<f32>;");
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
            ("bk", bk.to_string()),
            ("tm", tm.to_string()),
            ("tn", tn.to_string()),
            ("left_quads", (stages * sizes[0]).to_string()),
            ("right_quads", (stages * sizes[1]).to_string()),
            ("threads", threads.to_string()),
            ("row", row.to_string()),
            ("rows_across", (tile.across() / row).to_string()),
            ("column", (32 / row).to_string()),
            ("tiles", tiles.to_string()),
            ("column_tiles", column_tiles.to_string()),
            ("row_tiles", row_tiles.to_string()),
            ("batch_tiles", (row_tiles * column_tiles).to_string()),
            ("band", (8 * column_tiles).to_string()),
            ("k", op.k.to_string()),
            ("accumulators", accumulators.trim_end().to_owned()),
            ("fetch", fetch("0u", "    ").trim_end().to_owned()),
            ("fetch_next", fetch(&format!("(k + {bk}u)"), "            ").trim_end().to_owned()),
            ("stage", stage.trim_end().to_owned()),
            ("multiply", multiply(tile, &parts, [&offsets[0], &offsets[1]]).trim_end().to_owned()),
            ("after", if stages == 1 { "        workgroupBarrier();\n" } else { "" }.to_owned()),
            ("results", results.trim_end().to_owned()),
        ],
    );
    builder.finish(label, &(readers + &text), folded(tiles, 1))
}

/// Statements that scale, round and write the sums of a thread.
fn results(builder: &mut Builder<'_>, op: &Product, tile: Tile) -> String {
    let Tile { bm, tm, tn, .. } = tile;
    let across = tile.across();
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
