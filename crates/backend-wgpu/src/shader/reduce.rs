//! Reductions: along rows where the last axis goes, along columns where it stays.

use std::fmt::Write;

use onesigma_graph::ReduceKind;

use super::index::{View, axis_coordinate};
use super::kernel::{Builder, Kernel, folded};
use super::{expression, fill, scalar_literal};
use crate::ir::{Entry, Reduction, TensorId};
use crate::memory::Memory;

const ROWS: &str = include_str!("../wgsl/reduce_rows.wgsl");
const COLUMNS: &str = include_str!("../wgsl/reduce_columns.wgsl");

/// Axes of one kind, with the strides of each operand.
struct Space {
    /// Axis of the whole index space.
    axes: Vec<usize>,
    dims: Vec<usize>,
    strides: Vec<Vec<usize>>,
}

impl Space {
    fn numel(&self) -> usize {
        self.dims.iter().product()
    }

    fn view(&self, operand: usize) -> View {
        View::new(&self.dims, &self.strides[operand], 0)
    }
}

/// Kept and reduced axes; axes of size 1 only where the expression asks for coordinates.
fn spaces(op: &Reduction) -> [Space; 2] {
    [false, true].map(|reduced| {
        let axes: Vec<usize> =
            (0..op.dims.len()).filter(|axis| op.axes.contains(axis) == reduced).collect();
        let dims = axes.iter().map(|&axis| op.dims[axis]).collect();
        let strides = op
            .operands
            .iter()
            .map(|(_, strides)| axes.iter().map(|&axis| strides[axis]).collect())
            .collect();
        Space { axes, dims, strides }
    })
}

/// Outputs and reduced elements of a reduction, and whether it runs along rows.
pub(crate) fn sizes(op: &Reduction) -> (usize, usize, bool) {
    let [kept, reduced] = spaces(op);
    let last = (0..op.dims.len()).rev().find(|&axis| op.dims[axis] != 1);
    let along_rows = last.is_none_or(|axis| op.axes.contains(&axis));
    (kept.numel(), reduced.numel(), along_rows)
}

/// In how many parts the reduced elements are best split, so that the device has work for all of
/// its cores.
pub(crate) fn parts(op: &Reduction) -> usize {
    const GROUPS: usize = 1024;
    let (outputs, count, along_rows) = sizes(op);
    let (groups, least) = match along_rows {
        true => (outputs, 8192),
        false => (outputs.div_ceil(128), 128),
    };
    (GROUPS / groups.max(1)).min(count / least).max(1)
}

