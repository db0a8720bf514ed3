//! A compiled training program with its state: the words of [`Engine`] in terms of training.

use std::collections::BTreeMap;

use onesigma_backend::{Engine, Span};
use onesigma_format::{Conversion, Format, Noise, encode_slice};
use onesigma_graph::{EntryId, Role, Slot, SlotId, SlotKind};

use crate::Error;
use crate::batch::Batch;
use crate::checkpoint::{StateTensor, Tensor};
use crate::program::{MeasuringProgram, TrainEntries, TrainingProgram};

/// An engine and the program that it was compiled from.
pub struct Session {
    program: TrainingProgram,
    engine: Box<dyn Engine>,
    grad_norms: Vec<f32>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("settings", &self.program.settings).finish_non_exhaustive()
    }
}

impl Session {
    /// `engine` has to be compiled from `program`.
    pub fn new(program: TrainingProgram, engine: Box<dyn Engine>) -> Self {
        Self { program, engine, grad_norms: Vec::new() }
    }

    /// The program.
    pub fn program(&self) -> &TrainingProgram {
        &self.program
    }

    /// Memory planned and used, and remarks.
    pub fn report(&self) -> onesigma_backend::Report {
        self.engine.report()
    }

    /// Fills parameters and moments from `seed`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn init(&mut self, seed: u64) -> Result<(), Error> {
        self.seed(seed)?;
        self.engine.write(self.program.slots.step, &0u32.to_le_bytes())?;
        Ok(self.engine.run(self.program.entries.init, 1)?)
    }

    /// Sets the seed of every random number from now on.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn seed(&mut self, seed: u64) -> Result<(), Error> {
        Ok(self.engine.write(self.program.slots.seed, &seed.to_le_bytes())?)
    }

    /// Takes optimiser steps `first_step ..`, one for each learning rate; `passes` has
    /// [`accumulate`](crate::program::Settings::accumulate) batches for each. Gives each step's
    /// mean loss.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn train(
        &mut self,
        first_step: u64,
        rates: &[f32],
        passes: &[Batch],
    ) -> Result<Vec<f32>, Error> {
        let slots = self.program.slots;
        self.grad_norms.clear();
        match self.program.entries.train {
            TrainEntries::Whole(entry) => {
                self.write_batches(passes)?;
                self.write_u32(slots.step, (first_step as u32..).take(rates.len()))?;
                self.write_f32(slots.lr, rates)?;
                self.engine.run(entry, rates.len())?;
                if let Some(slot) = slots.grad_norm {
                    self.grad_norms = self.read_f32(slot, rates.len())?;
                }
                self.read_f32(slots.loss, rates.len())
            }
            TrainEntries::Split { accumulate, apply } => {
                let count = self.program.settings.accumulate;
                let mut losses = Vec::with_capacity(rates.len());
                for (step, (&rate, passes)) in
                    (first_step..).zip(rates.iter().zip(passes.chunks(count)))
                {
                    self.write_batches(passes)?;
                    // Every pass draws its own random numbers.
                    let first_pass = (step as u32).wrapping_mul(count as u32);
                    self.write_u32(
                        slots.step,
                        (0..count as u32).map(|i| first_pass.wrapping_add(i)),
                    )?;
                    self.engine.run(accumulate, passes.len())?;
                    let own = self.read_f32(slots.loss, passes.len())?;
                    losses.push(mean(&own));
                    self.write_u32(slots.step, std::iter::once(step as u32))?;
                    self.write_f32(slots.lr, &[rate])?;
                    self.engine.run(apply, 1)?;
                    if let Some(slot) = slots.grad_norm {
                        let norm = self.read_f32(slot, 1)?;
                        self.grad_norms.extend(norm);
                    }
                }
                Ok(losses)
            }
        }
    }

    /// Norms of the true gradients of the steps of the last [`train`](Self::train), before they
    /// were clipped; empty for a program that does not clip.
    pub fn grad_norms(&self) -> &[f32] {
        &self.grad_norms
    }

    /// The mean loss over batches, without an update.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn evaluate(&mut self, batches: impl Iterator<Item = Batch>) -> Result<f32, Error> {
        Ok(self.measure(batches)?.loss)
    }

    /// Mean loss and, if the model tells, accuracy over batches, without an update. Batches weigh
    /// by the number of their predictions, if the model tells it.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn measure(&mut self, batches: impl Iterator<Item = Batch>) -> Result<Evaluation, Error> {
        let (mut sum, mut weights, mut hits) = (0.0, 0.0, 0.0);
        for batch in batches {
            self.write_batches(std::slice::from_ref(&batch))?;
            self.write_u32(self.program.slots.step, std::iter::once(0))?;
            self.engine.run(self.program.entries.eval, 1)?;
            let loss = f64::from(self.read_f32(self.program.slots.loss, 1)?[0]);
            let weight = match self.program.slots.hits {
                Some([right, counted]) => {
                    hits += f64::from(self.read_f32(right, 1)?[0]);
                    f64::from(self.read_f32(counted, 1)?[0])
                }
                None => 1.0,
            };
            sum += loss * weight;
            weights += weight;
        }
        let accuracy = self.program.slots.hits.map(|_| hits / f64::max(weights, 1.0));
        Ok(Evaluation { loss: (sum / f64::max(weights, 1.0)) as f32, accuracy })
    }

    /// Logits of the token after `position` in `prompt`, which holds one whole sequence.
    ///
    /// # Errors
    /// [`Error::Setting`] for a model that predicts no next token; those of the backend.
    pub fn next_logits(&mut self, prompt: &[u32], position: usize) -> Result<Vec<f32>, Error> {
        let entry = self.program.entries.generate;
        let Some((slots, entry)) = self.program.slots.generation.zip(entry) else {
            return Err(Error::Setting {
                name: "model",
                given: "one that predicts no next token".into(),
                expected: "a decoder, model type gpt2".into(),
            });
        };
        self.write_u32(slots.prompt, prompt.iter().copied())?;
        self.write_u32(slots.position, std::iter::once(position as u32))?;
        self.write_u32(self.program.slots.step, std::iter::once(0))?;
        self.engine.run(entry, 1)?;
        let vocabulary = self.program.settings.vocabulary;
        let mut bytes = vec![0; vocabulary * 4];
        self.engine.read(slots.next_logits, &mut bytes)?;
        Ok(floats(&bytes))
    }

    /// Every state slot.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn state(&mut self) -> Result<Vec<Tensor>, Error> {
        self.tensors(|_| true)
    }

    /// The state slots that `is_wanted`, by name.
    fn tensors(&mut self, is_wanted: impl Fn(&Slot) -> bool) -> Result<Vec<Tensor>, Error> {
        let mut tensors = Vec::new();
        for (index, slot) in self.program.program.slots().iter().enumerate() {
            if slot.kind != SlotKind::State || !is_wanted(slot) {
                continue;
            }
            let mut bytes = vec![0; slot.bytes()];
            self.engine.read(SlotId::new(index), &mut bytes)?;
            tensors.push(Tensor {
                name: slot.name.clone(),
                format: slot.dtype.to_string(),
                shape: slot.shape.dims().to_vec(),
                bytes,
            });
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tensors)
    }

    /// The parameters by name, as [`load`](Self::load) takes them.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn parameters(&mut self) -> Result<BTreeMap<String, Vec<f32>>, Error> {
        let parameters = self.tensors(|slot| slot.role == Role::MasterWeight)?;
        let values = |tensor: Tensor| Some((tensor.to_f32()?, tensor.name));
        Ok(parameters.into_iter().filter_map(values).map(|(values, name)| (name, values)).collect())
    }

    /// Begins to record the time of every node; false if the engine cannot.
    pub fn record(&mut self) -> bool {
        self.engine.record()
    }

    /// What was recorded since [`record`](Self::record), which ends.
    pub fn take_spans(&mut self) -> Vec<Span> {
        self.engine.take_spans()
    }

    /// Replaces every state slot.
    ///
    /// # Errors
    /// [`Error::CheckpointMismatch`] if a tensor is missing or has another shape or format.
    pub fn restore(&mut self, tensors: &[Tensor]) -> Result<(), Error> {
        restore(&self.program.program, self.engine.as_mut(), tensors)
    }

    /// Replaces the parameters that `values` has by those values, rounded into their formats;
    /// moments and the others stay. Gives the names of the parameters that stayed.
    ///
    /// # Errors
    /// [`Error::CheckpointMismatch`] for a parameter of another size; those of the backend.
    pub fn load(&mut self, values: &BTreeMap<String, Vec<f32>>) -> Result<Vec<String>, Error> {
        let mut stayed = Vec::new();
        for (index, slot) in self.program.program.slots().iter().enumerate() {
            if slot.kind != SlotKind::State || slot.role != Role::MasterWeight {
                continue;
            }
            let Some(values) = values.get(&slot.name) else {
                stayed.push(slot.name.clone());
                continue;
            };
            let format = slot.dtype.format().unwrap_or(Format::F32);
            let mut bytes = vec![0; values.len() * format.bytes()];
            let fits = values.len() == slot.shape.numel();
            let how = Conversion::SATURATE;
            if !fits || encode_slice(format, how, Noise::default(), values, &mut bytes).is_err() {
                return Err(Error::CheckpointMismatch {
                    what: format!("tensor `{}`", slot.name),
                    found: format!("{} elements", values.len()),
                    expected: slot.shape.to_string(),
                });
            }
            self.engine.write(SlotId::new(index), &bytes)?;
        }
        Ok(stayed)
    }

    fn write_batches(&mut self, batches: &[Batch]) -> Result<(), Error> {
        let slots = self.program.slots;
        let all = |pick: fn(&Batch) -> &Vec<u32>| batches.iter().flat_map(pick).copied();
        self.write_u32(slots.tokens, all(|batch| &batch.inputs))?;
        self.write_u32(slots.targets, all(|batch| &batch.targets))?;
        for (n, slot) in self.program.more_inputs.clone().into_iter().enumerate() {
            self.write_u32(slot, batches.iter().flat_map(|batch| &batch.more[n]).copied())?;
        }
        Ok(())
    }

    fn write_u32(&mut self, slot: SlotId, values: impl Iterator<Item = u32>) -> Result<(), Error> {
        let bytes: Vec<u8> = values.flat_map(u32::to_le_bytes).collect();
        Ok(self.engine.write(slot, &bytes)?)
    }

    fn write_f32(&mut self, slot: SlotId, values: &[f32]) -> Result<(), Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(self.engine.write(slot, &bytes)?)
    }

    fn read_f32(&mut self, slot: SlotId, count: usize) -> Result<Vec<f32>, Error> {
        let mut bytes = vec![0; count * 4];
        self.engine.read(slot, &mut bytes)?;
        Ok(floats(&bytes))
    }
}

