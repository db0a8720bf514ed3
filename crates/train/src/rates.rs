//! Factors on the learning rate by kind of parameter, as a run chooses them.

use onesigma_models::ParamKind;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::program::Parameter;

/// Factors on the learning rates of a model's parameters, over those of its parametrisation.
///
/// 0 keeps parameters as they start, but for weight decay.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Of matrices of hidden layers.
    pub weight: f64,
    /// Of tables whose rows are looked up.
    pub embedding: f64,
    /// Of weights of norms.
    pub norm: f64,
    /// Of biases.
    pub bias: f64,
    /// Of the readout, where it has a matrix of its own.
    pub readout: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { weight: 1.0, embedding: 1.0, norm: 1.0, bias: 1.0, readout: 1.0 }
    }
}

impl Rates {
    /// Multiplies the parameters' own factors.
    pub(crate) fn apply(&self, parameters: &mut [Parameter]) {
        for parameter in parameters {
            parameter.lr_scale *= self.of(parameter.spec.kind);
        }
    }

    const fn of(&self, kind: ParamKind) -> f64 {
        match kind {
            ParamKind::Embedding => self.embedding,
            ParamKind::Norm => self.norm,
            ParamKind::Bias => self.bias,
            ParamKind::Readout => self.readout,
            _ => self.weight,
        }
    }

    /// # Errors
    /// [`Error::Setting`] for a factor that is negative or no number.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let factors = [
            ("rates.weight", self.weight),
            ("rates.embedding", self.embedding),
            ("rates.norm", self.norm),
            ("rates.bias", self.bias),
            ("rates.readout", self.readout),
        ];
        match factors.into_iter().find(|(_, factor)| !(factor.is_finite() && *factor >= 0.0)) {
            Some((name, factor)) => Err(Error::Setting {
                name,
                given: factor.to_string(),
                expected: "a number that is 0 or more".into(),
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use onesigma_ops::Parametrisation;

    use super::*;
    use crate::config::ModelConfig;
    use crate::model::Gpt;
    use crate::program::Model;

    #[test]
    fn factors_reach_the_parameters_of_their_kind() -> Result<(), Error> {
        let rates = Rates { embedding: 0.5, readout: 4.0, ..Rates::default() };
        let size =
            ModelConfig { layers: 1, heads: 1, hidden: 16, seq: 8, ..ModelConfig::default() };
        let plain = Gpt::new(&size, Parametrisation::Unit)?.parameters()?;
        let own = Gpt::new(&size, Parametrisation::Unit)?.with_rates(&rates).parameters()?;
        for (plain, own) in plain.iter().zip(&own) {
            let expected = match plain.spec.kind {
                ParamKind::Embedding => 0.5,
                ParamKind::Readout => 4.0,
                _ => 1.0,
            };
            assert_eq!(own.lr_scale / plain.lr_scale, expected, "{}", plain.spec.name);
        }
        assert!(own.iter().any(|parameter| parameter.spec.kind == ParamKind::Readout));
        Ok(())
    }

    #[test]
    fn a_factor_is_a_number_that_is_not_negative() {
        for factor in [-1.0, f64::NAN, f64::INFINITY] {
            let rates = Rates { bias: factor, ..Rates::default() };
            let message = rates.validate().expect_err("out of range").to_string();
            assert!(message.contains("rates.bias"), "{message}");
        }
        assert!(Rates { norm: 0.0, ..Rates::default() }.validate().is_ok());
    }
}
