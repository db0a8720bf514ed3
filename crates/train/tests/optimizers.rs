//! Optimisers and clipping as they run, against their formulas in f64.

use onesigma_format::{Format, Rounding};
use onesigma_graph::Role;
use onesigma_graph::recipe::{Recipe, Rule, Scaling, Use};
use onesigma_train::batch::Batch;
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program::Settings;
use onesigma_train::session::Session;

mod common;

use common::{ADAMW, SGD, batch, f32_recipe, session, settings, tensor};

const NAMES: [&str; 2] = ["embedding", "readout"];
const RATE: f32 = 0.05;
const DECAY: f64 = 0.3;
const B1: f64 = 0.9;
const B2: f64 = 0.95;
const EPS: f64 = 1e-8;

fn weights(session: &mut Session) -> Vec<f64> {
    NAMES.iter().flat_map(|name| tensor(session, name)).map(f64::from).collect()
}

/// The true gradient of a batch at the session's weights: what plain descent moves by.
fn gradient(at: &[f64], data: &Batch) -> Vec<f64> {
    let mut probe = session(&f32_recipe(), settings(2, 1, SGD));
    let values = NAMES.iter().zip(at.chunks(at.len() / 2));
    let values = values
        .map(|(name, values)| {
            ((*name).to_owned(), values.iter().map(|&value| value as f32).collect())
        })
        .collect();
    probe.load(&values).expect("its own parameters");
    let before = weights(&mut probe);
    // A large rate, so that the difference keeps the gradient's digits.
    probe.train(0, &[64.0], std::slice::from_ref(data)).expect("a step");
    before.iter().zip(weights(&mut probe)).map(|(b, a)| (b - a) / 64.0).collect()
}

/// A formula: weights and states of all elements from the gradient of step `t`.
type Formula = fn(w: &mut f64, m: &mut f64, v: &mut f64, g: f64, t: i32);

fn adam(w: &mut f64, m: &mut f64, v: &mut f64, g: f64, t: i32) {
    *m = B1 * *m + (1.0 - B1) * g;
    *v = B2 * *v + (1.0 - B2) * g * g;
    let (m, v) = (*m / (1.0 - B1.powi(t)), *v / (1.0 - B2.powi(t)));
    *w -= f64::from(RATE) * m / (v.sqrt() + EPS);
}

#[test]
fn every_optimiser_follows_its_formula() {
    let rate = f64::from(RATE);
    assert_eq!(rate as f32, RATE);
    let cases: [(Optimizer, Formula); 4] = [
        (Optimizer::AdamW { beta1: B1, beta2: B2, eps: EPS, decay: DECAY }, |w, m, v, g, t| {
            *w *= 1.0 - f64::from(RATE) * DECAY;
            adam(w, m, v, g, t);
        }),
        (Optimizer::Adam { beta1: B1, beta2: B2, eps: EPS, decay: DECAY }, |w, m, v, g, t| {
            let penalised = g + DECAY * *w;
            adam(w, m, v, penalised, t);
        }),
        (Optimizer::Lion { beta1: B1, beta2: B2, decay: DECAY }, |w, m, _, g, _| {
            let mixed = B1 * *m + (1.0 - B1) * g;
            let sign = if mixed == 0.0 { 0.0 } else { mixed.signum() };
            *w = *w * (1.0 - f64::from(RATE) * DECAY) - f64::from(RATE) * sign;
            *m = B2 * *m + (1.0 - B2) * g;
        }),
        (Optimizer::Sgd { momentum: B1, decay: DECAY }, |w, m, _, g, _| {
            *m = B1 * *m + g;
            *w = *w * (1.0 - f64::from(RATE) * DECAY) - f64::from(RATE) * *m;
        }),
    ];
    for (optimizer, formula) in cases {
        let mut real = session(&f32_recipe(), settings(2, 1, optimizer));
        let mut w = weights(&mut real);
        let (mut m, mut v) = (vec![0.0; w.len()], vec![0.0; w.len()]);
        for step in 0..4 {
            let data = batch(2, 7 * step as u32);
            // Where the real weights are: signs may not differ by a rounding.
            let g = gradient(&weights(&mut real), &data);
            for (i, g) in g.into_iter().enumerate() {
                formula(&mut w[i], &mut m[i], &mut v[i], g, step + 1);
            }
            real.train(step as u64, &[RATE], &[data]).expect("a step");
        }
        let found = weights(&mut real);
        let far = w.iter().zip(&found).filter(|(a, b)| (*a - *b).abs() > 2e-5).count();
        // A gradient that is zero but for rounding has no sign to agree on.
        assert!(far * 500 <= w.len(), "{optimizer:?}: {far} of {} weights differ", w.len());
        assert!(
            w.iter()
                .zip(weights(&mut session(&f32_recipe(), settings(2, 1, optimizer))))
                .any(|(a, b)| (a - b).abs() > 0.05),
            "{optimizer:?} moved nothing"
        );
    }
}

const LION: Optimizer = Optimizer::Lion { beta1: 0.9, beta2: 0.99, decay: 0.0 };
const MOMENTUM: Optimizer = Optimizer::Sgd { momentum: 0.9, decay: 0.0 };

