//! Groups of element-wise ops: one thread for each quad. Every op's result is rounded into its
//! declared format in registers, so that fusion changes no bits; only results that others need are
//! written.

use std::collections::HashMap;
use std::fmt::Write;

use onesigma_graph::{AdamWConfig, Distribution};

use super::index::axis_coordinate;
use super::kernel::{Builder, Kernel, Lanes, folded};
use super::{expression, fill, literal, scalar_literal};
use crate::ir::{Access, Compute, Element, Entry, Operand, TensorId, Updated};
use crate::memory::Memory;

const TEMPLATE: &str = include_str!("../wgsl/element.wgsl");
const MANY_TEMPLATE: &str = include_str!("../wgsl/element_many.wgsl");
const ADAMW: &str = include_str!("../wgsl/adamw.wgsl");
const THREADS: usize = 256;

/// Names of values in registers: tensor and how it was read.
type Loaded = HashMap<String, String>;

/// How many quads a thread takes. The loads of narrow types are so short that one of them leaves
/// the memory idle.
fn quads_of_a_thread(
    entry: &Entry,
    elements: &[Element],
    stored: &dyn Fn(TensorId) -> bool,
    tuned: Option<usize>,
) -> usize {
    const MANY: usize = 1 << 18;
    let made: Vec<TensorId> = elements.iter().map(|element| element.out).collect();
    let read = elements.iter().flat_map(|element| &element.operands);
    let read = read.filter(|operand| operand.is_full() && !made.contains(&operand.tensor));
    let written = made.iter().copied().filter(|&tensor| stored(tensor));
    let tensors = read.map(|operand| operand.tensor).chain(written);
    let widest = tensors.map(|tensor| entry.tensors[tensor].dtype.bytes()).max();
    let quads = entry.tensors[elements[0].out].numel.div_ceil(4);
    let plain = elements.iter().all(|element| matches!(element.compute, Compute::Expr(_)));
    match widest {
        Some(bytes) if bytes <= 2 && elements.len() <= 4 && plain && quads >= MANY => {
            tuned.unwrap_or(2)
        }
        _ => 1,
    }
}

/// The kernel of a group; `stored` says which results others need, `tuned` how many quads a thread
/// takes where several would pay.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    elements: &[Element],
    stored: &dyn Fn(TensorId) -> bool,
    tuned: Option<usize>,
    label: &str,
) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    let numel = entry.tensors[elements[0].out].numel;
    let quads = numel.div_ceil(4);
    let count = quads_of_a_thread(entry, elements, stored, tuned);
    let (mut loads, mut work, mut positions) = (String::new(), String::new(), String::new());
    for part in 0..count {
        let (prefix, quad, i) = match count {
            1 => (String::new(), "quad".to_owned(), "i".to_owned()),
            _ => (format!("p{part}_"), format!("quad{part}"), format!("i{part}")),
        };
        let each = ["x", "y", "z", "w"].map(|lane| format!("{i}.{lane}"));
        let lanes = Lanes { quad: Some(&quad), each: each.each_ref().map(String::as_str) };
        let [load, rest] = part_of(&mut builder, elements, stored, lanes, &prefix);
        // Beyond the last quad a thread reads the last again and writes nothing.
        let ragged = count > 1 && !quads.is_multiple_of(count * THREADS) && part > 0;
        if count > 1 {
            let at = format!("first + {}u", part * THREADS);
            let at = if ragged { format!("min({at}, {}u)", quads - 1) } else { at };
            let _ = writeln!(positions, "    let {quad} = {at};");
        }
        if [&load, &rest].iter().any(|text| text.contains(&format!("{i}."))) {
            let four = format!("vec4<u32>(4u * {quad}) + vec4<u32>(0u, 1u, 2u, 3u)");
            let four = match numel.is_multiple_of(4) {
                true => four,
                false => format!("min({four}, vec4<u32>({}u))", numel - 1),
            };
            let _ = writeln!(positions, "    let {i} = {four};");
        }
        loads.push_str(&load);
        if ragged {
            let _ = writeln!(work, "    if (first + {}u < {quads}u) {{", part * THREADS);
        }
        work.push_str(&rest);
        if ragged {
            work.push_str("    }\n");
        }
    }
    let template = if count == 1 { TEMPLATE } else { MANY_TEMPLATE };
    let text = fill(
        template,
        &[
            ("threads", THREADS.to_string()),
            ("count", count.to_string()),
            ("span", (count * THREADS).to_string()),
            ("quads", quads.to_string()),
            ("positions", positions),
            ("body", loads + &work),
        ],
    );
    builder.finish(label, &text, folded(quads, count * THREADS))
}