/// What an evaluation finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss in nats per prediction.
    pub loss: f32,
    /// Share of right predictions, if the model tells.
    pub accuracy: Option<f64>,
}

/// What the gradients of one tensor lose in their format.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Flushed {
    /// Name of the node that makes the tensor.
    pub name: String,
    /// The format that decides.
    pub format: String,
    /// Elements that are finite and not zero in f32.
    pub nonzero: f64,
    /// Those of them that the format rounds to zero.
    pub flushed: f64,
}

/// Measures the gradients of one batch at the state `tensors`, tensor by tensor.
///
/// # Errors
/// Those of the backend; [`Error::CheckpointMismatch`] as [`Session::restore`].
pub fn measure(
    program: &MeasuringProgram,
    engine: &mut dyn Engine,
    tensors: &[Tensor],
    batch: &Batch,
    seed: u64,
) -> Result<Vec<Flushed>, Error> {
    restore(&program.program, engine, tensors)?;
    let bytes = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    engine.write(program.slots.seed, &seed.to_le_bytes())?;
    engine.write(program.slots.step, &0u32.to_le_bytes())?;
    engine.write(program.slots.tokens, &bytes(&batch.inputs))?;
    engine.write(program.slots.targets, &bytes(&batch.targets))?;
    for (&slot, values) in program.more_inputs.iter().zip(&batch.more) {
        engine.write(slot, &bytes(values))?;
    }
    let entry: EntryId = program.entry;
    engine.run(entry, 1)?;
    let mut read = |slot| -> Result<Vec<f32>, Error> {
        let mut bytes = vec![0; program.measured.len() * 4];
        engine.read(slot, &mut bytes)?;
        Ok(floats(&bytes))
    };
    let (flushed, nonzero) = (read(program.flushed)?, read(program.nonzero)?);
    let counts = flushed.into_iter().zip(nonzero);
    Ok(program
        .measured
        .iter()
        .zip(counts)
        .map(|(tensor, (flushed, nonzero))| Flushed {
            name: tensor.name.clone(),
            format: tensor.format.to_string(),
            nonzero: f64::from(nonzero),
            flushed: f64::from(flushed),
        })
        .collect())
}

