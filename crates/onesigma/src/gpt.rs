//! The GPT that the command line trains: pre-norm, causal, regular or unit-scaled from one
//! definition. Shapes: B batch, T sequence, C hidden, H heads, V vocabulary.
//!
//! The scales follow unit scaling (arXiv 2303.11257) with the residual and readout rules of u-muP
//! (arXiv 2407.17465); normalisation has no parameters, as there.

use onesigma_graph::{Graph, Op, Result, Role, ValueId};
use onesigma_train::program::{Init, Model, Parameter};

/// Added to the mean square in normalisation.
const EPSILON: f64 = 1e-5;
/// Standard deviation of a regular model's weights, as in GPT-2.
const REGULAR_STD: f64 = 0.02;

// Multipliers of the unit-scaled model (u-muP, section 4), the best of a coarse search on the
// default model and corpus: 200 steps of `unit-fp8` end at a validation loss of 2.29 with them and
// at 2.74 with all of them 1.

/// Factor on the attention logits.
const ATTENTION_MULT: f64 = 4.0;
/// Factor on tau, the weight of residual branches.
const RESIDUAL_MULT: f64 = 0.5;
/// Factor on the learning rate of the embeddings.
const EMBEDDING_RATE: f64 = 2.0;
/// Factor on the learning rate of the readout.
const READOUT_RATE: f64 = 4.0;

/// Sizes and kind of a GPT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpt {
    /// Blocks.
    pub layers: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Positions.
    pub seq: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Unit-scaled, as opposed to regular.
    pub unit_scaled: bool,
}

/// `exp(a ln u + (1 - a) ln v)`: the interpolation of the rules for non-linear ops.
fn mix(a: f64, u: f64, v: f64) -> f64 {
    (a * u.ln() + (1.0 - a) * v.ln()).exp()
}

impl Model for Gpt {
    fn parameters(&self) -> Vec<Parameter> {
        let d = self.hidden;
        let parameter = |name: String, shape: [usize; 2], std: f64, rate: f64, decays: bool| {
            let (std, lr_scale) = if self.unit_scaled { (1.0, rate) } else { (std, 1.0) };
            Parameter { name, shape: shape.into(), init: Init::Normal(std), lr_scale, decays }
        };
        let root = |size: usize| (size as f64).powf(-0.5);
        let table = |name: &str, rows: usize| {
            let name = format!("transformer.{name}.weight");
            parameter(name, [rows, d], REGULAR_STD, EMBEDDING_RATE * root(d), false)
        };
        let mut all = vec![table("wte", self.vocabulary), table("wpe", self.seq)];
        // GPT-2 shrinks what is added to the residual stream by the number of additions.
        let branch_end = REGULAR_STD / (2.0 * self.layers as f64).sqrt();
        for layer in 0..self.layers {
            let mut linear = |name: &str, fan_in: usize, fan_out: usize, std: f64| {
                let name = format!("transformer.h.{layer}.{name}.weight");
                all.push(parameter(name, [fan_in, fan_out], std, root(fan_in), true));
            };
            linear("attn.c_attn", d, 3 * d, REGULAR_STD);
            linear("attn.c_proj", d, d, branch_end);
            linear("mlp.c_fc", d, 4 * d, REGULAR_STD);
            linear("mlp.c_proj", 4 * d, d, branch_end);
        }
        let readout = "lm_head.weight".to_owned();
        all.push(parameter(readout, [d, self.vocabulary], REGULAR_STD, READOUT_RATE, true));
        all
    }

    fn logits(&self, graph: &mut Graph, weights: &[ValueId], tokens: ValueId) -> Result<ValueId> {
        let [tokens_table, positions_table, layers @ .., readout] = weights else {
            return graph.reshape(tokens, [0]); // fails: the caller gave no weights
        };
        let mut x = self.embed(graph, *tokens_table, *positions_table, tokens)?; // (B, T, C)
        for (layer, own) in layers.chunks_exact(4).enumerate() {
            x = graph.in_layer(layer as u32, |graph| self.block(graph, x, layer, own))?;
        }
        let x = self.norm(graph, "norm", x)?;
        self.readout(graph, x, *readout) // (B, T, V)
    }

