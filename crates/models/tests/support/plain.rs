//! Transformers in plain loops over dual numbers, which carry an exact derivative: independent of
//! the graph, of its autodiff and of the rules.

use super::Step;
use onesigma_models::config::{Activation, Norm};
use std::f64::consts::PI;
use std::ops::{Add, Div, Mul, Sub};

/// Value and derivative along one direction of parameter space.
#[derive(Clone, Copy, Debug)]
pub struct Dual(pub f64, pub f64);

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
    pub const ZERO: Self = Self(0.0, 0.0);

    pub fn exp(self) -> Self {
        Self(self.0.exp(), self.1 * self.0.exp())
    }

    pub fn ln(self) -> Self {
        Self(self.0.ln(), self.1 / self.0)
    }

    pub fn sqrt(self) -> Self {
        Self(self.0.sqrt(), self.1 / (2.0 * self.0.sqrt()))
    }

    pub fn tanh(self) -> Self {
        let t = self.0.tanh();
        Self(t, (1.0 - t * t) * self.1)
    }

    pub fn activate(self, activation: Activation) -> Self {
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
            Activation::Silu | Activation::Swiglu => {
                let s = 1.0 / (1.0 + (-x).exp());
                (x * s, s + x * s * (1.0 - s))
            }
            other => panic!("{other:?} is not evaluated here"),
        };
        Self(value, derivative * dx)
    }
}

/// One row for each position.
pub type Rows = Vec<Vec<Dual>>;

/// How the attention of one sequence looks.
pub struct Attention<'a> {
    pub causal: bool,
    pub heads: usize,
    pub kv_heads: usize,
    /// Which keys are seen, if not all.
    pub mask: Option<&'a [u32]>,
    /// Base of rotary positions.
    pub rotary: Option<f64>,
    /// Names of query, key, value and output.
    pub names: [String; 4],
}

/// A model's parameters with what its layers share.
pub struct Plain {
    pub unit: bool,
    pub norm: Norm,
    pub eps: f64,
    names: Vec<String>,
    parameters: Vec<Vec<Dual>>,
}

impl Plain {
    /// Parameters moved by `by`, and the derivative along `direction`, of one parameter.
    pub fn new(
        step: &Step,
        (norm, eps): (Norm, f64),
        parameter: usize,
        by: f64,
        direction: &[f64],
    ) -> Self {
        let mut parameters: Vec<Vec<Dual>> = step
            .weights
            .iter()
            .map(|values| values.iter().map(|&value| Dual(f64::from(value), 0.0)).collect())
            .collect();
        for (value, &d) in parameters[parameter].iter_mut().zip(direction) {
            *value = Dual(value.0 + by * d, d);
        }
        let names = step.specs.iter().map(|spec| spec.name.clone()).collect();
        Self { unit: step.p.is_scaled(), norm, eps, names, parameters }
    }

    pub fn find(&self, name: &str) -> Option<&[Dual]> {
        let at = self.names.iter().position(|own| own == name)?;
        Some(&self.parameters[at])
    }

