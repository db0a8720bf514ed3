//! Attention and its gradients, one kernel each: blocks of logits live in shared memory and
//! registers, in f32, and never reach the device's memory.
//!
//! All three kernels have one form. A workgroup keeps `fixed` rows (queries, or in the gradient for
//! keys and values keys) and goes over blocks of `looped` rows. A thread works out the logits of
//! some fixed and some looped rows, then adds rows weighted by them to results of its fixed rows.

use std::fmt::Write;

use super::kernel::{Builder, Kernel, folded};
use super::{fill, scalar_literal};
use crate::gpu::Abilities;
use crate::ir::{Attention, AttentionKind, Entry, Rounded, TensorId};
use crate::memory::Memory;

const FORWARD: &str = include_str!("../wgsl/attention.wgsl");
const QUERY_GRAD: &str = include_str!("../wgsl/attention_query_grad.wgsl");
const KEY_GRAD: &str = include_str!("../wgsl/attention_key_grad.wgsl");
const ACROSS: &str = include_str!("../wgsl/across.wgsl");
const ACROSS_SUBGROUP: &str = include_str!("../wgsl/across_subgroup.wgsl");

/// Largest head size: a thread's results stay in registers.
const WIDEST: usize = 128;

/// The shape of a block, by its threads.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Threads along the looped rows, and along the fixed ones.
    tx: usize,
    ty: usize,
    /// Rows of a thread, of each kind.
    fixed_of: usize,
    looped_of: usize,
}

impl Block {
    const fn new(fixed: usize, looped: usize, tx: usize, ty: usize) -> Self {
        Self { tx, ty, fixed_of: fixed / ty, looped_of: looped / tx }
    }

    fn fixed(self) -> usize {
        self.ty * self.fixed_of
    }

    fn looped(self) -> usize {
        self.tx * self.looped_of
    }

    fn threads(self) -> usize {
        self.tx * self.ty
    }

    /// Bytes of shared memory with so many operands on each side and so many patches of weights.
    fn bytes(self, width: usize, fixed: usize, looped: usize, patches: usize) -> usize {
        let rows = fixed * self.fixed() + looped * self.looped();
        let patch = patches * self.looped() * (self.fixed() / 4 + 1);
        16 * (rows * stride(width) + patch + self.threads())
    }
}

/// Quads of a row in shared memory: an odd number, so that rows begin in different banks.
fn stride(width: usize) -> usize {
    (width / 4) | 1
}

const FORWARD_BLOCKS: [Block; 3] =
    [Block::new(64, 32, 8, 16), Block::new(32, 32, 8, 8), Block::new(16, 16, 4, 4)];
const GRAD_BLOCKS: [Block; 2] = [Block::new(32, 32, 8, 8), Block::new(16, 16, 4, 4)];

/// The first block that fits.
fn block(blocks: &[Block], width: usize, parts: [usize; 3], shared: usize) -> Option<Block> {
    let [fixed, looped, patches] = parts;
    blocks.iter().copied().find(|block| block.bytes(width, fixed, looped, patches) <= shared)
}

fn parts_of(kind: &AttentionKind) -> (&'static [Block], [usize; 3]) {
    match kind {
        AttentionKind::Forward { .. } => (&FORWARD_BLOCKS, [1, 2, 1]),
        AttentionKind::QueryGrad { .. } => (&GRAD_BLOCKS, [2, 2, 1]),
        AttentionKind::KeyGrad { .. } => (&GRAD_BLOCKS, [2, 2, 2]),
    }
}

/// Whether heads of this size have kernels on a device with so much shared memory.
pub(crate) fn fits(width: usize, shared: usize) -> bool {
    width > 0
        && width.is_multiple_of(4)
        && width <= WIDEST
        && block(&FORWARD_BLOCKS, width, [1, 2, 1], shared).is_some()
        && block(&GRAD_BLOCKS, width, [2, 2, 2], shared).is_some()
}

/// Writes the parts of a kernel.
struct Writer<'a> {
    builder: Builder<'a>,
    op: &'a Attention,
    block: Block,
}

