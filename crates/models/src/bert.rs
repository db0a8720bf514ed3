//! BERT: one definition, regular or unit-scaled, with its heads.
//!
//! Legend of shapes: B batch, T sequence, C width, P predicted positions, V vocabulary.

use crate::Result;
use crate::bert_config::{BertConfig, BertTask};
use crate::config::{Norm, NormPosition};
use crate::convert::Epsilons;
use crate::layers::{AttentionNames, AttentionShape, Branches, Layers, Mlp, Style};
use crate::params::{ParamSpec, Params};
use crate::path::gradient_constant;
use onesigma_graph::{Graph, Op, ReduceKind, Role, ValueId};
use onesigma_ops::{
    Constraint, Linear, OpScales, Parametrisation, cross_entropy, masked_cross_entropy, sum, tanh,
};

/// What a BERT reads.
#[derive(Clone, Copy, Debug)]
pub struct BertInputs {
    /// Token ids `U32 [B, T]`.
    pub tokens: ValueId,
    /// Segment ids `U32 [B, T]`; all 0 if not given.
    pub segments: Option<ValueId>,
    /// `U32 [B, T]`, 0 for padding, which no position sees; nothing is padding if not given.
    pub mask: Option<ValueId>,
}

/// The masked tokens of a batch; P may be any number, one sequence's count times B as a rule.
#[derive(Clone, Copy, Debug)]
pub struct MaskedTokens {
    /// Where they are: rows of `[B T]`, `U32 [P]`.
    pub rows: ValueId,
    /// Their true ids, `U32 [P]`.
    pub targets: ValueId,
    /// `U32 [P]`, 0 for entries that are not counted, as the rest of a list that is not full.
    pub counted: ValueId,
}

/// Loss of a batch with what it was computed from.
#[derive(Clone, Copy, Debug)]
pub struct BertLoss {
    /// Mean cross-entropy in nats, a scalar; the sum of both in pre-training.
    pub loss: ValueId,
    /// Logits of the head: `[P, V]` of masked tokens, `[B, classes]`, or `[2, B, T]` of first and
    /// last tokens.
    pub logits: ValueId,
    /// Pre-training only: logits `[B, 2]` of "follows" and "is random".
    pub next_sentence: Option<ValueId>,
}

impl BertConfig {
    /// Every parameter of the model with the heads of a task, in the order of the forward pass.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn parameters(&self, task: BertTask, p: Parametrisation) -> Result<Vec<ParamSpec>> {
        self.validate()?;
        Params::list(|graph, params, tokens| {
            let mut model = Bert::new(graph, params, self, p, false)?;
            let inputs = BertInputs { tokens, segments: None, mask: None };
            let x = model.hidden(inputs)?;
            if task.has_pooler() {
                let pooled = model.pool(x)?;
                match task {
                    BertTask::PreTraining => model.next_sentence(pooled).map(|_| ())?,
                    BertTask::Classification => model.classify(pooled).map(|_| ())?,
                    _ => {}
                }
            }
            match task {
                BertTask::MaskedLm | BertTask::PreTraining => {
                    let row = model.layers.graph.reshape(tokens, [1])?;
                    model.decode(x, row).map(|_| ())
                }
                BertTask::Span => model.span(x).map(|_| ()),
                _ => Ok(()),
            }
        })
    }

    /// Number of parameters.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn parameter_count(&self, task: BertTask, p: Parametrisation) -> Result<usize> {
        Ok(self.parameters(task, p)?.iter().map(|spec| spec.shape.numel()).sum())
    }
}

/// Hidden states `[B, T, C]` after the last layer. With `training`, dropout is active.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) for a configuration or batch that is impossible;
/// [`Error::MissingParameter`](crate::Error::MissingParameter) and
/// [`Error::ParameterShape`](crate::Error::ParameterShape).
pub fn bert(
    graph: &mut Graph,
    params: &mut Params,
    config: &BertConfig,
    p: Parametrisation,
    inputs: BertInputs,
    training: bool,
) -> Result<ValueId> {
    Bert::new(graph, params, config, p, training)?.hidden(inputs)
}

