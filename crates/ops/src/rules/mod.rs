//! The rules as a table that can be asked and checked: expected scales from formulas, and
//! measured ones from a backend.
//!
//! A [`Case`] is an op with shapes, arguments and a constraint, in the JSON form of the reference
//! list of the `unit-scaling` library. [`expected`] evaluates the formulas; [`measure`] runs the
//! scaled and the plain op on random input with the same upstream gradient and gives the ratios of
//! outputs and gradients. Both give [`Figures`]; they agree to the precision of the backend.
//!
//! ```
//! let case: onesigma_ops::rules::Case = serde_json::from_str(
//!     r#"{"op": "linear", "shapes": {"input": [8, 16], "weight": [32, 16]},
//!         "args": {}, "constraint": null}"#,
//! )?;
//! let figures = onesigma_ops::rules::expected(&case)?;
//! assert_eq!(figures.output, 0.25);
//! assert!((figures.grads["weight"] - 8_f64.powf(-0.5)).abs() < 1e-12);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod answer;
mod expected;
mod measure;

pub use answer::{Answer, answer, answer_json};
pub use expected::expected;
pub use measure::{Measured, measure};

use crate::{Constraint, Conv1d, Error, Result};
use onesigma_graph::Shape;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Ops that cases can name, with their operands and arguments (default in brackets):
///
/// | op | shapes | args |
/// | --- | --- | --- |
/// | `linear` | `input`, `weight`, `bias`? | `scale_power` (`[0.5, 0.5, 0.5]`) |
/// | `linear_readout` | `input`, `weight`, `bias`? | |
/// | `matmul` | `left`, `right` | |
/// | `conv1d` | `input`, `weight`, `bias`? | `stride` (1), `padding` (0), `dilation` (1), `groups` (1), `scale_power` |
/// | `gelu` | `input` | `mult` (1), `approximate` (`none`) or `tanh` |
/// | `silu` | `input` | `mult` (1) |
/// | `silu_glu` | `input`, `gate` | `mult` (1) |
/// | `relu`, `tanh`, `sigmoid` | `input` | |
/// | `hardtanh` | `input` | `mult` (1) |
/// | `softmax` | `input` | `dim` (-1), `mult` (1) |
/// | `dropout` | `input` | `p` (0.5), `training` (true) |
/// | `layer_norm` | `input`, `weight`?, `bias`? | `normalized_shape` (the weight's), `eps` (1e-5) |
/// | `rms_norm` | `input`, `weight`? | `normalized_shape` (the weight's), `eps` (1e-5) |
/// | `embedding` | `input` (ids), `weight` | |
/// | `cross_entropy` | `input`, `target` (ids) | `reduction` (`mean`) or `sum`, `mult` (1) |
/// | `mse_loss` | `input`, `target` | `reduction` (`mean`) or `sum` |
/// | `add` | `input`, `other` | |
/// | `weighted_add` | `input`, `other`, `third`? | `weights` (all 1) |
/// | `residual_split` | `input` | `tau`, `which` (`residual` or `skip`) |
/// | `residual_add` | `residual` and/or `skip`; one that is absent is 0 | `tau` |
/// | `residual_apply` | `input` | `tau`, `fn` (`3*x`: a number times x) |
/// | `scaled_dot_product_attention` | `query`, `key`, `value` `[batch, heads, seq, d]` | `is_causal` (false), `mult` (1), `dropout_p` (0) |
pub const OPS: &[&str] = &[
    "linear",
    "linear_readout",
    "matmul",
    "conv1d",
    "gelu",
    "silu",
    "silu_glu",
    "relu",
    "tanh",
    "sigmoid",
    "hardtanh",
    "softmax",
    "dropout",
    "layer_norm",
    "rms_norm",
    "embedding",
    "cross_entropy",
    "mse_loss",
    "add",
    "weighted_add",
    "residual_split",
    "residual_add",
    "residual_apply",
    "scaled_dot_product_attention",
];

/// One op with shapes and arguments; see [`OPS`]. Fields of the JSON form that are not here (such
/// as the results of an earlier run) are ignored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Name of the op.
    pub op: String,
    /// Extents by operand.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Arguments by name.
    #[serde(default)]
    pub args: serde_json::Map<String, serde_json::Value>,
    /// Name of the constraint. Null or absent is none; `n/a` stands in cases of ops that have no
    /// constraint, and other ops read it as none.
    #[serde(default)]
    pub constraint: Option<String>,
}

/// Scales of an op: factors between the plain and the scaled op.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Of the output.
    pub output: f64,
    /// Of the gradient of each differentiable operand, with the same upstream gradient.
    pub grads: BTreeMap<String, f64>,
}

impl Figures {
    /// Largest relative difference to other figures; infinite if the operands differ.
    pub fn difference(&self, other: &Self) -> f64 {
        if !self.grads.keys().eq(other.grads.keys()) {
            return f64::INFINITY;
        }
        let relative = |a: f64, b: f64| (a - b).abs() / b.abs().max(f64::MIN_POSITIVE);
        let grads = self.grads.values().zip(other.grads.values()).map(|(&a, &b)| relative(a, b));
        // `max` would hide a NaN.
        grads.fold(relative(self.output, other.output), |worst, difference| {
            if difference.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(difference) }
        })
    }
}

