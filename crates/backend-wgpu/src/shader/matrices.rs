//! Products of matrices on cooperative matrices: operands that are exact in F16, decoded to it
//! while they are staged, sums in f32.

use std::fmt::Write;

use onesigma_format::Format;
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
/// Elements of a chunk, the unit in which operands are fetched: two quads of shared memory.
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
    /// Stages in shared memory: with 2 or 3 one is worked on while the other is filled, after the
    /// products or (3) among them.
    pub stages: usize,
    /// F16 is read as such, not as words.
    pub plain: bool,
}

impl From<[usize; 7]> for Tile {
    fn from([bm, bn, sm, sn, bk, stages, plain]: [usize; 7]) -> Self {
        Self { bm, bn, sm, sn, bk, stages, plain: plain == 1 }
    }
}

impl Tile {
    /// Four subgroups of 64 x 64; `examples/kernels.rs` tries others.
    pub(crate) const LARGE: Self =
        Self { bm: 128, bn: 128, sm: 64, sn: 64, bk: 32, stages: 1, plain: false };
    /// For E4M3, whose codes take the registers that the large tile has to spare.
    const WIDE: Self = Self { bm: 128, bn: 256, ..Self::LARGE };
    const DEEP: Self = Self { sn: 32, bk: 64, ..Self::LARGE };
    /// For products with few large tiles.
    pub(crate) const SMALL: Self =
        Self { bm: 64, bn: 64, sm: 32, sn: 32, bk: 64, stages: 1, plain: false };

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
    let marked = |tensor: TensorId| entry.tensors[tensor].dtype == DType::Float(Format::E4M3);
    let choice: &[Tile] = match marked(op.left) || marked(op.right) {
        true => &[Tile::WIDE, Tile::DEEP],
        false => &[Tile::LARGE],
    };
    let enough =
        |tile: &Tile| count(*tile) >= if *tile == Tile::WIDE { 2 * ENOUGH } else { ENOUGH };
    fits.then(|| choice.iter().copied().find(enough).unwrap_or(Tile::SMALL))
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
    plain: bool,
    /// Whether NaN are told apart from the products: those of E4M3.
    has_marks: bool,
    threads: usize,
}

impl Staged {
    /// Chunks that a thread fetches.
    fn count(&self) -> usize {
        self.tile_rows.div_ceil(self.rows_at_once())
    }

    /// Quads of a row of the tile.
    fn width(&self) -> usize {
        2 * (self.tile_chunks + PAD)
    }

    fn size(&self) -> usize {
        self.tile_rows * self.width()
    }

