//! Products of matrices on cooperative matrices: operands that are exact in F16, decoded to it
//! while they are staged, sums in f32.

use std::fmt::Write;

use onesigma_graph::DType;

use super::fill;
use super::kernel::{Builder, Kernel, folded};
use crate::ir::{Entry, Product, TensorId};
use crate::memory::Memory;

const TEMPLATE: &str = include_str!("../wgsl/matmul_matrices.wgsl");
/// Edge of a cooperative matrix.
const EDGE: usize = 16;
/// Threads of a subgroup.
const LANES: usize = 32;
/// Elements of a chunk: sixteen bytes of F16, the unit of shared memory.
const CHUNK: usize = 8;
/// Chunks by which a staged row is longer than its content.
const PAD: usize = 1;

/// The shape of a tile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tile {
    /// Rows and columns of a workgroup.
    pub bm: usize,
    pub bn: usize,
    /// Rows and columns of a subgroup.
    pub sm: usize,
    pub sn: usize,
    /// Elements of the inner axis that are staged at once.
    pub bk: usize,
    /// Stages in shared memory: 2 save a barrier.
    pub stages: usize,
}

impl From<[usize; 6]> for Tile {
    fn from([bm, bn, sm, sn, bk, stages]: [usize; 6]) -> Self {
        Self { bm, bn, sm, sn, bk, stages }
    }
}

impl Tile {
    /// Four subgroups of 64 x 64; `examples/kernels.rs` tries others.
    pub(crate) const LARGE: Self = Self { bm: 128, bn: 128, sm: 64, sn: 64, bk: 32, stages: 1 };
    /// For products with few large tiles.
    pub(crate) const SMALL: Self = Self { bm: 64, bn: 64, sm: 32, sn: 32, bk: 32, stages: 1 };

    fn threads(self) -> usize {
        self.bm / self.sm * (self.bn / self.sn) * LANES
    }
}

/// Whether every value of a type is exact in F16.
pub(crate) fn is_half(dtype: DType) -> bool {
    dtype.format().is_some_and(|format| {
        format.mantissa_bits() <= 10
            && format.max() <= 65_504.0
            && format.min_subnormal() >= 2f64.powi(-24)
    })
}

/// The tile for a product, if it runs on cooperative matrices.
pub(crate) fn tile(entry: &Entry, op: &Product) -> Option<Tile> {
    const ENOUGH: usize = 96;
    let half = |tensor: TensorId| is_half(entry.tensors[tensor].dtype);
    let fits = half(op.left)
        && half(op.right)
        && op.n.is_multiple_of(CHUNK)
        && op.k.is_multiple_of(CHUNK)
        && (!op.transpose_left || op.m.is_multiple_of(CHUNK))
        && op.m.min(op.n) >= 16;
    let count = |tile: Tile| op.batch * op.m.div_ceil(tile.bm) * op.n.div_ceil(tile.bn);
    fits.then(|| if count(Tile::LARGE) >= ENOUGH { Tile::LARGE } else { Tile::SMALL })
}

/// An operand and its tile.
struct Staged {
    tensor: TensorId,
    /// As it is stored.
    rows: usize,
    columns: usize,
    /// The inner axis runs along the columns.
    along_inner: bool,
    name: &'static str,
    first: &'static str,
    tile_rows: usize,
    tile_chunks: usize,
    /// Whether a tile can go beyond the operand.
    ragged: bool,
    threads: usize,
}

impl Staged {
    /// Chunks that a thread fetches.
    fn count(&self) -> usize {
        (self.tile_rows * self.tile_chunks).div_ceil(self.threads)
    }

    /// Chunks of a row of the tile.
    fn width(&self) -> usize {
        self.tile_chunks + PAD
    }

    fn size(&self) -> usize {
        self.tile_rows * self.width()
    }

