//! The whole BERT step, with every head, against an independent evaluation in plain loops over
//! dual numbers.

mod support;

use onesigma_models::config::{Activation, Norm, NormPosition};
use onesigma_models::{
    BertConfig, BertInputs, BertTask, MaskedTokens, bert_classification_loss, bert_masked_lm_loss,
    bert_pre_training_loss, bert_span_loss,
};
use onesigma_ops::Parametrisation;
use support::checks::{gradients_are_proportional, the_cpu_agrees};
use support::plain::{Attention, Dual, Plain, Rows, combine, cross_entropy};
use support::{Input, Step, numbers};

const BATCH: usize = 3;
const SEQ: usize = 5;
/// Rows of `[B T]` whose tokens are predicted; the last entry is not counted.
const ROWS: [u32; 5] = [1, 3, 6, 11, 0];
const COUNTED: [u32; 5] = [1, 1, 1, 1, 0];
/// The second sequence has three tokens, the third four.
const MASK: [u32; BATCH * SEQ] = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0];
const SEGMENTS: [u32; BATCH * SEQ] = [0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1];

/// The last sequence of a batch does not count.
const KEPT: [u32; 2 * BATCH] = [1, 1, 0, 1, 1, 0];

struct Bert {
    config: BertConfig,
    task: BertTask,
    /// Segments and padding are given.
    full: bool,
    step: Step,
}

impl Bert {
    fn new(config: BertConfig, task: BertTask, full: bool, p: Parametrisation) -> Self {
        let input = |name, shape: &[usize], values: &[u32]| Input {
            name,
            shape: shape.to_vec(),
            values: values.to_vec(),
        };
        let per_token = [BATCH, SEQ];
        let vocabulary = config.vocab_size as u32;
        let mut inputs = vec![
            input("tokens", &per_token, &numbers(BATCH * SEQ, vocabulary, 1000)),
            input("segments", &per_token, &SEGMENTS),
            input("mask", &per_token, &MASK),
        ];
        let classes = if task == BertTask::PreTraining { 2 } else { config.labels() as u32 };
        let n = ROWS.len();
        inputs.extend([
            input("rows", &[n], &ROWS),
            input("targets", &[n], &numbers(n, vocabulary, 1001)),
            input("counted", &[n], &COUNTED),
            input("labels", &[BATCH], &numbers(BATCH, classes, 1002)),
            input("ends", &[2, BATCH], &numbers(2 * BATCH, SEQ as u32, 1003)),
            input("counted_labels", &[BATCH], &KEPT[..BATCH]),
            input("counted_ends", &[2, BATCH], &KEPT),
        ]);
        let specs = config.parameters(task, p).expect("a possible model");
        let step = Step::new(specs, p, inputs, false, |graph, params, x| {
            let inputs = BertInputs {
                tokens: x[0],
                segments: full.then_some(x[1]),
                mask: full.then_some(x[2]),
            };
            let masked = MaskedTokens { rows: x[3], targets: x[4], counted: x[5] };
            let c = &config;
            let out = match task {
                BertTask::MaskedLm => {
                    bert_masked_lm_loss(graph, params, c, p, inputs, masked, true)
                }
                BertTask::PreTraining => {
                    bert_pre_training_loss(graph, params, c, p, inputs, masked, x[6], true)
                }
                BertTask::Classification => bert_classification_loss(
                    graph,
                    params,
                    c,
                    p,
                    inputs,
                    x[6],
                    full.then_some(x[8]),
                    true,
                ),
                BertTask::Span => {
                    bert_span_loss(graph, params, c, p, inputs, x[7], full.then_some(x[9]), true)
                }
                other => panic!("{other:?} has no loss"),
            };
            Ok(out?.loss)
        });
        Self { config, task, full, step }
    }

    fn input(&self, name: &str) -> &[u32] {
        let found = self.step.inputs.iter().find(|input| input.name == name);
        &found.expect("an input").values
    }