/// Embeddings `[B, C]` of whole sequences: hidden states averaged over what is not padding, then
/// normalised to length 1, as sentence encoders do (Sentence-BERT, arXiv 1908.10084).
///
/// # Errors
/// As [`bert`].
pub fn bert_embedding(
    graph: &mut Graph,
    params: &mut Params,
    config: &BertConfig,
    p: Parametrisation,
    inputs: BertInputs,
) -> Result<ValueId> {
    let x = bert(graph, params, config, p, inputs, false)?; // (B, T, C)
    graph.scoped("pooling", |graph| {
        // The length takes out the number of positions, so that a sum does for the mean.
        let sum = match inputs.mask {
            Some(mask) => {
                let column = graph.shape(mask).dims().iter().copied().chain([1]);
                let column: Vec<usize> = column.collect();
                let mask = graph.reshape(mask, column)?; // (B, T, 1)
                graph.reduce(ReduceKind::Sum, &[x, mask], &[1], false, |x| {
                    x[1].equal(0.0).select(0.0, x[0].clone())
                })?
            }
            None => graph.reduce(ReduceKind::Sum, &[x], &[1], false, |x| x[0].clone())?,
        };
        let sum = sum.named("sum").role(Role::Statistic).one()?; // (B, C)
        let square = graph
            .reduce(ReduceKind::Sum, &[sum], &[-1], true, |x| x[0].square())?
            .named("square")
            .role(Role::Statistic)
            .one()?; // (B, 1)
        let normal = graph.map(&[sum, square], |x| x[0].clone() * x[1].max(1e-24).rsqrt())?;
        Ok(normal.named("embedding").role(Role::Statistic).one()?) // (B, C)
    })
}

/// Loss of masked tokens: the mean over the positions that count. Unit-scaled: the gradient scale
/// is that of P counted positions.
///
/// # Errors
/// As [`bert`].
pub fn bert_masked_lm_loss(
    graph: &mut Graph,
    params: &mut Params,
    config: &BertConfig,
    p: Parametrisation,
    inputs: BertInputs,
    masked: MaskedTokens,
    training: bool,
) -> Result<BertLoss> {
    let mut model = Bert::new(graph, params, config, p, training)?;
    let x = model.hidden(inputs)?; // (B, T, C)
    let (loss, logits) = model.masked_loss(x, masked)?;
    Ok(BertLoss { loss, logits, next_sentence: None })
}

/// Loss of masked tokens plus that of `follows U32 [B]`: 0 if the second sentence follows the
/// first, 1 if it is random.
///
/// Unit-scaled: both losses give their gradient to the same hidden states, so it must carry one
/// constant; each part is weighted such that the sum has unit variance.
///
/// # Errors
/// As [`bert`].
pub fn bert_pre_training_loss(
    graph: &mut Graph,
    params: &mut Params,
    config: &BertConfig,
    p: Parametrisation,
    inputs: BertInputs,
    masked: MaskedTokens,
    follows: ValueId,
    training: bool,
) -> Result<BertLoss> {
    let mut model = Bert::new(graph, params, config, p, training)?;
    let x = model.hidden(inputs)?; // (B, T, C)
    // The weights of the split are known when both losses stand: build them on plain copies.
    let constants = model.head_constants(x, masked, follows)?;
    let [a, b] = model.split(x, constants)?;
    let (masked_loss, logits) = model.masked_loss(a, masked)?;
    let (next_loss, next) = model.next_sentence_loss(b, follows)?;
    let loss = graph
        .map(&[masked_loss, next_loss], |x| x[0].clone() + x[1].clone())?
        .role(Role::Statistic)
        .named("loss")
        .one()?;
    Ok(BertLoss { loss, logits, next_sentence: Some(next) })
}

/// Logits `[B, classes]` of whole sequences.
///
/// # Errors
/// As [`bert`].
pub fn bert_classify(
    graph: &mut Graph,
    params: &mut Params,
    config: &BertConfig,
    p: Parametrisation,
    inputs: BertInputs,
    training: bool,
) -> Result<ValueId> {
    let mut model = Bert::new(graph, params, config, p, training)?;
    let x = model.hidden(inputs)?; // (B, T, C)
    let pooled = model.pool(x)?; // (B, C)
    model.classify(pooled) // (B, classes)
}

