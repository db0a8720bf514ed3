//! The whole GPT step against an independent evaluation: the forward pass written here in plain
//! loops over dual numbers, which carry an exact derivative, and finite differences beside it.

mod support;

use onesigma_backend_cpu::CpuBackend;
use onesigma_models::GptConfig;
use onesigma_models::config::{Activation, Norm};
use onesigma_ops::Parametrisation;
use std::f64::consts::PI;
use std::ops::{Add, Div, Mul, Sub};
use support::Step;

/// Value and derivative along one direction of parameter space.
#[derive(Clone, Copy)]
struct Dual(f64, f64);

impl Add for Dual {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self(self.0 + o.0, self.1 + o.1)
    }
}

impl Sub for Dual {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        Self(self.0 - o.0, self.1 - o.1)
    }
}

impl Mul for Dual {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        Self(self.0 * o.0, self.1 * o.0 + self.0 * o.1)
    }
}

impl Div for Dual {
    type Output = Self;
    fn div(self, o: Self) -> Self {
        Self(self.0 / o.0, (self.1 - self.0 / o.0 * o.1) / o.0)
    }
}

impl Mul<f64> for Dual {
    type Output = Self;
    fn mul(self, k: f64) -> Self {
        Self(self.0 * k, self.1 * k)
    }
}

impl Dual {
    const ZERO: Self = Self(0.0, 0.0);

    fn exp(self) -> Self {
        Self(self.0.exp(), self.1 * self.0.exp())
    }

    fn ln(self) -> Self {
        Self(self.0.ln(), self.1 / self.0)
    }

    fn sqrt(self) -> Self {
        Self(self.0.sqrt(), self.1 / (2.0 * self.0.sqrt()))
    }

    fn activate(self, activation: Activation) -> Self {
        let Self(x, dx) = self;
        let (value, derivative) = match activation {
            Activation::Gelu => {
                let cdf = 0.5 * (1.0 + onesigma_graph::special::erf(x / 2_f64.sqrt()));
                (x * cdf, cdf + x * (-x * x / 2.0).exp() / (2.0 * PI).sqrt())
            }
            Activation::GeluNew => {
                let c = (2.0 / PI).sqrt();
                let t = (c * (x + 0.044715 * x.powi(3))).tanh();
                let inner = c * (1.0 + 3.0 * 0.044715 * x * x);
                (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
            }
            Activation::Silu => {
                let s = 1.0 / (1.0 + (-x).exp());
                (x * s, s + x * s * (1.0 - s))
            }
            other => panic!("{other:?} is not evaluated here"),
        };
        Self(value, derivative * dx)
    }
}

/// Forward pass of a model whose parameters are looked up by name.
struct Evaluator<'a> {
    step: &'a Step,
    parameters: Vec<Vec<Dual>>,
}

impl<'a> Evaluator<'a> {
    /// Parameters moved by `by`, and the derivative along `direction`, of one parameter.
    fn new(step: &'a Step, parameter: usize, by: f64, direction: &[f64]) -> Self {
        let mut parameters: Vec<Vec<Dual>> = step
            .weights
            .iter()
            .map(|values| values.iter().map(|&value| Dual(f64::from(value), 0.0)).collect())
            .collect();
        for (value, &d) in parameters[parameter].iter_mut().zip(direction) {
            *value = Dual(value.0 + by * d, d);
        }
        Self { step, parameters }
    }

    fn find(&self, name: &str) -> Option<&[Dual]> {
        let at = self.step.specs.iter().position(|spec| spec.name == name)?;
        Some(&self.parameters[at])
    }

