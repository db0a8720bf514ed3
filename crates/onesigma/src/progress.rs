//! How a run looks on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use onesigma::train::telemetry::{Event, Observer, Record};

/// A progress bar with loss, tokens per second and time left; on a pipe, a line per evaluation.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    loss: f32,
    validation: Option<f32>,
    tokens_per_s: f64,
    quiet: bool,
}

impl Progress {
    /// A bar on standard error; `quiet` shows warnings alone.
    pub fn new(quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(5)
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = "{bar:24} {pos}/{len} steps  {msg}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self { bar, loss: f32::NAN, validation: None, tokens_per_s: 0.0, quiet }
    }

    fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            if !self.quiet {
                eprintln!("{line}");
            }
        } else {
            self.bar.println(line);
        }
    }

    fn show(&self) {
        let mut message = format!("loss {:.4}", self.loss);
        if let Some(validation) = self.validation {
            message += &format!("  validation {validation:.4}");
        }
        if self.tokens_per_s > 0.0 {
            message += &format!("  {:.0} tokens/s", self.tokens_per_s);
        }
        self.bar.set_message(message);
    }
}

impl Observer for Progress {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { first_step, total_steps, .. } => {
                self.bar.set_length(*total_steps);
                self.bar.set_position(*first_step);
                self.bar.reset_eta();
                self.bar.enable_steady_tick(Duration::from_millis(500));
                if first_step >= total_steps {
                    let words = "are done already; --steps with a larger number takes more";
                    self.say(&format!("all {total_steps} steps {words}"));
                } else if *first_step > 0 {
                    self.say(&format!("continuing after step {first_step}"));
                }
            }
            Event::Metric(Record::Train { step, loss, .. }) => {
                self.loss = *loss;
                self.bar.set_position(step + 1);
                self.show();
            }
            Event::Metric(Record::Evaluation { step, loss, accuracy }) => {
                self.validation = Some(*loss);
                self.show();
                let mut line = format!("step {step:>6}  validation loss {loss:.4}");
                if !self.loss.is_nan() {
                    line += &format!("  training loss {:.4}", self.loss);
                }
                if self.tokens_per_s > 0.0 {
                    line += &format!("  {:.0} tokens/s", self.tokens_per_s);
                }
                if let Some(accuracy) = accuracy {
                    line += &format!("  accuracy {:.2} %", 100.0 * accuracy);
                }
                self.say(&line);
            }
            Event::Metric(Record::Sample { step, text }) => {
                self.say(&format!("step {step:>6}  sample"));
                for line in text.lines() {
                    self.say(&format!("    {line}"));
                }
            }
            Event::Metric(Record::Speed { tokens_per_s, .. }) => self.tokens_per_s = *tokens_per_s,
            Event::Warning(text) if self.bar.is_hidden() => eprintln!("warning: {text}"),
            Event::Warning(text) => self.bar.println(format!("warning: {text}")),
            Event::Finished { .. } => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}