/// Loss of whole sequences against `labels U32 [B]`: the mean over those where `counted U32 [B]` is
/// not 0, or over all.
///
/// # Errors
/// As [`bert`].
pub fn bert_classification_loss(
    graph: &mut Graph,
    params: &mut Params,
    config: &BertConfig,
    p: Parametrisation,
    inputs: BertInputs,
    labels: ValueId,
    counted: Option<ValueId>,
    training: bool,
) -> Result<BertLoss> {
    let logits = bert_classify(graph, params, config, p, inputs, training)?;
    let loss = mean_loss(graph, p, config, logits, labels, counted)?;
    Ok(BertLoss { loss, logits, next_sentence: None })
}

/// Logits `[2, B, T]` of the first and the last token of an answer.
///
/// # Errors
/// As [`bert`].
pub fn bert_span(
    graph: &mut Graph,
    params: &mut Params,
    config: &BertConfig,
    p: Parametrisation,
    inputs: BertInputs,
    training: bool,
) -> Result<ValueId> {
    let mut model = Bert::new(graph, params, config, p, training)?;
    let x = model.hidden(inputs)?; // (B, T, C)
    model.span(x) // (2, B, T)
}

/// Loss of answers against `ends U32 [2, B]`, the positions of first and last tokens: the mean of
/// the cross-entropies of both over the sequence, where `counted U32 [2, B]` is not 0 if it is
/// given.
///
/// # Errors
/// As [`bert`].
pub fn bert_span_loss(
    graph: &mut Graph,
    params: &mut Params,
    config: &BertConfig,
    p: Parametrisation,
    inputs: BertInputs,
    ends: ValueId,
    counted: Option<ValueId>,
    training: bool,
) -> Result<BertLoss> {
    let logits = bert_span(graph, params, config, p, inputs, training)?;
    let loss = mean_loss(graph, p, config, logits, ends, counted)?;
    Ok(BertLoss { loss, logits, next_sentence: None })
}

fn mean_loss(
    graph: &mut Graph,
    p: Parametrisation,
    config: &BertConfig,
    logits: ValueId,
    targets: ValueId,
    counted: Option<ValueId>,
) -> Result<ValueId> {
    let mult = config.loss_mult;
    graph.scoped("readout", |graph| match counted {
        Some(counted) => {
            let expected = graph.shape(targets).numel() as f64;
            Ok(masked_cross_entropy(graph, p, [logits, targets, counted], mult, expected)?)
        }
        None => Ok(cross_entropy(graph, p, logits, targets, mult, true)?),
    })
}

/// The model while it is built.
struct Bert<'a> {
    layers: Layers<'a>,
    config: &'a BertConfig,
    epsilons: Epsilons,
}

impl<'a> Bert<'a> {
    fn new(
        graph: &'a mut Graph,
        params: &'a mut Params,
        config: &'a BertConfig,
        p: Parametrisation,
        training: bool,
    ) -> Result<Self> {
        config.validate()?;
        let style = Style {
            std: config.initializer_range,
            branch_end: 1.0,
            norm: Norm::LayerNorm,
            norm_affine: true,
            eps: config.layer_norm_eps,
            bias: true,
            dropout: config.hidden_dropout_prob,
        };
        let epsilons = config.epsilons(p)?;
        Ok(Self { layers: Layers { graph, params, p, style, training }, config, epsilons })
    }

    fn is_pre_norm(&self) -> bool {
        self.config.norm_position == NormPosition::Pre
    }

    /// Hidden states after the last layer, and in a pre-norm model the last norm.
    fn hidden(&mut self, inputs: BertInputs) -> Result<ValueId> {
        let config = self.config;
        let check = |batch, seq| config.validate_batch(batch, seq);
        let seq = self.layers.checked_seq(inputs.tokens, check)?;
        let is_pre_norm = self.is_pre_norm();
        let norm = (!is_pre_norm).then_some(self.epsilons.embedding);
        let mut x = self.layers.scoped("embedding", |layers| {
            embed(layers, config, inputs, seq, norm) // (B, T, C)
        })?;
        for layer in 0..config.num_hidden_layers {
            x = self.layer(layer, x, inputs.mask)?; // (B, T, C)
        }
        match is_pre_norm {
            true => self.layers.norm("bert.encoder.ln", None, x, self.epsilons.last),
            false => Ok(x),
        }
    }

