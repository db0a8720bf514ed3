//! Why a kernel refuses its arguments.

/// An error of the CPU backend.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has fewer or more elements than the shape says.
    #[error(
        "{operand} of {kernel} has {found} elements, the shape needs {expected}; pass the slice of the whole tensor"
    )]
    Length {
        /// The kernel.
        kernel: &'static str,
        /// The operand, as the kernel's documentation names it.
        operand: &'static str,
        /// Elements that the operand has.
        found: usize,
        /// Elements that the shape needs.
        expected: usize,
    },
    /// A size that the kernel has no meaning for.
    #[error("{kernel}: {reason}")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// What is wrong with the sizes, with the sizes in it.
        reason: String,
    },
    /// The output's conversion is none that there is.
    #[error(transparent)]
    Format(#[from] onesigma_format::Error),
}
