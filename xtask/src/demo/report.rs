//! The demo's table, and the pages of `docs/` that are made from several seeds.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{RECIPES, Summary};

/// Mean and standard deviation (of the sample; zero for one value).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    mean: f64,
    deviation: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { mean, deviation: (squares / (count - 1.0).max(1.0)).sqrt() }
    }
}

/// A Markdown table, one row a recipe, that reads well on a terminal too.
pub fn table(runs: &[Summary], reference: &str) -> String {
    let of = |recipe: &str, field: fn(&Summary) -> f64| {
        let own = runs.iter().filter(|run| run.recipe == recipe);
        Spread::of(&own.map(field).collect::<Vec<_>>())
    };
    let base = of(reference, |run| run.validation_loss).mean;
    let mut rows = vec![[
        "recipe".to_owned(),
        "validation loss".to_owned(),
        format!("against {reference}"),
        "tokens/s".to_owned(),
        "planned memory".to_owned(),
        "peak resident".to_owned(),
        "gradients flushed to 0".to_owned(),
    ]];
    for recipe in RECIPES {
        let Some(first) = runs.iter().find(|run| run.recipe == recipe) else { continue };
        let loss = of(recipe, |run| run.validation_loss);
        let flushed = of(recipe, |run| run.flushed_gradients.unwrap_or(f64::NAN)).mean;
        let spread = match runs.iter().filter(|run| run.recipe == recipe).count() {
            1 => String::new(),
            _ => format!(" ± {:.4}", loss.deviation),
        };
        rows.push([
            recipe.to_owned(),
            format!("{:.4}{spread}", loss.mean),
            match recipe == reference {
                true => "—".to_owned(),
                false => format!("{:+.2} %", 100.0 * (loss.mean / base - 1.0)),
            },
            format!("{:.0}", of(recipe, |run| run.tokens_per_s).mean),
            mebibytes(Some(first.arena_bytes)),
            mebibytes(first.resident_bytes),
            if flushed.is_finite() {
                format!("{:.2} %", 100.0 * flushed)
            } else {
                "—".to_owned()
            },
        ]);
    }
    align(&rows)
}

fn mebibytes(bytes: Option<u64>) -> String {
    bytes.map_or("—".to_owned(), |bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)))
}

fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            for width in widths {
                let _ = write!(text, "| {} ", "-".repeat(width));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Writes the figures of every run, the page that shows them, and the picture.
pub fn write_docs(root: &Path, runs: &[Summary], reference: &str, chart: &Path) -> Result<()> {
    let seeds = runs.iter().map(|run| run.seed).max().unwrap_or_default() + 1;
    let first = runs.first().context("no runs")?;
    let machine = machine();
    let json = serde_json::json!({
        "made_by": format!("cargo xtask demo --seeds {seeds} --steps {}", first.steps),
        "machine": machine,
        "runs": runs,
    });
    let text = serde_json::to_string_pretty(&json)? + "\n";
    fs::create_dir_all(root.join("docs/results"))?;
    fs::create_dir_all(root.join("docs/src/images"))?;
    fs::write(root.join("docs/results/demo.json"), text)?;
    fs::copy(chart, root.join("docs/src/images/demo.svg"))?;
    let page = format!(
        "# Results\n\n\
         Made by `cargo xtask demo --seeds {seeds} --steps {steps}` on {machine}; the figures of \
         every run are in `docs/results/demo.json`. A GPT of {parameters} parameters on the corpus \
         `cargo` (SHA-256 `{sha}`), {seeds} seeds: mean ± standard deviation of the final \
         validation loss in nats per byte.\n\n{table}\n\
         Gradients flushed to 0: the share of gradient elements that are not zero in f32 and are \
         zero in the format that the recipe stores them in, over one step at the trained weights.\n\
         \nThe gap between fp16 and the unit-scaled models is not the effect of the format alone: it is \
         the regular model, whose learning rate was picked from three values, while the unit-scaled \
         model's multipliers were searched. Tokens per second of runs on a shared machine say little \
         about speed; `cargo bench -p onesigma-benches --bench step` measures that.\n\
         \n![Training loss of the first seed](images/demo.svg)\n",
        steps = first.steps,
        parameters = first.parameters,
        sha = first.corpus_sha256,
        table = table(runs, reference),
    );
    fs::write(root.join("docs/src/results.md"), page)?;
    Ok(())
}

/// Processor and number of cores, as far as the system tells.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        line.split(": ").nth(1).map(str::to_owned)
    });
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{cores} cores of {model}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(recipe: &str, seed: u64, validation_loss: f64) -> Summary {
        Summary {
            recipe: recipe.into(),
            seed,
            steps: 10,
            parameters: 1000,
            validation_loss,
            tokens_per_s: 5000.0,
            arena_bytes: 3 << 20,
            resident_bytes: None,
            flushed_gradients: (recipe == "fp16").then_some(0.25),
            corpus_sha256: "00".into(),
        }
    }

    #[test]
    fn the_table_compares_means() {
        let runs = [
            run("unit-fp8", 0, 2.02),
            run("unit-f32", 0, 2.0),
            run("fp16", 0, 2.5),
            run("unit-fp8", 1, 2.06),
            run("unit-f32", 1, 2.0),
            run("fp16", 1, 2.5),
        ];
        let text = table(&runs, "unit-f32");
        let row = |recipe: &str| {
            text.lines().find(|line| line.contains(&format!("| {recipe} "))).expect("its row")
        };
        assert!(row("unit-fp8").contains("2.0400 ± 0.0283"), "{text}");
        assert!(row("unit-fp8").contains("+2.00 %"), "{text}");
        assert!(row("fp16").contains("25.00 %"), "{text}");
        assert!(row("unit-f32").contains("3.0 MiB"), "{text}");
    }

    #[test]
    fn one_value_has_no_spread() {
        assert_eq!(Spread::of(&[3.0]), Spread { mean: 3.0, deviation: 0.0 });
    }
}
