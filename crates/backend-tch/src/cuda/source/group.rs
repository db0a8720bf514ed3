//! A fused group: element-wise ops over one index space, with at most one op over rows between
//! them. Every op's result is rounded into its declared format in registers, so that fusion
//! changes no bits; only results that others need are written.

use onesigma_format::Conversion;
use onesigma_graph::expr::Expr;
use onesigma_graph::{DType, Distribution};
use std::fmt::Write;

use super::{codec, expression, literal};

/// How an operand is found from the index of an element.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Access {
    /// Element `i` for element `i`.
    Full,
    /// One element for all.
    Scalar,
    /// By coordinates over `dims`, with a stride for each; 0 along broadcast axes.
    Strided {
        /// Extents of the index space.
        dims: Vec<usize>,
        /// Strides of the operand.
        strides: Vec<usize>,
    },
    /// Row `ids[i / width]` of a table; NaN beyond its rows.
    Rows {
        /// Length of a row.
        width: usize,
        /// Rows of the table.
        rows: usize,
        /// The operand that holds the ids.
        ids: usize,
    },
}

impl Access {
    /// By strides over `dims`, in the simplest form.
    pub(crate) fn strided(dims: &[usize], strides: &[usize]) -> Self {
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (&dim, &stride) in dims.iter().zip(strides).filter(|(dim, _)| **dim != 1) {
            match merged.last_mut() {
                Some((outer, step)) if *step == stride * dim => {
                    *outer *= dim;
                    *step = stride;
                }
                _ => merged.push((dim, stride)),
            }
        }
        match merged[..] {
            [] => Self::Scalar,
            [(_, 0)] => Self::Scalar,
            [(_, 1)] => Self::Full,
            _ => {
                let (dims, strides) = merged.into_iter().unzip();
                Self::Strided { dims, strides }
            }
        }
    }
}

/// An operand in memory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Load {
    pub dtype: DType,
    pub access: Access,
    /// A NaN keeps its sign.
    pub exact: bool,
}

/// Where a step takes an operand from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Arg {
    /// Memory.
    Load(usize),
    /// The result of an earlier step.
    Step(usize),
    /// The result of the op over rows.
    Row,
}

/// What a step computes.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Compute {
    /// An expression.
    Expr(Expr),
    /// Random numbers.
    Random(Distribution),
    /// The code of the one operand, as it is.
    Code,
}

/// An element-wise op.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Step {
    pub compute: Compute,
    pub args: Vec<Arg>,
    /// Extents, for coordinates.
    pub dims: Vec<usize>,
    pub result: Rounded,
}

/// How a result is scaled and rounded.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Rounded {
    pub alpha: f64,
    pub dtype: DType,
    pub how: Conversion,
    /// Stream of its random bits.
    pub stream: u32,
}

impl Rounded {
    /// Whether the result depends on the seed.
    pub(crate) fn draws(&self) -> bool {
        codec::random_bits(self.how) > 0
    }
}

/// A result that is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Store {
    pub what: Arg,
    pub dtype: DType,
}

/// Element-wise steps over `numel` elements.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Group {
    pub numel: usize,
    pub loads: Vec<Load>,
    pub steps: Vec<Step>,
    pub stores: Vec<Store>,
}

impl Group {
    /// Whether a step draws random numbers.
    pub(crate) fn draws(&self) -> bool {
        self.steps
            .iter()
            .any(|step| step.result.draws() || matches!(step.compute, Compute::Random(_)))
    }

