//! Passes over graphs, each a function in a file of its own.

pub mod apply_recipe;
pub mod clean;
pub mod expose;
pub mod fuse_maps;
pub mod hoist;
pub mod legalise;
pub mod memory_plan;
pub mod recompute;
pub mod rewrite;
pub mod saved;
pub(crate) mod tensors;
pub(crate) mod validate;

use crate::{Graph, ValueId};

/// Values of an old graph under their ids in the new one, while a pass rebuilds it.
#[derive(Debug)]
pub(crate) struct Renaming(Vec<Option<ValueId>>);

impl Renaming {
    pub(crate) fn new(graph: &Graph) -> Self {
        Self(vec![None; graph.values().len()])
    }

    /// The new id; a pass visits nodes in order, so operands are always there.
    pub(crate) fn get(&self, old: ValueId) -> ValueId {
        self.0[old.index()].unwrap_or(old)
    }

    /// The new id, if there is one yet.
    pub(crate) fn known(&self, old: ValueId) -> Option<ValueId> {
        self.0[old.index()]
    }

    pub(crate) fn all(&self, old: &[ValueId]) -> Vec<ValueId> {
        old.iter().map(|&value| self.get(value)).collect()
    }

    pub(crate) fn set(&mut self, old: ValueId, new: ValueId) {
        self.0[old.index()] = Some(new);
    }

    pub(crate) fn set_all(&mut self, old: &[ValueId], new: &[ValueId]) {
        for (&old, &new) in old.iter().zip(new) {
            self.set(old, new);
        }
    }

    /// Carries the writes of the old graph over to the new one.
    pub(crate) fn writes(&self, from: &Graph, to: &mut Graph) {
        for &(slot, value) in from.writes() {
            to.write(slot, self.get(value));
        }
    }
}
