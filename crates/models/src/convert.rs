//! From regular to scaled weights and back: the same function, with every tensor multiplied by one
//! constant.
//!
//! A scaled model multiplies what its ops give by constants; dividing its weights by them makes it
//! the regular function. What cannot be moved into weights is the scale of the residual stream,
//! which a unit-scaled model keeps at 1 while a regular one lets it grow: norms undo it, apart
//! from their epsilon. [`StreamScale`] in a configuration says so, and epsilons follow.
//!
//! With `a_i`, `b_i` the factors of branch and skip at residual sum `i` and `c` the ratio of the
//! regular stream to the scaled one, a pre-norm model has `c_{i+1} = c_i / b_i`, and the output of
//! branch `i` is `b_i/(a_i c_i)` times the regular one.

use crate::bert_config::{BertConfig, BertTask};
use crate::config::{Activation, GptConfig, NormPosition};
use crate::{Error, Model, Result};
use onesigma_ops::{
    Attention, Constraint, Linear, Parametrisation, dropout_scales, gelu_scales, residual_factors,
    silu_glu_scales, silu_scales, sum_scales, tanh_scales,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a converted configuration remembers: its epsilons are meant for the residual stream of a
/// model in another parametrisation.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct StreamScale {
    /// The parametrisation that the weights come from.
    pub from: Parametrisation,
    /// The regular embedding is this multiple of the scaled one.
    pub stream: f64,
}

/// By what the values of a scaled model differ from those of the regular one, at one residual sum.
#[derive(Clone, Copy, Debug)]
struct Sum {
    /// Regular over scaled stream before the sum.
    before: f64,
    /// Factor of the branch.
    branch: f64,
    /// Factor of the skip.
    skip: f64,
}

/// The sums of a model whose taus are given, and the ratio after the last.
fn sums(
    p: Parametrisation,
    position: NormPosition,
    taus: &[f64],
    stream: f64,
) -> Result<(Vec<Sum>, f64)> {
    let mut ratio = stream;
    let mut sums = Vec::with_capacity(taus.len());
    for &tau in taus {
        let (branch, skip) = if p.is_scaled() { residual_factors(tau)? } else { (1.0, 1.0) };
        sums.push(Sum { before: ratio, branch, skip });
        ratio /= skip;
        if position == NormPosition::Post {
            ratio = 1.0;
        }
    }
    Ok((sums, ratio))
}

/// Factors on the epsilon of a model's norms.
#[derive(Clone, Debug)]
pub(crate) struct Epsilons {
    /// Of the embedding's norm.
    pub embedding: f64,
    /// Of the norm at each residual sum.
    pub sums: Vec<f64>,
    /// Of the last norm.
    pub last: f64,
    /// Of the norm in the head of masked tokens.
    pub head: f64,
}

impl Epsilons {
    /// All 1, for `count` residual sums.
    fn plain(count: usize) -> Self {
        Self { embedding: 1.0, sums: vec![1.0; count], last: 1.0, head: 1.0 }
    }

    /// Of the norms of attention and MLP in a layer.
    pub(crate) fn of_layer(&self, layer: usize) -> [f64; 2] {
        [self.sums[2 * layer], self.sums[2 * layer + 1]]
    }

    /// Of a model in `p` that remembers what it comes from. `taus` are those of a parametrisation.
    pub(crate) fn of(
        p: Parametrisation,
        scale: Option<StreamScale>,
        position: NormPosition,
        activation: Activation,
        taus: impl Fn(Parametrisation) -> Result<Vec<f64>>,
    ) -> Result<Self> {
        let Some(StreamScale { from, stream }) = scale.filter(|scale| scale.from != p) else {
            return Ok(Self::plain(taus(p)?.len()));
        };
        // The regular input of a norm over the scaled one, squared: what a regular epsilon is
        // divided by in the scaled model, and a scaled one multiplied by in the regular model.
        let scaled = if p.is_scaled() { p } else { from };
        let (sums, last) = sums(scaled, position, &taus(scaled)?, stream)?;
        let factor = |ratio: f64| if p.is_scaled() { ratio.powi(-2) } else { ratio.powi(2) };
        let ratio = |sum: &Sum| match position {
            NormPosition::Pre => sum.before,
            // The sum itself is normalised.
            NormPosition::Post => sum.before / sum.skip,
            // The branch is, which has the regular size.
            NormPosition::BranchEnd => 1.0,
        };
        // The head is behind all cycles, where no constraint is.
        let activation = activation_scale(scaled, activation, Constraint::None)?;
        Ok(Self {
            embedding: factor(stream),
            sums: sums.iter().map(|sum| factor(ratio(sum))).collect(),
            last: factor(last),
            head: factor(activation.recip()),
        })
    }
}

