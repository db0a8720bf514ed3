//! The training program: a model's forward pass made into entries over shared state.
//!
//! | entry | reads | writes |
//! | --- | --- | --- |
//! | `init` | `seed`, `step` | every state |
//! | `train_step` | `tokens`, `targets`, `lr`, `step`, state | state, `loss`, `grad_norm` |
//! | `accumulate` | `tokens`, `targets`, `step`, state | gradient sums, `loss` |
//! | `apply` | `lr`, `step`, state | state, `grad_norm`, gradient sums back to zero |
//! | `eval_step` | `tokens`, `targets`, parameters | `loss`, `hits`, `counted` |
//! | `generate_step` | `prompt`, `position`, parameters | `next_logits` |
//!
//! `grad_norm` is there if gradients are clipped.
//! A model may have further inputs beside `tokens` and `targets`; `hits` and `counted` are there if
//! it tells right predictions from wrong ones, `generate_step` if it predicts a next token.
//!
//! With one pass per optimiser step there is `train_step`, with several `accumulate` and `apply`.
//! [`build_measuring`] makes a second program that looks at the gradients of the same model,
//! [`build_generation`] one that writes text with a cache.

use onesigma_graph::expr::{Expr, Term};
use onesigma_graph::passes::apply_recipe::apply_recipe;
use onesigma_graph::passes::clean::clean;
use onesigma_graph::passes::fuse_maps::fuse_maps;
use onesigma_graph::passes::legalise::{Rewrite, Supports, legalise};
use onesigma_graph::recipe::{Recipe, Scaling};
use onesigma_graph::{
    DType, EntryId, Graph, Module, Op, Program, ReduceKind, Role, Shape, SlotId, SlotKind, ValueId,
    autodiff,
};
use onesigma_models::{CacheStep, Cached, ParamSpec};

use crate::Result;
use crate::memory::MemoryFit;
use crate::optimizer::{Optimizer, Rule, StepScalars};

mod clip;
mod generation;
mod measure;
mod prove;
mod step;

pub use generation::{GenerationProgram, WritingSlots, build_generation};
pub use measure::{Measured, MeasuringProgram, build_measuring};
pub use prove::{Proven, prove};
pub use step::{StepGraph, build_step};

/// What training needs to know of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Name, shape and start.
    pub spec: ParamSpec,
    /// Its own factor on the learning rate.
    pub lr_scale: f64,
}

/// An input of integers that the host writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInput {
    /// Name of its slot.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// What a model reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Token ids `U32 [batch, seq]`.
    pub tokens: ValueId,
    /// What is to be predicted, `U32` in the shape of [`Model::targets`].
    pub targets: ValueId,
    /// The inputs of [`Model::more_inputs`].
    pub more: &'a [ValueId],
}

/// What a forward pass gives.
#[derive(Clone, Copy, Debug)]
pub struct Measures {
    /// Mean loss in nats, a scalar.
    pub loss: ValueId,
    /// How many predictions are right and how many count, scalars of role statistic.
    pub hits: Option<[ValueId; 2]>,
}

impl From<ValueId> for Measures {
    fn from(loss: ValueId) -> Self {
        Self { loss, hits: None }
    }
}

/// A model with its task, as training sees it. Parameters are passed in the order of
/// [`Model::parameters`].
pub trait Model {
    /// Its parameters, in a fixed order.
    ///
    /// # Errors
    /// For sizes that make no model.
    fn parameters(&self) -> Result<Vec<Parameter>>;

    /// Shape of the targets: `[batch, seq]` for a language model.
    fn targets(&self, settings: &Settings) -> Vec<usize> {
        vec![settings.batch, settings.seq]
    }

    /// Further inputs; none for a language model.
    fn more_inputs(&self, settings: &Settings) -> Vec<ModelInput> {
        let _ = settings;
        Vec::new()
    }

    /// Whether [`Measures::hits`] are given.
    fn tells_hits(&self) -> bool {
        false
    }

    /// Whether [`next_logits`](Self::next_logits) can be asked for.
    fn generates(&self) -> bool {
        true
    }

    /// Appends forward pass and loss. With `training`, dropout is active and hits are not asked
    /// for.
    ///
    /// # Errors
    /// Those of building the nodes.
    fn loss(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        inputs: Inputs<'_>,
        training: bool,
    ) -> Result<Measures>;

