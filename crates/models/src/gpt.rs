//! GPT: one definition, regular or unit-scaled.
//!
//! Legend of shapes: B batch, T sequence, C width, H heads, D head size, F MLP width, V vocabulary.

use crate::config::{Activation, Norm};
use crate::params::{Init, ParamSpec, Params};
use crate::{GptConfig, Result};
use onesigma_graph::{Graph, Op, ValueId};
use onesigma_ops::{
    Attention, Constraint, GeluForm, Linear, NormPlacement, ParamKind, Parametrisation, add,
    attention, cross_entropy, dropout, embedding, gelu, layer_norm, linear, linear_readout,
    residual_apply, rms_norm, silu,
};

impl GptConfig {
    /// Every parameter of the model, in the order of the forward pass.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn parameters(&self, p: Parametrisation) -> Result<Vec<ParamSpec>> {
        self.validate(p)?;
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
    let mut model = Model { graph, params, config, p, training };
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
    let mut model = Model { graph, params, config, p, training: false };
    let x = model.hidden(tokens)?; // (B, T, C)
    let rows = model.graph.shape(x).rows();
    let x = model.graph.reshape(x, [rows, config.n_embd])?; // (B T, C)
    let x = model.graph.op(Op::Gather, &[x, last]).named("last").one()?; // (B, C)
    model.readout(x) // (B, V)
}

/// The model while it is built.
struct Model<'a> {
    graph: &'a mut Graph,
    params: &'a mut Params,
    config: &'a GptConfig,
    p: Parametrisation,
    training: bool,
}

