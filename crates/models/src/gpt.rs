//! GPT: one definition, regular or unit-scaled.
//!
//! Legend of shapes: B batch, T sequence, C width, H heads, D head size, F MLP width, V vocabulary.

use crate::cache::{CacheStep, Cached, replaced};
use crate::config::{NormPosition, Positions};
use crate::convert::Epsilons;
use crate::layers::{
    AttentionNames, AttentionShape, Branches, Layers, Mlp, Style, rotary_tables, rotary_tables_at,
};
use crate::params::{ParamSpec, Params};
use crate::{GptConfig, Result};
use onesigma_graph::{Graph, Op, ValueId};
use onesigma_ops::{Parametrisation, cross_entropy, sum};

impl GptConfig {
    /// Every parameter of the model, in the order of the forward pass.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn parameters(&self, p: Parametrisation) -> Result<Vec<ParamSpec>> {
        self.validate()?;
        Params::list(|graph, params, tokens| gpt(graph, params, self, p, tokens, false).map(|_| ()))
    }

    /// Number of parameters.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn parameter_count(&self, p: Parametrisation) -> Result<usize> {
        Ok(self.parameters(p)?.iter().map(|spec| spec.shape.numel()).sum())
    }
}

/// Loss and logits of a batch.
#[derive(Clone, Copy, Debug)]
pub struct GptLoss {
    /// Mean cross-entropy in nats, a scalar.
    pub loss: ValueId,
    /// `[B, T, V]`.
    pub logits: ValueId,
}

/// Logits `[B, T, V]` of `tokens U32 [B, T]`. With `training`, dropout is active.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) for a configuration or batch that is impossible;
/// [`Error::MissingParameter`](crate::Error::MissingParameter) and
/// [`Error::ParameterShape`](crate::Error::ParameterShape).
pub fn gpt(
    graph: &mut Graph,
    params: &mut Params,
    config: &GptConfig,
    p: Parametrisation,
    tokens: ValueId,
    training: bool,
) -> Result<ValueId> {
    let mut model = Gpt::new(graph, params, config, p, training)?;
    let x = model.hidden(tokens)?; // (B, T, C)
    model.readout(x) // (B, T, V)
}

/// Loss of `tokens U32 [B, T]` against `targets U32 [B, T]`, the tokens that follow each.
///
/// # Errors
/// As [`gpt`].
pub fn gpt_loss(
    graph: &mut Graph,
    params: &mut Params,
    config: &GptConfig,
    p: Parametrisation,
    tokens: ValueId,
    targets: ValueId,
    training: bool,
) -> Result<GptLoss> {
    let logits = gpt(graph, params, config, p, tokens, training)?; // (B, T, V)
    let loss = graph.scoped("readout", |graph| {
        cross_entropy(graph, p, logits, targets, config.loss_mult, true)
    })?;
    Ok(GptLoss { loss, logits })
}

/// Logits `[B, V]` of the token after a prompt, without dropout. `tokens U32 [B, T]` holds each
/// prompt from the left, filled up with any id; `last U32 [B]` is the row of its last token in
/// `[B T]`: `b T + length_b - 1`. What follows a prompt does not matter, as attention is causal.
///
/// # Errors
/// As [`gpt`].
pub fn gpt_next(
    graph: &mut Graph,
    params: &mut Params,
    config: &GptConfig,
    p: Parametrisation,
    tokens: ValueId,
    last: ValueId,
) -> Result<ValueId> {
    Ok(gpt_read(graph, params, config, p, tokens, last)?.logits)
}

/// [`gpt_next`] with the keys and values of all positions, from which [`gpt_step`] goes on. Those
/// of the positions after a prompt mean nothing; the steps replace them.
///
/// # Errors
/// As [`gpt`].
pub fn gpt_read(
    graph: &mut Graph,
    params: &mut Params,
    config: &GptConfig,
    p: Parametrisation,
    tokens: ValueId,
    last: ValueId,
) -> Result<Cached> {
    let mut model = Gpt::new(graph, params, config, p, false)?;
    let x = model.hidden(tokens)?; // (B, T, C)
    let graph = &mut *model.layers.graph;
    let rows = graph.shape(x).rows();
    let x = graph.reshape(x, [rows, config.n_embd])?; // (B T, C)
    let x = graph.op(Op::Gather, &[x, last]).named("last").one()?; // (B, C)
    let logits = model.readout(x)?; // (B, V)
    Ok(Cached { logits, caches: model.caches })
}

/// Logits `[B, V]` of the token after one more token, whose keys and values join those of the
/// positions before. The same function as [`gpt_read`] of the whole text in a sequence of S
/// positions: attention in unit scaling takes the scale of S keys, so a cache has to have the length
/// of the sequences that the model was trained with.
///
/// # Errors
/// As [`gpt`]; [`Error::Config`](crate::Error::Config) for a cache of another number of layers.
pub fn gpt_step(
    graph: &mut Graph,
    params: &mut Params,
    config: &GptConfig,
    p: Parametrisation,
    step: CacheStep<'_>,
) -> Result<Cached> {
    config.validate_cache(graph, step)?;
    let mut model = Gpt::new(graph, params, config, p, false)?;
    model.step = Some(step);
    let x = model.hidden(step.token)?; // (B, 1, C)
    let graph = &mut *model.layers.graph;
    let rows = graph.shape(x).rows();
    let x = graph.reshape(x, [rows, config.n_embd])?; // (B, C)
    let logits = model.readout(x)?; // (B, V)
    Ok(Cached { logits, caches: model.caches })
}

