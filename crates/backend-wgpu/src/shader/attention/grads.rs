//! Gradients of attention: for queries, and for keys and values.

use std::fmt::Write;

use super::writer::Writer;
use crate::ir::{Rounded, TensorId};
use crate::shader::kernel::{Kernel, folded};
use crate::shader::{fill, scalar_literal};

const QUERY_GRAD: &str = include_str!("../../wgsl/attention_query_grad.wgsl");
const KEY_GRAD: &str = include_str!("../../wgsl/attention_key_grad.wgsl");

pub(super) fn query_grad(
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
    let mut values = writer.by_queries();
    values.extend([
        ("statistics", statistics + writer.zeros("o").trim_end()),
        ("products", writer.products("s", "query_rows", "keys").trim_end().to_owned()),
        ("d_products", writer.products("d", "dy_rows", "values").trim_end().to_owned()),
        ("gradient", gradient.trim_end().to_owned()),
        ("add", writer.add("o", "weights", "keys").trim_end().to_owned()),
        (
            "results",
            writer
                .written("write", op.queries, "head", |n, e| format!("o{n}_{e}"))
                .trim_end()
                .to_owned(),
        ),
    ]);
    let tiles = op.queries.div_ceil(block.fixed()) * op.batch * op.heads;
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

pub(super) fn key_grad(
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
