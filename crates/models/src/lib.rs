//! Models for Onesigma, each one definition for the regular and the unit-scaled network,
//! configured and named as on Hugging Face.
//!
//! A model is a function over a [`Graph`](onesigma_graph::Graph): [`gpt_loss`] for training and
//! evaluation, [`gpt_next`] for the token after a text, [`gpt_read`] and [`gpt_step`] for a text that
//! grows token by token; [`bert_masked_lm_loss`] and its siblings for the heads
//! of BERT, [`bert`] for its hidden states. The caller owns the parameters: it declares a slot for
//! each [`ParamSpec`] and passes the values that it reads from them as [`Params`].
//!
//! ```
//! use onesigma_graph::{DType, Graph, Module, Role, SlotKind, autodiff};
//! use onesigma_models::{GptConfig, Params, gpt_loss};
//! use onesigma_ops::Parametrisation;
//!
//! # fn main() -> Result<(), onesigma_models::Error> {
//! let config = GptConfig { n_embd: 32, n_layer: 2, ..GptConfig::default() };
//! let p = Parametrisation::Unit;
//! let mut module = Module::new();
//! let mut graph = Graph::new();
//! let tokens = module.slot("tokens", SlotKind::Input, [4, 16], DType::U32, Role::Data)?;
//! let targets = module.slot("targets", SlotKind::Input, [4, 16], DType::U32, Role::Data)?;
//! let [tokens, targets] = [tokens, targets].map(|slot| module.read(&mut graph, slot));
//! let mut weights = Vec::new();
//! for spec in config.parameters(p)? {
//!     let slot =
//!         module.slot(&spec.name, SlotKind::State, spec.shape, DType::F32, Role::MasterWeight)?;
//!     weights.push((spec.name, module.read(&mut graph, slot)));
//! }
//! let values: Vec<_> = weights.iter().map(|(_, value)| *value).collect();
//! let mut params = Params::new(weights);
//! let out = gpt_loss(&mut graph, &mut params, &config, p, tokens, targets, true)?;
//! let gradients = autodiff::gradients(&mut graph, out.loss, &values, None)?;
//! assert_eq!(gradients.len(), values.len());
//! # Ok(())
//! # }
//! ```
// Mapping a file of weights into memory is the one unsafe thing here, see `tensor_file`.
#![deny(unsafe_code)]

mod bert;
mod bert_config;
mod cache;
pub mod config;
mod convert;
mod error;
mod gpt;
mod hits;
mod hugging_face;
mod layers;
pub mod params;
mod path;
mod pretrained;
mod readout;
mod tensor_file;

pub use bert::{
    BertInputs, BertLoss, MaskedTokens, bert, bert_classification_loss, bert_classify,
    bert_embedding, bert_masked_lm_loss, bert_pre_training_loss, bert_span, bert_span_loss,
};
pub use bert_config::{BertConfig, BertTask};
pub use cache::{CacheStep, Cached};
pub use config::GptConfig;
pub use convert::StreamScale;
pub use error::{Error, Result};
pub use gpt::{GptLoss, gpt, gpt_loss, gpt_next, gpt_read, gpt_step};
pub use hits::hits;
pub use hugging_face::Loaded;
pub use onesigma_ops::ParamKind;
pub use params::{Init, ParamSpec, Params};
pub use pretrained::{Converted, Model, Pretrained, rms};
pub use tensor_file::{Tensor, TensorFile, Weights, write_tensors};
