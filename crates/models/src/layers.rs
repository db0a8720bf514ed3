//! What GPT and BERT are made of: named parameters, norms, linear layers, attention and MLP.
//!
//! Legend of shapes: B batch, T sequence, C width, H heads, N key-value heads, D head size, F MLP
//! width, V vocabulary.

use crate::Result;
use crate::config::{Activation, Norm, NormPosition};
use crate::params::{Init, ParamSpec, Params};
use onesigma_graph::expr::{Expr, Term};
use onesigma_graph::{Graph, Op, Role, ValueId};
use onesigma_ops::{
    Attention, Constraint, GeluForm, Linear, ParamKind, Parametrisation, dropout, embedding, gelu,
    layer_norm, linear, masked_attention, residual_apply, rms_norm, silu, silu_glu,
};

/// What the layers of one model have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Standard deviation of regular weights.
    pub std: f64,
    /// Factor on `std` for layers that end a branch.
    pub branch_end: f64,
    pub norm: Norm,
    pub norm_affine: bool,
    pub eps: f64,
    pub bias: bool,
    /// Dropout at the end of each branch.
    pub dropout: f64,
}

/// A model while it is built.
pub(crate) struct Layers<'a> {
    pub graph: &'a mut Graph,
    pub params: &'a mut Params,
    pub p: Parametrisation,
    pub style: Style,
    pub training: bool,
}

/// A layer's place: the number that its nodes and parameters carry, `None` outside the stack.
pub(crate) type Index = Option<u32>;

/// Names of an attention's linear layers.
pub(crate) struct AttentionNames {
    pub query: String,
    pub key: String,
    pub value: String,
    pub output: String,
}

/// Sizes and inputs of an attention.
#[derive(Clone, Copy)]
pub(crate) struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_size: usize,
    /// Width of the model.
    pub width: usize,
    /// `U32 [B, keys]`, 0 for keys that are not seen: padding, or what a cache does not hold yet.
    pub mask: Option<ValueId>,
    /// Cosines and sines of the rotation of queries and keys.
    pub rotary: Option<[ValueId; 2]>,
    pub options: Attention,
}

/// The two residual branches of a layer: attention, then MLP.
pub(crate) struct Branches {
    /// Weight of each against its skip.
    pub taus: [f64; 2],
    /// Where their norms stand.
    pub position: NormPosition,
    /// Names of their norms.
    pub norms: [String; 2],
    /// Factors on the epsilons of their norms.
    pub epsilons: [f64; 2],
}

/// An MLP: names of its linear layers, `gate` for a gated activation, and its inner width F.
pub(crate) struct Mlp {
    pub up: String,
    pub gate: String,
    pub down: String,
    pub inner: usize,
    pub activation: Activation,
}

