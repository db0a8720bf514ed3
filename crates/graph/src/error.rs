//! The error type of this crate.

use crate::{DType, Shape};

/// What can go wrong while a graph is built, transformed, planned or loaded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has a shape that the op cannot take.
    #[error("{node}: {op} got {found}, expected {expected}")]
    Shape {
        /// Name of the node that was being built.
        node: String,
        /// Name of the op.
        op: &'static str,
        /// The shapes that were given.
        found: String,
        /// What the op takes.
        expected: String,
    },
    /// An operand has an element type that the op cannot take.
    #[error("{node}: {op} operand {operand} has type {found}, expected {expected}")]
    ElementType {
        /// Name of the node that was being built.
        node: String,
        /// Name of the op.
        op: &'static str,
        /// Which operand, counted from 0.
        operand: usize,
        /// Its element type.
        found: DType,
        /// What the op takes.
        expected: &'static str,
    },
    /// An op got a wrong number of operands.
    #[error("{node}: {op} got {found} operands, expected {expected}")]
    Arity {
        /// Name of the node that was being built.
        node: String,
        /// Name of the op.
        op: &'static str,
        /// How many were given.
        found: usize,
        /// How many the op takes.
        expected: &'static str,
    },
    /// An attribute is outside its range.
    #[error("{node}: {op} attribute `{attribute}` is {found}, expected {expected}")]
    Attribute {
        /// Name of the node that was being built.
        node: String,
        /// Name of the op.
        op: &'static str,
        /// Name of the attribute.
        attribute: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// A gradient was asked for through an op that has none.
    #[error("{node}: {op} has no gradient; use its fused form or stop the gradient before it")]
    NotDifferentiable {
        /// Name of the node.
        node: String,
        /// Name of the op.
        op: &'static str,
    },
    /// The loss does not depend on a value whose gradient was asked for.
    #[error("the loss does not depend on `{value}`; leave it out of the list of parameters")]
    NoPath {
        /// Name of the value.
        value: String,
    },
    /// The loss is not a scalar.
    #[error("the loss `{value}` has shape {shape}, expected a scalar; reduce it first")]
    LossNotScalar {
        /// Name of the value.
        value: String,
        /// Its shape.
        shape: Shape,
    },
    /// An id points outside its table.
    #[error("{what} {index} does not exist, there are {count}")]
    UnknownId {
        /// Which table: value, node, slot or entry.
        what: &'static str,
        /// The index that was given.
        index: usize,
        /// The size of the table.
        count: usize,
    },
    /// A name is not in its table.
    #[error("no {what} named `{name}`; there are: {known}")]
    UnknownName {
        /// Which table: slot or entry.
        what: &'static str,
        /// The name that was given.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A name is used twice.
    #[error("{what} `{name}` exists already; names are unique within a program")]
    DuplicateName {
        /// Which table: slot or entry.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A value is written to a slot of another shape or element type.
    #[error("slot `{slot}` holds {expected}, but entry `{entry}` writes {found} to it")]
    SlotMismatch {
        /// Name of the slot.
        slot: String,
        /// Name of the entry.
        entry: String,
        /// Type and shape of the slot.
        expected: String,
        /// Type and shape of the value.
        found: String,
    },
    /// A program does not fit its own description.
    #[error("invalid program: {reason}")]
    InvalidProgram {
        /// What is wrong.
        reason: String,
    },
    /// No rule of a recipe says what to do with a tensor.
    #[error("recipe `{recipe}` has no rule for role {role} stored by `{node}`; add one")]
    NoRule {
        /// Name of the recipe.
        recipe: String,
        /// The role without a rule.
        role: String,
        /// The node that makes such a tensor.
        node: String,
    },
    /// A program does not fit its budget of memory, however much is recomputed.
    #[error(
        "the program needs {} at least, entry `{entry}` being the largest: {} of slots (weights, \
         optimiser state, inputs, outputs) and temporary tensors, however many are recomputed; the \
         budget is {}. Raise it, or make batch, sequence or formats smaller",
        mebibytes(*least_bytes), mebibytes(*slot_bytes), mebibytes(*budget_bytes)
    )]
    Memory {
        /// Bytes that were allowed.
        budget_bytes: usize,
        /// Bytes with which it would fit.
        least_bytes: usize,
        /// Bytes of the slots.
        slot_bytes: usize,
        /// The entry that needs most.
        entry: String,
    },
    /// A backend supports neither an op nor any rewrite of it.
    #[error(
        "{node}: {op} with inputs {inputs} and output {output} is not supported by the backend"
    )]
    Unsupported {
        /// Name of the node.
        node: String,
        /// Name of the op.
        op: &'static str,
        /// Element types of the operands.
        inputs: String,
        /// Element type of the result.
        output: String,
    },
}

/// Rounded up, so that a budget of what is printed is enough.
fn mebibytes(bytes: usize) -> String {
    format!("{:.2} MiB", (bytes as f64 / f64::from(1 << 20) * 100.0).ceil() / 100.0)
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