impl Model<'_> {
    /// Hidden states after the last norm.
    fn hidden(&mut self, tokens: ValueId) -> Result<ValueId> {
        let config = self.config;
        config.validate(self.p)?;
        let (batch, seq) = match *self.graph.shape(tokens).dims() {
            [batch, seq] => (batch, seq),
            _ => (0, 0),
        };
        config.validate_batch(batch, seq)?;
        let mut x = self.scoped("embedding", |model| model.embed(tokens, seq))?; // (B, T, C)
        for layer in 0..config.n_layer {
            x = self.layer(layer, x)?; // (B, T, C)
        }
        self.norm("transformer.ln_f", None, x) // (B, T, C)
    }

    fn embed(&mut self, tokens: ValueId, seq: usize) -> Result<ValueId> {
        let (p, config) = (self.p, self.config);
        let wte = self.table("transformer.wte.weight", config.vocab_size)?; // (V, C)
        let wpe = self.table("transformer.wpe.weight", config.n_positions)?; // (P, C)
        let x = embedding(self.graph, p, tokens, wte)?; // (B, T, C)
        let positions = match seq == config.n_positions {
            true => wpe,
            false => {
                self.graph.op(Op::Slice { axis: 0, start: 0, len: seq }, &[wpe]).one()? // (T, C)
            }
        };
        // Both tables are cut edges, so each keeps its ideal scale.
        let x = add(self.graph, p, x, positions, Constraint::None)?; // (B, T, C)
        Ok(dropout(self.graph, p, x, config.embd_pdrop, self.training)?)
    }

    fn layer(&mut self, layer: usize, x: ValueId) -> Result<ValueId> {
        let index = Some(layer as u32);
        let [attention_tau, mlp_tau] = self.config.taus(self.p, layer)?;
        self.in_layer(layer as u32, |model| {
            let prefix = format!("transformer.h.{layer}");
            let x = model.scoped("attention", |model| {
                model.residual(x, attention_tau, |model, x| {
                    model.normed(&format!("{prefix}.ln_1"), index, x, |model, x| {
                        model.attention(&format!("{prefix}.attn"), index, x)
                    })
                })
            })?; // (B, T, C)
            model.scoped("mlp", |model| {
                model.residual(x, mlp_tau, |model, x| {
                    model.normed(&format!("{prefix}.ln_2"), index, x, |model, x| {
                        model.mlp(&format!("{prefix}.mlp"), index, x)
                    })
                })
            }) // (B, T, C)
        })
    }

    fn attention(&mut self, prefix: &str, layer: Option<u32>, x: ValueId) -> Result<ValueId> {
        let (p, config) = (self.p, self.config);
        let width = config.n_embd;
        let dims = self.graph.shape(x).dims().to_vec();
        let heads = [dims[0], dims[1], config.n_head, config.head_size()];
        let mut qkv = [x; 3];
        for (value, name) in qkv.iter_mut().zip(["q_proj", "k_proj", "v_proj"]) {
            let name = format!("{prefix}.{name}");
            let y = self.linear(&name, layer, x, width, false, p.hidden())?; // (B, T, C)
            *value = self.graph.reshape(y, heads)?; // (B, T, H, D)
        }
        let options = Attention {
            causal: true,
            mult: config.attention_mult,
            dropout: config.attn_pdrop,
            training: self.training,
        };
        let x = attention(self.graph, p, qkv, options)?; // (B, T, H, D)
        let x = self.graph.reshape(x, dims)?; // (B, T, C)
        let name = format!("{prefix}.c_proj");
        let x = self.linear(&name, layer, x, width, true, p.hidden())?; // (B, T, C)
        Ok(dropout(self.graph, p, x, config.resid_pdrop, self.training)?)
    }

    fn mlp(&mut self, prefix: &str, layer: Option<u32>, x: ValueId) -> Result<ValueId> {
        let (p, config) = (self.p, self.config);
        let options = p.mirrored();
        let name = format!("{prefix}.c_fc");
        let x = self.linear(&name, layer, x, config.inner(), false, options)?; // (B, T, F)
        let constraint = p.scheme().constraint;
        let x = match config.activation_function {
            Activation::Gelu => gelu(self.graph, p, x, GeluForm::Erf, 1.0, constraint)?,
            Activation::GeluNew => gelu(self.graph, p, x, GeluForm::Tanh, 1.0, constraint)?,
            Activation::Silu => silu(self.graph, p, x, 1.0, constraint)?,
        }; // (B, T, F)
        let name = format!("{prefix}.c_proj");
        let x = self.linear(&name, layer, x, config.n_embd, true, options)?; // (B, T, C)
        Ok(dropout(self.graph, p, x, config.resid_pdrop, self.training)?)
    }

    fn readout(&mut self, x: ValueId) -> Result<ValueId> {
        let (p, config) = (self.p, self.config);
        let weight = match config.tied(p) {
            true => self.table("transformer.wte.weight", config.vocab_size)?,
            false => {
                let init = self.normal(1.0);
                let shape = [config.vocab_size, config.n_embd];
                self.param("lm_head.weight".to_owned(), &shape, init, ParamKind::Readout, None)?
            }
        }; // (V, C)
        self.scoped("readout", |model| Ok(linear_readout(model.graph, p, x, weight, None)?))
    }

    /// `tau`-weighted residual branch.
    fn residual(
        &mut self,
        x: ValueId,
        tau: f64,
        branch: impl FnOnce(&mut Model<'_>, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        let Model { params, config, p, training, .. } = self;
        let (config, p, training) = (*config, *p, *training);
        residual_apply(self.graph, p, x, tau, |graph, x| {
            branch(&mut Model { graph, params, config, p, training }, x)
        })
    }

    /// A branch with its norm where the parametrisation wants it.
    fn normed(
        &mut self,
        name: &str,
        layer: Option<u32>,
        x: ValueId,
        branch: impl FnOnce(&mut Self, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        match self.p.scheme().norm {
            NormPlacement::BranchStart => {
                let x = self.norm(name, layer, x)?;
                branch(self, x)
            }
            NormPlacement::BranchEnd => {
                let x = branch(self, x)?;
                self.norm(name, layer, x)
            }
        }
    }

    fn norm(&mut self, name: &str, layer: Option<u32>, x: ValueId) -> Result<ValueId> {
        let (p, config) = (self.p, self.config);
        let shape = [config.n_embd];
        let mut param = |suffix: &str, given: bool, init, kind| -> Result<Option<ValueId>> {
            if !given {
                return Ok(None);
            }
            self.param(format!("{name}.{suffix}"), &shape, init, kind, layer).map(Some)
        };
        let weight = param("weight", config.norm_affine, Init::Ones, ParamKind::Norm)?;
        let eps = config.layer_norm_epsilon;
        let bias = match config.norm {
            Norm::LayerNorm => {
                let given = config.norm_affine && config.bias;
                param("bias", given, Init::Zeros, ParamKind::Bias)?
            }
            Norm::RmsNorm => None,
        };
        self.scoped(last_word(name), |model| {
            Ok(match config.norm {
                Norm::LayerNorm => layer_norm(model.graph, p, x, weight, bias, 1, eps)?,
                Norm::RmsNorm => rms_norm(model.graph, p, x, weight, 1, eps)?,
            })
        })
    }

    /// A linear layer `<name>.weight [fan_out, fan_in]`, `<name>.bias`. In a regular model the
    /// layers that end a branch start smaller by `sqrt(2 n_layer)`, as in GPT-2.
    fn linear(
        &mut self,
        name: &str,
        layer: Option<u32>,
        x: ValueId,
        fan_out: usize,
        ends_branch: bool,
        options: Linear,
    ) -> Result<ValueId> {
        let fan_in = self.graph.shape(x).last();
        let branches = if ends_branch { 2.0 * self.config.n_layer as f64 } else { 1.0 };
        let init = self.normal(branches.sqrt().recip());
        let kind = ParamKind::Weight;
        let weight = self.param(format!("{name}.weight"), &[fan_out, fan_in], init, kind, layer)?;
        let bias = match self.config.bias {
            true => {
                let name = format!("{name}.bias");
                Some(self.param(name, &[fan_out], Init::Zeros, ParamKind::Bias, layer)?)
            }
            false => None,
        };
        self.scoped(last_word(name), |model| {
            Ok(linear(model.graph, model.p, x, weight, bias, options)?)
        })
    }

    fn table(&mut self, name: &str, rows: usize) -> Result<ValueId> {
        let init = self.normal(1.0);
        let shape = [rows, self.config.n_embd];
        self.param(name.to_owned(), &shape, init, ParamKind::Embedding, None)
    }

    /// Unit variance in a unit-scaled model, else `initializer_range` times `factor`.
    fn normal(&self, factor: f64) -> Init {
        let std = if self.p.is_scaled() { 1.0 } else { self.config.initializer_range * factor };
        Init::Normal { std }
    }

    fn param(
        &mut self,
        name: String,
        shape: &[usize],
        init: Init,
        kind: ParamKind,
        layer: Option<u32>,
    ) -> Result<ValueId> {
        let fan_in = if shape.len() > 1 { shape[shape.len() - 1] } else { 1 };
        let spec = ParamSpec { name, shape: shape.into(), init, kind, fan_in, layer };
        self.params.get(self.graph, spec)
    }

    fn scoped<T>(&mut self, name: &str, build: impl FnOnce(&mut Model<'_>) -> T) -> T {
        let Model { params, config, p, training, .. } = self;
        let (config, p, training) = (*config, *p, *training);
        self.graph.scoped(name, |graph| build(&mut Model { graph, params, config, p, training }))
    }

    fn in_layer<T>(&mut self, index: u32, build: impl FnOnce(&mut Model<'_>) -> T) -> T {
        let Model { params, config, p, training, .. } = self;
        let (config, p, training) = (*config, *p, *training);
        self.graph.in_layer(index, |graph| build(&mut Model { graph, params, config, p, training }))
    }
}

/// `c_proj` of `transformer.h.0.mlp.c_proj`: the scope of its nodes.
fn last_word(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}
