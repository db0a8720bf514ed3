//! Scales of a case as a backend computes them.

use super::{Case, Figures};
use crate::attention::scaled_attention;
use crate::{
    Attention, GeluForm, Linear, Parametrisation, Result, Scales, add, attention, conv1d,
    cross_entropy, dropout, embedding, gelu, hardtanh, layer_norm, linear, matmul, mse_loss, relu,
    residual_add, residual_apply, residual_factors, residual_split, rms_norm, sigmoid, silu,
    silu_glu, softmax, tanh, weighted_add,
};
use onesigma_backend::{Backend, Engine};
use onesigma_format::{Noise, philox};
use onesigma_graph::passes::{clean::clean, legalise::legalise};
use onesigma_graph::{
    DType, Graph, Module, Program, ReduceKind, Role, Shape, SlotId, SlotKind, ValueId, autodiff,
};
use std::collections::BTreeMap;

/// Ratios of the scaled to the plain op.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// Least-squares ratios.
    pub figures: Figures,
    /// What the ratios leave unexplained, relative to the scaled tensor, the largest of all: that
    /// a scale is one constant shows in a deviation at the level of rounding.
    pub deviation: f64,
}

/// Operands of an op by name, in order; ids are marked.
pub(super) fn operand_names(case: &Case) -> Result<&'static [(&'static str, bool)]> {
    Ok(match case.op.as_str() {
        "linear" | "linear_readout" | "conv1d" | "layer_norm" | "rms_norm" => {
            &[("input", false), ("weight", false), ("bias", false)]
        }
        "matmul" => &[("left", false), ("right", false)],
        "gelu" | "silu" | "relu" | "tanh" | "sigmoid" | "hardtanh" | "softmax" | "dropout"
        | "residual_split" | "residual_apply" => &[("input", false)],
        "weighted_add" => &[("input", false), ("other", false), ("third", false)],
        "silu_glu" => &[("input", false), ("gate", false)],
        "embedding" => &[("input", true), ("weight", false)],
        "cross_entropy" => &[("input", false), ("target", true)],
        "mse_loss" => &[("input", false), ("target", false)],
        "add" => &[("input", false), ("other", false)],
        "residual_add" => &[("residual", false), ("skip", false)],
        "scaled_dot_product_attention" => &[("query", false), ("key", false), ("value", false)],
        _ => return Err(case.unknown()),
    })
}

/// The operands that a case gives.
fn operands(case: &Case) -> Result<Vec<(&'static str, bool)>> {
    let names = operand_names(case)?.iter();
    Ok(names.filter(|(name, _)| case.shapes.contains_key(*name)).copied().collect())
}

/// The operand's values in one graph.
struct Inputs<'a> {
    case: &'a Case,
    values: BTreeMap<&'static str, ValueId>,
}

impl Inputs<'_> {
    fn get(&self, name: &str) -> Result<ValueId> {
        self.case.shape(name)?;
        let missing = || self.case.wrong(format!("operand `{name}` is not one of this op's"));
        self.values.get(name).copied().ok_or_else(missing)
    }

    fn optional(&self, name: &str) -> Option<ValueId> {
        self.values.get(name).copied()
    }
}

