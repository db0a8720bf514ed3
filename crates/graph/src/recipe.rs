//! Recipes: which format every tensor has, as data.
//!
//! A recipe is a list of rules; the first that fits decides. It says nothing about the model: the
//! pass [`apply_recipe`](crate::passes::apply_recipe) turns it into element types and casts.
//!
//! ```
//! use onesigma_format::Format;
//! use onesigma_graph::recipe::{Recipe, Use};
//! use onesigma_graph::Role;
//! let recipe = Recipe::uniform("bf16", Format::BF16);
//! let rule = recipe.rule(Role::Activation, Use::Store, "layers.0.mlp.up", Some(0)).unwrap();
//! assert_eq!(rule.format, Format::BF16);
//! ```

use crate::Role;
use onesigma_format::{Conversion, Format, Overflow, Rounding};
use serde::{Deserialize, Serialize};

/// Where a format applies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Use {
    /// The tensor in memory, as its producer writes it.
    Store,
    /// An operand of a matrix product.
    Matmul,
}

/// How gradients are kept in the range of their format.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Scaling {
    /// Not at all: the regular model as it is.
    #[default]
    None,
    /// Unit scaling: the model is built with the scales of arXiv 2303.11257.
    Unit,
    /// Unit scaling with the multipliers and learning rates of u-muP, arXiv 2407.17465.
    #[serde(rename = "u-mup")]
    UMup,
    /// Unit scaling simplified for deep models, muS, arXiv 2502.05967.
    #[serde(rename = "mu-s")]
    MuS,
    /// The loss is multiplied by a factor before the backward pass. It grows by `growth` after
    /// `interval` steps without overflow; a step whose gradients overflow is skipped and multiplies
    /// it by `backoff` (Micikevicius et al., arXiv 1710.03740). `growth = backoff = 1` is a static
    /// loss scale.
    Loss {
        /// First factor.
        init: f64,
        /// Factor after `interval` good steps.
        growth: f64,
        /// Factor after an overflow.
        backoff: f64,
        /// Number of good steps in a row.
        interval: u32,
    },
}

/// One rule. Fields that are left out fit everything.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rule {
    /// Role of the tensor; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Where the format applies.
    #[serde(rename = "use")]
    pub usage: Use,
    /// First and last layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<(u32, u32)>,
    /// A word of the path of the node that stores the tensor or multiplies it: `readout`, `mlp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The format.
    pub format: Format,
    /// How values are rounded into it.
    #[serde(default = "nearest_even")]
    pub rounding: Rounding,
    /// What happens to values beyond its range.
    #[serde(default = "saturate")]
    pub overflow: Overflow,
}

fn nearest_even() -> Rounding {
    Rounding::NearestEven
}

fn saturate() -> Overflow {
    Overflow::Saturate
}

impl Rule {
    /// A rule for one role, rounding to nearest even and saturating.
    pub fn new(role: Role, usage: Use, format: Format) -> Self {
        Self {
            role: Some(role),
            usage,
            layers: None,
            scope: None,
            format,
            rounding: nearest_even(),
            overflow: saturate(),
        }
    }

    /// Rounding and overflow together.
    pub fn conversion(&self) -> Conversion {
        Conversion { rounding: self.rounding, overflow: self.overflow }
    }

    fn fits(&self, role: Role, usage: Use, node: &str, layer: Option<u32>) -> bool {
        let path = node.trim_start_matches("grad(");
        let in_scope = |scope: &String| path.split(['.', ')']).any(|word| word == scope);
        let in_layers =
            |&(first, last): &(u32, u32)| layer.is_some_and(|at| first <= at && at <= last);
        self.usage == usage
            && self.role.is_none_or(|own| own == role)
            && self.layers.as_ref().is_none_or(in_layers)
            && self.scope.as_ref().is_none_or(in_scope)
    }
}

