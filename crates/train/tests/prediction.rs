//! Predicted against measured: every tensor of a training step at initialisation, for the regular
//! and the unit-scaled GPT, with evenly and with unevenly frequent tokens.

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_graph::predict::{Ids, Known, Losses, Moments, losses, predict};
use onesigma_graph::{Role, Shape, SlotId};
use onesigma_ops::recipes;
use onesigma_train::config::{Config, ModelConfig};
use onesigma_train::model::Gpt;
use onesigma_train::numerics::{Measured, Moment, Options, Probe, measure};
use onesigma_train::program::{self, Settings, Target, build_step};
use onesigma_train::session::Session;

const SIZE: ModelConfig = ModelConfig {
    layers: 4,
    heads: 4,
    hidden: 128,
    seq: 64,
    norm_position: None,
    residual_tau: None,
    residual_mult: None,
    attention_keys: None,
};
const BATCH: usize = 8;
const RATE: f32 = 0.003;

/// The token that stands at a quantile: all alike, or the first ones most frequent, so that two
/// tokens are equal with probability 0.07, as bytes of English text are.
fn token(quantile: f64, uneven: bool) -> u32 {
    (256.0 * if uneven { quantile.powi(4) } else { quantile }) as u32
}

fn tokens(seed: u64, uneven: bool) -> Vec<u32> {
    let mut state = seed;
    let draw = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        token((state >> 40) as f64 / f64::from(1u32 << 24), uneven)
    };
    (0..BATCH * SIZE.seq).map(draw).collect()
}

fn frequencies(uneven: bool) -> Ids {
    let mut counts = [0; 256];
    for n in 0..1u32 << 16 {
        counts[token((f64::from(n) + 0.5) / f64::from(1u32 << 16), uneven) as usize] += 1;
    }
    Ids::counted(&counts)
}

/// A tensor as it was and as it was expected.
struct Pair {
    measured: Measured,
    expected: Moments,
}

impl Pair {
    fn name(&self) -> String {
        format!("{} {}", self.measured.role, self.measured.name)
    }

    /// Measured against expected scale. Second moments are squares of gradients, so that their
    /// root counts.
    fn ratio(&self) -> f64 {
        let ratio = self.measured.statistics.rms / self.expected.rms();
        if self.measured.role == Role::SecondMoment { ratio.sqrt() } else { ratio }
    }

    /// How far the scale is off, as a factor above 1.
    fn factor(&self) -> f64 {
        self.ratio().max(self.ratio().recip())
    }
}

/// Every tensor that is not zero.
fn pairs(recipe: &str, uneven: bool) -> Vec<Pair> {
    let recipe = recipes::by_name(recipe).expect("a built-in");
    let model = Gpt::new(&SIZE, recipes::parametrisation(&recipe)).expect("a size");
    let optimizer = Config::default().optimizer().expect("adamw");
    let settings = Settings {
        batch: BATCH,
        seq: SIZE.seq,
        vocabulary: 256,
        accumulate: 1,
        optimizer,
        clip: None,
    };
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
    let slots = step.slots;
    let words = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let inputs: Vec<(SlotId, Vec<u8>)> = vec![
        (slots.seed, 7u64.to_le_bytes().to_vec()),
        (slots.step, 0u32.to_le_bytes().to_vec()),
        (slots.lr, RATE.to_le_bytes().to_vec()),
        (slots.tokens, words(&tokens(1, uneven))),
        (slots.targets, words(&tokens(2, uneven))),
    ];
    let moment = Moment { state: &state, inputs: &inputs };
    let measured = measure(&probe, &backend, moment, &Options::default()).expect("tensors");

    let mut known = Known::start(&probe.init);
    known.ids(slots.tokens, frequencies(uneven));
    known.ids(slots.targets, frequencies(uneven));
    let scalar = |value| Moments::constant(&Shape::scalar(), value).expect("few axes");
    known.value(slots.lr, scalar(RATE.into()));
    known.value(slots.step, scalar(0.0));
    let prediction = predict(&probe.graph, &known);
    let expected = probe.taps.iter().map(|tap| {
        prediction.of(tap.value).unwrap_or_else(|| panic!("{} is unknown", tap.name)).clone()
    });
    let each = measured.into_iter().zip(expected);
    let pairs: Vec<Pair> = each.map(|(measured, expected)| Pair { measured, expected }).collect();
    for pair in &pairs {
        let (is_zero, expected) = (pair.measured.statistics.rms == 0.0, pair.expected.rms());
        assert_eq!(is_zero, expected == 0.0, "{}: {expected} expected", pair.name());
    }
    pairs.into_iter().filter(|pair| pair.measured.statistics.rms > 0.0).collect()
}