    /// Hidden states of all sequences.
    fn hidden(&self, plain: &Plain) -> Rows {
        let config = &self.config;
        let (width, layers) = (config.hidden_size, config.num_hidden_layers);
        let pre = config.norm_position == NormPosition::Pre;
        let mut all = Rows::new();
        for b in 0..BATCH {
            let own = b * SEQ..(b + 1) * SEQ;
            let ids = &self.input("tokens")[own.clone()];
            let mut x: Rows = (0..SEQ)
                .map(|t| {
                    let segment = if self.full { SEGMENTS[own.start + t] as usize } else { 0 };
                    let parts =
                        [("word", ids[t] as usize), ("position", t), ("token_type", segment)].map(
                            |(kind, n)| {
                                plain.row(
                                    &format!("bert.embeddings.{kind}_embeddings.weight"),
                                    n,
                                    width,
                                )
                            },
                        );
                    let sum = |c: usize| (parts[0][c] + parts[1][c] + parts[2][c]) * plain.scale(3);
                    let x: Vec<Dual> = (0..width).map(sum).collect();
                    if pre { x } else { plain.norm("bert.embeddings.LayerNorm", &x) }
                })
                .collect();
            for layer in 0..layers {
                let prefix = format!("bert.encoder.layer.{layer}");
                let name = |word: &str| format!("{prefix}.{word}");
                let attention = Attention {
                    causal: false,
                    heads: config.num_attention_heads,
                    kv_heads: config.num_attention_heads,
                    mask: self.full.then_some(&MASK[own.clone()]),
                    rotary: None,
                    names: ["self.query", "self.key", "self.value", "output.dense"]
                        .map(|word| name(&format!("attention.{word}"))),
                };
                let mlp = [name("intermediate.dense"), name("output.dense")];
                let norms = match config.norm_position {
                    NormPosition::Pre => ["attention.ln", "ln"],
                    _ => ["attention.output.LayerNorm", "output.LayerNorm"],
                };
                for (n, norm) in norms.into_iter().enumerate() {
                    let norms = |x: Rows| -> Rows {
                        x.iter().map(|x| plain.norm(&name(norm), x)).collect()
                    };
                    let mut y = x.clone();
                    if pre {
                        y = norms(y);
                    }
                    y = match n {
                        0 => plain.attention(&attention, &y),
                        _ => plain.mlp([&mlp[0], "", &mlp[1]], &y, config.hidden_act),
                    };
                    combine(&mut x, &y, plain.factors(2 * layer + n, layers, None));
                    if !pre {
                        x = norms(x);
                    }
                }
            }
            if pre {
                x = x.iter().map(|x| plain.norm("bert.encoder.ln", x)).collect();
            }
            all.extend(x);
        }
        all
    }

    fn leaves_out(&self) -> bool {
        self.full && self.task != BertTask::PreTraining
    }

    fn readout(&self, plain: &Plain, weight: &str, bias: &str, x: &[Dual]) -> Vec<Dual> {
        let scale = if plain.unit { 1.0 / x.len() as f64 } else { 1.0 };
        plain.affine(weight, bias, x, scale)
    }

    fn masked_loss(&self, plain: &Plain, x: &[Vec<Dual>]) -> Dual {
        let name = "cls.predictions.transform";
        let k = plain.activation_scale(self.config.hidden_act);
        let tied = plain.find("cls.predictions.decoder.weight").is_none();
        let weight = match tied {
            true => "bert.embeddings.word_embeddings.weight",
            false => "cls.predictions.decoder.weight",
        };
        let (mut sum, mut count) = (Dual::ZERO, 0.0);
        for ((&row, &target), &counted) in
            ROWS.iter().zip(self.input("targets")).zip(self.input("counted"))
        {
            if counted == 0 {
                continue;
            }
            let x = &x[row as usize];
            let x = plain.linear(&format!("{name}.dense"), x, plain.scale(x.len()));
            let x: Vec<Dual> =
                x.into_iter().map(|x| x.activate(self.config.hidden_act) * k).collect();
            let x = plain.norm(&format!("{name}.LayerNorm"), &x);
            let logits = self.readout(plain, weight, "cls.predictions.bias", &x);
            sum = sum + cross_entropy(&logits, target as usize);
            count += 1.0;
        }
        sum * (1.0 / count)
    }

    fn pooled_loss(&self, plain: &Plain, x: &[Vec<Dual>], head: &str) -> Dual {
        let mut sum = Dual::ZERO;
        let sequences = if self.leaves_out() { BATCH - 1 } else { BATCH };
        for (x, &label) in x.iter().step_by(SEQ).zip(self.input("labels")).take(sequences) {
            // 1 / sqrt(E[tanh(z)^2]) for a normal z.
            let k = if plain.unit { 1.592_537_419_7 } else { 1.0 };
            let x = plain.linear("bert.pooler.dense", x, plain.scale(x.len()));
            let x: Vec<Dual> = x.into_iter().map(|x| x.tanh() * k).collect();
            let (weight, bias) = (format!("{head}.weight"), format!("{head}.bias"));
            sum = sum + cross_entropy(&self.readout(plain, &weight, &bias, &x), label as usize);
        }
        sum * (1.0 / sequences as f64)
    }

