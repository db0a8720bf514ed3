//! `onesigma rules`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use onesigma::ops::rules::answer_json;
use onesigma::ops::{
    Attention, Parametrisation, ResidualRule, Scales, add_scales, cross_entropy_scales,
    dropout_scales, embedding_scales, gelu_scales, matmul_scales, norm_scales, residual_factors,
    silu_glu_scales, silu_scales, softmax_scales,
};
use onesigma::train::Error;
use onesigma::train::program::Proven;
use onesigma::{backends, setup};

use super::Usage;
use super::settings::Settings;

/// Arguments of `onesigma rules`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  onesigma rules
  onesigma rules --parametrisation u-mup --fan-in 768 --fan-out 3072 --batch 8192
  onesigma rules verify --layers 12 --parametrisation u-mup
  onesigma rules --json cases.json > answers.json
  echo '[{\"op\": \"gelu\", \"shapes\": {\"input\": [8, 16]}}]' | onesigma rules --json

A case for --json is {\"op\", \"shapes\", \"args\", \"constraint\"}; it comes back with \"output\" and
\"grads\", the ratios of the scaled to the plain op as the backend's kernels compute them on random
operands, and \"expected\", the same from the formulas."
)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Answer the cases of a JSON list, from a file or - for standard input
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// With --json: the backend that measures
    #[arg(long, value_name = "NAME", default_value = "cpu", requires = "json")]
    backend: String,
    /// regular, unit, u-mup or mu-s: whose choices the scales follow
    #[arg(long, value_name = "NAME", default_value_t = Parametrisation::Unit)]
    parametrisation: Parametrisation,
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

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Prove that the gradients of a model are right, and list by which constants
    Verify(VerifyArguments),
}

/// Arguments of `onesigma rules verify`: those that make a model.
#[derive(Debug, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "\
Scales may differ between forward and backward pass where an edge cuts the graph in two. Then the
gradient of a parameter is the true one times a constant, which Adam does not see. This proves it
for every parameter from the graph alone, or names the edge that breaks it.

Examples:
  onesigma rules verify
  onesigma rules verify --parametrisation mu-s --layers 48
  onesigma rules verify --config runs/first/config.toml"
)]
pub struct VerifyArguments {
    #[command(flatten)]
    settings: Box<Settings>,
}

/// Verifies, answers cases, or prints every rule with its scales for the given sizes.
pub fn run(arguments: &Arguments) -> Result<()> {
    match (&arguments.action, &arguments.json) {
        (Some(Action::Verify(arguments)), _) => verify(arguments),
        (None, Some(path)) => answer(path, &arguments.backend),
        (None, None) => table(arguments),
    }
}

/// Prints the constant of every parameter.
fn verify(arguments: &VerifyArguments) -> Result<()> {
    let config = arguments.settings.config()?;
    let proven = setup::prove(&config)?;
    let mut out = io::stdout().lock();
    let names = proven.iter().map(|proven| proven.parameter.spec.name.len());
    let width = names.max().unwrap_or(0).max(9);
    writeln!(
        out,
        "{:<width$}  {:<16} {:>14} {:>12}",
        "parameter", "shape", "constant", "lr factor"
    )?;
    for Proven { parameter, constant } in &proven {
        let shape = parameter.spec.shape.to_string();
        let constant = constant.map_or("unused".to_owned(), |constant| format!("{constant:.6}"));
        let (name, factor) = (&parameter.spec.name, parameter.lr_scale);
        writeln!(out, "{name:<width$}  {shape:<16} {constant:>14} {factor:>12.6}")?;
    }
    writeln!(
        out,
        "\nproved: each gradient is the true one times its constant, for every input (cut-edge rule)"
    )?;
    Ok(())
}

/// Reads a list of cases and writes it back with measured and expected scales.
fn answer(path: &Path, backend: &str) -> Result<()> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().lock().read_to_string(&mut text),
        _ => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.map_err(|error| Usage(format!("cannot read the cases in {}: {error}", path.display())))?;
    let backend = backends::open(backend)?;
    let answers = answer_json(&text, backend.as_ref()).map_err(Error::from)?;
    writeln!(io::stdout().lock(), "{answers}")?;
    Ok(())
}

fn table(arguments: &Arguments) -> Result<()> {
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
        for (n, operand) in operands.iter().enumerate() {
            write!(out, " {operand} {:.6}", scales.beta(n))?;
        }
        writeln!(out)?;
    }
    let (branch, skip) = residual_factors(arguments.tau).map_err(Error::from)?;
    writeln!(
        out,
        "{:<18} {:>10}  {}",
        format!("residual tau {}", arguments.tau),
        "-",
        match arguments.parametrisation.scheme() {
            scheme if scheme.residual == ResidualRule::Plain => "plain sum".to_owned(),
            scheme => format!(
                "branch {branch:.6} skip {skip:.6}, forward at the sum, backward at the {}",
                if scheme.delayed { "split" } else { "sum" }
            ),
        }
    )?;
    writeln!(out, "\nFormulas and sources: the documentation of the crate onesigma-ops.")?;
    Ok(())
}

type Rule = (&'static str, &'static [&'static str], Scales);

fn rules(arguments: &Arguments) -> Result<Vec<Rule>, onesigma::ops::Error> {
    let Arguments { fan_in, fan_out, batch, seq, head, vocabulary, parametrisation: p, .. } =
        *arguments;
    let scheme = p.scheme();
    let constraint = scheme.constraint;
    let layer: &[_] = &["input", "weight", "bias"];
    let (of_left, of_qkv): (&[_], &[_]) = (&["left", "right"], &["query", "key", "value"]);
    let attention = Attention { causal: true, ..Attention::default() };
    let numel = batch.saturating_mul(fan_in);
    let (linear, activation) = (scheme.linear, scheme.activation);
    let matmul = || matmul_scales(batch, fan_in, fan_out, constraint);
    Ok(vec![
        ("linear", layer, linear.choose(|| p.hidden().scales(fan_in, fan_out, batch))?),
        ("linear, mirrored", layer, linear.choose(|| p.mirrored().scales(fan_in, fan_out, batch))?),
        (
            "linear, readout",
            layer,
            linear.choose(|| p.readout().scales(fan_in, vocabulary, batch))?,
        ),
        ("matmul", of_left, linear.choose(matmul)?),
        (
            "embedding",
            &["table"],
            scheme.parameters.choose(|| Ok(embedding_scales(vocabulary, batch)))?,
        ),
        ("norm", layer, scheme.parameters.choose(|| Ok(norm_scales(fan_in, numel)))?),
        ("gelu", &["input"], activation.choose(|| gelu_scales(1.0, constraint))?),
        ("silu", &["input"], activation.choose(|| silu_scales(1.0, constraint))?),
        ("silu_glu", &["input", "gate"], activation.choose(|| silu_glu_scales(1.0))?),
        ("softmax", &["input"], activation.choose(|| softmax_scales(seq, 1.0, constraint))?),
        ("attention, causal", of_qkv, activation.choose(|| attention.scales(p, seq, head))?),
        ("add", of_left, scheme.sum.choose(|| add_scales(numel, [numel, numel], constraint))?),
        ("dropout 0.1", &["input"], activation.choose(|| dropout_scales(0.1))?),
        (
            "cross_entropy",
            &["logits"],
            scheme.loss.choose(|| cross_entropy_scales(batch, vocabulary, 1.0, true))?,
        ),
    ])
}
