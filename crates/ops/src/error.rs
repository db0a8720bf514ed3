//! The error type of this crate.

use crate::nearest::did_you_mean;

/// What can go wrong while rules are evaluated, layers built or recipes read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The graph refused an op.
    #[error(transparent)]
    Graph(#[from] onesigma_graph::Error),
    /// A backend could not run a measurement.
    #[error(transparent)]
    Backend(#[from] onesigma_backend::Error),
    /// A constraint does not fit the number of scales of an op.
    #[error(
        "{op}: constraint `{constraint}` takes {expected} scales, this op constrains {found}; \
         use gmean, hmean, amean, to_output_scale or none"
    )]
    ConstraintArity {
        /// Name of the op.
        op: &'static str,
        /// Name of the constraint.
        constraint: String,
        /// Scales that the op offers: its output and its non-cut operands.
        found: usize,
        /// Scales that the constraint takes.
        expected: usize,
    },
    /// No constraint has this name.
    #[error(
        "no constraint named `{name}`; there are: none, to_output_scale, to_grad_input_scale, \
         to_left_grad_scale, to_right_grad_scale, gmean, hmean, amean"
    )]
    UnknownConstraint {
        /// The name that was given.
        name: String,
    },
    /// A graph breaks the cut-edge rule.
    #[error(transparent)]
    CutEdge(Box<crate::verify::Violation>),
    /// A graph that is to be scaled carries scales.
    #[error(
        "`{node}` has different scales forward and backward; the auto-scaler takes regular graphs"
    )]
    AlreadyScaled {
        /// The first node that carries scales.
        node: String,
    },
    /// No parametrisation has this name.
    #[error(
        "no parametrisation named `{name}`{} there are: {known}",
        did_you_mean(near.as_deref())
    )]
    UnknownParametrisation {
        /// The name that was given.
        name: String,
        /// The name that may have been meant.
        near: Option<String>,
        /// The names that there are.
        known: String,
    },
    /// An argument is outside its range.
    #[error("{op}: `{argument}` is {found}, expected {expected}")]
    Argument {
        /// Name of the op.
        op: &'static str,
        /// Name of the argument.
        argument: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// No recipe has this name.
    #[error(
        "no recipe named `{name}`{} there are: {known}; or give the path of a .toml file",
        did_you_mean(near.as_deref())
    )]
    UnknownRecipe {
        /// The name that was given.
        name: String,
        /// The name that may have been meant.
        near: Option<String>,
        /// The built-in names.
        known: String,
    },
    /// A recipe is not valid TOML or has wrong fields.
    #[error("recipe {origin}: {reason}")]
    RecipeSyntax {
        /// File or built-in name.
        origin: String,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A recipe file cannot be read.
    #[error("cannot read recipe {path}: {source}")]
    RecipeFile {
        /// The path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A list of rule cases is not JSON of the right form.
    #[error("list of rule cases: {reason}; expected [{{\"op\": .., \"shapes\": {{..}}}}, ..]")]
    CaseSyntax {
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A case of a list failed.
    #[error("case {number} of {count}: {source}")]
    CaseOf {
        /// Its position in the list, from 1.
        number: usize,
        /// Length of the list.
        count: usize,
        /// Why.
        source: Box<Error>,
    },
    /// A rule case is malformed.
    #[error("`{op}`: {reason}")]
    Case {
        /// The case's op.
        op: String,
        /// What is missing or wrong, and what was expected.
        reason: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
