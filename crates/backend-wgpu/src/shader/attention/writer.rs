//! The parts that the three kernels have in common.

use std::fmt::Write;

use super::{Block, stride};
use crate::ir::{Attention, Rounded, TensorId};
use crate::shader::kernel::Builder;
use crate::shader::scalar_literal;

/// Writes the parts of a kernel.
pub(super) struct Writer<'a> {
    pub builder: Builder<'a>,
    pub op: &'a Attention,
    pub block: Block,
}

impl Writer<'_> {
    /// The function `name(batch, row, head, quad)`: four numbers of a row, 0 beyond the last.
    pub fn reader(&mut self, tensor: TensorId, name: &str, rows: usize, heads: usize) -> String {
        let quads = self.op.width / 4;
        let x = self.builder.bind(tensor);
        let dtype = self.builder.dtype(tensor);
        let at = format!("((batch * {rows}u + row) * {heads}u + head) * {quads}u + quad");
        let bits = self.builder.library.decoded(dtype, &format!("x{x}_codes({at})"));
        format!(
            "fn {name}(batch: u32, row: u32, head: u32, quad: u32) -> vec4<f32> {{\n    \
             if (row >= {rows}u) {{ return vec4<f32>(0.0); }}\n    \
             return bitcast<vec4<f32>>({bits});\n}}\n"
        )
    }

    /// The function `name(batch, row, head, quad, value)` that scales, rounds and writes.
    pub fn writer(&mut self, result: (Rounded, TensorId), name: &str, rows: usize, heads: usize) {
        let quads = self.op.width / 4;
        let (rounded, tensor) = result;
        let mut body = String::new();
        let at = format!("((batch * {rows}u + row) * {heads}u + head) * {quads}u + quad");
        let _ = writeln!(body, "    let at = {at};");
        self.builder.round(&mut body, &rounded, "value", None, "at", "r");
        body.push_str(&self.builder.store(tensor, "at", "r_codes"));
        self.builder.library.add(
            name,
            format!(
                "fn {name}(batch: u32, row: u32, head: u32, quad: u32, value: vec4<f32>) {{\n{body}}}\n"
            ),
        );
    }

    /// The function `name(batch, row, head)`: a statistic of a query.
    pub fn statistic(&mut self, tensor: TensorId, name: &str, at: &str) -> String {
        let x = self.builder.bind(tensor);
        format!(
            "fn {name}(batch: u32, row: u32, head: u32) -> f32 {{\n    \
             return bitcast<f32>(x{x}_code({at}));\n}}\n"
        )
    }

    /// The function `seen(batch, query, key)`. It has no `&&`, which is a branch: a thread asks for
    /// each of its logits, and a compiler that flattens nested branches needs 2^n blocks for n.
    pub fn seen(&mut self) -> String {
        let Attention { queries, keys, causal, mask, .. } = *self.op;
        let mut terms = vec![format!("(query < {queries}u)"), format!("(key < {keys}u)")];
        if causal {
            terms.push(format!("(key + {queries}u <= query + {keys}u)"));
        }
        if let Some(mask) = mask {
            let x = self.builder.bind(mask);
            terms.push(format!("(x{x}_code(batch * {keys}u + min(key, {}u)) != 0u)", keys - 1));
        }
        format!(
            "fn seen(batch: u32, query: u32, key: u32) -> bool {{\n    return {};\n}}\n",
            terms.join(" & ")
        )
    }

    pub fn each_pair(&self, text: impl Fn(usize, usize) -> String) -> String {
        let mut all = String::new();
        for c in 0..self.block.looped_of {
            for q in 0..self.block.fixed_of / 4 {
                all.push_str(&text(c, q));
            }
        }
        all
    }

    /// The fixed rows of a thread, by number: neighbours take neighbours.
    pub fn fixed_row(&self, n: usize) -> String {
        format!("ty + {}u", n * self.block.ty)
    }

    pub fn looped_row(&self, c: usize) -> String {
        format!("tx + {}u", c * self.block.tx)
    }

    /// Statements that make `{name}{c}_{q}`, products of looped row `c` with four fixed rows.
    pub fn products(&self, name: &str, fixed: &str, looped: &str) -> String {
        let (quads, stride) = (self.op.width / 4, stride(self.op.width));
        let mut text =
            self.each_pair(|c, q| format!("        var {name}{c}_{q} = vec4<f32>(0.0);\n"));
        let _ = writeln!(text, "        for (var quad = 0u; quad < {quads}u; quad++) {{");
        for n in 0..self.block.fixed_of {
            let row = self.fixed_row(n);
            let _ = writeln!(text, "            let a{n} = {fixed}[({row}) * {stride}u + quad];");
        }
        for c in 0..self.block.looped_of {
            let row = self.looped_row(c);
            let _ = writeln!(text, "            let b{c} = {looped}[({row}) * {stride}u + quad];");
            for q in 0..self.block.fixed_of / 4 {
                for lane in ["x", "y", "z", "w"] {
                    let each = [0, 1, 2, 3].map(|n| format!("a{}.{lane}", 4 * q + n));
                    let _ = writeln!(
                        text,
                        "            {name}{c}_{q} = fma(vec4<f32>({}), vec4<f32>(b{c}.{lane}), {name}{c}_{q});",
                        each.join(", ")
                    );
                }
            }
        }
        text.push_str("        }\n");
        text
    }

    /// Statements that make `seen{c}_{q}`; the looped rows are keys, or queries.
    pub fn masks(&self, looped_are_keys: bool) -> String {
        self.each_pair(|c, q| {
            let looped = format!("start + {}", self.looped_row(c));
            let each = [0, 1, 2, 3].map(|n| {
                let fixed = format!("first + {}", self.fixed_row(4 * q + n));
                match looped_are_keys {
                    true => format!("seen(batch, {fixed}, {looped})"),
                    false => format!("seen(batch, {looped}, {fixed})"),
                }
            });
            format!("        let seen{c}_{q} = vec4<bool>({});\n", each.join(", "))
        })
    }

    /// Statements that put `{name}{c}_{q}` into a patch, where a looped row has a row of quads of
    /// fixed ones.
    pub fn put(&self, name: &str, patch: &str) -> String {
        let width = self.block.fixed() / 4 + 1;
        self.each_pair(|c, q| {
            format!(
                "        {patch}[({}) * {width}u + ty + {}u] = {name}{c}_{q};\n",
                self.looped_row(c),
                q * self.block.ty
            )
        })
    }

    /// How many quads of each result row a thread has.
    pub fn columns(&self) -> usize {
        (self.op.width / 4).div_ceil(self.block.tx)
    }

    /// Whether quad `tx + e TX` can be beyond the row.
    pub fn column(&self, e: usize) -> (String, bool) {
        (format!("tx + {}u", e * self.block.tx), (e + 1) * self.block.tx > self.op.width / 4)
    }

    pub fn each_result(&self, text: impl Fn(usize, usize) -> String) -> String {
        let mut all = String::new();
        for n in 0..self.block.fixed_of {
            for e in 0..self.columns() {
                all.push_str(&text(n, e));
            }
        }
        all
    }

    pub fn zeros(&self, name: &str) -> String {
        self.each_result(|n, e| format!("    var {name}{n}_{e} = vec4<f32>(0.0);\n"))
    }

    /// Statements that add looped rows, weighted by a patch, to the results.
    pub fn add(&self, name: &str, patch: &str, looped: &str) -> String {
        let (quads, stride) = (self.op.width / 4, stride(self.op.width));
        let (rows, width) = (self.block.looped(), self.block.fixed() / 4 + 1);
        let mut text = format!("        for (var row = 0u; row < {rows}u; row++) {{\n");
        for q in 0..self.block.fixed_of / 4 {
            let _ = writeln!(
                text,
                "            let w{q} = {patch}[row * {width}u + ty + {}u];",
                q * self.block.ty
            );
        }
        for e in 0..self.columns() {
            let (column, beyond) = self.column(e);
            let column = if beyond { format!("min({column}, {}u)", quads - 1) } else { column };
            let _ = writeln!(text, "            let v{e} = {looped}[row * {stride}u + {column}];");
            for n in 0..self.block.fixed_of {
                let lane = ["x", "y", "z", "w"][n % 4];
                let _ = writeln!(
                    text,
                    "            {name}{n}_{e} = fma(vec4<f32>(w{}.{lane}), v{e}, {name}{n}_{e});",
                    n / 4
                );
            }
        }
        text.push_str("        }\n");
        text
    }

    /// Statements that write results by a function; `value` is what of each.
    pub fn written(
        &self,
        function: &str,
        rows: usize,
        head: &str,
        value: impl Fn(usize, usize) -> String,
    ) -> String {
        self.each_result(|n, e| {
            let (column, beyond) = self.column(e);
            let row = format!("first + {}", self.fixed_row(n));
            let inside = if beyond {
                format!(" && {column} < {}u", self.op.width / 4)
            } else {
                String::new()
            };
            format!(
                "    if ({row} < {rows}u{inside}) {{ {function}(batch, {row}, {head}, {column}, {}); }}\n",
                value(n, e)
            )
        })
    }

    /// The statement for each group of four fixed rows.
    pub fn each_four(&self, text: impl Fn(usize) -> String) -> String {
        (0..self.block.fixed_of / 4).map(text).collect()
    }

    /// A `vec4<f32>` of a statistic of four fixed rows.
    pub fn four(&self, function: &str, q: usize, rows: usize) -> String {
        let each = [0, 1, 2, 3].map(|n| {
            let row = self.fixed_row(4 * q + n);
            format!("{function}(batch, min(first + {row}, {}u), head)", rows - 1)
        });
        format!("vec4<f32>({})", each.join(", "))
    }

    /// What all templates have in common.
    pub fn values(&self) -> Vec<(&'static str, String)> {
        let Attention { batch, queries, keys, heads, kv_heads, width, scale, .. } = *self.op;
        let block = self.block;
        vec![
            ("threads", block.threads().to_string()),
            ("tx", block.tx.to_string()),
            ("fixed", block.fixed().to_string()),
            ("looped", block.looped().to_string()),
            ("fixed_size", (block.fixed() * stride(width)).to_string()),
            ("looped_size", (block.looped() * stride(width)).to_string()),
            ("patch_size", (block.looped() * (block.fixed() / 4 + 1)).to_string()),
            ("stride", stride(width).to_string()),
            ("quads", (width / 4).to_string()),
            ("heads", heads.to_string()),
            ("kv_heads", kv_heads.to_string()),
            ("shared", (heads / kv_heads).to_string()),
            ("pairs", (batch * heads).to_string()),
            ("kv_pairs", (batch * kv_heads).to_string()),
            ("queries", queries.to_string()),
            ("keys", keys.to_string()),
            ("scale", scalar_literal(scale)),
        ]
    }

    /// What the templates over blocks of queries have in common.
    pub fn by_queries(&self) -> Vec<(&'static str, String)> {
        let op = self.op;
        let blocks = op.queries.div_ceil(self.block.fixed());
        let mut values = self.values();
        values.extend([
            ("tiles", (blocks * op.batch * op.heads).to_string()),
            ("blocks", blocks.to_string()),
            ("end", self.end()),
            ("masks", self.masks(true).trim_end().to_owned()),
            ("put", self.put("s", "weights").trim_end().to_owned()),
        ]);
        values
    }

    /// The end of the keys that a block of queries sees.
    fn end(&self) -> String {
        let Attention { queries, keys, causal, .. } = *self.op;
        match causal {
            true => format!("min({keys}u, first + {}u)", self.block.fixed() + keys - queries),
            false => format!("{keys}u"),
        }
    }
}