    /// Appends the forward pass without dropout: `tokens U32 [1, seq]` and `position U32 [1]` to
    /// the logits `[1, vocabulary]` of the token after that position.
    ///
    /// # Errors
    /// Those of building the nodes.
    fn next_logits(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        tokens: ValueId,
        position: ValueId,
    ) -> Result<ValueId>;

    /// [`next_logits`](Self::next_logits) with keys and values of every position; `None` for a
    /// model that keeps none, whose texts are then read as a whole for every token.
    ///
    /// # Errors
    /// Those of building the nodes.
    fn read(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        tokens: ValueId,
        position: ValueId,
    ) -> Result<Option<Cached>> {
        let _ = (graph, parameters, tokens, position);
        Ok(None)
    }

    /// One token more after [`read`](Self::read).
    ///
    /// # Errors
    /// Those of building the nodes.
    fn step(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        step: CacheStep<'_>,
    ) -> Result<Option<Cached>> {
        let _ = (graph, parameters, step);
        Ok(None)
    }
}

/// The sizes and constants of a training program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Sequences in one pass.
    pub batch: usize,
    /// Tokens in one sequence.
    pub seq: usize,
    /// Number of distinct tokens.
    pub vocabulary: usize,
    /// Passes whose gradients are averaged for one optimiser step.
    pub accumulate: usize,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Largest norm over all parameters that the true gradient of the mean loss may have in an
    /// update; what is longer is shortened to it.
    pub clip: Option<f64>,
}

/// What the program is compiled for.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// What the backend makes of an op.
    pub supports: &'a Supports<'a>,
    /// Refuse whatever the backend does not have natively, instead of rewriting it.
    pub strict: bool,
}

/// Slots that the host writes and reads.
#[derive(Clone, Copy, Debug)]
pub struct HostSlots {
    /// `U32 [2]`, input: low and high word.
    pub seed: SlotId,
    /// `U32 []`, input: steps done before.
    pub step: SlotId,
    /// `F32 []`, input: the learning rate.
    pub lr: SlotId,
    /// `U32 [batch, seq]`, input.
    pub tokens: SlotId,
    /// `U32`, input, in the shape that the model asks for.
    pub targets: SlotId,
    /// `F32 []`, output: the mean loss of the pass.
    pub loss: SlotId,
    /// `F32 []`, output, where gradients are clipped: the norm of the true gradient over all
    /// parameters, before it is shortened.
    pub grad_norm: Option<SlotId>,
    /// `F32 []` each, output: right predictions of an evaluation, and how many there are.
    pub hits: Option<[SlotId; 2]>,
    /// For a model that generates.
    pub generation: Option<GenerationSlots>,
}

/// Slots of the entry `generate_step`.
#[derive(Clone, Copy, Debug)]
pub struct GenerationSlots {
    /// `U32 [1, seq]`, input: the text so far, padded at its end.
    pub prompt: SlotId,
    /// `U32 [1]`, input: the position whose next token is wanted.
    pub position: SlotId,
    /// `F32 [1, vocabulary]`, output: logits of the next token.
    pub next_logits: SlotId,
}

/// Entries by what they do.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    /// Fills the state.
    pub init: EntryId,
    /// How an optimiser step is taken.
    pub train: TrainEntries,
    /// Loss without an update.
    pub eval: EntryId,
    /// Logits of the next token, for a model that generates.
    pub generate: Option<EntryId>,
}

/// The entries of one optimiser step.
#[derive(Clone, Copy, Debug)]
pub enum TrainEntries {
    /// One pass and its update.
    Whole(EntryId),
    /// Several passes, then the update.
    Split {
        /// Adds the gradients of one pass.
        accumulate: EntryId,
        /// Updates from the mean of the gradients.
        apply: EntryId,
    },
}

/// A planned program with the names that training uses.
#[derive(Clone, Debug)]
pub struct TrainingProgram {
    /// The program.
    pub program: Program,
    /// Its slots for the host.
    pub slots: HostSlots,
    /// Slots of the model's further inputs.
    pub more_inputs: Vec<SlotId>,
    /// Its entries.
    pub entries: Entries,
    /// Elements of all parameters.
    pub parameter_count: usize,
    /// What was rewritten for the target.
    pub rewrites: Vec<Rewrite>,
    /// How it was made to fit a budget of memory, if there was one.
    pub memory: Option<MemoryFit>,
    /// The sizes that it was made for.
    pub settings: Settings,
}

