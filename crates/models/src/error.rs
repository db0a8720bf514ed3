//! The error type of this crate.

/// What can go wrong while a model is configured or built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A layer could not be built.
    #[error(transparent)]
    Ops(#[from] onesigma_ops::Error),
    /// The graph refused an op.
    #[error(transparent)]
    Graph(#[from] onesigma_graph::Error),
    /// A field of a configuration makes an impossible shape or is out of range.
    #[error("impossible shape or setting: `{field}` is {found}, expected {expected}; {remedy}")]
    Config {
        /// Name of the field, as in `config.json`.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is possible.
        expected: String,
        /// What to do.
        remedy: String,
    },
    /// A configuration file is not valid JSON.
    #[error("config.json: {reason}")]
    ConfigSyntax {
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A parameter is needed that was not given.
    #[error(
        "no parameter `{name}`; pass one value for each entry of the configuration's `parameters`"
    )]
    MissingParameter {
        /// Its name.
        name: String,
    },
    /// A parameter has a shape other than the model's.
    #[error("parameter `{name}` has shape {found}, the configuration asks for {expected}")]
    ParameterShape {
        /// Its name.
        name: String,
        /// The shape that was given.
        found: String,
        /// The shape that is needed.
        expected: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
