//! Does the time of a step grow as its operations do, in width, depth and sequence, and fall with a
//! second thread?

use std::process::Command;

use anyhow::Result;
use serde_json::json;

use super::peers::{own_binary, round3};
use super::server::Server;

/// Width, layers, sequence, batch; heads have 64 elements.
type Size = (u64, u64, u64, u64);

/// Series in each of which one number grows.
const SERIES: [(&str, &[Size]); 3] = [
    ("width", &[(128, 2, 256, 4), (256, 2, 256, 4), (512, 2, 256, 4), (1024, 2, 256, 4)]),
    ("depth", &[(256, 2, 256, 4), (256, 4, 256, 4), (256, 8, 256, 4)]),
    ("sequence", &[(256, 2, 128, 4), (256, 2, 256, 4), (256, 2, 512, 4), (256, 2, 1024, 4)]),
];

/// Operations of a step: six for each weight of a linear and token; seven products of causal
/// attention (two forward, five backward with the logits made again), half of each computed.
fn operations((width, layers, seq, batch): Size) -> f64 {
    let tokens = (batch * seq) as f64;
    let weights = (layers * 12 * width * width + 256 * width) as f64;
    6.0 * weights * tokens + (7 * layers * batch * seq * seq * width) as f64
}

/// Measures every size with one thread and with two, writes docs/results/scaling_cpu.json.
pub fn run(rounds: usize) -> Result<()> {
    let own = own_binary()?;
    let mut rows = Vec::new();
    for (series, sizes) in SERIES {
        let mut servers = Vec::new();
        for &size in sizes {
            for threads in [2, 1] {
                let (width, layers, seq, batch) = size;
                let mut command = Command::new(&own);
                for (flag, value) in [
                    ("--d-model", width),
                    ("--layers", layers),
                    ("--heads", width / 64),
                    ("--seq", seq),
                    ("--batch", batch),
                    ("--threads", threads),
                ] {
                    command.arg(flag).arg(value.to_string());
                }
                servers.push((size, threads, Server::start(command)?));
            }
        }
        for _ in 0..rounds {
            for (size, _, server) in &mut servers {
                // Turns of about half a second.
                let steps = (5e10 / operations(*size)).clamp(2.0, 100.0) as usize;
                server.turn(steps)?;
            }
        }
        let mut before = [None; 2];
        println!(
            "{series:<9} width layers seq  threads   ms a step  GFLOP/s  time's growth / operations'"
        );
        for (size, threads, server) in &servers {
            let (ms, operations) = (server.median(), operations(*size));
            let rate = operations / ms / 1e6;
            // Times growing as operations do is a rate that stays.
            let growth = before[*threads as usize - 1].replace(rate).map(|old: f64| old / rate);
            let other = servers.iter().find(|other| other.0 == *size && other.1 == 1);
            let speedup = other.map(|other| other.2.median() / ms);
            println!(
                "{:<9} {:5} {:6} {:4} {threads:6} {ms:12.3} {rate:8.1}  {:.3}  speedup {:.2}",
                "",
                size.0,
                size.1,
                size.2,
                growth.unwrap_or(1.0),
                speedup.unwrap_or(1.0)
            );
            rows.push(json!({
                "series": series, "width": size.0, "layers": size.1, "seq": size.2,
                "batch": size.3, "threads": threads, "step_ms_median": round3(ms),
                "operations": operations, "gflops": round3(rate),
                "time_growth_over_operations": growth.map(round3),
                "speedup_over_one_thread": speedup.map(round3),
                "others_used_at_most": round3(server.others),
            }));
        }
    }
    super::keep("scaling_cpu.json", "cargo xtask bench --scaling", json!({ "rows": rows }))
}