    /// The type of a chunk as it is stored.
    fn raw(&self, builder: &Builder<'_>) -> &'static str {
        match builder.dtype(self.tensor).bytes() {
            1 => "vec2<u32>",
            _ => "vec4<u32>",
        }
    }

    /// The functions that read a chunk of a row and make halves of it.
    fn reader(&self, builder: &mut Builder<'_>) -> String {
        let Self { tensor, rows, columns, name, .. } = *self;
        let raw = self.raw(builder);
        let x = builder.bind_chunks(tensor, raw);
        let guard = match self.ragged {
            true => format!(
                "    if (row >= {rows}u || column >= {columns}u) {{ return {raw}(0u); }}\n"
            ),
            false => String::new(),
        };
        let start =
            format!("batch * {}u + row * {}u + column / 8u", rows * columns / 8, columns / 8);
        let halves = halves(builder, builder.dtype(tensor));
        format!(
            "fn {name}(batch: u32, row: u32, column: u32) -> {raw} {{\n{guard}    return x{x}_load({start});\n}}\n\
             fn {name}_halves(c: {raw}) -> vec4<u32> {{\n{halves}}}\n"
        )
    }

    fn each(&self, text: impl Fn(usize, &str, &str) -> String, indent: &str) -> String {
        let mut all = String::new();
        let total = self.tile_rows * self.tile_chunks;
        for n in 0..self.count() {
            let chunk = format!("(thread + {}u)", n * self.threads);
            let row = format!("({chunk} / {}u)", self.tile_chunks);
            let column = format!("({chunk} % {}u)", self.tile_chunks);
            let guard = match (n + 1) * self.threads > total {
                true => format!("if ({chunk} < {total}u) "),
                false => String::new(),
            };
            let own = text(n, &row, &column);
            let own = if guard.is_empty() { own } else { format!("{{ {own} }}") };
            let _ = writeln!(all, "{indent}{guard}{own}");
        }
        all
    }

    fn fetch(&self, k: &str, indent: &str) -> String {
        let Self { name, first, .. } = self;
        self.each(
            |n, row, column| match self.along_inner {
                true => format!("{name}{n} = {name}(batch, {first} + {row}, {k} + 8u * {column});"),
                false => {
                    format!("{name}{n} = {name}(batch, {k} + {row}, {first} + 8u * {column});")
                }
            },
            indent,
        )
    }

    fn stage(&self, offset: &str, indent: &str) -> String {
        let Self { name, .. } = self;
        let width = self.width();
        self.each(
            |n, row, column| {
                format!(
                    "{name}_tile[{offset}{row} * {width}u + {column}] = bitcast<vec4<f32>>({name}_halves({name}{n}));"
                )
            },
            indent,
        )
    }
}

/// Body of the function that makes eight halves, as four words, of a chunk `c`.
fn halves(builder: &mut Builder<'_>, dtype: DType) -> String {
    use onesigma_format::Format;
    if dtype == DType::Float(Format::F16) {
        return "    return c;\n".to_owned();
    }
    if dtype == DType::Float(Format::E4M3) {
        // The exponent is 8 too small, which the scale of the result makes good; the code of a NaN
        // carries into the exponent.
        return "    let m = vec2<u32>(0x3f803f80u);\n    \
                let s = vec2<u32>(0x80008000u);\n    \
                var low = ((c << vec2<u32>(8u)) & s) | ((c << vec2<u32>(7u)) & m);\n    \
                var high = (c & s) | ((c >> vec2<u32>(1u)) & m);\n    \
                low += ((low & m) + vec2<u32>(0x00800080u)) & vec2<u32>(0x40004000u);\n    \
                high += ((high & m) + vec2<u32>(0x00800080u)) & vec2<u32>(0x40004000u);\n    \
                return vec4<u32>(\n        \
                (low.x & 0xffffu) | (high.x << 16u), (low.x >> 16u) | (high.x & 0xffff0000u),\n        \
                (low.y & 0xffffu) | (high.y << 16u), (low.y >> 16u) | (high.y & 0xffff0000u),\n    );\n"
            .to_owned();
    }
    if dtype == DType::Float(Format::E5M2) {
        // The high byte of a half.
        return "    let low = (c << vec2<u32>(8u)) & vec2<u32>(0xff00ff00u);\n    \
                let high = c & vec2<u32>(0xff00ff00u);\n    \
                return vec4<u32>(\n        \
                (low.x & 0xffffu) | (high.x << 16u), (low.x >> 16u) | (high.x & 0xffff0000u),\n        \
                (low.y & 0xffffu) | (high.y << 16u), (low.y >> 16u) | (high.y & 0xffff0000u),\n    );\n"
            .to_owned();
    }
    let (low, high) = match dtype.bytes() {
        1 => ("codes_1(c.x)", "codes_1(c.y)"),
        _ => ("codes_2(c.xy)", "codes_2(c.zw)"),
    };
    let (low, high) = (builder.library.decoded(dtype, low), builder.library.decoded(dtype, high));
    format!(
        "    let low = bitcast<vec4<f32>>({low});\n    let high = bitcast<vec4<f32>>({high});\n    \
         return vec4<u32>(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));\n"
    )
}

/// By what a staged operand is too small.
fn left_to_the_result(dtype: DType) -> f64 {
    if dtype == DType::Float(onesigma_format::Format::E4M3) { 256.0 } else { 1.0 }
}

/// The kernel.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    op: &Product,
    tile: Tile,
    label: &str,
) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    let mut op = *op;
    for tensor in [op.left, op.right] {
        op.result.alpha *= left_to_the_result(builder.dtype(tensor));
    }
    let op = &op;
    let Tile { bm, bn, sm, sn, bk, stages } = tile;
    let threads = tile.threads();
    let staged = |left: bool| {
        let (tensor, transposed, extent, block) = match left {
            true => (op.left, op.transpose_left, op.m, bm),
            false => (op.right, !op.transpose_right, op.n, bn),
        };
        let along_inner = !transposed;
        let (rows, columns) = if along_inner { (extent, op.k) } else { (op.k, extent) };
        Staged {
            tensor,
            rows,
            columns,
            along_inner,
            name: if left { "left" } else { "right" },
            first: if left { "first_row" } else { "first_column" },
            tile_rows: if along_inner { block } else { bk },
            tile_chunks: if along_inner { bk / CHUNK } else { block / CHUNK },
            ragged: !extent.is_multiple_of(block) || !op.k.is_multiple_of(bk),
            threads,
        }
    };
    let (left, right) = (staged(true), staged(false));
    let (across, down) = (sn / EDGE, sm / EDGE);

    let mut accumulators = String::new();
    for i in 0..down {
        for j in 0..across {
            let _ = writeln!(accumulators, "    var sum{i}_{j} = coop_mat16x16<f32, C>();");
        }
    }
    for staged in [&left, &right] {
        for n in 0..staged.count() {
            let raw = staged.raw(&builder);
            let _ = writeln!(accumulators, "    var {}{n}: {raw};", staged.name);
        }
    }
    let offset = |staged: &Staged| match stages {
        1 => String::new(),
        _ => format!("((k / {bk}u) % {stages}u) * {}u + ", staged.size()),
    };
    let multiply = multiply(tile, &left, &right, &offset);
    let results = results(&mut builder, op, tile);
    let readers = left.reader(&mut builder) + &right.reader(&mut builder);
    let (row_tiles, column_tiles) = (op.m.div_ceil(bm), op.n.div_ceil(bn));
    let tiles = row_tiles * column_tiles * op.batch;
    let next = format!("(k + {bk}u)");
    let patches = threads / LANES * EDGE * PATCH;
    let text = fill(
        TEMPLATE,
        &[
            ("bm", bm.to_string()),
            ("bn", bn.to_string()),
            ("sm", sm.to_string()),
            ("sn", sn.to_string()),
            ("bk", bk.to_string()),
            ("pad", (CHUNK * PAD).to_string()),
            ("left_size", (left.size() * stages).max(patches).to_string()),
            ("right_size", (right.size() * stages).to_string()),
            ("threads", threads.to_string()),
            ("tiles", tiles.to_string()),
            ("row_tiles", row_tiles.to_string()),
            ("batch_tiles", (row_tiles * column_tiles).to_string()),
            ("band", (8 * column_tiles).to_string()),
            ("subgroups_across", (bn / sn).to_string()),
            ("k", op.k.to_string()),
            ("accumulators", accumulators.trim_end().to_owned()),
            ("fetch", left.fetch("0u", "    ") + right.fetch("0u", "    ").trim_end()),
            (
                "fetch_next",
                left.fetch(&next, "            ") + right.fetch(&next, "            ").trim_end(),
            ),
            (
                "stage",
                left.stage(&offset(&left), "        ")
                    + right.stage(&offset(&right), "        ").trim_end(),
            ),
            ("multiply", multiply.trim_end().to_owned()),
            // With two stages the barrier before a multiplication is the only one.
            (
                "after",
                if stages == 1 { "        workgroupBarrier();\n" } else { "" }.to_owned(),
            ),
            ("results", results.trim_end().to_owned()),
        ],
    );
    let directives = "enable wgpu_cooperative_matrix;\n";
    builder.finish_with(label, &(readers + &text), folded(tiles, 1), directives)
}

