//! Configuration of GPT, with the names of Hugging Face's `config.json`.

use crate::cache::CacheStep;
use crate::convert::{Epsilons, StreamScale};
use crate::{Error, Result};
use onesigma_graph::Graph;
use onesigma_ops::{Attention, NormPlacement, Parametrisation, TransformerResidual};
use serde::{Deserialize, Serialize};

/// Activation of the MLP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// GELU with the error function.
    #[default]
    Gelu,
    /// GELU with tanh, as GPT-2.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// `x sigmoid(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// `x gate sigmoid(gate)` with a second matrix for the gate (arXiv 2002.05202).
    Swiglu,
}

/// Where the norm of a residual branch stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NormPosition {
    /// `x + f(norm(x))`, and one norm at the end, as GPT-2.
    #[default]
    Pre,
    /// `norm(x + f(x))`, as the original transformer and BERT.
    Post,
    /// `x + norm(f(x))`, and one norm at the end (arXiv 2502.05967, section 3).
    BranchEnd,
}

impl From<NormPlacement> for NormPosition {
    /// Where a parametrisation wants the norms of a model that does not say.
    fn from(placement: NormPlacement) -> Self {
        match placement {
            NormPlacement::BranchStart => Self::Pre,
            NormPlacement::BranchEnd => Self::BranchEnd,
        }
    }
}

/// What positions are told by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Positions {
    /// A learned table that is added to the token embedding.
    #[default]
    Learned,
    /// Queries and keys turn with their position (RoFormer, arXiv 2104.09864); pairs are the
    /// halves of a head.
    Rotary,
}

/// Kind of all norms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Norm {
    /// Layer norm, with a bias if the model has biases.
    #[default]
    LayerNorm,
    /// RMS norm.
    RmsNorm,
}

/// A decoder with causal attention; by default that of GPT-2, with learned positions and pre-norm.
/// Fields that `config.json` of GPT-2 also has keep their names; fields of `config.json` that are
/// not here are ignored. Dropout is 0 where it is not given.
///
/// ```
/// use onesigma_models::GptConfig;
/// use onesigma_ops::Parametrisation;
///
/// // What `config.json` of a model on Hugging Face holds.
/// let config = GptConfig::from_json(r#"{"n_embd": 64, "n_layer": 2, "n_head": 4}"#)?;
/// let parameters = config.parameters(Parametrisation::Regular)?;
/// assert_eq!(parameters[0].name, "transformer.wte.weight");
/// assert!(GptConfig { n_head: 3, ..config }.validate().is_err(), "heads of 64 / 3");
/// # Ok::<(), onesigma_models::Error>(())
/// ```
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct GptConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest sequence.
    pub n_positions: usize,
    /// Width of the model (C).
    pub n_embd: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Number of attention heads; divides `n_embd`.
    pub n_head: usize,
    /// Number of key-value heads, each shared by a group of heads (arXiv 2305.13245); divides
    /// `n_head`, which it is if not given.
    pub n_kv_head: Option<usize>,
    /// Width of the MLP; 4 `n_embd` if not given.
    pub n_inner: Option<usize>,
    /// Activation of the MLP.
    pub activation_function: Activation,
    /// What positions are told by.
    pub positions: Positions,
    /// Base of the frequencies of rotary positions.
    pub rope_theta: f64,
    /// Kind of all norms.
    pub norm: Norm,
    /// Where the norm of a branch stands; if not given, where the parametrisation wants it: at the
    /// end of the branch in `mu-s`, else before it.
    pub norm_position: Option<NormPosition>,
    /// Whether norms have a weight (and a bias, with `bias`).
    pub norm_affine: bool,
    /// Added to the variance in norms.
    pub layer_norm_epsilon: f64,
    /// Whether linear layers and layer norms have biases; the readout never has.
    pub bias: bool,
    /// Dropout after the embeddings.
    pub embd_pdrop: f64,
    /// Dropout of attention weights; if not 0, attention is built from parts and slower.
    pub attn_pdrop: f64,
    /// Dropout at the end of each branch.
    pub resid_pdrop: f64,
    /// Whether the readout is the token embedding; if not given, regular models are tied, as
    /// GPT-2, and unit-scaled ones are not, since then each use of the table has its ideal scale.
    pub tie_word_embeddings: Option<bool>,
    /// Standard deviation of regular weights; unit-scaled ones start with 1.
    pub initializer_range: f64,
    /// Weight of every residual branch against its skip, in place of the parametrisation's rule;
    /// a regular model has plain sums.
    pub residual_tau: Option<f64>,
    /// `unit` and `u-mup` only: weight of the branches against the embedding,
    /// [`TransformerResidual::residual_mult`].
    pub residual_mult: f64,
    /// `unit` and `u-mup` only: weight of attention against MLP branches,
    /// [`TransformerResidual::residual_attn_ratio`].
    pub residual_attn_ratio: f64,
    /// Factor on the logits of attention.
    pub attention_mult: f64,
    /// Scaled models only: number of keys whose attention scale is used at every sequence length;
    /// if not given, each length has its own.
    pub attention_keys: Option<usize>,
    /// What a converted model remembers, so that its epsilons are exact.
    pub stream_scale: Option<StreamScale>,
    /// Factor on the logits of the loss.
    pub loss_mult: f64,
}

