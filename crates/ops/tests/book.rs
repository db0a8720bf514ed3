//! What the book shows is read by the code it describes.

use onesigma_format::Format;
use onesigma_graph::Role;
use onesigma_graph::recipe::Use;
use onesigma_ops::{recipes, rules};

/// The first block of a language in a page.
fn block<'a>(page: &'a str, language: &str) -> &'a str {
    let start = page.find(&format!("```{language}\n")).expect("the page has such a block");
    let text = &page[start + language.len() + 4..];
    &text[..text.find("```").expect("the block ends")]
}

#[test]
fn the_recipe_of_the_book_is_read() {
    let text = block(include_str!("../../../docs/src/recipes.md"), "toml");
    let recipe = recipes::from_toml(text, "the book").expect("it is a recipe");
    let format = |layer| {
        let rule = recipe.rule(Role::Weight, Use::Matmul, "layers.0.mlp.c_fc.linear", layer);
        rule.map(|rule| rule.format)
    };
    assert_eq!((format(Some(5)), format(Some(6))), (Some(Format::E4M3), None));
    let stochastic = text.replace("\"nearest-even\"", "{ stochastic = { bits = 16 } }");
    assert!(recipes::from_toml(&stochastic, "the book").is_ok());
}

#[test]
fn the_case_of_the_book_is_evaluated() {
    let text = block(include_str!("../../../docs/src/rules.md"), "json");
    let case: rules::Case = serde_json::from_str(text).expect("it is a case");
    let figures = rules::expected(&case).expect("it has a rule");
    assert!((figures.output - (0.25 * 32_f64.powf(-0.5)).sqrt()).abs() < 1e-12);
}
