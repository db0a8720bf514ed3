//! `onesigma embed`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use onesigma::backends;
use onesigma::embed::{Embedder, cosine};
use onesigma::format::Format;
use onesigma::models::Model;
use onesigma::ops::Parametrisation;
use onesigma::train::Error;

use super::{Usage, model};

/// Arguments of `onesigma embed`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An embedding is the mean of the hidden states, of length 1; the cosine of two says how alike the
texts are. Matrices and tables are kept in the format that is given and sums are in f32.

Examples:
  onesigma embed all-MiniLM-L6-v2 'A man is eating food.' 'A man is eating a piece of bread.'
  onesigma embed all-MiniLM-L6-v2 --format E4M3 --to unit 'One text.' 'Another text.'
  onesigma embed all-MiniLM-L6-v2 --json 'One text.'")]
pub struct Arguments {
    /// A BERT: a Hugging Face folder, a run folder or a checkpoint file
    model: PathBuf,
    /// Texts
    #[arg(required = true)]
    texts: Vec<String>,
    /// Format of matrices and tables in memory
    #[arg(long, default_value = "F32")]
    format: String,
    /// Convert the weights first: regular, unit, u-mup or mu-s [default: as they are]
    #[arg(long, value_name = "PARAMETRISATION")]
    to: Option<String>,
    /// One of `onesigma backends`
    #[arg(long, default_value = "cpu")]
    backend: String,
    /// Print embeddings and cosines as JSON
    #[arg(long)]
    json: bool,
}

/// Prints embeddings or cosines.
pub fn run(arguments: &Arguments) -> Result<()> {
    let format: Format = arguments.format.parse()?;
    let mut opened = model::open(&arguments.model, None)?;
    if let Some(to) = &arguments.to {
        opened = opened.converted(to.parse::<Parametrisation>()?)?;
    }
    if !matches!(opened.pretrained.model, Model::Bert { .. }) {
        let given = arguments.model.display();
        return Err(Usage(format!("{given} is a decoder; embeddings are those of a BERT")).into());
    }
    let Some(pieces) = &opened.pieces else {
        return Err(Error::Tokenizer {
            origin: arguments.model.display().to_string(),
            reason: "it holds neither tokenizer.json nor vocab.txt".into(),
        }
        .into());
    };
    let backend = backends::open(&arguments.backend)?;
    let texts: Vec<&str> = arguments.texts.iter().map(String::as_str).collect();
    let embedder = Embedder::new(&opened.pretrained, pieces, format)?;
    let embeddings = embedder.embed(&*backend, &texts)?;
    let cosines: Vec<Vec<f64>> =
        embeddings.iter().map(|a| embeddings.iter().map(|b| cosine(a, b)).collect()).collect();
    let mut out = io::stdout().lock();
    if arguments.json {
        let report = serde_json::json!({
            "format": format.to_string(),
            "parametrisation": opened.pretrained.parametrisation.to_string(),
            "texts": texts,
            "embeddings": embeddings,
            "cosines": cosines,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    if let ([one], [text]) = (&embeddings[..], &texts[..]) {
        writeln!(out, "{text}: {} numbers, of length 1", one.len())?;
        let numbers: Vec<String> = one.iter().map(|x| format!("{x:.6}")).collect();
        writeln!(out, "{}", numbers.join(" "))?;
        return Ok(());
    }
    writeln!(out, "cosines")?;
    for (row, text) in cosines.iter().zip(&texts) {
        let numbers: Vec<String> = row.iter().map(|cosine| format!("{cosine:>8.4}")).collect();
        writeln!(out, "{}  {text}", numbers.concat())?;
    }
    Ok(())
}
