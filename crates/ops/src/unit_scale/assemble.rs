//! The scaled graph, built from the plans.

use super::plan::{Change, Plan};
use super::structure::{Residual, Structure};
use super::{Replaced, UnitScale};
use crate::verify::Flow;
use crate::{ResidualRule, Result, Scales, residual_add, residual_factors, residual_split};
use onesigma_graph::passes::rewrite::Rewriter;
use onesigma_graph::{Graph, NodeId, Op, SlotId, ValueId};
use std::collections::HashMap;

/// A scaled graph that may still break the cut-edge rule.
pub(super) struct Draft {
    pub graph: Graph,
    /// What stands for the values of the regular graph.
    pub values: Vec<Option<ValueId>>,
    /// Rules by the values that carry them.
    pub rules: Vec<Entry>,
}

/// What the report says of a node.
pub(super) struct Entry {
    pub value: ValueId,
    pub rule: String,
    pub constraint: Option<crate::Constraint>,
}

/// Builds the graph that the plans describe.
pub(super) fn assemble(
    s: &Structure<'_>,
    plans: &[Option<Plan>],
    options: &UnitScale,
) -> Result<Draft> {
    let p = options.parametrisation;
    let taus = taus(s, options)?;
    let mut rewriter = Rewriter::new(s.graph);
    let mut rules = Vec::new();
    // Both copies of a branch's skip value, once they stand.
    let mut splits: HashMap<usize, (ValueId, ValueId)> = HashMap::new();
    for (index, node) in s.graph.nodes()[..s.count].iter().enumerate() {
        let mut inputs = rewriter.values(&node.inputs);
        for (at, residual) in s.residuals.iter().enumerate() {
            let reads = node.inputs.contains(&residual.skip);
            let is_sum = residual.sum == index;
            if !reads || !(is_sum || residual.nodes.contains(&index)) {
                continue;
            }
            if let std::collections::hash_map::Entry::Vacant(entry) = splits.entry(at) {
                let skip = rewriter.value(residual.skip);
                let pair =
                    rewriter.insert(node, |graph| residual_split(graph, p, skip, taus[at]))?;
                let tau = format!("residual, tau {:.6}", taus[at]);
                if p.scheme().delayed {
                    for value in [pair.0, pair.1] {
                        rules.push(Entry { value, rule: tau.clone(), constraint: None });
                    }
                }
                entry.insert(pair);
            }
            let (branch, skip) = splits[&at];
            for (operand, old) in node.inputs.iter().enumerate() {
                if *old == residual.skip {
                    let around = is_sum && operand != residual.branch_operand;
                    inputs[operand] = if around { skip } else { branch };
                }
            }
        }
        if let Some(at) = s.residuals.iter().position(|residual| residual.sum == index) {
            let Residual { branch_operand, .. } = s.residuals[at];
            let (branch, skip) = (inputs[branch_operand], inputs[1 - branch_operand]);
            rewriter.replace(node, |graph| residual_add(graph, p, branch, skip, taus[at]))?;
            if p.scheme().residual != ResidualRule::Plain {
                let rule = format!("residual, tau {:.6}", taus[at]);
                let value = rewriter.value(node.outputs[0]);
                rules.push(Entry { value, rule, constraint: None });
            }
            continue;
        }
        let Some(plan) = &plans[index] else {
            rewriter.keep(node, inputs);
            continue;
        };
        let mut scaled = node.clone();
        set(&mut scaled.alpha, &mut scaled.beta, &plan.scales);
        match plan.change {
            Change::Nothing | Change::Mirror(_) => rewriter.keep(&scaled, inputs),
            Change::LogitScale(factor) => {
                if let Op::Attention { logit_scale, .. } = &mut scaled.op {
                    *logit_scale = factor;
                }
                rewriter.keep(&scaled, inputs);
            }
            Change::Bias => {
                let product = rewriter.value(node.inputs[0]);
                let alpha = alpha_behind(rewriter.graph(), product);
                let scales = Scales { alpha, beta: vec![1.0, 1.0, plan.scales.beta(1)] };
                rewriter.replace(node, |graph| {
                    crate::linear::add_bias(graph, inputs[0], inputs[1], &scales)
                })?;
            }
            Change::Spread if plan.scales.beta(0) == 1.0 => rewriter.keep(node, inputs),
            Change::Spread => rewriter.replace(node, |graph| {
                let part = graph.op(node.op.clone(), &inputs).one()?;
                let copy = graph.map(&[part], |x| x[0].clone())?;
                Ok::<_, crate::Error>(copy.beta(&plan.scales.beta).named("part").one()?)
            })?,
        }
        let value = rewriter.value(node.outputs[0]);
        let (rule, constraint) = (plan.rule.clone(), plan.constraint);
        rules.push(Entry { value, rule, constraint });
    }
    let mut values = vec![None; s.graph.values().len()];
    for node in &s.graph.nodes()[..s.count] {
        for &output in &node.outputs {
            values[output.index()] = Some(rewriter.value(output));
        }
    }
    Ok(Draft { graph: rewriter.finish(), values, rules })
}

