//! The training loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use onesigma_backend::Span;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::batch::{Batch, EvaluationBatches, TrainingBatches};
use crate::checkpoint::{Checkpoint, State};
use crate::config::Config;
use crate::corpus::Corpus;
use crate::generate::{NextToken, generate_shifting};
use crate::generator::Generator;
use crate::loader::Loader;
use crate::run_dir::RunDir;
use crate::schedule::Schedule;
use crate::session::{Evaluation, Session};
use crate::task::Data;
use crate::telemetry::{End, Event, Observer, Record, float_or_null};
use crate::text::Tokenizer;

mod best;
mod recording;

use best::Best;
use recording::Recording;

/// Batches that the loader keeps ready beyond those of one call of the engine.
const READY_BATCHES: usize = 4;

/// Time that one call of the engine should take at most: nothing is heard from a run meanwhile.
const CALL: Duration = Duration::from_millis(500);

/// A sample that outgrows the context forgets this part of it at once, so that the cache serves for
/// most tokens.
const SAMPLE_FORGETS: usize = 4;

/// File name of the checkpoint with the lowest validation loss.
pub const BEST: &str = "best.safetensors";

/// What a finished run leaves in `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the recipe.
    pub recipe: String,
    /// Seed of the run.
    pub seed: u64,
    /// Steps taken, over all sittings.
    pub steps: u64,
    /// Elements of all parameters.
    pub parameters: usize,
    /// Loss of the last step, in nats per token.
    #[serde(deserialize_with = "float_or_null")]
    pub training_loss: f32,
    /// Loss of the last evaluation, in nats per token.
    #[serde(deserialize_with = "float_or_null")]
    pub validation_loss: f32,
    /// Share of right predictions in the last evaluation, if the task has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
    /// The lowest loss of all evaluations, and the steps before it.
    #[serde(default)]
    pub best: Option<(u64, f32)>,
    /// Why the run ended.
    #[serde(default = "complete")]
    pub end: End,
    /// Tokens trained on per second, in this sitting, without evaluations.
    pub tokens_per_s: f64,
    /// Bytes of the arena that the program was planned into.
    pub arena_bytes: usize,
    /// Bytes that the engine allocated.
    pub allocated_bytes: usize,
    /// Largest resident memory of the process so far, where the system tells.
    pub resident_bytes: Option<u64>,
    /// Share of gradient elements that the recipe's formats flush to zero, if it was measured.
    pub flushed_gradients: Option<f64>,
    /// Identity of the text.
    pub corpus_sha256: String,
}

fn complete() -> End {
    End::Complete
}

/// Drives a [`Session`] over a corpus. `onesigma::setup::session` has a whole run as its example.
#[derive(Debug)]
pub struct Trainer {
    session: Session,
    config: Config,
    schedule: Schedule,
    training: Box<dyn TrainingBatches>,
    validation: Box<dyn EvaluationBatches>,
    corpus_sha256: String,
    steps_done: u64,
    last_loss: f32,
    last_validation: Option<(u64, Evaluation)>,
    best: Best,
    tokenizer: Option<Tokenizer>,
    generator: Option<Generator>,
    recording: Option<Recording>,
    training_time: Duration,
    steps_this_sitting: u64,
    /// Steps that fit into [`CALL`], as far as is known.
    steps_in_time: u64,
    warned: bool,
}

impl Trainer {
    /// A trainer of a byte-level language model at step 0 with freshly initialised state.
    /// `default_lr` is the recipe's own peak.
    ///
    /// # Errors
    /// [`Error::DataTooShort`] for a corpus with less than one sequence in a split;
    /// [`Error::Setting`]; those of the backend.
    pub fn new(
        session: Session,
        config: &Config,
        default_lr: f64,
        corpus: &Corpus,
    ) -> Result<Self, Error> {
        Self::with_data(session, config, default_lr, Data::bytes(config, corpus)?)
    }

