//! Brings uses of one value in line that carry different constants.

use super::assemble::{Draft, Entry};
use crate::verify::{Conflict, Flow, Mend, locate};
use crate::{Error, Result};
use onesigma_graph::passes::rewrite::Rewriter;
use onesigma_graph::{Node, NodeId, Op, ValueId};

impl Draft {
    /// Settles one conflict after the other, from the loss back.
    pub fn settle(&mut self, loss: ValueId, parameters: &[ValueId]) -> Result<()> {
        // Every round settles one value for good.
        for _ in 0..=self.graph.values().len() {
            let (new_loss, new_parameters) = self.ends(loss, parameters);
            let flow = Flow::new(&self.graph, new_loss, &new_parameters)?;
            let ratio = |node: NodeId, operand: usize| flow.ratio(node, operand);
            let Err(conflict) = flow.constants(&ratio) else { return Ok(()) };
            let producer = self.graph.node(self.graph.value(conflict.value).producer);
            if matches!(producer.op, Op::Slot(_)) {
                self.share(&conflict)?;
                continue;
            }
            if let Some(heads) = heads(&flow, &conflict) {
                self.split(&conflict, &heads)?;
                continue;
            }
            let violation = locate(&flow, &conflict);
            if matches!(violation.mend, Mend::Beta(_)) {
                return Err(Error::CutEdge(Box::new(violation)));
            }
            self.graph = violation.mend(&self.graph)?;
            for entry in &mut self.rules {
                if self.graph.value(entry.value).producer == violation.edge.node {
                    entry.constraint = Some(crate::Constraint::ToOutputScale);
                }
            }
        }
        Ok(())
    }

    /// Gives every use of a shared parameter the geometric mean of their constants.
    fn share(&mut self, conflict: &Conflict) -> Result<()> {
        let n = conflict.uses.len() as f64;
        let mean = conflict.uses.iter().map(|own| own.constant.abs().ln()).sum::<f64>() / n;
        for own in &conflict.uses {
            let Some((id, operand)) = self.scalable(own.node, own.operand) else { continue };
            let node = self.graph.node(id);
            let (alpha, mut beta) = (node.alpha.clone(), node.beta.clone());
            beta[operand] *= mean.exp() / own.constant.abs();
            self.graph.set_scales(id, &alpha, &beta)?;
        }
        Ok(())
    }

    /// The edge itself, or the first behind views that can carry a scale.
    fn scalable(&self, node: NodeId, operand: usize) -> Option<(NodeId, usize)> {
        let (mut id, mut operand) = (node, operand);
        while self.graph.node(id).op.is_movement() {
            let output = self.graph.node(id).outputs[0];
            let rest = self.graph.nodes().iter().enumerate().skip(id.index() + 1);
            let mut readers = rest.filter_map(|(at, node)| {
                let operand = node.inputs.iter().position(|input| *input == output)?;
                Some((NodeId::new(at), operand))
            });
            (id, operand) = readers.next()?;
        }
        Some((id, operand))
    }

    /// Puts a copy before every head, with weights that bring their constants together.
    fn split(&mut self, conflict: &Conflict, heads: &[Vec<usize>]) -> Result<()> {
        let constant = |head: &[usize]| conflict.uses[head[0]].constant;
        let common = heads.iter().map(|head| constant(head).powi(-2)).sum::<f64>().powf(-0.5);
        let old = self.graph.clone();
        let mut rewriter = Rewriter::new(&old);
        let mut copies = vec![None; heads.len()];
        for (index, node) in old.nodes().iter().enumerate() {
            let mut inputs = rewriter.values(&node.inputs);
            for (at, head) in heads.iter().enumerate() {
                let own = |n: &&usize| conflict.uses[**n].node.index() == index;
                for &n in head.iter().filter(own) {
                    let copy = match copies[at] {
                        Some(copy) => copy,
                        None => {
                            let value = rewriter.value(conflict.value);
                            let beta = common / constant(head);
                            rewriter.insert(node, |graph| {
                                let copy = graph.map(&[value], |x| x[0].clone())?;
                                Ok::<_, Error>(copy.beta(&[beta]).named("head_split").one()?)
                            })?
                        }
                    };
                    copies[at] = Some(copy);
                    inputs[conflict.uses[n].operand] = copy;
                }
            }
            rewriter.keep(node, inputs);
        }
        for value in self.values.iter_mut().flatten() {
            *value = rewriter.value(*value);
        }
        for entry in &mut self.rules {
            entry.value = rewriter.value(entry.value);
        }
        for copy in copies.into_iter().flatten() {
            let rule = "split between heads".to_owned();
            self.rules.push(Entry { value: copy, rule, constraint: None });
        }
        self.graph = rewriter.finish();
        Ok(())
    }
}

/// The uses of a conflict sorted into heads, if their ways meet in sums of losses only.
fn heads(flow: &Flow<'_>, conflict: &Conflict) -> Option<Vec<Vec<usize>>> {
    let reach: Vec<Vec<bool>> = conflict
        .uses
        .iter()
        .map(|own| flow.descendants(flow.graph().node(own.node).outputs[0]))
        .collect();
    let shared = |a: &[bool], b: &[bool]| {
        a.iter()
            .zip(b)
            .enumerate()
            .any(|(at, (a, b))| *a && *b && flow.graph().shape(ValueId::new(at)).rank() > 0)
    };
    let mut heads: Vec<Vec<usize>> = Vec::new();
    for n in 0..conflict.uses.len() {
        let mut together = vec![n];
        heads.retain(|head| {
            let meets = head.iter().any(|&other| shared(&reach[n], &reach[other]));
            if meets {
                together.extend(head);
            }
            !meets
        });
        together.sort_unstable();
        heads.push(together);
    }
    let is_scalar = |node: &Node| flow.graph().shape(node.outputs[0]).rank() == 0;
    let differ =
        heads.len() > 1 && !conflict.uses.iter().any(|own| is_scalar(flow.graph().node(own.node)));
    differ.then_some(heads)
}