    /// Type of an index.
    fn index_type(&self) -> &'static str {
        if self.numel < 1 << 31 { "u32" } else { "u64" }
    }

    /// Appends statements that read load `n` for `lanes` elements from index `i`: codes `k<n>`
    /// and values `a<n>`.
    pub(crate) fn emit_load(&self, out: &mut String, n: usize, lanes: usize) {
        let Load { dtype, access, exact } = &self.loads[n];
        let from = format!("x{n}");
        let _ = writeln!(out, "u32 k{n}[{lanes}]; float a{n}[{lanes}];");
        let each = |out: &mut String, index: &str| {
            let load = codec::load(*dtype, 1, &from, index, &format!("&k{n}[e]"));
            let _ =
                writeln!(out, "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) {{ {load} }}");
        };
        let one_for_all = |out: &mut String, index: &str| {
            let load = codec::load(*dtype, 1, &from, index, &format!("k{n}"));
            let _ = writeln!(
                out,
                "{load} _Pragma(\"unroll\") for (int e = 1; e < {lanes}; e++) k{n}[e] = k{n}[0];"
            );
        };
        let whole = |out: &mut String, index: &str| {
            let _ = writeln!(out, "{}", codec::load(*dtype, lanes, &from, index, &format!("k{n}")));
        };
        let mut missing = None;
        match access {
            Access::Full => whole(out, "i"),
            Access::Scalar => one_for_all(out, "0"),
            Access::Strided { dims, strides } => {
                let (last, step) = (dims[dims.len() - 1], strides[strides.len() - 1]);
                let aligned = last.is_multiple_of(lanes);
                let outer_aligned =
                    strides[..strides.len() - 1].iter().all(|s| s.is_multiple_of(lanes));
                let position = |at: &str| self.position(dims, strides, at);
                if lanes == 1 || (aligned && step == 1 && outer_aligned) {
                    whole(out, &position("i"));
                } else if aligned && step == 0 {
                    one_for_all(out, &position("i"));
                } else {
                    each(out, &position("(i + e)"));
                }
            }
            Access::Rows { width, rows, ids } => {
                let t = self.index_type();
                if width.is_multiple_of(lanes) {
                    let _ =
                        writeln!(out, "const u32 id{n} = ((const u32*)x{ids})[({t})i / {width}];");
                    let _ = writeln!(
                        out,
                        "const u64 at{n} = (u64)(id{n} < {rows}u ? id{n} : 0) * {width} + ({t})i % {width};"
                    );
                    whole(out, &format!("at{n}"));
                    missing = Some(format!("id{n} >= {rows}u"));
                } else {
                    let _ = writeln!(out, "u32 id{n}[{lanes}];");
                    let _ = writeln!(
                        out,
                        "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) id{n}[e] = ((const u32*)x{ids})[({t})(i + e) / {width}];"
                    );
                    each(
                        out,
                        &format!(
                            "(u64)(id{n}[e] < {rows}u ? id{n}[e] : 0) * {width} + ({t})(i + e) % {width}"
                        ),
                    );
                    missing = Some(format!("id{n}[e] >= {rows}u"));
                }
            }
        }
        let value = codec::decode(*dtype, &format!("k{n}[e]"), *exact);
        let value = match missing {
            Some(condition) => format!("{condition} ? not_a_number(0) : {value}"),
            None => value,
        };
        let _ = writeln!(
            out,
            "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) a{n}[e] = {value};"
        );
    }

    /// The position of an operand for the element with index `at`.
    fn position(&self, dims: &[usize], strides: &[usize], at: &str) -> String {
        let t = self.index_type();
        let mut terms = Vec::new();
        let mut inner = 1;
        for axis in (0..dims.len()).rev() {
            let (dim, stride) = (dims[axis], strides[axis]);
            if stride != 0 {
                let mut coordinate = match inner {
                    1 => format!("({t})({at})"),
                    _ => format!("({t})({at}) / {inner}"),
                };
                if axis > 0 {
                    coordinate = format!("({coordinate}) % {dim}");
                }
                terms.push(format!("({coordinate}) * {stride}"));
            }
            inner *= dim;
        }
        if terms.is_empty() { "0".to_owned() } else { terms.join(" + ") }
    }

    /// The C name of an argument's values.
    pub(crate) fn name(arg: Arg) -> String {
        match arg {
            Arg::Load(n) => format!("a{n}"),
            Arg::Step(n) => format!("r{n}"),
            Arg::Row => "row_value".to_owned(),
        }
    }

    /// The C name of a stored result's codes.
    pub(crate) fn codes(arg: Arg) -> String {
        match arg {
            Arg::Load(n) => format!("k{n}"),
            Arg::Step(n) => format!("c{n}"),
            Arg::Row => "row_code".to_owned(),
        }
    }

    /// Appends the statements of step `n`: codes `c<n>` and values `r<n>`.
    pub(crate) fn emit_step(&self, out: &mut String, n: usize, lanes: usize) {
        let step = &self.steps[n];
        let Rounded { dtype, .. } = step.result;
        let _ = writeln!(out, "u32 c{n}[{lanes}]; float r{n}[{lanes}];");
        let noise = |what: &str, bits: u32| {
            let stream = step.result.stream;
            format!(
                "u32 {what}{n}[{lanes}]; draws<{bits}, {lanes}>(noise_of(seed, step, {stream}u), i, {what}{n});"
            )
        };
        if matches!(step.compute, Compute::Random(_)) {
            let _ = writeln!(out, "{}", noise("w", 32));
        }
        if step.result.draws() {
            let _ = writeln!(out, "{}", noise("s", codec::random_bits(step.result.how)));
        }
        let _ = writeln!(out, "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) {{");
        let value = match &step.compute {
            Compute::Code => {
                let code = format!("{}[e]", Self::codes(step.args[0]));
                let value = codec::decode(dtype, &format!("c{n}[e]"), false);
                let _ = writeln!(out, "c{n}[e] = {code}; r{n}[e] = {value};\n}}");
                return;
            }
            Compute::Random(distribution) => random(*distribution, &format!("w{n}[e]")),
            Compute::Expr(expr) => {
                let operands: Vec<String> =
                    step.args.iter().map(|&arg| format!("{}[e]", Self::name(arg))).collect();
                let t = self.index_type();
                let index = |axis: usize| {
                    let inner: usize = step.dims[axis + 1..].iter().product();
                    format!("({t})(i + e) / {inner} % {}", step.dims[axis])
                };
                expression::emit(out, expr, "t", &operands, index)
            }
        };
        emit_rounded(
            out,
            &step.result,
            &value,
            &format!("c{n}[e]"),
            &format!("r{n}[e]"),
            &format!("s{n}[e]"),
        );
        out.push_str("}\n");
    }

    /// Appends the loads that `args` need and that are not in `done` yet.
    pub(crate) fn emit_loads(
        &self,
        out: &mut String,
        args: &[Arg],
        done: &mut [bool],
        lanes: usize,
    ) {
        for &arg in args {
            if let Arg::Load(n) = arg
                && !std::mem::replace(&mut done[n], true)
            {
                self.emit_load(out, n, lanes);
            }
        }
    }

    /// Whether vectors of 8 elements can be used along rows of `width`.
    pub(crate) fn lanes(width: usize) -> usize {
        if width.is_multiple_of(8) { 8 } else { 1 }
    }
}

