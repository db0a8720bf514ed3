//! The static graph of a training step: shapes, ops with scales, autodiff, passes, memory plan, Program.
