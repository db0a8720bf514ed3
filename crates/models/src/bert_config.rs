//! Configuration of BERT, with the names of Hugging Face's `config.json`.

use crate::Result;
use crate::config::{
    Activation, NormPosition, Range, branch_taus, check_batch, check_range, parse, wrong,
};
use crate::convert::{Epsilons, StreamScale};
use onesigma_ops::{Attention, Parametrisation, TransformerResidual};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a BERT is used for: which heads it has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BertTask {
    /// Hidden states, and the pooler (`BertModel`).
    #[default]
    Encoder,
    /// Masked tokens (`BertForMaskedLM`).
    MaskedLm,
    /// Masked tokens and whether the second sentence follows the first (`BertForPreTraining`).
    PreTraining,
    /// A class for the whole sequence (`BertForSequenceClassification`).
    Classification,
    /// First and last token of an answer (`BertForQuestionAnswering`, as for SQuAD).
    Span,
}

impl BertTask {
    /// The class of Hugging Face's library that has the same parameters.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Encoder => "BertModel",
            Self::MaskedLm => "BertForMaskedLM",
            Self::PreTraining => "BertForPreTraining",
            Self::Classification => "BertForSequenceClassification",
            Self::Span => "BertForQuestionAnswering",
        }
    }

    /// The task of such a class.
    pub fn of_architecture(name: &str) -> Option<Self> {
        [Self::Encoder, Self::MaskedLm, Self::PreTraining, Self::Classification, Self::Span]
            .into_iter()
            .find(|task| task.architecture() == name)
    }

    /// Whether the model has a pooler.
    pub const fn has_pooler(self) -> bool {
        matches!(self, Self::Encoder | Self::PreTraining | Self::Classification)
    }
}

/// BERT (arXiv 1810.04805): token, position and segment embeddings, an encoder that sees both
/// sides, and heads. Fields that `config.json` of BERT also has keep their names; other fields of
/// a `config.json` are ignored.
///
/// ```
/// use onesigma_models::{BertConfig, BertTask};
/// use onesigma_ops::Parametrisation;
///
/// let config = BertConfig { hidden_size: 64, num_attention_heads: 2, ..BertConfig::default() };
/// let parameters = config.parameters(BertTask::MaskedLm, Parametrisation::Unit)?;
/// assert!(parameters.iter().any(|spec| spec.name.contains("word_embeddings")));
/// # Ok::<(), onesigma_models::Error>(())
/// ```
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct BertConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the model (C).
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Activation of the MLP and of the head of masked tokens.
    pub hidden_act: Activation,
    /// Dropout after the embeddings, at the end of each branch and before a classifier.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention weights; if not 0, attention is built from parts and slower.
    pub attention_probs_dropout_prob: f64,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Number of segment ids.
    pub type_vocab_size: usize,
    /// Standard deviation of regular weights; unit-scaled ones start with 1.
    pub initializer_range: f64,
    /// Added to the variance in norms.
    pub layer_norm_eps: f64,
    /// Where the norm of a branch stands: after the sum in the original. Before the branch, the
    /// model is that of Hugging Face's `megatron-bert`: no norm of the embeddings, one at the end.
    pub norm_position: NormPosition,
    /// Whether the decoder of masked tokens is the token embedding, as in the original; it is if
    /// nothing is given.
    pub tie_word_embeddings: Option<bool>,
    /// Names of the classes by number, as Hugging Face keeps them; their count is the number of
    /// classes.
    pub id2label: Option<BTreeMap<String, String>>,
    /// Number of classes, if there are no names; 2 if not given.
    pub num_labels: Option<usize>,
    /// Share of a classifier's dropout; that of hidden states if not given.
    pub classifier_dropout: Option<f64>,
    /// Id of padding.
    pub pad_token_id: u32,
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
    /// 2 if not given, see [`attention_keys`](Self::attention_keys()).
    pub attention_keys: Option<usize>,
    /// What a converted model remembers, so that its epsilons are exact.
    pub stream_scale: Option<StreamScale>,
    /// Factor on the logits of the loss.
    pub loss_mult: f64,
}