/// Appends statements that scale and round `value` into code and value.
pub(crate) fn emit_rounded(
    out: &mut String,
    result: &Rounded,
    value: &str,
    code: &str,
    rounded: &str,
    random: &str,
) {
    let scaled = match result.alpha as f32 == 1.0 {
        true => value.to_owned(),
        false => format!("{} * ({value})", literal(result.alpha)),
    };
    let _ = writeln!(out, "const float scaled = {scaled};");
    let encoded = codec::encode(result.dtype, result.how, "scaled", random);
    let decoded = codec::decode(result.dtype, code, false);
    let _ = writeln!(out, "{code} = {encoded}; {rounded} = {decoded};");
}

fn random(distribution: Distribution, word: &str) -> String {
    match distribution {
        Distribution::Uniform { low, high } => {
            format!("{} + {} * uniform({word})", literal(low), literal(high - low))
        }
        Distribution::Normal { mean, std } => {
            format!("{} + {} * normal({word})", literal(mean), literal(std))
        }
        // uniform(word) < p, in integers.
        Distribution::Bernoulli { p } => {
            let bound = (p * f64::from(1 << 24)).ceil().clamp(0.0, f64::from(1 << 24)) as u32;
            format!("({word} >> 8) < {bound}u ? 1.0f : 0.0f")
        }
    }
}
