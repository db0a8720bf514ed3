//! Groups with an op over rows: norms and softmax, forward and backward, with the element-wise ops
//! before and behind them. A row is kept in registers.

pub(crate) use onesigma_backend::lowering::RowKind;
use std::fmt::Write;

use super::group::{Arg, Group, Rounded, emit_rounded, scaled};
use super::{Kernel, codec, fill, literal, parameters};

const TEMPLATE: &str = include_str!("../kernels/rows.cu");

/// An op over rows in a group.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct RowOp {
    pub kind: RowKind,
    pub args: Vec<Arg>,
    pub rows: usize,
    pub width: usize,
    pub result: Rounded,
    /// Mean (of a centred norm) and reciprocal deviation of each row are written, in F32.
    pub statistics: bool,
}

/// A group with an op over rows between its steps: steps below `first` run before it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct RowGroup {
    pub group: Group,
    pub first: usize,
    pub op: RowOp,
}

/// Whether rows of `width` fit the registers of a block.
pub(crate) fn fits(width: usize) -> bool {
    let lanes = Group::lanes(width);
    width > 0 && width.div_ceil(lanes * 1024) * lanes <= 64
}

impl RowOp {
    /// How many statistics are written.
    pub(crate) fn statistic_count(&self) -> usize {
        match self.kind {
            RowKind::NormGrad { centred, .. } if self.statistics => 1 + usize::from(centred),
            _ => 0,
        }
    }
}

/// The kernel of a group. Parameters: loads, stores, statistics, then `seed, step` if it draws.
pub(crate) fn kernel(rows: &RowGroup, label: &str) -> Kernel {
    let RowGroup { group, first, op } = rows;
    let width = op.width;
    let lanes = Group::lanes(width);
    let vectors = width.div_ceil(lanes);
    let threads = vectors.div_ceil(2).next_multiple_of(32).min(1024);
    let count = vectors.div_ceil(threads);
    let together = if threads == 32 { 4 } else { 1 };

    let (mut arrays, mut zeros, mut before) = (String::new(), String::new(), String::new());
    let mut loaded = vec![false; group.loads.len()];
    let needed: Vec<Arg> =
        group.steps[..*first].iter().flat_map(|step| step.args.clone()).collect();
    group.emit_loads(&mut before, &needed, &mut loaded, lanes);
    let inputs = kept_inputs(op.kind);
    group.emit_loads(&mut before, &op.args[..inputs], &mut loaded, lanes);
    let weighted_gradient = matches!(op.kind, RowKind::NormGrad { .. }) && op.args.len() > 2;
    if weighted_gradient {
        group.emit_loads(&mut before, &op.args[2..], &mut loaded, lanes);
    }
    for n in 0..*first {
        group.emit_step(&mut before, n, lanes);
    }
    let is_before = |arg: Arg| matches!(arg, Arg::Step(n) if n < *first);
    for (n, store) in group.stores.iter().enumerate() {
        if is_before(store.what) {
            let codes = Group::words(store.what);
            let _ = writeln!(
                before,
                "{}",
                codec::store(store.dtype, lanes, &format!("y{n}"), "i", &codes)
            );
        }
    }
    let mut keep = |name: &str, value: &str| {
        let _ = writeln!(arrays, "float {name}[{}];", count * lanes);
        let _ = writeln!(zeros, "{name}[j * {lanes} + e] = 0.0f;");
        let _ = writeln!(
            before,
            "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) {name}[j * {lanes} + e] = {value};"
        );
    };
    for (n, &arg) in op.args[..inputs].iter().enumerate() {
        let mut value = format!("{}[e]", Group::name(arg));
        if n == 1 && weighted_gradient {
            value = format!("{value} * {}[e]", Group::name(op.args[2]));
        }
        keep(&format!("kept{n}"), &value);
    }
    // Results of earlier steps that later ones read.
    let mut carried = vec![false; *first];
    for step in &group.steps[*first..] {
        for &arg in &step.args {
            if let Arg::Step(n) = arg
                && n < *first
                && !std::mem::replace(&mut carried[n], true)
            {
                keep(&format!("carried{n}"), &format!("r{n}[e]"));
            }
        }
    }

    let mut after = String::new();
    let mut loaded = vec![false; group.loads.len()];
    let needed: Vec<Arg> =
        group.steps[*first..].iter().flat_map(|step| step.args.clone()).collect();
    group.emit_loads(&mut after, &needed, &mut loaded, lanes);
    if matches!(op.kind, RowKind::Norm { .. }) {
        group.emit_loads(&mut after, &op.args[1..], &mut loaded, lanes);
    }
    for (n, _) in carried.iter().enumerate().filter(|(_, carried)| **carried) {
        let _ = writeln!(
            after,
            "float r{n}[{lanes}]; _Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) r{n}[e] = carried{n}[j * {lanes} + e];"
        );
    }
    emit_result(&mut after, op, lanes);
    for n in *first..group.steps.len() {
        group.emit_step(&mut after, n, lanes);
    }
    for (n, store) in group.stores.iter().enumerate() {
        if !is_before(store.what) {
            let codes = Group::words(store.what);
            let _ = writeln!(
                after,
                "{}",
                codec::store(store.dtype, lanes, &format!("y{n}"), "i", &codes)
            );
        }
    }

    let draws = group.draws() || op.result.draws();
    let outputs = group.stores.len() + op.statistic_count();
    let params = group.loads.len() + outputs + if draws { 2 } else { 0 };
    let source = fill(
        TEMPLATE,
        &[
            ("parameters", parameters(group.loads.len(), outputs, draws)),
            ("row_threads", threads.to_string()),
            ("together", together.to_string()),
            ("rows", op.rows.to_string()),
            ("width", width.to_string()),
            ("lanes", lanes.to_string()),
            ("count", count.to_string()),
            ("arrays", arrays),
            ("zeros", zeros),
            ("before", before),
            ("statistics", statistics(op, group.stores.len())),
            ("after", after),
        ],
    );
    let grid = [op.rows.div_ceil(together).max(1) as u32, 1, 1];
    Kernel { label: label.to_owned(), source, params, grid, threads: (threads * together) as u32 }
}