impl Default for GptConfig {
    /// Width 256, 4 layers, 4 heads, 256 positions, 256 byte tokens.
    fn default() -> Self {
        Self {
            vocab_size: 256,
            n_positions: 256,
            n_embd: 256,
            n_layer: 4,
            n_head: 4,
            n_kv_head: None,
            n_inner: None,
            activation_function: Activation::Gelu,
            positions: Positions::Learned,
            rope_theta: 10000.0,
            norm: Norm::LayerNorm,
            norm_position: None,
            norm_affine: true,
            layer_norm_epsilon: 1e-5,
            bias: true,
            embd_pdrop: 0.0,
            attn_pdrop: 0.0,
            resid_pdrop: 0.0,
            tie_word_embeddings: None,
            initializer_range: 0.02,
            residual_tau: None,
            residual_mult: 1.0,
            residual_attn_ratio: 1.0,
            attention_mult: 1.0,
            attention_keys: None,
            stream_scale: None,
            loss_mult: 1.0,
        }
    }
}

/// Largest extent that is taken: sizes beyond are mistakes, and products stay within 64 bits.
const MAX_EXTENT: usize = 1 << 24;

impl GptConfig {
    /// A configuration from the text of a `config.json`; [`validate`](Self::validate) it next.
    ///
    /// # Errors
    /// [`Error::ConfigSyntax`].
    pub fn from_json(text: &str) -> Result<Self> {
        parse(text)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] with the field, its value and what to do.
    pub fn validate(&self) -> Result<()> {
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", self.inner()),
            ("n_kv_head", self.kv_heads()),
        ] {
            check_range(field, size, if field == "vocab_size" { 2 } else { 1 })?;
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            let lower = self.n_embd - self.n_embd % self.n_head;
            let near = if lower == 0 { self.n_head } else { lower };
            return Err(wrong(
                "n_embd",
                self.n_embd,
                format!("a multiple of `n_head`, {}", self.n_head),
                format!("use n_embd {near} or another n_head"),
            ));
        }
        if !self.n_head.is_multiple_of(self.kv_heads()) {
            return Err(wrong(
                "n_kv_head",
                self.kv_heads(),
                format!("a divisor of `n_head`, {}", self.n_head),
                "leave it out for as many as heads".to_owned(),
            ));
        }
        if self.positions == Positions::Rotary && !self.head_size().is_multiple_of(2) {
            return Err(wrong(
                "positions",
                "rotary",
                format!("learned for heads of odd size, {}", self.head_size()),
                "change n_embd or n_head so that their ratio is even".to_owned(),
            ));
        }
        Range::Probability.check(&[
            ("embd_pdrop", self.embd_pdrop),
            ("attn_pdrop", self.attn_pdrop),
            ("resid_pdrop", self.resid_pdrop),
        ])?;
        Range::Positive.check(&[
            ("layer_norm_epsilon", self.layer_norm_epsilon),
            ("initializer_range", self.initializer_range),
            ("rope_theta", self.rope_theta),
            ("residual_tau", self.residual_tau.unwrap_or(1.0)),
            ("residual_mult", self.residual_mult),
            ("residual_attn_ratio", self.residual_attn_ratio),
            ("attention_mult", self.attention_mult),
            ("loss_mult", self.loss_mult),
        ])
    }

    /// Checks the shape of a batch of token ids `[batch, seq]`.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty batch or a sequence beyond `n_positions`.
    pub fn validate_batch(&self, batch: usize, seq: usize) -> Result<()> {
        check_batch(batch, seq, "n_positions", self.n_positions)
    }

    /// Whether a step can go on from a cache.
    pub(crate) fn validate_cache(&self, graph: &Graph, step: CacheStep<'_>) -> Result<()> {
        let layers = step.caches.len();
        if layers != self.n_layer {
            let expected = format!("keys and values of {} layers", self.n_layer);
            return Err(wrong("caches", layers, expected, "pass one pair a layer".to_owned()));
        }
        for &cache in step.caches.iter().flatten() {
            match *graph.shape(cache).dims() {
                [batch, seq, ..] => self.validate_batch(batch, seq)?,
                _ => self.validate_batch(0, 0)?,
            }
        }
        Ok(())
    }

    /// Width of one head.
    pub fn head_size(&self) -> usize {
        self.n_embd / self.n_head.max(1)
    }

    /// Number of key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.n_kv_head.unwrap_or(self.n_head)
    }

    /// Width of the MLP.
    pub fn inner(&self) -> usize {
        self.n_inner.unwrap_or(self.n_embd.saturating_mul(4))
    }

    /// Whether the readout is the token embedding.
    pub fn tied(&self, p: Parametrisation) -> bool {
        self.tie_word_embeddings.unwrap_or(!p.is_scaled())
    }

    /// `tau` of the attention and the MLP branch of a layer.
    ///
    /// # Errors
    /// [`Error::Ops`] for factors that are not positive.
    pub fn taus(&self, p: Parametrisation, layer: usize) -> Result<[f64; 2]> {
        let weights = TransformerResidual {
            residual_mult: self.residual_mult,
            residual_attn_ratio: self.residual_attn_ratio,
        };
        branch_taus(p, self.residual_tau, weights, layer, self.n_layer)
    }

    /// [`taus`](Self::taus) of all branches.
    pub(crate) fn all_taus(&self, p: Parametrisation) -> Result<Vec<f64>> {
        let layers: Result<Vec<_>> = (0..self.n_layer).map(|layer| self.taus(p, layer)).collect();
        Ok(layers?.concat())
    }

    /// Factors on the epsilons of the norms.
    pub(crate) fn epsilons(&self, p: Parametrisation) -> Result<Epsilons> {
        let (position, activation) = (self.norm_position(p), self.activation_function);
        Epsilons::of(p, self.stream_scale, position, activation, |p| self.all_taus(p))
    }

    /// Options of the attention.
    pub(crate) fn attention(&self, training: bool) -> Attention {
        Attention {
            causal: true,
            mult: self.attention_mult,
            dropout: self.attn_pdrop,
            training,
            scale_keys: self.attention_keys,
        }
    }

    /// Where the norm of a branch stands.
    pub fn norm_position(&self, p: Parametrisation) -> NormPosition {
        self.norm_position.unwrap_or(p.scheme().norm.into())
    }
}

