//! Writing text with a cache of keys and values.

use std::collections::BTreeMap;

use onesigma_backend::{Engine, Report};
use onesigma_format::{Noise, encode_slice};
use onesigma_graph::SlotId;

use crate::Error;
use crate::generate::NextToken;
use crate::program::GenerationProgram;

/// A compiled [`GenerationProgram`] with the parameters of a model.
///
/// Whoever asks shows the whole window each time; what of it is new since the last time is read
/// token by token, if it is little, and everything is read at once otherwise.
pub struct Generator {
    program: GenerationProgram,
    engine: Box<dyn Engine>,
    /// The tokens whose keys and values the cache holds.
    cached: Vec<u32>,
    reads: Reads,
}

/// How texts were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Whole windows.
    pub windows: usize,
    /// Single tokens.
    pub tokens: usize,
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cached, reads, .. } = self;
        f.debug_struct("Generator")
            .field("cached", &cached.len())
            .field("reads", reads)
            .finish_non_exhaustive()
    }
}

/// Reading a window costs about as much as this share of its tokens one by one.
const WINDOW_IN_TOKENS: usize = 8;

impl Generator {
    /// `engine` has to be compiled from `program`; `values` are the parameters by name, rounded into
    /// the formats in which the program keeps them. `seed` is for recipes that round stochastically.
    ///
    /// # Errors
    /// [`Error::CheckpointMismatch`] for a parameter that is missing or of another size; those of
    /// the backend.
    pub fn new(
        program: GenerationProgram,
        engine: Box<dyn Engine>,
        values: &BTreeMap<String, Vec<f32>>,
        seed: u64,
    ) -> Result<Self, Error> {
        let (cached, reads) = (Vec::new(), Reads::default());
        let mut own = Self { program, engine, cached, reads };
        own.engine.write(own.program.slots.seed, &seed.to_le_bytes())?;
        own.engine.write(own.program.slots.step, &0_u32.to_le_bytes())?;
        own.load(values)?;
        Ok(own)
    }

    /// Replaces the parameters, as of a model that has been trained further; what was read is
    /// forgotten.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn load(&mut self, values: &BTreeMap<String, Vec<f32>>) -> Result<(), Error> {
        self.cached.clear();
        for &(id, how) in &self.program.parameters {
            let slot = &self.program.program.slots()[id.index()];
            let mismatch = |found: String| Error::CheckpointMismatch {
                what: format!("tensor `{}`", slot.name),
                found,
                expected: slot.shape.to_string(),
            };
            let values = values.get(&slot.name).ok_or_else(|| mismatch("missing".into()))?;
            let mut bytes = vec![0; slot.bytes()];
            let encoded = slot.dtype.format().filter(|_| values.len() == slot.shape.numel());
            let encoded = encoded.map(|format| {
                encode_slice(format, how, Noise::default(), values, &mut bytes).is_ok()
            });
            if encoded != Some(true) {
                return Err(mismatch(format!("{} elements", values.len())));
            }
            self.engine.write(id, &bytes)?;
        }
        Ok(())
    }

    /// The program.
    pub fn program(&self) -> &GenerationProgram {
        &self.program
    }

    /// Memory planned and used, and remarks.
    pub fn report(&self) -> Report {
        self.engine.report()
    }

    /// How texts were read so far.
    pub fn reads(&self) -> Reads {
        self.reads
    }

    /// Reads a window from its start.
    fn read_window(&mut self, window: &[u32]) -> Result<(), Error> {
        let slots = self.program.slots;
        self.cached.clear();
        let padding = std::iter::repeat_n(0, self.program.seq - window.len());
        self.write(slots.prompt, window.iter().copied().chain(padding))?;
        self.write(slots.position, [window.len() as u32 - 1])?;
        self.engine.run(self.program.read_prompt, 1)?;
        self.cached.extend_from_slice(window);
        self.reads.windows += 1;
        Ok(())
    }

    /// Reads one token behind the first `at` of the cache.
    fn read_token(&mut self, at: usize, token: u32) -> Result<(), Error> {
        let slots = self.program.slots;
        self.cached.truncate(at);
        self.write(slots.token, [token])?;
        self.write(slots.position, [at as u32])?;
        self.write(slots.seen, (0..self.program.seq).map(|key| u32::from(key <= at)))?;
        self.engine.run(self.program.read_token, 1)?;
        self.cached.push(token);
        self.reads.tokens += 1;
        Ok(())
    }

    fn write(&mut self, slot: SlotId, values: impl IntoIterator<Item = u32>) -> Result<(), Error> {
        let bytes: Vec<u8> = values.into_iter().flat_map(u32::to_le_bytes).collect();
        Ok(self.engine.write(slot, &bytes)?)
    }
}

impl NextToken for Generator {
    fn context(&self) -> usize {
        self.program.seq
    }

    fn logits(&mut self, window: &[u32]) -> Result<Vec<f32>, Error> {
        let seq = self.program.seq;
        if !(1..=seq).contains(&window.len()) {
            return Err(Error::Setting {
                name: "prompt",
                given: format!("{} tokens", window.len()),
                expected: format!("1 to {seq}, the context of the model"),
            });
        }
        let same = self.cached.iter().zip(window).take_while(|(a, b)| a == b).count();
        // The last token is read in any case: its logits are wanted.
        let same = same.min(window.len() - 1);
        let new = window.len() - same;
        if same > 0 && (new == 1 || new * WINDOW_IN_TOKENS <= seq) {
            for at in same..window.len() {
                self.read_token(at, window[at])?;
            }
        } else {
            self.read_window(window)?;
        }
        let mut bytes = vec![0; self.program.vocabulary * 4];
        self.engine.read(self.program.slots.next_logits, &mut bytes)?;
        let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(floats.collect())
    }
}
