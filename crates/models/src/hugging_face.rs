//! Models in the files and under the names of Hugging Face: `config.json` and
//! `model.safetensors`.
//!
//! | `model_type` | what it is | names |
//! | --- | --- | --- |
//! | `gpt2` | a regular GPT of GPT-2's architecture | GPT-2's: one matrix for queries, keys and values, matrices `[fan_in, fan_out]` |
//! | `bert` | a regular post-norm BERT | BERT's |
//! | `megatron-bert` | a regular pre-norm BERT | Megatron-BERT's |
//! | `onesigma-gpt`, `onesigma-bert` | anything else, scaled models above all | those of [`ParamSpec`](crate::ParamSpec) |
//!
//! The last two keep other programs from running a model that they would take for a regular one.
//! Names are read with and without the prefix `transformer.` or `bert.`.

use crate::bert_config::{BertConfig, BertTask};
use crate::config::{Activation, Norm, NormPosition, Positions};
use crate::pretrained::{Model, Pretrained};
use crate::tensor_file::{Tensor, TensorFile, Weights, write_tensors, write_whole};
use crate::{Error, GptConfig, Result};
use onesigma_format::Format;
use onesigma_ops::Parametrisation;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Name of the weights in a folder.
const WEIGHTS: &str = "model.safetensors";
/// Name of the list of files, where weights are spread over several.
const INDEX: &str = "model.safetensors.index.json";

/// Settings of other programs that change the function, and the only value that is supported.
const FIXED: [(&str, Value); 6] = [
    ("scale_attn_weights", Value::Bool(true)),
    ("scale_attn_by_inverse_layer_idx", Value::Bool(false)),
    ("reorder_and_upcast_attn", Value::Bool(false)),
    ("add_cross_attention", Value::Bool(false)),
    ("is_decoder", Value::Bool(false)),
    ("is_encoder_decoder", Value::Bool(false)),
];

/// What a folder was found to hold.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The model; heads that the folder lacks have no weights yet.
    pub pretrained: Pretrained,
    /// Parameters of the heads that were asked for and are not there.
    pub new: Vec<String>,
}

