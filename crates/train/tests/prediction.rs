//! Predicted against measured moments of every tensor of a training step at initialisation.

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_graph::predict::{Ids, Known, Moments, predict};
use onesigma_graph::{Shape, SlotId};
use onesigma_ops::recipes;
use onesigma_train::config::{Config, ModelConfig};
use onesigma_train::model::Gpt;
use onesigma_train::numerics::{Moment, Options, Probe, measure};
use onesigma_train::program::{self, HostSlots, Settings, Target, build_step};
use onesigma_train::session::Session;

const SIZE: ModelConfig = ModelConfig {
    layers: 4,
    heads: 4,
    hidden: 128,
    seq: 64,
    norm_position: None,
    residual_tau: None,
    residual_mult: None,
};
const BATCH: usize = 8;

fn tokens(seed: u64, skew: bool) -> Vec<u32> {
    let mut state = seed;
    (0..BATCH * SIZE.seq)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let u = (state >> 40) as f64 / (1u64 << 24) as f64;
            if skew { (256.0 * u.powi(4)) as u32 } else { (256.0 * u) as u32 }
        })
        .collect()
}

#[test]
fn explore() {
    for recipe in ["f32", "unit-f32"] {
        for skew in [false, true] {
            compare(recipe, skew);
        }
    }
}

fn compare(recipe: &str, skew: bool) {
    let recipe = recipes::by_name(recipe).expect("a built-in");
    let model = Gpt::new(&SIZE, recipes::parametrisation(&recipe)).expect("a size");
    let optimizer = Config::default().optimizer().expect("adamw");
    let settings =
        Settings { batch: BATCH, seq: SIZE.seq, vocabulary: 256, accumulate: 1, optimizer };
    let step = build_step(&model, &recipe, settings).expect("a step");
    let probe = Probe::new(&step).expect("a probe");
    let backend = CpuBackend::new();
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let target = Target { supports: &supports, strict: false };
    let program = program::build(&model, &recipe, settings, target).expect("a program");
    let engine = backend.compile(&program.program).expect("an engine");
    let mut session = Session::new(program, engine);
    session.init(7).expect("a start");
    let state = session.state().expect("a state");
    let slots: HostSlots = step.slots;
    let words = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let (x, t) = (tokens(1, skew), tokens(2, skew));
    let inputs: Vec<(SlotId, Vec<u8>)> = vec![
        (slots.seed, 7u64.to_le_bytes().to_vec()),
        (slots.step, 0u32.to_le_bytes().to_vec()),
        (slots.lr, 0.003f32.to_le_bytes().to_vec()),
        (slots.tokens, words(&x)),
        (slots.targets, words(&t)),
    ];
    let moment = Moment { state: &state, inputs: &inputs };
    let measured = measure(&probe, &backend, moment, &Options::default()).expect("tensors");

    let started = std::time::Instant::now();
    let mut known = Known::start(&probe.init);
    let collision = |ids: &[u32]| {
        let mut counts = [0.0; 256];
        for &id in ids {
            counts[id as usize] += 1.0;
        }
        let n = ids.len() as f64;
        counts.iter().map(|c| c * (c - 1.0)).sum::<f64>() / (n * (n - 1.0))
    };
    known.ids(slots.tokens, Ids { count: 256, collision: collision(&x) });
    known.ids(slots.targets, Ids { count: 256, collision: collision(&t) });
    known.value(slots.lr, Moments::constant(&Shape::scalar(), 0.003).expect("scalar"));
    known.value(slots.step, Moments::constant(&Shape::scalar(), 0.0).expect("scalar"));
    let prediction = predict(&probe.graph, &known);
    println!(
        "== {} skew {skew}: predicted in {:?}, collision {}",
        recipe.name,
        started.elapsed(),
        collision(&x)
    );
    for (tap, measured) in probe.taps.iter().zip(&measured) {
        let s = &measured.statistics;
        let Some(m) = prediction.of(tap.value) else {
            println!("   ???    {:?} {} {}", tap.role, tap.op, tap.name);
            continue;
        };
        let ratio = s.rms / m.rms();
        let mark = if (0.8..1.25).contains(&ratio) { ' ' } else { '*' };
        println!(
            "{mark} {ratio:8.3} rms {:10.3e} pred {:10.3e} mean {:10.2e} pred {:10.2e} {} {} {}",
            s.rms,
            m.rms(),
            s.mean,
            m.mean(),
            tap.role,
            tap.op,
            tap.name
        );
    }
}
