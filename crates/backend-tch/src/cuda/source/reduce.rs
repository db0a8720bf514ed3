//! Sums and maxima of an expression over axes. With few results each is worked out in parts,
//! which a second kernel combines in a fixed order.

use std::fmt::Write;

use onesigma_graph::ReduceKind;
use onesigma_graph::expr::Expr;

use super::group::{Arg, Group, Rounded, emit_rounded, scaled};
use super::{Kernel, blocks, codec, expression, fill, parameters};

const ROWS: &str = include_str!("../kernels/reduce_rows.cu");
const COLUMNS: &str = include_str!("../kernels/reduce_columns.cu");
const FINISH: &str = include_str!("../kernels/reduce_finish.cu");

/// A reduction of an expression over `axes` of `dims`. The group has the loads and no steps.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Reduction {
    pub kind: ReduceKind,
    pub expr: Expr,
    pub group: Group,
    pub args: Vec<usize>,
    pub dims: Vec<usize>,
    pub axes: Vec<usize>,
    pub result: Rounded,
}

/// The kernels: parts `F32 [parts, kept]`, and the one that combines them.
pub(crate) struct Kernels {
    pub parts: Kernel,
    pub count: usize,
    pub kept: usize,
    pub finish: Kernel,
}

/// The kernels of a reduction. Parameters of the first: loads, parts; of the second: parts,
/// result, then `seed, step` if it draws.
pub(crate) fn kernels(op: &Reduction, label: &str) -> Kernels {
    let reduced = |axis: &usize| op.axes.contains(axis);
    let extent = |flag: bool| -> usize {
        (0..op.dims.len()).filter(|axis| reduced(axis) == flag).map(|axis| op.dims[axis]).product()
    };
    let (kept, length) = (extent(false), extent(true));
    let rank = op.dims.len();
    let trailing = op.axes.iter().enumerate().all(|(n, &axis)| axis == rank - op.axes.len() + n);
    let leading = op.axes.iter().enumerate().all(|(n, &axis)| axis == n);
    let columns = leading && !trailing && kept > 1;
    let (parts, count) = if columns {
        by_columns(op, kept, length, label)
    } else {
        by_rows(op, kept, length, trailing, label)
    };
    let mut body = String::new();
    let _ = writeln!(body, "float v_total[1] = {{{}}};", scaled(op.result.alpha, "total"));
    emit_rounded(&mut body, &op.result, 1, "_total", false);
    let _ = writeln!(body, "{}", codec::store(op.result.dtype, 1, "y0", "i", "w_total"));
    let draws = op.result.draws();
    let source = fill(
        FINISH,
        &[
            ("parameters", parameters(1, 1, draws)),
            ("parts", count.to_string()),
            ("start", start(op.kind)),
            ("combine", combine(op.kind, "total", "((const float*)x0)[(u64)part * $kept$ + i]")),
            ("kept", kept.to_string()),
            ("body", body),
        ],
    );
    let params = 2 + if draws { 2 } else { 0 };
    let grid = [blocks(kept, 256), 1, 1];
    let finish = Kernel { label: format!("{label} (end)"), source, params, grid, threads: 256 };
    Kernels { parts, count, kept, finish }
}

fn start(kind: ReduceKind) -> String {
    match kind {
        ReduceKind::Sum => "0.0f".to_owned(),
        ReduceKind::Max => "__uint_as_float(0xff800000u)".to_owned(),
    }
}

fn combine(kind: ReduceKind, into: &str, value: &str) -> String {
    match kind {
        ReduceKind::Sum => format!("{into} += {value};"),
        ReduceKind::Max => format!("{into} = maximum({into}, {value});"),
    }
}

/// Statements that load the operands at `i` and add the expression to `total[e]`.
fn element(op: &Reduction, lanes: usize) -> String {
    let mut body = String::new();
    let mut loaded = vec![false; op.group.loads.len()];
    let args: Vec<Arg> = op.args.iter().map(|&n| Arg::Load(n)).collect();
    op.group.emit_loads(&mut body, &args, &mut loaded, lanes);
    let _ = writeln!(body, "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) {{");
    let operands: Vec<String> =
        args.iter().map(|&arg| format!("{}[e]", Group::name(arg))).collect();
    let index = |axis: usize| {
        let inner: usize = op.dims[axis + 1..].iter().product();
        format!("(i + e) / {inner} % {}", op.dims[axis])
    };
    let value = expression::emit(&mut body, &op.expr, "t", &operands, index);
    let _ = writeln!(body, "{}\n}}", combine(op.kind, "total[e]", &value));
    body
}

/// The flat index of an element from coordinates over the axes that are (not) reduced.
fn position(op: &Reduction, reduced: bool, at: &str) -> String {
    let mut terms = Vec::new();
    let mut inner = 1;
    for axis in (0..op.dims.len()).rev() {
        if op.axes.contains(&axis) != reduced || op.dims[axis] == 1 {
            continue;
        }
        let stride: usize = op.dims[axis + 1..].iter().product();
        terms.push(format!("{at} / {inner} % {} * {stride}", op.dims[axis]));
        inner *= op.dims[axis];
    }
    if terms.is_empty() { "0".to_owned() } else { terms.join(" + ") }
}

fn by_rows(
    op: &Reduction,
    kept: usize,
    length: usize,
    trailing: bool,
    label: &str,
) -> (Kernel, usize) {
    let lanes = if trailing { Group::lanes(length) } else { 1 };
    let parts =
        if kept >= 256 { 1 } else { (512 / kept.max(1)).min(length.div_ceil(256 * lanes * 2)) };
    let parts = parts.max(1);
    let chunk = length.div_ceil(parts).next_multiple_of(256 * lanes);
    let index = match trailing {
        true => format!("(u64)kept * {length} + r"),
        false => format!("{} + {}", position(op, false, "(u64)kept"), position(op, true, "r")),
    };
    let source = fill(
        ROWS,
        &[
            ("parameters", parameters(op.group.loads.len(), 1, false)),
            ("kept", kept.to_string()),
            ("length", length.to_string()),
            ("chunk", chunk.to_string()),
            ("lanes", lanes.to_string()),
            ("start", start(op.kind)),
            ("index", index),
            ("element", element(op, lanes)),
            ("combine", combine(op.kind, "total[0]", "total[e]")),
            (
                "finish",
                match op.kind {
                    ReduceKind::Sum => "row_sum<256>".to_owned(),
                    ReduceKind::Max => "row_max<256>".to_owned(),
                },
            ),
        ],
    );
    let params = op.group.loads.len() + 1;
    let grid = [kept.max(1) as u32, parts as u32, 1];
    (Kernel { label: label.to_owned(), source, params, grid, threads: 256 }, parts)
}

fn by_columns(op: &Reduction, kept: usize, length: usize, label: &str) -> (Kernel, usize) {
    let lanes = Group::lanes(kept);
    let across = blocks(kept, 32 * lanes);
    let parts = (528 / across as usize).clamp(1, length.div_ceil(32).max(1));
    let source = fill(
        COLUMNS,
        &[
            ("parameters", parameters(op.group.loads.len(), 1, false)),
            ("kept", kept.to_string()),
            ("length", length.to_string()),
            ("parts", parts.to_string()),
            ("lanes", lanes.to_string()),
            ("start", start(op.kind)),
            ("element", element(op, lanes)),
            ("combine", combine(op.kind, "value", "shared[other][threadIdx.x % 32]")),
        ],
    );
    let params = op.group.loads.len() + 1;
    let grid = [across, parts as u32, 1];
    (Kernel { label: label.to_owned(), source, params, grid, threads: 256 }, parts)
}
