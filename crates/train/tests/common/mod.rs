//! A model small enough to reason about, on the CPU backend: each byte predicts the next through
//! one embedding and one linear layer.
#![allow(dead_code)] // each test file uses its own part

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_format::Format;
use onesigma_graph::passes::legalise::Support;
use onesigma_graph::recipe::Recipe;
use onesigma_graph::{Graph, Op, Role, ValueId};
use onesigma_models::{Init, ParamKind, ParamSpec};
use onesigma_train::Result;
use onesigma_train::batch::Batch;
use onesigma_train::checkpoint::Tensor;
use onesigma_train::config::{Config, ModelConfig};
use onesigma_train::corpus::{Corpus, Document};
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program::{self, Inputs, Measures, Model, Parameter, Settings, Target};
use onesigma_train::session::Session;
use onesigma_train::trainer::Trainer;

pub const WIDTH: usize = 8;
pub const ADAMW: Optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.0 };
pub const SGD: Optimizer = Optimizer::Sgd { momentum: 0.0, decay: 0.0 };

pub struct Bigram;

impl Bigram {
    fn logits(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        tokens: ValueId,
    ) -> Result<ValueId> {
        let rows = graph.op(Op::Gather, &[parameters[0], tokens]).role(Role::Activation).one()?;
        Ok(graph.matmul(rows, parameters[1]).role(Role::Activation).one()?) // (batch, seq, 256)
    }
}

impl Model for Bigram {
    fn parameters(&self) -> Result<Vec<Parameter>> {
        let parameter = |name: &str, shape: [usize; 2]| Parameter {
            spec: ParamSpec {
                name: name.into(),
                shape: shape.into(),
                init: Init::Normal { std: 0.3 },
                kind: ParamKind::Weight,
                fan_in: shape[1],
                layer: None,
            },
            lr_scale: 1.0,
        };
        Ok(vec![parameter("embedding", [256, WIDTH]), parameter("readout", [WIDTH, 256])])
    }

    fn loss(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        inputs: Inputs<'_>,
        _training: bool,
    ) -> Result<Measures> {
        let logits = self.logits(graph, parameters, inputs.tokens)?;
        let op = Op::CrossEntropy { mult: 1.0, mean: true };
        Ok(graph.op(op, &[logits, inputs.targets]).one()?.into())
    }

    fn next_logits(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        tokens: ValueId,
        position: ValueId,
    ) -> Result<ValueId> {
        let logits = self.logits(graph, parameters, tokens)?;
        let logits = graph.reshape(logits, [16, 256])?; // (seq, 256)
        Ok(graph.op(Op::Gather, &[logits, position]).one()?)
    }
}

/// Everything runs as it stands on the CPU backend.
pub const CPU: Target<'static> = Target { supports: &|_, _, _| Support::Native, strict: true };

pub fn settings(batch: usize, accumulate: usize, optimizer: Optimizer) -> Settings {
    Settings { batch, seq: 16, vocabulary: 256, accumulate, optimizer, clip: None }
}

pub fn session(recipe: &Recipe, settings: Settings) -> Session {
    let program = program::build(&Bigram, recipe, settings, CPU).expect("a program");
    let engine = CpuBackend::new().compile(&program.program).expect("the CPU runs it");
    let mut session = Session::new(program, engine);
    session.init(3).expect("initial state");
    session
}

pub fn f32_recipe() -> Recipe {
    Recipe::uniform("f32", Format::F32)
}

pub fn batch(rows: usize, first: u32) -> Batch {
    let tokens: Vec<u32> = (0..rows as u32 * 17).map(|i| (first + i * 7 + i * i) % 256).collect();
    let pick = |at: usize| tokens.chunks(17).flat_map(|row| row[at..at + 16].to_vec()).collect();
    Batch { inputs: pick(0), targets: pick(1), ..Batch::default() }
}

pub fn floats(tensor: &Tensor) -> Vec<f32> {
    let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    tensor.bytes.chunks_exact(4).map(four).collect()
}

pub fn tensor(session: &mut Session, name: &str) -> Vec<f32> {
    let state = session.state().expect("its state");
    floats(state.iter().find(|tensor| tensor.name == name).expect("a tensor of that name"))
}

pub fn corpus() -> Corpus {
    let text: String = (0..800).map(|n| format!("{n} and {}; ", n + 1)).collect();
    let document = Document { name: "numbers".into(), text: text.into_bytes() };
    Corpus::from_documents("numbers", vec![document], Vec::new())
}

pub fn config() -> Config {
    Config {
        steps: 60,
        batch: 8,
        eval_every: 20,
        save_every: 25,
        steps_per_call: 8,
        eval_batches: 2,
        lr: Some(0.05),
        model: ModelConfig {
            layers: 1,
            heads: 1,
            hidden: WIDTH,
            seq: 16,
            ..ModelConfig::default()
        },
        ..Config::default()
    }
}

pub fn trainer(config: &Config) -> Trainer {
    let optimizer = config.optimizer().expect("a known one");
    let settings = settings(config.batch, config.accumulate, optimizer);
    Trainer::new(session(&f32_recipe(), settings), config, 0.1, &corpus()).expect("a trainer")
}
