//! The BERT of `onesigma-models` with its tasks, as training sees it.

use onesigma_graph::{Graph, ReduceKind, Role, ValueId};
use onesigma_models::{
    BertConfig, BertInputs, BertTask, MaskedTokens, bert_classification_loss, bert_masked_lm_loss,
    bert_pre_training_loss, bert_span_loss, hits,
};
use onesigma_ops::Parametrisation;

use crate::model::{parameters, params};
use crate::program::{Inputs, Measures, Model, ModelInput, Parameter, Settings};
use crate::rates::Rates;
use crate::task::{Task, predictions};
use crate::{Error, Result};

/// A BERT with the head of its task.
#[derive(Clone, Debug)]
pub struct Bert {
    config: BertConfig,
    task: BertTask,
    parametrisation: Parametrisation,
    mask_probability: f64,
    parameters: Vec<Parameter>,
}

/// The head of a task.
///
/// # Errors
/// [`Error::Setting`] for a task that BERT has no head for.
pub fn head(task: Task) -> Result<BertTask> {
    match task {
        Task::MaskedLm => Ok(BertTask::MaskedLm),
        Task::PreTraining => Ok(BertTask::PreTraining),
        Task::Classification => Ok(BertTask::Classification),
        Task::Span => Ok(BertTask::Span),
        Task::LanguageModel => Err(Error::Setting {
            name: "--task",
            given: task.name().into(),
            expected: "masked-lm, pre-training, classification or span for model type bert".into(),
        }),
    }
}

impl Bert {
    /// The model of a configuration; `mask_probability` is the share of masked tokens, for the
    /// tasks that have them.
    ///
    /// # Errors
    /// [`Error::Model`] for an impossible size; [`Error::Setting`].
    pub fn new(
        config: BertConfig,
        task: Task,
        parametrisation: Parametrisation,
        mask_probability: f64,
    ) -> Result<Self> {
        let task = head(task)?;
        let specs = config.parameters(task, parametrisation)?;
        let parameters = parameters(specs, parametrisation, config.num_hidden_layers);
        Ok(Self { config, task, parametrisation, mask_probability, parameters })
    }

    /// The same model with factors on its learning rates.
    #[must_use]
    pub fn with_rates(mut self, rates: &Rates) -> Self {
        rates.apply(&mut self.parameters);
        self
    }

    fn predictions(&self, settings: &Settings) -> usize {
        settings.batch * predictions(settings.seq, self.mask_probability)
    }

    fn has_masks(&self) -> bool {
        matches!(self.task, BertTask::MaskedLm | BertTask::PreTraining)
    }
}

impl Model for Bert {
    fn parameters(&self) -> Result<Vec<Parameter>> {
        Ok(self.parameters.clone())
    }

    fn targets(&self, settings: &Settings) -> Vec<usize> {
        match self.task {
            BertTask::Classification => vec![settings.batch],
            BertTask::Span => vec![2, settings.batch],
            _ => vec![self.predictions(settings)],
        }
    }

    fn more_inputs(&self, settings: &Settings) -> Vec<ModelInput> {
        let input = |name, shape: &[usize]| ModelInput { name, shape: shape.to_vec() };
        let tokens = [settings.batch, settings.seq];
        let targets = self.targets(settings);
        if self.has_masks() {
            let mut inputs = vec![input("rows", &targets), input("counted_targets", &targets)];
            if self.task == BertTask::PreTraining {
                inputs.extend([input("segments", &tokens), input("follows", &tokens[..1])]);
            }
            return inputs;
        }
        vec![input("segments", &tokens), input("mask", &tokens), input("counted_targets", &targets)]
    }

    fn tells_hits(&self) -> bool {
        true
    }

    fn generates(&self) -> bool {
        false
    }

    fn loss(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        inputs: Inputs<'_>,
        training: bool,
    ) -> Result<Measures> {
        let mut params = params(&self.parameters, parameters);
        let (config, p, params) = (&self.config, self.parametrisation, &mut params);
        let Inputs { tokens, targets, more } = inputs;
        let (out, counted) = if self.has_masks() {
            let masked = MaskedTokens { rows: more[0], targets, counted: more[1] };
            let out = if self.task == BertTask::PreTraining {
                let bert = BertInputs { tokens, segments: Some(more[2]), mask: None };
                bert_pre_training_loss(graph, params, config, p, bert, masked, more[3], training)?
            } else {
                let bert = BertInputs { tokens, segments: None, mask: None };
                bert_masked_lm_loss(graph, params, config, p, bert, masked, training)?
            };
            (out, more[1])
        } else {
            let bert = BertInputs { tokens, segments: Some(more[0]), mask: Some(more[1]) };
            let counted = Some(more[2]);
            let out = if self.task == BertTask::Span {
                bert_span_loss(graph, params, config, p, bert, targets, counted, training)?
            } else {
                bert_classification_loss(
                    graph, params, config, p, bert, targets, counted, training,
                )?
            };
            (out, more[2])
        };
        let mut measures = Measures::from(out.loss);
        if !training {
            measures.hits = Some(self.count_hits(graph, out.logits, targets, counted)?);
        }
        Ok(measures)
    }

    fn next_logits(
        &self,
        _graph: &mut Graph,
        _parameters: &[ValueId],
        _tokens: ValueId,
        _position: ValueId,
    ) -> Result<ValueId> {
        Err(Error::Setting {
            name: "model_type",
            given: "bert".into(),
            expected: "gpt2: BERT sees both sides and predicts no next token".into(),
        })
    }
}

impl Bert {
    /// How many predictions that count are right, and how many count. A span is right if both of
    /// its ends are.
    fn count_hits(
        &self,
        graph: &mut Graph,
        logits: ValueId,
        targets: ValueId,
        counted: ValueId,
    ) -> Result<[ValueId; 2]> {
        let hits = hits(graph, logits, targets)?;
        let (mut right, mut share) = (hits, 1.0);
        if self.task == BertTask::Span {
            right = graph
                .reduce(ReduceKind::Sum, &[hits], &[0], true, |x| x[0].clone() * 0.5)?
                .named("both_ends")
                .role(Role::Statistic)
                .one()?;
            share = 0.5;
        }
        let axes: Vec<isize> = (0..graph.shape(targets).rank() as isize).collect();
        let mut sum = |name, inputs: &[ValueId], whole: bool| {
            graph
                .reduce(ReduceKind::Sum, inputs, &axes, false, |x| {
                    let value =
                        if whole { x[1].less_equal(0.75).select(0.0, share) } else { share.into() };
                    x[0].equal(0.0).select(0.0, value)
                })?
                .named(name)
                .role(Role::Statistic)
                .one()
        };
        Ok([sum("hits", &[counted, right], true)?, sum("counted", &[counted], false)?])
    }
}