/// State slots of one parameter.
struct ParameterSlots {
    weight: SlotId,
    moments: Vec<SlotId>,
    /// Sum of gradients, where steps are split.
    sum: Option<SlotId>,
}

/// State of a dynamic loss scale.
#[derive(Clone, Copy)]
struct LossScale {
    scale: SlotId,
    good_steps: SlotId,
    init: f64,
    growth: f64,
    backoff: f64,
    interval: u32,
}

/// First random streams of the entries, so that no two entries draw the same numbers.
const TRAIN_STREAMS: u32 = 1 << 16;

struct Builder<'a> {
    module: Module,
    model: &'a dyn Model,
    recipe: &'a Recipe,
    settings: Settings,
    parameters: Vec<Parameter>,
    slots: HostSlots,
    more_inputs: Vec<SlotId>,
    states: Vec<ParameterSlots>,
    loss_scale: Option<LossScale>,
    target: Target<'a>,
    rewrites: Vec<Rewrite>,
}

/// Builds, rewrites and plans the program of `model` under `recipe`.
///
/// # Errors
/// [`Error::Graph`](crate::Error::Graph) for shapes that do not fit, a recipe without a rule for
/// a tensor, or an op that the target cannot run; [`Error::Model`](crate::Error::Model).
pub fn build(
    model: &dyn Model,
    recipe: &Recipe,
    settings: Settings,
    target: Target<'_>,
) -> Result<TrainingProgram> {
    let mut builder = Builder::new(model, recipe, settings, target)?;
    let init = builder.init()?;
    let train = if settings.accumulate > 1 {
        TrainEntries::Split { accumulate: builder.accumulate()?, apply: builder.apply()? }
    } else {
        TrainEntries::Whole(builder.train_step()?)
    };
    let eval = builder.eval_step()?;
    let generate = match builder.slots.generation {
        Some(slots) => Some(builder.generate_step(slots)?),
        None => None,
    };
    let entries = Entries { init, train, eval, generate };
    Ok(TrainingProgram {
        program: Program::new(builder.module)?,
        slots: builder.slots,
        more_inputs: builder.more_inputs,
        entries,
        parameter_count: builder.parameters.iter().map(|p| p.spec.shape.numel()).sum(),
        rewrites: builder.rewrites,
        memory: None,
        settings,
    })
}

impl<'a> Builder<'a> {
    fn new(
        model: &'a dyn Model,
        recipe: &'a Recipe,
        settings: Settings,
        target: Target<'a>,
    ) -> Result<Self> {
        let Settings { batch, seq, vocabulary, accumulate, optimizer, clip } = settings;
        let mut module = Module::new();
        let float = DType::F32;
        let (input, output) = (SlotKind::Input, SlotKind::Output);
        let slots = HostSlots {
            seed: module.seed_slot()?,
            step: module.step_slot()?,
            lr: module.slot("lr", input, [0; 0], float, Role::Statistic)?,
            tokens: module.slot("tokens", input, [batch, seq], DType::U32, Role::Data)?,
            targets: module.slot(
                "targets",
                input,
                model.targets(&settings),
                DType::U32,
                Role::Data,
            )?,
            loss: module.slot("loss", output, [0; 0], float, Role::Statistic)?,
            grad_norm: match clip {
                Some(_) => {
                    Some(module.slot("grad_norm", output, [0; 0], float, Role::Statistic)?)
                }
                None => None,
            },
            hits: match model.tells_hits() {
                true => Some([
                    module.slot("hits", output, [0; 0], float, Role::Statistic)?,
                    module.slot("counted", output, [0; 0], float, Role::Statistic)?,
                ]),
                false => None,
            },
            generation: match model.generates() {
                true => Some(GenerationSlots {
                    prompt: module.slot("prompt", input, [1, seq], DType::U32, Role::Data)?,
                    position: module.slot("position", input, [1], DType::U32, Role::Data)?,
                    next_logits: {
                        let shape = [1, vocabulary];
                        module.slot("next_logits", output, shape, float, Role::Statistic)?
                    },
                }),
                false => None,
            },
        };
        let mut more_inputs = Vec::new();
        for ModelInput { name, shape } in model.more_inputs(&settings) {
            more_inputs.push(module.slot(name, input, shape, DType::U32, Role::Data)?);
        }
        let parameters = model.parameters()?;
        let mut states = Vec::with_capacity(parameters.len());
        for Parameter { spec: ParamSpec { name, shape, layer, .. }, .. } in &parameters {
            let mut state = |suffix: &str, role: Role, format| {
                let name = format!("{name}{suffix}");
                module.slot(&name, SlotKind::State, shape.clone(), DType::Float(format), role)
            };
            let kept = |role| recipe.state_format(role, name, *layer);
            let weight = state("", Role::MasterWeight, kept(Role::MasterWeight))?;
            let mut moments = Vec::new();
            for &(suffix, role) in optimizer.moments() {
                moments.push(state(&format!(".{suffix}"), role, kept(role))?);
            }
            let sum = match accumulate {
                0 | 1 => None,
                _ => Some(state(".gradient", Role::Statistic, onesigma_format::Format::F32)?),
            };
            states.push(ParameterSlots { weight, moments, sum });
        }
        let loss_scale = match recipe.scaling {
            Scaling::Loss { init, growth, backoff, interval } => {
                let mut state =
                    |name| module.slot(name, SlotKind::State, [0; 0], float, Role::Statistic);
                let (scale, good_steps) = (state("loss_scale")?, state("good_steps")?);
                Some(LossScale { scale, good_steps, init, growth, backoff, interval })
            }
            _ => None,
        };
        let rewrites = Vec::new();
        Ok(Self {
            module,
            model,
            recipe,
            settings,
            parameters,
            slots,
            more_inputs,
            states,
            loss_scale,
            target,
            rewrites,
        })
    }

