//! The whole GPT step, in every variant, against an independent evaluation: the forward pass
//! written here in plain loops over dual numbers, which carry an exact derivative.

mod support;

use onesigma_models::GptConfig;
use onesigma_models::config::{Activation, Norm, NormPosition, Positions};
use onesigma_ops::Parametrisation;
use support::GptStep;
use support::checks::{gradients_are_proportional, the_cpu_agrees};
use support::plain::{Attention, Dual, Plain, Rows, combine, cross_entropy};

/// The loss of a step with parameters moved.
fn loss(gpt: &GptStep, parameter: usize, by: f64, direction: &[f64]) -> Dual {
    let config = &gpt.config;
    let (width, layers) = (config.n_embd, config.n_layer);
    let eps = config.layer_norm_epsilon;
    let plain = Plain::new(&gpt.step, (config.norm, eps), parameter, by, direction);
    let position = config.norm_position(gpt.step.p);
    let mut total = Dual::ZERO;
    for b in 0..gpt.batch {
        let ids = &gpt.step.inputs[0].values[b * gpt.seq..][..gpt.seq];
        let targets = &gpt.step.inputs[1].values[b * gpt.seq..][..gpt.seq];
        let mut x: Rows = (0..gpt.seq).map(|t| embed(&plain, config, ids[t] as usize, t)).collect();
        for layer in 0..layers {
            let prefix = format!("transformer.h.{layer}");
            let name = |word: &str| format!("{prefix}.{word}");
            let attention = Attention {
                causal: true,
                heads: config.n_head,
                kv_heads: config.n_kv_head.unwrap_or(config.n_head),
                mask: None,
                rotary: (config.positions == Positions::Rotary).then_some(config.rope_theta),
                names: ["q_proj", "k_proj", "v_proj", "c_proj"].map(|w| name(&format!("attn.{w}"))),
            };
            let mlp = ["mlp.c_fc", "mlp.c_gate", "mlp.c_proj"].map(name);
            let mlp = [0, 1, 2].map(|n: usize| mlp[n].as_str());
            for (n, norm) in ["ln_1", "ln_2"].into_iter().enumerate() {
                let norms =
                    |x: Rows| -> Rows { x.iter().map(|x| plain.norm(&name(norm), x)).collect() };
                let mut y = x.clone();
                if position == NormPosition::Pre {
                    y = norms(y);
                }
                y = match n {
                    0 => plain.attention(&attention, &y),
                    _ => plain.mlp(mlp, &y, config.activation_function),
                };
                if position == NormPosition::BranchEnd {
                    y = norms(y);
                }
                combine(&mut x, &y, plain.factors(2 * layer + n, layers, config.residual_tau));
                if position == NormPosition::Post {
                    x = norms(x);
                }
            }
        }
        for (x, &target) in x.iter().zip(targets) {
            let x = match position {
                NormPosition::Post => x.clone(),
                _ => plain.norm("transformer.ln_f", x),
            };
            let tied = plain.find("lm_head.weight").is_none();
            let name = if tied { "transformer.wte" } else { "lm_head" };
            let scale = if plain.unit { 1.0 / width as f64 } else { 1.0 };
            total = total + cross_entropy(&plain.linear(name, &x, scale), target as usize);
        }
    }
    total * (1.0 / (gpt.batch * gpt.seq) as f64)
}

fn embed(plain: &Plain, config: &GptConfig, id: usize, t: usize) -> Vec<Dual> {
    let token = plain.row("transformer.wte.weight", id, config.n_embd);
    if config.positions == Positions::Rotary {
        return token.to_vec();
    }
    let position = plain.row("transformer.wpe.weight", t, config.n_embd);
    let scale = plain.scale(2);
    token.iter().zip(position).map(|(&a, &b)| (a + b) * scale).collect()
}

/// By which constant the gradient of a parameter differs from the true one, from the scales of the
/// paper written down by hand, for the default architecture.
fn constant(gpt: &GptStep, name: &str) -> f64 {
    let config = &gpt.config;
    let n = (gpt.batch * gpt.seq) as f64;
    let (v, c) = (config.vocab_size as f64, config.n_embd as f64);
    let f = 4.0 * c;
    let loss = n * v / (v - 1.0).sqrt();
    if name == "lm_head.weight" {
        return loss * c / n.sqrt();
    }
    let trunk = loss * c / v.sqrt();
    match name {
        "transformer.ln_f.weight" | "transformer.ln_f.bias" => return trunk / n.sqrt(),
        "transformer.wte.weight" => return trunk * 2_f64.sqrt() * (v / n).sqrt(),
        "transformer.wpe.weight" => return trunk * 2_f64.sqrt() / (gpt.batch as f64).sqrt(),
        _ => {}
    }
    let words: Vec<&str> = name.split('.').collect();
    let layer: usize = words[2].parse().expect("transformer.h.<layer>");
    let branch = 2 * layer + usize::from(words[3] == "mlp" || words[3] == "ln_2");
    let tau = 1.0 / ((config.n_layer + branch) as f64).sqrt();
    // The branch's factor is missing in its gradients.
    let branch = trunk * (1.0 + tau * tau).sqrt() / tau / n.sqrt();
    match (words[3], words[4]) {
        ("ln_1" | "ln_2", _) => branch,
        ("attn", _) => branch * c.sqrt(),
        ("mlp", "c_proj") => branch * f.sqrt(),
        ("mlp", "c_fc") => branch * (f / c).sqrt() * c.sqrt(),
        _ => panic!("no constant for {name}"),
    }
}

