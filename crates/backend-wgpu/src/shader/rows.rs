//! Ops over rows: norms, softmax, their gradients, and the statistics of a cross-entropy.

use std::fmt::Write;

use super::kernel::{Builder, Kernel, folded};
use super::{fill, literal, scalar_literal};
use crate::ir::{Entry, RowKind, Rows, TensorId};
use crate::memory::Memory;

const TEMPLATE: &str = include_str!("../wgsl/rows.wgsl");
const TEAM: &str = include_str!("../wgsl/team.wgsl");
const TEAM_SUBGROUP: &str = include_str!("../wgsl/team_subgroup.wgsl");
/// Widest row that stays in registers.
const WIDEST: usize = 8192;

/// Whether rows of this width have a kernel.
pub(crate) fn fits(width: usize) -> bool {
    width > 0 && width.is_multiple_of(4) && width <= WIDEST
}

/// How a workgroup is divided.
#[derive(Clone, Copy, Debug)]
struct Teams {
    team: usize,
    threads: usize,
    /// Quads of a row that a thread keeps.
    count: usize,
}

impl Teams {
    fn new(width: usize) -> Self {
        let quads = width / 4;
        let team = quads.div_ceil(2).next_power_of_two().clamp(1, 256);
        Self { team, threads: team.max(64), count: quads.div_ceil(team) }
    }
}

/// The functions `team_sum` and `team_max`; with the size of a subgroup, by its operations where a
/// team is made of whole ones.
pub(crate) fn team_functions(team: usize, threads: usize, subgroup: Option<u32>) -> String {
    let common = [("team", team.to_string()), ("threads", threads.to_string())];
    match subgroup.map(|size| size as usize) {
        Some(size) if size > 1 && team.is_multiple_of(size) => {
            let mut values = common.to_vec();
            values.push(("size", size.to_string()));
            values.push(("subgroups", (team / size).to_string()));
            values.push(("all_subgroups", (threads / size).to_string()));
            fill(TEAM_SUBGROUP, &values)
        }
        _ => fill(TEAM, &common),
    }
}

/// The kernel.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    op: &Rows,
    subgroup: Option<u32>,
    label: &str,
) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    builder.library.math();
    let teams = Teams::new(op.width);
    let Teams { team, threads, count } = teams;
    builder.library.add("team", team_functions(team, threads, subgroup));
    let quads = op.width / 4;
    let kept = kept_operands(op.kind);
    let weighted = matches!(op.kind, RowKind::NormGrad { .. }) && op.operands.len() > 2;
    let guard = |j: usize| (j + 1) * team > quads;
    let mut load = String::new();
    for j in 0..count {
        for n in 0..kept {
            let _ = writeln!(load, "    var x{n}_{j} = vec4<f32>(0.0);");
        }
        let _ = writeln!(load, "    let quad{j} = member + {}u;", j * team);
        let condition = if guard(j) { format!("if (quad{j} < {quads}u) ") } else { String::new() };
        let _ = writeln!(load, "    {condition}{{");
        for n in 0..kept {
            let value = operand(&mut builder, op.operands[n], &format!("row * {quads}u + quad{j}"));
            let weight = match n == 1 && weighted {
                true => {
                    format!(" * {}", operand(&mut builder, op.operands[2], &format!("quad{j}")))
                }
                false => String::new(),
            };
            let _ = writeln!(load, "        x{n}_{j} = {value}{weight};");
        }
        load.push_str("    }\n");
    }
    let statistics = statistics(&mut builder, op, teams);
    let mut results = String::new();
    if let Some(out) = op.out {
        for j in 0..count {
            let mine = match guard(j) {
                true => format!("is_mine && quad{j} < {quads}u"),
                false => "is_mine".to_owned(),
            };
            let _ = writeln!(results, "    if ({mine}) {{");
            let value = result(&mut builder, op, j);
            let quad = format!("(row * {quads}u + quad{j})");
            builder.round(&mut results, &op.result, &value, None, &quad, &format!("r{j}"));
            results.push_str(&builder.store(out, &quad, &format!("r{j}_codes")));
            results.push_str("    }\n");
        }
    }
    let text = fill(
        TEMPLATE,
        &[
            ("title", title(op.kind).to_owned()),
            ("team", team.to_string()),
            ("width", op.width.to_string()),
            ("threads", threads.to_string()),
            ("per_group", (threads / team).to_string()),
            ("last_row", (op.rows - 1).to_string()),
            ("load", load),
            ("statistics", statistics),
            ("results", results),
        ],
    );
    builder.finish(label, &text, folded(op.rows, threads / team))
}

fn title(kind: RowKind) -> &'static str {
    match kind {
        RowKind::Norm { centred: true, .. } => "LayerNorm",
        RowKind::Norm { .. } => "RmsNorm",
        RowKind::NormGrad { centred: true, .. } => "Gradient of LayerNorm",
        RowKind::NormGrad { .. } => "Gradient of RmsNorm",
        RowKind::Softmax { .. } => "Softmax",
        RowKind::SoftmaxGrad { .. } => "Gradient of softmax",
    }
}