    /// Adds an entry after cleaning it and giving every tensor its format.
    fn finish(&mut self, name: &str, graph: &Graph) -> Result<EntryId> {
        let graph = fuse_maps(&apply_recipe(&clean(graph), self.recipe)?);
        let graph = self.legal(&graph)?;
        Ok(self.module.entry(name, graph)?)
    }

    fn init(&mut self) -> Result<EntryId> {
        let mut graph = Graph::new();
        // Parameters first: their random streams, and with them the start of the model, must not
        // depend on what the optimiser keeps.
        for (parameter, state) in self.parameters.iter().zip(&self.states) {
            let start =
                parameter.spec.initial(&mut graph, self.module.slot_info(state.weight).dtype)?;
            graph.write(state.weight, start);
        }
        for &slot in self.states.iter().flat_map(|state| state.moments.iter().chain(&state.sum)) {
            let info = self.module.slot_info(slot);
            let zero = constant(&mut graph, info.shape.clone(), 0.0, info.role)?;
            let zero = stored_as(&mut graph, zero, info.dtype)?;
            graph.write(slot, zero);
        }
        if let Some(LossScale { scale, good_steps, init, .. }) = self.loss_scale {
            for (slot, value) in [(scale, init), (good_steps, 0.0)] {
                let start = constant(&mut graph, Shape::scalar(), value, Role::Statistic)?;
                graph.write(slot, start);
            }
        }
        let graph = self.legal(&clean(&graph))?;
        Ok(self.module.entry("init", graph)?)
    }

    /// The graph in ops that the target runs; notes what was rewritten.
    fn legal(&mut self, graph: &Graph) -> Result<Graph> {
        let legal = legalise(graph, self.target.supports, self.target.strict)?;
        self.rewrites.extend(legal.rewrites);
        Ok(legal.graph)
    }

    /// Appends forward and backward; gives the loss, the parameters and their gradients.
    fn backward(&self, graph: &mut Graph) -> Result<(ValueId, Vec<ValueId>, Vec<ValueId>)> {
        let (weights, Measures { loss, .. }) = self.forward(graph, true)?;
        let d_loss = self.loss_scale.map(|scale| self.module.read(graph, scale.scale));
        let gradients = autodiff::gradients(graph, loss, &weights, d_loss)?;
        Ok((loss, weights, gradients))
    }

    /// Appends the forward pass.
    fn forward(&self, graph: &mut Graph, training: bool) -> Result<(Vec<ValueId>, Measures)> {
        let tokens = self.module.read(graph, self.slots.tokens);
        let targets = self.module.read(graph, self.slots.targets);
        let more: Vec<ValueId> =
            self.more_inputs.iter().map(|&slot| self.module.read(graph, slot)).collect();
        let weights = self.read_weights(graph);
        let inputs = Inputs { tokens, targets, more: &more };
        let measures = self.model.loss(graph, &weights, inputs, training)?;
        Ok((weights, measures))
    }

