//! What every variant of a model is checked for, given an independent evaluation of its loss.

use super::plain::Dual;
use super::{Step, direction, dot};
use onesigma_backend_cpu::CpuBackend;

/// The loss with parameter `n` moved by a multiple of a direction, and its derivative along it.
pub type Loss<'a> = &'a dyn Fn(usize, f64, &[f64]) -> Dual;

/// Random directions per parameter.
const DIRECTIONS: u32 = 4;

/// Loss and gradients of the step in f64 against the evaluation. The gradient of each parameter
/// must be the true one times one positive constant (the theorem of the cut-edge rule): projected
/// on any direction both agree. Gives the constants; `None` where there is no gradient. In a
/// regular model all must be 1.
pub fn gradients_are_proportional(title: &str, step: &Step, loss: Loss<'_>) -> Vec<Option<f64>> {
    let read = step.run_exact();
    let expected = loss(0, 0.0, &[]).0;
    let found = read(step.slots.loss)[0];
    assert!((found - expected).abs() < 1e-12, "{title}: loss {found} instead of {expected}");
    let check = |(at, spec): (usize, &onesigma_models::ParamSpec)| {
        let gradient = read(step.slots.grads[at]);
        let (mut found, mut exact) = (Vec::new(), Vec::new());
        for stream in 0..DIRECTIONS {
            let along = direction(gradient.len(), stream, at as u32);
            found.push(dot(&gradient, &along));
            exact.push(loss(at, 0.0, &along).1);
            if stream == 0 && exact[0].abs() > 1e-6 {
                // The derivative of the evaluation itself, by finite differences.
                let h = 1e-5 / (gradient.len() as f64).sqrt();
                let numeric = (loss(at, h, &along).0 - loss(at, -h, &along).0) / (2.0 * h);
                let error = (numeric - exact[0]).abs() / exact[0].abs();
                assert!(error < 1e-4, "{title} {}: {numeric} {}", spec.name, exact[0]);
            }
        }
        let size = dot(&exact, &exact).sqrt();
        if size < 1e-9 {
            // The bias of the keys has no influence: its gradient is rounding.
            assert!(dot(&found, &found).sqrt() < 1e-8, "{title} {}: {found:?}", spec.name);
            return None;
        }
        let constant = dot(&found, &exact) / (size * size);
        let wrong: Vec<f64> = found.iter().zip(&exact).map(|(a, b)| a - b * constant).collect();
        let error = dot(&wrong, &wrong).sqrt() / (size * constant.abs());
        assert!(error < 1e-9, "{title} {}: {error:e}: {found:?} {exact:?}", spec.name);
        assert!(constant > 0.0, "{title} {}: {constant}", spec.name);
        if !step.p.is_scaled() {
            assert!((constant - 1.0).abs() < 1e-9, "{title} {}: {constant}", spec.name);
        }
        Some(constant)
    };
    step.specs.iter().enumerate().map(check).collect()
}

/// The CPU's kernels give the loss and gradients of f64, in f32.
pub fn the_cpu_agrees(title: &str, step: &Step) {
    let exact = step.run_exact();
    let slots = &step.slots;
    let mut wanted = vec![slots.loss];
    wanted.extend(&slots.grads);
    let found = step.run(&CpuBackend::new(), &wanted);
    for (slot, found) in wanted.iter().zip(found) {
        let expected = exact(*slot);
        let name = &step.program.slots()[slot.index()].name;
        let wrong: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
        // The keys' bias has no gradient but rounding, which goes with the size of its terms: the
        // gradients of the keys, about 1 unit-scaled and a tenth of that in a regular model.
        let floor = if step.p.is_scaled() { 1.0 } else { 0.1 };
        let size = dot(&expected, &expected).sqrt().max(floor);
        let error = dot(&wrong, &wrong).sqrt() / size;
        assert!(error < 1e-5, "{title} {name}: {error:e}");
    }
}