/// Statements that load matrices of both operands and multiply them, for each part of a stage.
fn multiply(
    tile: Tile,
    left: &Staged,
    right: &Staged,
    offset: &dyn Fn(&Staged) -> String,
) -> String {
    let mut text = String::new();
    // Row-major where the rows of the matrix are those of the tile.
    let load = |staged: &Staged, role: &str, own: &str, at: usize, inner: usize| {
        let width = staged.width();
        let rows_are_outer = staged.along_inner;
        let place = match rows_are_outer {
            true => format!("({own} + {at}u) * {width}u + {}u", inner / CHUNK),
            false => format!("{inner}u * {width}u + ({own} + {at}u) / 8u"),
        };
        // Rows of the left matrix run along m, those of the right one along the inner axis.
        let row_major = (role == "A") == rows_are_outer;
        format!(
            "{}<coop_mat16x16<f16, {role}>>(&{}_tile[{}{place}], {width}u)",
            if row_major { "coopLoadT" } else { "coopLoad" },
            staged.name,
            offset(staged)
        )
    };
    for inner in (0..tile.bk).step_by(EDGE) {
        for i in 0..tile.sm / EDGE {
            let value = load(left, "A", "own_row", i * EDGE, inner);
            let _ = writeln!(text, "        let a{inner}_{i} = {value};");
        }
        for j in 0..tile.sn / EDGE {
            let value = load(right, "B", "own_column", j * EDGE, inner);
            let _ = writeln!(text, "        let b{inner}_{j} = {value};");
            for i in 0..tile.sm / EDGE {
                let _ = writeln!(
                    text,
                    "        sum{i}_{j} = coopMultiplyAdd(a{inner}_{i}, b{inner}_{j}, sum{i}_{j});"
                );
            }
        }
    }
    text
}

