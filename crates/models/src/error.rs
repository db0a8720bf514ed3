//! The error type of this crate.

use std::path::PathBuf;

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
    /// A configuration of another program asks for something that is not built.
    #[error("config.json: `{field}` is {found}, supported: {expected}")]
    Unsupported {
        /// Name of the field.
        field: String,
        /// Its value.
        found: String,
        /// What is supported.
        expected: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The verb: `read`, `write` or `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of weights that cannot be used.
    #[error("{path}: {reason}")]
    TensorFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of weights lacks a tensor.
    #[error("no tensor `{name}` among the weights, which the configuration asks for")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A file of weights has a tensor that the model does not have.
    #[error("tensor `{name}` is among the weights, and the configuration has no use for it")]
    UnexpectedTensor {
        /// Its name.
        name: String,
    },
    /// A tensor in a file of weights has another shape than the model's.
    #[error("tensor `{name}` has shape {found}, the configuration asks for {expected}")]
    TensorShape {
        /// Its name.
        name: String,
        /// The shape in the file.
        found: String,
        /// The shape that is needed.
        expected: String,
    },
    /// A model cannot be converted.
    #[error("cannot convert this model: {reason}")]
    Convert {
        /// Why, and what to do.
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