/// The model while it is built.
struct Gpt<'a> {
    layers: Layers<'a>,
    config: &'a GptConfig,
    epsilons: Epsilons,
    /// The one token that is read, if it is not a whole sequence.
    step: Option<CacheStep<'a>>,
    /// Keys and values of the layers that are built.
    caches: Vec<[ValueId; 2]>,
}

impl<'a> Gpt<'a> {
    fn new(
        graph: &'a mut Graph,
        params: &'a mut Params,
        config: &'a GptConfig,
        p: Parametrisation,
        training: bool,
    ) -> Result<Self> {
        config.validate()?;
        let style = Style {
            std: config.initializer_range,
            // As in GPT-2.
            branch_end: (2.0 * config.n_layer as f64).sqrt().recip(),
            norm: config.norm,
            norm_affine: config.norm_affine,
            eps: config.layer_norm_epsilon,
            bias: config.bias,
            dropout: config.resid_pdrop,
        };
        let epsilons = config.epsilons(p)?;
        let layers = Layers { graph, params, p, style, training };
        Ok(Self { layers, config, epsilons, step: None, caches: Vec::new() })
    }

    /// Hidden states after the last norm.
    fn hidden(&mut self, tokens: ValueId) -> Result<ValueId> {
        let config = self.config;
        let seq =
            self.layers.checked_seq(tokens, |batch, seq| config.validate_batch(batch, seq))?;
        let position = self.step.map(|step| step.position);
        let mut x = self
            .layers
            .scoped("embedding", |layers| embed(layers, config, tokens, seq, position))?; // (B, T, C)
        let (graph, size, theta) = (&mut *self.layers.graph, config.head_size(), config.rope_theta);
        let rotary = match (config.positions, position) {
            (Positions::Learned, _) => None,
            (Positions::Rotary, None) => Some(rotary_tables(graph, seq, size, theta)?),
            (Positions::Rotary, Some(at)) => Some(rotary_tables_at(graph, at, size, theta)?),
        };
        for layer in 0..config.n_layer {
            x = self.layer(layer, x, rotary)?; // (B, T, C)
        }
        match config.norm_position(self.layers.p) {
            NormPosition::Post => Ok(x),
            _ => self.layers.norm("transformer.ln_f", None, x, self.epsilons.last), // (B, T, C)
        }
    }

    fn layer(&mut self, layer: usize, x: ValueId, rotary: Option<[ValueId; 2]>) -> Result<ValueId> {
        let config = self.config;
        let index = Some(layer as u32);
        let name = |word: &str| format!("transformer.h.{layer}.{word}");
        let names = AttentionNames {
            query: name("attn.q_proj"),
            key: name("attn.k_proj"),
            value: name("attn.v_proj"),
            output: name("attn.c_proj"),
        };
        let shape = AttentionShape {
            heads: config.n_head,
            kv_heads: config.kv_heads(),
            head_size: config.head_size(),
            width: config.n_embd,
            mask: self.step.map(|step| step.seen),
            rotary,
            options: config.attention(self.layers.training),
        };
        let branches = Branches {
            taus: config.taus(self.layers.p, layer)?,
            position: config.norm_position(self.layers.p),
            norms: [name("ln_1"), name("ln_2")],
            epsilons: self.epsilons.of_layer(layer),
        };
        let mlp = Mlp {
            up: name("mlp.c_fc"),
            gate: name("mlp.c_gate"),
            down: name("mlp.c_proj"),
            inner: config.inner(),
            activation: config.activation_function,
        };
        let before = self.step.map(|step| (step.caches[layer], step.position));
        let Self { layers, caches, .. } = self;
        layers.block(layer, x, &branches, &mlp, |layers, x| {
            let [q, mut k, mut v] = layers.queries_keys_values(&names, index, x, shape)?;
            if let Some(([keys, values], position)) = before {
                k = replaced(layers.graph, keys, k, position)?; // (B, S, N, D)
                v = replaced(layers.graph, values, v, position)?;
            }
            caches.push([k, v]);
            layers.attend(&names, index, [q, k, v], shape)
        })
    }

    fn readout(&mut self, x: ValueId) -> Result<ValueId> {
        let (config, layers) = (self.config, &mut self.layers);
        match config.tied(layers.p) {
            true => {
                let table = layers.table(TOKENS, config.vocab_size, config.n_embd)?; // (V, C)
                layers.tied_readout(table, None, x)
            }
            false => layers.readout("lm_head", None, x, config.vocab_size),
        }
    }
}

const TOKENS: &str = "transformer.wte.weight";

fn embed(
    layers: &mut Layers<'_>,
    config: &GptConfig,
    tokens: ValueId,
    seq: usize,
    position: Option<ValueId>,
) -> Result<ValueId> {
    let (p, width) = (layers.p, config.n_embd);
    let learned = config.positions == Positions::Learned;
    let wte = layers.table(TOKENS, config.vocab_size, width)?; // (V, C)
    let mut x = layers.lookup(tokens, wte)?; // (B, T, C)
    if learned {
        let wpe = layers.table("transformer.wpe.weight", config.n_positions, width)?; // (P, C)
        let positions = match position {
            None => layers.first_rows(wpe, seq)?, // (T, C)
            Some(at) => layers.row_at(wpe, at)?,  // (1, C)
        };
        // Both tables are cut edges, so each keeps its ideal scale.
        x = sum(layers.graph, p, &[x, positions])?; // (B, T, C)
    }
    layers.dropout(x, config.embd_pdrop)
}
