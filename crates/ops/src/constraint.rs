//! Constraints: which scales an op's output and activation gradients share.
//!
//! The ideal scales of an op differ between forward and backward. On an edge that lies on a cycle
//! of scaled paths they must agree, or the gradients of parameters stop being proportional to the
//! true ones (the cut-edge rule, arXiv 2303.11257, section 4.2). A constraint replaces the scales
//! of the output and of the operands that are no cut edges by one value. Weights and biases always
//! are cut edges and keep their own scale.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the scales on an op's non-cut edges are made one. `s_0` is the output's ideal scale and
/// `s_1 .. s_n` are those of the gradients.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Constraint {
    /// Each edge keeps its ideal scale; right only where all of them are cut edges, or where the
    /// forward and backward products along the path agree for another reason.
    None,
    /// `s_0`, any number of scales.
    #[default]
    ToOutputScale,
    /// `s_1` of exactly two scales.
    ToGradInputScale,
    /// `s_1` of exactly three scales.
    ToLeftGradScale,
    /// `s_2` of exactly three scales.
    ToRightGradScale,
    /// Geometric mean, any number of scales.
    #[serde(rename = "gmean")]
    GMean,
    /// Harmonic mean, any number of scales.
    #[serde(rename = "hmean")]
    HMean,
    /// Arithmetic mean, any number of scales.
    #[serde(rename = "amean")]
    AMean,
    /// A function of all scales, output first.
    #[serde(skip)]
    Custom(fn(&[f64]) -> f64),
}

impl Constraint {
    /// The common scale of `scales` (output first), `None` where each keeps its own.
    ///
    /// # Errors
    /// [`Error::ConstraintArity`] if the constraint takes another number of scales;
    /// [`Error::Argument`] if a custom function gives no positive finite number.
    pub fn common(self, op: &'static str, scales: &[f64]) -> Result<Option<f64>> {
        let exactly = |expected: usize, index: usize| {
            if scales.len() == expected {
                Ok(Some(scales[index]))
            } else {
                let found = scales.len();
                Err(Error::ConstraintArity { op, constraint: self.to_string(), found, expected })
            }
        };
        let n = scales.len() as f64;
        match self {
            Self::None => Ok(None),
            _ if scales.is_empty() => Ok(None),
            Self::ToOutputScale => Ok(Some(scales[0])),
            Self::ToGradInputScale => exactly(2, 1),
            Self::ToLeftGradScale => exactly(3, 1),
            Self::ToRightGradScale => exactly(3, 2),
            Self::GMean => Ok(Some((scales.iter().map(|s| s.ln()).sum::<f64>() / n).exp())),
            Self::HMean => Ok(Some(n / scales.iter().map(|s| s.recip()).sum::<f64>())),
            Self::AMean => Ok(Some(scales.iter().sum::<f64>() / n)),
            Self::Custom(f) => {
                let scale = f(scales);
                if scale > 0.0 && scale.is_finite() {
                    return Ok(Some(scale));
                }
                Err(Error::Argument {
                    op,
                    argument: "constraint",
                    found: format!("a function that gives {scale}"),
                    expected: "a positive finite scale".to_owned(),
                })
            }
        }
    }
}

impl PartialEq for Constraint {
    /// Custom functions are never equal: addresses of functions say nothing about them.
    fn eq(&self, other: &Self) -> bool {
        !matches!(self, Self::Custom(_))
            && std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::ToOutputScale => "to_output_scale",
            Self::ToGradInputScale => "to_grad_input_scale",
            Self::ToLeftGradScale => "to_left_grad_scale",
            Self::ToRightGradScale => "to_right_grad_scale",
            Self::GMean => "gmean",
            Self::HMean => "hmean",
            Self::AMean => "amean",
            Self::Custom(_) => "custom",
        })
    }
}

impl FromStr for Constraint {
    type Err = Error;

    /// Reads what `Display` prints, apart from `custom`; the empty string is `none`.
    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "" | "none" => Self::None,
            "to_output_scale" => Self::ToOutputScale,
            "to_grad_input_scale" => Self::ToGradInputScale,
            "to_left_grad_scale" => Self::ToLeftGradScale,
            "to_right_grad_scale" => Self::ToRightGradScale,
            "gmean" => Self::GMean,
            "hmean" => Self::HMean,
            "amean" => Self::AMean,
            _ => return Err(Error::UnknownConstraint { name: name.to_owned() }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_choices() -> Result<()> {
        let scales = [1.0, 4.0, 16.0];
        let common = |constraint: Constraint| constraint.common("matmul", &scales);
        assert_eq!(common(Constraint::None)?, None);
        assert_eq!(common(Constraint::ToOutputScale)?, Some(1.0));
        assert_eq!(common(Constraint::ToLeftGradScale)?, Some(4.0));
        assert_eq!(common(Constraint::ToRightGradScale)?, Some(16.0));
        assert!((common(Constraint::GMean)?.unwrap_or(0.0) - 4.0).abs() < 1e-12);
        assert_eq!(common(Constraint::AMean)?, Some(7.0));
        assert_eq!(common(Constraint::HMean)?, Some(3.0 / 1.3125));
        assert_eq!(common(Constraint::Custom(|s| s[0] + s[2]))?, Some(17.0));
        Ok(())
    }

    #[test]
    fn a_wrong_arity_names_op_constraint_and_remedy() {
        let error = Constraint::ToGradInputScale.common("matmul", &[1.0, 2.0, 3.0]);
        let message = error.expect_err("two scales only").to_string();
        assert_eq!(
            message,
            "matmul: constraint `to_grad_input_scale` takes 2 scales, this op constrains 3; use \
             gmean, hmean, amean, to_output_scale or none"
        );
        assert!(Constraint::Custom(|_| f64::NAN).common("add", &[1.0]).is_err());
        assert!("gmaen".parse::<Constraint>().is_err());
    }

    #[test]
    fn names_read_back() {
        for name in ["none", "to_output_scale", "to_left_grad_scale", "gmean", "hmean", "amean"] {
            let constraint: Constraint = name.parse().expect("a known name");
            assert_eq!(constraint.to_string(), name);
        }
    }
}