    fn span_loss(&self, plain: &Plain, x: &[Vec<Dual>]) -> Dual {
        let logits: Rows = x
            .iter()
            .map(|x| self.readout(plain, "qa_outputs.weight", "qa_outputs.bias", x))
            .collect();
        let sequences = if self.leaves_out() { BATCH - 1 } else { BATCH };
        let mut sum = Dual::ZERO;
        for (n, &target) in self.input("ends").iter().enumerate() {
            let (end, b) = (n / BATCH, n % BATCH);
            if b >= sequences {
                continue;
            }
            let row: Vec<Dual> = (0..SEQ).map(|t| logits[b * SEQ + t][end]).collect();
            sum = sum + cross_entropy(&row, target as usize);
        }
        sum * (1.0 / (2 * sequences) as f64)
    }

    fn loss(&self, parameter: usize, by: f64, direction: &[f64]) -> Dual {
        let kind = (Norm::LayerNorm, self.config.layer_norm_eps);
        let plain = Plain::new(&self.step, kind, parameter, by, direction);
        let x = self.hidden(&plain);
        match self.task {
            BertTask::MaskedLm => self.masked_loss(&plain, &x),
            BertTask::PreTraining => {
                self.masked_loss(&plain, &x) + self.pooled_loss(&plain, &x, "cls.seq_relationship")
            }
            BertTask::Classification => self.pooled_loss(&plain, &x, "classifier"),
            BertTask::Span => self.span_loss(&plain, &x),
            other => panic!("{other:?} has no loss"),
        }
    }
}

fn base() -> BertConfig {
    BertConfig {
        vocab_size: 13,
        hidden_size: 6,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 10,
        max_position_embeddings: 7,
        layer_norm_eps: 1e-5,
        initializer_range: 0.5,
        num_labels: Some(3),
        ..BertConfig::default()
    }
}

fn all() -> Vec<(String, Bert)> {
    let pre = BertConfig { norm_position: NormPosition::Pre, ..base() };
    let silu = BertConfig { hidden_act: Activation::Silu, ..base() };
    let tied = |config: &BertConfig, tied| BertConfig {
        tie_word_embeddings: Some(tied),
        ..config.clone()
    };
    let mut models = Vec::new();
    for p in [Parametrisation::Regular, Parametrisation::UMup] {
        let mut add = |name: &str, config: BertConfig, task, full| {
            models.push((format!("{name}, {task:?}, {p:?}"), Bert::new(config, task, full, p)));
        };
        use BertTask::{Classification, MaskedLm, PreTraining, Span};
        add("untied", tied(&base(), false), MaskedLm, true);
        add("tied", tied(&base(), true), MaskedLm, true);
        add("without segments and padding", tied(&base(), true), MaskedLm, false);
        add("pre-norm", tied(&pre, true), MaskedLm, true);
        add("silu", tied(&silu, false), MaskedLm, true);
        add("untied", tied(&base(), false), PreTraining, true);
        add("tied", tied(&base(), true), PreTraining, true);
        add("post-norm", base(), Classification, true);
        add("pre-norm", pre.clone(), Classification, true);
        add("post-norm", base(), Span, true);
        add("pre-norm", pre.clone(), Span, false);
    }
    models
}

#[test]
fn every_gradient_is_the_true_one_times_a_constant() {
    for (title, bert) in all() {
        let evaluate = |parameter, by, along: &[f64]| bert.loss(parameter, by, along);
        let constants = gradients_are_proportional(&title, &bert.step, &evaluate);
        for (spec, constant) in bert.step.specs.iter().zip(constants) {
            // Softmax does not see a shift of all its logits: of one query's for all keys, or of
            // one end's for all positions, which the last bias before the readout makes as well.
            let last = match bert.config.norm_position {
                NormPosition::Pre => "encoder.ln.bias",
                _ => "layer.1.output.LayerNorm.bias",
            };
            let of_ends = ["qa_outputs.bias", last];
            let no_gradient = spec.name.ends_with("key.bias")
                || bert.task == BertTask::Span && of_ends.iter().any(|n| spec.name.ends_with(n));
            assert_eq!(constant.is_none(), no_gradient, "{title} {}", spec.name);
        }
    }
}

#[test]
fn the_cpu_agrees_with_f64_in_f32() {
    for (title, bert) in all() {
        the_cpu_agrees(&title, &bert.step);
    }
}
