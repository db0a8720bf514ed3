//! Sentence embeddings by a BERT: hidden states averaged and normalised.

use onesigma_backend::{Backend, Engine};
use onesigma_format::{Conversion, Format, Noise, encode_slice};
use onesigma_graph::passes::clean::clean;
use onesigma_graph::passes::legalise::legalise;
use onesigma_graph::{DType, Graph, Module, Program, Role, SlotKind};
use onesigma_models::{BertInputs, Model, Params, Pretrained, bert_embedding};
use onesigma_train::tokenizer::Subwords;
use onesigma_train::{Error, Result};

/// Sentences of one run of the engine.
const BATCH: usize = 32;

/// A BERT that gives sentences their embeddings.
#[derive(Debug)]
pub struct Embedder<'a> {
    pretrained: &'a Pretrained,
    pieces: &'a Subwords,
    /// Format of matrices and tables in memory; vectors stay in F32.
    format: Format,
}

/// A batch of padded sentences.
struct Sentences {
    tokens: Vec<u32>,
    mask: Vec<u32>,
    batch: usize,
    seq: usize,
}

impl<'a> Embedder<'a> {
    /// An embedder whose matrices and tables are kept in a format; sums are in f32.
    ///
    /// # Errors
    /// [`Error::Setting`] for a model that is no BERT.
    pub fn new(pretrained: &'a Pretrained, pieces: &'a Subwords, format: Format) -> Result<Self> {
        match pretrained.model {
            Model::Bert { .. } => Ok(Self { pretrained, pieces, format }),
            Model::Gpt(_) => Err(Error::Setting {
                name: "model",
                given: "a decoder".into(),
                expected: "a BERT: embeddings need hidden states that see the whole sentence"
                    .into(),
            }),
        }
    }

    /// The embedding of each text, of length 1. Longer texts than the model's longest sequence
    /// are cut.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; those of the backend.
    pub fn embed(&self, backend: &dyn Backend, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut embeddings = Vec::with_capacity(texts.len());
        for texts in texts.chunks(BATCH) {
            embeddings.extend(self.run(backend, &self.sentences(texts)?)?);
        }
        Ok(embeddings)
    }

    fn sentences(&self, texts: &[&str]) -> Result<Sentences> {
        let special = self.pieces.special()?;
        let longest = self.pretrained.model.positions();
        let mut rows = Vec::with_capacity(texts.len());
        for text in texts {
            let mut row = vec![special.start];
            row.extend(self.pieces.encode(text)?);
            row.truncate(longest.saturating_sub(1));
            row.push(special.end);
            rows.push(row);
        }
        let seq = rows.iter().map(Vec::len).max().unwrap_or(1);
        let (mut tokens, mut mask) = (Vec::new(), Vec::new());
        for row in &rows {
            let padding = seq - row.len();
            tokens.extend(row.iter().copied().chain(std::iter::repeat_n(special.pad, padding)));
            mask.extend(row.iter().map(|_| 1).chain(std::iter::repeat_n(0, padding)));
        }
        Ok(Sentences { tokens, mask, batch: rows.len(), seq })
    }

    fn run(&self, backend: &dyn Backend, sentences: &Sentences) -> Result<Vec<Vec<f32>>> {
        let Pretrained { model, parametrisation: p, weights } = self.pretrained;
        let Model::Bert { config, .. } = model else { return Ok(Vec::new()) };
        let Sentences { tokens, mask, batch, seq } = sentences;
        let (mut module, mut graph) = (Module::new(), Graph::new());
        let shape = [*batch, *seq];
        let inputs = ["tokens", "mask"]
            .map(|name| module.slot(name, SlotKind::Input, shape, DType::U32, Role::Data));
        let [tokens_slot, mask_slot] = [inputs[0].clone()?, inputs[1].clone()?];
        let mut slots = Vec::with_capacity(weights.len());
        let mut values = Vec::with_capacity(weights.len());
        for (name, tensor) in weights {
            let format = if tensor.shape.len() > 1 { self.format } else { Format::F32 };
            let (shape, dtype) = (tensor.shape.clone(), DType::Float(format));
            let slot = module.slot(name, SlotKind::State, shape, dtype, Role::MasterWeight)?;
            values.push((name.clone(), module.read(&mut graph, slot)));
            slots.push((slot, format, &tensor.values));
        }
        let [tokens_value, mask_value] =
            [tokens_slot, mask_slot].map(|slot| module.read(&mut graph, slot));
        let bert = BertInputs { tokens: tokens_value, segments: None, mask: Some(mask_value) };
        let out = bert_embedding(&mut graph, &mut Params::new(values), config, *p, bert)?;
        let width = config.hidden_size;
        let out_shape = [*batch, width];
        let out_slot =
            module.slot("embeddings", SlotKind::Output, out_shape, DType::F32, Role::Statistic)?;
        graph.write(out_slot, out);
        let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
        module.entry("embed", legalise(&clean(&graph), &supports, false)?.graph)?;
        let program = Program::new(module)?;
        let mut engine = backend.compile(&program)?;
        for (slot, format, values) in slots {
            let mut bytes = vec![0; values.len() * format.bytes()];
            encode_slice(format, Conversion::SATURATE, Noise::default(), values, &mut bytes)?;
            engine.write(slot, &bytes)?;
        }
        write_words(&mut *engine, tokens_slot, tokens)?;
        write_words(&mut *engine, mask_slot, mask)?;
        engine.run(program.find_entry("embed")?, 1)?;
        let mut bytes = vec![0; batch * width * 4];
        engine.read(out_slot, &mut bytes)?;
        let numbers: Vec<f32> =
            bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        Ok(numbers.chunks(width).map(<[f32]>::to_vec).collect())
    }
}

fn write_words(engine: &mut dyn Engine, slot: onesigma_graph::SlotId, words: &[u32]) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    Ok(engine.write(slot, &bytes)?)
}

/// Cosine of two embeddings of length 1.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
