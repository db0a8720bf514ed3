//! The recipes that are built in.

use onesigma_format::{Format, Overflow};
use onesigma_graph::Role;
use onesigma_graph::recipe::{Recipe, Rule, Scaling, Use};
use onesigma_train::Error;

/// Their names, in the order of rising care for range.
pub const NAMES: [&str; 7] =
    ["f32", "bf16", "fp16", "fp16-loss-scale", "unit-f32", "unit-fp16", "unit-fp8"];

/// The recipe called `name`.
///
/// # Errors
/// [`Error::Unknown`] for a name outside [`NAMES`].
pub fn by_name(name: &str) -> Result<Recipe, Error> {
    let mut recipe = match name {
        "f32" | "unit-f32" => Recipe::uniform(name, Format::F32),
        "bf16" => Recipe::uniform(name, Format::BF16),
        "fp16" | "unit-fp16" => Recipe::uniform(name, Format::F16),
        "fp16-loss-scale" => fp16_loss_scale(name),
        "unit-fp8" => fp8(name),
        _ => {
            return Err(Error::Unknown {
                kind: "recipe",
                given: name.into(),
                known: NAMES.join(", "),
            });
        }
    };
    if name.starts_with("unit-") {
        recipe.scaling = Scaling::Unit;
    }
    Ok(recipe)
}

/// F16 with the dynamic loss scale of arXiv 1710.03740, whose overflow has to stay visible.
fn fp16_loss_scale(name: &str) -> Recipe {
    let mut recipe = Recipe::uniform(name, Format::F16);
    for rule in &mut recipe.rules {
        rule.overflow = Overflow::Special;
    }
    recipe.scaling = Scaling::Loss { init: 65536.0, growth: 2.0, backoff: 0.5, interval: 200 };
    recipe
}

/// Matrix operands in E4M3, gradients in E5M2 (arXiv 2303.11257, section 4.2: E4 for weights and
/// activations, E5 for gradients); everything else, the readout included, in BF16.
fn fp8(name: &str) -> Recipe {
    let mut rules = Vec::new();
    for (role, format) in [
        (Role::Weight, Format::E4M3),
        (Role::Activation, Format::E4M3),
        (Role::ActivationGrad, Format::E5M2),
    ] {
        let readout = Some("readout".to_owned());
        rules.push(Rule { scope: readout, ..Rule::new(role, Use::Matmul, Format::BF16) });
        rules.push(Rule::new(role, Use::Matmul, format));
    }
    rules.push(Rule::new(Role::WeightGrad, Use::Store, Format::F32));
    let mut recipe = Recipe::uniform(name, Format::BF16);
    rules.append(&mut recipe.rules);
    recipe.rules = rules;
    recipe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_recipe_of_that_name() {
        for name in NAMES {
            assert_eq!(by_name(name).expect("a built-in").name, name);
        }
        let error = by_name("fp3").expect_err("not one");
        assert!(error.to_string().contains("unit-fp8"), "{error}");
    }

    #[test]
    fn unit_fp8_multiplies_in_fp8_except_in_the_readout() {
        let recipe = by_name("unit-fp8").expect("a built-in");
        let format = |role, node| {
            recipe.rule(role, Use::Matmul, node, None).expect("a rule for every operand").format
        };
        assert_eq!(format(Role::Weight, "layers.0.mlp.up"), Format::E4M3);
        assert_eq!(format(Role::ActivationGrad, "grad(layers.0.mlp.up)"), Format::E5M2);
        assert_eq!(format(Role::ActivationGrad, "grad(readout)"), Format::BF16);
        assert_eq!(recipe.scaling, Scaling::Unit);
    }
}
