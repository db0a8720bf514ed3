//! Cross-entropy over the classes of each row, and its gradient for the logits.

use std::fmt::Write;

use onesigma_graph::DType;

use super::kernel::{Builder, Kernel, folded};
use super::rows::team_functions;
use super::{fill, literal};
use crate::ir::{Classes, ClassesKind, Entry, Rounded, TensorId};
use crate::memory::Memory;

const FORWARD: &str = include_str!("../wgsl/cross_entropy.wgsl");
const GRAD: &str = include_str!("../wgsl/cross_entropy_grad.wgsl");
/// Quads that a thread has under way.
const AT_ONCE: usize = 4;

/// Threads that share a row, and those of a workgroup.
fn teams(quads: usize) -> (usize, usize) {
    let team = quads.div_ceil(AT_ONCE).next_power_of_two().clamp(1, 256);
    (team, team.max(64))
}

/// The kernel.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    op: &Classes,
    subgroup: Option<u32>,
    label: &str,
) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    builder.library.math();
    let quads = op.width / 4;
    let (team, threads) = teams(quads);
    let x = builder.bind(op.logits);
    let dtype = builder.dtype(op.logits);
    let bits = builder.library.decoded(dtype, &format!("x{x}_codes(row * {quads}u + quad)"));
    let values = vec![
        ("width", op.width.to_string()),
        ("quads", quads.to_string()),
        ("team", team.to_string()),
        ("threads", threads.to_string()),
        ("per_group", (threads / team).to_string()),
        ("last_row", (op.rows - 1).to_string()),
        ("span", (AT_ONCE * team).to_string()),
        ("logits", format!("bitcast<vec4<f32>>({bits}) * {}", literal(op.mult))),
    ];
    let (template, values) = match op.kind {
        ClassesKind::Forward { losses } => {
            builder.library.add("team", team_functions(team, threads, subgroup));
            (FORWARD, with(values, vec![("results", statistics(&mut builder, op, losses))]))
        }
        ClassesKind::Grad { d_loss, count, result, out } => {
            let own = gradient(&mut builder, op, [Some(d_loss), count], &result, out);
            (GRAD, with(values, own))
        }
    };
    let text = fill(template, &values);
    builder.finish(label, &text, folded(op.rows, threads / team))
}

type Values = Vec<(&'static str, String)>;

fn with(mut values: Values, more: Values) -> Values {
    values.extend(more);
    values
}

/// Whether the mask counts a row.
fn counts(builder: &mut Builder<'_>, op: &Classes) -> String {
    op.mask.map_or_else(
        || "true".to_owned(),
        |mask| format!("x{}_code(row) != 0u", builder.bind(mask)),
    )
}

/// The value of an element.
fn element(builder: &mut Builder<'_>, tensor: TensorId, at: &str) -> String {
    let x = builder.bind(tensor);
    let dtype: DType = builder.dtype(tensor);
    let bits = builder.library.decoded(dtype, &format!("vec4<u32>(x{x}_code({at}))"));
    format!("bitcast<vec4<f32>>({bits}).x")
}

/// Statements that write the statistics of a row, and its loss if that is wanted.
fn statistics(builder: &mut Builder<'_>, op: &Classes, losses: Option<TensorId>) -> String {
    let x = builder.bind_words(op.statistics);
    let mut text = format!(
        "        x{x}_put(2u * row, bitcast<u32>(row_largest));\n        \
         x{x}_put(2u * row + 1u, bitcast<u32>(row_total));\n"
    );
    if let Some(losses) = losses {
        let counts = counts(builder, op);
        let targets = builder.bind(op.targets);
        let at = format!("row * {0}u + min(target_class, {1}u)", op.width, op.width - 1);
        let own = element(builder, op.logits, &at);
        let mult = super::scalar_literal(op.mult);
        let x = builder.bind_words(losses);
        let _ = write!(
            text,
            "        let target_class = x{targets}_code(row);\n        \
             var loss = logarithm(vec4<f32>(row_total)).x + row_largest - {own} * {mult};\n        \
             loss = select(not_a_number().x, loss, target_class < {}u);\n        \
             x{x}_put(row, bitcast<u32>(select(0.0, loss, {counts})));\n",
            op.width
        );
    }
    text.trim_end().to_owned()
}

/// What the template of the gradient takes.
fn gradient(
    builder: &mut Builder<'_>,
    op: &Classes,
    [d_loss, count]: [Option<TensorId>; 2],
    result: &Rounded,
    out: TensorId,
) -> Values {
    let quads = op.width / 4;
    let (team, _) = teams(quads);
    let statistics = builder.bind(op.statistics);
    let word = |at: &str| format!("bitcast<f32>(x{statistics}_code({at}))");
    let (largest, total) = (word("2u * row"), word("2u * row + 1u"));
    let mut factor = d_loss.map_or_else(|| "1.0".to_owned(), |t| element(builder, t, "0u"));
    if let Some(count) = count {
        factor = format!("{factor} / max({}, 1.0)", element(builder, count, "0u"));
    }
    let factor = format!("select(not_a_number().x, {factor}, target_class < {}u)", op.width);
    let counts = counts(builder, op);
    let target = format!("x{}_code(row)", builder.bind(op.targets));
    let (mut loads, mut results) = (String::new(), String::new());
    for n in 0..AT_ONCE {
        let ragged = n > 0 && !quads.is_multiple_of(AT_ONCE * team);
        let quad = format!("first + {}u", n * team);
        let quad = if ragged { format!("min({quad}, {}u)", quads - 1) } else { quad };
        let _ = writeln!(
            loads,
            "        let quad{n} = {quad};\n        let x{n} = logits(row, quad{n});"
        );
        if ragged {
            let _ = writeln!(results, "        if (first + {}u < {quads}u) {{", n * team);
        }
        let _ = writeln!(
            results,
            "        let is_target{n} = vec4<u32>(4u * quad{n}) + vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(target_class);\n        \
             let gradient{n} = (exponential(x{n} - largest) * share - select(vec4<f32>(0.0), vec4<f32>(1.0), is_target{n})) * factor;\n        \
             let value{n} = select(vec4<f32>(0.0), gradient{n}, counts);"
        );
        let (value, name) = (format!("value{n}"), format!("r{n}"));
        let at = format!("(row * {quads}u + quad{n})");
        builder.round(&mut results, result, &value, None, &at, &name);
        results.push_str(&builder.store(out, &at, &format!("{name}_codes")));
        if ragged {
            results.push_str("        }\n");
        }
    }
    vec![
        ("largest", largest),
        ("total", total),
        ("target", target),
        ("counts", counts),
        ("factor", factor),
        ("loads", loads),
        ("results", results),
    ]
}
