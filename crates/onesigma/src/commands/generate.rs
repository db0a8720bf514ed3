//! `onesigma generate`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use onesigma::setup;
use onesigma::train::Error;
use onesigma::train::generate::{NextToken, Sampling, generate_shifting};

use super::model;

/// Arguments of `onesigma generate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys and values of what was read are kept, so that a further token costs one row of every product.
Where the text outgrows the context, the model sees the last tokens that fit. Each token then has
another position than before and the whole context is evaluated for every token, unless --shift
lets several tokens be forgotten at once.

Examples:
  onesigma generate runs/first --prompt 'fn main() {'
  onesigma generate runs/first --tokens 500 --temperature 0.7 --top-k 20 --seed 3
  onesigma generate runs/first --tokens 5000 --shift 64 --timing")]
pub struct Arguments {
    /// A run folder, a checkpoint file, or a Hugging Face folder
    run: PathBuf,
    /// The text to continue
    #[arg(long, default_value = "")]
    prompt: String,
    /// Tokens to add
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Divides the logits: lower is safer, 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw among this many of the likeliest tokens; 0 for all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tokens forgotten at once when the text outgrows the context; 1 always shows the model as
    /// much as fits, more is faster
    #[arg(long, default_value_t = 1)]
    shift: usize,
    /// Evaluate the whole context for every token, as in training: to compare
    #[arg(long)]
    no_cache: bool,
    /// Where to run, by the names of `onesigma backends` [default: where the run was]
    #[arg(long)]
    backend: Option<String>,
    /// Say on standard error how long it took
    #[arg(long)]
    timing: bool,
}

/// Prints the prompt and its continuation as it is drawn.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { temperature, top_k, seed, .. } = *arguments;
    let sampling = Sampling { temperature, top_k, seed };
    sampling.validate()?;
    let mut opened = model::open(&arguments.run, None)?;
    if let Some(backend) = &arguments.backend {
        opened.config.backend.clone_from(backend);
    }
    let mut model: Box<dyn NextToken> = match arguments.no_cache {
        true => Box::new(opened.session(&opened.config)?),
        false => Box::new(setup::generator(&opened.config, &opened.values())?),
    };
    let mut out = io::stdout().lock();
    out.write_all(arguments.prompt.as_bytes())?;
    let mut clock = Clock::new();
    if let Some(pieces) = &opened.pieces {
        let prompt = pieces.encode(&arguments.prompt)?;
        let mut tokens = prompt.clone();
        let given = pieces.decode(&tokens)?.len();
        continued(&mut *model, &prompt, arguments, sampling, |token| {
            clock.tick();
            tokens.push(token);
            true
        })?;
        let text = pieces.decode(&tokens)?;
        writeln!(out, "{}", text.get(given..).unwrap_or(&text))?;
    } else {
        let prompt: Vec<u32> = arguments.prompt.bytes().map(u32::from).collect();
        let mut written = Ok(());
        continued(&mut *model, &prompt, arguments, sampling, |token| {
            clock.tick();
            let byte = u8::try_from(token).unwrap_or(b'?');
            written = out.write_all(&[byte]).and_then(|()| out.flush());
            written.is_ok()
        })?;
        written?;
        writeln!(out)?;
    }
    if arguments.timing {
        eprintln!("{}", clock.words());
    }
    Ok(())
}

fn continued(
    model: &mut dyn NextToken,
    prompt: &[u32],
    arguments: &Arguments,
    sampling: Sampling,
    each: impl FnMut(u32) -> bool,
) -> Result<(), Error> {
    generate_shifting(model, prompt, arguments.tokens, arguments.shift, sampling, each)
}

/// When tokens came.
struct Clock {
    start: Instant,
    first: Option<Duration>,
    last: Duration,
    tokens: usize,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), first: None, last: Duration::ZERO, tokens: 0 }
    }

    fn tick(&mut self) {
        self.last = self.start.elapsed();
        self.first.get_or_insert(self.last);
        self.tokens += 1;
    }

    /// The first token, which waits for the prompt, apart from the others.
    fn words(&self) -> String {
        let Some(first) = self.first else { return "no token".into() };
        let first_ms = first.as_secs_f64() * 1e3;
        let rest = (self.last - first).as_secs_f64();
        match self.tokens - 1 {
            0 => format!("first token after {first_ms:.1} ms"),
            more => format!(
                "first token after {first_ms:.1} ms, {more} more in {rest:.3} s: {:.1} tokens/s",
                more as f64 / rest
            ),
        }
    }
}