impl Layers<'_> {
    pub fn param(
        &mut self,
        name: String,
        shape: &[usize],
        init: Init,
        kind: ParamKind,
        layer: Index,
    ) -> Result<ValueId> {
        let fan_in = if shape.len() > 1 { shape[shape.len() - 1] } else { 1 };
        let spec = ParamSpec { name, shape: shape.into(), init, kind, fan_in, layer };
        self.params.get(self.graph, spec)
    }

    /// Unit variance in a unit-scaled model, else the style's deviation times `factor`.
    pub fn normal(&self, factor: f64) -> Init {
        let std = if self.p.is_scaled() { 1.0 } else { self.style.std * factor };
        Init::Normal { std }
    }

    /// A table `[rows, width]`.
    pub fn table(&mut self, name: &str, rows: usize, width: usize) -> Result<ValueId> {
        let init = self.normal(1.0);
        self.param(name.to_owned(), &[rows, width], init, ParamKind::Embedding, None)
    }

    /// Rows of a table.
    pub fn lookup(&mut self, ids: ValueId, table: ValueId) -> Result<ValueId> {
        Ok(embedding(self.graph, self.p, ids, table)?)
    }

    /// The first `len` rows of a table.
    pub fn first_rows(&mut self, table: ValueId, len: usize) -> Result<ValueId> {
        if self.graph.shape(table).dims()[0] == len {
            return Ok(table);
        }
        Ok(self.graph.op(Op::Slice { axis: 0, start: 0, len }, &[table]).one()?)
    }

    /// The row of a table at the position in `U32 [1]`, with the table's precision: as data, which
    /// no recipe rounds, just as none rounds what [`first_rows`](Self::first_rows) cuts out.
    pub fn row_at(&mut self, table: ValueId, position: ValueId) -> Result<ValueId> {
        let row = self.graph.op(Op::Gather, &[table, position]);
        Ok(row.role(Role::Data).named("position").one()?)
    }

    pub fn dropout(&mut self, x: ValueId, probability: f64) -> Result<ValueId> {
        Ok(dropout(self.graph, self.p, x, probability, self.training)?)
    }

    /// A norm `<name>.weight`, `<name>.bias` over the last axis, with a multiple of the style's
    /// epsilon.
    pub fn norm(&mut self, name: &str, layer: Index, x: ValueId, factor: f64) -> Result<ValueId> {
        let (p, style) = (self.p, self.style);
        let eps = style.eps * factor;
        let shape = [self.graph.shape(x).last()];
        let mut param = |suffix: &str, given: bool, init, kind| -> Result<Option<ValueId>> {
            if !given {
                return Ok(None);
            }
            self.param(format!("{name}.{suffix}"), &shape, init, kind, layer).map(Some)
        };
        let weight = param("weight", style.norm_affine, Init::Ones, ParamKind::Norm)?;
        let bias = match style.norm {
            Norm::LayerNorm => {
                param("bias", style.norm_affine && style.bias, Init::Zeros, ParamKind::Bias)?
            }
            Norm::RmsNorm => None,
        };
        self.scoped(last_word(name), |model| {
            Ok(match style.norm {
                Norm::LayerNorm => layer_norm(model.graph, p, x, weight, bias, 1, eps)?,
                Norm::RmsNorm => rms_norm(model.graph, p, x, weight, 1, eps)?,
            })
        })
    }

    /// Weight `<name>.weight [fan_out, fan_in]` and, if the model has biases, `<name>.bias` of a
    /// linear layer.
    pub fn linear_params(
        &mut self,
        name: &str,
        layer: Index,
        [fan_out, fan_in]: [usize; 2],
        factor: f64,
    ) -> Result<(ValueId, Option<ValueId>)> {
        let (init, kind) = (self.normal(factor), ParamKind::Weight);
        let weight = self.param(format!("{name}.weight"), &[fan_out, fan_in], init, kind, layer)?;
        let bias = match self.style.bias {
            true => {
                let name = format!("{name}.bias");
                Some(self.param(name, &[fan_out], Init::Zeros, ParamKind::Bias, layer)?)
            }
            false => None,
        };
        Ok((weight, bias))
    }

    /// A linear layer to `fan_out` features.
    pub fn linear(
        &mut self,
        name: &str,
        layer: Index,
        x: ValueId,
        fan_out: usize,
        options: Linear,
    ) -> Result<ValueId> {
        self.scaled_linear(name, layer, x, fan_out, options, 1.0)
    }

    fn scaled_linear(
        &mut self,
        name: &str,
        layer: Index,
        x: ValueId,
        fan_out: usize,
        options: Linear,
        factor: f64,
    ) -> Result<ValueId> {
        let sizes = [fan_out, self.graph.shape(x).last()];
        let (weight, bias) = self.linear_params(name, layer, sizes, factor)?;
        self.scoped(last_word(name), |model| {
            Ok(linear(model.graph, model.p, x, weight, bias, options)?)
        })
    }

    /// The length T of token ids `[B, T]`, once the configuration's `check` takes both sizes.
    pub fn checked_seq(
        &self,
        tokens: ValueId,
        check: impl FnOnce(usize, usize) -> Result<()>,
    ) -> Result<usize> {
        let (batch, seq) = match *self.graph.shape(tokens).dims() {
            [batch, seq] => (batch, seq),
            _ => (0, 0),
        };
        check(batch, seq).map(|()| seq)
    }

    /// A layer of the stack, `x [B, T, C]` to `[B, T, C]`: `attention` and an MLP, each a residual
    /// branch with its norm.
    pub fn block(
        &mut self,
        layer: usize,
        x: ValueId,
        branches: &Branches,
        mlp: &Mlp,
        attention: impl FnOnce(&mut Layers<'_>, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        self.in_layer(layer as u32, |layers| {
            let index = Some(layer as u32);
            let x = layers
                .scoped("attention", |layers| layers.residual(x, branches, 0, index, attention))?; // (B, T, C)
            layers.scoped("mlp", |layers| {
                layers.residual(x, branches, 1, index, |layers, x| layers.mlp(mlp, index, x))
            }) // (B, T, C)
        })
    }

    /// Residual branch number `n` with its norm: before it (pre), after the sum (post), or at the
    /// end of the branch.
    fn residual(
        &mut self,
        x: ValueId,
        branches: &Branches,
        n: usize,
        layer: Index,
        branch: impl FnOnce(&mut Layers<'_>, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        let Branches { taus, position, norms, epsilons } = branches;
        let (tau, name, epsilon) = (taus[n], norms[n].as_str(), epsilons[n]);
        let Layers { graph, params, p, style, training } = self;
        let (p, style, training) = (*p, *style, *training);
        let y = residual_apply(graph, p, x, tau, |graph, x| {
            let mut model = Layers { graph, params, p, style, training };
            let x = match position {
                NormPosition::Pre => model.norm(name, layer, x, epsilon)?,
                _ => x,
            };
            let x = branch(&mut model, x)?;
            match position {
                NormPosition::BranchEnd => model.norm(name, layer, x, epsilon),
                _ => Ok(x),
            }
        })?;
        match position {
            NormPosition::Post => self.norm(name, layer, y, epsilon),
            _ => Ok(y),
        }
    }

    /// Self-attention of `x [B, T, C]` with its output projection.
    pub fn attention(
        &mut self,
        names: &AttentionNames,
        layer: Index,
        x: ValueId,
        shape: AttentionShape,
    ) -> Result<ValueId> {
        let qkv = self.queries_keys_values(names, layer, x, shape)?;
        self.attend(names, layer, qkv, shape)
    }

    /// Queries `[B, T, H, D]`, keys and values `[B, T, N, D]` of `x [B, T, C]`.
    pub fn queries_keys_values(
        &mut self,
        names: &AttentionNames,
        layer: Index,
        x: ValueId,
        shape: AttentionShape,
    ) -> Result<[ValueId; 3]> {
        let AttentionShape { heads, kv_heads, head_size, rotary, .. } = shape;
        let dims = self.graph.shape(x).dims().to_vec();
        let mut qkv = [x; 3];
        let parts = [(&names.query, heads), (&names.key, kv_heads), (&names.value, kv_heads)];
        for (value, (name, heads)) in qkv.iter_mut().zip(parts) {
            let y = self.linear(name, layer, x, heads * head_size, self.p.hidden())?;
            *value = self.graph.reshape(y, [dims[0], dims[1], heads, head_size])?; // (B, T, H, D)
        }
        if let Some(tables) = rotary {
            for value in &mut qkv[..2] {
                *value = rotate(self.graph, *value, tables)?;
            }
        }
        Ok(qkv)
    }

    /// What queries `[B, T, H, D]` find, through the output projection: `[B, T, C]`.
    pub fn attend(
        &mut self,
        names: &AttentionNames,
        layer: Index,
        qkv: [ValueId; 3],
        shape: AttentionShape,
    ) -> Result<ValueId> {
        let AttentionShape { heads, head_size, width, mask, options, .. } = shape;
        let dims = self.graph.shape(qkv[0]).dims().to_vec();
        let x = masked_attention(self.graph, self.p, qkv, mask, options)?; // (B, T, H, D)
        let x = self.graph.reshape(x, [dims[0], dims[1], heads * head_size])?;
        self.branch_end(&names.output, layer, x, width, self.p.hidden()) // (B, T, C)
    }

    /// Feed-forward layers of `x [B, T, C]`.
    fn mlp(&mut self, mlp: &Mlp, layer: Index, x: ValueId) -> Result<ValueId> {
        let width = self.graph.shape(x).last();
        let options = self.p.mirrored();
        let up = self.linear(&mlp.up, layer, x, mlp.inner, options)?; // (B, T, F)
        let x = match mlp.activation {
            Activation::Swiglu => {
                let gate = self.linear(&mlp.gate, layer, x, mlp.inner, options)?; // (B, T, F)
                silu_glu(self.graph, self.p, up, gate, 1.0)?
            }
            other => self.activate(up, other, self.p.scheme().constraint)?,
        }; // (B, T, F)
        self.branch_end(&mlp.down, layer, x, width, options) // (B, T, C)
    }

    /// An element-wise activation.
    pub fn activate(
        &mut self,
        x: ValueId,
        activation: Activation,
        constraint: Constraint,
    ) -> Result<ValueId> {
        let (graph, p) = (&mut *self.graph, self.p);
        Ok(match activation {
            Activation::Gelu => gelu(graph, p, x, GeluForm::Erf, 1.0, constraint)?,
            Activation::GeluNew => gelu(graph, p, x, GeluForm::Tanh, 1.0, constraint)?,
            Activation::Silu | Activation::Swiglu => silu(graph, p, x, 1.0, constraint)?,
        })
    }

    fn branch_end(
        &mut self,
        name: &str,
        layer: Index,
        x: ValueId,
        fan_out: usize,
        options: Linear,
    ) -> Result<ValueId> {
        let factor = self.style.branch_end;
        let x = self.scaled_linear(name, layer, x, fan_out, options, factor)?;
        self.dropout(x, self.style.dropout)
    }

    pub fn scoped<T>(&mut self, name: &str, build: impl FnOnce(&mut Layers<'_>) -> T) -> T {
        let Layers { graph, params, p, style, training } = self;
        let (p, style, training) = (*p, *style, *training);
        graph.scoped(name, |graph| build(&mut Layers { graph, params, p, style, training }))
    }

    pub fn in_layer<T>(&mut self, index: u32, build: impl FnOnce(&mut Layers<'_>) -> T) -> T {
        let Layers { graph, params, p, style, training } = self;
        let (p, style, training) = (*p, *style, *training);
        graph.in_layer(index, |graph| build(&mut Layers { graph, params, p, style, training }))
    }
}

/// Cosines and sines `[1, T, 1, D/2]` of the angles `t theta^(-2 j / D)` by which pair `j` of
/// position `t` turns (RoFormer, arXiv 2104.09864, section 3.2.2).
pub(crate) fn rotary_tables(
    graph: &mut Graph,
    seq: usize,
    head_size: usize,
    theta: f64,
) -> Result<[ValueId; 2]> {
    turns(graph, &[], seq, head_size, theta)
}

/// [`rotary_tables`] of the one position in `U32 [1]`: `[1, 1, 1, D/2]`.
pub(crate) fn rotary_tables_at(
    graph: &mut Graph,
    position: ValueId,
    head_size: usize,
    theta: f64,
) -> Result<[ValueId; 2]> {
    turns(graph, &[position], 1, head_size, theta)
}

fn turns(
    graph: &mut Graph,
    position: &[ValueId],
    rows: usize,
    head_size: usize,
    theta: f64,
) -> Result<[ValueId; 2]> {
    let shape = [1, rows, 1, head_size / 2];
    let turn = (Term::index(3) * (-2.0 * theta.ln() / head_size as f64)).exp();
    let mut table = |name, of: fn(&Term) -> Term| {
        let expr = Expr::new(position.len(), |x| {
            let position = x.first().cloned().unwrap_or(Term::index(1));
            of(&(position * turn.clone()))
        });
        let op = Op::Map { expr, shape: shape.into() };
        graph.op(op, position).named(name).role(Role::Data).one()
    };
    Ok([table("rotary_cos", Term::cos)?, table("rotary_sin", Term::sin)?])
}

/// Turns the pairs `(j, j + D/2)` of every head of `x [B, T, H, D]`; a rotation, so that the
/// variance stays and every scale is 1.
fn rotate(graph: &mut Graph, x: ValueId, [cos, sin]: [ValueId; 2]) -> Result<ValueId> {
    let half = graph.shape(x).last() / 2;
    let mut part = |start| graph.op(Op::Slice { axis: 3, start, len: half }, &[x]).one();
    let (a, b) = (part(0)?, part(half)?);
    let mut turned = |a, b, sign: f64| {
        graph
            .map(&[a, b, cos, sin], |x| {
                x[0].clone() * x[2].clone() + x[1].clone() * x[3].clone() * sign
            })?
            .named("rotate")
            .one()
    };
    let (first, second) = (turned(a, b, -1.0)?, turned(b, a, 1.0)?);
    Ok(graph.op(Op::Concat { axis: 3 }, &[first, second]).one()?)
}

/// `c_proj` of `transformer.h.0.mlp.c_proj`: the scope of its nodes.
pub(crate) fn last_word(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}
