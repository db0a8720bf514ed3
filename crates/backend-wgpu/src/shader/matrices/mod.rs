//! Products of matrices on cooperative matrices: operands that are exact in F16, decoded to it
//! while they are staged, sums in f32.

mod results;
mod staged;

use std::fmt::Write;

use onesigma_format::Format;
use onesigma_graph::DType;

use self::results::results;
use self::staged::{PAD, Staged};
use super::fill;
use super::kernel::{Builder, Kernel, folded};
use crate::gpu::Matrices;
use crate::ir::{Entry, Factor, Product, TensorId};
use crate::memory::Memory;

const TEMPLATE: &str = include_str!("../../wgsl/matmul_matrices.wgsl");
/// Elements of a chunk, the unit in which operands are fetched: two quads of shared memory.
const CHUNK: usize = 8;

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
}

impl From<[usize; 5]> for Tile {
    fn from([bm, bn, sm, sn, bk]: [usize; 5]) -> Self {
        Self { bm, bn, sm, sn, bk }
    }
}

impl Tile {
    /// Four subgroups of 64 x 64; `examples/kernels` tries others.
    pub(crate) const LARGE: Self = Self { bm: 128, bn: 128, sm: 64, sn: 64, bk: 32 };
    /// For products with few large tiles.
    pub(crate) const SMALL: Self = Self { bm: 64, bn: 64, sm: 32, sn: 32, bk: 64 };
    /// For matrices of 8 x 8: 16 sums of a subgroup take 32 registers of each of its 32 threads.
    pub(crate) const EIGHT: Self = Self { bk: 32, ..Self::SMALL };
    /// For subgroups of fewer threads, on processors: code that a compiler can still unroll.
    pub(crate) const NARROW: Self = Self { bm: 32, bn: 32, sm: 16, sn: 16, bk: 16 };

    fn subgroups(self) -> usize {
        self.bm / self.sm * (self.bn / self.sn)
    }

    /// Quads of the memory where each subgroup leaves one matrix of sums at a time, and where rows
    /// and columns with NaN are marked.
    fn result_quads(self, edge: usize) -> usize {
        (self.subgroups() * edge * edge / 4).max(self.bm + self.bn)
    }

    /// Bytes of memory that a workgroup shares, at most: operands, padded but for the last row, the
    /// longer way round of both layouts; results; two variables. NVIDIA's driver gives the
    /// workgroups of a core 48 KiB together, so the large tile, to run twice, must not take more
    /// than 24 KiB, and takes that.
    fn shared_bytes(self, edge: usize) -> usize {
        let staged = |block: usize| {
            let pad = CHUNK * PAD;
            2 * ((block * (self.bk + pad)).max(self.bk * (block + pad)) - pad)
        };
        staged(self.bm) + staged(self.bn) + 16 * self.result_quads(edge) + 32
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

/// The tiles that products run by on a device whose workgroups share `shared_bytes`, the largest
/// first.
pub(crate) fn tiles(device: Matrices, shared_bytes: usize) -> Vec<Tile> {
    let mut tiles = match device.edge {
        8 if device.lanes < 32 => vec![Tile::NARROW],
        8 => vec![Tile::EIGHT],
        _ => vec![Tile::LARGE, Tile::SMALL],
    };
    tiles.retain(|tile| tile.shared_bytes(device.edge) <= shared_bytes);
    tiles
}

/// The tile for a product, if it runs on the cooperative matrices of a device whose workgroups
/// share `shared_bytes`: the largest of which there are enough to keep a device busy.
pub(crate) fn tile(
    entry: &Entry,
    op: &Product,
    device: Matrices,
    shared_bytes: usize,
) -> Option<Tile> {
    const ENOUGH: usize = 96;
    let half = |tensor: TensorId| is_half(entry.tensors[tensor].dtype);
    let fits = half(op.left)
        && half(op.right)
        && op.n.is_multiple_of(CHUNK)
        && op.k.is_multiple_of(CHUNK)
        && (!op.transpose_left || op.m.is_multiple_of(CHUNK))
        && op.m.min(op.n) >= 16;
    let count = |tile: Tile| op.batch * op.m.div_ceil(tile.bm) * op.n.div_ceil(tile.bn);
    let tiles = tiles(device, shared_bytes);
    let enough = tiles.iter().copied().find(|tile| count(*tile) >= ENOUGH);
    enough.or(tiles.last().copied()).filter(|_| fits)
}

/// Whether codes are shifted, not decoded, while they are staged: NaN become numbers then, and all
/// are too small.
fn is_marked(dtype: DType) -> bool {
    dtype == DType::Float(Format::E4M3)
}

/// By what a staged operand is too small.
fn left_to_the_result(dtype: DType) -> f64 {
    if is_marked(dtype) { 256.0 } else { 1.0 }
}

/// The kernel.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    op: &Product,
    device: Matrices,
    tile: Tile,
    label: &str,
) -> Kernel {
    let Matrices { edge, lanes } = device;
    let mut builder = Builder::new(entry, memory);
    let mut op = *op;
    for tensor in [op.left, op.right] {
        op.result.alpha *= left_to_the_result(builder.dtype(tensor));
    }
    let op = &op;
    let Tile { bm, bn, sm, sn, bk } = tile;
    let threads = tile.subgroups() * lanes;
    let [left, right] = op.factors();
    let staged = |factor: Factor, first: &'static str, block: usize| {
        let Factor { name, tensor, rows, columns, along_inner, extent } = factor;
        Staged {
            tensor,
            rows,
            columns,
            along_inner,
            name,
            first,
            tile_rows: if along_inner { block } else { bk },
            tile_chunks: if along_inner { bk / CHUNK } else { block / CHUNK },
            ragged: !extent.is_multiple_of(block) || !op.k.is_multiple_of(bk),
            has_marks: is_marked(entry.tensors[tensor].dtype),
            threads,
        }
    };
    let (left, right) = (staged(left, "first_row", bm), staged(right, "first_column", bn));
    let (across, down) = (sn / edge, sm / edge);