/// How many operands have an element for each element of the row.
fn kept_operands(kind: RowKind) -> usize {
    match kind {
        RowKind::Norm { .. } | RowKind::Softmax { .. } => 1,
        RowKind::NormGrad { .. } | RowKind::SoftmaxGrad { .. } => 2,
    }
}

/// Four values of an operand.
fn operand(builder: &mut Builder<'_>, tensor: TensorId, quad: &str) -> String {
    let x = builder.bind(tensor);
    let dtype = builder.dtype(tensor);
    let bits = builder.library.decoded(dtype, &format!("x{x}_codes({quad})"));
    format!("bitcast<vec4<f32>>({bits})")
}

/// Statements that work out what the row has in common.
fn statistics(builder: &mut Builder<'_>, op: &Rows, teams: Teams) -> String {
    let share = scalar_literal(1.0 / op.width as f64);
    let quads = op.width / 4;
    let mut text = String::new();
    // The sum of `term` over the row; `term` has `{j}` for the number of a quad.
    let sum = |text: &mut String, name: &str, term: &str| {
        let terms: Vec<String> = (0..teams.count)
            .map(|j| {
                let term = term.replace("{j}", &j.to_string());
                match (j + 1) * teams.team > quads {
                    true => {
                        format!("lanes_sum(select(vec4<f32>(0.0), {term}, quad{j} < {quads}u))")
                    }
                    false => format!("lanes_sum({term})"),
                }
            })
            .collect();
        let _ = writeln!(text, "    let {name} = team_sum({}, thread);", terms.join(" + "));
    };
    match op.kind {
        RowKind::Norm { eps, centred } | RowKind::NormGrad { eps, centred } => {
            if centred {
                sum(&mut text, "whole", "x0_{j}");
                let _ = writeln!(text, "    let mean = whole * {share};");
            } else {
                text.push_str("    let mean = 0.0;\n");
            }
            sum(&mut text, "square", "(x0_{j} - mean) * (x0_{j} - mean)");
            let _ = writeln!(
                text,
                "    let rsigma = reciprocal_root(vec4<f32>(square * {share} + {})).x;",
                scalar_literal(eps)
            );
            if matches!(op.kind, RowKind::NormGrad { .. }) {
                sum(&mut text, "all_along", "x1_{j} * ((x0_{j} - mean) * rsigma)");
                let _ = writeln!(text, "    let along = all_along * {share};");
                if centred {
                    sum(&mut text, "all_level", "x1_{j}");
                    let _ = writeln!(text, "    let level = all_level * {share};");
                } else {
                    text.push_str("    let level = 0.0;\n");
                }
            }
            let names = if centred { &["mean", "rsigma"][..] } else { &["rsigma"] };
            for (&tensor, name) in op.statistics.iter().zip(names) {
                let x = builder.bind_words(tensor);
                let _ = writeln!(
                    text,
                    "    if (member == 0u && is_mine) {{ x{x}_put(row, bitcast<u32>({name})); }}"
                );
            }
        }
        RowKind::Softmax { mult } => {
            let mult = literal(mult);
            let mut largest = String::new();
            for j in 0..teams.count {
                let lanes = format!("lanes_max(x0_{j} * {mult})");
                let lanes = match (j + 1) * teams.team > quads {
                    true => format!("select(negative(infinity()).x, {lanes}, quad{j} < {quads}u)"),
                    false => lanes,
                };
                largest = match j {
                    0 => lanes,
                    _ => format!("maximum(vec4<f32>({largest}), vec4<f32>({lanes})).x"),
                };
            }
            let _ = writeln!(text, "    let largest = team_max({largest}, thread);");
            for j in 0..teams.count {
                let _ = writeln!(text, "    x0_{j} = exponential(x0_{j} * {mult} - largest);");
            }
            sum(&mut text, "total", "x0_{j}");
            text.push_str("    let share = 1.0 / total;\n");
        }
        RowKind::SoftmaxGrad { forward_alpha, .. } => {
            let undo = scalar_literal(1.0 / forward_alpha);
            for j in 0..teams.count {
                let _ = writeln!(text, "    x0_{j} = x0_{j} * {undo};");
            }
            sum(&mut text, "along", "x0_{j} * x1_{j}");
        }
    }
    text
}

/// The value of quad `j` of the result.
fn result(builder: &mut Builder<'_>, op: &Rows, j: usize) -> String {
    match op.kind {
        RowKind::Norm { .. } => {
            let mut value = format!("(x0_{j} - mean) * rsigma");
            if let Some(&weight) = op.operands.get(1) {
                value = format!("{value} * {}", operand(builder, weight, &format!("quad{j}")));
            }
            if let Some(&bias) = op.operands.get(2) {
                value = format!("{value} + {}", operand(builder, bias, &format!("quad{j}")));
            }
            value
        }
        RowKind::NormGrad { .. } => {
            format!("rsigma * (x1_{j} - (x0_{j} - mean) * rsigma * along - level)")
        }
        RowKind::Softmax { .. } => format!("x0_{j} * share"),
        RowKind::SoftmaxGrad { mult, .. } => {
            format!("{} * x0_{j} * (x1_{j} - along)", literal(mult))
        }
    }
}