/// The value that a share of the list does not exceed.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

/// Half of all scales are within 4 %, nine tenths within 1.3, and none is off by more than 3.2.
///
/// What is off is where assumption 2 of the predictor fails, that positions are alike: in weight
/// gradients of attention, early positions have large outputs *and* large gradients (a regular
/// model with even tokens: factor 2.9 for `c_proj`, 1.8 for `v_proj`; with uneven tokens 1.7 for
/// `q_proj` and `k_proj`), and the readout's and the embedding's gradients of frequent tokens are
/// larger than those of rare ones, which the fourth moment of the update sees most.
#[test]
fn scales_are_as_expected() {
    for (recipe, uneven) in [("f32", false), ("f32", true), ("unit-f32", false), ("unit-f32", true)]
    {
        let pairs = pairs(recipe, uneven);
        assert!(pairs.len() >= 250, "{}", pairs.len());
        let name = format!("{recipe}, uneven tokens: {uneven}");
        for (share, bound) in [(0.5, 1.1), (0.9, 1.4), (1.0, 3.2)] {
            let found = quantile(pairs.iter().map(Pair::factor).collect(), share);
            assert!(found < bound, "{name}: {share} of the tensors within {found}, not {bound}");
        }
        let is_forward = |role| matches!(role, Role::Activation | Role::SavedActivation);
        let forward = pairs.iter().filter(|pair| is_forward(pair.measured.role));
        for pair in forward {
            assert!(pair.factor() < 1.3, "{name}: {} {}", pair.name(), pair.ratio());
        }
    }
}

/// Shares of elements that formats flush, clip or store as subnormals, in all formats together.
#[test]
fn losses_are_as_expected() {
    // Of nine tenths, as seen: shares within 0.0043, 0.040 and 0.059, decibels within 0.43, 1.49
    // and 1.99. Scaled gradients lie nearer to the borders of formats, so that an error in their
    // scale costs more.
    let bounds = [("f32", 0.01, 0.6), ("u-mup-f32", 0.05, 1.8), ("unit-f32", 0.07, 2.3)];
    for (recipe, bound, bound_db) in bounds {
        let (mut shares, mut decibels) = (Vec::new(), Vec::new());
        for pair in pairs(recipe, true) {
            let count = pair.measured.statistics.count as f64;
            for found in &pair.measured.statistics.formats {
                let Losses { underflow, overflow, subnormal, snr_db } =
                    losses(&pair.expected, found.format);
                for (found, expected) in [
                    (found.underflow, underflow),
                    (found.overflow, overflow),
                    (found.subnormal, subnormal),
                ] {
                    shares.push((found as f64 / count - expected).abs());
                }
                if let (Some(found), Some(expected)) = (found.snr_db, snr_db) {
                    decibels.push((found - expected).abs());
                }
            }
        }
        assert!(shares.len() > 5000 && decibels.len() > 1500);
        assert!(quantile(shares.clone(), 0.9) < bound, "{recipe}: {}", quantile(shares, 0.9));
        assert!(quantile(decibels.clone(), 0.5) < 0.1, "{recipe}: {}", quantile(decibels, 0.5));
        assert!(
            quantile(decibels.clone(), 0.9) < bound_db,
            "{recipe}: {}",
            quantile(decibels, 0.9)
        );
    }
}