    /// The type of a chunk as it is stored.
    fn raw(&self, builder: &Builder<'_>) -> &'static str {
        let dtype = builder.dtype(self.tensor);
        match dtype.bytes() {
            1 => "vec2<u32>",
            _ if self.plain && dtype == DType::Float(Format::F16) => "mat2x4<f16>",
            _ => "vec4<u32>",
        }
    }

    /// The functions that read chunk `at` and make halves of it.
    fn reader(&self, builder: &mut Builder<'_>) -> String {
        let Self { tensor, rows, columns, name, .. } = *self;
        let raw = self.raw(builder);
        let x = builder.bind_chunks(tensor, raw);
        // Of a tile that goes beyond the operand, rows and columns are told.
        let (more, guard) = match self.ragged {
            true => (
                ", row: u32, column: u32",
                format!("    if (row >= {rows}u || column >= {columns}u) {{ return {raw}(); }}\n"),
            ),
            false => ("", String::new()),
        };
        let halves = match raw {
            "mat2x4<f16>" => "    return c;\n".to_owned(),
            _ => words(builder, builder.dtype(tensor)),
        };
        format!(
            "fn {name}(at: u32{more}) -> {raw} {{\n{guard}    return x{x}_load(at);\n}}\n\
             fn {name}_halves(c: {raw}) -> mat2x4<f16> {{\n{halves}}}\n"
        )
    }

    /// Rows of the tile that the threads take at once, each a chunk; the chunks of a row may be
    /// more than there are threads.
    fn rows_at_once(&self) -> usize {
        (self.threads / self.tile_chunks).max(1)
    }

    /// Statements before the loop: where a thread's first chunk lies in the operand and the tile.
    fn places(&self) -> String {
        let Self { name, first, tile_chunks, columns, rows, .. } = self;
        let chunks = columns / CHUNK;
        let (row, column) = match self.along_inner {
            true => (format!("{first} + {name}_row"), format!("{name}_column")),
            false => (format!("{name}_row"), format!("{first} / 8u + {name}_column")),
        };
        format!(
            "    let {name}_row = thread / {tile_chunks}u;\n    \
             let {name}_column = thread % {tile_chunks}u;\n    \
             let {name}_from = batch * {}u + ({row}) * {chunks}u + {column};\n    \
             let {name}_to = {name}_row * {}u + 2u * {name}_column;\n",
            rows * chunks,
            self.width()
        )
    }

    /// The statement for each chunk of a thread: its number, rows below the first, guard.
    fn each(&self, indent: &str, text: impl Fn(usize, usize) -> String) -> String {
        let mut all = String::new();
        let step = self.rows_at_once();
        for n in 0..self.tile_rows.div_ceil(step) {
            let beyond = (n + 1) * step > self.tile_rows || step * self.tile_chunks < self.threads;
            let own = text(n, n * step);
            let _ = match beyond {
                true => writeln!(
                    all,
                    "{indent}if ({0}_row + {1}u < min({2}u, {3}u)) {{ {own} }}",
                    self.name,
                    n * step,
                    self.tile_rows,
                    (n + 1) * step
                ),
                false => writeln!(all, "{indent}{own}"),
            };
        }
        all
    }

    /// Statements that fetch from inner element `k` on.
    fn fetch(&self, k: &str, indent: &str) -> String {
        let Self { name, first, columns, .. } = self;
        let chunks = columns / CHUNK;
        self.each(indent, |n, below| {
            let inner = match self.along_inner {
                true => format!("{k} / 8u"),
                false => format!("{k} * {chunks}u"),
            };
            let place = format!("{name}_from + {inner} + {}u", below * chunks);
            match (self.ragged, self.along_inner) {
                (false, _) => format!("{name}{n} = {name}({place});"),
                (true, true) => format!(
                    "{name}{n} = {name}({place}, {first} + {name}_row + {below}u, {k} + 8u * {name}_column);"
                ),
                (true, false) => format!(
                    "{name}{n} = {name}({place}, {k} + {name}_row + {below}u, {first} + 8u * {name}_column);"
                ),
            }
        })
    }

    /// Variables of the NaN that a thread has seen, for each row of its own or for eight columns.
    fn marks(&self) -> String {
        let name = self.name;
        match (self.has_marks, self.along_inner) {
            (false, _) => String::new(),
            (true, false) => format!("    var {name}_seen: vec2<u32>;\n"),
            (true, true) => {
                (0..self.count()).map(|n| format!("    var {name}_seen{n}: u32;\n")).collect()
            }
        }
    }

    /// Statements that mark NaN of a chunk: codes of 0x7f, whose neighbour has the highest bit.
    fn mark(&self, n: usize) -> String {
        let name = self.name;
        if !self.has_marks {
            return String::new();
        }
        let next =
            format!("let next = ({name}{n} & vec2<u32>(0x7f7f7f7fu)) + vec2<u32>(0x01010101u); ");
        next + &match self.along_inner {
            true => format!("{name}_seen{n} |= next.x | next.y; "),
            false => format!("{name}_seen |= next; "),
        }
    }

    /// Statements that tell the workgroup which rows or columns of the result are NaN.
    fn tell(&self) -> String {
        let name = self.name;
        let mut text = String::new();
        if !self.has_marks {
            return text;
        }
        if self.along_inner {
            for n in 0..self.count() {
                let _ = writeln!(
                    text,
                    "    if (({name}_seen{n} & 0x80808080u) != 0u) {{ atomicStore(&{name}_nan[{name}_row + {}u], 1u); }}",
                    n * self.rows_at_once()
                );
            }
            return text;
        }
        for (word, at) in [("x", 0), ("y", 4)] {
            let _ = writeln!(
                text,
                "    for (var n = 0u; n < 4u; n++) {{ if ((({name}_seen.{word} >> (8u * n)) & 0x80u) != 0u) {{ atomicStore(&{name}_nan[8u * {name}_column + {at}u + n], 1u); }} }}"
            );
        }
        text
    }

    /// Rows or columns of the result in a tile.
    fn outer(&self) -> usize {
        if self.along_inner { self.tile_rows } else { CHUNK * self.tile_chunks }
    }

    /// Statements that put what was fetched into the tile of a stage.
    fn stage(&self, stage: usize, indent: &str) -> String {
        let Self { name, .. } = self;
        self.each(indent, |n, below| {
            format!(
                "{{ {mark}let own = {name}_halves({name}{n}); {name}_tile{stage}[{name}_to + {0}u] = own[0]; {name}_tile{stage}[{name}_to + {1}u] = own[1]; }}",
                below * self.width(),
                below * self.width() + 1,
                mark = self.mark(n)
            )
        })
    }
}

/// Body of the function that makes eight halves of a chunk `c`. In E4M3 the exponent is 8 too small
/// then, which the scale of the result makes good, and a NaN becomes a number: [`Staged::marks`].
fn words(builder: &mut Builder<'_>, dtype: DType) -> String {
    let spread = "    return mat2x4<f16>(spread(low.x, high.x), spread(low.y, high.y));\n";
    match dtype.format() {
        Some(Format::F16) => "    return mat2x4<f16>(halves(c.xy), halves(c.zw));\n".to_owned(),
        Some(Format::E4M3) => {
            "    let m = vec2<u32>(0x3f803f80u);\n    let s = vec2<u32>(0x80008000u);\n    \
             let low = ((c << vec2<u32>(8u)) & s) | ((c << vec2<u32>(7u)) & m);\n    \
             let high = (c & s) | ((c >> vec2<u32>(1u)) & m);\n"
                .to_owned()
                + spread
        }
        // The code is the high byte of a half.
        Some(Format::E5M2) => {
            "    let low = (c << vec2<u32>(8u)) & vec2<u32>(0xff00ff00u);\n    \
             let high = c & vec2<u32>(0xff00ff00u);\n"
                .to_owned()
                + spread
        }
        _ => {
            let (low, high) = match dtype.bytes() {
                1 => ("codes_1(c.x)", "codes_1(c.y)"),
                _ => ("codes_2(c.xy)", "codes_2(c.zw)"),
            };
            let mut half = |codes: &str| {
                let bits = builder.library.decoded(dtype, codes);
                format!("vec4<f16>(bitcast<vec4<f32>>({bits}))")
            };
            format!("    return mat2x4<f16>({}, {});\n", half(low), half(high))
        }
    }
}

/// By what a staged operand is too small.
fn left_to_the_result(dtype: DType) -> f64 {
    if dtype == DType::Float(Format::E4M3) { 256.0 } else { 1.0 }
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
    let Tile { bm, bn, sm, sn, bk, stages, plain } = tile;
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
            plain,
            has_marks: entry.tensors[tensor].dtype == DType::Float(Format::E4M3),
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
        accumulators.push_str(&staged.marks());
        for n in 0..staged.count() {
            let raw = staged.raw(&builder);
            let _ = writeln!(accumulators, "    var {}{n}: {raw};", staged.name);
        }
    }
    let multiply =
        |stage: usize, inner: std::ops::Range<usize>| multiply(tile, &left, &right, stage, inner);
    let indent = "        ";
    let fetch = |k: &str| left.fetch(k, indent) + &right.fetch(k, indent);
    let stage = |n: usize| left.stage(n, indent) + &right.stage(n, indent);
    const BARRIER: &str = "        workgroupBarrier();\n";
    let last = op.k.next_multiple_of(bk) - bk;
    let body = if stages == 1 {
        format!(
            "{}{BARRIER}        // The next part is under way while this one is worked on.\n        \
             let next = min(k + {bk}u, {last}u);\n{}{}{BARRIER}",
            stage(0),
            fetch("next"),
            multiply(0, 0..bk)
        )
    } else {
        // One stage is worked on while the other is filled.
        let half = |own: usize, ahead: usize| {
            let middle = if stages == 3 { bk - EDGE } else { bk };
            format!(
                "        let next{own} = min(k + {}u, {last}u);\n{}{}{}{}{BARRIER}",
                ahead * bk,
                fetch(&format!("next{own}")),
                multiply(own, 0..middle),
                stage(1 - own),
                multiply(own, middle..bk)
            )
        };
        let (first, second) = (half(0, 1), half(1, 2));
        let stop = match op.k.div_ceil(bk) % 2 {
            0 => String::new(),
            _ => format!("        if (k + {bk}u >= {}u) {{ break; }}\n", op.k),
        };
        first + &stop + &second
    };
    let before = if stages == 1 { String::new() } else { stage(0) + BARRIER };
    let results = results(&mut builder, op, tile, &left, &right);
    let readers = left.reader(&mut builder) + &right.reader(&mut builder);
    let (row_tiles, column_tiles) = (op.m.div_ceil(bm), op.n.div_ceil(bn));
    let tiles = row_tiles * column_tiles * op.batch;
    let mut arrays = String::new();
    for staged in [&left, &right] {
        for n in 0..stages.min(2) {
            let (name, size) = (staged.name, staged.size());
            let _ = writeln!(arrays, "var<workgroup> {name}_tile{n}: array<vec4<f16>, {size}>;");
        }
    }
    let mut before = before;
    for staged in [&left, &right].into_iter().filter(|staged| staged.has_marks) {
        let (name, size) = (staged.name, staged.outer());
        let _ = writeln!(arrays, "var<workgroup> {name}_nan: array<atomic<u32>, {size}>;");
        let _ = writeln!(
            before,
            "    for (var n = thread; n < {size}u; n += {threads}u) {{ atomicStore(&{name}_nan[n], 0u); }}"
        );
    }
    let told = left.tell() + &right.tell();
    let results =
        if told.is_empty() { results } else { told + "    workgroupBarrier();\n" + &results };
    let text = fill(
        TEMPLATE,
        &[
            ("bm", bm.to_string()),
            ("bn", bn.to_string()),
            ("sm", sm.to_string()),
            ("sn", sn.to_string()),
            ("bk", bk.to_string()),
            ("pad", (CHUNK * PAD).to_string()),
            ("arrays", arrays.trim_end().to_owned()),
            ("result_size", (threads / LANES * EDGE * PATCH).to_string()),
            ("threads", threads.to_string()),
            ("tiles", tiles.to_string()),
            ("row_tiles", row_tiles.to_string()),
            ("batch_tiles", (row_tiles * column_tiles).to_string()),
            ("band", (8 * column_tiles).to_string()),
            ("subgroups_across", (bn / sn).to_string()),
            ("k", op.k.to_string()),
            ("step", (bk * stages.min(2)).to_string()),
            ("places", left.places() + right.places().trim_end()),
            (
                "own_places",
                own_places(&left, "own_row") + own_places(&right, "own_column").trim_end(),
            ),
            ("accumulators", accumulators.trim_end().to_owned()),
            ("before", (fetch("0u") + &before).trim_end().to_owned()),
            ("body", body.trim_end().to_owned()),
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

/// Statements that load matrices of both operands and multiply them, for a part of a stage.
fn multiply(
    tile: Tile,
    left: &Staged,
    right: &Staged,
    stage: usize,
    part: std::ops::Range<usize>,
) -> String {
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
            "{}<coop_mat16x16<f16, {role}>>(&{name}_tile{stage}[{name}_own + {place}u], {width}u)",
            if row_major { "coopLoadT" } else { "coopLoad" },
        )
    };
    for inner in part.step_by(EDGE) {
        for i in 0..tile.sm / EDGE {
            let value = load(left, "A", i * EDGE, inner);
            let _ = writeln!(text, "        let a{stage}_{inner}_{i} = {value};");
        }
        for j in 0..tile.sn / EDGE {
            let value = load(right, "B", j * EDGE, inner);
            let _ = writeln!(text, "        let b{stage}_{inner}_{j} = {value};");
            for i in 0..tile.sm / EDGE {
                let _ = writeln!(
                    text,
                    "        sum{i}_{j} = coopMultiplyAdd(a{stage}_{inner}_{i}, b{stage}_{inner}_{j}, sum{i}_{j});"
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
fn results(
    builder: &mut Builder<'_>,
    op: &Product,
    tile: Tile,
    left: &Staged,
    right: &Staged,
) -> String {
    let marked = left.has_marks || right.has_marks;
    let whole = op.m.is_multiple_of(tile.bm) && op.n.is_multiple_of(tile.bn);
    if op.result.is_f32() && whole && !marked && builder.is_whole(op.out) {
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
    if marked {
        let mut terms = Vec::new();
        if left.has_marks {
            terms.push("vec4<u32>(atomicLoad(&left_nan[row]))".to_owned());
        }
        if right.has_marks {
            let each = [0, 1, 2, 3].map(|lane| format!("atomicLoad(&right_nan[column + {lane}u])"));
            terms.push(format!("vec4<u32>({})", each.join(", ")));
        }
        builder.library.math();
        builder.library.add(
            "marked",
            format!(
                "fn marked(row: u32, column: u32, value: vec4<f32>) -> vec4<f32> {{\n    \
                 return select(value, not_a_number(), ({}) != vec4<u32>(0u));\n}}\n",
                terms.join(" | ")
            ),
        );
    }
    let mut text = String::new();
    let _ = writeln!(text, "    let own_patch = subgroup * {}u;", EDGE * PATCH);
    for i in 0..tile.sm / EDGE {
        for j in 0..tile.sn / EDGE {
            let _ = writeln!(
                text,
                "    coopStoreT(sum{i}_{j}, &result_tile[own_patch], {PATCH}u);\n    workgroupBarrier();"
            );
            for half in 0..2 {
                let row = format!("own_row + {}u + lane / 4u + {}u", i * EDGE, 8 * half);
                let column = format!("own_column + {}u + 4u * (lane % 4u)", j * EDGE);
                let value = format!(
                    "result_tile[own_patch + (lane / 4u + {}u) * {PATCH}u + lane % 4u]",
                    8 * half
                );
                let value = match marked {
                    true => format!("marked({row}, {column}, {value})"),
                    false => value,
                };
                let _ = writeln!(
                    text,
                    "    write_quad(batch, first_row + {row}, first_column + {column}, {value});"
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