/// A configuration from JSON.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::ConfigSyntax { reason: error.to_string() })
}

/// Refuses a batch `[batch, seq]` without tokens, or longer than the model's positions, which
/// `field` counts.
pub(crate) fn check_batch(
    batch: usize,
    seq: usize,
    field: &'static str,
    positions: usize,
) -> Result<()> {
    if batch == 0 {
        return Err(wrong("batch", batch, "at least 1".to_owned(), "use 1".to_owned()));
    }
    if seq == 0 || seq > positions {
        let expected = format!("1 to `{field}`, {positions}");
        let remedy = format!("shorten the sequence or raise {field}");
        return Err(wrong("seq", seq, expected, remedy));
    }
    Ok(())
}

/// `tau` of the attention and the MLP branch of one of `layers` layers: `tau` itself if it is
/// given, else the rule of the parametrisation.
pub(crate) fn branch_taus(
    p: Parametrisation,
    tau: Option<f64>,
    weights: TransformerResidual,
    layer: usize,
    layers: usize,
) -> Result<[f64; 2]> {
    if let Some(tau) = tau {
        return Ok([tau; 2]);
    }
    let (rule, branches) = (p.scheme().residual, 2 * layers);
    let attention = weights.tau(rule, 2 * layer, branches)?;
    Ok([attention, weights.tau(rule, 2 * layer + 1, branches)?])
}

