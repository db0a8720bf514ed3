//! The benchmark's GPT, trained by burn: on its own CPU backend (burn-flex) in f32, or, built with
//! the feature `vulkan`, on a GPU through wgpu in f32 or (`--float f16`) in F16, with fusion and
//! autotuning on.

#[path = "../../serve.rs"]
mod serve;

use burn::backend::Autodiff;
use burn::module::{Module, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{
    Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig,
};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Distribution, ElementConversion, Int, Tensor, TensorData, activation};
use serve::Sizes;

#[derive(Module, Debug)]
struct Block<B: Backend> {
    attention_norm: LayerNorm<B>,
    mlp_norm: LayerNorm<B>,
    query_key_value: Linear<B>,
    projection: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
}

#[derive(Module, Debug)]
struct Gpt<B: Backend> {
    tokens: Embedding<B>,
    positions: Param<Tensor<B, 2>>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
    head: Linear<B>,
    heads: usize,
}

impl<B: Backend> Gpt<B> {
    fn new(sizes: &Sizes, device: &B::Device) -> Self {
        let d = sizes.d_model;
        let linear =
            |from, to| LinearConfig::new(from, to).with_bias(false).init::<B>(device);
        let norm = || LayerNormConfig::new(d).init::<B>(device);
        let positions =
            Tensor::random([sizes.seq, d], Distribution::Normal(0.0, 1.0), device);
        Self {
            tokens: EmbeddingConfig::new(sizes.vocab, d).init(device),
            positions: Param::from_tensor(positions),
            blocks: (0..sizes.layers)
                .map(|_| Block {
                    attention_norm: norm(),
                    mlp_norm: norm(),
                    query_key_value: linear(d, 3 * d),
                    projection: linear(d, d),
                    up: linear(d, 4 * d),
                    down: linear(4 * d, d),
                })
                .collect(),
            norm: norm(),
            head: linear(d, sizes.vocab),
            heads: sizes.heads,
        }
    }

    fn attention(&self, block: &Block<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, d] = x.dims();
        let parts = block.query_key_value.forward(x).chunk(3, 2);
        let part = |i: usize| {
            let part: Tensor<B, 3> = parts[i].clone();
            part.reshape([batch, seq, self.heads, d / self.heads]).swap_dims(1, 2)
        };
        let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
        let mixed = attention(part(0), part(1), part(2), None, None, options);
        block.projection.forward(mixed.swap_dims(1, 2).reshape([batch, seq, d]))
    }

    fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let mut x = self.tokens.forward(ids) + self.positions.val().unsqueeze();
        for block in &self.blocks {
            x = x.clone() + self.attention(block, block.attention_norm.forward(x));
            let hidden = activation::gelu(block.up.forward(block.mlp_norm.forward(x.clone())));
            x = x + block.down.forward(hidden);
        }
        self.head.forward(self.norm.forward(x))
    }
}

/// Serves training steps on a backend.
fn serve_on<B: burn::tensor::backend::AutodiffBackend>(name: &str, sizes: &Sizes) {
    let device = B::Device::default();
    let mut model = Some(Gpt::<B>::new(sizes, &device));
    let mut optimiser = AdamWConfig::new().init();
    let window = |shift: usize| -> Vec<i64> {
        (0..sizes.batch * sizes.seq)
            .map(|i| serve::token(sizes, i / sizes.seq, i % sizes.seq + shift).into())
            .collect()
    };
    let tokens = |shift: usize| {
        let data = TensorData::new(window(shift), [sizes.batch, sizes.seq]);
        Tensor::<B, 2, Int>::from_data(data, &device)
    };
    let (ids, targets) = (tokens(0), tokens(1).flatten::<1>(0, 1));
    let entropy = CrossEntropyLossConfig::new().init(&device);
    serve::serve(name, "0.21", sizes.threads, || {
        let current = model.take().expect("put back below");
        let logits: Tensor<B, 2> = current.forward(ids.clone()).flatten(0, 1);
        let loss = entropy.forward(logits, targets.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &current);
        model = Some(optimiser.step(1e-3, current, gradients));
        // Reading the loss waits for the forward pass, `sync` for the rest.
        let loss = loss.into_scalar().elem::<f64>();
        B::sync(&device).expect("the device answers");
        loss
    });
}

#[cfg(not(feature = "vulkan"))]
fn main() {
    let sizes = serve::sizes();
    rayon::ThreadPoolBuilder::new().num_threads(sizes.threads).build_global().expect("first use");
    serve_on::<Autodiff<burn::backend::Flex>>("burn-flex", &sizes);
}

#[cfg(feature = "vulkan")]
fn main() {
    use burn::backend::Vulkan;
    let sizes = serve::sizes();
    match std::env::args().any(|argument| argument == "f16") {
        true => serve_on::<Autodiff<Vulkan<burn::tensor::f16>>>("burn-wgpu F16", &sizes),
        false => serve_on::<Autodiff<Vulkan<f32>>>("burn-wgpu F32", &sizes),
    }
}
