//! `--profile` of `onesigma run` and `onesigma train`: where the time went.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use onesigma::backend::profile::Profile;
use onesigma::backend::{Backend, Engine, Span};
use onesigma::graph::Program;

/// Begins to record.
pub fn begin(engine: &mut dyn Engine) -> Result<()> {
    can_record(engine.record())
}

/// Says what to do if an engine cannot record.
pub fn can_record(can: bool) -> Result<()> {
    if !can {
        bail!("this backend cannot record a profile; use `--backend cpu`");
    }
    Ok(())
}

/// Prints the table and writes the trace.
pub fn end(
    out: &mut impl Write,
    program: &Program,
    spans: &[Span],
    backend: &dyn Backend,
    path: &Path,
) -> Result<()> {
    let limits = backend.limits();
    let profile = Profile::new(program, spans, limits.as_ref())?;
    if let Some(limits) = &limits {
        write!(out, "{}: copy {:.1} GB/s", limits.name, limits.bytes_per_second / 1e9)?;
        for rate in &limits.matmul {
            write!(out, ", {} bits {:.0} GFLOP/s", rate.bits, rate.flops / 1e9)?;
        }
        writeln!(out)?;
    }
    out.write_all(profile.table().as_bytes())?;
    fs::write(path, profile.trace()).with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(out, "trace: {} (open it at https://ui.perfetto.dev)", path.display())?;
    Ok(())
}
