//! A kernel under construction: its bindings, the functions it calls, its text.

use std::fmt::Write;

use onesigma_graph::DType;

use super::codec::{Library, embeds};
use super::prune::prune;
use crate::ir::{Access, Entry, Operand, Rounded, TensorId};
use crate::memory::Memory;

/// A shader with what it is dispatched on.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub label: String,
    pub source: String,
    /// Tensors by binding, each with its segment.
    pub bindings: Vec<(TensorId, usize)>,
    pub grid: [u32; 3],
}

/// Text of positions: the four elements that a thread works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes<'a> {
    /// Index of the quad, if the four are neighbours that begin at a multiple of four.
    pub quad: Option<&'a str>,
    /// The four positions.
    pub each: [&'a str; 4],
}

/// Collects what a kernel needs.
pub(crate) struct Builder<'a> {
    pub entry: &'a Entry,
    pub memory: &'a Memory,
    pub library: Library,
    /// Tensor and element type of each binding.
    bound: Vec<(TensorId, String)>,
}

/// The type of a quad of elements.
fn unit(dtype: DType) -> &'static str {
    match dtype.bytes() {
        1 => "u32",
        2 => "vec2<u32>",
        _ => "vec4<u32>",
    }
}

impl<'a> Builder<'a> {
    pub(crate) fn new(entry: &'a Entry, memory: &'a Memory) -> Self {
        let library = Library::default();
        Self { entry, memory, library, bound: Vec::new() }
    }

    pub(crate) fn dtype(&self, tensor: TensorId) -> DType {
        self.entry.tensors[tensor].dtype
    }

    /// The number of the variable of a tensor; tensors in one place share theirs.
    pub(crate) fn bind(&mut self, tensor: TensorId) -> usize {
        self.bind_as(tensor, unit(self.dtype(tensor)))
    }

    fn bind_as(&mut self, tensor: TensorId, unit: &str) -> usize {
        let place = self.memory.place(tensor);
        let known = self
            .bound
            .iter()
            .position(|(other, own)| self.memory.place(*other) == place && own == unit);
        known.unwrap_or_else(|| {
            self.bound.push((tensor, unit.to_owned()));
            self.bound.len() - 1
        })
    }

    /// As [`bind`](Self::bind), in other units than quads of elements: `x{n}_load` gives the n-th.
    pub(crate) fn bind_chunks(&mut self, tensor: TensorId, unit: &str) -> usize {
        self.bind_as(tensor, unit)
    }

    /// Whether a tensor lies in one binding.
    pub(crate) fn is_whole(&self, tensor: TensorId) -> bool {
        self.memory.segments(self.entry.tensors[tensor].bytes()) == 1
    }

    /// As [`bind`](Self::bind), for tensors in F32 that are written word by word, by the function
    /// `x{n}_put(i, bits)`.
    pub(crate) fn bind_words(&mut self, tensor: TensorId) -> usize {
        self.bind_as(tensor, "u32")
    }

    /// Codes of an operand at four positions, a `vec4<u32>`.
    pub(crate) fn codes(&mut self, operand: &Operand, lanes: Lanes<'_>) -> String {
        let x = self.bind(operand.tensor);
        match &operand.access {
            Access::View(view) => {
                if let Some(quad) = lanes.quad {
                    if view.is_full() {
                        return format!("x{x}_codes({quad})");
                    }
                    let first = || format!("4u * {quad}");
                    if view.is_quads() {
                        return format!(
                            "x{x}_codes(({}) / 4u)",
                            view.element(&format!("({})", first()))
                        );
                    }
                    if view.is_splat() {
                        return format!(
                            "vec4<u32>(x{x}_code({}))",
                            view.element(&format!("({})", first()))
                        );
                    }
                }
                if view.is_scalar() {
                    return format!("vec4<u32>(x{x}_code({}u))", view.offset);
                }
                let each = lanes.each.map(|at| format!("x{x}_code({})", view.element(at)));
                format!("vec4<u32>({})", each.join(", "))
            }
            Access::Rows { width, ids, .. } => {
                let ids = self.bind(*ids);
                if let Some(quad) = lanes.quad
                    && width.is_multiple_of(4)
                {
                    let quads = width / 4;
                    return format!(
                        "x{x}_codes(min(x{ids}_code({quad} / {quads}u), {}u) * {quads}u + {quad} % {quads}u)",
                        self.last_row(operand)
                    );
                }
                let last = self.last_row(operand);
                let each = lanes.each.map(|at| {
                    format!(
                        "x{x}_code(min(x{ids}_code({at} / {width}u), {last}u) * {width}u + {at} % {width}u)"
                    )
                });
                format!("vec4<u32>({})", each.join(", "))
            }
        }
    }

