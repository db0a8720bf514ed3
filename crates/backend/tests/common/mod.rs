//! Graphs evaluated in f64, for tests.
#![allow(dead_code)]

use onesigma_backend::{Engine, Error, Executor, RefBackend, reference::RefKernels};
use onesigma_graph::{DType, Graph, Module, Program, Role, Shape, SlotId, SlotKind, ValueId};

pub type TestResult = Result<(), Error>;

/// Numbers in (-1, 1) without pattern, none near 0.
pub fn numbers(seed: u32, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f64::from(state >> 8) / f64::from(1 << 24) * 2.0 - 1.0;
            value + 0.05_f64.copysign(value)
        })
        .collect()
}

/// An operand of a graph under test.
#[derive(Clone)]
pub struct Operand {
    pub shape: Shape,
    pub dtype: DType,
    pub data: Vec<f64>,
}

pub fn float(seed: u32, shape: impl Into<Shape>) -> Operand {
    let shape = shape.into();
    Operand { data: numbers(seed, shape.numel()), dtype: DType::F32, shape }
}

pub fn ids(shape: impl Into<Shape>, data: &[u32]) -> Operand {
    let data = data.iter().map(|&id| f64::from(id)).collect();
    Operand { shape: shape.into(), dtype: DType::U32, data }
}

pub struct Evaluation {
    pub executor: Executor<RefKernels>,
    pub operands: Vec<SlotId>,
    pub results: Vec<SlotId>,
}

impl Evaluation {
    /// A graph of operands (given as states) whose results become outputs.
    pub fn new(
        operands: &[Operand],
        build: impl FnOnce(&mut Graph, &[ValueId]) -> onesigma_graph::Result<Vec<ValueId>>,
    ) -> Result<Self, Error> {
        let mut module = Module::new();
        let mut graph = Graph::new();
        let mut slots = Vec::new();
        let mut values = Vec::new();
        for (n, operand) in operands.iter().enumerate() {
            let (name, shape) = (format!("x{n}"), operand.shape.clone());
            let slot =
                module.slot(&name, SlotKind::State, shape, operand.dtype, Role::Activation)?;
            slots.push(slot);
            values.push(module.read(&mut graph, slot));
        }
        let mut results = Vec::new();
        for (n, value) in build(&mut graph, &values)?.into_iter().enumerate() {
            let (shape, dtype) = (graph.shape(value).clone(), graph.value(value).dtype);
            let slot =
                module.slot(&format!("y{n}"), SlotKind::Output, shape, dtype, Role::Activation)?;
            graph.write(slot, value);
            results.push(slot);
        }
        module.entry("main", graph)?;
        let program = Program::new(module)?;
        let mut executor = RefBackend::exact().executor(&program)?;
        for (slot, operand) in slots.iter().zip(operands) {
            executor.set_tensor(*slot, operand.data.clone())?;
        }
        Ok(Self { executor, operands: slots, results })
    }

    pub fn run(&mut self) -> Result<Vec<Vec<f64>>, Error> {
        self.executor.run(onesigma_graph::EntryId::new(0), 1)?;
        self.results
            .iter()
            .map(|&slot| Ok(self.executor.tensor(slot)?.cloned().unwrap_or_default()))
            .collect()
    }
}