/// The op of a case, scaled or as the plain op to which the rules compare it.
fn build(graph: &mut Graph, case: &Case, x: &Inputs<'_>, p: Parametrisation) -> Result<ValueId> {
    let mult = case.number("mult", 1.0)?;
    let constraint = case.constraint()?;
    match case.op.as_str() {
        op @ ("linear" | "linear_readout") => {
            let options = if op == "linear" { Linear::default() } else { Linear::readout() };
            let scale_power = case.numbers("scale_power", options.scale_power)?;
            let options = Linear { scale_power, constraint };
            linear(graph, p, x.get("input")?, x.get("weight")?, x.optional("bias"), options)
        }
        "matmul" => matmul(graph, p, x.get("left")?, x.get("right")?, constraint),
        "conv1d" => {
            let options = case.conv1d()?;
            conv1d(graph, p, x.get("input")?, x.get("weight")?, x.optional("bias"), options)
        }
        "gelu" => {
            let form = match case.word("approximate", &["none", "tanh"])? {
                "none" => GeluForm::Erf,
                _ => GeluForm::Tanh,
            };
            gelu(graph, p, x.get("input")?, form, mult, constraint)
        }
        "silu" => silu(graph, p, x.get("input")?, mult, constraint),
        "silu_glu" => silu_glu(graph, p, x.get("input")?, x.get("gate")?, mult),
        "relu" => relu(graph, p, x.get("input")?, constraint),
        "tanh" => tanh(graph, p, x.get("input")?, constraint),
        "sigmoid" => sigmoid(graph, p, x.get("input")?, constraint),
        "hardtanh" => hardtanh(graph, p, x.get("input")?, mult, constraint),
        "weighted_add" => {
            let given = ["input", "other", "third"].into_iter().filter_map(|name| x.optional(name));
            let given: Vec<ValueId> = given.collect();
            let weights = case.list("weights", &vec![1.0; given.len()])?;
            weighted_add(graph, p, &given, &weights, constraint)
        }
        "softmax" => {
            let axis = case.number("dim", -1.0)? as isize;
            softmax(graph, p, x.get("input")?, axis, mult, constraint)
        }
        "dropout" => {
            let training = case.flag("training", true)?;
            dropout(graph, p, x.get("input")?, case.number("p", 0.5)?, training)
        }
        op @ ("layer_norm" | "rms_norm") => {
            let (axes, eps) = (case.norm_axes()?, case.number("eps", 1e-5)?);
            let (input, weight) = (x.get("input")?, x.optional("weight"));
            match op {
                "layer_norm" => layer_norm(graph, p, input, weight, x.optional("bias"), axes, eps),
                _ => rms_norm(graph, p, input, weight, axes, eps),
            }
        }
        "embedding" => embedding(graph, p, x.get("input")?, x.get("weight")?),
        "cross_entropy" => {
            let mean = case.mean()?;
            cross_entropy(graph, p, x.get("input")?, x.get("target")?, mult, mean)
        }
        "mse_loss" => mse_loss(graph, p, x.get("input")?, x.get("target")?, case.mean()?),
        "add" => add(graph, p, x.get("input")?, x.get("other")?, constraint),
        "residual_split" => {
            let (residual, skip) = residual_split(graph, p, x.get("input")?, case.tau()?)?;
            let first = case.word("which", &["residual", "skip"])? == "residual";
            Ok(if first { residual } else { skip })
        }
        "residual_add" => {
            let given = x.optional("residual").or(x.optional("skip"));
            let given = given.ok_or_else(|| case.wrong("give `residual` or `skip`"))?;
            let zero = graph.fill(graph.shape(given).clone(), 0.0)?;
            let operand = |name| x.optional(name).unwrap_or(zero);
            residual_add(graph, p, operand("residual"), operand("skip"), case.tau()?)
        }
        "residual_apply" => {
            let (input, tau, factor) = (x.get("input")?, case.tau()?, case.factor()?);
            if p.is_scaled() {
                return residual_apply(graph, p, input, tau, |graph, x| {
                    Ok(graph.map(&[x], |x| x[0].clone() * factor)?.one()?)
                });
            }
            let (branch, skip) = residual_factors(tau)?;
            Ok(graph
                .map(&[input], |x| x[0].clone() * factor * branch + x[0].clone() * skip)?
                .one()?)
        }
        "scaled_dot_product_attention" => {
            let options = Attention {
                causal: case.flag("is_causal", false)?,
                mult,
                dropout: case.number("dropout_p", 0.0)?,
                training: true,
                scale_keys: None,
            };
            // Cases have [batch, heads, seq, d].
            let mut qkv = [x.get("query")?, x.get("key")?, x.get("value")?];
            for operand in &mut qkv {
                *operand = graph.permute(*operand, &[0, 2, 1, 3])?;
            }
            let y = if p.is_scaled() {
                attention(graph, p, qkv, options)?
            } else if options.dropout == 0.0 {
                // The plain op has the scaled op's logits.
                let d = graph.shape(qkv[0]).last();
                let logit_scale = options.logit_scale(Parametrisation::UMup, d);
                scaled_attention(graph, qkv, options.causal, logit_scale, &Scales::ones())?
            } else {
                return Err(case.wrong("measured with `dropout_p` 0 only"));
            };
            Ok(graph.permute(y, &[0, 2, 1, 3])?)
        }
        _ => Err(case.unknown()),
    }
}

/// Slots of one of the two entries.
struct Outputs {
    y: SlotId,
    grads: Vec<SlotId>,
}

