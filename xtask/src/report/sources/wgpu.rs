//! Steps of the wgpu backend, alone and in one call with burn's: `wgpu/gpt_step.json`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{Sources, Step, gpt, read_json, short, size};

#[derive(Deserialize)]
struct Steps {
    /// What was run; the sizes of the model are those of the peer's command line.
    command: String,
    device: String,
    rows: Vec<Row>,
    /// Milliseconds of a step, ours under the recipe's name; a note that says more.
    beside_burn_ms: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Row {
    recipe: String,
    ms: f64,
}

/// Takes in the file if it is there.
pub fn read(found: &mut Sources, folder: &Path) -> Result<()> {
    let path = folder.join("wgpu/gpt_step.json");
    let Some(file) = read_json::<Steps>(&path)? else { return Ok(()) };
    let size = |flag: &str| size(&path, &file.command, flag);
    let [width, layers] = [size("--d-model")?, size("--layers")?];
    let [batch, seq] = [size("--batch")?, size("--seq")?];
    let step = |call: &str, name: String, is_peer: bool, ms: f64| Step {
        source: path.display().to_string(),
        device: short(&file.device),
        model: gpt(width, layers, batch, seq) + call,
        name,
        is_peer,
        ms,
        tokens: (batch * seq) as f64,
        memory_bytes: None,
    };
    let named = |recipe: &str| format!("{recipe} (wgpu)");
    let is_own = |name: &str| file.rows.iter().any(|row| row.recipe == name);
    for row in &file.rows {
        found.steps.push(step("", named(&row.recipe), false, row.ms));
    }
    // Two calls are two runs: steps of the one are not held against those of the other.
    for (name, ms) in &file.beside_burn_ms {
        let Some(ms) = ms.as_f64() else { continue };
        let own = is_own(name);
        let name = if own { named(name) } else { name.clone() };
        found.steps.push(step(", in one call", name, !own, ms));
    }
    Ok(())
}
