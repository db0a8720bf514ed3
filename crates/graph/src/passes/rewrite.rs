//! Rebuilds a graph node by node: the frame for passes of other crates that put ops in the place
//! of ops.
//!
//! ```
//! use onesigma_graph::{DType, Error, Graph, Module, Op, Role, SlotKind};
//! use onesigma_graph::passes::rewrite::Rewriter;
//!
//! # fn main() -> Result<(), Error> {
//! let mut module = Module::new();
//! let x = module.slot("x", SlotKind::Input, [4], DType::F32, Role::Data)?;
//! let mut graph = Graph::new();
//! let x = module.read(&mut graph, x);
//! let y = graph.map(&[x], |x| x[0].exp())?.named("exp").one()?;
//! let mut rewriter = Rewriter::new(&graph);
//! for node in graph.nodes() {
//!     let inputs = rewriter.values(&node.inputs);
//!     match node.op {
//!         Op::Map { .. } => rewriter.replace(node, |graph| {
//!             graph.map(&inputs, |x| x[0].tanh())?.named("tanh").one()
//!         })?,
//!         _ => rewriter.keep(node, inputs),
//!     }
//! }
//! let y = rewriter.value(y);
//! let graph = rewriter.finish();
//! assert_eq!(graph.node(graph.value(y).producer).name, "tanh");
//! # Ok(())
//! # }
//! ```

use super::Renaming;
use crate::{Graph, Node, ValueId};

/// A graph that is being rebuilt. Nodes are visited in their order; names, layers and random
/// streams of those that are kept stay the same.
#[derive(Debug)]
pub struct Rewriter<'g> {
    from: &'g Graph,
    to: Graph,
    renamed: Renaming,
}

impl<'g> Rewriter<'g> {
    /// Starts with an empty graph.
    pub fn new(from: &'g Graph) -> Self {
        Self { from, to: from.successor(), renamed: Renaming::new(from) }
    }

    /// What stands for a value of the old graph in the new one. A value is there once the node that
    /// makes it is kept or replaced; before, the answer means nothing.
    pub fn value(&self, old: ValueId) -> ValueId {
        self.renamed.get(old)
    }

    /// What stands for several values.
    pub fn values(&self, old: &[ValueId]) -> Vec<ValueId> {
        self.renamed.all(old)
    }

    /// The graph as far as it stands.
    pub fn graph(&self) -> &Graph {
        &self.to
    }

    /// Carries a node over with new operands.
    pub fn keep(&mut self, node: &Node, inputs: Vec<ValueId>) {
        let outputs = self.to.carry(node, self.from, inputs);
        self.renamed.set_all(&node.outputs, &outputs);
    }

    /// Builds something in the scope and layer of a node, without replacing it.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn insert<T, E>(
        &mut self,
        beside: &Node,
        build: impl FnOnce(&mut Graph) -> Result<T, E>,
    ) -> Result<T, E> {
        let outer = self.to.set_layer(beside.layer);
        let result = match beside.name.rsplit_once('.') {
            Some((scope, _)) => self.to.scoped(scope, build),
            None => build(&mut self.to),
        };
        self.to.set_layer(outer);
        result
    }

    /// Builds what stands for a node, in its scope and layer. The result stands for the node's
    /// first result; if its producer has as many results as the node, they stand for the others.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn replace<E>(
        &mut self,
        node: &Node,
        build: impl FnOnce(&mut Graph) -> Result<ValueId, E>,
    ) -> Result<(), E> {
        let new = self.insert(node, build)?;
        let outputs = self.to.node(self.to.value(new).producer).outputs.clone();
        if outputs.len() == node.outputs.len() {
            self.renamed.set_all(&node.outputs, &outputs);
        }
        self.renamed.set(node.outputs[0], new);
        Ok(())
    }

    /// The new graph, with those writes of the old one whose values have been rebuilt.
    pub fn finish(mut self) -> Graph {
        for &(slot, value) in self.from.writes() {
            if let Some(value) = self.renamed.known(value) {
                self.to.write(slot, value);
            }
        }
        self.to
    }
}