    fn param(&self, name: &str) -> &[Dual] {
        self.find(name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    fn unit(&self) -> bool {
        self.step.p.is_scaled()
    }

    fn norm(&self, name: &str, x: &[Dual]) -> Vec<Dual> {
        let n = x.len() as f64;
        let eps = Dual(self.step.config.layer_norm_epsilon, 0.0);
        let weight = self.param(&format!("{name}.weight"));
        let bias = self.find(&format!("{name}.bias"));
        let mut mean = Dual::ZERO;
        if self.step.config.norm == Norm::LayerNorm {
            mean = x.iter().fold(Dual::ZERO, |sum, &x| sum + x) * (1.0 / n);
        }
        let square = |sum: Dual, &x: &Dual| sum + (x - mean) * (x - mean);
        let root = (x.iter().fold(Dual::ZERO, square) * (1.0 / n) + eps).sqrt();
        (0..x.len())
            .map(|i| {
                let y = (x[i] - mean) / root * weight[i];
                bias.map_or(y, |bias| y + bias[i])
            })
            .collect()
    }

    /// `(W x + b) scale`
    fn linear(&self, name: &str, x: &[Dual], scale: f64) -> Vec<Dual> {
        let weight = self.param(&format!("{name}.weight"));
        let bias = self.find(&format!("{name}.bias"));
        (0..weight.len() / x.len())
            .map(|o| {
                let row = &weight[o * x.len()..(o + 1) * x.len()];
                let start = bias.map_or(Dual::ZERO, |bias| bias[o]);
                row.iter().zip(x).fold(start, |sum, (&w, &x)| sum + w * x) * scale
            })
            .collect()
    }

    fn loss(&self) -> Dual {
        let config = &self.step.config;
        let (width, inner) = (config.n_embd, 4 * config.n_embd);
        let scale = |size: usize| if self.unit() { (size as f64).powf(-0.5) } else { 1.0 };
        let mut total = Dual::ZERO;
        for b in 0..self.step.batch {
            let ids = &self.step.tokens[b * self.step.seq..][..self.step.seq];
            let targets = &self.step.targets[b * self.step.seq..][..self.step.seq];
            let tokens = self.param("transformer.wte.weight");
            let positions = self.param("transformer.wpe.weight");
            let mut x: Vec<Vec<Dual>> = ids
                .iter()
                .enumerate()
                .map(|(t, &id)| {
                    let sum = |c| tokens[id as usize * width + c] + positions[t * width + c];
                    (0..width).map(|c| sum(c) * scale(2)).collect()
                })
                .collect();
            for layer in 0..config.n_layer {
                let name = format!("transformer.h.{layer}");
                let [a, s] = self.factors(2 * layer);
                let branch = self.attention(&name, &x, scale(width));
                combine(&mut x, &branch, a, s);
                let [a, s] = self.factors(2 * layer + 1);
                let branch: Vec<Vec<Dual>> = x
                    .iter()
                    .map(|x| {
                        let x = self.norm(&format!("{name}.ln_2"), x);
                        let x = self.linear(&format!("{name}.mlp.c_fc"), &x, scale(width));
                        let k = self.activation_scale();
                        let act = |x: Dual| x.activate(config.activation_function) * k;
                        let x: Vec<Dual> = x.into_iter().map(act).collect();
                        self.linear(&format!("{name}.mlp.c_proj"), &x, scale(inner))
                    })
                    .collect();
                combine(&mut x, &branch, a, s);
            }
            for (x, &target) in x.iter().zip(targets) {
                let x = self.norm("transformer.ln_f", x);
                let tied = self.find("lm_head.weight").is_none();
                let name = if tied { "transformer.wte" } else { "lm_head" };
                let scale = if self.unit() { 1.0 / width as f64 } else { 1.0 };
                let logits = self.linear(name, &x, scale);
                let sum = logits.iter().fold(Dual::ZERO, |sum, &x| sum + x.exp());
                total = total + sum.ln() - logits[target as usize];
            }
        }
        total * (1.0 / (self.step.batch * self.step.seq) as f64)
    }

    /// Factors of branch and skip: with equal weights, `tau_i = 1/sqrt(L + i)`.
    fn factors(&self, branch: usize) -> [f64; 2] {
        if !self.unit() {
            return [1.0, 1.0];
        }
        let tau = 1.0 / ((self.step.config.n_layer + branch) as f64).sqrt();
        let norm = (1.0 + tau * tau).sqrt();
        [tau / norm, 1.0 / norm]
    }

    /// Both activations: a = 0.8 between the ReLU's factor and 2.
    fn activation_scale(&self) -> f64 {
        if !self.unit() {
            return 1.0;
        }
        (2.0 / (1.0 - 1.0 / PI)).sqrt().powf(0.8) * 2_f64.powf(0.2)
    }

    fn attention(&self, name: &str, x: &[Vec<Dual>], scale: f64) -> Vec<Vec<Dual>> {
        let config = &self.step.config;
        let d = config.n_embd / config.n_head;
        let x: Vec<_> = x.iter().map(|x| self.norm(&format!("{name}.ln_1"), x)).collect();
        let project = |part: &str| -> Vec<Vec<Dual>> {
            let name = format!("{name}.attn.{part}");
            x.iter().map(|x| self.linear(&name, x, scale)).collect()
        };
        let (q, k, v) = (project("q_proj"), project("k_proj"), project("v_proj"));
        let (mut logit_scale, mut out_scale) = (1.0 / (d as f64).sqrt(), 1.0);
        if self.unit() {
            logit_scale = 1.0 / d as f64;
            let s = x.len() as f64;
            let a = 1.0 / (1.0 + 4.0 * d as f64);
            out_scale = 1.0 / (s.ln() / s).sqrt().powf(1.0 - a);
        }
        let mut result = Vec::new();
        for t in 0..x.len() {
            let mut row = vec![Dual::ZERO; config.n_embd];
            for head in 0..config.n_head {
                let range = head * d..(head + 1) * d;
                let weight = |key: usize| {
                    let dot = range.clone().fold(Dual::ZERO, |sum, c| sum + q[t][c] * k[key][c]);
                    (dot * logit_scale).exp()
                };
                let weights: Vec<Dual> = (0..=t).map(weight).collect();
                let sum = weights.iter().fold(Dual::ZERO, |sum, &w| sum + w);
                for c in range.clone() {
                    let mixed = (0..=t).fold(Dual::ZERO, |y, key| y + weights[key] * v[key][c]);
                    row[c] = mixed / sum * out_scale;
                }
            }
            result.push(self.linear(&format!("{name}.attn.c_proj"), &row, scale));
        }
        result
    }
}

fn combine(x: &mut [Vec<Dual>], branch: &[Vec<Dual>], a: f64, s: f64) {
    for (x, branch) in x.iter_mut().zip(branch) {
        for (x, &y) in x.iter_mut().zip(branch) {
            *x = y * a + *x * s;
        }
    }
}

/// By which constant the gradient of a parameter differs from the true one, from the scales of the
/// paper written down by hand: 1 in a regular model.
fn constant(step: &Step, name: &str) -> f64 {
    if !step.p.is_scaled() {
        return 1.0;
    }
    let config = &step.config;
    let n = (step.batch * step.seq) as f64;
    let (v, c) = (config.vocab_size as f64, config.n_embd as f64);
    let f = 4.0 * c;
    let loss = n * v / (v - 1.0).sqrt();
    if name == "lm_head.weight" {
        return loss * c / n.sqrt();
    }
    let trunk = loss * c / v.sqrt();
    match name {
        "transformer.ln_f.weight" | "transformer.ln_f.bias" => return trunk / n.sqrt(),
        "transformer.wte.weight" => return trunk * 2_f64.sqrt() * (v / n).sqrt(),
        "transformer.wpe.weight" => return trunk * 2_f64.sqrt() / (step.batch as f64).sqrt(),
        _ => {}
    }
    let words: Vec<&str> = name.split('.').collect();
    let layer: usize = words[2].parse().expect("transformer.h.<layer>");
    let branch = 2 * layer + usize::from(words[3] == "mlp" || words[3] == "ln_2");
    let tau = 1.0 / ((config.n_layer + branch) as f64).sqrt();
    // The branch's factor is missing in its gradients.
    let branch = trunk * (1.0 + tau * tau).sqrt() / tau / n.sqrt();
    match (words[3], words[4]) {
        ("ln_1" | "ln_2", _) => branch,
        ("attn", _) => branch * c.sqrt(),
        ("mlp", "c_proj") => branch * f.sqrt(),
        ("mlp", "c_fc") => branch * (f / c).sqrt() * c.sqrt(),
        _ => panic!("no constant for {name}"),
    }
}

fn models() -> Vec<Step> {
    let base = GptConfig {
        vocab_size: 11,
        n_positions: 7,
        n_embd: 6,
        n_layer: 2,
        n_head: 2,
        initializer_range: 0.5,
        ..GptConfig::default()
    };
    let change = |activation, norm, bias| GptConfig {
        activation_function: activation,
        norm,
        bias,
        ..base.clone()
    };
    let untied = |config| GptConfig { tie_word_embeddings: Some(false), ..config };
    let (unit, regular) = (Parametrisation::UMup, Parametrisation::Regular);
    [
        (change(Activation::Gelu, Norm::LayerNorm, true), unit, 7),
        (change(Activation::Silu, Norm::RmsNorm, false), unit, 5),
        (change(Activation::GeluNew, Norm::LayerNorm, true), regular, 7),
        (untied(change(Activation::Silu, Norm::RmsNorm, false)), regular, 5),
    ]
    .into_iter()
    .map(|(config, p, seq)| Step::new(config, p, [2, seq], false))
    .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[test]
fn loss_and_every_gradient_agree_with_an_independent_evaluation() {
    for step in models() {
        let read = step.run_exact();
        let loss = Evaluator::new(&step, 0, 0.0, &[]).loss().0;
        let found = read(step.slots.loss)[0];
        assert!((found - loss).abs() < 1e-12, "{found} instead of {loss}");
        for (at, spec) in step.specs.iter().enumerate() {
            let gradient = read(step.slots.grads[at]);
            // One dual evaluation for each element: the exact gradient.
            let exact: Vec<f64> = (0..gradient.len())
                .map(|element| {
                    let mut direction = vec![0.0; gradient.len()];
                    direction[element] = 1.0;
                    Evaluator::new(&step, at, 0.0, &direction).loss().1
                })
                .map(|derivative| derivative * constant(&step, &spec.name))
                .collect();
            // The bias of the keys has no influence: its gradient is rounding.
            let size = dot(&exact, &exact).sqrt().max(1e-3);
            let wrong: Vec<f64> = gradient.iter().zip(&exact).map(|(a, b)| a - b).collect();
            let error = dot(&wrong, &wrong).sqrt() / size;
            assert!(error < 1e-10, "{:?} {}: {error:e}", step.p, spec.name);
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences_along_random_directions() {
    for step in models() {
        let read = step.run_exact();
        for (at, spec) in step.specs.iter().enumerate() {
            let gradient = read(step.slots.grads[at]);
            for stream in 0..3 {
                let mut direction = vec![0.0_f32; gradient.len()];
                let noise =
                    onesigma_format::Noise { seed: 3, tensor: stream, step: at as u32, offset: 0 };
                onesigma_format::philox::fill_normal(noise, &mut direction);
                let direction: Vec<f64> = direction.into_iter().map(f64::from).collect();
                let h = 1e-5 / (gradient.len() as f64).sqrt();
                let loss = |by: f64| Evaluator::new(&step, at, by, &direction).loss().0;
                let numeric = (loss(h) - loss(-h)) / (2.0 * h) * constant(&step, &spec.name);
                let found = dot(&gradient, &direction);
                let size = dot(&gradient, &gradient).sqrt() * dot(&direction, &direction).sqrt();
                let error = (numeric - found).abs() / size.max(1e-3);
                assert!(error < 1e-6, "{:?} {}: {numeric} {found}", step.p, spec.name);
            }
        }
    }
}

#[test]
fn the_cpu_agrees_with_f64_in_f32() {
    for step in models() {
        let exact = step.run_exact();
        let slots = &step.slots;
        let mut wanted = vec![slots.loss];
        wanted.extend(&slots.grads);
        let found = step.run(&CpuBackend::new(), &wanted);
        for (slot, found) in wanted.iter().zip(found) {
            let expected = exact(*slot);
            let name = &step.program.slots()[slot.index()].name;
            let wrong: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
            // The keys' bias has no gradient but rounding, which goes with the size of its terms.
            let floor = if step.p.is_scaled() { 1.0 } else { 1e-2 };
            let size = dot(&expected, &expected).sqrt().max(floor);
            let error = dot(&wrong, &wrong).sqrt() / size;
            assert!(error < 1e-5, "{:?} {name}: {error:e}", step.p);
        }
    }
}