/// A named choice of formats.
///
/// ```
/// use onesigma_format::Format;
/// use onesigma_graph::recipe::{Recipe, Rule, Use};
/// use onesigma_graph::Role;
///
/// let mut recipe = Recipe::uniform("my-fp8", Format::F16);
/// recipe.rules.insert(0, Rule::new(Role::Weight, Use::Matmul, Format::E4M3));
/// let format = |usage| recipe.rule(Role::Weight, usage, "mlp.c_fc", None).map(|rule| rule.format);
/// assert_eq!(format(Use::Matmul), Some(Format::E4M3));
/// assert_eq!(format(Use::Store), Some(Format::F16));
/// ```
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// One line for people.
    #[serde(default)]
    pub summary: String,
    /// How gradients are kept in range.
    #[serde(default)]
    pub scaling: Scaling,
    /// Rules, the first that fits decides. A matrix operand without a rule keeps the format in
    /// which it is stored; a stored tensor needs one.
    pub rules: Vec<Rule>,
}

impl Recipe {
    /// Everything that the graph stores in one format; master weights and moments in F32.
    pub fn uniform(name: &str, format: Format) -> Self {
        let mut rules: Vec<Rule> = [Role::MasterWeight, Role::FirstMoment, Role::SecondMoment]
            .map(|role| Rule::new(role, Use::Store, Format::F32))
            .into();
        rules.push(Rule { role: None, ..Rule::new(Role::Weight, Use::Store, format) });
        rules.push(Rule { role: None, ..Rule::new(Role::Weight, Use::Matmul, format) });
        Self { name: name.to_owned(), summary: String::new(), scaling: Scaling::None, rules }
    }

    /// The first rule that fits a tensor: its role, what it is used for, and name and layer of
    /// the node that stores it or multiplies it. Rules for activations also fit those saved for
    /// the backward pass, unless one that fits names these.
    pub fn rule(&self, role: Role, usage: Use, node: &str, layer: Option<u32>) -> Option<&Rule> {
        let first = |role| self.rules.iter().position(|rule| rule.fits(role, usage, node, layer));
        let mut at = first(role);
        if role == Role::SavedActivation
            && at.is_none_or(|at| self.rules[at].role != Some(role))
            && let Some(other) = first(Role::Activation)
        {
            at = Some(at.map_or(other, |at| at.min(other)));
        }
        at.map(|at| &self.rules[at])
    }

    /// Format in which a parameter's state of this role is kept; F32 without a rule.
    pub fn state_format(&self, role: Role, name: &str, layer: Option<u32>) -> Format {
        self.rule(role, Use::Store, name, layer).map_or(Format::F32, |rule| rule.format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fitting_rule_decides() {
        let mut recipe = Recipe::uniform("mixed", Format::F16);
        recipe.rules.insert(
            0,
            Rule {
                scope: Some("readout".to_owned()),
                ..Rule::new(Role::Weight, Use::Matmul, Format::BF16)
            },
        );
        recipe.rules.insert(
            1,
            Rule { layers: Some((0, 1)), ..Rule::new(Role::Weight, Use::Matmul, Format::E4M3) },
        );
        let format =
            |node, layer| recipe.rule(Role::Weight, Use::Matmul, node, layer).unwrap().format;
        assert_eq!(format("readout.linear", None), Format::BF16);
        assert_eq!(format("grad(readout.linear)", Some(0)), Format::BF16);
        assert_eq!(format("layers.1.up", Some(1)), Format::E4M3);
        assert_eq!(format("layers.2.up", Some(2)), Format::F16);
        assert_eq!(recipe.state_format(Role::MasterWeight, "w", None), Format::F32);
    }

    #[test]
    fn rules_for_activations_fit_saved_ones_unless_one_names_them() {
        let mut recipe = Recipe::uniform("mixed", Format::F16);
        let saved = |recipe: &Recipe| {
            recipe.rule(Role::SavedActivation, Use::Store, "x", None).map(|rule| rule.format)
        };
        assert_eq!(saved(&recipe), Some(Format::F16));
        recipe.rules.insert(0, Rule::new(Role::Activation, Use::Store, Format::BF16));
        assert_eq!(saved(&recipe), Some(Format::BF16));
        recipe.rules.insert(1, Rule::new(Role::SavedActivation, Use::Store, Format::E4M3));
        assert_eq!(saved(&recipe), Some(Format::E4M3));
        // A rule for every role that stands before decides, as always.
        recipe
            .rules
            .insert(0, Rule { role: None, ..Rule::new(Role::Weight, Use::Store, Format::F32) });
        assert_eq!(saved(&recipe), Some(Format::F32));
    }
}