    /// A trainer of any task at step 0 with freshly initialised state.
    ///
    /// # Errors
    /// [`Error::Setting`]; those of the backend.
    pub fn with_data(
        mut session: Session,
        config: &Config,
        default_lr: f64,
        data: Data,
    ) -> Result<Self, Error> {
        config.validate()?;
        session.init(config.seed)?;
        Ok(Self {
            session,
            config: config.clone(),
            schedule: config.schedule(default_lr),
            training: data.training,
            validation: data.validation,
            corpus_sha256: data.sha256,
            steps_done: 0,
            last_loss: f32::NAN,
            last_validation: None,
            best: Best::default(),
            tokenizer: None,
            generator: None,
            recording: None,
            training_time: Duration::ZERO,
            steps_this_sitting: 0,
            steps_in_time: 1,
            warned: false,
        })
    }

    /// Gives the run a tokeniser, which samples of text need.
    #[must_use]
    pub fn with_tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// Gives the run what writes samples of text with a cache of keys and values; without it every
    /// token evaluates a whole sequence. It is for the same model, and its parameters are replaced
    /// before it writes.
    #[must_use]
    pub fn with_generator(mut self, generator: Generator) -> Self {
        self.generator = Some(generator);
        self
    }

    /// Records the time of every op in `steps` steps of this sitting, once it is warm; for
    /// [`recorded`](Self::recorded). False if the engine cannot.
    pub fn record(&mut self, steps: u64) -> bool {
        if !self.session.record() {
            return false;
        }
        self.session.take_spans();
        let left = self.config.steps.saturating_sub(self.steps_done);
        self.recording = Some(Recording::new(left, steps));
        true
    }

    /// What was recorded, and in how many steps.
    pub fn recorded(&mut self) -> Option<(Vec<Span>, u64)> {
        self.recording.take().map(Recording::into_spans)
    }

    /// The session, for evaluation and generation.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Steps taken.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// The batch of the first pass of a step.
    pub fn batch(&mut self, step: u64) -> Batch {
        self.training.batch(step * self.config.accumulate as u64)
    }