impl Case {
    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Case { op: self.op.clone(), reason: reason.into() }
    }

    fn unknown(&self) -> Error {
        self.wrong(format!("no such rule; there are: {}", OPS.join(", ")))
    }

    fn shape(&self, operand: &str) -> Result<Shape> {
        let given = || self.shapes.keys().cloned().collect::<Vec<_>>().join(", ");
        let dims = self.shapes.get(operand).ok_or_else(|| {
            self.wrong(format!("no shape for operand `{operand}`, given are: {}", given()))
        })?;
        let shape = Shape::from(dims.clone());
        // 4 GiB in f64: beyond, a case is a mistake.
        if shape.numel() == 0 || shape.numel() > 1 << 29 {
            let expected = "expected 1 to 2^29 elements";
            return Err(self.wrong(format!("operand `{operand}` has shape {shape}, {expected}")));
        }
        Ok(shape)
    }

    fn matrix(&self, operand: &str) -> Result<[usize; 2]> {
        let shape = self.shape(operand)?;
        <[usize; 2]>::try_from(shape.dims()).map_err(|_| {
            self.wrong(format!("operand `{operand}` has shape {shape}, expected two axes"))
        })
    }

    fn number(&self, name: &str, default: f64) -> Result<f64> {
        let Some(value) = self.args.get(name) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.wrong(format!("`{name}` is {value}, expected a number")))
    }

    fn tau(&self) -> Result<f64> {
        self.number("tau", f64::NAN)
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        let Some(value) = self.args.get(name) else { return Ok(default) };
        let wrong = || self.wrong(format!("`{name}` is {value}, expected true or false"));
        value.as_bool().ok_or_else(wrong)
    }

    /// One of a few words; the first is the default.
    fn word<'a>(&self, name: &str, known: &[&'a str]) -> Result<&'a str> {
        let Some(value) = self.args.get(name) else { return Ok(known[0]) };
        let found = known.iter().find(|word| value.as_str() == Some(word));
        found.copied().ok_or_else(|| {
            self.wrong(format!("`{name}` is {value}, expected one of: {}", known.join(", ")))
        })
    }

    fn numbers<const N: usize>(&self, name: &str, default: [f64; N]) -> Result<[f64; N]> {
        let list = self.list(name, &default)?;
        let found = list.len();
        list.try_into()
            .map_err(|_| self.wrong(format!("`{name}` has {found} numbers, expected {N}")))
    }

    fn list(&self, name: &str, default: &[f64]) -> Result<Vec<f64>> {
        let Some(value) = self.args.get(name) else { return Ok(default.to_vec()) };
        value
            .as_array()
            .and_then(|list| list.iter().map(|x| x.as_f64()).collect())
            .ok_or_else(|| self.wrong(format!("`{name}` is {value}, expected a list of numbers")))
    }

    fn size(&self, name: &str, default: usize) -> Result<usize> {
        let Some(value) = self.args.get(name) else { return Ok(default) };
        let size = value.as_u64().filter(|&size| size <= 1 << 29);
        size.map(|size| size as usize).ok_or_else(|| {
            self.wrong(format!("`{name}` is {value}, expected a whole number up to 2^29"))
        })
    }

    fn conv1d(&self) -> Result<Conv1d> {
        let default = Conv1d::default();
        Ok(Conv1d {
            stride: self.size("stride", default.stride)?,
            padding: self.size("padding", default.padding)?,
            dilation: self.size("dilation", default.dilation)?,
            groups: self.size("groups", default.groups)?,
            scale_power: self.numbers("scale_power", default.scale_power)?,
            constraint: self.constraint()?,
        })
    }

    fn constraint(&self) -> Result<Constraint> {
        match self.constraint.as_deref() {
            None | Some("n/a") => Ok(Constraint::None),
            Some(name) => name.parse(),
        }
    }

    fn mean(&self) -> Result<bool> {
        Ok(self.word("reduction", &["mean", "sum"])? == "mean")
    }

    /// Number of trailing axes that a norm normalises.
    fn norm_axes(&self) -> Result<usize> {
        let listed = self.args.get("normalized_shape").and_then(|value| value.as_array());
        let input = self.shape("input")?;
        let dims: Vec<usize> = match listed {
            Some(list) => {
                list.iter().filter_map(|dim| dim.as_u64().map(|dim| dim as usize)).collect()
            }
            None => match self.shapes.get("weight") {
                Some(dims) => dims.clone(),
                None => vec![input.last()],
            },
        };
        if dims.is_empty() || !input.dims().ends_with(&dims) {
            let text = format!("`normalized_shape` is {dims:?}, expected trailing axes of {input}");
            return Err(self.wrong(text));
        }
        Ok(dims.len())
    }

    /// The factor of `fn`, a number times x.
    fn factor(&self) -> Result<f64> {
        let text = self.args.get("fn").and_then(|value| value.as_str()).unwrap_or("1*x");
        let factor = text.strip_suffix("*x").and_then(|number| number.parse().ok());
        factor.ok_or_else(|| self.wrong(format!("`fn` is `{text}`, expected the form `3*x`")))
    }
}
