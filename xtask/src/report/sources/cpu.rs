//! The comparisons in which programs take turns on one processor: `cargo xtask bench --peers`,
//! `--gemm` and `--scaling`.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use super::{Growth, Product, Sources, Step, read_json};

/// The facts that every file has, under the names of older files and of records.
#[derive(Deserialize)]
struct Machine {
    #[serde(alias = "cpu")]
    processor: String,
    #[serde(alias = "cores")]
    processors: usize,
}

impl Machine {
    fn words(&self, threads: u64) -> String {
        let s = if threads == 1 { "" } else { "s" };
        format!("{}, {} processors, {threads} thread{s}", self.processor, self.processors)
    }
}

#[derive(Deserialize)]
struct Peers {
    machine: Machine,
    results: Vec<PeerResult>,
}

#[derive(Deserialize)]
struct PeerResult {
    sizes: String,
    threads: u64,
    contenders: Vec<Contender>,
}

#[derive(Deserialize)]
struct Contender {
    name: String,
    step_ms_median: f64,
    peak_resident_bytes: f64,
}

#[derive(Deserialize)]
struct Gemm {
    machine: Machine,
    runs: Vec<GemmRun>,
}

#[derive(Deserialize)]
struct GemmRun {
    threads: u64,
    cases: Vec<GemmCase>,
}

#[derive(Deserialize)]
struct GemmCase {
    case: String,
    operands: String,
    m: u64,
    k: u64,
    n: u64,
    gflops: f64,
    of_fma: f64,
}

#[derive(Deserialize)]
struct Scaling {
    machine: Machine,
    rows: Vec<ScalingRow>,
}

#[derive(Deserialize)]
struct ScalingRow {
    series: String,
    width: u64,
    layers: u64,
    seq: u64,
    threads: u64,
    gflops: f64,
    step_ms_median: f64,
}

/// Takes in whichever of the three files are there.
pub fn read(found: &mut Sources, folder: &Path) -> Result<()> {
    peers(found, &folder.join("peers_cpu.json"))?;
    gemm(found, &folder.join("gemm_cpu.json"))?;
    scaling(found, &folder.join("scaling_cpu.json"))
}

fn peers(found: &mut Sources, path: &Path) -> Result<()> {
    let Some(file) = read_json::<Peers>(path)? else { return Ok(()) };
    for result in &file.results {
        let size = |flag: &str| super::size(path, &result.sizes, flag);
        let [width, layers, batch, seq] =
            [size("--d-model")?, size("--layers")?, size("--batch")?, size("--seq")?];
        for one in &result.contenders {
            let own = one.name.strip_prefix("onesigma ");
            found.steps.push(Step {
                source: path.display().to_string(),
                device: file.machine.words(result.threads),
                model: super::gpt(width, layers, batch, seq),
                name: own.map_or_else(|| one.name.clone(), |recipe| format!("{recipe} (cpu)")),
                is_peer: own.is_none(),
                ms: one.step_ms_median,
                tokens: (batch * seq) as f64,
                memory_bytes: Some(one.peak_resident_bytes),
            });
        }
    }
    Ok(())
}

fn gemm(found: &mut Sources, path: &Path) -> Result<()> {
    let Some(file) = read_json::<Gemm>(path)? else { return Ok(()) };
    for run in &file.runs {
        for case in &run.cases {
            found.products.push(Product {
                device: file.machine.words(run.threads),
                sizes: format!("{}: {} x {} x {}", case.case, case.m, case.k, case.n),
                operands: case.operands.clone(),
                rate: case.gflops * 1e9,
                of_limit: Some(case.of_fma),
            });
        }
    }
    Ok(())
}

fn scaling(found: &mut Sources, path: &Path) -> Result<()> {
    let Some(file) = read_json::<Scaling>(path)? else { return Ok(()) };
    for row in file.rows {
        let at = match &*row.series {
            "width" => row.width,
            "depth" => row.layers,
            _ => row.seq,
        };
        found.growth.push(Growth {
            device: file.machine.words(row.threads),
            series: row.series,
            at: at as f64,
            rate: row.gflops * 1e9,
            ms: row.step_ms_median,
        });
    }
    Ok(())
}
