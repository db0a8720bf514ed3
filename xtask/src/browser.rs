//! `cargo xtask browser`: trains the demo page in a real browser and looks at its losses.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

mod devtools;
mod server;
mod tools;

use self::devtools::Browser;
use self::tools::page;
pub use self::tools::{TARGET, has_target};

/// Steps whose mean is compared with the bound.
const LAST: usize = 5;
/// Steps between two lines.
const SHOWN: usize = 10;

/// Arguments of `cargo xtask browser`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Training steps.
    #[arg(long, default_value_t = 60)]
    steps: usize,
    /// Recipe that is trained.
    #[arg(long, default_value = "unit-fp8")]
    recipe: String,
    /// Nats a letter that the mean of the last five steps has to be below; all letters alike are
    /// 3.33.
    #[arg(long, default_value_t = 1.5)]
    below: f64,
    /// The device that the page is given.
    #[arg(long, value_enum, default_value_t = Adapter::Software)]
    adapter: Adapter,
    /// Give up after so many minutes.
    #[arg(long, default_value_t = 15)]
    minutes: u64,
    /// A Chromium, by path or name; the first that is installed without.
    #[arg(long)]
    browser: Option<PathBuf>,
    /// Write a picture of the page into this PNG file.
    #[arg(long)]
    screenshot: Option<PathBuf>,
    /// Write what was seen into this JSON file.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Fail where a tool is missing, instead of skipping.
    #[arg(long)]
    require: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Adapter {
    /// SwiftShader, the browser's driver for machines without a GPU.
    Software,
    /// What the browser finds, through Vulkan on Linux.
    Gpu,
}

impl Adapter {
    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Software => &["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"],
            Self::Gpu => {
                &["--enable-unsafe-webgpu", "--enable-features=Vulkan", "--ignore-gpu-blocklist"]
            }
        }
    }
}

/// What the page tells of itself: `run` in `examples/browser/index.html`.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Run {
    state: String,
    device: String,
    losses: Vec<f64>,
    /// Since the page was loaded, for each step.
    seconds: Vec<f64>,
    text: String,
}

impl Run {
    /// Mean loss of the last steps, as soon as there are enough.
    fn last(&self) -> Option<f64> {
        let from = self.losses.len().checked_sub(LAST)?;
        Some(self.losses[from..].iter().sum::<f64>() / LAST as f64)
    }

    /// Milliseconds of a step, the first left out: it waits for the driver to compile.
    fn step_ms(&self) -> Option<f64> {
        let (first, last) = (self.seconds.first()?, self.seconds.last()?);
        let steps = self.seconds.len() - 1;
        (steps > 0).then(|| 1000.0 * (last - first) / steps as f64)
    }
}

/// Builds the page, opens it, and waits until it has trained.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.steps >= LAST, "`--steps` has to be {LAST} at least");
    let program = match tools::find(arguments.browser.as_deref()) {
        Ok(program) => program,
        Err(missing) if arguments.require => bail!("{missing}"),
        Err(missing) => {
            eprintln!("skipped: {missing}");
            return Ok(());
        }
    };
    let address = server::serve(page()?)?;
    let url = format!("http://{address}/?steps={}&recipe={}", arguments.steps, arguments.recipe);
    let flags = arguments.adapter.flags();
    eprintln!("$ {} --headless {} {url}", program.display(), flags.join(" "));
    let mut browser = Browser::open(&program, flags)?;
    println!("{}", browser.version());
    browser.go_to(&url)?;
    let run = wait(&mut browser, Duration::from_secs(60 * arguments.minutes))?;
    println!("it wrote: {}", run.text);
    let memory = browser.gpu_bytes();
    if let Some(path) = &arguments.screenshot {
        write(path, &browser.screenshot()?)?;
    }
    let last = run.last().context("the page is done without a step")?;
    let (first, step_ms) = (run.seconds[0], run.step_ms().unwrap_or_default());
    let peak = memory.map_or(String::new(), |bytes| {
        format!(", {:.2} GiB in the browser's GPU process", bytes as f64 / (1u64 << 30) as f64)
    });
    println!(
        "{} steps: loss {:.3} to {last:.3}; first step after {first:.1} s, then {step_ms:.0} ms a \
         step{peak}",
        run.losses.len(),
        run.losses[0]
    );
    if let Some(path) = &arguments.record {
        let found = json!({
            "browser": browser.version(),
            "flags": flags,
            "recipe": arguments.recipe,
            "page": run,
            "first_step_s": first,
            "step_ms": step_ms,
            "gpu_process_peak_bytes": memory,
        });
        write(path, (serde_json::to_string_pretty(&found)? + "\n").as_bytes())?;
    }
    let below = arguments.below;
    ensure!(last < below, "the last {LAST} steps have {last:.3} nats, not less than {below}");
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    // From where cargo was called, not from the workspace root.
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// Follows the page until it is done.
fn wait(browser: &mut Browser, limit: Duration) -> Result<Run> {
    let start = Instant::now();
    let (mut told, mut device) = (0, String::new());
    loop {
        // Null until the page's script has begun.
        let run: Option<Run> = browser.evaluate("globalThis.run ?? null")?;
        let run = run.unwrap_or_default();
        if run.device != device {
            device.clone_from(&run.device);
            println!("{device}");
        }
        let done = run.state == "done";
        while told < run.losses.len() && (told + SHOWN <= run.losses.len() || told == 0 || done) {
            told = if told == 0 { 1 } else { (told / SHOWN + 1) * SHOWN };
            told = told.min(run.losses.len());
            let (loss, second) = (run.losses[told - 1], run.seconds[told - 1]);
            println!("{second:7.1} s  step {told:4}  {loss:.3} nats");
        }
        match &*run.state {
            "done" => return Ok(run),
            "failed" => bail!("the page failed: {}", run.text),
            _ => {}
        }
        let minutes = limit.as_secs() / 60;
        ensure!(
            start.elapsed() < limit,
            "not done after {minutes} minutes and {} steps; `--minutes` gives it more",
            run.losses.len()
        );
        sleep(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_judged_by_its_last_steps_and_timed_without_the_first() {
        let mut run = Run { losses: vec![3.5; 4], seconds: vec![40.0], ..Run::default() };
        assert_eq!((run.last(), run.step_ms()), (None, None));
        run.losses.extend([1.0; 5]);
        run.seconds.extend([41.0, 42.0, 46.0]);
        assert_eq!((run.last(), run.step_ms()), (Some(1.0), Some(2000.0)));
    }
}