/// Quads of a row of a patch, where a subgroup's sums lie for the threads to take.
const PATCH: usize = EDGE / 4 + 1;

/// Statements that write the sums: as they are where the result is F32 and made of whole tiles,
/// else by way of shared memory, where threads take quads of them, scale, round and write them.
fn results(builder: &mut Builder<'_>, op: &Product, tile: Tile) -> String {
    let whole = op.m.is_multiple_of(tile.bm) && op.n.is_multiple_of(tile.bn);
    if op.result.is_f32() && whole && builder.is_whole(op.out) {
        return direct_results(builder, op, tile);
    }
    let mut write = String::new();
    let _ = writeln!(write, "    if (row < {}u && column < {}u) {{", op.m, op.n);
    let _ = writeln!(
        write,
        "        let quad = (batch * {}u + row * {}u + column) / 4u;",
        op.m * op.n,
        op.n
    );
    builder.round(&mut write, &op.result, "value", None, "quad", "r");
    let store = builder.store(op.out, "quad", "r_codes");
    write.push_str(&store);
    write.push_str("    }\n");
    builder.library.add(
        "write_quad",
        format!(
            "fn write_quad(batch: u32, row: u32, column: u32, value: vec4<f32>) {{\n{write}}}\n"
        ),
    );
    let mut text = String::new();
    let _ = writeln!(text, "    workgroupBarrier();");
    let _ = writeln!(text, "    let own_patch = subgroup * {}u;", EDGE * PATCH);
    for i in 0..tile.sm / EDGE {
        for j in 0..tile.sn / EDGE {
            let _ = writeln!(
                text,
                "    coopStoreT(sum{i}_{j}, &left_tile[own_patch], {PATCH}u);\n    workgroupBarrier();"
            );
            for half in 0..2 {
                let row = format!("(lane / 4u + {}u)", 8 * half);
                let _ = writeln!(
                    text,
                    "    write_quad(batch, first_row + own_row + {}u + {row}, first_column + own_column + {}u + 4u * (lane % 4u), left_tile[own_patch + {row} * {PATCH}u + lane % 4u]);",
                    i * EDGE,
                    j * EDGE
                );
            }
            text.push_str("    workgroupBarrier();\n");
        }
    }
    text
}

