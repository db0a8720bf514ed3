//! The benchmark's GPT, trained by candle on the CPU in f32.

#[path = "../../serve.rs"]
mod serve;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    AdamW, Embedding, Init, LayerNorm, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap,
    embedding, linear_no_bias, ops,
};
use serve::Sizes;

/// Layer norm in candle's differentiable operations; its fused one has no gradient.
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(width, "weight", Init::Const(1.0))?;
        Ok(Self { weight, bias: vb.get_with_hints(width, "bias", Init::Const(0.0))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        LayerNorm::new(self.weight.clone(), self.bias.clone(), 1e-5).forward(x)
    }
}

struct Block {
    attention_norm: Norm,
    mlp_norm: Norm,
    query_key_value: Linear,
    projection: Linear,
    up: Linear,
    down: Linear,
}

struct Gpt {
    tokens: Embedding,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    hidden: Tensor,
    heads: usize,
}

impl Gpt {
    fn new(sizes: &Sizes, vb: VarBuilder) -> Result<Self> {
        let d = sizes.d_model;
        let block = |vb: VarBuilder| {
            Ok(Block {
                attention_norm: Norm::new(d, vb.pp("attention_norm"))?,
                mlp_norm: Norm::new(d, vb.pp("mlp_norm"))?,
                query_key_value: linear_no_bias(d, 3 * d, vb.pp("query_key_value"))?,
                projection: linear_no_bias(d, d, vb.pp("projection"))?,
                up: linear_no_bias(d, 4 * d, vb.pp("up"))?,
                down: linear_no_bias(4 * d, d, vb.pp("down"))?,
            })
        };
        let seq = sizes.seq;
        let hidden: Vec<f32> = (0..seq * seq)
            .map(|i| if i % seq > i / seq { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let init = Init::Randn { mean: 0.0, stdev: 1.0 };
        Ok(Self {
            tokens: embedding(sizes.vocab, d, vb.pp("tokens"))?,
            positions: vb.get_with_hints((seq, d), "positions", init)?,
            blocks: (0..sizes.layers).map(|i| block(vb.pp(i))).collect::<Result<_>>()?,
            norm: Norm::new(d, vb.pp("norm"))?,
            head: linear_no_bias(d, sizes.vocab, vb.pp("head"))?,
            hidden: Tensor::from_vec(hidden, (seq, seq), &Device::Cpu)?,
            heads: sizes.heads,
        })
    }

    fn attention(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let (batch, seq, d) = x.dims3()?;
        let parts = block.query_key_value.forward(x)?;
        let part = |i: usize| {
            let part = parts.narrow(D::Minus1, i * d, d)?;
            part.reshape((batch, seq, self.heads, d / self.heads))?.transpose(1, 2)?.contiguous()
        };
        let (query, key, value) = (part(0)?, part(1)?, part(2)?);
        let scale = ((d / self.heads) as f64).powf(-0.5);
        let logits = (query.matmul(&key.t()?)? * scale)?.broadcast_add(&self.hidden)?;
        let mixed = ops::softmax(&logits, D::Minus1)?.matmul(&value)?;
        block.projection.forward(&mixed.transpose(1, 2)?.reshape((batch, seq, d))?)
    }

    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut x = self.tokens.forward(ids)?.broadcast_add(&self.positions)?;
        for block in &self.blocks {
            x = (&x + self.attention(block, &block.attention_norm.forward(&x)?)?)?;
            let hidden = block.up.forward(&block.mlp_norm.forward(&x)?)?.gelu_erf()?;
            x = (&x + block.down.forward(&hidden)?)?;
        }
        self.head.forward(&self.norm.forward(&x)?)
    }
}

fn main() -> Result<()> {
    let sizes = serve::sizes();
    rayon::ThreadPoolBuilder::new().num_threads(sizes.threads).build_global().expect("first use");
    let variables = VarMap::new();
    let model =
        Gpt::new(&sizes, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    let mut optimiser =
        AdamW::new(variables.all_vars(), ParamsAdamW { lr: 1e-3, ..Default::default() })?;
    let window = |shift: usize| {
        let ids: Vec<u32> = (0..sizes.batch * sizes.seq)
            .map(|i| serve::token(&sizes, i / sizes.seq, i % sizes.seq + shift))
            .collect();
        Tensor::from_vec(ids, (sizes.batch, sizes.seq), &Device::Cpu)
    };
    let (ids, targets) = (window(0)?, window(1)?.flatten_all()?);
    let mut step = || -> Result<f64> {
        let logits = model.forward(&ids)?.flatten(0, 1)?;
        let loss = candle_nn::loss::cross_entropy(&logits, &targets)?;
        optimiser.backward_step(&loss)?;
        loss.to_scalar::<f32>().map(f64::from)
    };
    serve::serve("candle", "0.11", sizes.threads, || step().expect("a training step"));
    Ok(())
}
