//! The static graph of a training step.
//!
//! A [`Graph`] is an arena of nodes and values. Every node carries its scales: `alpha` on its
//! result and one `beta` for the gradient of each operand. Unit-scaling rules (crate
//! `onesigma-ops`) compute them from shapes, [`autodiff`] reads them, backends multiply by them;
//! nothing else in the system knows about unit scaling.
//!
//! Entries (`init`, `train_step`, ...) are graphs over shared [`Slot`]s, collected in a
//! [`Module`]. [`passes`] rewrite them: recipes choose formats by role, common subexpressions and
//! dead code go. A [`Program`] is the result with its memory planned: instructions
//! in order, one arena, named inputs, outputs and state.
//!
//! ```
//! use onesigma_graph::{DType, Graph, Module, Program, Role, SlotKind, autodiff};
//!
//! # fn main() -> Result<(), onesigma_graph::Error> {
//! let mut module = Module::new();
//! let x = module.slot("x", SlotKind::Input, [8, 4], DType::F32, Role::Data)?;
//! let w = module.slot("w", SlotKind::State, [4, 2], DType::F32, Role::MasterWeight)?;
//! let loss = module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic)?;
//!
//! let mut graph = Graph::new();
//! let (x, w_old) = (module.read(&mut graph, x), module.read(&mut graph, w));
//! let y = graph.matmul(x, w_old).alpha(0.5).beta(&[0.5, 0.35]).one()?;
//! let square = graph.reduce(onesigma_graph::ReduceKind::Sum, &[y], &[0, 1], false, |y| y[0].square())?.one()?;
//! let dw = autodiff::gradients(&mut graph, square, &[w_old], None)?[0];
//! let w_new = graph.map(&[w_old, dw], |x| x[0].clone() - x[1].clone() * 0.01)?.one()?;
//! graph.write(w, w_new);
//! graph.write(loss, square);
//! module.entry("train_step", graph)?;
//!
//! let program = Program::new(module)?;
//! assert!(program.arena_bytes() > 0);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod autodiff;
mod decompose;
mod error;
pub mod expr;
pub mod file;
mod graph;
mod infer;
mod op;
pub mod passes;
pub mod predict;
pub mod print;
mod program;
pub mod recipe;
mod shape;
pub mod special;
mod value;

pub use decompose::decompose;
pub use error::{Error, Result};
pub use graph::{Graph, Node, NodeBuilder};
pub use op::{AdamWConfig, Distribution, Op, ReduceKind};
pub use program::{Entry, Module, Place, Program, ProgramEntry, Slot, SlotKind};
pub use recipe::Recipe;
pub use shape::Shape;
pub use value::{DType, EntryId, NodeId, Role, SlotId, Value, ValueId};