/// Replaces every state slot of a program by the tensor of its name; `tensors` are sorted by name.
///
/// # Errors
/// As [`restore_from`].
pub fn restore(
    program: &onesigma_graph::Program,
    engine: &mut dyn Engine,
    tensors: &[Tensor],
) -> Result<(), Error> {
    let borrowed: Vec<StateTensor<'_>> = tensors.iter().map(Tensor::borrowed).collect();
    restore_from(program, engine, &borrowed)
}

/// As [`restore`], from tensors that lie elsewhere: in a mapped file, which is then copied to the
/// engine and nowhere else.
///
/// # Errors
/// [`Error::CheckpointMismatch`] if one is missing or has another shape or format; those of the
/// backend.
pub fn restore_from(
    program: &onesigma_graph::Program,
    engine: &mut dyn Engine,
    tensors: &[StateTensor<'_>],
) -> Result<(), Error> {
    for (index, slot) in program.slots().iter().enumerate() {
        if slot.kind != SlotKind::State {
            continue;
        }
        let mismatch = |found: String| Error::CheckpointMismatch {
            what: format!("tensor `{}`", slot.name),
            found,
            expected: format!("{} {}", slot.dtype, slot.shape),
        };
        let tensor = tensors
            .binary_search_by(|tensor| tensor.name.as_str().cmp(&slot.name))
            .map(|at| &tensors[at])
            .map_err(|_| mismatch("missing".into()))?;
        let fits = tensor.format == slot.dtype.to_string()
            && tensor.shape == slot.shape.dims()
            && tensor.bytes.len() == slot.bytes();
        if !fits {
            return Err(mismatch(format!("{} {:?}", tensor.format, tensor.shape)));
        }
        engine.write(SlotId::new(index), tensor.bytes)?;
    }
    Ok(())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn mean(losses: &[f32]) -> f32 {
    let sum: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
    (sum / losses.len().max(1) as f64) as f32
}