/// Statements that store the sums in the result.
fn direct_results(builder: &mut Builder<'_>, op: &Product, tile: Tile) -> String {
    let x = builder.bind_chunks(op.out, "vec4<f32>");
    let mut text = String::new();
    for i in 0..tile.sm / EDGE {
        for j in 0..tile.sn / EDGE {
            let row = format!("(first_row + own_row + {}u)", i * EDGE);
            let column = format!("(first_column + own_column + {}u)", j * EDGE);
            let sum = match op.result.alpha == 1.0 {
                true => format!("sum{i}_{j}"),
                false => format!("{} * sum{i}_{j}", super::scalar_literal(op.result.alpha)),
            };
            let _ = writeln!(
                text,
                "    coopStoreT({sum}, &x{x}[batch * {}u + {row} * {}u + {column} / 4u], {}u);",
                op.m * op.n / 4,
                op.n / 4,
                op.n / 4
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Home, Rounded};
    use crate::memory::plan;
    use onesigma_format::Format;
    use wgpu::naga;

    fn source(product: Product, left: Format, right: Format, tile: Tile) -> String {
        let mut entry = Entry::default();
        for (numel, format) in [
            (product.m * product.k, left),
            (product.n * product.k, right),
            (product.m * product.n, Format::F32),
        ] {
            entry.tensor(numel * product.batch, DType::Float(format), Home::Temporary);
        }
        let memory = plan(&mut entry, &[], 0, 1 << 27);
        kernel(&entry, &memory, &product, tile, "test").source
    }

    #[test]
    fn shaders_for_cooperative_matrices_are_valid() {
        let base = Product {
            batch: 2,
            m: 256,
            n: 192,
            k: 64,
            transpose_left: false,
            transpose_right: false,
            left: 0,
            right: 1,
            result: Rounded::PLAIN,
            out: 2,
        };
        let two = Tile { stages: 2, ..Tile::LARGE };
        for tile in [Tile::LARGE, Tile::SMALL, two] {
            for (transpose_left, transpose_right) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                for (left, right) in [(Format::F16, Format::F16), (Format::E4M3, Format::E5M2)] {
                    let product = Product { transpose_left, transpose_right, ..base };
                    let text = source(product, left, right, tile);
                    assert!(!text.contains("{{"), "{text}");
                    let module = naga::front::wgsl::parse_str(&text)
                        .unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
                    let flags = naga::valid::ValidationFlags::all();
                    let all = naga::valid::Capabilities::all();
                    let checked = naga::valid::Validator::new(flags, all).validate(&module);
                    assert!(checked.is_ok(), "{:?}\n{text}", checked.err());
                }
            }
        }
    }
}
