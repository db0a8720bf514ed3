//! `onesigma generate`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use onesigma::train::generate::{Sampling, generate};

use super::model;

/// Arguments of `onesigma generate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  onesigma generate runs/first --prompt 'fn main() {'
  onesigma generate runs/first --tokens 500 --temperature 0.7 --top-k 20 --seed 3")]
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
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Draw among this many of the likeliest tokens; 0 for all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Prints the prompt and its continuation as it is drawn.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { temperature, top_k, seed, .. } = *arguments;
    let sampling = Sampling { temperature, top_k, seed };
    sampling.validate()?;
    let opened = model::open(&arguments.run, None)?;
    let mut session = opened.session(&opened.config)?;
    let mut out = io::stdout().lock();
    out.write_all(arguments.prompt.as_bytes())?;
    if let Some(pieces) = &opened.pieces {
        let prompt = pieces.encode(&arguments.prompt)?;
        let mut tokens = prompt.clone();
        let given = pieces.decode(&tokens)?.len();
        generate(&mut session, &prompt, arguments.tokens, sampling, |token| {
            tokens.push(token);
            true
        })?;
        let text = pieces.decode(&tokens)?;
        writeln!(out, "{}", text.get(given..).unwrap_or(&text))?;
        return Ok(());
    }
    let prompt: Vec<u32> = arguments.prompt.bytes().map(u32::from).collect();
    let mut written = Ok(());
    generate(&mut session, &prompt, arguments.tokens, sampling, |token| {
        let byte = u8::try_from(token).unwrap_or(b'?');
        written = out.write_all(&[byte]).and_then(|()| out.flush());
        written.is_ok()
    })?;
    written?;
    writeln!(out)?;
    Ok(())
}