fn base() -> GptConfig {
    GptConfig {
        vocab_size: 11,
        n_positions: 7,
        n_embd: 8,
        n_layer: 2,
        n_head: 2,
        initializer_range: 0.5,
        ..GptConfig::default()
    }
}

/// Every variant by name, with a sequence length; each is built regular and unit-scaled.
fn variants() -> Vec<(&'static str, GptConfig, usize)> {
    let silu = GptConfig {
        activation_function: Activation::Silu,
        norm: Norm::RmsNorm,
        bias: false,
        ..base()
    };
    let gelu_new = GptConfig { activation_function: Activation::GeluNew, ..base() };
    let plain_norm = GptConfig { norm_affine: false, ..base() };
    let rotary = GptConfig { positions: Positions::Rotary, ..base() };
    let grouped = GptConfig { n_head: 4, n_kv_head: Some(2), ..base() };
    let one_kv = GptConfig { n_head: 4, n_kv_head: Some(1), ..rotary.clone() };
    let swiglu = GptConfig { activation_function: Activation::Swiglu, bias: false, ..base() };
    let llama = GptConfig {
        norm: Norm::RmsNorm,
        positions: Positions::Rotary,
        rope_theta: 50.0,
        n_head: 4,
        n_kv_head: Some(2),
        n_inner: Some(12),
        ..swiglu.clone()
    };
    let post = GptConfig { norm_position: Some(NormPosition::Post), ..base() };
    let branch_end = GptConfig {
        norm_position: Some(NormPosition::BranchEnd),
        residual_tau: Some(0.4),
        ..base()
    };
    vec![
        ("default", base(), 7),
        ("shorter than the table", base(), 5),
        ("silu, rms norm, no biases", silu, 5),
        ("gelu_new", gelu_new, 7),
        ("norms without parameters", plain_norm, 5),
        ("rotary", rotary, 6),
        ("grouped heads", grouped, 6),
        ("rotary with one key-value head", one_kv, 6),
        ("swiglu", swiglu, 5),
        ("llama", llama, 6),
        ("post-norm", post, 6),
        ("norm at the branch end, fixed tau", branch_end, 6),
    ]
}

fn both() -> impl Iterator<Item = (String, GptStep)> {
    let models = variants().into_iter().flat_map(|(name, config, seq)| {
        [false, true]
            .into_iter()
            .flat_map(move |tied| {
                let config = GptConfig { tie_word_embeddings: Some(tied), ..config.clone() };
                [Parametrisation::Regular, Parametrisation::UMup].map(|p| {
                    let title = format!("{name}, {}, {p:?}", if tied { "tied" } else { "untied" });
                    (title, config.clone(), p)
                })
            })
            .map(move |model| (model, seq))
    });
    models.map(|((title, config, p), seq)| (title, GptStep::new(config, p, [2, seq], false)))
}

#[test]
fn every_gradient_is_the_true_one_times_a_constant() {
    for (title, gpt) in both() {
        let evaluate = |parameter, by, along: &[f64]| loss(&gpt, parameter, by, along);
        let constants = gradients_are_proportional(&title, &gpt.step, &evaluate);
        let is_default = gpt.config == GptConfig { tie_word_embeddings: Some(false), ..base() };
        if !is_default || !gpt.step.p.is_scaled() {
            continue;
        }
        for (spec, found) in gpt.step.specs.iter().zip(constants) {
            let Some(found) = found else {
                assert!(spec.name.ends_with("k_proj.bias"), "{}", spec.name);
                continue;
            };
            let expected = constant(&gpt, &spec.name);
            let error = (found / expected - 1.0).abs();
            assert!(error < 1e-9, "{title} {}: {found} instead of {expected}", spec.name);
        }
    }
}

/// The two uses of a tied table share the factor 2^1/2 between them: each has 2^1/4 of it.
#[test]
fn a_tied_table_has_the_mean_of_both_constants() {
    let at = |tied: bool, name: &str| {
        let config = GptConfig { tie_word_embeddings: Some(tied), ..base() };
        let gpt = GptStep::new(config, Parametrisation::UMup, [2, 7], false);
        let evaluate = |parameter, by, along: &[f64]| loss(&gpt, parameter, by, along);
        let constants = gradients_are_proportional("tied", &gpt.step, &evaluate);
        let at = gpt.step.specs.iter().position(|spec| spec.name == name).expect("a parameter");
        constants[at].expect("a gradient")
    };
    let lookup = at(false, "transformer.wte.weight");
    let readout = at(false, "lm_head.weight");
    let both = at(true, "transformer.wte.weight");
    assert!((lookup / readout - 2_f64.sqrt()).abs() < 1e-9, "{lookup} {readout}");
    assert!((both / (lookup * readout).sqrt() - 1.0).abs() < 1e-9, "{both}");
}

#[test]
fn the_cpu_agrees_with_f64_in_f32() {
    for (title, gpt) in both() {
        the_cpu_agrees(&title, &gpt.step);
    }
}
