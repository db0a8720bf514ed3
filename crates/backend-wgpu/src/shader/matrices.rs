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
/// Quads by which a staged row is longer than its content.
const PAD: usize = 2;

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
        && op.n.is_multiple_of(4)
        && op.k.is_multiple_of(32)
        && (!op.transpose_left || op.m.is_multiple_of(4))
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
    tile_quads: usize,
    /// Whether a tile can go beyond the operand.
    ragged: bool,
    threads: usize,
}

impl Staged {
    fn count(&self) -> usize {
        (self.tile_rows * self.tile_quads).div_ceil(self.threads)
    }

    fn size(&self) -> usize {
        self.tile_rows * (self.tile_quads + PAD)
    }

    /// The function that reads four neighbours of a row.
    fn reader(&self, builder: &mut Builder<'_>) -> String {
        let Self { tensor, rows, columns, name, .. } = *self;
        let dtype = builder.dtype(tensor);
        let start = format!("(batch * {}u + row * {columns}u + column) / 4u", rows * columns);
        let value = if dtype == DType::Float(onesigma_format::Format::F16) {
            let x = builder.bind_halves(tensor);
            format!("x{x}_load({start})")
        } else {
            let x = builder.bind(tensor);
            let bits = builder.library.decoded(dtype, &format!("x{x}_codes({start})"));
            format!("vec4<f16>(bitcast<vec4<f32>>({bits}))")
        };
        let guard = match self.ragged {
            true => format!(
                "    if (row >= {rows}u || column >= {columns}u) {{ return vec4<f16>(0.0h); }}\n"
            ),
            false => String::new(),
        };
        format!(
            "fn {name}(batch: u32, row: u32, column: u32) -> vec4<f16> {{\n{guard}    return {value};\n}}\n"
        )
    }

    fn each(&self, text: impl Fn(usize, &str, &str) -> String, indent: &str) -> String {
        let mut all = String::new();
        for n in 0..self.count() {
            let quad = format!("(thread + {}u)", n * self.threads);
            let row = format!("({quad} / {}u)", self.tile_quads);
            let column = format!("({quad} % {}u)", self.tile_quads);
            let _ = writeln!(all, "{indent}{}", text(n, &row, &column));
        }
        all
    }

    fn fetch(&self, k: &str, indent: &str) -> String {
        let Self { name, first, .. } = self;
        self.each(
            |n, row, column| match self.along_inner {
                true => format!("{name}{n} = {name}(batch, {first} + {row}, {k} + 4u * {column});"),
                false => {
                    format!("{name}{n} = {name}(batch, {k} + {row}, {first} + 4u * {column});")
                }
            },
            indent,
        )
    }

    fn stage(&self, offset: &str, indent: &str) -> String {
        let Self { name, .. } = self;
        let width = self.tile_quads + PAD;
        self.each(
            |n, row, column| {
                format!("{name}_tile[{offset}{row} * {width}u + {column}] = {name}{n};")
            },
            indent,
        )
    }
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
            tile_quads: if along_inner { bk / 4 } else { block / 4 },
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
            let _ = writeln!(accumulators, "    var {}{n}: vec4<f16>;", staged.name);
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
    let text = fill(
        TEMPLATE,
        &[
            ("bm", bm.to_string()),
            ("bn", bn.to_string()),
            ("sm", sm.to_string()),
            ("sn", sn.to_string()),
            ("bk", bk.to_string()),
            ("pad", (4 * PAD).to_string()),
            ("left_size", (left.size() * stages).to_string()),
            ("right_size", (right.size() * stages).to_string()),
            ("result_size", (threads / LANES * EDGE * (EDGE / 4 + 1)).to_string()),
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
            ("results", results.trim_end().to_owned()),
        ],
    );
    // With two stages the barrier before a multiplication is the only one.
    let text = match stages {
        1 => text,
        _ => {
            let at = text.rfind("        workgroupBarrier();\n    }").unwrap_or(0);
            format!("{}{}", &text[..at], &text[at + "        workgroupBarrier();\n".len()..])
        }
    };
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
        let width = staged.tile_quads + PAD;
        let rows_are_outer = staged.along_inner;
        let place = match rows_are_outer {
            true => format!("({own} + {at}u) * {width}u + {}u", inner / 4),
            false => format!("{inner}u * {width}u + ({own} + {at}u) / 4u"),
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

/// Statements that bring each matrix of sums to shared memory, where threads take quads of it,
/// scale, round and write them.
fn results(builder: &mut Builder<'_>, op: &Product, tile: Tile) -> String {
    let width = EDGE / 4 + 1;
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
    let _ = writeln!(text, "    let own_patch = subgroup * {}u;", EDGE * width);
    for i in 0..tile.sm / EDGE {
        for j in 0..tile.sn / EDGE {
            let _ = writeln!(
                text,
                "    coopStoreT(sum{i}_{j}, &result_tile[own_patch], {width}u);\n    workgroupBarrier();"
            );
            for half in 0..2 {
                let row = format!("(lane / 4u + {}u)", 8 * half);
                let _ = writeln!(
                    text,
                    "    write_quad(batch, first_row + own_row + {}u + {row}, first_column + own_column + {}u + 4u * (lane % 4u), result_tile[own_patch + {row} * {width}u + lane % 4u]);",
                    i * EDGE,
                    j * EDGE
                );
            }
            text.push_str("    workgroupBarrier();\n");
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
