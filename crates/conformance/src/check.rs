//! One graph on the backend under test and in f64.

use crate::Verdict;
use crate::tolerance::Tolerance;
use onesigma_backend::reference::round;
use onesigma_backend::{Backend, Engine, RefBackend};
use onesigma_format::{Conversion, Format, Noise, Rounding, decode_slice, encode_slice};
use onesigma_graph::passes::legalise::legalise;
use onesigma_graph::{
    DType, EntryId, Graph, Module, Program, Role, Shape, SlotId, SlotKind, Value, ValueId,
};

/// Text of any error.
pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// What an operand is filled with.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Fill {
    /// About N(0, 1), without pattern.
    Normal,
    /// The same, without sign.
    Positive,
    /// Ids below a bound.
    Ids(u32),
    /// These values.
    Values(Vec<f64>),
}

/// An operand of a case.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Operand {
    pub shape: Shape,
    pub dtype: DType,
    pub fill: Fill,
}

impl Operand {
    pub fn normal(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), dtype: DType::F32, fill: Fill::Normal }
    }

    pub fn positive(shape: impl Into<Shape>) -> Self {
        Self { fill: Fill::Positive, ..Self::normal(shape) }
    }

    pub fn ids(shape: impl Into<Shape>, below: u32) -> Self {
        Self { shape: shape.into(), dtype: DType::U32, fill: Fill::Ids(below) }
    }

    pub fn values(shape: impl Into<Shape>, values: &[f64]) -> Self {
        Self { fill: Fill::Values(values.to_vec()), ..Self::normal(shape) }
    }

    pub fn scalar_u32(value: u32) -> Self {
        let fill = Fill::Values(vec![f64::from(value)]);
        Self { shape: Shape::scalar(), dtype: DType::U32, fill }
    }

    /// Little-endian codes of the content.
    pub fn bytes(&self, seed: u32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9).wrapping_add(0x1234_5678);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let numel = self.shape.numel();
        let unit = |word: u32| f64::from(word) / f64::from(1 << 24);
        let values: Vec<f64> = match &self.fill {
            Fill::Values(values) => values.clone(),
            Fill::Ids(below) => (0..numel).map(|_| f64::from(next() % below)).collect(),
            Fill::Normal | Fill::Positive => (0..numel)
                .map(|_| (0..4).map(|_| unit(next())).sum::<f64>() * 1.732 - 3.464)
                .map(|value| if self.fill == Fill::Positive { value.abs() } else { value })
                .collect(),
        };
        encode(self.dtype, &values)
    }
}

/// Values as little-endian codes, by nearest-even rounding.
pub(crate) fn encode(dtype: DType, values: &[f64]) -> Vec<u8> {
    match dtype {
        DType::U32 => values.iter().flat_map(|&value| (value as u32).to_le_bytes()).collect(),
        DType::Float(format) => {
            let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            let mut bytes = vec![0; values.len() * format.bytes()];
            let how = Conversion::SPECIAL;
            // The lengths agree, so this cannot fail.
            let _ = encode_slice(format, how, Noise::default(), &values, &mut bytes);
            bytes
        }
    }
}

/// Little-endian codes as values.
pub(crate) fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::U32 => bytes
            .chunks_exact(4)
            .map(|word| f64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]])))
            .collect(),
        DType::Float(format) => {
            let mut values = vec![0.0; bytes.len() / format.bytes()];
            let _ = decode_slice(format, bytes, &mut values);
            values.into_iter().map(f64::from).collect()
        }
    }
}

/// A program of one entry, whose operands are inputs and whose results are outputs.
pub(crate) struct Bench {
    pub program: Program,
    pub operands: Vec<SlotId>,
    pub results: Vec<SlotId>,
    /// The results as the graph describes them.
    pub values: Vec<Value>,
}

pub(crate) type Build<'a> =
    &'a dyn Fn(&mut Graph, &[ValueId]) -> onesigma_graph::Result<Vec<ValueId>>;

impl Bench {
    /// Builds the program; for a backend, made legal for it.
    pub fn new(
        operands: &[Operand],
        build: Build<'_>,
        backend: Option<&dyn Backend>,
    ) -> onesigma_graph::Result<Self> {
        let mut module = Module::new();
        module.seed_slot()?;
        module.step_slot()?;
        let mut graph = Graph::new();
        let (mut slots, mut inputs) = (Vec::new(), Vec::new());
        for (n, operand) in operands.iter().enumerate() {
            let shape = operand.shape.clone();
            let role = Role::Activation;
            let name = format!("x{n}");
            slots.push(module.slot(&name, SlotKind::Input, shape, operand.dtype, role)?);
            inputs.push(module.read(&mut graph, slots[n]));
        }
        let (mut results, mut values) = (Vec::new(), Vec::new());
        for (n, id) in build(&mut graph, &inputs)?.into_iter().enumerate() {
            let value = graph.value(id).clone();
            let name = format!("y{n}");
            let shape = value.shape.clone();
            results.push(module.slot(&name, SlotKind::Output, shape, value.dtype, value.role)?);
            graph.write(results[n], id);
            values.push(value);
        }
        if let Some(backend) = backend {
            let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
            graph = legalise(&graph, &supports, false)?.graph;
        }
        module.entry("main", graph)?;
        Ok(Self { program: Program::new(module)?, operands: slots, results, values })
    }