/// Runs the scaled and the plain op on a backend: standard normal operands and upstream gradient,
/// uniform ids, from a fixed seed; scalar outputs have the upstream gradient 1. Gradients are
/// those of all float operands.
///
/// # Errors
/// [`Error::Case`](crate::Error::Case) for a malformed case; [`Error::Graph`](crate::Error::Graph)
/// for shapes that do not fit; [`Error::Backend`](crate::Error::Backend).
pub fn measure(case: &Case, backend: &dyn Backend) -> Result<Measured> {
    let operands = operands(case)?;
    let mut module = Module::new();
    let (seed, step) = (module.seed_slot()?, module.step_slot()?);
    let mut slots = Vec::new();
    for &(name, is_id) in &operands {
        let dtype = if is_id { DType::U32 } else { DType::F32 };
        let slot = module.slot(name, SlotKind::Input, case.shape(name)?, dtype, Role::Data)?;
        slots.push(slot);
    }
    let classes = match case.op.as_str() {
        "embedding" => case.matrix("weight")?[0],
        "cross_entropy" => case.shape("input")?.last(),
        _ => 1,
    };
    let mut upstream = None;
    let mut outputs = Vec::new();
    for (entry, p) in [("scaled", Parametrisation::UMup), ("plain", Parametrisation::Regular)] {
        let mut graph = Graph::new();
        let reads: Vec<ValueId> = slots.iter().map(|&slot| module.read(&mut graph, slot)).collect();
        let values = operands.iter().zip(&reads).map(|(&(name, _), &value)| (name, value));
        let inputs = Inputs { case, values: values.collect() };
        let y = build(&mut graph, case, &inputs, p)?;
        let shape = graph.shape(y).clone();
        let mut loss = y;
        if shape.rank() > 0 {
            let slot = match upstream {
                Some(slot) => slot,
                None => {
                    let kind = SlotKind::Input;
                    module.slot("upstream", kind, shape.clone(), DType::F32, Role::Data)?
                }
            };
            upstream = Some(slot);
            let dy = module.read(&mut graph, slot);
            let axes: Vec<isize> = (0..shape.rank() as isize).collect();
            let product = |x: &[onesigma_graph::expr::Term]| x[0].clone() * x[1].clone();
            loss = graph.reduce(ReduceKind::Sum, &[y, dy], &axes, false, product)?.one()?;
        }
        let floats: Vec<(&str, ValueId)> = operands
            .iter()
            .zip(&reads)
            .filter(|((_, is_id), _)| !is_id)
            .map(|(&(name, _), &value)| (name, value))
            .collect();
        let wanted: Vec<ValueId> = floats.iter().map(|&(_, value)| value).collect();
        let gradients = autodiff::gradients(&mut graph, loss, &wanted, None)?;
        let mut output = |graph: &mut Graph, name: &str, value: ValueId| -> Result<SlotId> {
            let name = format!("{entry}.{name}");
            let shape = graph.shape(value).clone();
            let slot = module.slot(&name, SlotKind::Output, shape, DType::F32, Role::Statistic)?;
            graph.write(slot, value);
            Ok(slot)
        };
        let y = output(&mut graph, "output", y)?;
        let mut grads = Vec::new();
        for (&(name, _), &gradient) in floats.iter().zip(&gradients) {
            grads.push(output(&mut graph, &format!("grad.{name}"), gradient)?);
        }
        outputs.push(Outputs { y, grads });
        module.entry(entry, graph)?;
    }
    module.rewrite(|graph| {
        let supports =
            |op: &_, inputs: &[DType], output: DType| backend.supports(op, inputs, output);
        Ok(legalise(&clean(graph), &supports, false)?.graph)
    })?;
    let program = Program::new(module)?;
    let mut engine = backend.compile(&program)?;
    engine.write(seed, &[1, 0, 0, 0, 0, 0, 0, 0])?;
    engine.write(step, &[0; 4])?;
    for (stream, &slot) in slots.iter().chain(&upstream).enumerate() {
        let info = &program.slots()[slot.index()];
        engine.write(slot, &random(&info.shape, info.dtype, classes, stream as u32))?;
    }
    for entry in ["scaled", "plain"] {
        engine.run(program.find_entry(entry)?, 1)?;
    }
    let mut deviation = 0.0_f64;
    let mut ratio = |scaled: SlotId, plain: SlotId| -> Result<f64> {
        let (scaled, plain) =
            (read(&mut *engine, &program, scaled)?, read(&mut *engine, &program, plain)?);
        let (ratio, rest) = least_squares(&scaled, &plain);
        deviation = if rest.is_nan() { rest } else { deviation.max(rest) };
        Ok(ratio)
    };
    let output = ratio(outputs[0].y, outputs[1].y)?;
    let mut grads = BTreeMap::new();
    let names = operands.iter().filter(|(_, is_id)| !is_id).map(|&(name, _)| name);
    for (name, (&scaled, &plain)) in names.zip(outputs[0].grads.iter().zip(&outputs[1].grads)) {
        grads.insert(name.to_owned(), ratio(scaled, plain)?);
    }
    Ok(Measured { figures: Figures { output, grads }, deviation })
}

fn random(shape: &Shape, dtype: DType, classes: usize, stream: u32) -> Vec<u8> {
    let noise = Noise { seed: 0x1516, tensor: stream, step: 0, offset: 0 };
    if dtype == DType::U32 {
        let mut words = vec![0_u32; shape.numel()];
        philox::fill_u32(noise, &mut words);
        let ids = words.iter().map(|word| (*word as usize % classes.max(1)) as u32);
        return ids.flat_map(u32::to_le_bytes).collect();
    }
    let mut values = vec![0.0_f32; shape.numel()];
    philox::fill_normal(noise, &mut values);
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn read(engine: &mut dyn Engine, program: &Program, slot: SlotId) -> Result<Vec<f64>> {
    let mut bytes = vec![0; program.slots()[slot.index()].bytes()];
    engine.read(slot, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|word| f64::from(f32::from_le_bytes(*word))).collect())
}

/// `r` that minimises `|scaled - r plain|`, and that rest relative to `scaled`.
fn least_squares(scaled: &[f64], plain: &[f64]) -> (f64, f64) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let ratio = dot(scaled, plain) / dot(plain, plain);
    let rest: f64 = scaled.iter().zip(plain).map(|(s, p)| (s - ratio * p).powi(2)).sum();
    (ratio, (rest / dot(scaled, scaled)).sqrt())
}
