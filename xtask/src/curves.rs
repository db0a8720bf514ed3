//! The charts of the book's page on NVIDIA GPUs: curves of training runs, of the files under
//! `docs/results/cuda` that `pretrain.py` of the bundle writes. Part of `cargo xtask pictures`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::plot::{self, Chart, Curve};
use crate::process::root;

/// One run; a point of a curve is the steps taken and a loss in nats per token.
#[derive(Debug, Deserialize)]
struct Run {
    recipe: String,
    lr: f64,
    #[serde(default)]
    train_curve: Vec<(f64, f64)>,
    #[serde(default)]
    validation_curve: Vec<(f64, f64)>,
}

/// Draws the curves of every file that there is.
pub fn draw() -> Result<()> {
    for (name, title) in [
        ("gpt", "GPT of 86 million parameters on books: loss per byte"),
        ("mlm", "BERT of 14 million parameters on books: loss per masked token"),
    ] {
        let from = root().join(format!("docs/results/cuda/{name}.jsonl"));
        let Ok(text) = fs::read_to_string(&from) else { continue };
        let runs = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Run>, _>>()
            .with_context(|| from.display().to_string())?;
        let [title, x, y] = [title, "steps", "nats"].map(str::to_owned);
        let drawn = plot::svg(&Chart { title, x, y, curves: curves(&runs), ..Chart::default() });
        let to = format!("docs/src/images/cuda-{name}.svg");
        fs::write(root().join(&to), drawn.map_err(anyhow::Error::msg)?)?;
        println!("{to}");
    }
    Ok(())
}

/// Two curves for each recipe: its best run's, in training and on held-out text.
fn curves(runs: &[Run]) -> Vec<Curve> {
    let mut best: BTreeMap<&str, &Run> = BTreeMap::new();
    let last = |run: &Run| run.validation_curve.last().map_or(f64::INFINITY, |&(_, loss)| loss);
    for run in runs {
        let known = best.entry(&run.recipe).or_insert(run);
        if last(run) < last(known) {
            *known = run;
        }
    }
    let mut drawn = Vec::new();
    for (recipe, run) in best {
        let both = [("training", &run.train_curve), ("held out", &run.validation_curve)];
        for (what, curve) in both {
            let label = format!("{recipe}, rate {}, {what}", run.lr);
            drawn.push(Curve { label, points: curve.iter().map(|&point| point.into()).collect() });
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_run_of_each_recipe_is_drawn() {
        let run = |recipe: &str, lr: f64, loss: f64| Run {
            recipe: recipe.to_owned(),
            lr,
            train_curve: vec![(49.0, 2.0)],
            validation_curve: vec![(50.0, loss)],
        };
        let drawn = curves(&[run("a", 0.1, 3.0), run("a", 0.2, 2.0), run("b", 0.3, 1.0)]);
        let labels: Vec<&str> = drawn.iter().map(|one| one.label.as_str()).collect();
        let expected = [
            "a, rate 0.2, training",
            "a, rate 0.2, held out",
            "b, rate 0.3, training",
            "b, rate 0.3, held out",
        ];
        assert_eq!(labels, expected);
    }
}