    pub fn param(&self, name: &str) -> &[Dual] {
        self.find(name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    /// `size^-1/2` in a unit-scaled model, else 1.
    pub fn scale(&self, size: usize) -> f64 {
        if self.unit { (size as f64).powf(-0.5) } else { 1.0 }
    }

    /// Row `n` of a table.
    pub fn row(&self, name: &str, n: usize, width: usize) -> &[Dual] {
        &self.param(name)[n * width..(n + 1) * width]
    }

    pub fn norm(&self, name: &str, x: &[Dual]) -> Vec<Dual> {
        let n = x.len() as f64;
        let weight = self.find(&format!("{name}.weight"));
        let bias = self.find(&format!("{name}.bias"));
        let mut mean = Dual::ZERO;
        if self.norm == Norm::LayerNorm {
            mean = x.iter().fold(Dual::ZERO, |sum, &x| sum + x) * (1.0 / n);
        }
        let square = |sum: Dual, &x: &Dual| sum + (x - mean) * (x - mean);
        let root = (x.iter().fold(Dual::ZERO, square) * (1.0 / n) + Dual(self.eps, 0.0)).sqrt();
        (0..x.len())
            .map(|i| {
                let mut y = (x[i] - mean) / root;
                if let Some(weight) = weight {
                    y = y * weight[i];
                }
                bias.map_or(y, |bias| y + bias[i])
            })
            .collect()
    }

    /// `(W x + b) scale` with a bias of its own name.
    pub fn affine(&self, weight: &str, bias: &str, x: &[Dual], scale: f64) -> Vec<Dual> {
        let weight = self.param(weight);
        let bias = self.find(bias);
        (0..weight.len() / x.len())
            .map(|o| {
                let row = &weight[o * x.len()..(o + 1) * x.len()];
                let start = bias.map_or(Dual::ZERO, |bias| bias[o]);
                row.iter().zip(x).fold(start, |sum, (&w, &x)| sum + w * x) * scale
            })
            .collect()
    }

    /// `(W x + b) scale`
    pub fn linear(&self, name: &str, x: &[Dual], scale: f64) -> Vec<Dual> {
        self.affine(&format!("{name}.weight"), &format!("{name}.bias"), x, scale)
    }

    pub fn linears(&self, name: &str, x: &[Vec<Dual>], scale: f64) -> Rows {
        x.iter().map(|x| self.linear(name, x, scale)).collect()
    }

    /// All activations have a = 0.8 between the ReLU's factor and 2 forward.
    pub fn activation_scale(&self, activation: Activation) -> f64 {
        match (self.unit, activation) {
            (false, _) => 1.0,
            (true, Activation::Swiglu) => 2_f64.powf(0.75), // a = 1/2 between sqrt 2 and 2
            (true, _) => (2.0 / (1.0 - 1.0 / PI)).sqrt().powf(0.8) * 2_f64.powf(0.2),
        }
    }

    /// MLP with the names of its layers: up, gate, down.
    pub fn mlp(&self, names: [&str; 3], x: &[Vec<Dual>], activation: Activation) -> Rows {
        let k = self.activation_scale(activation);
        x.iter()
            .map(|x| {
                let scale = self.scale(x.len());
                let up = self.linear(names[0], x, scale);
                let inner: Vec<Dual> = if activation == Activation::Swiglu {
                    let gate = self.linear(names[1], x, scale);
                    up.iter().zip(gate).map(|(&x, g)| x * g.activate(activation) * k).collect()
                } else {
                    up.into_iter().map(|x| x.activate(activation) * k).collect()
                };
                let scale = self.scale(inner.len());
                self.linear(names[2], &inner, scale)
            })
            .collect()
    }

    pub fn attention(&self, a: &Attention<'_>, x: &[Vec<Dual>]) -> Rows {
        let width = x[0].len();
        let d = width / a.heads;
        let scale = self.scale(width);
        let [mut q, mut k, v] = [0, 1, 2].map(|n: usize| self.linears(&a.names[n], x, scale));
        if let Some(theta) = a.rotary {
            for rows in [&mut q, &mut k] {
                rows.iter_mut().enumerate().for_each(|(t, row)| turn(row, t, d, theta));
            }
        }
        let (mut logit_scale, mut out_scale) = (1.0 / (d as f64).sqrt(), 1.0);
        if self.unit {
            logit_scale = 1.0 / d as f64;
            // The rows of a BERT are alike: its scale is that of two keys.
            let s = if a.causal { x.len() as f64 } else { 2.0 };
            let l = if a.causal { s.ln() } else { 1.0 };
            let mix = 1.0 / (1.0 + 4.0 * d as f64);
            out_scale = 1.0 / (l / s).sqrt().powf(1.0 - mix);
        }
        let mut result = Vec::new();
        for t in 0..x.len() {
            let shown =
                |key: &usize| (!a.causal || *key <= t) && a.mask.is_none_or(|mask| mask[*key] != 0);
            let keys: Vec<usize> = (0..x.len()).filter(shown).collect();
            let mut row = vec![Dual::ZERO; width];
            for head in 0..a.heads {
                let kv = head / (a.heads / a.kv_heads) * d;
                let weight = |key: usize| {
                    let dot =
                        (0..d).fold(Dual::ZERO, |sum, c| sum + q[t][head * d + c] * k[key][kv + c]);
                    (dot * logit_scale).exp()
                };
                let weights: Vec<Dual> = keys.iter().map(|&key| weight(key)).collect();
                let sum = weights.iter().fold(Dual::ZERO, |sum, &w| sum + w);
                for c in 0..d {
                    let mixed = keys.iter().zip(&weights);
                    let mixed = mixed.fold(Dual::ZERO, |y, (&key, &w)| y + w * v[key][kv + c]);
                    row[head * d + c] = mixed / sum * out_scale;
                }
            }
            result.push(self.linear(&a.names[3], &row, scale));
        }
        result
    }

    /// Factors of branch and skip: with equal weights, `tau_i = 1/sqrt(L + i)`.
    pub fn factors(&self, branch: usize, layers: usize, tau: Option<f64>) -> [f64; 2] {
        if !self.unit {
            return [1.0, 1.0];
        }
        let tau = tau.unwrap_or(1.0 / ((layers + branch) as f64).sqrt());
        let norm = (1.0 + tau * tau).sqrt();
        [tau / norm, 1.0 / norm]
    }
}

/// Rotates the pairs `(j, j + d/2)` of each head, as complex numbers.
fn turn(row: &mut [Dual], t: usize, d: usize, theta: f64) {
    for head in row.chunks_mut(d) {
        for j in 0..d / 2 {
            let angle = t as f64 / theta.powf(2.0 * j as f64 / d as f64);
            let (re, im) = (head[j], head[j + d / 2]);
            head[j] = re * angle.cos() - im * angle.sin();
            head[j + d / 2] = re * angle.sin() + im * angle.cos();
        }
    }
}

/// `x = branch a + x s`
pub fn combine(x: &mut [Vec<Dual>], branch: &[Vec<Dual>], [a, s]: [f64; 2]) {
    for (x, branch) in x.iter_mut().zip(branch) {
        for (x, &y) in x.iter_mut().zip(branch) {
            *x = y * a + *x * s;
        }
    }
}

/// `-ln softmax(logits)[target]`
pub fn cross_entropy(logits: &[Dual], target: usize) -> Dual {
    let sum = logits.iter().fold(Dual::ZERO, |sum, &x| sum + x.exp());
    sum.ln() - logits[target]
}