    fn last_row(&self, operand: &Operand) -> usize {
        match operand.access {
            Access::Rows { rows, .. } => rows.saturating_sub(1),
            Access::View(_) => 0,
        }
    }

    /// Whether the rows of four positions are beyond the table, a `vec4<bool>`; `None` where no
    /// row can be.
    pub(crate) fn beyond(&mut self, operand: &Operand, lanes: Lanes<'_>) -> Option<String> {
        let Access::Rows { width, rows, ids } = operand.access else { return None };
        let x = self.bind(ids);
        let each = lanes.each.map(|at| format!("x{x}_code({at} / {width}u)"));
        Some(format!("vec4<u32>({}) >= vec4<u32>({rows}u)", each.join(", ")))
    }

    /// Statements that make `{name}_codes`, `{name}_bits` and `{name}`, the f32 values of an operand.
    pub(crate) fn load(
        &mut self,
        out: &mut String,
        operand: &Operand,
        lanes: Lanes<'_>,
        name: &str,
    ) {
        let codes = self.codes(operand, lanes);
        let _ = writeln!(out, "    let {name}_codes = {codes};");
        let codes = format!("{name}_codes");
        let mut bits = self.library.decoded(self.dtype(operand.tensor), &codes);
        if let Some(beyond) = self.beyond(operand, lanes) {
            bits = format!("select({bits}, vec4<u32>(0x7fc00000u), {beyond})");
        }
        let _ = writeln!(out, "    let {name}_bits = {bits};");
        let _ = writeln!(out, "    let {name} = bitcast<vec4<f32>>({name}_bits);");
    }

    /// Statements that scale and round `value` (or, unscaled, its `bits`): they make `{name}_codes`,
    /// `{name}_bits` and `{name}`. The elements are those of quad `quad` of the result.
    pub(crate) fn round(
        &mut self,
        out: &mut String,
        result: &Rounded,
        value: &str,
        bits: Option<&str>,
        quad: &str,
        name: &str,
    ) {
        let bits = match bits {
            Some(bits) if result.alpha == 1.0 => bits.to_owned(),
            _ => {
                let scaled = match result.alpha == 1.0 {
                    true => value.to_owned(),
                    false => format!("({value}) * {}", super::scalar_literal(result.alpha)),
                };
                let _ = writeln!(out, "    let {name}_scaled = bitcast<vec4<u32>>({scaled});");
                format!("{name}_scaled")
            }
        };
        let mut random = String::new();
        if result.draws() {
            random = format!("{name}_random");
            let draw = self.draw(result.random_bits(), result.stream, quad);
            let _ = writeln!(out, "    let {random} = {draw};");
        }
        let codes = self.library.encoded(result.dtype, result.how, &bits, &random);
        let _ = writeln!(out, "    let {name}_codes = {codes};");
        self.back(out, result.dtype, name);
    }