/// Forward scale of an activation under a constraint.
fn activation_scale(
    p: Parametrisation,
    activation: Activation,
    constraint: Constraint,
) -> Result<f64> {
    let scales = p.scheme().activation.choose(|| match activation {
        Activation::Gelu | Activation::GeluNew => gelu_scales(1.0, constraint),
        Activation::Silu => silu_scales(1.0, constraint),
        Activation::Swiglu => silu_glu_scales(1.0),
    })?;
    Ok(scales.alpha)
}

/// The constants of one transformer, filled in by name.
struct Constants {
    p: Parametrisation,
    factors: BTreeMap<String, f64>,
}

/// What a branch's constants follow from.
struct Branch<'a> {
    sum: Sum,
    position: NormPosition,
    /// Name of its norm.
    norm: &'a str,
    /// Forward scale of the dropout at its end.
    dropout: f64,
}

impl Branch<'_> {
    /// Scaled over regular input of the branch's first layers.
    fn input(&self) -> f64 {
        match self.position {
            // It is normalised, or the stream behind a norm.
            NormPosition::Pre => 1.0,
            _ => self.sum.before.recip(),
        }
    }

    /// Scaled over regular output that the sum needs.
    fn needed(&self) -> f64 {
        let Sum { before, branch, skip } = self.sum;
        skip / (branch * before)
    }

    /// Scaled over regular output of the branch's last layer.
    fn output(&self) -> f64 {
        match self.position {
            NormPosition::BranchEnd => self.dropout.recip(),
            _ => self.needed() / self.dropout,
        }
    }
}

impl Constants {
    fn set(&mut self, name: impl Into<String>, factor: f64) {
        self.factors.insert(name.into(), factor);
    }

    /// A linear layer of this forward scale whose input and output are these multiples of the
    /// regular ones.
    fn linear(&mut self, name: &str, alpha: f64, input: f64, output: f64) {
        self.set(format!("{name}.weight"), output / (alpha * input));
        self.set(format!("{name}.bias"), output / alpha);
    }

    /// Forward scale of a hidden layer.
    fn hidden(&self, fan_in: usize, fan_out: usize) -> Result<f64> {
        let rule = || self.p.hidden().scales(fan_in, fan_out, 1);
        Ok(self.p.scheme().linear.choose(rule)?.alpha)
    }

    /// Forward scale of a layer behind all cycles.
    fn free(&self, fan_in: usize, fan_out: usize) -> Result<f64> {
        let rule = || Linear::unconstrained().scales(fan_in, fan_out, 1);
        Ok(self.p.scheme().linear.choose(rule)?.alpha)
    }

    fn mirrored(&self, fan_in: usize, fan_out: usize) -> Result<f64> {
        let rule = || self.p.mirrored().scales(fan_in, fan_out, 1);
        Ok(self.p.scheme().linear.choose(rule)?.alpha)
    }

    fn readout(&self, width: usize, classes: usize) -> Result<f64> {
        let rule = || self.p.readout().scales(width, classes, 1);
        Ok(self.p.scheme().linear.choose(rule)?.alpha)
    }

    fn dropout(&self, probability: f64) -> Result<f64> {
        let rule = || dropout_scales(probability);
        Ok(self.p.scheme().activation.choose(rule)?.alpha)
    }

    /// The norm at the end of a branch brings it to the size that the sum needs.
    fn norm(&mut self, branch: &Branch<'_>) {
        if branch.position == NormPosition::BranchEnd {
            for part in ["weight", "bias"] {
                self.set(format!("{}.{part}", branch.norm), branch.needed());
            }
        }
    }

