//! Learning rates by kind of parameter.
//!
//! Unit-scaled weights have standard deviation 1 whatever their shape, so one learning rate moves
//! all of them equally; what has to depend on shapes is the effect of a move on the output.

use serde::{Deserialize, Serialize};

/// Kind of a parameter, for learning-rate rules and weight decay.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ParamKind {
    /// Matrix of a hidden layer, `[fan_out, fan_in]`.
    Weight,
    /// Table `[rows, width]` whose rows are looked up.
    Embedding,
    /// Weight of a norm.
    Norm,
    /// Anything that is added, biases of norms too.
    Bias,
    /// Matrix of the readout, `[vocab, width]`.
    Readout,
}

/// Factor on the learning rate of a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LearningRateRule {
    /// 1: regular models.
    #[default]
    Uniform,
    /// u-muP with Adam or AdamW, and with SGD where the readout is unconstrained (arXiv
    /// 2407.17465, table 2; unit-scaling 0.3.5 `lr_scale_func_adam`): `fan_in^-1/2` for weights and
    /// embeddings (whose `fan_in` is their width), 1 for the others; all times `depth^-1/2`.
    UmupAdam,
    /// u-muP with SGD where the readout is constrained to its output scale: `fan_in^1/2` for
    /// weights and embeddings, the size for norms and biases, 1 for the readout; all times
    /// `depth^-1/2`.
    UmupSgd,
}

impl LearningRateRule {
    /// The factor for a parameter of this kind and shape. `depth` is the number of layers of the
    /// stack that the parameter is in, `None` outside of one.
    pub fn factor(self, kind: ParamKind, shape: &[usize], depth: Option<usize>) -> f64 {
        if self == Self::Uniform {
            return 1.0;
        }
        let fan_in: usize = shape.iter().skip(1).product();
        let size = shape.first().copied().unwrap_or(1) as f64;
        let fan_in = if shape.len() > 1 { fan_in as f64 } else { size };
        let own = match (self, kind) {
            (Self::UmupAdam, ParamKind::Weight | ParamKind::Embedding) => fan_in.powf(-0.5),
            (Self::UmupSgd, ParamKind::Weight | ParamKind::Embedding) => fan_in.sqrt(),
            (Self::UmupSgd, ParamKind::Norm | ParamKind::Bias) => size,
            _ => 1.0,
        };
        own * (depth.unwrap_or(1).max(1) as f64).powf(-0.5)
    }
}