    /// Unit scaling gives the logits an absolute gradient, `(softmax - onehot) V / sqrt(V - 1)`:
    /// the factor undoes the mean over positions as well.
    fn loss(&self, graph: &mut Graph, logits: ValueId, targets: ValueId) -> Result<ValueId> {
        let positions = graph.shape(targets).numel() as f64;
        let classes = self.vocabulary as f64;
        let beta = self.scale(positions * classes / (classes - 1.0).max(1.0).sqrt());
        let op = Op::CrossEntropy { mult: 1.0, mean: true };
        graph.op(op, &[logits, targets]).beta(&[beta]).named("loss").one()
    }
}

impl Gpt {
    /// The scale under unit scaling, else 1.
    fn scale(&self, scale: f64) -> f64 {
        if self.unit_scaled { scale } else { 1.0 }
    }

    /// Embedding: gradient of the table times `sqrt(V / (B T))`; sum of two: `1 / sqrt(2)`, and
    /// the positions' gradient, a sum over B, times `B^-1/2`.
    fn embed(
        &self,
        graph: &mut Graph,
        tokens_table: ValueId,
        positions_table: ValueId,
        tokens: ValueId,
    ) -> Result<ValueId> {
        let (batch, count) = (graph.shape(tokens).dims()[0], graph.shape(tokens).numel());
        let rows = self.scale((self.vocabulary as f64 / count as f64).sqrt());
        let words = graph
            .op(Op::Gather, &[tokens_table, tokens])
            .beta(&[rows])
            .named("wte")
            .role(Role::Activation)
            .one()?;
        let half = self.scale(0.5f64.sqrt());
        let positions = self.scale((batch as f64).powf(-0.5));
        graph
            .map(&[words, positions_table], |x| x[0].clone() + x[1].clone())?
            .alpha(half)
            .beta(&[half, positions])
            .named("embed")
            .role(Role::Activation)
            .one()
    }

    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
    fn block(
        &self,
        graph: &mut Graph,
        x: ValueId,
        layer: usize,
        weights: &[ValueId],
    ) -> Result<ValueId> {
        let x = self.branch(graph, x, 2 * layer, |graph, x| {
            let x = self.norm(graph, "attn.norm", x)?;
            self.attention(graph, x, weights[0], weights[1])
        })?;
        self.branch(graph, x, 2 * layer + 1, |graph, x| {
            let x = self.norm(graph, "mlp.norm", x)?;
            let x = self.linear(graph, "mlp.up", x, weights[2])?; // (B, T, 4C)
            let x = self.gelu(graph, x)?;
            self.linear(graph, "mlp.down", x, weights[3])
        })
    }