    /// Layers `names` of an attention: query, key, value, output.
    fn attention(
        &mut self,
        names: [&str; 4],
        (width, heads, kv_heads): (usize, usize, usize),
        options: Attention,
        branch: &Branch<'_>,
    ) -> Result<()> {
        let d = width / heads.max(1);
        let keys = options.scale_keys.unwrap_or(1);
        let inner = heads * d;
        let own = options.logit_scale(self.p, d);
        // Both operands of the logits take half of what their factor differs by.
        let logits = (options.logit_scale(Parametrisation::Regular, d) / own).sqrt();
        let mixed = self.p.scheme().activation.choose(|| options.scales(self.p, keys, d))?.alpha;
        for (name, heads, output) in
            [(names[0], heads, logits), (names[1], kv_heads, logits), (names[2], kv_heads, 1.0)]
        {
            let alpha = self.hidden(width, heads * d)?;
            self.linear(name, alpha, branch.input(), output);
        }
        let alpha = self.hidden(inner, width)?;
        self.linear(names[3], alpha, mixed, branch.output());
        self.norm(branch);
        Ok(())
    }

    /// Layers `names` of an MLP: up, gate, down.
    fn mlp(
        &mut self,
        names: [&str; 3],
        (width, inner): (usize, usize),
        activation: Activation,
        branch: &Branch<'_>,
    ) -> Result<()> {
        let alpha = self.mirrored(width, inner)?;
        self.linear(names[0], alpha, branch.input(), 1.0);
        if activation == Activation::Swiglu {
            self.linear(names[1], alpha, branch.input(), 1.0);
        }
        let alpha = self.mirrored(inner, width)?;
        let active = activation_scale(self.p, activation, self.p.scheme().constraint)?;
        self.linear(names[2], alpha, active, branch.output());
        self.norm(branch);
        Ok(())
    }

    /// A sum of `count` tables, of which the regular one is `stream` times the scaled one.
    fn tables(&mut self, names: &[&str], stream: f64, dropout: f64) {
        let scales = self.p.scheme().sum.choose(|| Ok(sum_scales(1, &vec![1; names.len()])));
        let alpha = if names.len() > 1 { scales.map_or(1.0, |scales| scales.alpha) } else { 1.0 };
        for name in names {
            self.set(format!("{name}.weight"), 1.0 / (alpha * dropout * stream));
        }
    }
}

/// Scaled over regular value of every parameter of `model` that a conversion changes; parameters
/// that are not in the map stay as they are.
///
/// # Errors
/// [`Error::Convert`] for a model whose scales cannot be moved into its weights.
pub(crate) fn constants(
    model: &Model,
    p: Parametrisation,
    stream: f64,
) -> Result<BTreeMap<String, f64>> {
    match model {
        Model::Gpt(config) => gpt(config, p, stream),
        Model::Bert { config, task } => bert(config, *task, p, stream),
    }
}

fn gpt(config: &GptConfig, p: Parametrisation, stream: f64) -> Result<BTreeMap<String, f64>> {
    let mut all = Constants { p, factors: BTreeMap::new() };
    let position = config.norm_position(p);
    if position == NormPosition::BranchEnd && !config.norm_affine {
        return Err(Error::Convert {
            reason: "norms at the end of branches need weights, which take the factor of their \
                     branch; set `norm_affine`"
                .to_owned(),
        });
    }
    let width = config.n_embd;
    let learned = config.positions == crate::config::Positions::Learned;
    let tables: &[&str] =
        if learned { &["transformer.wte", "transformer.wpe"] } else { &["transformer.wte"] };
    let dropout = all.dropout(config.embd_pdrop)?;
    all.tables(tables, stream, dropout);
    let (sums, last) = sums(p, position, &config.all_taus(p)?, stream)?;
    for layer in 0..config.n_layer {
        let name = |word: &str| format!("transformer.h.{layer}.{word}");
        let norms = [name("ln_1"), name("ln_2")];
        let dropout = all.dropout(config.resid_pdrop)?;
        let branch =
            |n: usize| Branch { sum: sums[2 * layer + n], position, norm: &norms[n], dropout };
        let names =
            ["q_proj", "k_proj", "v_proj", "c_proj"].map(|word| name(&format!("attn.{word}")));
        let names = [0, 1, 2, 3].map(|n: usize| names[n].as_str());
        let sizes = (width, config.n_head, config.kv_heads());
        all.attention(names, sizes, config.attention(false), &branch(0))?;
        let names = ["mlp.c_fc", "mlp.c_gate", "mlp.c_proj"].map(name);
        let names = [0, 1, 2].map(|n: usize| names[n].as_str());
        all.mlp(names, (width, config.inner()), config.activation_function, &branch(1))?;
    }
    let alpha = all.readout(width, config.vocab_size)?;
    let input = if position == NormPosition::Post { last.recip() } else { 1.0 };
    all.set("lm_head.weight", 1.0 / (alpha * input));
    Ok(all.factors)
}

