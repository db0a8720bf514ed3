//! `onesigma rules`.

use std::io::{self, Write};

use anyhow::Result;
use onesigma::ops::{
    Attention, Constraint, Linear, Scales, add_scales, cross_entropy_scales, dropout_scales,
    embedding_scales, gelu_scales, matmul_scales, norm_scales, residual_factors, silu_glu_scales,
    silu_scales, softmax_scales,
};
use onesigma::train::Error;

/// Arguments of `onesigma rules`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  onesigma rules
  onesigma rules --fan-in 768 --fan-out 3072 --batch 8192")]
pub struct Arguments {
    /// Inputs of each output of a layer
    #[arg(long, default_value_t = 256)]
    fan_in: usize,
    /// Outputs of a layer
    #[arg(long, default_value_t = 256)]
    fan_out: usize,
    /// Rows that a weight's gradient sums over: sequences times their length
    #[arg(long, default_value_t = 2048)]
    batch: usize,
    /// Tokens in one sequence
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Width of one attention head
    #[arg(long, default_value_t = 64)]
    head: usize,
    /// Number of distinct tokens
    #[arg(long, default_value_t = 256)]
    vocabulary: usize,
    /// Weight of a residual branch against the skip
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true)]
    tau: f64,
}

/// Prints every rule with its scales for the given sizes.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "y = alpha f(x), dx_i = beta_i (df/dx_i)' dy; fan_in {}, fan_out {}, batch {}, seq {}, \
         head {}, vocabulary {}\n",
        arguments.fan_in,
        arguments.fan_out,
        arguments.batch,
        arguments.seq,
        arguments.head,
        arguments.vocabulary
    )?;
    writeln!(out, "{:<18} {:>10}  beta", "rule", "alpha")?;
    for (name, operands, scales) in rules(arguments).map_err(Error::from)? {
        write!(out, "{name:<18} {:>10.6} ", scales.alpha)?;
        for (operand, beta) in operands.iter().zip(&scales.beta) {
            write!(out, " {operand} {beta:.6}")?;
        }
        writeln!(out)?;
    }
    let (branch, skip) = residual_factors(arguments.tau).map_err(Error::from)?;
    writeln!(
        out,
        "{:<18} {:>10}  branch {branch:.6} skip {skip:.6}, forward at the sum, backward at the \
         split",
        format!("residual tau {}", arguments.tau),
        "-"
    )?;
    writeln!(out, "\nFormulas and sources: the documentation of the crate onesigma-ops.")?;
    Ok(())
}

type Rule = (&'static str, &'static [&'static str], Scales);

fn rules(arguments: &Arguments) -> Result<Vec<Rule>, onesigma::ops::Error> {
    let Arguments { fan_in, fan_out, batch, seq, head, vocabulary, .. } = *arguments;
    let constraint = Constraint::ToOutputScale;
    let layer: &[_] = &["input", "weight", "bias"];
    let attention = Attention { causal: true, ..Attention::default() };
    let numel = batch.saturating_mul(fan_in);
    Ok(vec![
        ("linear", layer, Linear::default().scales(fan_in, fan_out, batch)?),
        ("linear_readout", layer, Linear::readout().scales(fan_in, vocabulary, batch)?),
        ("matmul", &["left", "right"], matmul_scales(batch, fan_in, fan_out, constraint)?),
        ("embedding", &["table"], embedding_scales(vocabulary, batch)),
        ("norm", &["input", "weight", "bias"], norm_scales(fan_in, numel)),
        ("gelu", &["input"], gelu_scales(1.0, constraint)?),
        ("silu", &["input"], silu_scales(1.0, constraint)?),
        ("silu_glu", &["input", "gate"], silu_glu_scales(1.0)?),
        ("softmax", &["input"], softmax_scales(seq, 1.0, constraint)?),
        ("attention, causal", &["query", "key", "value"], attention.scales(seq, head)?),
        ("add", &["left", "right"], add_scales(numel, [numel, numel], constraint)?),
        ("dropout 0.1", &["input"], dropout_scales(0.1)?),
        ("cross_entropy", &["logits"], cross_entropy_scales(batch, vocabulary, 1.0, true)?),
    ])
}