impl Pretrained {
    /// Reads the model of a folder, with the heads that it says it has.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::ConfigSyntax`], [`Error::Unsupported`] for a configuration that is
    /// not understood or asks for something else; [`Error::TensorFile`];
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`], [`Error::TensorShape`].
    pub fn load(folder: &Path) -> Result<Self> {
        let (_, found) = read(folder, None)?;
        found.pretrained.check()?;
        Ok(found.pretrained)
    }

    /// Reads the body of a BERT for another task: heads that the folder lacks are listed as new,
    /// heads that the task does not have are left out.
    ///
    /// # Errors
    /// As [`load`](Self::load), for the body.
    pub fn load_for(folder: &Path, task: BertTask) -> Result<Loaded> {
        read(folder, Some(task)).map(|(_, found)| found)
    }

    /// Writes `config.json` and `model.safetensors` into a folder, which is made if need be; the
    /// weights are stored in one format.
    ///
    /// # Errors
    /// As [`check`](Self::check); [`Error::Io`]; [`Error::TensorFile`] for a format that
    /// safetensors does not name.
    pub fn save(&self, folder: &Path, format: Format) -> Result<()> {
        self.check()?;
        let io = |source| Error::Io { action: "create", path: folder.into(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        let kind = Kind::of(&self.model, self.parametrisation);
        let config = config_json(&self.model, self.parametrisation, kind)?;
        let tensors = to_file(&self.model, kind, &self.weights)?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        write_tensors(&folder.join(WEIGHTS), tensors, format, metadata)?;
        let text = serde_json::to_string_pretty(&config)
            .map_err(|error| Error::ConfigSyntax { reason: error.to_string() })?;
        write_whole(&folder.join("config.json"), (text + "\n").as_bytes())
    }
}

/// How a model is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Gpt2,
    Bert,
    MegatronBert,
    OwnGpt,
    OwnBert,
}

impl Kind {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Gpt2, "gpt2"),
        (Self::Bert, "bert"),
        (Self::MegatronBert, "megatron-bert"),
        (Self::OwnGpt, "onesigma-gpt"),
        (Self::OwnBert, "onesigma-bert"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// How this model can be kept so that other programs run it right, if they can.
    fn of(model: &Model, p: Parametrisation) -> Self {
        match model {
            Model::Gpt(config) => {
                let is_gpt2 = !p.is_scaled()
                    && config.positions == Positions::Learned
                    && config.norm == Norm::LayerNorm
                    && config.norm_affine
                    && config.bias
                    && config.norm_position(p) == NormPosition::Pre
                    && config.kv_heads() == config.n_head
                    && config.activation_function != Activation::Swiglu
                    && config.attention_mult == 1.0;
                if is_gpt2 { Self::Gpt2 } else { Self::OwnGpt }
            }
            Model::Bert { config, .. } => match (p.is_scaled(), config.norm_position) {
                _ if config.attention_mult != 1.0 => Self::OwnBert,
                (false, NormPosition::Post) => Self::Bert,
                (false, NormPosition::Pre) => Self::MegatronBert,
                _ => Self::OwnBert,
            },
        }
    }
}

/// The `config.json` of a model.
fn config_json(model: &Model, p: Parametrisation, kind: Kind) -> Result<Value> {
    let syntax = |error: serde_json::Error| Error::ConfigSyntax { reason: error.to_string() };
    let (own, default, architecture) = match model {
        Model::Gpt(config) => (
            serde_json::to_value(config).map_err(syntax)?,
            serde_json::to_value(GptConfig::default()).map_err(syntax)?,
            "GPT2LMHeadModel",
        ),
        Model::Bert { config, task } => (
            serde_json::to_value(config).map_err(syntax)?,
            serde_json::to_value(BertConfig::default()).map_err(syntax)?,
            task.architecture(),
        ),
    };
    let mut fields = Map::new();
    fields.insert("model_type".into(), kind.name().into());
    fields.insert("architectures".into(), json!([architecture]));
    if !matches!(kind, Kind::Gpt2 | Kind::Bert | Kind::MegatronBert) {
        fields.insert("parametrisation".into(), p.to_string().into());
    }
    let tied = match model {
        Model::Gpt(config) => config.tied(p),
        Model::Bert { config, .. } => config.tied(),
    };
    fields.insert("tie_word_embeddings".into(), tied.into());
    for (name, value) in own.as_object().into_iter().flatten() {
        // Of our own fields only those that say something.
        let is_foreign = is_known_elsewhere(name);
        let says_something = default.get(name) != Some(value) && !value.is_null();
        if name != "tie_word_embeddings" && (is_foreign && !value.is_null() || says_something) {
            fields.insert(name.clone(), value.clone());
        }
    }
    Ok(Value::Object(fields))
}

/// Whether other programs know a field of our configurations.
fn is_known_elsewhere(name: &str) -> bool {
    const OURS: [&str; 14] = [
        "n_kv_head",
        "positions",
        "rope_theta",
        "norm",
        "norm_position",
        "norm_affine",
        "bias",
        "residual_tau",
        "residual_mult",
        "residual_attn_ratio",
        "attention_mult",
        "attention_keys",
        "stream_scale",
        "loss_mult",
    ];
    !OURS.contains(&name)
}

/// Reads a folder's configuration: how it is kept, the architecture and the parametrisation.
fn read_config(
    folder: &Path,
    names: &BTreeSet<String>,
    task: Option<BertTask>,
) -> Result<(Kind, Model, Parametrisation)> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Io {
        action: "read",
        path,
        source,
    })?;
    let syntax = |reason: String| Error::ConfigSyntax { reason };
    let value: Value = serde_json::from_str(&text).map_err(|error| syntax(error.to_string()))?;
    let word = |name: &str| value.get(name).and_then(Value::as_str);
    let unsupported = |field: &str, found: &str, expected: String| Error::Unsupported {
        field: field.to_owned(),
        found: found.to_owned(),
        expected,
    };
    let found = word("model_type").unwrap_or("none");
    let kind = Kind::ALL.into_iter().find(|(_, name)| *name == found).map(|(kind, _)| kind);
    let kind = kind.ok_or_else(|| {
        unsupported("model_type", found, Kind::ALL.map(|(_, name)| name).join(", "))
    })?;
    for (field, only) in &FIXED {
        if let Some(other) = value.get(field).filter(|other| *other != only) {
            return Err(unsupported(field, &other.to_string(), only.to_string()));
        }
    }
    if let Some(other) = word("position_embedding_type").filter(|word| *word != "absolute") {
        return Err(unsupported("position_embedding_type", other, "absolute".to_owned()));
    }
    let p = match word("parametrisation") {
        Some(name) => name.parse()?,
        None => Parametrisation::Regular,
    };
    let model = match kind {
        Kind::Gpt2 | Kind::OwnGpt => Model::Gpt(GptConfig::from_json(&text)?),
        _ => {
            let mut config = BertConfig::from_json(&text)?;
            if kind == Kind::MegatronBert {
                config.norm_position = NormPosition::Pre;
            }
            let said = value.get("architectures").and_then(|list| list.get(0)?.as_str());
            let said = said.map(|name| name.replace("MegatronBert", "Bert"));
            let of_file = said.and_then(|name| BertTask::of_architecture(&name));
            let task = task.or(of_file).unwrap_or_else(|| task_of(names));
            Model::Bert { config, task }
        }
    };
    Ok((kind, model, p))
}

/// The task that the names of heads tell.
fn task_of(names: &BTreeSet<String>) -> BertTask {
    let has = |start: &str| names.iter().any(|name| name.starts_with(start));
    match () {
        () if has("cls.seq_relationship.") => BertTask::PreTraining,
        () if has("cls.predictions.") => BertTask::MaskedLm,
        () if has("classifier.") => BertTask::Classification,
        () if has("qa_outputs.") => BertTask::Span,
        () => BertTask::Encoder,
    }
}

/// The files of a folder's weights, and which holds a tensor.
struct Files {
    files: Vec<TensorFile>,
    places: BTreeMap<String, usize>,
}

impl Files {
    fn open(folder: &Path) -> Result<Self> {
        let index = folder.join(INDEX);
        let mut names = BTreeSet::from([WEIGHTS.to_owned()]);
        if index.is_file() {
            let text = std::fs::read_to_string(&index).map_err(|source| Error::Io {
                action: "read",
                path: index.clone(),
                source,
            })?;
            let damaged =
                |reason: &str| Error::TensorFile { path: index.clone(), reason: reason.to_owned() };
            let value: Value =
                serde_json::from_str(&text).map_err(|error| damaged(&error.to_string()))?;
            let map = value.get("weight_map").and_then(Value::as_object);
            let map = map.ok_or_else(|| damaged("it has no `weight_map`"))?;
            names = map.values().filter_map(|file| Some(file.as_str()?.to_owned())).collect();
            // A list of files is no way out of its folder.
            if names.iter().any(|name| name.contains(['/', '\\'])) {
                return Err(damaged("its files are not all in the folder itself"));
            }
        }
        let mut all = Self { files: Vec::new(), places: BTreeMap::new() };
        for name in names {
            let file = TensorFile::open(&folder.join(name))?;
            let at = all.files.len();
            all.places.extend(file.shapes()?.into_keys().map(|name| (name, at)));
            all.files.push(file);
        }
        Ok(all)
    }

    fn read(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(&at) = self.places.get(name) else { return Ok(None) };
        self.files[at].read(name).map(Some)
    }
}

/// Tensors of other programs that hold no weights.
fn is_buffer(name: &str) -> bool {
    let ends = ["position_ids", "token_type_ids", ".attn.bias", ".attn.masked_bias"];
    ends.iter().any(|end| name.ends_with(end))
}

fn is_head(name: &str) -> bool {
    let heads = ["cls.", "classifier.", "qa_outputs.", "bert.pooler.", "pooler."];
    heads.iter().any(|head| name.starts_with(head))
}

fn read(folder: &Path, task: Option<BertTask>) -> Result<(Kind, Loaded)> {
    let files = Files::open(folder)?;
    let names: BTreeSet<String> = files.places.keys().cloned().collect();
    let (kind, model, p) = read_config(folder, &names, task)?;
    let mut source = Source { files: &files, kind, used: BTreeSet::new() };
    let mut weights = Weights::new();
    let mut new = Vec::new();
    for spec in model.parameters(p)? {
        let expected = spec.shape.dims();
        match source.parameter(&spec.name, expected)? {
            Some(tensor) if tensor.shape == expected => {
                weights.insert(spec.name, tensor);
            }
            Some(tensor) => {
                return Err(Error::TensorShape {
                    name: spec.name,
                    found: format!("{:?}", tensor.shape),
                    expected: format!("{expected:?}"),
                });
            }
            None if is_optional(&spec.name, &model, task) => new.push(spec.name),
            None => return Err(Error::MissingTensor { name: spec.name }),
        }
    }
    source.duplicates(&model, p, &weights)?;
    let leftover = names.iter().find(|name| {
        let is_other_head = task.is_some() && is_head(name);
        !source.used.contains(*name) && !is_buffer(name) && !is_other_head
    });
    if let Some(name) = leftover {
        return Err(Error::UnexpectedTensor { name: name.clone() });
    }
    let is_encoder = matches!(model, Model::Bert { task: BertTask::Encoder, .. });
    if is_encoder && task.is_none() {
        // An encoder without a pooler: nothing reads it, so zeros say that it is not there.
        for spec in model.parameters(p)?.into_iter().filter(|spec| new.contains(&spec.name)) {
            let shape = spec.shape.dims().to_vec();
            weights.insert(spec.name, Tensor { values: vec![0.0; spec.shape.numel()], shape });
        }
    }
    Ok((kind, Loaded { pretrained: Pretrained { model, parametrisation: p, weights }, new }))
}

/// Whether a parameter need not be in a file.
fn is_optional(name: &str, model: &Model, task: Option<BertTask>) -> bool {
    let is_encoder = matches!(model, Model::Bert { task: BertTask::Encoder, .. });
    task.is_some() && is_head(name) || is_encoder && name.starts_with("bert.pooler.")
}

/// Parameters by our names, from a file with its own.
struct Source<'a> {
    files: &'a Files,
    kind: Kind,
    used: BTreeSet<String>,
}

impl Source<'_> {
    /// A tensor by its name with or without the model's prefix.
    fn find(&mut self, name: &str) -> Result<Option<Tensor>> {
        let bare = ["transformer.", "bert."].iter().find_map(|prefix| name.strip_prefix(prefix));
        for candidate in [Some(name), bare].into_iter().flatten() {
            if let Some(tensor) = self.files.read(candidate)? {
                self.used.insert(candidate.to_owned());
                return Ok(Some(tensor));
            }
        }
        Ok(None)
    }

    fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        if self.kind != Kind::Gpt2 {
            return self.find(name);
        }
        for (part, word) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            if name.contains(word) {
                let joint = name.replace(word, "c_attn");
                let Some(tensor) = self.find(&joint)? else {
                    return Err(Error::MissingTensor { name: joint });
                };
                return third(&joint, tensor, part, shape[0]).map(Some);
            }
        }
        let found = self.find(name)?;
        Ok(if is_transposed(name) { found.map(transposed) } else { found })
    }

    /// Copies that other programs keep of tied parameters must be equal to them.
    fn duplicates(&mut self, model: &Model, p: Parametrisation, weights: &Weights) -> Result<()> {
        let pairs = match model {
            Model::Gpt(config) if config.tied(p) => vec![("lm_head.weight", model.token_table())],
            Model::Gpt(_) => Vec::new(),
            Model::Bert { config, .. } => {
                let mut pairs = vec![("cls.predictions.decoder.bias", "cls.predictions.bias")];
                if config.tied() {
                    pairs.push(("cls.predictions.decoder.weight", model.token_table()));
                }
                pairs
            }
        };
        for (copy, original) in pairs {
            let Some(original) = weights.get(original) else { continue };
            if let Some(tensor) = self.find(copy)?
                && tensor != *original
            {
                return Err(Error::UnexpectedTensor { name: copy.to_owned() });
            }
        }
        Ok(())
    }
}

/// Whether GPT-2 keeps a matrix as `[fan_in, fan_out]`.
fn is_transposed(name: &str) -> bool {
    let matrices = ["attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"];
    matrices.iter().any(|matrix| name.ends_with(matrix))
}

/// `[a, b]` as `[b, a]`.
fn transposed(tensor: Tensor) -> Tensor {
    let &[rows, columns] = &tensor.shape[..] else { return tensor };
    let values = (0..columns)
        .flat_map(|column| (0..rows).map(move |row| row * columns + column))
        .map(|at| tensor.values[at])
        .collect();
    Tensor { shape: vec![columns, rows], values }
}

/// Query, key or value of GPT-2's joint matrix `[width, 3 width]` or bias `[3 width]`.
fn third(name: &str, joint: Tensor, part: usize, width: usize) -> Result<Tensor> {
    let columns = *joint.shape.last().unwrap_or(&0);
    let is_matrix = joint.shape.len() == 2;
    if columns != 3 * width || joint.shape.len() > 2 {
        let lead = if is_matrix { format!("{width}, ") } else { String::new() };
        return Err(Error::TensorShape {
            name: name.to_owned(),
            found: format!("{:?}", joint.shape),
            expected: format!("[{lead}{}]", 3 * width),
        });
    }
    let rows = joint.values.chunks_exact(columns);
    let values = rows.flat_map(|row| &row[part * width..(part + 1) * width]).copied().collect();
    let mut shape = joint.shape;
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    Ok(transposed(Tensor { shape, values }))
}

/// Weights under the names of a file.
fn to_file(model: &Model, kind: Kind, weights: &Weights) -> Result<BTreeMap<String, Tensor>> {
    let is_encoder = matches!(model, Model::Bert { task: BertTask::Encoder, .. });
    let mut result = BTreeMap::new();
    for (name, tensor) in weights {
        if kind == Kind::Gpt2 {
            if name.contains("k_proj") || name.contains("v_proj") {
                continue;
            }
            if name.contains("q_proj") {
                result.insert(name.replace("q_proj", "c_attn"), joint(name, weights)?);
                continue;
            }
            if is_transposed(name) {
                result.insert(name.clone(), transposed(tensor.clone()));
                continue;
            }
        }
        // A model without a head is its body, whose names have no prefix.
        let bare = name.strip_prefix("bert.").filter(|_| is_encoder && kind != Kind::OwnBert);
        result.insert(bare.unwrap_or(name).to_owned(), tensor.clone());
    }
    Ok(result)
}

/// The inverse of [`third`] for all three, given the name of the query's parameter.
fn joint(name: &str, weights: &Weights) -> Result<Tensor> {
    let mut parts = Vec::new();
    for word in ["q_proj", "k_proj", "v_proj"] {
        let name = name.replace("q_proj", word);
        let part = weights.get(&name).cloned().ok_or(Error::MissingTensor { name })?;
        parts.push(transposed(part));
    }
    let width = *parts[0].shape.last().unwrap_or(&1);
    let rows = parts[0].values.len() / width.max(1);
    let values = (0..rows)
        .flat_map(|row| parts.iter().flat_map(move |part| &part.values[row * width..][..width]))
        .copied()
        .collect();
    let mut shape = parts[0].shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = 3 * width;
    }
    Ok(Tensor { shape, values })
}
