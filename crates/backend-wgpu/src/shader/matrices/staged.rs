//! Operands of products on cooperative matrices, on their way into shared memory.

use std::fmt::Write;

use onesigma_format::Format;
use onesigma_graph::DType;

use super::CHUNK;
use crate::ir::TensorId;
use crate::shader::kernel::Builder;

/// Chunks by which a staged row is longer than its content.
pub(super) const PAD: usize = 1;

/// An operand and its tile.
pub(super) struct Staged {
    pub tensor: TensorId,
    /// As it is stored.
    pub rows: usize,
    pub columns: usize,
    /// The inner axis runs along the columns.
    pub along_inner: bool,
    pub name: &'static str,
    pub first: &'static str,
    pub tile_rows: usize,
    pub tile_chunks: usize,
    /// Whether a tile can go beyond the operand.
    pub ragged: bool,
    /// Whether NaN are told apart from the products: those of E4M3.
    pub has_marks: bool,
    pub threads: usize,
}

impl Staged {
    /// Chunks that a thread fetches.
    pub fn count(&self) -> usize {
        self.tile_rows.div_ceil(self.rows_at_once())
    }

    /// Quads of a row of the tile.
    pub fn width(&self) -> usize {
        2 * (self.tile_chunks + PAD)
    }

    /// The declaration of the tile, whose last row is not padded.
    pub fn array(&self) -> String {
        let size = self.tile_rows * self.width() - 2 * PAD;
        format!("var<workgroup> {}_tile: array<vec4<f16>, {size}>;\n", self.name)
    }

    /// The type of a chunk as it is stored.
    pub fn raw(&self, builder: &Builder<'_>) -> &'static str {
        if builder.dtype(self.tensor).bytes() == 1 { "vec2<u32>" } else { "vec4<u32>" }
    }

    /// The functions that read chunk `at` and make halves of it.
    pub fn reader(&self, builder: &mut Builder<'_>) -> String {
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
        let halves = halves(builder, builder.dtype(tensor));
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
    pub fn places(&self) -> String {
        let Self { name, first, tile_chunks, columns, rows, .. } = self;
        let chunks = columns / CHUNK;
        let (row, column) = match self.along_inner {
            true => (format!("{first} + {name}_row"), format!("{name}_column")),
            false => (format!("{name}_row"), format!("{first} / 8u + {name}_column")),
        };
        // Rows of four chunks are five apart: of eight threads that store at once, four take a row
        // and four the row that is four below, so that all store to different banks.
        let short = *tile_chunks == 4 && self.rows_at_once().is_multiple_of(8);
        let own = match short {
            true => {
                let row = format!("(thread / {tile_chunks}u)");
                format!("({row} & ~7u) | (({row} & 1u) << 2u) | (({row} >> 1u) & 3u)")
            }
            false => format!("thread / {tile_chunks}u"),
        };
        format!(
            "    let {name}_row = {own};\n    \
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
        for n in 0..self.count() {
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
    pub fn fetch(&self, k: &str, indent: &str) -> String {
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

    /// Statements that note whether a chunk has a NaN, codes of 0x7f: their neighbours have the
    /// highest bit. The variable lives for a stage only, while no matrices are loaded: registers are
    /// what limits the tile.
    fn mark(&self, n: usize) -> String {
        if !self.has_marks {
            return String::new();
        }
        let name = self.name;
        format!("let next = next_code({name}{n}); seen |= next.x | next.y; ")
    }

    /// Statements that look for NaN in a tile's rows or columns of the result, over the whole inner
    /// axis, and leave 1 or 0 for each in `result_tile` from `marks` on. Each has one thread.
    pub fn find(&self, marks: usize, indent: &str) -> String {
        let Self { name, first, rows, columns, threads, tile_rows, tile_chunks, .. } = self;
        let chunks = columns / CHUNK;
        let (count, steps, row, chunk) = match self.along_inner {
            true => (*tile_rows, chunks, format!("({first} + n)"), "i".to_owned()),
            false => (*tile_chunks, *rows, "i".to_owned(), format!("({first} / 8u + n)")),
        };
        let more = if self.ragged { format!(", {row}, 8u * {chunk}") } else { String::new() };
        let mark = match self.along_inner {
            true => format!(
                "result_tile[{marks}u + n] = vec4<f32>(select(0.0, 1.0, ((seen.x | seen.y) & 0x80808080u) != 0u));"
            ),
            false => format!(
                "for (var i = 0u; i < 8u; i++) {{ result_tile[{marks}u + 8u * n + i] = \
                 vec4<f32>(select(0.0, 1.0, ((seen[i / 4u] >> (8u * (i % 4u))) & 0x80u) != 0u)); }}"
            ),
        };
        format!(
            "{indent}for (var n = thread; n < {count}u; n += {threads}u) {{\n\
             {indent}    var seen = vec2<u32>();\n\
             {indent}    for (var i = 0u; i < {steps}u; i++) {{ seen |= next_code({name}(batch * {}u + {row} * {chunks}u + {chunk}{more})); }}\n\
             {indent}    {mark}\n\
             {indent}}}\n",
            rows * chunks
        )
    }

    /// Statements that put what was fetched into the tile.
    pub fn stage(&self, indent: &str) -> String {
        let Self { name, .. } = self;
        self.each(indent, |n, below| {
            format!(
                "{{ {}let own = {name}_halves({name}{n}); {name}_tile[{name}_to + {1}u] = own[0]; {name}_tile[{name}_to + {2}u] = own[1]; }}",
                self.mark(n),
                below * self.width(),
                below * self.width() + 1
            )
        })
    }
}

/// Body of the function that makes eight halves of a chunk `c`. In E4M3 the exponent is 8 too small
/// then, which the scale of the result makes good, and a NaN becomes a number: [`Staged::mark`].
fn halves(builder: &mut Builder<'_>, dtype: DType) -> String {
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
