//! The optimiser's update.

use super::law::Law;
use super::moments::{Axes, Moments};
use super::normal::{POINTS, Sequence, below};
use super::rules::Rule;
use crate::AdamWConfig;

/// New weight, first and second moment. Gradient and moments are taken as independent of each
/// other, which is exact at the first step, where the moments are zero.
pub(crate) fn adam_w(rule: &Rule<'_>, config: &AdamWConfig) -> Option<Vec<Option<Moments>>> {
    let AdamWConfig { beta1, beta2, eps, decay, lr_scale } = *config;
    let [w, g, m, v, lr] = [rule.x(0)?, rule.x(1)?, rule.x(2)?, rule.x(3)?, rule.x(4)?];
    let factor = rule.x(6)?.mean();
    let lr = lr.mean();
    let t = rule.values[rule.node.inputs[5].index()].as_ref().map_or(0.0, Moments::mean) + 1.0;
    let g = g.clone().scaled(factor);
    let dims = w.dims();

    let fresh = 1.0 - beta1;
    let mean = beta1 * m.mean() + fresh * g.mean();
    let law = if m.rms() > 0.0 { Law::Normal } else { g.law().clone() };
    let first = Moments::new(dims, mean, law, None, |axes| {
        beta1 * beta1 * m.pair(axes)
            + fresh * fresh * g.pair(axes)
            + 2.0 * beta1 * fresh * m.mean() * g.mean()
    });

    let draws = Draws::new(&g, m, v);
    let newest = |g: f64, v: f64| beta2 * v + (1.0 - beta2) * g * g;
    let second_values: Vec<f64> = draws.values(|g, _, v| newest(g, v));
    let square = g.pair(0);
    let fourth = draws.values(|g, _, _| g.powi(4)).iter().sum::<f64>() / POINTS as f64;
    let mean = beta2 * v.mean() + (1.0 - beta2) * square;
    let second = Moments::new(dims, mean, Law::of_values(second_values), None, |axes| {
        // Squares of jointly normal numbers: E[g^2 g'^2] = E[g^2]^2 + 2 E[g g']^2.
        let squares = if axes == 0 { fourth } else { square * square + 2.0 * g.pair(axes).powi(2) };
        beta2 * beta2 * v.pair(axes)
            + (1.0 - beta2).powi(2) * squares
            + 2.0 * beta2 * (1.0 - beta2) * v.mean() * square
    });

    let corrections = [1.0 - beta1.powf(t), 1.0 - beta2.powf(t)].map(|c| c.max(f64::MIN_POSITIVE));
    let steps = draws.values(|g, m, v| {
        let first = (beta1 * m + fresh * g) / corrections[0];
        first / ((newest(g, v) / corrections[1]).sqrt() + eps)
    });
    let step_mean = steps.iter().sum::<f64>() / POINTS as f64;
    let step_square = steps.iter().map(|x| x * x).sum::<f64>() / POINTS as f64;
    let kept = 1.0 - lr * decay;
    let rate = lr * lr_scale;
    // A step is small against the weight, or the weight was constant and the step is all.
    let law = if w.sigma() > 0.0 { w.law().clone() } else { Law::of_values(steps.clone()) };
    let weight = Moments::new(dims, kept * w.mean() - rate * step_mean, law, None, |axes: Axes| {
        // Steps are about as alike as the signs of the gradients: (2/pi) asin(r).
        let r = if square > 0.0 { (g.pair(axes) / square).clamp(-1.0, 1.0) } else { 0.0 };
        let alike = if axes == 0 { 1.0 } else { r.asin() * std::f64::consts::FRAC_2_PI };
        kept * kept * w.pair(axes) + rate * rate * step_square * alike
            - 2.0 * kept * rate * w.mean() * step_mean
    });
    Some(vec![weight, first, second])
}

/// Gradients and moments drawn together.
struct Draws {
    values: Vec<[f64; 3]>,
}

impl Draws {
    fn new(g: &Moments, m: &Moments, v: &Moments) -> Self {
        let sequence = Sequence::new(3);
        let values = (0..POINTS)
            .map(|point| {
                let draw = |moments: &Moments, axis| {
                    let z = sequence.normal(point, axis);
                    moments.element(z, || below(z))
                };
                [draw(g, 0), draw(m, 1), draw(v, 2).max(0.0)]
            })
            .collect();
        Self { values }
    }

    fn values(&self, f: impl Fn(f64, f64, f64) -> f64) -> Vec<f64> {
        self.values.iter().map(|&[g, m, v]| f(g, m, v)).collect()
    }
}
