//! Built-in recipes, and recipes from TOML files.
//!
//! ```
//! let recipe = onesigma_ops::recipes::by_name("unit-fp8")?;
//! assert_eq!(recipe.scaling, onesigma_graph::recipe::Scaling::Unit);
//! # Ok::<(), onesigma_ops::Error>(())
//! ```

use crate::{Error, Parametrisation, Result, nearest};
use onesigma_graph::Recipe;
use onesigma_graph::recipe::Scaling;
use std::path::Path;

/// Names of the built-in recipes with their TOML text.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("f32", include_str!("../recipes/f32.toml")),
    ("bf16", include_str!("../recipes/bf16.toml")),
    ("fp16", include_str!("../recipes/fp16.toml")),
    ("fp16-loss-scale", include_str!("../recipes/fp16-loss-scale.toml")),
    ("unit-f32", include_str!("../recipes/unit-f32.toml")),
    ("unit-fp16", include_str!("../recipes/unit-fp16.toml")),
    ("unit-fp8", include_str!("../recipes/unit-fp8.toml")),
    ("u-mup-f32", include_str!("../recipes/u-mup-f32.toml")),
    ("u-mup-fp8", include_str!("../recipes/u-mup-fp8.toml")),
    ("mu-s-f32", include_str!("../recipes/mu-s-f32.toml")),
    ("mu-s-fp8", include_str!("../recipes/mu-s-fp8.toml")),
];

/// A built-in recipe.
///
/// # Errors
/// [`Error::UnknownRecipe`], listing the names.
pub fn by_name(name: &str) -> Result<Recipe> {
    match BUILT_IN.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => from_toml(text, name),
        None => {
            let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            // `fp8` is an ending that several have, and nearer to `f32` than to any of them.
            let ending = format!("-{name}");
            let ends = known.iter().copied().find(|known| known.ends_with(&ending));
            let near = ends.or_else(|| nearest(name, &known)).map(str::to_owned);
            Err(Error::UnknownRecipe { name: name.to_owned(), near, known: known.join(", ") })
        }
    }
}

/// A recipe from TOML text; `origin` names it in messages.
///
/// # Errors
/// [`Error::RecipeSyntax`] with line and column.
pub fn from_toml(text: &str, origin: &str) -> Result<Recipe> {
    toml::from_str(text).map_err(|error| Error::RecipeSyntax {
        origin: origin.to_owned(),
        reason: error.to_string(),
    })
}

/// A recipe from a TOML file.
///
/// # Errors
/// [`Error::RecipeFile`]; [`Error::RecipeSyntax`].
pub fn from_file(path: &Path) -> Result<Recipe> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::RecipeFile { path: origin.clone(), source })?;
    from_toml(&text, &origin)
}

/// A built-in recipe by its name, or a file if the text ends in `.toml`.
///
/// # Errors
/// As [`by_name`] and [`from_file`].
pub fn load(name_or_path: &str) -> Result<Recipe> {
    if name_or_path.ends_with(".toml") {
        return from_file(Path::new(name_or_path));
    }
    by_name(name_or_path)
}

/// How a model has to be built for a recipe.
pub fn parametrisation(recipe: &Recipe) -> Parametrisation {
    match recipe.scaling {
        Scaling::Unit => Parametrisation::Unit,
        Scaling::UMup => Parametrisation::UMup,
        Scaling::MuS => Parametrisation::MuS,
        _ => Parametrisation::Regular,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onesigma_format::{Format, Overflow};
    use onesigma_graph::Role;
    use onesigma_graph::recipe::Use;

    #[test]
    fn every_built_in_reads_and_has_its_name() -> Result<()> {
        for (name, _) in BUILT_IN {
            let recipe = by_name(name)?;
            assert_eq!(recipe.name, *name);
            assert!(!recipe.summary.is_empty(), "{name}");
            for role in [Role::Weight, Role::Activation, Role::ActivationGrad, Role::WeightGrad] {
                assert!(recipe.rule(role, Use::Store, "x", None).is_some(), "{name} {role}");
            }
            for role in [Role::MasterWeight, Role::FirstMoment, Role::SecondMoment] {
                assert_eq!(recipe.state_format(role, "w", None), Format::F32, "{name} {role}");
            }
        }
        Ok(())
    }

    #[test]
    fn what_may_have_been_meant_is_said() {
        for (given, near) in
            [("fp8", "unit-fp8"), ("unit-bf16", "unit-fp16"), ("u-mup-pf8", "u-mup-fp8")]
        {
            let message = by_name(given).expect_err(given).to_string();
            assert!(message.contains(&format!("`{given}`, did you mean `{near}`?")), "{message}");
        }
        let message = by_name("colourful").expect_err("no recipe").to_string();
        assert!(message.contains("there are: f32") && !message.contains("mean"), "{message}");
    }

    #[test]
    fn fp8_is_for_products_and_not_for_the_readout() -> Result<()> {
        let recipe = by_name("unit-fp8")?;
        let rule = |role, node| recipe.rule(role, Use::Matmul, node, Some(0)).map(|r| r.format);
        assert_eq!(rule(Role::Weight, "layers.0.mlp.linear"), Some(Format::E4M3));
        assert_eq!(rule(Role::Activation, "layers.0.mlp.linear"), Some(Format::E4M3));
        assert_eq!(rule(Role::ActivationGrad, "grad(layers.0.mlp.linear)"), Some(Format::E5M2));
        for role in [Role::Weight, Role::Activation, Role::ActivationGrad] {
            assert_eq!(rule(role, "readout.linear"), Some(Format::F16));
            assert_eq!(rule(role, "grad(readout.linear)"), Some(Format::F16));
        }
        Ok(())
    }

    #[test]
    fn u_mup_keeps_its_critical_products_in_bf16_and_mu_s_does_not() -> Result<()> {
        for (name, p, critical) in [
            ("u-mup-fp8", Parametrisation::UMup, Format::BF16),
            ("mu-s-fp8", Parametrisation::MuS, Format::E4M3),
        ] {
            let recipe = by_name(name)?;
            assert_eq!(parametrisation(&recipe), p);
            let rule = |node| recipe.rule(Role::Activation, Use::Matmul, node, Some(0));
            let format = |node| rule(node).map(|rule| rule.format);
            assert_eq!(format("layers.0.mlp.c_fc.linear"), Some(Format::E4M3));
            assert_eq!(format("layers.0.mlp.c_proj.linear"), Some(critical), "{name}");
            assert_eq!(format("readout.linear"), Some(Format::BF16));
            let stored = recipe.rule(Role::WeightGrad, Use::Store, "readout.linear", None);
            assert_eq!(stored.map(|rule| rule.format), Some(Format::BF16));
        }
        Ok(())
    }

    #[test]
    fn plain_fp16_overflows_to_infinity() -> Result<()> {
        let recipe = by_name("fp16")?;
        let rule = recipe.rule(Role::ActivationGrad, Use::Store, "x", None);
        assert_eq!(rule.map(|rule| rule.overflow), Some(Overflow::Special));
        assert_eq!(recipe.scaling, Scaling::None);
        Ok(())
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = by_name("fp7").expect_err("no such recipe").to_string();
        assert!(message.contains("`fp7`") && message.contains("unit-fp8"), "{message}");
        let message = from_toml("name = 3", "mine.toml").expect_err("no recipe").to_string();
        assert!(message.starts_with("recipe mine.toml: "), "{message}");
    }
}