    let mut accumulators = String::new();
    for i in 0..down {
        for j in 0..across {
            let _ = writeln!(accumulators, "    var sum{i}_{j} = coop_mat{edge}x{edge}<f32, C>();");
        }
    }
    for staged in [&left, &right] {
        for n in 0..staged.count() {
            let raw = staged.raw(&builder);
            let _ = writeln!(accumulators, "    var {}{n}: {raw};", staged.name);
        }
    }
    let indent = "        ";
    let fetch = |k: &str| left.fetch(k, indent) + &right.fetch(k, indent);
    let marked: Vec<&Staged> =
        [&left, &right].into_iter().filter(|staged| staged.has_marks).collect();
    let mut arrays = left.array() + &right.array();
    let mut stage = left.stage(indent) + &right.stage(indent);
    if !marked.is_empty() {
        // Memory of a workgroup begins with anything.
        accumulators.push_str(
            "    if (thread == 0u) { atomicStore(&nan_seen[0], 0u); }\n    workgroupBarrier();\n",
        );
        stage = format!(
            "{indent}var seen = 0u;\n{stage}{indent}if ((seen & 0x80808080u) != 0u) {{ \
             atomicStore(&nan_seen[0], 1u); }}\n"
        );
        arrays.push_str(
            "var<workgroup> nan_seen: array<atomic<u32>, 4>;\nvar<workgroup> any_nan: vec4<u32>;\n",
        );
    }
    let results = results(&mut builder, op, device, tile, &marked);
    let readers = left.reader(&mut builder) + &right.reader(&mut builder);
    let (row_tiles, column_tiles) = (op.m.div_ceil(bm), op.n.div_ceil(bn));
    let tiles = row_tiles * column_tiles * op.batch;
    let text = fill(
        TEMPLATE,
        &[
            ("edge", edge.to_string()),
            ("lanes", lanes.to_string()),
            ("bm", bm.to_string()),
            ("bn", bn.to_string()),
            ("sm", sm.to_string()),
            ("sn", sn.to_string()),
            ("bk", bk.to_string()),
            ("pad", (CHUNK * PAD).to_string()),
            ("arrays", arrays.trim_end().to_owned()),
            ("result_size", tile.result_quads(edge).to_string()),
            ("threads", threads.to_string()),
            ("tiles", tiles.to_string()),
            ("row_tiles", row_tiles.to_string()),
            ("batch_tiles", (row_tiles * column_tiles).to_string()),
            ("band", (8 * column_tiles).to_string()),
            ("subgroups_across", (bn / sn).to_string()),
            ("k", op.k.to_string()),
            ("last", (op.k.next_multiple_of(bk) - bk).to_string()),
            ("places", left.places() + right.places().trim_end()),
            (
                "own_places",
                own_places(&left, "own_row") + own_places(&right, "own_column").trim_end(),
            ),
            ("accumulators", accumulators.trim_end().to_owned()),
            ("first", fetch("0u").replace("        ", "    ").trim_end().to_owned()),
            ("stage", stage.trim_end().to_owned()),
            ("next", fetch("next").trim_end().to_owned()),
            ("products", multiply(edge, tile, &left, &right).trim_end().to_owned()),
            ("results", results.trim_end().to_owned()),
        ],
    );
    let directives = "enable wgpu_cooperative_matrix;\n";
    builder.finish_with(label, &(readers + &text), folded(tiles, 1), directives)
}