    /// Continues from a checkpoint.
    ///
    /// # Errors
    /// [`Error::CheckpointMismatch`] if it is of another text, configuration or program.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let State { step, config, corpus_sha256 } = &checkpoint.state;
        let mismatch = |what: &str, found: &str, expected: &str| Error::CheckpointMismatch {
            what: what.into(),
            found: found.into(),
            expected: expected.into(),
        };
        if *corpus_sha256 != self.corpus_sha256 {
            return Err(mismatch("text (SHA-256)", corpus_sha256, &self.corpus_sha256));
        }
        // As this version reads it: what an older one left out has its default.
        let found: Option<Config> = serde_json::from_value(config.clone()).ok();
        if !found.is_some_and(|found| self.config.continues(&found)) {
            let own = self.config_json().to_string();
            return Err(mismatch("configuration", &config.to_string(), &own));
        }
        if *step > self.config.steps {
            return Err(Error::Setting {
                name: "--steps",
                given: self.config.steps.to_string(),
                expected: format!("at least the {step} that the checkpoint has taken"),
            });
        }
        self.session.restore(&checkpoint.tensors)?;
        self.steps_done = *step;
        Ok(())
    }

    /// The state after the steps taken so far.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        let state = State {
            step: self.steps_done,
            config: self.config_json(),
            corpus_sha256: self.corpus_sha256.clone(),
        };
        Ok(Checkpoint { state, tensors: self.session.state()? })
    }

    /// Mean loss, and accuracy if the task has one, on the validation split.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn evaluate(&mut self) -> Result<Evaluation, Error> {
        let validation = &self.validation;
        self.session.measure((0..validation.count()).map(|index| validation.batch(index)))
    }

    /// Takes the steps that are left, evaluates, samples and saves as configured, and at the end;
    /// stops early, with a checkpoint, once `stop` is set or patience is over.
    ///
    /// # Errors
    /// [`Error::Io`] if metrics or a checkpoint cannot be written; those of loader and backend.
    pub fn run(
        &mut self,
        run: &mut RunDir,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Summary, Error> {
        let total = self.config.steps;
        tracing::info!(first_step = self.steps_done, total, "training starts");
        observer.event(&Event::Started {
            first_step: self.steps_done,
            total_steps: total,
            tokens_per_step: self.config.tokens_per_step(),
        });
        if self.steps_done > 0 {
            self.best = Best::of(&RunDir::metrics(run.root())?, self.config.min_improvement);
        }
        let accumulate = self.config.accumulate as u64;
        let ahead = READY_BATCHES + (self.config.steps_per_call * accumulate).min(64) as usize;
        let first_pass = self.steps_done * accumulate;
        let mut loader = Loader::start(self.training.copy(), first_pass, ahead)?;
        let mut saved_at = None;
        let end = loop {
            if self.best.is_over(self.config.patience) {
                break End::EarlyStop;
            }
            if self.steps_done >= total {
                break End::Complete;
            }
            if stop.load(Ordering::Relaxed) {
                break End::Interrupted;
            }
            self.block(&mut loader, run, observer)?;
            let done = self.steps_done;
            if done == total || is_due(done, self.config.eval_every) {
                self.evaluate_and_log(run, observer)?;
            }
            if is_due(done, self.config.sample_every) {
                self.sample_and_log(run, observer)?;
            }
            if is_due(done, self.config.save_every) {
                self.save(run, observer)?;
                saved_at = Some(done);
            }
        };
        // Interrupted, or resumed after the last step. An evaluation that is not due would count
        // against the patience of the run that continues: it is measured and not noted.
        if self.last_validation.is_none_or(|(step, _)| step != self.steps_done) {
            let found = self.evaluate()?;
            self.last_validation = Some((self.steps_done, found));
        }
        if saved_at != Some(self.steps_done) {
            self.save(run, observer)?;
        }
        tracing::info!(steps = self.steps_done, ?end, "training ends");
        observer.event(&Event::Finished { steps: self.steps_done, end });
        Ok(self.summary(end))
    }

    /// Steps up to the next evaluation, checkpoint or end, at most those of one call.
    fn block(
        &mut self,
        loader: &mut Loader,
        run: &mut RunDir,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let config = &self.config;
        let done = self.steps_done;
        let steps = [config.eval_every, config.save_every, config.sample_every]
            .into_iter()
            .filter(|&every| every > 0)
            .map(|every| every - done % every)
            .chain([config.steps_per_call, config.steps - done, self.steps_in_time])
            .chain(self.recording.as_ref().and_then(Recording::until_border))
            .min()
            .unwrap_or(1);
        let rates: Vec<f32> = (done..done + steps).map(|step| self.schedule.rate(step)).collect();
        let passes = (0..steps * config.accumulate as u64)
            .map(|_| loader.next_batch())
            .collect::<Result<Vec<_>, _>>()?;
        let is_recorded = self.recording.as_ref().is_some_and(Recording::is_on);
        if is_recorded {
            self.session.record();
        }
        let started = Instant::now();
        let losses = self.session.train(done, &rates, &passes)?;
        let elapsed = started.elapsed();
        if let Some(recording) = &mut self.recording {
            let spans = if is_recorded { self.session.take_spans() } else { Vec::new() };
            recording.note(steps, spans);
        }
        let fit = CALL.as_secs_f64() / (elapsed.as_secs_f64() / steps as f64).max(1e-9);
        self.steps_in_time = (fit as u64).clamp(1, 1 << 20);
        self.steps_done += steps;
        if !is_recorded {
            // While they are recorded, ops run one by one.
            self.training_time += elapsed;
            self.steps_this_sitting += steps;
        }
        let norms = self.session.grad_norms();
        let records: Vec<Record> = (done..)
            .zip(losses.iter().zip(&rates))
            .enumerate()
            .map(|(index, (step, (&loss, &rate)))| {
                let grad_norm = norms.get(index).copied().filter(|norm| norm.is_finite());
                Record::Train { step, loss, rate, grad_norm }
            })
            .collect();
        run.log(&records)?;
        for record in records {
            observer.event(&Event::Metric(record));
        }
        self.last_loss = losses.last().copied().unwrap_or(f32::NAN);
        if !self.last_loss.is_finite() && !self.warned {
            self.warned = true;
            observer.event(&Event::Warning(format!(
                "the loss is {} by step {}; lower the learning rate or choose a wider recipe",
                self.last_loss,
                self.steps_done - 1
            )));
        }
        let tokens = (steps * self.config.tokens_per_step()) as f64;
        let tokens_per_s = tokens / elapsed.as_secs_f64().max(1e-9);
        observer.event(&Event::Metric(Record::Speed { step: self.steps_done, tokens_per_s }));
        Ok(())
    }

    fn evaluate_and_log(
        &mut self,
        run: &mut RunDir,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let step = self.steps_done;
        let evaluation = self.evaluate()?;
        let Evaluation { loss, accuracy } = evaluation;
        self.last_validation = Some((step, evaluation));
        let records = [
            Record::Evaluation { step, loss, accuracy },
            Record::Speed { step, tokens_per_s: self.tokens_per_s() },
        ];
        run.log(&records)?;
        tracing::debug!(step, loss, "evaluated");
        observer.event(&Event::Metric(Record::Evaluation { step, loss, accuracy }));
        if self.best.note(step, loss, self.config.min_improvement) && self.config.keep_best {
            let path = run.checkpoints().join(BEST);
            self.checkpoint()?.write(&path)?;
            observer.event(&Event::Saved { step, path });
        }
        Ok(())
    }

    /// Lets the model continue the configuration's prompt.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; those of the backend.
    pub fn sample(&mut self) -> Result<String, Error> {
        let tokenizer = self.tokenizer.as_ref().unwrap_or(&Tokenizer::Bytes);
        let mut tokens = tokenizer.encode(&self.config.sample_prompt)?;
        let prompt = tokens.clone();
        let (count, sampling) = (self.config.sample_tokens, self.config.sampling());
        let model: &mut dyn NextToken = match &mut self.generator {
            Some(generator) => {
                generator.load(&self.session.parameters()?)?;
                generator
            }
            None => &mut self.session,
        };
        let shift = (model.context() / SAMPLE_FORGETS).max(1);
        generate_shifting(model, &prompt, count, shift, sampling, |token| {
            tokens.push(token);
            true
        })?;
        tokenizer.decode(&tokens)
    }

    fn sample_and_log(
        &mut self,
        run: &mut RunDir,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let record = Record::Sample { step: self.steps_done, text: self.sample()? };
        run.log(std::slice::from_ref(&record))?;
        observer.event(&Event::Metric(record));
        Ok(())
    }

    fn save(&mut self, run: &mut RunDir, observer: &mut dyn Observer) -> Result<(), Error> {
        // Metrics first: a checkpoint on the disk promises the lines before it.
        run.sync()?;
        let path = self.checkpoint()?.save(&run.checkpoints(), self.config.keep)?;
        tracing::debug!(step = self.steps_done, path = %path.display(), "saved");
        observer.event(&Event::Saved { step: self.steps_done, path });
        Ok(())
    }

    fn tokens_per_s(&self) -> f64 {
        let tokens = self.steps_this_sitting * self.config.tokens_per_step();
        match self.training_time.as_secs_f64() {
            0.0 => 0.0,
            seconds => tokens as f64 / seconds,
        }
    }

    fn config_json(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).unwrap_or_default()
    }

    fn summary(&self, end: End) -> Summary {
        let report = self.session.report();
        Summary {
            recipe: self.config.recipe.clone(),
            seed: self.config.seed,
            steps: self.steps_done,
            parameters: self.session.program().parameter_count,
            training_loss: self.last_loss,
            validation_loss: self.last_validation.map_or(f32::NAN, |(_, found)| found.loss),
            validation_accuracy: self.last_validation.and_then(|(_, found)| found.accuracy),
            best: self.best.lowest,
            end,
            tokens_per_s: self.tokens_per_s(),
            arena_bytes: self.session.program().program.arena_bytes(),
            allocated_bytes: report.allocated_bytes,
            resident_bytes: peak_resident_bytes(),
            flushed_gradients: None,
            corpus_sha256: self.corpus_sha256.clone(),
        }
    }
}

fn is_due(done: u64, every: u64) -> bool {
    every > 0 && done.is_multiple_of(every)
}

/// Largest resident memory of this process so far, in bytes; `None` where the system does not
/// tell.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