/// Statements for one quad: its loads, which come first so that they are in flight together, and
/// the rest.
fn part_of(
    builder: &mut Builder<'_>,
    elements: &[Element],
    stored: &dyn Fn(TensorId) -> bool,
    lanes: Lanes<'_>,
    prefix: &str,
) -> [String; 2] {
    let (mut loads, mut work) = (String::new(), String::new());
    let mut loaded = Loaded::new();
    let mut made: HashMap<TensorId, String> = HashMap::new();
    for element in elements {
        if element.loads() {
            for operand in &element.operands {
                if !made.contains_key(&operand.tensor) {
                    let raw = matches!(element.compute, Compute::Copy);
                    load(builder, &mut loads, operand, lanes, &mut loaded, raw, prefix);
                }
            }
        }
        made.insert(element.out, String::new());
    }
    made.clear();
    for (n, element) in elements.iter().enumerate() {
        let name = format!("{prefix}r{n}");
        let values = format!("{prefix}t{n}_");
        emit(builder, &mut work, element, lanes, &loaded, &made, [&name, &values]);
        made.insert(element.out, name);
    }
    let quad = lanes.quad.unwrap_or("quad");
    for (n, element) in elements.iter().enumerate() {
        if stored(element.out) {
            work.push_str(&builder.store(element.out, quad, &format!("{prefix}r{n}_codes")));
        }
    }
    [loads, work]
}

fn key(operand: &Operand, raw: bool) -> String {
    format!("{operand:?} {raw}")
}

fn load(
    builder: &mut Builder<'_>,
    body: &mut String,
    operand: &Operand,
    lanes: Lanes<'_>,
    loaded: &mut Loaded,
    raw: bool,
    prefix: &str,
) {
    let key = key(operand, raw);
    if loaded.contains_key(&key) {
        return;
    }
    let name = format!("{prefix}v{}", loaded.len());
    if raw {
        let codes = builder.codes(operand, lanes);
        let _ = writeln!(body, "    let {name}_codes = {codes};");
    } else {
        builder.load(body, operand, lanes, &name);
    }
    loaded.insert(key, name);
}

fn emit(
    builder: &mut Builder<'_>,
    body: &mut String,
    element: &Element,
    lanes: Lanes<'_>,
    loaded: &Loaded,
    made: &HashMap<TensorId, String>,
    [name, values]: [&str; 2],
) {
    let quad = lanes.quad.unwrap_or("quad");
    let raw = matches!(element.compute, Compute::Copy);
    let operand_name = |operand: &Operand| {
        let inside = made.get(&operand.tensor).filter(|_| operand.is_full());
        inside.or_else(|| loaded.get(&key(operand, raw))).cloned().unwrap_or_default()
    };
    match &element.compute {
        Compute::Expr(expr) => {
            builder.library.math();
            let names: Vec<String> = element.operands.iter().map(operand_name).collect();
            let index = |axis: usize| {
                let each = lanes.each.map(|at| axis_coordinate(at, &element.dims, axis));
                format!("vec4<u32>({})", each.join(", "))
            };
            let value = expression::emit(body, expr, values, &names, index);
            // An operand as it is: its bits, past any arithmetic.
            match names.iter().position(|name| *name == value) {
                Some(at) if element.result.alpha == 1.0 => {
                    let operand = &element.operands[at];
                    // A row that is not in the table is NaN in the bits alone.
                    let with_codes = matches!(operand.access, Access::View(_));
                    let from = (builder.dtype(operand.tensor), with_codes);
                    builder.convert(body, &element.result, &value, from, quad, name);
                }
                _ => builder.round(body, &element.result, &value, None, quad, name),
            }
        }
        Compute::Copy => {
            let from = operand_name(&element.operands[0]);
            let _ = writeln!(body, "    let {name}_codes = {from}_codes;");
            builder.back(body, element.result.dtype, name);
        }
        Compute::Concat { inner, ends } => {
            let total = ends.last().copied().unwrap_or(1);
            let _ = writeln!(body, "    var {name}_codes: vec4<u32>;");
            for (lane, at) in ["x", "y", "z", "w"].iter().zip(lanes.each) {
                let mut start = 0;
                let along = format!("(({at} / {inner}u) % {total}u)");
                for (part, (&end, operand)) in ends.iter().zip(&element.operands).enumerate() {
                    let x = builder.bind(operand.tensor);
                    let extent = end - start;
                    let position = format!(
                        "({at} / {}u) * {}u + ({along} - {start}u) * {inner}u + {at} % {inner}u",
                        inner * total,
                        extent * inner
                    );
                    let condition = match part + 1 == ends.len() {
                        true => "{".to_owned(),
                        false => format!("if ({along} < {end}u) {{"),
                    };
                    let _ = write!(
                        body,
                        "    {condition} {name}_codes.{lane} = x{x}_code({position}); }}"
                    );
                    body.push_str(if part + 1 == ends.len() { "\n" } else { " else" });
                    start = end;
                }
            }
            builder.back(body, element.result.dtype, name);
        }
        Compute::AdamW(config, which) => {
            builder.library.math();
            builder.library.add("adamw", ADAMW.to_owned());
            let names: Vec<String> = element.operands.iter().map(operand_name).collect();
            let value = adam_w(body, config, *which, &names, values);
            builder.round(body, &element.result, &value, None, quad, name);
        }
        Compute::Random(distribution) => {
            let word = builder.draw(32, element.result.stream, quad);
            let _ = writeln!(body, "    let {name}_word = {word};");
            let value = random(builder, body, *distribution, name);
            builder.round(body, &element.result, &value, None, quad, name);
        }
    }
}

