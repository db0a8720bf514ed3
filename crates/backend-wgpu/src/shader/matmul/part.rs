//! Operands of tiled products: read from memory, and staged.

use std::fmt::Write;

use crate::ir::TensorId;
use crate::shader::kernel::Builder;

/// An operand as it is stored.
pub(super) struct Stored {
    pub tensor: TensorId,
    pub rows: usize,
    pub columns: usize,
    /// The inner axis runs along the columns.
    pub along_inner: bool,
    /// Name of the function that reads four neighbours of a row.
    pub name: &'static str,
    /// Whether a tile can go beyond the operand.
    pub ragged: bool,
}

/// The function that reads four neighbours; those outside are 0.
pub(super) fn reader(builder: &mut Builder<'_>, stored: &Stored) -> String {
    let Stored { tensor, rows, columns, name, ragged, .. } = *stored;
    let x = builder.bind(tensor);
    let dtype = builder.dtype(tensor);
    let head = format!("fn {name}(batch: u32, row: u32, column: u32) -> vec4<f32> {{\n");
    let start = format!("batch * {}u + row * {columns}u + column", rows * columns);
    let body = if columns.is_multiple_of(4) {
        let bits = builder.library.decoded(dtype, &format!("x{x}_codes(({start}) / 4u)"));
        let guard = match ragged {
            true => format!(
                "    if (row >= {rows}u || column >= {columns}u) {{ return vec4<f32>(0.0); }}\n"
            ),
            false => String::new(),
        };
        format!("{guard}    return bitcast<vec4<f32>>({bits});\n}}\n")
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

/// An operand's part of a tile: rows of the inner axis, each of `extent / 4` quads. Where quads run
/// along the inner axis in memory, threads turn blocks of 4 x 4, and neighbours write to rows that
/// are four apart: their quads are mixed by [`mix`](Self::mix), so that they lie in different banks.
pub(super) struct Part<'a> {
    pub stored: &'a Stored,
    pub extent: usize,
    pub bk: usize,
    pub first: &'static str,
}

impl Part<'_> {
    pub fn blocks(&self) -> usize {
        self.extent / 4 * (self.bk / 4)
    }

    pub fn quads(&self) -> usize {
        self.extent / 4
    }

    /// What quads of inner rows `4 at ..` are mixed with, for one in eight banks.
    pub fn mix(&self) -> usize {
        if self.stored.along_inner { 8 / (self.bk / 4) } else { 0 }
    }

    /// Statements that fetch block `index` from inner element `k` on, into registers `{name}{0..4}`.
    pub fn fetch(&self, index: &str, k: &str, name: &str) -> String {
        let (reader, first) = (self.stored.name, self.first);
        let each = (0..4).map(|j| match self.stored.along_inner {
            true => {
                let inner = self.bk / 4;
                format!("{name}{j} = {reader}(batch, {first} + 4u * ({index} / {inner}u) + {j}u, {k} + 4u * ({index} % {inner}u));")
            }
            false => {
                let quads = self.quads();
                format!("{name}{j} = {reader}(batch, {k} + 4u * ({index} / {quads}u) + {j}u, {first} + 4u * ({index} % {quads}u));")
            }
        });
        each.collect::<Vec<_>>().join(" ")
    }

    /// Statements that put a block into its tile.
    pub fn stage(&self, index: &str, offset: &str, name: &str) -> String {
        let (quads, inner, tile) = (self.quads(), self.bk / 4, self.stored.name);
        let (start, each): (String, [String; 4]) = match self.stored.along_inner {
            true => (
                format!(
                    "{offset}4u * ({index} % {inner}u) * {quads}u + (({index} / {inner}u) ^ (({index} % {inner}u) * {}u))",
                    self.mix()
                ),
                ["x", "y", "z", "w"].map(|lane| {
                    format!(
                        "vec4<f32>({name}0.{lane}, {name}1.{lane}, {name}2.{lane}, {name}3.{lane})"
                    )
                }),
            ),
            false => (
                format!("{offset}4u * ({index} / {quads}u) * {quads}u + {index} % {quads}u"),
                [0, 1, 2, 3].map(|j| format!("{name}{j}")),
            ),
        };
        let mut text = format!("{{ let at = {start};");
        for (j, value) in each.iter().enumerate() {
            let _ = write!(text, " {tile}_tile[at + {}u] = {value};", j * quads);
        }
        text + " }"
    }
}