    /// A residual branch. Unit-scaled: `(tau f(x) + x) / sqrt(1 + tau^2)`, whose gradient factors
    /// stand at the split, so that `f` sees a gradient of unit variance. Of 2L branches number i
    /// has `tau = RESIDUAL_MULT / sqrt(L + i)`.
    fn branch(
        &self,
        graph: &mut Graph,
        x: ValueId,
        index: usize,
        f: impl FnOnce(&mut Graph, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        let role = Role::Activation;
        if !self.unit_scaled {
            let y = f(graph, x)?;
            let sum = graph.map(&[x, y], |x| x[0].clone() + x[1].clone())?;
            return sum.named("residual").role(role).one();
        }
        let tau = RESIDUAL_MULT * ((self.layers + index) as f64).powf(-0.5);
        let skip_weight = 1.0 / (1.0 + tau * tau).sqrt();
        let branch_weight = tau * skip_weight;
        let mut split = |name: &str, beta: f64| {
            graph.map(&[x], |x| x[0].clone())?.beta(&[beta]).named(name).role(role).one()
        };
        let (branch, skip) = (split("split", branch_weight)?, split("skip", skip_weight)?);
        let y = f(graph, branch)?;
        graph
            .map(&[y, skip], |x| x[0].clone() * branch_weight + x[1].clone() * skip_weight)?
            .beta(&[1.0 / branch_weight, 1.0 / skip_weight])
            .named("residual")
            .role(role)
            .one()
    }

    fn norm(&self, graph: &mut Graph, name: &str, x: ValueId) -> Result<ValueId> {
        graph.op(Op::RmsNorm { eps: EPSILON }, &[x]).named(name).role(Role::Activation).one()
    }

    /// `fan_in^-1/2` forward and for the input's gradient, `(B T)^-1/2` for the weight's.
    fn linear(&self, graph: &mut Graph, name: &str, x: ValueId, w: ValueId) -> Result<ValueId> {
        let alpha = self.scale((graph.shape(x).last() as f64).powf(-0.5));
        let weight = self.scale((graph.shape(x).rows() as f64).powf(-0.5));
        graph
            .matmul(x, w)
            .alpha(alpha)
            .beta(&[alpha, weight])
            .named(name)
            .role(Role::Activation)
            .one()
    }

    /// A linear layer whose output scale, `1 / fan_in`, is free of the input gradient's,
    /// `fan_out^-1/2`: nothing comes after it.
    fn readout(&self, graph: &mut Graph, x: ValueId, w: ValueId) -> Result<ValueId> {
        let alpha = self.scale(1.0 / graph.shape(x).last() as f64);
        let input = self.scale((self.vocabulary as f64).powf(-0.5));
        let weight = self.scale((graph.shape(x).rows() as f64).powf(-0.5));
        graph
            .matmul(x, w)
            .alpha(alpha)
            .beta(&[input, weight])
            .named("readout")
            .role(Role::Activation)
            .one()
    }

    /// `x Φ(x)`, forward and backward times `mix(4/5; √(2/(1-1/π)), 2)`.
    fn gelu(&self, graph: &mut Graph, x: ValueId) -> Result<ValueId> {
        let near_zero = (2.0 / (1.0 - std::f64::consts::FRAC_1_PI)).sqrt();
        let alpha = self.scale(mix(0.8, near_zero, 2.0));
        graph
            .map(&[x], |x| {
                let cumulative = ((x[0].clone() * 0.5f64.sqrt()).erf() + 1.0) * 0.5;
                x[0].clone() * cumulative
            })?
            .alpha(alpha)
            .beta(&[alpha])
            .named("mlp.gelu")
            .role(Role::Activation)
            .one()
    }

    /// Causal attention. Unit-scaled: logits times `m / (C/H)` with `m = ATTENTION_MULT`, and
    /// everything divided by `mix(1 / (1 + 4 (C/H) / m^2); 1, √(ln T / T))`.
    fn attention(
        &self,
        graph: &mut Graph,
        x: ValueId,
        w_in: ValueId,
        w_out: ValueId,
    ) -> Result<ValueId> {
        let (batch, seq) = (graph.shape(x).dims()[0], graph.shape(x).dims()[1]);
        let head = self.hidden / self.heads;
        let qkv = self.linear(graph, "attn.in", x, w_in)?; // (B, T, 3C)
        let mut heads = Vec::with_capacity(3);
        for part in 0..3 {
            let op = Op::Slice { axis: 2, start: part * self.hidden, len: self.hidden };
            let own = graph.op(op, &[qkv]).named("attn.part").one()?;
            heads.push(graph.reshape(own, [batch, seq, self.heads, head])?); // (B, T, H, C/H)
        }
        let size = head as f64;
        let keys = (seq as f64).max(2.0);
        let shrink =
            mix(1.0 / (1.0 + 4.0 * size / ATTENTION_MULT.powi(2)), 1.0, (keys.ln() / keys).sqrt());
        let alpha = self.scale(1.0 / shrink);
        let logit_scale = if self.unit_scaled { ATTENTION_MULT / size } else { size.powf(-0.5) };
        let results = graph
            .op(Op::Attention { causal: true, logit_scale }, &heads)
            .alphas(vec![alpha, 1.0])
            .beta(&[alpha; 3])
            .named("attn.core")
            .role(Role::Activation)
            .all()?;
        let joined = graph.reshape(results[0], [batch, seq, self.hidden])?; // (B, T, C)
        self.linear(graph, "attn.out", joined, w_out)
    }
}