/// The kernel; with several parts, outputs are `[outputs, parts]` along rows and
/// `[parts, outputs]` along columns.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    op: &Reduction,
    parts: usize,
    out: TensorId,
    label: &str,
) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    builder.library.math();
    let (outputs, count, along_rows) = sizes(op);
    let [kept, reduced] = spaces(op);
    let mut body = String::new();
    let names: Vec<String> = (0..op.operands.len())
        .map(|n| load(&mut builder, &mut body, op, n, &kept, &reduced, along_rows))
        .collect();
    let index = |axis: usize| {
        let (o, r) = match along_rows {
            true => (["o"; 4], ["r.x", "r.y", "r.z", "r.w"]),
            false => (["o.x", "o.y", "o.z", "o.w"], ["r"; 4]),
        };
        let (space, at) = match op.axes.contains(&axis) {
            true => (&reduced, r),
            false => (&kept, o),
        };
        let own = space.axes.iter().position(|&other| other == axis).unwrap_or(0);
        let each = at.map(|at| axis_coordinate(at, &space.dims, own));
        format!("vec4<u32>({})", each.join(", "))
    };
    let value = expression::emit(&mut body, &op.expr, "t", &names, index);
    let body = body.replace("    let", "        let");
    let alpha = match parts {
        1 => op.alpha,
        _ => 1.0,
    };
    let sum = op.kind == ReduceKind::Sum;
    let initial = if sum { "vec4<f32>(0.0)".to_owned() } else { "negative(infinity())".to_owned() };
    if along_rows {
        let quads = count.div_ceil(4);
        let part_quads = quads.div_ceil(parts);
        let team = part_quads.next_power_of_two().clamp(1, 256);
        let threads = team.max(64);
        let x = builder.bind_words(out);
        let text = fill(
            ROWS,
            &[
                ("threads", threads.to_string()),
                ("team", team.to_string()),
                ("per_group", (threads / team).to_string()),
                (
                    "combined",
                    if sum { "a + b" } else { "maximum(vec4<f32>(a), vec4<f32>(b)).x" }.to_owned(),
                ),
                ("last", (outputs * parts - 1).to_string()),
                ("parts", parts.to_string()),
                ("part_quads", part_quads.to_string()),
                ("quads", quads.to_string()),
                ("count", count.to_string()),
                ("last_reduced", count.saturating_sub(1).to_string()),
                ("initial", initial),
                ("body", body),
                (
                    "take",
                    match sum {
                        true if count.is_multiple_of(4) => format!("total + {value}"),
                        true => format!("total + select(vec4<f32>(0.0), {value}, inside)"),
                        false => format!("maximum(total, {value})"),
                    },
                ),
                ("out", format!("x{x}")),
                ("alpha", scalar_literal(alpha)),
            ],
        );
        return builder.finish(label, &text, folded(outputs * parts, threads / team));
    }
    let quads = outputs.div_ceil(4);
    let store = match outputs.is_multiple_of(4) {
        true => {
            let x = builder.bind(out);
            format!("x{x}_store(part * {quads}u + quad, sums);")
        }
        false => {
            let x = builder.bind_words(out);
            let mut text = String::new();
            for lane in 0..4 {
                let _ = write!(
                    text,
                    "if (4u * quad + {lane}u < {outputs}u) {{ x{x}_put(part * {outputs}u + 4u * quad + {lane}u, sums[{lane}]); }} "
                );
            }
            text
        }
    };
    let tiles = quads.div_ceil(32);
    let text = fill(
        COLUMNS,
        &[
            ("combined", if sum { "a + b" } else { "maximum(a, b)" }.to_owned()),
            ("tiles", tiles.to_string()),
            ("last_quad", (quads - 1).to_string()),
            ("last", (outputs - 1).to_string()),
            ("part_count", count.div_ceil(parts).to_string()),
            ("count", count.to_string()),
            ("parts", parts.to_string()),
            ("initial", initial),
            ("body", body),
            ("value", value),
            ("alpha", scalar_literal(alpha)),
            ("store", store),
        ],
    );
    builder.finish(label, &text, folded(tiles * parts, 1))
}

/// Statements that load operand `n` at four positions; gives its name.
fn load(
    builder: &mut Builder<'_>,
    body: &mut String,
    op: &Reduction,
    n: usize,
    kept: &Space,
    reduced: &Space,
    along_rows: bool,
) -> String {
    let name = format!("v{n}");
    let (tensor, _) = &op.operands[n];
    let (o, r) = (kept.view(n), reduced.view(n));
    let fits = |view: &View| view.axes.iter().all(|&(_, stride)| stride.is_multiple_of(4));
    let (moving, fixed) = if along_rows { (&r, &o) } else { (&o, &r) };
    let x = builder.bind(*tensor);
    let (mine, other) = if along_rows { ("(4u * q)", "o") } else { ("(4u * first)", "r") };
    let codes = if moving.is_quads() && fits(fixed) {
        format!("x{x}_codes(({} + {}) / 4u)", fixed.element(other), moving.element(mine))
    } else if moving.is_splat() || moving.is_scalar() {
        format!("vec4<u32>(x{x}_code({} + {}))", fixed.element(other), moving.element(mine))
    } else {
        let lanes = if along_rows { "r" } else { "o" };
        let each = ["x", "y", "z", "w"].map(|lane| {
            format!(
                "x{x}_code({} + {})",
                fixed.element(other),
                moving.element(&format!("{lanes}.{lane}"))
            )
        });
        format!("vec4<u32>({})", each.join(", "))
    };
    let bits = builder.library.decoded(builder.dtype(*tensor), &codes);
    let _ = writeln!(body, "    let {name} = bitcast<vec4<f32>>({bits});");
    name
}