    fn layer(&mut self, layer: usize, x: ValueId, mask: Option<ValueId>) -> Result<ValueId> {
        let config = self.config;
        let index = Some(layer as u32);
        let position = config.norm_position;
        let prefix = format!("bert.encoder.layer.{layer}");
        let name = |word: &str| format!("{prefix}.{word}");
        let branches = Branches {
            taus: config.taus(self.layers.p, layer)?,
            position,
            norms: match position {
                NormPosition::Pre => [name("attention.ln"), name("ln")],
                _ => [name("attention.output.LayerNorm"), name("output.LayerNorm")],
            },
            epsilons: self.epsilons.of_layer(layer),
        };
        let names = AttentionNames {
            query: name("attention.self.query"),
            key: name("attention.self.key"),
            value: name("attention.self.value"),
            output: name("attention.output.dense"),
        };
        let shape = AttentionShape {
            heads: config.num_attention_heads,
            kv_heads: config.num_attention_heads,
            head_size: config.head_size(),
            width: config.hidden_size,
            mask,
            rotary: None,
            options: config.attention(self.layers.training),
        };
        let mlp = Mlp {
            up: name("intermediate.dense"),
            gate: String::new(),
            down: name("output.dense"),
            inner: config.intermediate_size,
            activation: config.hidden_act,
        };
        self.layers
            .block(layer, x, &branches, &mlp, |layers, x| layers.attention(&names, index, x, shape))
    }

    /// Logits `[P, V]` of rows `U32 [P]` of `x [B, T, C]`.
    fn decode(&mut self, x: ValueId, rows: ValueId) -> Result<ValueId> {
        let (config, layers, epsilon) = (self.config, &mut self.layers, self.epsilons.head);
        let (width, vocabulary) = (config.hidden_size, config.vocab_size);
        let count = layers.graph.shape(x).rows();
        let tied = config.tied();
        let x = layers.scoped("predictions", |layers| {
            let x = layers.graph.reshape(x, [count, width])?;
            // As in an embedding, each row is chosen P/(B T) times on average.
            let x = layers.lookup(rows, x)?; // (P, C)
            let name = "cls.predictions.transform.dense";
            // Behind the last residual all edges are cut edges.
            let x = layers.linear(name, None, x, width, Linear::unconstrained())?;
            let x = layers.activate(x, config.hidden_act, Constraint::None)?;
            layers.norm("cls.predictions.transform.LayerNorm", None, x, epsilon) // (P, C)
        })?;
        let bias = Some("cls.predictions.bias");
        match tied {
            true => {
                let table = token_table(layers, config)?; // (V, C)
                layers.tied_readout(table, bias, x)
            }
            false => layers.readout("cls.predictions.decoder", bias, x, vocabulary),
        } // (P, V)
    }

    fn masked_loss(&mut self, x: ValueId, masked: MaskedTokens) -> Result<(ValueId, ValueId)> {
        let logits = self.decode(x, masked.rows)?; // (P, V)
        let mult = self.config.loss_mult;
        let expected = self.layers.graph.shape(masked.rows).numel() as f64;
        let loss = self.layers.scoped("readout", |layers| {
            let operands = [logits, masked.targets, masked.counted];
            masked_cross_entropy(layers.graph, layers.p, operands, mult, expected)
        })?;
        Ok((loss, logits))
    }

    /// The first position, through a layer with tanh: `[B, C]`.
    fn pool(&mut self, x: ValueId) -> Result<ValueId> {
        let width = self.config.hidden_size;
        self.layers.scoped("pooler", |layers| {
            let dims = layers.graph.shape(x).dims().to_vec();
            let first = layers.graph.op(Op::Slice { axis: 1, start: 0, len: 1 }, &[x]).one()?;
            let mut first = layers.graph.reshape(first, [dims[0], width])?;
            if layers.p.scheme().parameters == OpScales::Ideal {
                // The other positions get no gradient; all together, one of unit variance.
                let spread = (dims[1] as f64).sqrt();
                let copy = layers.graph.map(&[first], |x| x[0].clone())?;
                first = copy.beta(&[spread]).named("first").one()?;
            }
            let name = "bert.pooler.dense";
            let x = layers.linear(name, None, first, width, Linear::unconstrained())?;
            Ok(tanh(layers.graph, layers.p, x, Constraint::None)?) // (B, C)
        })
    }

    fn next_sentence(&mut self, pooled: ValueId) -> Result<ValueId> {
        let name = "cls.seq_relationship";
        self.layers.readout(name, Some("cls.seq_relationship.bias"), pooled, 2) // (B, 2)
    }