impl Writer<'_> {
    /// The function `name(batch, row, head, quad)`: four numbers of a row, 0 beyond the last.
    fn reader(&mut self, tensor: TensorId, name: &str, rows: usize, heads: usize) -> String {
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
    fn writer(&mut self, result: (Rounded, TensorId), name: &str, rows: usize, heads: usize) {
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
    fn statistic(&mut self, tensor: TensorId, name: &str, at: &str) -> String {
        let x = self.builder.bind(tensor);
        format!(
            "fn {name}(batch: u32, row: u32, head: u32) -> f32 {{\n    \
             return bitcast<f32>(x{x}_code({at}));\n}}\n"
        )
    }

    /// The function `seen(batch, query, key)`.
    fn seen(&mut self) -> String {
        let Attention { queries, keys, causal, mask, .. } = *self.op;
        let mut terms = vec![format!("query < {queries}u"), format!("key < {keys}u")];
        if causal {
            terms.push(format!("key + {queries}u <= query + {keys}u"));
        }
        if let Some(mask) = mask {
            let x = self.builder.bind(mask);
            terms.push(format!("x{x}_code(batch * {keys}u + min(key, {}u)) != 0u", keys - 1));
        }
        format!(
            "fn seen(batch: u32, query: u32, key: u32) -> bool {{\n    return {};\n}}\n",
            terms.join(" && ")
        )
    }

    fn each_pair(&self, text: impl Fn(usize, usize) -> String) -> String {
        let mut all = String::new();
        for c in 0..self.block.looped_of {
            for q in 0..self.block.fixed_of / 4 {
                all.push_str(&text(c, q));
            }
        }
        all
    }

    /// The fixed rows of a thread, by number: neighbours take neighbours.
    fn fixed_row(&self, n: usize) -> String {
        format!("ty + {}u", n * self.block.ty)
    }

    fn looped_row(&self, c: usize) -> String {
        format!("tx + {}u", c * self.block.tx)
    }

    /// Statements that make `{name}{c}_{q}`, products of looped row `c` with four fixed rows.
    fn products(&self, name: &str, fixed: &str, looped: &str) -> String {
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
    fn masks(&self, looped_are_keys: bool) -> String {
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
    fn put(&self, name: &str, patch: &str) -> String {
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
    fn columns(&self) -> usize {
        (self.op.width / 4).div_ceil(self.block.tx)
    }

    /// Whether quad `tx + e TX` can be beyond the row.
    fn column(&self, e: usize) -> (String, bool) {
        (format!("tx + {}u", e * self.block.tx), (e + 1) * self.block.tx > self.op.width / 4)
    }

    fn each_result(&self, text: impl Fn(usize, usize) -> String) -> String {
        let mut all = String::new();
        for n in 0..self.block.fixed_of {
            for e in 0..self.columns() {
                all.push_str(&text(n, e));
            }
        }
        all
    }

    fn zeros(&self, name: &str) -> String {
        self.each_result(|n, e| format!("    var {name}{n}_{e} = vec4<f32>(0.0);\n"))
    }

    /// Statements that add looped rows, weighted by a patch, to the results.
    fn add(&self, name: &str, patch: &str, looped: &str) -> String {
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
    fn written(
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
    fn each_four(&self, text: impl Fn(usize) -> String) -> String {
        (0..self.block.fixed_of / 4).map(text).collect()
    }

    /// A `vec4<f32>` of a statistic of four fixed rows.
    fn four(&self, function: &str, q: usize, rows: usize) -> String {
        let each = [0, 1, 2, 3].map(|n| {
            let row = self.fixed_row(4 * q + n);
            format!("{function}(batch, min(first + {row}, {}u), head)", rows - 1)
        });
        format!("vec4<f32>({})", each.join(", "))
    }

    /// What all templates have in common.
    fn values(&self) -> Vec<(&'static str, String)> {
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
}

/// The kernel.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    op: &Attention,
    abilities: Abilities,
    label: &str,
) -> Kernel {
    let (shared, subgroup) = (abilities.shared_bytes, abilities.subgroup);
    let (blocks, parts) = parts_of(&op.kind);
    // `fits` was asked when the op was lowered.
    let block = block(blocks, op.width, parts, shared).unwrap_or(blocks[blocks.len() - 1]);
    let mut builder = Builder::new(entry, memory);
    builder.library.math();
    let writer = Writer { builder, op, block };
    match op.kind {
        AttentionKind::Forward { out, lse } => forward(writer, out, lse, subgroup, label),
        AttentionKind::QueryGrad { dy, lse, along, out } => {
            query_grad(writer, [dy, lse, along], out, label)
        }
        AttentionKind::KeyGrad { dy, lse, along, dk, dv } => {
            key_grad(writer, [dy, lse, along], dk, dv, label)
        }
    }
}

fn forward(
    mut writer: Writer<'_>,
    out: (Rounded, TensorId),
    lse: (f64, TensorId),
    subgroup: Option<u32>,
    label: &str,
) -> Kernel {
    let op = writer.op;
    let block = writer.block;
    let mut readers = writer.reader(op.q, "query", op.queries, op.heads);
    readers += &writer.reader(op.k, "key", op.keys, op.kv_heads);
    readers += &writer.reader(op.v, "value", op.keys, op.kv_heads);
    readers += &writer.seen();
    writer.writer(out, "write", op.queries, op.heads);
    let x = writer.builder.bind_words(lse.1);
    let whole = subgroup.is_some_and(|size| (size as usize).is_multiple_of(block.tx));
    readers += &match whole {
        true => {
            let steps = |combine: &dyn Fn(usize) -> String| -> String {
                let mut step = 1;
                let mut text = String::new();
                while step < block.tx {
                    let _ = writeln!(text, "    all = {};", combine(step));
                    step *= 2;
                }
                text
            };
            let max = steps(&|step| format!("max(all, subgroupShuffleXor(all, {step}u))"));
            let sum = steps(&|step| format!("all + subgroupShuffleXor(all, {step}u)"));
            fill(ACROSS_SUBGROUP, &[("tx", block.tx.to_string()), ("max", max), ("sum", sum)])
        }
        false => {
            fill(ACROSS, &[("tx", block.tx.to_string()), ("threads", block.threads().to_string())])
        }
    };
    let columns = block.looped_of;
    let all = |term: &dyn Fn(usize) -> String, join: &dyn Fn(String, String) -> String| -> String {
        (1..columns).fold(term(0), |whole, c| join(whole, term(c)))
    };
    let statistics = writer.each_four(|_| String::new()) + &writer.each_four(|q| {
        format!(
            "    var largest{q} = vec4<f32>(-3.4028235e38);\n    var total{q} = vec4<f32>(0.0);\n"
        )
    });
    let mut softmax = writer.each_pair(|c, q| {
        format!(
            "        s{c}_{q} = select(vec4<f32>(-3.4028235e38), s{c}_{q} * {}, seen{c}_{q});\n",
            scalar_literal(op.scale)
        )
    });
    softmax += &writer.each_four(|q| {
        let own = all(&|c| format!("s{c}_{q}"), &|a, b| format!("max({a}, {b})"));
        format!("        let top{q} = max(largest{q}, across_max({own}, thread));\n")
    });
    softmax += &writer.each_pair(|c, q| {
        format!(
            "        s{c}_{q} = select(vec4<f32>(0.0), exponential(s{c}_{q} - top{q}), seen{c}_{q});\n"
        )
    });
    softmax += &writer.each_four(|q| {
        let own = all(&|c| format!("s{c}_{q}"), &|a, b| format!("{a} + {b}"));
        format!(
            "        let shrink{q} = exponential(largest{q} - top{q});\n        \
             total{q} = total{q} * shrink{q} + ({own});\n        largest{q} = top{q};\n"
        )
    });
    let shrink = writer.each_result(|n, e| {
        let lane = ["x", "y", "z", "w"][n % 4];
        format!("        o{n}_{e} = o{n}_{e} * shrink{}.{lane};\n", n / 4)
    });
    let mut results = writer.each_four(|q| {
        format!(
            "    let sum{q} = across_sum(total{q}, thread);\n    \
             let share{q} = select(1.0 / sum{q}, vec4<f32>(0.0), sum{q} == vec4<f32>(0.0));\n    \
             let lse{q} = bitcast<vec4<u32>>((largest{q} + logarithm(sum{q})) * {});\n",
            scalar_literal(lse.0)
        )
    });
    for n in 0..block.fixed_of {
        let row = format!("first + {}", writer.fixed_row(n));
        let _ = writeln!(
            results,
            "    if (tx == 0u && {row} < {0}u) {{ x{x}_put((batch * {1}u + head) * {0}u + {row}, lse{2}[{3}]); }}",
            op.queries,
            op.heads,
            n / 4,
            n % 4
        );
    }
    results += &writer.written("write", op.queries, "head", |n, e| {
        let lane = ["x", "y", "z", "w"][n % 4];
        format!("o{n}_{e} * share{}.{lane}", n / 4)
    });
    let blocks = op.queries.div_ceil(block.fixed());
    let tiles = blocks * op.batch * op.heads;
    let mut values = writer.values();
    values.extend([
        ("tiles", tiles.to_string()),
        ("blocks", blocks.to_string()),
        ("end", end(op, block)),
        ("statistics", statistics + writer.zeros("o").trim_end()),
        ("products", writer.products("s", "fixed_rows", "keys").trim_end().to_owned()),
        ("masks", writer.masks(true).trim_end().to_owned()),
        ("softmax", softmax.trim_end().to_owned()),
        ("put", writer.put("s", "weights").trim_end().to_owned()),
        ("shrink", shrink.trim_end().to_owned()),
        ("add", writer.add("o", "weights", "values").trim_end().to_owned()),
        ("results", results.trim_end().to_owned()),
    ]);
    let text = fill(FORWARD, &values);
    writer.builder.finish(label, &(readers + &text), folded(tiles, 1))
}

/// The end of the keys that a block of queries sees.
fn end(op: &Attention, block: Block) -> String {
    match op.causal {
        true => {
            format!("min({}u, first + {}u)", op.keys, block.fixed() + op.keys - op.queries)
        }
        false => format!("{}u", op.keys),
    }
}

fn query_grad(
    mut writer: Writer<'_>,
    [dy, lse, along]: [TensorId; 3],
    out: (Rounded, TensorId),
    label: &str,
) -> Kernel {
    let op = writer.op;
    let block = writer.block;
    let mut readers = grad_readers(&mut writer, dy, lse, along);
    let scaled = Rounded { alpha: out.0.alpha * op.scale, ..out.0 };
    writer.writer((scaled, out.1), "write", op.queries, op.heads);
    readers += &writer.seen();
    let statistics = writer.each_four(|q| {
        format!(
            "    let lse{q} = {};\n    let along{q} = {};\n",
            writer.four("log_sum", q, op.queries),
            writer.four("along", q, op.queries)
        )
    });
    let gradient = writer.each_pair(|c, q| {
        format!(
            "        s{c}_{q} = select(vec4<f32>(0.0), exponential(s{c}_{q} * {} - lse{q}), seen{c}_{q}) * (d{c}_{q} - along{q});\n",
            scalar_literal(op.scale)
        )
    });
    let blocks = op.queries.div_ceil(block.fixed());
    let tiles = blocks * op.batch * op.heads;
    let mut values = writer.values();
    values.extend([
        ("tiles", tiles.to_string()),
        ("blocks", blocks.to_string()),
        ("end", end(op, block)),
        ("statistics", statistics + writer.zeros("o").trim_end()),
        ("products", writer.products("s", "query_rows", "keys").trim_end().to_owned()),
        ("d_products", writer.products("d", "dy_rows", "values").trim_end().to_owned()),
        ("masks", writer.masks(true).trim_end().to_owned()),
        ("gradient", gradient.trim_end().to_owned()),
        ("put", writer.put("s", "weights").trim_end().to_owned()),
        ("add", writer.add("o", "weights", "keys").trim_end().to_owned()),
        (
            "results",
            writer
                .written("write", op.queries, "head", |n, e| format!("o{n}_{e}"))
                .trim_end()
                .to_owned(),
        ),
    ]);
    let text = fill(QUERY_GRAD, &values);
    writer.builder.finish(label, &(readers + &text), folded(tiles, 1))
}

fn grad_readers(writer: &mut Writer<'_>, dy: TensorId, lse: TensorId, along: TensorId) -> String {
    let op = writer.op;
    let (queries, heads) = (op.queries, op.heads);
    let mut readers = writer.reader(op.q, "query", queries, heads);
    readers += &writer.reader(dy, "d_output", queries, heads);
    readers += &writer.reader(op.k, "key", op.keys, op.kv_heads);
    readers += &writer.reader(op.v, "value", op.keys, op.kv_heads);
    let by_head = format!("(batch * {heads}u + head) * {queries}u + row");
    readers += &writer.statistic(lse, "log_sum", &by_head);
    let by_row = format!("(batch * {queries}u + row) * {heads}u + head");
    readers += &writer.statistic(along, "along", &by_row);
    readers
}

fn key_grad(
    mut writer: Writer<'_>,
    [dy, lse, along]: [TensorId; 3],
    dk: (Rounded, TensorId),
    dv: (Rounded, TensorId),
    label: &str,
) -> Kernel {
    let op = writer.op;
    let block = writer.block;
    let mut readers = grad_readers(&mut writer, dy, lse, along);
    let scaled = Rounded { alpha: dk.0.alpha * op.scale, ..dk.0 };
    writer.writer((scaled, dk.1), "write_dk", op.keys, op.kv_heads);
    writer.writer(dv, "write_dv", op.keys, op.kv_heads);
    readers += &writer.seen();
    let mut gradient = String::new();
    for c in 0..block.looped_of {
        let row = format!("min(start + {}, {}u)", writer.looped_row(c), op.queries - 1);
        let _ = writeln!(gradient, "        let lse{c} = log_sum(batch, {row}, head);");
        let _ = writeln!(gradient, "        let along{c} = along(batch, {row}, head);");
    }
    gradient += &writer.each_pair(|c, q| {
        format!(
            "        s{c}_{q} = select(vec4<f32>(0.0), exponential(s{c}_{q} * {} - vec4<f32>(lse{c})), seen{c}_{q});\n        \
             d{c}_{q} = s{c}_{q} * (d{c}_{q} - vec4<f32>(along{c}));\n",
            scalar_literal(op.scale)
        )
    });
    let first_query = match op.causal {
        true => {
            let ahead = op.keys - op.queries;
            let looped = block.looped();
            format!("(max(first, {ahead}u) - {ahead}u) / {looped}u * {looped}u")
        }
        false => "0u".to_owned(),
    };
    let blocks = op.keys.div_ceil(block.fixed());
    let tiles = blocks * op.batch * op.kv_heads;
    let results = writer.written("write_dk", op.keys, "kv_head", |n, e| format!("dk{n}_{e}"))
        + &writer.written("write_dv", op.keys, "kv_head", |n, e| format!("dv{n}_{e}"));
    let mut values = writer.values();
    values.extend([
        ("tiles", tiles.to_string()),
        ("blocks", blocks.to_string()),
        ("first_query", first_query),
        ("statistics", writer.zeros("dk") + writer.zeros("dv").trim_end()),
        ("products", writer.products("s", "key_rows", "queries").trim_end().to_owned()),
        ("d_products", writer.products("d", "value_rows", "dys").trim_end().to_owned()),
        ("masks", writer.masks(false).trim_end().to_owned()),
        ("gradient", gradient.trim_end().to_owned()),
        ("put", (writer.put("s", "weights") + &writer.put("d", "d_weights")).trim_end().to_owned()),
        (
            "add",
            (writer.add("dv", "weights", "dys") + &writer.add("dk", "d_weights", "queries"))
                .trim_end()
                .to_owned(),
        ),
        ("results", results.trim_end().to_owned()),
    ]);
    let text = fill(KEY_GRAD, &values);
    writer.builder.finish(label, &(readers + &text), folded(tiles, 1))
}