fn bert(
    config: &BertConfig,
    task: BertTask,
    p: Parametrisation,
    stream: f64,
) -> Result<BTreeMap<String, f64>> {
    let mut all = Constants { p, factors: BTreeMap::new() };
    let (width, position) = (config.hidden_size, config.norm_position);
    let dropout = all.dropout(config.hidden_dropout_prob)?;
    let names = ["word", "position", "token_type"];
    let names = names.map(|name| format!("bert.embeddings.{name}_embeddings"));
    let names = [0, 1, 2].map(|n: usize| names[n].as_str());
    // The norm of the embeddings undoes their scale, and its own parameters take the dropout's.
    let is_normed = position != NormPosition::Pre;
    all.tables(&names, stream, if is_normed { 1.0 } else { dropout });
    if is_normed {
        for part in ["weight", "bias"] {
            all.set(format!("bert.embeddings.LayerNorm.{part}"), dropout.recip());
        }
    }
    let start = if is_normed { 1.0 } else { stream };
    let (sums, last) = sums(p, position, &config.all_taus(p)?, start)?;
    for layer in 0..config.num_hidden_layers {
        let name = |word: &str| format!("bert.encoder.layer.{layer}.{word}");
        let norms = [name("attention.output.LayerNorm"), name("output.LayerNorm")];
        let branch =
            |n: usize| Branch { sum: sums[2 * layer + n], position, norm: &norms[n], dropout };
        let words = ["self.query", "self.key", "self.value", "output.dense"];
        let names = words.map(|word| name(&format!("attention.{word}")));
        let names = [0, 1, 2, 3].map(|n: usize| names[n].as_str());
        let heads = config.num_attention_heads;
        all.attention(names, (width, heads, heads), config.attention(false), &branch(0))?;
        let names = [name("intermediate.dense"), name("output.dense")];
        let sizes = (width, config.intermediate_size);
        all.mlp([&names[0], "", &names[1]], sizes, config.hidden_act, &branch(1))?;
    }
    // Scaled over regular hidden states.
    let hidden = if position == NormPosition::BranchEnd { last.recip() } else { 1.0 };
    let mut pooled = 1.0;
    if task.has_pooler() {
        let alpha = all.free(width, width)?;
        all.linear("bert.pooler.dense", alpha, hidden, 1.0);
        pooled = p.scheme().activation.choose(|| tanh_scales(Constraint::None))?.alpha;
    }
    match task {
        BertTask::MaskedLm | BertTask::PreTraining => {
            let alpha = all.free(width, width)?;
            all.linear("cls.predictions.transform.dense", alpha, hidden, 1.0);
            let alpha = all.readout(width, config.vocab_size)?;
            all.set("cls.predictions.decoder.weight", alpha.recip());
            all.set("cls.predictions.bias", alpha.recip());
        }
        BertTask::Classification => {
            let dropout = config.classifier_dropout.unwrap_or(config.hidden_dropout_prob);
            let input = pooled * all.dropout(dropout)?;
            let alpha = all.readout(width, config.labels())?;
            all.linear("classifier", alpha, input, 1.0);
        }
        BertTask::Span => {
            let alpha = all.readout(width, 2)?;
            all.linear("qa_outputs", alpha, hidden, 1.0);
        }
        BertTask::Encoder => {}
    }
    if task == BertTask::PreTraining {
        let alpha = all.readout(width, 2)?;
        all.linear("cls.seq_relationship", alpha, pooled, 1.0);
    }
    Ok(all.factors)
}
