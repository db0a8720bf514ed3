//! Brings uses of one value in line that carry different constants.

use super::assemble::{Draft, Entry};
use crate::verify::{Conflict, Flow, Mend, locate, share};
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
                share(&mut self.graph, &conflict)?;
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