/// The call that makes a result of a step of AdamW.
fn adam_w(
    body: &mut String,
    config: &AdamWConfig,
    which: Updated,
    names: &[String],
    values: &str,
) -> String {
    let AdamWConfig { beta1, beta2, eps, decay, lr_scale } = *config;
    let moment = |function: &str, old: &str, gradient: &str, factor: &str, beta: f64| {
        let [beta, rest] = [beta, 1.0 - beta].map(scalar_literal);
        format!("adam_{function}({old}, {gradient}, {factor}, {beta}, {rest})")
    };
    match (which, names) {
        (Updated::First, [m, gradient, factor]) => moment("first", m, gradient, factor, beta1),
        (Updated::Second, [v, gradient, factor]) => moment("second", v, gradient, factor, beta2),
        (Updated::Weight, [w, gradient, m, v, lr, factor, first, second]) => {
            let m = moment("first", m, gradient, factor, beta1);
            let v = moment("second", v, gradient, factor, beta2);
            let [eps, decay, scale] = [eps, decay, lr_scale].map(scalar_literal);
            let _ = writeln!(body, "    let {values}rate = {lr} * {scale};");
            let _ = writeln!(body, "    let {values}shrink = 1.0 - {lr} * {decay};");
            format!(
                "adam_weight({w}, {m}, {v}, {factor}, {values}rate, {values}shrink, {first}, {second}, {eps})"
            )
        }
        // The lowering gives each result its operands.
        _ => String::new(),
    }
}

fn random(
    builder: &mut Builder<'_>,
    body: &mut String,
    distribution: Distribution,
    name: &str,
) -> String {
    let uniform = format!("vec4<f32>({name}_word >> vec4<u32>(8u)) * {}", literal(2f64.powi(-24)));
    match distribution {
        Distribution::Uniform { low, high } => {
            if low == 0.0 && high == 1.0 {
                return uniform;
            }
            format!("{} + {} * ({uniform})", literal(low), literal(high - low))
        }
        Distribution::Normal { mean, std } => {
            builder.library.normal();
            let _ = writeln!(
                body,
                "    let {name}_normal = bitcast<vec4<f32>>(normal_quad({name}_word));"
            );
            if mean == 0.0 && std == 1.0 {
                return format!("{name}_normal");
            }
            format!("{} + {} * {name}_normal", literal(mean), literal(std))
        }
        Distribution::Bernoulli { p } => {
            // u < p for u in steps of 2^-24.
            let below = (p * f64::from(1 << 24)).ceil().clamp(0.0, f64::from(1 << 24)) as u32;
            format!(
                "select(vec4<f32>(0.0), vec4<f32>(1.0), ({name}_word >> vec4<u32>(8u)) < vec4<u32>({below}u))"
            )
        }
    }
}
