//! A fused group: element-wise ops over one index space, with at most one op over rows between
//! them. Every op's result is rounded into its declared format in registers, so that fusion
//! changes no bits; only results that others need are written.

pub(crate) use onesigma_backend::lowering::Rounded;
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

    /// Appends statements that read load `n` for `lanes` elements from index `i`: packed `p<n>`
    /// and values `a<n>`.
    pub(crate) fn emit_load(&self, out: &mut String, n: usize, lanes: usize) {
        let Load { dtype, access, exact } = &self.loads[n];
        let from = format!("x{n}");
        let words = codec::words(*dtype, lanes);
        let _ = writeln!(out, "u32 p{n}[{words}]; float a{n}[{lanes}];");
        let unpack = |out: &mut String| {
            let statement =
                codec::unpack(*dtype, lanes, &format!("p{n}"), &format!("a{n}"), *exact);
            let _ = writeln!(out, "{statement}");
        };
        let whole = |out: &mut String, index: &str| {
            let load = codec::load(*dtype, lanes, &from, index, &format!("p{n}"));
            let _ = writeln!(out, "{load}");
            unpack(out);
        };
        // Elements that do not lie together: one by one, and only their values.
        let each = |out: &mut String, index: &str| {
            let load = codec::load(*dtype, 1, &from, index, "one");
            let value = codec::unpack(*dtype, 1, "one", &format!("a{n} + e"), *exact);
            let _ = writeln!(
                out,
                "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) {{ u32 one[1]; {load} {value} }}"
            );
        };
        let one_for_all = |out: &mut String, index: &str| {
            let load = codec::load(*dtype, 1, &from, index, "one");
            let value = codec::unpack(*dtype, 1, "one", &format!("a{n}"), *exact);
            let _ = writeln!(
                out,
                "{{ u32 one[1]; {load} {value} _Pragma(\"unroll\") for (int e = 1; e < {lanes}; e++) a{n}[e] = a{n}[0]; }}"
            );
        };
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
                let missing = if width.is_multiple_of(lanes) {
                    let _ =
                        writeln!(out, "const u32 id{n} = ((const u32*)x{ids})[({t})i / {width}];");
                    let _ = writeln!(
                        out,
                        "const u64 at{n} = (u64)(id{n} < {rows}u ? id{n} : 0) * {width} + ({t})i % {width};"
                    );
                    whole(out, &format!("at{n}"));
                    format!("id{n} >= {rows}u")
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
                    format!("id{n}[e] >= {rows}u")
                };
                let _ = writeln!(
                    out,
                    "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) if ({missing}) a{n}[e] = not_a_number(0);"
                );
            }
        }
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

    /// The C name of a result's packed elements.
    pub(crate) fn words(arg: Arg) -> String {
        match arg {
            Arg::Load(n) => format!("p{n}"),
            Arg::Step(n) => format!("w{n}"),
            Arg::Row => "row_words".to_owned(),
        }
    }

    /// Appends the statements of step `n`: packed `w<n>` and rounded values `r<n>`.
    pub(crate) fn emit_step(&self, out: &mut String, n: usize, lanes: usize) {
        let step = &self.steps[n];
        let Rounded { dtype, stream, .. } = step.result;
        if step.compute == Compute::Code {
            let (words, from) = (codec::words(dtype, lanes), Self::words(step.args[0]));
            let _ = writeln!(
                out,
                "u32 w{n}[{words}]; _Pragma(\"unroll\") for (int e = 0; e < {words}; e++) w{n}[e] = {from}[e];"
            );
            return;
        }
        let _ = writeln!(out, "float v{n}[{lanes}];");
        if matches!(step.compute, Compute::Random(_)) {
            let _ = writeln!(
                out,
                "u32 d{n}[{lanes}]; draws<32, {lanes}>(noise_of(seed, step, {stream}u), i, d{n});"
            );
        }
        let _ = writeln!(out, "_Pragma(\"unroll\") for (int e = 0; e < {lanes}; e++) {{");
        let value = match &step.compute {
            Compute::Random(distribution) => random(*distribution, &format!("d{n}[e]")),
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
            Compute::Code => String::new(),
        };
        let _ = writeln!(out, "v{n}[e] = {};\n}}", scaled(step.result.alpha, &value));
        let exact = |arg: &Arg| matches!(*arg, Arg::Load(at) if self.loads[at].exact);
        let exact = step.args.iter().any(exact);
        emit_rounded(out, &step.result, lanes, &n.to_string(), exact);
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

/// `value` times `alpha`.
pub(crate) fn scaled(alpha: f64, value: &str) -> String {
    match alpha as f32 == 1.0 {
        true => value.to_owned(),
        false => format!("{} * ({value})", literal(alpha)),
    }
}

/// Appends statements that round the values `v<tag>`, scaled before, into packed `w<tag>` and
/// rounded values `r<tag>`.
pub(crate) fn emit_rounded(
    out: &mut String,
    result: &Rounded,
    lanes: usize,
    tag: &str,
    exact: bool,
) {
    let Rounded { dtype, how, .. } = *result;
    let words = codec::words(dtype, lanes);
    let [values, packed, rounded, random] =
        ["v", "w", "r", "s"].map(|prefix| format!("{prefix}{tag}"));
    let _ = writeln!(out, "{}", codec::draw(result, lanes, &random));
    let _ = writeln!(out, "u32 {packed}[{words}]; float {rounded}[{lanes}];");
    let pack = codec::pack(dtype, how, lanes, &values, &packed, &random, exact);
    let unpack = codec::unpack(dtype, lanes, &packed, &rounded, false);
    let _ = writeln!(out, "{pack}\n{unpack}");
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