/// How many operands have one element for each element of the row, and are kept.
fn kept_inputs(kind: RowKind) -> usize {
    match kind {
        RowKind::Norm { .. } | RowKind::Softmax { .. } => 1,
        RowKind::NormGrad { .. } | RowKind::SoftmaxGrad { .. } => 2,
    }
}

/// Statements that work out what the row has in common.
fn statistics(op: &RowOp, stores: usize) -> String {
    let share = literal(1.0 / op.width as f64);
    let mut text = String::new();
    let sum = |text: &mut String, name: &str, term: &str| {
        let _ = writeln!(text, "float {name} = 0.0f; EACH({{ {name} += {term}; }})");
        let _ = writeln!(text, "{name} = row_sum<ROW_THREADS>({name}, shared);");
    };
    match op.kind {
        RowKind::Norm { eps, centred } | RowKind::NormGrad { eps, centred } => {
            if centred {
                sum(&mut text, "mean", "kept0[k]");
                let _ = writeln!(text, "mean *= {share};");
            } else {
                text.push_str("const float mean = 0.0f;\n");
            }
            sum(&mut text, "square", "(kept0[k] - mean) * (kept0[k] - mean)");
            let _ =
                writeln!(text, "const float rsigma = rsqrtf(square * {share} + {});", literal(eps));
            if matches!(op.kind, RowKind::NormGrad { .. }) {
                sum(&mut text, "along", "kept1[k] * ((kept0[k] - mean) * rsigma)");
                let _ = writeln!(text, "along *= {share};");
                if centred {
                    sum(&mut text, "level", "kept1[k]");
                    let _ = writeln!(text, "level *= {share};");
                } else {
                    text.push_str("const float level = 0.0f;\n");
                }
            }
            let mut at = stores;
            if op.statistic_count() == 2 {
                let _ = writeln!(text, "if (lane == 0) ((float*)y{at})[row] = mean;");
                at += 1;
            }
            if op.statistic_count() > 0 {
                let _ = writeln!(text, "if (lane == 0) ((float*)y{at})[row] = rsigma;");
            }
        }
        RowKind::Softmax { mult } => {
            let mult = literal(mult);
            text.push_str("float largest = __uint_as_float(0xff800000u);\n");
            let _ = writeln!(
                text,
                "EACH({{ kept0[k] = kept0[k] * {mult}; largest = maximum(largest, kept0[k]); }})"
            );
            text.push_str("largest = row_max<ROW_THREADS>(largest, shared);\n");
            text.push_str("EACH({ kept0[k] = expf(kept0[k] - largest); })\n");
            sum(&mut text, "total", "kept0[k]");
            text.push_str("const float share = 1.0f / total;\n");
        }
        RowKind::SoftmaxGrad { forward_alpha, .. } => {
            let undo = literal(1.0 / forward_alpha);
            let _ = writeln!(text, "EACH({{ kept0[k] = kept0[k] * {undo}; }})");
            sum(&mut text, "along", "kept0[k] * kept1[k]");
        }
    }
    text
}

/// Statements that compute the result of the op: packed `row_words` and values `row_value`.
fn emit_result(out: &mut String, op: &RowOp, lanes: usize) {
    let _ = writeln!(out, "float v_row[{lanes}];");
    let value = match op.kind {
        RowKind::Norm { .. } => {
            let mut value = "(kept0[k] - mean) * rsigma".to_owned();
            if let Some(&weight) = op.args.get(1) {
                value = format!("{value} * {}[e]", Group::name(weight));
            }
            if let Some(&bias) = op.args.get(2) {
                value = format!("{value} + {}[e]", Group::name(bias));
            }
            value
        }
        RowKind::NormGrad { .. } => {
            "rsigma * (kept1[k] - (kept0[k] - mean) * rsigma * along - level)".to_owned()
        }
        RowKind::Softmax { .. } => "kept0[k] * share".to_owned(),
        RowKind::SoftmaxGrad { mult, .. } => {
            format!("{} * kept0[k] * (kept1[k] - along)", literal(mult))
        }
    };
    let value = scaled(op.result.alpha, &value);
    let _ = writeln!(
        out,
        "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) {{ const int k = j * {lanes} + e; v_row[e] = {value}; }}"
    );
    emit_rounded(out, &op.result, lanes, "_row", false);
    out.push_str("const u32* const row_words = w_row; const float* const row_value = r_row;\n");
}