    /// As [`round`](Self::round), for values of type `from` that are not scaled: those of `{value}`,
    /// whose `_bits`, and `_codes` where `with_codes`, are there.
    pub(crate) fn convert(
        &mut self,
        out: &mut String,
        result: &Rounded,
        value: &str,
        (from, with_codes): (DType, bool),
        quad: &str,
        name: &str,
    ) {
        let bits = format!("{value}_bits");
        if let Some(format) = result.dtype.format().filter(|_| embeds(from, result.dtype)) {
            let codes = self.library.embedded(format, result.how, &bits);
            let _ = writeln!(out, "    let {name}_codes = {codes};");
            let _ = writeln!(out, "    let {name}_bits = {bits};");
            let _ = writeln!(out, "    let {name} = bitcast<vec4<f32>>({name}_bits);");
            return;
        }
        let codes = format!("{value}_codes");
        let recoded =
            with_codes.then(|| self.library.recoded(from, result.dtype, result.how, &codes));
        if let Some(codes) = recoded.flatten() {
            let _ = writeln!(out, "    let {name}_codes = {codes};");
            self.back(out, result.dtype, name);
            return;
        }
        let plain = match result.is_f32() {
            true => self.library.plain(from, &bits),
            false => bits,
        };
        self.round(out, result, "", Some(&plain), quad, name);
    }

    /// Statements that make `{name}_bits` and `{name}` of `{name}_codes`.
    pub(crate) fn back(&mut self, out: &mut String, dtype: DType, name: &str) {
        let bits = self.library.decoded(dtype, &format!("{name}_codes"));
        let _ = writeln!(out, "    let {name}_bits = {bits};");
        let _ = writeln!(out, "    let {name} = bitcast<vec4<f32>>({name}_bits);");
    }

    /// Random bits of the elements of a quad.
    pub(crate) fn draw(&mut self, bits: u32, stream: u32, quad: &str) -> String {
        self.library.philox();
        let word = |own: &mut Self, tensor: Option<TensorId>, at: usize| match tensor {
            Some(tensor) => {
                let x = own.bind(tensor);
                format!("x{x}_code({at}u)")
            }
            None => "0u".to_owned(),
        };
        let (seed, step) = (self.entry.seed, self.entry.step);
        let step = word(self, step, 0);
        let (low, high) = (word(self, seed, 0), word(self, seed, 1));
        format!("draw_{bits}({quad}, {stream}u, {step}, vec2<u32>({low}, {high}))")
    }

    /// Statement that writes a quad of codes.
    pub(crate) fn store(&mut self, tensor: TensorId, quad: &str, codes: &str) -> String {
        let x = self.bind(tensor);
        format!("    x{x}_store({quad}, {codes});\n")
    }

    /// The kernel, whose text behind the declarations is `body`.
    pub(crate) fn finish(self, label: &str, body: &str, grid: [u32; 3]) -> Kernel {
        self.finish_with(label, body, grid, "")
    }

    /// As [`finish`](Self::finish), with `enable` directives.
    pub(crate) fn finish_with(
        self,
        label: &str,
        body: &str,
        grid: [u32; 3],
        directives: &str,
    ) -> Kernel {
        let mut source = String::new();
        if directives.contains("coop") {
            source.push_str("enable f16;\n");
        }
        source.push_str(directives);
        let mut bindings = Vec::new();
        for (n, (tensor, unit)) in self.bound.iter().enumerate() {
            let bytes = self.dtype(*tensor).bytes();
            let segments = self.memory.segments(self.entry.tensors[*tensor].bytes());
            for segment in 0..segments {
                let suffix = if segments == 1 { String::new() } else { format!("_{segment}") };
                let _ = writeln!(
                    source,
                    "@group(0) @binding({}) var<storage, read_write> x{n}{suffix}: array<{unit}>;",
                    bindings.len()
                );
                bindings.push((*tensor, segment));
            }
            let unit_bytes = match unit.as_str() {
                "u32" => 4,
                "vec2<u32>" => 8,
                _ => 16,
            };
            let units = self.memory.segment_bytes() / unit_bytes;
            let is_quad = unit == self::unit(self.dtype(*tensor));
            let _ = write!(source, "{}", accessors(n, bytes, unit, is_quad, segments, units));
        }
        source.push_str(&self.library.text());
        source.push_str(body);
        let source = prune(&source);
        Kernel { label: label.to_owned(), source, bindings, grid }
    }
}