    fn read_weights(&self, graph: &mut Graph) -> Vec<ValueId> {
        self.states.iter().map(|state| self.module.read(graph, state.weight)).collect()
    }

    fn train_step(&mut self) -> Result<EntryId> {
        let mut graph = Graph::with_streams_from(TRAIN_STREAMS);
        let (loss, weights, gradients) = self.backward(&mut graph)?;
        graph.write(self.slots.loss, loss);
        self.update(&mut graph, &weights, &gradients, 1.0)?;
        self.finish("train_step", &graph)
    }

    fn accumulate(&mut self) -> Result<EntryId> {
        let mut graph = Graph::with_streams_from(TRAIN_STREAMS);
        let (loss, _, gradients) = self.backward(&mut graph)?;
        graph.write(self.slots.loss, loss);
        for (state, gradient) in self.states.iter().zip(gradients) {
            let Some(slot) = state.sum else { continue };
            let sum = self.module.read(&mut graph, slot);
            let sum = graph
                .map(&[sum, gradient], |x| x[0].clone() + x[1].clone())?
                .named("gradient_sum")
                .role(Role::Statistic)
                .one()?;
            graph.write(slot, sum);
        }
        self.finish("accumulate", &graph)
    }

    fn apply(&mut self) -> Result<EntryId> {
        let mut graph = Graph::with_streams_from(2 * TRAIN_STREAMS);
        let weights = self.read_weights(&mut graph);
        let mut sums = Vec::new();
        for state in &self.states {
            let Some(slot) = state.sum else { continue };
            sums.push(self.module.read(&mut graph, slot));
            let shape = self.module.slot_info(slot).shape.clone();
            let zero = constant(&mut graph, shape, 0.0, Role::Statistic)?;
            graph.write(slot, zero);
        }
        self.update(&mut graph, &weights, &sums, 1.0 / self.settings.accumulate as f64)?;
        self.finish("apply", &graph)
    }

    /// Appends the optimiser, and under a loss scale its bookkeeping: gradients are divided by the
    /// scale, and a step with a gradient that is not finite is skipped and lowers it.
    fn update(
        &self,
        graph: &mut Graph,
        weights: &[ValueId],
        gradients: &[ValueId],
        factor: f64,
    ) -> Result<()> {
        let lr = self.module.read(graph, self.slots.lr);
        let step = self.module.read(graph, self.slots.step);
        let grad_factor = match self.loss_scale {
            Some(scale) => self.rescale(graph, scale, gradients, factor)?,
            None => constant(graph, Shape::scalar(), factor, Role::Statistic)?,
        };
        let constants = self.constants()?;
        let grad_factor = match (self.settings.clip, self.slots.grad_norm) {
            (Some(limit), Some(slot)) => {
                let norm = clip::norm(graph, gradients, &constants, grad_factor)?;
                graph.write(slot, norm);
                clip::shortened(graph, grad_factor, norm, limit)?
            }
            _ => grad_factor,
        };
        let scalars = StepScalars { lr, step, grad_factor };
        let each = self.parameters.iter().zip(&self.states).zip(&constants);
        let each = each.zip(weights.iter().zip(gradients));
        for (((parameter, state), &constant), (&weight, &gradient)) in each {
            let moments: Vec<ValueId> =
                state.moments.iter().map(|&slot| self.module.read(graph, slot)).collect();
            let (lr_scale, decays) = (parameter.lr_scale, parameter.spec.decays());
            let rule = Rule { lr_scale, decays, constant };
            let optimizer = self.settings.optimizer;
            let (new, new_moments) = graph.scoped(&parameter.spec.name, |graph| {
                optimizer.update(graph, weight, gradient, &moments, scalars, rule)
            })?;
            let write = |graph: &mut Graph, slot: SlotId, value: ValueId| -> Result<()> {
                let value = stored_as(graph, value, self.module.slot_info(slot).dtype)?;
                graph.write(slot, value);
                Ok(())
            };
            write(graph, state.weight, new)?;
            for (&slot, value) in state.moments.iter().zip(new_moments) {
                write(graph, slot, value)?;
            }
        }
        Ok(())
    }

    /// The constant of each parameter's gradient, proved, where something asks for it; 1 otherwise,
    /// and for a parameter that the loss does not depend on.
    fn constants(&self) -> Result<Vec<f64>> {
        if self.settings.clip.is_none() && !self.settings.optimizer.needs_constants() {
            return Ok(vec![1.0; self.parameters.len()]);
        }
        let proof = prove::constants(self)?;
        Ok(proof.into_iter().map(|constant| constant.unwrap_or(1.0)).collect())
    }