/// Refuses extents that are mistakes.
pub(crate) fn check_range(field: &'static str, size: usize, least: usize) -> Result<()> {
    if (least..=MAX_EXTENT).contains(&size) {
        return Ok(());
    }
    let remedy = format!("set `{field}` within this range");
    Err(wrong(field, size, format!("{least} to {MAX_EXTENT}"), remedy))
}

/// What numbers a field takes.
#[derive(Clone, Copy)]
pub(crate) enum Range {
    /// In `[0, 1)`.
    Probability,
    /// Positive and finite.
    Positive,
}

impl Range {
    /// Refuses the first field outside the range.
    pub(crate) fn check(self, fields: &[(&'static str, f64)]) -> Result<()> {
        for &(field, value) in fields {
            let (ok, expected, remedy) = match self {
                Self::Probability => {
                    ((0.0..1.0).contains(&value), "a probability in [0, 1)", "use 0 for no dropout")
                }
                Self::Positive => (
                    value > 0.0 && value.is_finite(),
                    "a positive finite number",
                    "leave it out for the usual value",
                ),
            };
            if !ok {
                return Err(wrong(field, value, expected.to_owned(), remedy.to_owned()));
            }
        }
        Ok(())
    }
}

pub(crate) fn wrong(
    field: &'static str,
    found: impl ToString,
    expected: String,
    remedy: String,
) -> Error {
    Error::Config { field, found: found.to_string(), expected, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(change: impl FnOnce(&mut GptConfig)) -> String {
        let mut config = GptConfig::default();
        change(&mut config);
        config.validate().expect_err("it is wrong").to_string()
    }

    #[test]
    fn errors_name_field_value_and_remedy() {
        let text = message(|c| c.n_head = 5);
        assert_eq!(
            text,
            "impossible shape or setting: `n_embd` is 256, expected a multiple of `n_head`, 5; use \
             n_embd 255 or another n_head"
        );
        let text = message(|c| c.n_layer = 0);
        assert!(text.contains("`n_layer` is 0"), "{text}");
        let text = message(|c| c.resid_pdrop = 1.0);
        assert!(text.contains("`resid_pdrop` is 1"), "{text}");
        let text = message(|c| c.n_kv_head = Some(3));
        assert!(text.contains("`n_kv_head` is 3, expected a divisor of `n_head`, 4"), "{text}");
        let text = message(|c| (c.n_embd, c.positions) = (12, Positions::Rotary));
        assert!(text.contains("`positions` is rotary"), "{text}");
        let text = message(|c| c.vocab_size = usize::MAX);
        assert!(text.contains("`vocab_size`"), "{text}");
        let error = GptConfig::default().validate_batch(8, 257).expect_err("too long");
        assert!(error.to_string().contains("`seq` is 257"), "{error}");
    }

    #[test]
    fn a_config_json_of_gpt2_is_read() -> Result<()> {
        let config = GptConfig::from_json(
            r#"{"model_type": "gpt2", "activation_function": "gelu_new", "vocab_size": 50257,
                "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": null,
                "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
                "layer_norm_epsilon": 1e-05, "initializer_range": 0.02, "n_ctx": 1024}"#,
        )?;
        config.validate()?;
        assert_eq!((config.n_embd, config.head_size(), config.inner()), (768, 64, 3072));
        assert!(config.tied(Parametrisation::Regular));
        assert!(GptConfig::from_json("{").is_err());
        Ok(())
    }
}