impl Default for BertConfig {
    /// BERT base (uncased) without dropout.
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            norm_position: NormPosition::Post,
            tie_word_embeddings: None,
            id2label: None,
            num_labels: None,
            classifier_dropout: None,
            pad_token_id: 0,
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

impl BertConfig {
    /// A configuration from the text of a `config.json`; [`validate`](Self::validate) it next.
    ///
    /// # Errors
    /// [`Error::ConfigSyntax`](crate::Error::ConfigSyntax).
    pub fn from_json(text: &str) -> Result<Self> {
        parse(text)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) with the field, its value and what to do.
    pub fn validate(&self) -> Result<()> {
        for (field, size, least) in [
            ("vocab_size", self.vocab_size, 2),
            ("hidden_size", self.hidden_size, 1),
            ("num_hidden_layers", self.num_hidden_layers, 1),
            ("num_attention_heads", self.num_attention_heads, 1),
            ("intermediate_size", self.intermediate_size, 1),
            ("max_position_embeddings", self.max_position_embeddings, 1),
            ("type_vocab_size", self.type_vocab_size, 1),
            ("num_labels", self.labels(), 2),
        ] {
            check_range(field, size, least)?;
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(wrong(
                "hidden_size",
                self.hidden_size,
                format!("a multiple of `num_attention_heads`, {}", self.num_attention_heads),
                "change one of them".to_owned(),
            ));
        }
        if self.hidden_act == Activation::Swiglu {
            return Err(wrong(
                "hidden_act",
                "swiglu",
                "gelu, gelu_new or silu: BERT has no gate".to_owned(),
                "use gelu".to_owned(),
            ));
        }
        Range::Probability.check(&[
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
            ("classifier_dropout", self.classifier_dropout.unwrap_or(0.0)),
        ])?;
        Range::Positive.check(&[
            ("layer_norm_eps", self.layer_norm_eps),
            ("initializer_range", self.initializer_range),
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
    /// [`Error::Config`](crate::Error::Config) for an empty batch or a sequence beyond
    /// `max_position_embeddings`.
    pub fn validate_batch(&self, batch: usize, seq: usize) -> Result<()> {
        check_batch(batch, seq, "max_position_embeddings", self.max_position_embeddings)
    }

    /// Width of one head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// Number of classes of a classifier.
    pub fn labels(&self) -> usize {
        let named = self.id2label.as_ref().map(BTreeMap::len);
        self.num_labels.or(named).unwrap_or(2)
    }

    /// Whether the decoder of masked tokens is the token embedding.
    pub fn tied(&self) -> bool {
        self.tie_word_embeddings.unwrap_or(true)
    }

    /// [`taus`](Self::taus) of all branches.
    pub(crate) fn all_taus(&self, p: Parametrisation) -> Result<Vec<f64>> {
        let layers = (0..self.num_hidden_layers).map(|layer| self.taus(p, layer));
        Ok(layers.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Factors on the epsilons of the norms.
    pub(crate) fn epsilons(&self, p: Parametrisation) -> Result<Epsilons> {
        let (position, activation) = (self.norm_position, self.hidden_act);
        let mut scale = self.stream_scale;
        let mut epsilons = Epsilons::of(p, scale, position, activation, |p| self.all_taus(p))?;
        if position != NormPosition::Pre {
            // The embeddings have a norm of their own, behind which the stream starts at 1.
            scale = scale.map(|scale| StreamScale { stream: 1.0, ..scale });
            let embedding = epsilons.embedding;
            epsilons = Epsilons::of(p, scale, position, activation, |p| self.all_taus(p))?;
            epsilons.embedding = embedding;
        }
        Ok(epsilons)
    }

    /// Number of keys whose scale attention takes, whatever the length of the sequence.
    ///
    /// Attention without a causal mask averages over all rows. If these share a part `c` of their
    /// variance, `s` of them average like `1/(c + (1 - c)/s)` independent ones. In a BERT the
    /// segment embedding alone is a third of every row, and each layer brings rows closer, so that
    /// this number lies between 1 and 3; with the scale of 2 results start within `sqrt(2)` of
    /// unit variance.
    pub fn attention_keys(&self) -> usize {
        self.attention_keys.unwrap_or(2)
    }

    /// Options of the attention.
    pub(crate) fn attention(&self, training: bool) -> Attention {
        Attention {
            causal: false,
            mult: self.attention_mult,
            dropout: self.attention_probs_dropout_prob,
            training,
            scale_keys: Some(self.attention_keys()),
        }
    }

    /// `tau` of the attention and the MLP branch of a layer.
    ///
    /// # Errors
    /// [`Error::Ops`](crate::Error::Ops) for factors that are not positive.
    pub fn taus(&self, p: Parametrisation, layer: usize) -> Result<[f64; 2]> {
        let weights = TransformerResidual {
            residual_mult: self.residual_mult,
            residual_attn_ratio: self.residual_attn_ratio,
        };
        branch_taus(p, self.residual_tau, weights, layer, self.num_hidden_layers)
    }
}