/// Functions that read and write quads and elements of binding `n`.
fn accessors(
    n: usize,
    bytes: usize,
    unit: &str,
    is_quad: bool,
    segments: usize,
    units: usize,
) -> String {
    let mut text = String::new();
    let at = |segment: usize, quad: &str| match segments {
        1 => format!("x{n}[{quad}]"),
        _ => format!("x{n}_{segment}[{quad} - {}u]", segment * units),
    };
    let choose = |statement: &dyn Fn(usize) -> String| choice(0..segments, units, statement);
    let load = match segments {
        1 => format!("return {};", at(0, "q")),
        _ => format!(
            "var found: {unit}; {} return found;",
            choose(&|segment| format!("found = {};", at(segment, "q")))
        ),
    };
    let _ = writeln!(text, "fn x{n}_load(q: u32) -> {unit} {{ {load} }}");
    if !is_quad && unit != "u32" {
        return text;
    }
    if !is_quad {
        let put = choose(&|segment| format!("{} = w;", at(segment, "q")));
        let _ = writeln!(text, "fn x{n}_put(q: u32, w: u32) {{ {put} }}");
        return text;
    }
    let _ = writeln!(
        text,
        "fn x{n}_codes(q: u32) -> vec4<u32> {{ return codes_{bytes}(x{n}_load(q)); }}"
    );
    let code = match bytes {
        1 => format!("(x{n}_load(i >> 2u) >> (8u * (i & 3u))) & 0xffu"),
        2 => format!("(x{n}_load(i >> 2u)[(i >> 1u) & 1u] >> (16u * (i & 1u))) & 0xffffu"),
        _ => format!("x{n}_load(i >> 2u)[i & 3u]"),
    };
    let _ = writeln!(text, "fn x{n}_code(i: u32) -> u32 {{ return {code}; }}");
    let store = choose(&|segment| format!("{} = pack_{bytes}(c);", at(segment, "q")));
    let _ = writeln!(text, "fn x{n}_store(q: u32, c: vec4<u32>) {{ {store} }}");
    text
}

/// The statement for the segment where quad `q` lies, found by halves: compilers that flatten
/// branches need 2^n blocks for n of them in a row.
fn choice(
    segments: std::ops::Range<usize>,
    units: usize,
    statement: &dyn Fn(usize) -> String,
) -> String {
    if segments.len() == 1 {
        return statement(segments.start);
    }
    let middle = segments.start.midpoint(segments.end);
    let (low, high) = (segments.start..middle, middle..segments.end);
    format!(
        "if (q < {}u) {{ {} }} else {{ {} }}",
        middle * units,
        choice(low, units, statement),
        choice(high, units, statement)
    )
}

/// Workgroups for `count` threads in groups of `threads`, folded into two dimensions of at most
/// 65,535; `position` in WGSL undoes it.
pub(crate) fn folded(count: usize, threads: usize) -> [u32; 3] {
    const MOST: usize = 65_535;
    let groups = count.div_ceil(threads).max(1);
    let rows = groups.div_ceil(MOST);
    [groups.div_ceil(rows) as u32, rows as u32, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segment_of_a_quad_is_found_by_halves() {
        let own = |segment: usize| format!("s{segment};");
        assert_eq!(choice(0..1, 10, &own), "s0;");
        assert_eq!(
            choice(0..4, 10, &own),
            "if (q < 20u) { if (q < 10u) { s0; } else { s1; } } else { if (q < 30u) { s2; } else { s3; } }"
        );
    }
}