/// The statement that says where a subgroup's part of a tile begins.
fn own_places(staged: &Staged, own: &str) -> String {
    let place = match staged.along_inner {
        true => format!("{own} * {}u", staged.width()),
        false => format!("{own} / 4u"),
    };
    format!("    let {}_own = {place};\n", staged.name)
}

/// Statements that load matrices of both operands and multiply them, for a stage.
fn multiply(edge: usize, tile: Tile, left: &Staged, right: &Staged) -> String {
    let mut text = String::new();
    // Row-major where the rows of the matrix are those of the tile.
    let load = |staged: &Staged, role: &str, at: usize, inner: usize| {
        let (name, width) = (staged.name, staged.width());
        let rows_are_outer = staged.along_inner;
        let place = match rows_are_outer {
            true => at * width + inner / 4,
            false => inner * width + at / 4,
        };
        // Rows of the left matrix run along m, those of the right one along the inner axis.
        let row_major = (role == "A") == rows_are_outer;
        format!(
            "{}<coop_mat{edge}x{edge}<f16, {role}>>(&{name}_tile[{name}_own + {place}u], {width}u)",
            if row_major { "coopLoadT" } else { "coopLoad" },
        )
    };
    for inner in (0..tile.bk).step_by(edge) {
        for i in 0..tile.sm / edge {
            let value = load(left, "A", i * edge, inner);
            let _ = writeln!(text, "        let a{inner}_{i} = {value};");
        }
        for j in 0..tile.sn / edge {
            let value = load(right, "B", j * edge, inner);
            let _ = writeln!(text, "        let b{inner}_{j} = {value};");
            for i in 0..tile.sm / edge {
                let _ = writeln!(
                    text,
                    "        sum{i}_{j} = coopMultiplyAdd(a{inner}_{i}, b{inner}_{j}, sum{i}_{j});"
                );
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Home, Rounded};
    use crate::memory::plan;
    use wgpu::naga;

    fn source(
        product: Product,
        left: Format,
        right: Format,
        device: Matrices,
        tile: Tile,
        segment: usize,
    ) -> String {
        let mut entry = Entry::default();
        for (numel, format) in [
            (product.m * product.k, left),
            (product.n * product.k, right),
            (product.m * product.n, Format::F32),
        ] {
            entry.tensor(numel * product.batch, DType::Float(format), Home::Temporary);
        }
        let memory = plan(&mut entry, &[], 0, segment);
        kernel(&entry, &memory, &product, device, tile, "test").source
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
        let sixteen = Matrices { edge: 16, lanes: 32 };
        let eight = Matrices { edge: 8, lanes: 32 };
        let narrow = Matrices { edge: 8, lanes: 8 };
        for (device, tile) in [
            (sixteen, Tile::LARGE),
            (sixteen, Tile::SMALL),
            (sixteen, Tile { bn: 256, ..Tile::LARGE }),
            (eight, Tile::EIGHT),
            (narrow, Tile::NARROW),
        ] {
            for (transpose_left, transpose_right) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                for (left, right, segment) in [
                    (Format::F16, Format::F16, 1 << 27),
                    (Format::E4M3, Format::E5M2, 1 << 27),
                    (Format::E4M3, Format::E4M3, 1 << 14),
                ] {
                    let product = Product { transpose_left, transpose_right, ..base };
                    let text = source(product, left, right, device, tile, segment);
                    assert!(!text.contains("{{"), "{text}");
                    let module = naga::front::wgsl::parse_str(&text)
                        .unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
                    let flags = naga::valid::ValidationFlags::all();
                    let all = naga::valid::Capabilities::all();
                    let checked = naga::valid::Validator::new(flags, all).validate(&module);
                    assert!(checked.is_ok(), "{:?}\n{text}", checked.err());
                    let mut shared = 0;
                    for (_, variable) in module.global_variables.iter() {
                        if variable.space == naga::AddressSpace::WorkGroup {
                            let bytes = module.types[variable.ty].inner.size(module.to_ctx());
                            assert!(bytes.is_multiple_of(16), "{:?}: {bytes}", variable.name);
                            shared += bytes as usize;
                        }
                    }
                    let bound = tile.shared_bytes(device.edge);
                    assert!(shared <= bound, "{shared} bytes shared, not {bound}");
                }
            }
        }
    }
}
