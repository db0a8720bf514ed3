//! What to expect of every tensor of a graph before it runs: standard deviation, mean, law, and
//! from them what a number format would flush, clip and round.
//!
//! [`predict`] visits the nodes in order and computes the [`Moments`] of each result from those of
//! its operands, for regular and scaled graphs alike: `alpha` is read where it stands, and backward
//! passes are nodes as all others, so their `beta` is in it. What slots hold is given as
//! [`Known`]; [`Known::start`] reads it off the entry that fills them.
//!
//! The rules are those of mean-field theory: exact second moments under these assumptions.
//!
//! 1. Different operands of an op are independent of each other. It holds at initialisation, where
//!    every product brings new random weights; it fails where a tensor meets itself on two ways
//!    (tied embeddings) and, mildly, once training has correlated them.
//! 2. Two elements of a tensor are correlated by which of their indices differ, and by whether the
//!    tokens at their positions are equal, not by the indices themselves. Attention, whose rows see
//!    different numbers of keys, is averaged over its rows.
//! 3. Operands of non-linear functions have the law that their producer gave them; pairs of
//!    elements are joined by a normal copula.
//! 4. Logits of a softmax are normal and independent from key to key, up to what a row shares.
//! 5. Norms divide by the expected root mean square: the fluctuation of a row's own is left out.
//! 6. Token ids are drawn with given frequencies, independently of each other.
//! 7. Rounding changes nothing.

mod attention;
mod expression;
mod law;
mod loss;
mod losses;
mod moments;
mod norm;
mod normal;
mod rules;
mod softmax;
mod update;

pub use law::{Law, Points};
pub use losses::{Losses, exponents, losses};
pub use moments::{Axes, Moments, TOKEN};

use crate::{Graph, Op, SlotId, ValueId};
use std::collections::HashMap;
use std::sync::Arc;

/// What is known of integer ids: how frequent each is.
#[derive(Clone, PartialEq, Debug)]
pub struct Ids {
    frequencies: Arc<[f64]>,
    collision: f64,
    /// The slot that holds them.
    source: Option<SlotId>,
}

impl Ids {
    /// Equally frequent ids `0 .. count`.
    pub fn uniform(count: usize) -> Self {
        Self::counted(&vec![1; count.max(1)])
    }

    /// Ids as frequent as in a sample: `counts[id]` of it are `id`. One that does not occur at all
    /// counts as uniform.
    pub fn counted(counts: &[u64]) -> Self {
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return Self::uniform(counts.len());
        }
        let frequencies: Arc<[f64]> =
            counts.iter().map(|&count| count as f64 / total as f64).collect();
        let collision = frequencies.iter().map(|p| p * p).sum();
        Self { frequencies, collision, source: None }
    }

    /// Number of different ids.
    pub fn count(&self) -> usize {
        self.frequencies.len()
    }

    /// Probability of each id.
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// Probability that two independent ids are equal.
    pub fn collision(&self) -> f64 {
        self.collision
    }

    fn source(&self) -> Option<SlotId> {
        self.source
    }

    /// What they say about tensors along their text.
    fn tokens(&self, axes: Axes) -> Option<moments::Tokens> {
        let source = self.source?;
        moments::Tokens { axes, source, collision: self.collision }.on(axes)
    }
}

/// What slots hold when the graph starts.
#[derive(Clone, Debug, Default)]
pub struct Known {
    values: HashMap<SlotId, Moments>,
    ids: HashMap<SlotId, Ids>,
}

impl Known {
    /// What an entry that reads nothing, such as `init`, leaves in the slots that it writes.
    pub fn start(init: &Graph) -> Self {
        let prediction = predict(init, &Self::default());
        let mut known = Self::default();
        for &(slot, value) in init.writes() {
            if let Some(moments) = prediction.of(value) {
                known.values.insert(slot, moments.clone());
            }
        }
        known
    }

    /// Says what a slot of floats holds.
    pub fn value(&mut self, slot: SlotId, moments: Moments) {
        self.values.insert(slot, moments);
    }

    /// Says what a slot of ids holds; ids that nothing is said about are taken as uniform over the
    /// rows that they choose from.
    pub fn ids(&mut self, slot: SlotId, ids: Ids) {
        self.ids.insert(slot, ids);
    }
}

/// The expected moments of every value of a graph.
#[derive(Clone, Debug)]
pub struct Prediction {
    values: Vec<Option<Moments>>,
}

impl Prediction {
    /// Moments of a value; `None` for integers, for tensors of more than 8 axes, and for whatever
    /// depends on a slot that nothing is known about.
    pub fn of(&self, value: ValueId) -> Option<&Moments> {
        self.values.get(value.index())?.as_ref()
    }
}

/// Computes the expected moments of every value from what the slots hold.
pub fn predict(graph: &Graph, known: &Known) -> Prediction {
    let mut values: Vec<Option<Moments>> = vec![None; graph.values().len()];
    let mut ids: Vec<Option<Ids>> = vec![None; graph.values().len()];
    for node in graph.nodes() {
        if let Op::Slot(slot) = node.op {
            let output = node.outputs[0].index();
            let shape = &graph.values()[output].shape;
            let fits = |moments: &&Moments| moments.dims() == shape.dims();
            values[output] = known.values.get(&slot).filter(fits).cloned();
            let own = known.ids.get(&slot).cloned();
            ids[output] = own.map(|ids| Ids { source: Some(slot), ..ids });
            continue;
        }
        if node.op.is_movement() {
            ids[node.outputs[0].index()] = ids[node.inputs[0].index()].clone();
        }
        let results = rules::Rule { graph, node, values: &values, ids: &ids }.results();
        for (output, result) in node.outputs.iter().zip(results.unwrap_or_default()) {
            values[output.index()] = result;
        }
    }
    Prediction { values }
}
