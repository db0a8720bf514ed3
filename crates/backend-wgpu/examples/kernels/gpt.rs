//! A training step of a GPT.

use std::time::Instant;

use onesigma_backend::{Backend, Engine};
use onesigma_graph::{DType, SlotKind};
use serde_json::json;

use crate::{Bench, Outcome};

impl Bench {
    /// A training step of a GPT, and how much of it is spent in kernels.
    pub(crate) fn gpt(&mut self, recipe: &str) -> Outcome<()> {
        use onesigma_models::GptConfig;
        use onesigma_models::config::{Activation, Norm};
        use onesigma_ops::recipes;
        use onesigma_train::model::Gpt;
        use onesigma_train::optimizer::Optimizer;
        use onesigma_train::program::{Settings, Target, build};

        let (hidden, layers, seq, batch, vocab) =
            if self.small { (64, 2, 32, 2, 256) } else { (768, 12, 512, 8, 32_768) };
        let loaded = recipes::load(recipe)?;
        let config = GptConfig {
            vocab_size: vocab,
            n_positions: seq,
            n_embd: hidden,
            n_layer: layers,
            n_head: hidden / if self.small { 16 } else { 64 },
            norm: Norm::RmsNorm,
            norm_affine: false,
            bias: false,
            tie_word_embeddings: Some(false),
            activation_function: Activation::GeluNew,
            ..GptConfig::default()
        };
        let model = Gpt::from_config(config, recipes::parametrisation(&loaded))?;
        let settings = Settings {
            batch,
            seq,
            vocabulary: vocab,
            accumulate: 1,
            optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.01 },
            clip: None,
        };
        let backend = &self.backend;
        let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
        let target = Target { supports: &supports, strict: false };
        let built = build(&model, &loaded, settings, target)?;
        let start = Instant::now();
        let mut engine = backend.engine(&built.program)?;
        let prepared = start.elapsed().as_secs_f64();
        for (n, slot) in built.program.slots().iter().enumerate() {
            if slot.kind == SlotKind::Input {
                // Tokens without pattern; rates are the learning rate and factors of the loss.
                let words = (0..slot.shape.numel() as u32).map(|i| match slot.dtype {
                    DType::U32 => (i.wrapping_mul(2_654_435_761) >> 7) % vocab as u32,
                    _ => 1e-3_f32.to_bits(),
                });
                let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
                engine.write(onesigma_graph::SlotId::new(n), &bytes)?;
            }
        }
        engine.run(built.program.find_entry("init")?, 1)?;
        let entry = built.program.find_entry("train_step")?;
        let times = if self.small { 2 } else { 5 };
        engine.run(entry, times)?;
        engine.synchronize()?;
        let mut wall = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            engine.run(entry, times)?;
            engine.synchronize()?;
            wall.push(start.elapsed().as_secs_f64() / times as f64);
        }
        wall.sort_by(f64::total_cmp);
        // As a library that takes one step a call does it.
        let mut singly = Vec::new();
        for _ in 0..3 * times {
            let start = Instant::now();
            engine.run(entry, 1)?;
            engine.synchronize()?;
            singly.push(start.elapsed().as_secs_f64());
        }
        singly.sort_by(f64::total_cmp);
        let singly = singly[singly.len() / 2];
        let mut kernels = Vec::new();
        let mut inside = 0.0;
        if engine.record() {
            engine.run(entry, 2)?;
            let labels = engine.kernels(entry);
            let spans = engine.take_spans();
            for (label, span) in labels.iter().zip(&spans[labels.len()..]) {
                inside += span.elapsed.as_secs_f64();
                kernels.push((span.elapsed.as_secs_f64() * 1e6, label.clone()));
            }
        }
        kernels.sort_by(|a, b| b.0.total_cmp(&a.0));
        let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        let device = engine.step_times(entry, times)?.map(|found| {
            let times = [found.step, found.kernels, found.launches].map(micros);
            println!(
                "    on the device: a step takes {:.0} us, its kernels {:.0}, its launches {:.0}",
                times[0], times[1], times[2]
            );
            json!({"step_us": times[0], "kernels_us": times[1], "launches_us": times[2]})
        });
        println!(
            "gpt {recipe}: {:.2} ms a step, {:.2} singly, {:.2} ms in {} kernels, prepared in {prepared:.1} s",
            wall[1] * 1e3,
            singly * 1e3,
            inside * 1e3,
            kernels.len()
        );
        println!("    {}", engine.report().notes.join("; "));
        for (micros, label) in kernels.iter().take(if self.small { 12 } else { 40 }) {
            println!("    {micros:>9.1} us  {label}");
        }
        self.rows.push(json!({
            "bench": "gpt", "recipe": recipe, "ms": wall[1] * 1e3, "singly_ms": singly * 1e3,
            "in_kernels_ms": inside * 1e3, "device": device,
            "prepared_s": prepared, "kernels": kernels, "notes": engine.report().notes,
        }));
        Ok(())
    }
}