fn set(alpha: &mut [f64], beta: &mut [f64], scales: &Scales) {
    alpha[0] = scales.alpha;
    for (n, beta) in beta.iter_mut().enumerate() {
        *beta = scales.beta(n);
    }
}

/// `alpha` of the product that a value shows.
fn alpha_behind(graph: &Graph, mut value: ValueId) -> f64 {
    loop {
        let node = graph.node(graph.value(value).producer);
        match node.op {
            Op::Reshape { .. } | Op::Permute { .. } => value = node.inputs[0],
            _ => return node.alpha[0],
        }
    }
}

/// `tau` of every residual branch.
fn taus(s: &Structure<'_>, options: &UnitScale) -> Result<Vec<f64>> {
    let kinds: Vec<bool> = s.residuals.iter().map(|residual| residual.is_attention).collect();
    let rule = options.parametrisation.scheme().residual;
    (0..kinds.len())
        .map(|at| {
            let tau = match options.tau {
                Some(tau) => tau,
                None => options.residual.tau_of(rule, at, &kinds)?,
            };
            residual_factors(tau)?;
            Ok(tau)
        })
        .collect()
}

impl Draft {
    /// Gives the layers of a branch whose sizes mirror each other the scales that they have then,
    /// where this breaks nothing.
    pub fn relax(
        &mut self,
        s: &Structure<'_>,
        plans: &[Option<Plan>],
        loss: ValueId,
        parameters: &[ValueId],
    ) -> Result<()> {
        for residual in &s.residuals {
            let mut changed = Vec::new();
            for &index in &residual.nodes {
                let Some(Plan { change: Change::Mirror(mirror), .. }) = plans[index] else {
                    continue;
                };
                let output = s.graph.nodes()[index].outputs[0];
                let Some(value) = self.values[output.index()] else { continue };
                changed.push((self.graph.value(value).producer, mirror));
            }
            if changed.is_empty() {
                continue;
            }
            let before = self.depth_of_conflict(loss, parameters)?;
            let mut trial = self.graph.clone();
            for &(id, mirror) in &changed {
                let (alpha, mut beta) = (trial.node(id).alpha.clone(), trial.node(id).beta.clone());
                beta[0] = mirror;
                trial.set_scales(id, &alpha, &beta)?;
            }
            std::mem::swap(&mut self.graph, &mut trial);
            if self.depth_of_conflict(loss, parameters)? > before {
                self.graph = trial;
                continue;
            }
            for entry in &mut self.rules {
                let producer = self.graph.value(entry.value).producer;
                if changed.iter().any(|(id, _)| *id == producer) {
                    "linear, mirrored".clone_into(&mut entry.rule);
                    entry.constraint = Some(crate::Constraint::None);
                }
            }
        }
        Ok(())
    }

    /// How near to the loss the first conflict is: 0 if there is none.
    fn depth_of_conflict(&self, loss: ValueId, parameters: &[ValueId]) -> Result<usize> {
        let (loss, parameters) = self.ends(loss, parameters);
        let flow = Flow::new(&self.graph, loss, &parameters)?;
        let ratio = |node: NodeId, operand: usize| flow.ratio(node, operand);
        Ok(flow.constants(&ratio).err().map_or(0, |conflict| conflict.value.index() + 1))
    }

    /// Loss and parameters in the new graph.
    pub fn ends(&self, loss: ValueId, parameters: &[ValueId]) -> (ValueId, Vec<ValueId>) {
        let find = |value: ValueId| self.values[value.index()].unwrap_or(value);
        (find(loss), parameters.iter().map(|&value| find(value)).collect())
    }

    pub fn report(&self) -> Vec<Replaced> {
        let replaced = |entry: &Entry| {
            let node = self.graph.node(self.graph.value(entry.value).producer);
            Replaced {
                node: node.name.clone(),
                rule: entry.rule.clone(),
                constraint: entry.constraint,
                alpha: node.alpha[0],
                beta: node.beta.clone(),
            }
        };
        let mut entries: Vec<&Entry> = self.rules.iter().collect();
        entries.sort_by_key(|entry| entry.value);
        entries.into_iter().map(replaced).collect()
    }
}

/// Slots of the weights of linear layers, convolutions and tables.
pub(super) fn unit_weights(s: &Structure<'_>, plans: &[Option<Plan>]) -> Vec<SlotId> {
    let mut slots = Vec::new();
    for (node, plan) in s.graph.nodes().iter().zip(plans) {
        let weight = match (&node.op, plan) {
            (Op::MatMul { .. }, Some(_)) => node.inputs[1],
            (Op::Gather, Some(_)) => node.inputs[0],
            // Tables that are added without a lookup, as learned positions are.
            (Op::Map { .. }, Some(plan)) if plan.rule == "sum" => {
                for &input in &node.inputs {
                    push_slot(s, input, &mut slots);
                }
                continue;
            }
            _ => continue,
        };
        push_slot(s, weight, &mut slots);
    }
    slots
}

fn push_slot(s: &Structure<'_>, value: ValueId, slots: &mut Vec<SlotId>) {
    let Some(parameter) = s.parameter[value.index()] else { return };
    match s.producer(parameter).op {
        Op::Slot(slot) if !slots.contains(&slot) => slots.push(slot),
        _ => {}
    }
}
