//! Groups of element-wise ops: one thread for each quad. Every op's result is rounded into its
//! declared format in registers, so that fusion changes no bits; only results that others need are
//! written.

use std::collections::HashMap;
use std::fmt::Write;

use onesigma_graph::Distribution;

use super::index::axis_coordinate;
use super::kernel::{Builder, Kernel, Lanes, folded};
use super::{expression, fill, literal};
use crate::ir::{Compute, Element, Entry, Operand, TensorId};
use crate::memory::Memory;

const TEMPLATE: &str = include_str!("../wgsl/element.wgsl");
const THREADS: usize = 256;

/// Names of values in registers: tensor and how it was read.
type Loaded = HashMap<String, String>;

/// The kernel of a group; `stored` says which results others need.
pub(crate) fn kernel(
    entry: &Entry,
    memory: &Memory,
    elements: &[Element],
    stored: &dyn Fn(TensorId) -> bool,
    label: &str,
) -> Kernel {
    let mut builder = Builder::new(entry, memory);
    let numel = entry.tensors[elements[0].out].numel;
    let mut body = String::new();
    let mut loaded = Loaded::new();
    let mut made: HashMap<TensorId, String> = HashMap::new();
    let each = ["i.x", "i.y", "i.z", "i.w"];
    let lanes = Lanes { quad: Some("quad"), each };
    // All loads first, so that they are in flight together.
    for element in elements {
        if matches!(element.compute, Compute::Expr(_) | Compute::Copy) {
            for operand in &element.operands {
                if !made.contains_key(&operand.tensor) {
                    load(&mut builder, &mut body, operand, lanes, &mut loaded, &element.compute);
                }
            }
        }
        made.insert(element.out, String::new());
    }
    made.clear();
    for (n, element) in elements.iter().enumerate() {
        let name = format!("r{n}");
        emit(&mut builder, &mut body, element, lanes, &loaded, &made, &name, n);
        made.insert(element.out, name.clone());
    }
    for (n, element) in elements.iter().enumerate() {
        if stored(element.out) {
            body.push_str(&builder.store(element.out, "quad", &format!("r{n}_codes")));
        }
    }
    let positions = match body.contains("i.") || body.contains("(i)") {
        true if numel.is_multiple_of(4) => {
            "    let i = vec4<u32>(4u * quad) + vec4<u32>(0u, 1u, 2u, 3u);\n".to_owned()
        }
        true => format!(
            "    let i = min(vec4<u32>(4u * quad) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>({}u));\n",
            numel - 1
        ),
        false => String::new(),
    };
    let quads = numel.div_ceil(4);
    let text = fill(
        TEMPLATE,
        &[
            ("threads", THREADS.to_string()),
            ("quads", quads.to_string()),
            ("positions", positions),
            ("body", body),
        ],
    );
    builder.finish(label, &text, folded(quads, THREADS))
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
    compute: &Compute,
) {
    let raw = matches!(compute, Compute::Copy);
    let key = key(operand, raw);
    if loaded.contains_key(&key) {
        return;
    }
    let name = format!("v{}", loaded.len());
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
    name: &str,
    n: usize,
) {
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
            let value = expression::emit(body, expr, &format!("t{n}_"), &names, index);
            // An operand as it is: its bits, past any arithmetic.
            match names.iter().position(|name| *name == value) {
                Some(at) if element.result.alpha == 1.0 => {
                    let from = builder.dtype(element.operands[at].tensor);
                    let bits = format!("{value}_bits");
                    builder.convert(body, &element.result, &bits, from, "quad", name);
                }
                _ => builder.round(body, &element.result, &value, None, "quad", name),
            }
        }
        Compute::Copy => {
            let from = operand_name(&element.operands[0]);
            let _ = writeln!(body, "    let {name}_codes = {from}_codes;");
            decoded(builder, body, element, name);
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
            decoded(builder, body, element, name);
        }
        Compute::Random(distribution) => {
            let word = builder.draw(32, element.result.stream, "quad");
            let _ = writeln!(body, "    let {name}_word = {word};");
            let value = random(builder, body, *distribution, name);
            builder.round(body, &element.result, &value, None, "quad", name);
        }
    }
}

/// Statements that make the values of copied codes, for those that read them.
fn decoded(builder: &mut Builder<'_>, body: &mut String, element: &Element, name: &str) {
    let bits = builder.library.decoded(element.result.dtype, &format!("{name}_codes"));
    let _ = writeln!(body, "    let {name}_bits = {bits};");
    let _ = writeln!(body, "    let {name} = bitcast<vec4<f32>>({name}_bits);");
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
