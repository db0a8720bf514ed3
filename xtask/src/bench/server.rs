//! A process that takes training steps when it is told to: the protocol that
//! `benches/peers/pytorch_gpt_step.py` describes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::watch::Watch;

/// A turn counts if others used less than this part of the machine.
const QUIET: f64 = 0.04;
/// Turns that are tried before one counts that was not quiet.
const TRIES: usize = 12;

/// A contender that is warm and waits.
pub struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// What it said of itself.
    pub about: Value,
    /// Milliseconds of every step so far.
    pub step_ms: Vec<f64>,
    /// The largest part of the machine that others used in a turn that counts.
    pub others: f64,
    /// Most processors that it used itself in one, on average over the turn.
    pub processors: f64,
}

impl Server {
    /// Starts a contender; the error says why it cannot take part.
    pub fn start(mut command: Command) -> Result<Self> {
        command.arg("--serve").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot be started")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let (about, step_ms) = (Value::Null, Vec::new());
        let mut server =
            Self { child, input, output, about, step_ms, others: 0.0, processors: 0.0 };
        server.about = server.line()?;
        if let Some(reason) = server.about["skipped"].as_str() {
            bail!("{reason}");
        }
        Ok(server)
    }

    /// The next line that is JSON; compilers of peers print others.
    fn line(&mut self) -> Result<Value> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                bail!("it ended with {}", self.child.wait()?);
            }
            if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line) {
                return Ok(value);
            }
        }
    }

    /// Takes a turn of some steps, again if something else ran at the same time.
    pub fn turn(&mut self, steps: usize) -> Result<()> {
        let mut best: Option<(f64, f64, Vec<f64>)> = None;
        for attempt in 0..TRIES {
            let watch = Watch::new(self.child.id());
            let input = self.input.as_mut().context("it has ended")?;
            writeln!(input, "{steps}")?;
            input.flush()?;
            let answer = self.line()?;
            let (others, used) = (watch.others(), watch.used());
            let times = answer["step_ms"].as_array().context("no times")?;
            let times: Vec<f64> = times.iter().filter_map(Value::as_f64).collect();
            if best.as_ref().is_none_or(|best| others < best.0) {
                best = Some((others, used, times));
            }
            if others < QUIET {
                break;
            }
            std::thread::sleep(Duration::from_millis(200 * attempt as u64));
        }
        if let Some((others, used, times)) = best {
            self.step_ms.extend(times);
            self.others = self.others.max(others);
            self.processors = self.processors.max(used);
        }
        Ok(())
    }

    /// Ends it; gives the peak of its resident memory in bytes.
    pub fn finish(&mut self) -> Result<u64> {
        drop(self.input.take());
        let last = self.line()?;
        self.child.wait()?;
        last["peak_resident_bytes"].as_u64().context("no peak")
    }

    /// Median milliseconds of a step.
    pub fn median(&self) -> f64 {
        let mut times = self.step_ms.clone();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