/// States take the bytes of their format, and training works in all that are meant for it.
#[test]
fn states_in_narrow_formats_train_and_take_their_bytes() {
    let stochastic = Rounding::Stochastic { bits: 16 };
    for (optimizer, first, second) in [
        (ADAMW, Format::BF16, Format::BF16),
        (ADAMW, Format::E4M3, Format::F16),
        (
            Optimizer::Adam { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 1e-4 },
            Format::F16,
            Format::BF16,
        ),
        (LION, Format::BF16, Format::F32),
        (LION, Format::E5M2, Format::F32),
        (MOMENTUM, Format::F16, Format::F32),
    ] {
        let mut recipe = f32_recipe();
        for (role, format) in [(Role::FirstMoment, first), (Role::SecondMoment, second)] {
            let rule = Rule::new(role, Use::Store, format);
            recipe.rules.insert(0, Rule { rounding: stochastic, ..rule });
        }
        let mut session = session(&recipe, settings(4, 1, optimizer));
        let data = batch(4, 1);
        let rate = if optimizer == MOMENTUM { 1.0 } else { 0.02 };
        let losses: Vec<f32> = (0..120)
            .flat_map(|step| {
                session.train(step, &[rate], std::slice::from_ref(&data)).expect("a step")
            })
            .collect();
        assert!(losses[119] < losses[0] - 0.5, "{optimizer:?} {first} {second}: {losses:?}");
        for tensor in session.state().expect("its state") {
            let numel: usize = tensor.shape.iter().product();
            let expected = match tensor.name.rsplit('.').next() {
                Some("first_moment") => first,
                Some("second_moment") => second,
                _ => Format::F32,
            };
            assert_eq!(tensor.bytes.len(), numel * expected.bytes(), "{}", tensor.name);
        }
    }
}

fn clipping(batch: usize, accumulate: usize, clip: f64) -> Settings {
    Settings { clip: Some(clip), ..settings(batch, accumulate, SGD) }
}

fn length(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// How far a step of rate 1 moves, and the norm that it reports.
fn moves(recipe: &Recipe, settings: Settings, passes: &[Batch]) -> (Vec<f64>, f64) {
    let mut session = session(recipe, settings);
    let before = weights(&mut session);
    session.train(0, &[1.0], passes).expect("a step");
    let norm = f64::from(session.grad_norms()[0]);
    (before.iter().zip(weights(&mut session)).map(|(b, a)| b - a).collect(), norm)
}

#[test]
fn a_long_gradient_is_shortened_and_a_short_one_left_alone() {
    let data = batch(2, 5);
    let at = weights(&mut session(&f32_recipe(), settings(2, 1, SGD)));
    let true_gradient = gradient(&at, &data);
    let norm = length(&true_gradient);
    let passes = std::slice::from_ref(&data);

    let (free, reported) = moves(&f32_recipe(), clipping(2, 1, norm * 1.01), passes);
    assert!((reported / norm - 1.0).abs() < 1e-4, "{reported} for {norm}");
    assert!((length(&free) / norm - 1.0).abs() < 1e-4);

    let (cut, reported) = moves(&f32_recipe(), clipping(2, 1, norm / 10.0), passes);
    assert!((reported / norm - 1.0).abs() < 1e-4, "the norm is that before it is clipped");
    assert!((length(&cut) / norm * 10.0 - 1.0).abs() < 1e-4);
    for (cut, free) in cut.iter().zip(&true_gradient) {
        assert!((10.0 * cut - free).abs() < 1e-4 * norm, "the direction has changed");
    }
}

#[test]
fn loss_scales_and_accumulation_are_taken_out_of_the_norm() {
    let scaled = Recipe {
        scaling: Scaling::Loss { init: 4096.0, growth: 2.0, backoff: 0.5, interval: 100 },
        ..f32_recipe()
    };
    let (first, second) = (batch(2, 5), batch(2, 60));
    let both = Batch {
        inputs: [first.inputs.clone(), second.inputs.clone()].concat(),
        targets: [first.targets.clone(), second.targets.clone()].concat(),
        ..Batch::default()
    };
    let (whole, norm) = moves(&f32_recipe(), clipping(4, 1, 1e-3), &[both]);
    for recipe in [f32_recipe(), scaled] {
        let passes = [first.clone(), second.clone()];
        let (split, own) = moves(&recipe, clipping(2, 2, 1e-3), &passes);
        assert!((own / norm - 1.0).abs() < 1e-4, "{own} for {norm}");
        assert!(split.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-7));
    }
}

#[test]
fn a_gradient_that_is_not_finite_is_skipped_under_clipping() {
    let mut recipe = Recipe {
        scaling: Scaling::Loss { init: 2f64.powi(30), growth: 2.0, backoff: 0.5, interval: 100 },
        ..Recipe::uniform("f16", Format::F16)
    };
    for rule in &mut recipe.rules {
        rule.overflow = onesigma_format::Overflow::Special;
    }
    let (moved, norm) = moves(&recipe, clipping(2, 1, 1.0), &[batch(2, 5)]);
    assert!(moved.iter().all(|&distance| distance == 0.0));
    assert!(!norm.is_finite());
}