    /// Writes operands, seed and step, runs once, reads the results.
    pub fn run(
        &self,
        engine: &mut dyn Engine,
        contents: &[Vec<u8>],
    ) -> onesigma_backend::Result<Vec<Vec<u8>>> {
        for (&slot, bytes) in self.operands.iter().zip(contents) {
            engine.write(slot, bytes)?;
        }
        for (slot, words) in [(self.program.seed(), vec![7_u32, 9]), (self.program.step(), vec![3])]
        {
            if let Some(slot) = slot {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                engine.write(slot, &bytes)?;
            }
        }
        engine.run(EntryId::new(0), 1)?;
        self.results
            .iter()
            .zip(&self.values)
            .map(|(&slot, value)| {
                let mut bytes = vec![0; value.bytes()];
                engine.read(slot, &mut bytes)?;
                Ok(bytes)
            })
            .collect()
    }
}

/// Runs a graph on the backend and in f64 and compares all results.
pub(crate) fn against_reference(
    backend: &dyn Backend,
    operands: &[Operand],
    build: Build<'_>,
    tolerance: Tolerance,
) -> Verdict {
    let contents: Vec<Vec<u8>> =
        operands.iter().enumerate().map(|(n, operand)| operand.bytes(n as u32 + 1)).collect();
    let bench = Bench::new(operands, build, Some(backend)).map_err(text)?;
    let mut engine = backend.compile(&bench.program).map_err(text)?;
    let found = bench.run(&mut *engine, &contents).map_err(text)?;

    let plain = Bench::new(operands, build, None).map_err(text)?;
    let exact = |contents: &[Vec<u8>]| -> Result<Vec<Vec<f64>>, String> {
        let mut exact = RefBackend::exact().executor(&plain.program).map_err(text)?;
        plain.run(&mut exact, contents).map_err(text)?;
        let results = plain.results.iter().map(|&slot| {
            let expected = exact.tensor(slot).map_err(text)?;
            Ok(expected.ok_or("the reference made no result")?.to_vec())
        });
        results.collect()
    };
    let mut expected = exact(&contents)?;
    let found: Vec<Vec<f64>> =
        plain.values.iter().zip(&found).map(|(value, bytes)| decode(value.dtype, bytes)).collect();
    if backend.flushes_subnormals() {
        let flushed: Vec<Vec<u8>> = operands
            .iter()
            .zip(contents)
            .map(|(operand, bytes)| flushed(operand.dtype, bytes))
            .collect();
        for ((all, other), found) in expected.iter_mut().zip(exact(&flushed)?).zip(&found) {
            for ((expected, other), found) in all.iter_mut().zip(other).zip(found) {
                if kind(*found) != kind(*expected) {
                    *expected = other;
                }
            }
        }
    }
    for (n, value) in plain.values.iter().enumerate() {
        compare(&expected[n], &found[n], value, tolerance)
            .map_err(|error| format!("result {n}: {error}"))?;
    }
    Ok(())
}

/// F32 codes with 0 for subnormal numbers.
fn flushed(dtype: DType, mut bytes: Vec<u8>) -> Vec<u8> {
    if dtype == DType::F32 {
        for word in bytes.as_chunks_mut().0 {
            if f32::from_le_bytes(*word).is_subnormal() {
                *word = (u32::from_le_bytes(*word) & 0x8000_0000).to_le_bytes();
            }
        }
    }
    bytes
}

/// NaN, an infinity or a number: what a flushed operand may change beyond any tolerance.
fn kind(value: f64) -> (bool, bool, bool) {
    (value.is_nan(), value.is_infinite(), value.is_infinite() && value > 0.0)
}

/// Whether each element lies between the roundings of the ends of its budget.
pub(crate) fn compare(
    exact: &[f64],
    found: &[f64],
    value: &Value,
    tolerance: Tolerance,
) -> Verdict {
    let format = value.dtype.format().unwrap_or(Format::F32);
    let largest = exact.iter().filter(|x| x.is_finite()).fold(0.0_f64, |max, x| max.max(x.abs()));
    let ends = match value.conversion.rounding {
        Rounding::Stochastic { .. } => [Rounding::Down, Rounding::Up],
        rounding => [rounding; 2],
    };
    if exact.len() != found.len() {
        return Err(format!("{} elements, expected {}", found.len(), exact.len()));
    }
    for (at, (&exact, &found)) in exact.iter().zip(found).enumerate() {
        let budget = if tolerance.each + tolerance.scale == 0.0 || !exact.is_finite() {
            0.0
        } else {
            tolerance.each * exact.abs()
                + tolerance.scale * largest
                + tolerance.absolute
                + f64::from(f32::MIN_POSITIVE)
        };
        let end = |side: usize, value_at: f64| {
            round(value_at, format, Conversion { rounding: ends[side], ..value.conversion }, 0)
        };
        let (low, high) = (end(0, exact - budget), end(1, exact + budget));
        let same_nan = low.is_nan() && found.is_nan();
        if !(same_nan || low <= found && found <= high) {
            return Err(format!(
                "element {at} is {found:e}, expected {exact:e} ({low:e} to {high:e} in {format})"
            ));
        }
    }
    Ok(())
}