    /// The factor on the gradients, 0 if one of them is not finite; writes the next loss scale.
    fn rescale(
        &self,
        graph: &mut Graph,
        state: LossScale,
        gradients: &[ValueId],
        factor: f64,
    ) -> Result<ValueId> {
        let statistic = Role::Statistic;
        let mut largest = constant(graph, Shape::scalar(), 0.0, statistic)?;
        for &gradient in gradients {
            let axes: Vec<isize> = (0..graph.shape(gradient).rank() as isize).collect();
            let own = graph
                .reduce(ReduceKind::Max, &[gradient], &axes, false, |x| x[0].abs())?
                .role(statistic)
                .one()?;
            // An addition rather than a maximum: NaN and infinity have to survive.
            largest = graph
                .map(&[largest, own], |x| x[0].clone() + x[1].clone() * 2f64.powi(-20))?
                .role(statistic)
                .one()?;
        }
        let scale = self.module.read(graph, state.scale);
        let good_steps = self.module.read(graph, state.good_steps);
        let finite = graph
            .map(&[largest], |x| x[0].less_equal(f64::from(f32::MAX)))?
            .named("finite")
            .role(statistic)
            .one()?;
        let mut map = |name, build: &dyn Fn(&[Term]) -> _| {
            graph.map(&[scale, good_steps, finite], build)?.named(name).role(statistic).one()
        };
        let interval = f64::from(state.interval.max(1));
        let grad_factor =
            map("grad_factor", &|x| x[2].select(Term::constant(factor) / x[0].clone(), 0.0))?;
        let grows = |x: &[Term]| Term::constant(interval).less_equal(x[1].clone() + 1.0);
        let next_scale = map("next_scale", &|x| {
            let grown = grows(x).select(x[0].clone() * state.growth, x[0].clone());
            x[2].select(grown, x[0].clone() * state.backoff)
        })?;
        let next_good = map("next_good_steps", &|x| {
            x[2].select(grows(x).select(0.0, x[1].clone() + 1.0), 0.0)
        })?;
        graph.write(state.scale, next_scale);
        graph.write(state.good_steps, next_good);
        Ok(grad_factor)
    }

    fn eval_step(&mut self) -> Result<EntryId> {
        let mut graph = Graph::with_streams_from(3 * TRAIN_STREAMS);
        let (_, Measures { loss, hits }) = self.forward(&mut graph, false)?;
        graph.write(self.slots.loss, loss);
        for (slots, hits) in self.slots.hits.iter().zip(hits) {
            for (&slot, hits) in slots.iter().zip(hits) {
                graph.write(slot, hits);
            }
        }
        self.finish("eval_step", &graph)
    }

    fn generate_step(&mut self, slots: GenerationSlots) -> Result<EntryId> {
        let mut graph = Graph::with_streams_from(4 * TRAIN_STREAMS);
        let prompt = self.module.read(&mut graph, slots.prompt);
        let position = self.module.read(&mut graph, slots.position);
        let weights = self.read_weights(&mut graph);
        let next = self.model.next_logits(&mut graph, &weights, prompt, position)?;
        let next = as_output(&mut graph, next)?;
        graph.write(slots.next_logits, next);
        self.finish("generate_step", &graph)
    }
}

/// A tensor of one value in a role.
fn constant(graph: &mut Graph, shape: Shape, value: f64, role: Role) -> Result<ValueId> {
    let expr = Expr::new(0, |_| value.into());
    Ok(graph.op(Op::Map { expr, shape }, &[]).named("constant").role(role).one()?)
}

/// The value as a statistic, which every recipe leaves in F32.
fn as_output(graph: &mut Graph, value: ValueId) -> Result<ValueId> {
    let copy =
        graph.map(&[value], |x| x[0].clone())?.named("output").role(Role::Statistic).one()?;
    Ok(copy)
}

/// The value in a slot's type.
fn stored_as(graph: &mut Graph, value: ValueId, dtype: DType) -> Result<ValueId> {
    let role = graph.value(value).role;
    if graph.value(value).dtype == dtype {
        return Ok(value);
    }
    Ok(graph.op(Op::Cast { to: dtype }, &[value]).role(role).one()?)
}