    fn next_sentence_loss(&mut self, x: ValueId, follows: ValueId) -> Result<(ValueId, ValueId)> {
        let pooled = self.pool(x)?; // (B, C)
        let logits = self.next_sentence(pooled)?; // (B, 2)
        let (graph, p) = (&mut *self.layers.graph, self.layers.p);
        let loss = mean_loss(graph, p, self.config, logits, follows, None)?;
        Ok((loss, logits))
    }

    fn classify(&mut self, pooled: ValueId) -> Result<ValueId> {
        let config = self.config;
        let dropout = config.classifier_dropout.unwrap_or(config.hidden_dropout_prob);
        let x = self.layers.dropout(pooled, dropout)?;
        self.layers.readout("classifier", Some("classifier.bias"), x, config.labels())
    }

    fn span(&mut self, x: ValueId) -> Result<ValueId> {
        let ends = self.layers.readout("qa_outputs", Some("qa_outputs.bias"), x, 2)?; // (B, T, 2)
        Ok(self.layers.graph.permute(ends, &[2, 0, 1])?) // (2, B, T)
    }

    /// By which constants the two losses of pre-training scale the gradient of `x`.
    fn head_constants(
        &mut self,
        x: ValueId,
        masked: MaskedTokens,
        follows: ValueId,
    ) -> Result<[f64; 2]> {
        if !self.layers.p.is_scaled() {
            return Ok([1.0; 2]);
        }
        // Built on a copy of the graph, as constants follow from shapes alone.
        let mut graph = self.layers.graph.clone();
        let mut trial = Bert {
            layers: Layers {
                graph: &mut graph,
                params: self.layers.params,
                p: self.layers.p,
                style: self.layers.style,
                training: self.layers.training,
            },
            config: self.config,
            epsilons: self.epsilons.clone(),
        };
        let (masked_loss, _) = trial.masked_loss(x, masked)?;
        let (next_loss, _) = trial.next_sentence_loss(x, follows)?;
        let constant = |loss| gradient_constant(&graph, loss, x).unwrap_or(1.0);
        Ok([constant(masked_loss), constant(next_loss)])
    }

    /// Two copies of `x` for two heads whose gradients come with these constants: the weights
    /// make the constants equal and the squares of the weights sum to 1.
    fn split(&mut self, x: ValueId, [a, b]: [f64; 2]) -> Result<[ValueId; 2]> {
        if !self.layers.p.is_scaled() {
            return Ok([x; 2]);
        }
        let common = a.recip().hypot(b.recip()).recip();
        let mut copy = |constant: f64, name| {
            let copy = self.layers.graph.map(&[x], |x| x[0].clone())?;
            copy.beta(&[common / constant]).named(name).one()
        };
        Ok([copy(a, "predictions_split")?, copy(b, "next_sentence_split")?])
    }
}

/// Sum of token, position and segment embeddings, with a norm of this factor on its epsilon unless
/// the model is pre-norm.
fn embed(
    layers: &mut Layers<'_>,
    config: &BertConfig,
    inputs: BertInputs,
    seq: usize,
    norm: Option<f64>,
) -> Result<ValueId> {
    let (p, width) = (layers.p, config.hidden_size);
    let words = token_table(layers, config)?; // (V, C)
    let words = layers.lookup(inputs.tokens, words)?; // (B, T, C)
    let name = "bert.embeddings.position_embeddings.weight";
    let positions = layers.table(name, config.max_position_embeddings, width)?;
    let positions = layers.first_rows(positions, seq)?; // (T, C)
    let name = "bert.embeddings.token_type_embeddings.weight";
    let segments = layers.table(name, config.type_vocab_size, width)?;
    let segments = match inputs.segments {
        Some(ids) => layers.lookup(ids, segments)?, // (B, T, C)
        None => layers.first_rows(segments, 1)?,    // (1, C)
    };
    // Every table is a cut edge, so each keeps its ideal scale.
    let mut x = sum(layers.graph, p, &[words, positions, segments])?; // (B, T, C)
    if let Some(epsilon) = norm {
        x = layers.norm("bert.embeddings.LayerNorm", None, x, epsilon)?;
    }
    layers.dropout(x, config.hidden_dropout_prob)
}

fn token_table(layers: &mut Layers<'_>, config: &BertConfig) -> Result<ValueId> {
    let name = "bert.embeddings.word_embeddings.weight";
    layers.table(name, config.vocab_size, config.hidden_size)
}
