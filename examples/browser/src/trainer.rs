//! The model with its state on a device. Nothing here waits: what has to be read is awaited.

use onesigma_backend::{Backend, Engine};
use onesigma_backend_wgpu::{Options, WgpuBackend, WgpuEngine};

use crate::Error;
use crate::program::{BATCH, Built, SEQ, build};
use crate::text::{VOCABULARY, batch, letter, token};

/// A small GPT that is trained.
pub struct Trainer {
    built: Built,
    engine: WgpuEngine,
    device: String,
    steps: u32,
}

fn bytes(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

impl Trainer {
    /// Opens the first device, compiles the program of a recipe, `unit-fp8` for example, and gives
    /// the parameters their start.
    ///
    /// # Errors
    /// Without WebGPU, or for a recipe that is not known.
    pub async fn open(recipe: &str) -> Result<Self, Error> {
        let backend = WgpuBackend::open_async(&Options::default()).await?;
        let built = build(&backend, recipe)?;
        let mut engine = backend.engine(&built.program)?;
        if let Some(seed) = built.program.seed() {
            engine.write(seed, &bytes([1, 0]))?;
        }
        if let Some(step) = built.program.step() {
            engine.write(step, &bytes([0]))?;
        }
        engine.run(built.init, 1)?;
        let device = format!("{}: {}", backend.caps().device, backend.abilities());
        Ok(Self { built, engine, device, steps: 0 })
    }

    /// The device, and what of it is used.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Takes steps; gives the loss of each.
    ///
    /// # Errors
    /// Those of the device.
    pub async fn train(&mut self, steps: usize) -> Result<Vec<f32>, Error> {
        let from = self.steps;
        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        for step in from..from + steps as u32 {
            let [own, next] = batch(step, BATCH, SEQ);
            tokens.extend(own);
            targets.extend(next);
        }
        // Up in 10 steps, then slowly down.
        let rate =
            |step: u32| 0.05 * ((step + 1) as f32 / 10.0).min(20.0 / (step + 1) as f32).min(1.0);
        let engine = &mut self.engine;
        engine.write(self.built.tokens, &bytes(tokens))?;
        engine.write(self.built.targets, &bytes(targets))?;
        let rates = (from..from + steps as u32).map(|step| rate(step).to_bits());
        engine.write(self.built.lr, &bytes(rates))?;
        if let Some(step) = self.built.program.step() {
            engine.write(step, &bytes(from..from + steps as u32))?;
        }
        engine.run(self.built.train, steps)?;
        let mut losses = vec![0; 4 * steps];
        engine.read_async(self.built.loss, &mut losses).await?;
        self.steps += steps as u32;
        Ok(losses.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// Goes on with a text, always with the likeliest letter.
    ///
    /// # Errors
    /// Those of the device.
    pub async fn write(&mut self, prompt: &str, count: usize) -> Result<String, Error> {
        let mut text: Vec<u32> = prompt.bytes().map(token).collect();
        if text.is_empty() {
            text.push(token(b' '));
        }
        for _ in 0..count {
            let start = text.len().saturating_sub(SEQ);
            let mut prompt = text[start..].to_vec();
            let last = prompt.len() as u32 - 1;
            prompt.resize(SEQ, 0);
            self.engine.write(self.built.prompt, &bytes(prompt))?;
            self.engine.write(self.built.last, &bytes([last]))?;
            self.engine.run(self.built.next, 1)?;
            let mut found = vec![0; 4 * VOCABULARY];
            self.engine.read_async(self.built.logits, &mut found).await?;
            let logits = found.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word));
            let best = logits.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
            text.push(best.map_or(0, |(at, _)| at as u32));
        }
        Ok(text.into_iter().map(|token| letter(token as usize)).collect())
    }
}
