//! `onesigma backends`.

use std::io::{self, Write};

use anyhow::Result;
use onesigma::backends::BACKENDS;

/// Arguments of `onesigma backends`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  onesigma backends")]
pub struct Arguments {}

/// Prints each backend with its device, or why it has none.
pub fn run(_: &Arguments) -> Result<()> {
    let mut out = io::stdout().lock();
    for entry in BACKENDS {
        writeln!(out, "{:<8} {}", entry.name, entry.summary)?;
        match (entry.open)() {
            Ok(backend) => {
                let caps = backend.caps();
                writeln!(out, "  device         {}", caps.device)?;
                if let Some(bytes) = caps.memory_bytes {
                    let gibibytes = bytes as f64 / f64::from(1 << 30);
                    writeln!(out, "  memory         {gibibytes:.1} GiB")?;
                }
                let yes = if caps.deterministic { "yes" } else { "no" };
                writeln!(out, "  deterministic  {yes}")?;
            }
            Err(error) => writeln!(out, "  unavailable    {error}")?,
        }
        if let Some(devices) = entry.devices {
            for (at, device) in (devices.list)().into_iter().enumerate() {
                writeln!(out, "  --device {at}     {device}")?;
            }
        }
    }
    Ok(())
}
