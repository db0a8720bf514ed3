//! `onesigma train --dry-run`: what a run would be. A few steps are taken to time them and thrown
//! away.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use onesigma::backend::null::{Cost, Device, NullBackend};
use onesigma::backends;
use onesigma::graph::EntryId;
use onesigma::numerics::{self, Request, Start};
use onesigma::setup;
use onesigma::train::config::Config;
use onesigma::train::numerics::Options;
use onesigma::train::program::{TrainEntries, TrainingProgram};
use onesigma::train::task::Data;

use super::compile;

/// Prints plan, memory, schedule, predicted numerics and cost of a run whose data is read already.
pub fn report(out: &mut impl Write, config: &Config, data: Data) -> Result<()> {
    let training = setup::program(config)?;
    let program = &training.program;
    writeln!(out, "backend     {}", config.backend)?;
    compile::summary(out, &config.recipe, training.parameter_count, program)?;
    if let Some(fit) = &training.memory {
        compile::memory(out, fit, program.arena_bytes())?;
    }
    for rewrite in &training.rewrites {
        writeln!(out, "rewritten   {rewrite}")?;
    }
    let tokens = config.steps * config.tokens_per_step();
    writeln!(
        out,
        "steps       {} of {} tokens, {tokens} in all; {} batches to evaluate on",
        config.steps,
        config.tokens_per_step(),
        data.validation.count(),
    )?;
    let schedule = config.schedule(setup::default_rate(config)?);
    writeln!(
        out,
        "rate        peak {:.6} after {} steps, last {:.6}",
        schedule.peak,
        schedule.warmup_steps,
        schedule.rate(config.steps - 1),
    )?;
    let request =
        Request { name: config.recipe.clone(), config, start: Start::Init, data: None, after: &[] };
    writeln!(out, "numerics    predicted; `onesigma numerics` measures too")?;
    super::numerics::at_risk(out, &numerics::model(&request, &Options::default())?)?;
    cost(out, config, &training, data)
}

/// Operations and bytes of a step, the time it takes, and the least that the device's limits allow.
fn cost(
    out: &mut impl Write,
    config: &Config,
    training: &TrainingProgram,
    data: Data,
) -> Result<()> {
    let batches = data.validation.count();
    let limits = backends::open(&config.backend)?.limits();
    let device = limits.clone().unwrap_or_else(|| Device::server_core(0));
    let null = NullBackend::new(device);
    let of = |entry: EntryId| null.cost(&training.program, entry);
    let step = match training.entries.train {
        TrainEntries::Whole(entry) => of(entry)?,
        TrainEntries::Split { accumulate, apply } => {
            sum(&of(accumulate)?, config.accumulate as f64, &of(apply)?)
        }
    };
    let evaluations = config.steps.checked_div(config.eval_every).unwrap_or(0).max(1);
    let passes = evaluations as f64 * batches as f64;
    let whole = sum(&step, config.steps as f64, &scaled(&of(training.entries.eval)?, passes));
    writeln!(
        out,
        "cost        {:.3} GFLOP a step, {:.1} % in matrix products; {:.1} MB moved",
        step.flops / 1e9,
        100.0 * step.matmul_flops / step.flops.max(1.0),
        step.bytes / 1e6,
    )?;
    writeln!(
        out,
        "            {:.3} TFLOP for the whole run, evaluations included",
        whole.flops / 1e12,
    )?;
    let timed = timed(config, data)?;
    let evaluating = passes * timed.evaluation_s;
    writeln!(
        out,
        "time        {:.1} ms a step and about {} for the run: {} steps were timed and thrown away",
        1e3 * timed.step_s,
        clock(config.steps as f64 * timed.step_s + evaluating),
        timed.steps,
    )?;
    if let Some(device) = limits {
        let rate = device.matmul.last().map_or(0.0, |rate| rate.flops);
        writeln!(
            out,
            "            at least {:.1} ms a step at the limits measured here ({:.0} GFLOP/s, copy \
             {:.1} GB/s)",
            1e3 * step.seconds,
            rate / 1e9,
            device.bytes_per_second / 1e9,
        )?;
    }
    Ok(())
}

/// What steps took.
struct Timed {
    /// How many.
    steps: usize,
    /// Median.
    step_s: f64,
    /// Of one batch.
    evaluation_s: f64,
}

/// Most steps that are timed, and how long they may take.
const STEPS: u64 = 20;
const SECONDS: f64 = 2.0;

/// Takes steps from new weights until there are enough of them; the first one warms up.
fn timed(config: &Config, mut data: Data) -> Result<Timed> {
    let mut session = setup::session(config)?;
    session.init(config.seed)?;
    let accumulate = config.accumulate.max(1) as u64;
    let started = Instant::now();
    let mut times = Vec::new();
    for step in 0..=STEPS {
        let first = step * accumulate;
        let passes: Vec<_> = (first..first + accumulate).map(|n| data.training.batch(n)).collect();
        let start = Instant::now();
        session.train(step, &[1e-6], &passes)?;
        times.push(start.elapsed().as_secs_f64());
        if step > 0 && started.elapsed().as_secs_f64() > SECONDS {
            break;
        }
    }
    let warm = &mut times[1..];
    warm.sort_by(f64::total_cmp);
    let (steps, step_s) = (warm.len(), warm[warm.len() / 2]);
    let mut evaluate = || -> Result<f64> {
        let start = Instant::now();
        session.evaluate(std::iter::once(data.validation.batch(0)))?;
        Ok(start.elapsed().as_secs_f64())
    };
    evaluate()?;
    Ok(Timed { steps, step_s, evaluation_s: evaluate()? })
}

/// `times` of one cost.
fn scaled(cost: &Cost, times: f64) -> Cost {
    Cost {
        ops: Vec::new(),
        flops: times * cost.flops,
        matmul_flops: times * cost.matmul_flops,
        bytes: times * cost.bytes,
        seconds: times * cost.seconds,
    }
}

/// `times` of one cost, and another.
fn sum(one: &Cost, times: f64, other: &Cost) -> Cost {
    let one = scaled(one, times);
    Cost {
        ops: Vec::new(),
        flops: one.flops + other.flops,
        matmul_flops: one.matmul_flops + other.matmul_flops,
        bytes: one.bytes + other.bytes,
        seconds: one.seconds + other.seconds,
    }
}

/// A time as a person says it.
fn clock(seconds: f64) -> String {
    let time = Duration::from_secs_f64(seconds.clamp(0.0, 1e12));
    let (hours, minutes) = (time.as_secs() / 3600, time.as_secs() / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds:.1} s"),
        (0, minutes) => format!("{minutes} min {} s", time.as_secs() % 60),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn times_are_said_in_two_units() {
        assert_eq!(clock(3.21), "3.2 s");
        assert_eq!(clock(61.9), "1 min 1 s");
        assert_eq!(clock(7290.0), "2 h 1 min");
    }
}
