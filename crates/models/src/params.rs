//! Parameters of a model: what there is, how it starts, and the values that a graph reads.

use crate::{Error, Result};
use onesigma_format::Conversion;
use onesigma_graph::{
    DType, Distribution, Graph, Module, Op, Role, Shape, SlotKind, ValueId,
    expr::{Expr, Term},
};
use onesigma_ops::ParamKind;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// How a parameter starts.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// All 1.
    Ones,
    /// All 0.
    Zeros,
}

/// A parameter of a model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ParamSpec {
    /// Name as on Hugging Face: `transformer.h.0.attn.c_proj.weight`.
    pub name: String,
    /// Extents.
    pub shape: Shape,
    /// How it starts.
    pub init: Init,
    /// For rules by kind.
    pub kind: ParamKind,
    /// Inputs of each output: the last extent of matrices and tables, 1 for vectors.
    pub fan_in: usize,
    /// The layer it belongs to.
    pub layer: Option<u32>,
}

impl ParamSpec {
    /// Whether optimisers usually decay it: matrices and tables, not norms and biases.
    pub fn decays(&self) -> bool {
        matches!(self.kind, ParamKind::Weight | ParamKind::Embedding | ParamKind::Readout)
    }

    /// Adds the op that draws the first value, with role [`Role::MasterWeight`] and the element
    /// type of the parameter's slot.
    ///
    /// # Errors
    /// As every op.
    pub fn initial(&self, graph: &mut Graph, dtype: DType) -> Result<ValueId> {
        let shape = self.shape.clone();
        let fill = |value| Op::Map {
            expr: Expr::new(0, |_| Term::constant(value)),
            shape: self.shape.clone(),
        };
        let op = match self.init {
            Init::Normal { std } => {
                Op::Random { distribution: Distribution::Normal { mean: 0.0, std }, shape }
            }
            Init::Ones => fill(1.0),
            Init::Zeros => fill(0.0),
        };
        Ok(graph
            .op(op, &[])
            .stored_as(dtype, Conversion::SATURATE)
            .role(Role::MasterWeight)
            .named(&self.name)
            .one()?)
    }
}

/// The values of one graph that hold a model's parameters, by name.
#[derive(Debug, Default)]
pub struct Params {
    values: HashMap<String, ValueId>,
    /// While the list of parameters is made: slots for them, and what was asked for.
    listing: Option<(Module, Vec<ParamSpec>)>,
}

impl Params {
    /// Parameters by name, each the value of a slot that was read in the graph.
    pub fn new(values: impl IntoIterator<Item = (String, ValueId)>) -> Self {
        Self { values: values.into_iter().collect(), listing: None }
    }

    /// Runs a model definition on token ids `[1, 1]`, in a graph of its own, and notes which
    /// parameters it asks for.
    pub(crate) fn list(
        build: impl FnOnce(&mut Graph, &mut Self, ValueId) -> Result<()>,
    ) -> Result<Vec<ParamSpec>> {
        let mut graph = Graph::new();
        let mut module = Module::new();
        let tokens = module.slot("tokens", SlotKind::Input, [1, 1], DType::U32, Role::Data)?;
        let tokens = module.read(&mut graph, tokens);
        let mut params = Self { values: HashMap::new(), listing: Some((module, Vec::new())) };
        build(&mut graph, &mut params, tokens)?;
        Ok(params.listing.map(|(_, specs)| specs).unwrap_or_default())
    }

    /// The value of a parameter.
    ///
    /// # Errors
    /// [`Error::MissingParameter`]; [`Error::ParameterShape`].
    pub fn get(&mut self, graph: &mut Graph, spec: ParamSpec) -> Result<ValueId> {
        if let Some(&value) = self.values.get(&spec.name) {
            let found = graph.shape(value);
            if *found != spec.shape {
                return Err(Error::ParameterShape {
                    name: spec.name,
                    found: found.to_string(),
                    expected: spec.shape.to_string(),
                });
            }
            return Ok(value);
        }
        let Some((module, specs)) = &mut self.listing else {
            return Err(Error::MissingParameter { name: spec.name });
        };
        let shape = spec.shape.clone();
        let slot =
            module.slot(&spec.name, SlotKind::State, shape, DType::F32, Role::MasterWeight)?;
        let value = module.read(graph, slot);
        self.values.insert(spec.name.clone(), value);
        specs.push(spec);
        Ok(value)
    }
}
