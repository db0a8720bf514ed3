//! The output of attention, with the log-sum-exp of its logits.

use std::fmt::Write;

use super::writer::Writer;
use crate::ir::{Rounded, TensorId};
use crate::shader::kernel::{Kernel, folded};
use crate::shader::{fill, scalar_literal};

const FORWARD: &str = include_str!("../../wgsl/attention.wgsl");
const ACROSS: &str = include_str!("../../wgsl/across.wgsl");
const ACROSS_SUBGROUP: &str = include_str!("../../wgsl/across_subgroup.wgsl");

pub(super) fn forward(
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
            "    var largest{q} = vec4<f32>(-3.4028234e38);\n    var total{q} = vec4<f32>(0.0);\n"
        )
    });
    let mut softmax = writer.each_pair(|c, q| {
        format!(
            "        s{c}_{q} = select(vec4<f32>(-3.4028234e38), s{c}_{q} * {}, seen{c}_{q});\n",
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
    let mut values = writer.by_queries();
    values.extend([
        ("statistics", statistics + writer.zeros("o").trim_end()),
        ("products", writer.products("s", "fixed_rows", "keys").trim_end().to_owned()),
        ("softmax", softmax.trim_end().to_owned()),
        ("shrink", shrink.trim_end().to_owned()),
        ("add", writer.add("o", "weights", "values").trim_end().to_owned()),
        ("results", results.trim_end().to_owned()),
    ]);
    let tiles = op.queries.div_ceil(block.fixed()) * op.batch * op.heads;
    let text = fill(FORWARD, &values);
    writer.builder.finish(label, &(readers + &text), folded(tiles, 1))
}
