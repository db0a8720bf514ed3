//! What lowering and fusion make of a training step, and that NVRTC compiles it. No GPU needed.

use std::error::Error as StdError;
use std::ffi::CString;

use cudarc::nvrtc::result as nvrtc;
use onesigma_graph::Program;
use onesigma_models::config::Activation;
use onesigma_ops::recipes;
use onesigma_train::config::ModelConfig;
use onesigma_train::model::Gpt;
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program::{Settings, Target};

use super::assemble::{Instruction, Work, assemble};
use super::batch::batch;
use super::derived::{Derived, derive};
use super::epilogue::absorb;
use super::fuse::fuse;
use super::gpu::Libraries;
use super::ir::Entry;
use super::lower::{is_fp8, lower};
use super::plan::{aligned, plan};
use super::schedule::hoist_updates;
use super::source::PRELUDE;
use super::source::matmul::Epilogue;

type Outcome = Result<(), Box<dyn StdError>>;

fn step(recipe: &str) -> Result<Program, Box<dyn StdError>> {
    step_with(recipe, Activation::Gelu)
}

fn step_with(recipe: &str, activation: Activation) -> Result<Program, Box<dyn StdError>> {
    let recipe = recipes::load(recipe)?;
    let size = ModelConfig { layers: 2, heads: 4, hidden: 256, seq: 128, ..ModelConfig::default() };
    let parametrisation = recipes::parametrisation(&recipe);
    let mut config = Gpt::architecture(&size, 256, parametrisation);
    config.activation_function = activation;
    let model = Gpt::from_config(config, parametrisation)?;
    let settings = Settings {
        batch: 2,
        seq: 128,
        vocabulary: 256,
        accumulate: 1,
        optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.1 },
        clip: None,
    };
    let supports = |op: &_, inputs: &[_], output| super::supports(op, inputs, output);
    let target = Target { supports: &supports, strict: true };
    Ok(onesigma_train::program::build(&model, &recipe, settings, target)?.program)
}

fn train_step(program: &Program) -> Result<(Entry, Vec<Instruction>), Box<dyn StdError>> {
    let entry = program.find_entry("train_step")?;
    let entries = program.entries().iter();
    let mut all = entries.map(|e| lower(&e.graph, &Libraries)).collect::<Result<Vec<_>, _>>()?;
    let (copies, _) = derive(&mut all, program.slots().len());
    let sizes =
        program.slots().iter().map(|slot| slot.bytes()).chain(copies.iter().map(Derived::bytes));
    let offsets: Vec<usize> = sizes
        .scan(0, |at, bytes| {
            *at += aligned(bytes);
            Some(*at - aligned(bytes))
        })
        .collect();
    let mut lowered = all.swap_remove(entry.index());
    absorb(&mut lowered, &Libraries);
    let tasks = fuse(&lowered);
    let mut instructions = assemble(&mut lowered, &tasks);
    batch(&mut lowered, &mut instructions, &offsets);
    hoist_updates(&lowered, &mut instructions);
    plan(&mut lowered, &mut instructions);
    Ok((lowered, instructions))
}

fn count(instructions: &[Instruction], of: impl Fn(&Work) -> bool) -> usize {
    instructions.iter().filter(|instruction| of(&instruction.work)).count()
}

#[test]
fn an_fp8_step_runs_its_products_on_tensor_cores() -> Outcome {
    let program = step("unit-fp8")?;
    let (lowered, instructions) = train_step(&program)?;
    let products = |fp8: bool| {
        count(
            &instructions,
            |work| matches!(work, Work::Product { product, .. } if is_fp8(product) == fp8),
        )
    };
    // Per layer 4 linear layers, as queries, keys and values are one batch, forward and two
    // gradients each; the readout in F16.
    let counted = (products(true), products(false));
    assert_eq!(count(&instructions, |work| matches!(work, Work::Attention { .. })), 2);
    assert_eq!(count(&instructions, |work| matches!(work, Work::AttentionGrad { .. })), 2);
    let kernels = count(&instructions, |work| matches!(work, Work::Kernel { .. }));
    if std::env::var_os("ONESIGMA_SHOW").is_some() {
        for instruction in &instructions {
            let describe = |tensors: &[usize]| {
                let name = |&tensor: &usize| {
                    let info = &lowered.tensors[tensor];
                    format!("{tensor}:{} {:?}", info.dtype, info.home)
                };
                tensors.iter().map(name).collect::<Vec<_>>().join(", ")
            };
            println!(
                "{}\n    {} -> {}",
                instruction.label,
                describe(&instruction.reads),
                describe(&instruction.makes)
            );
        }
    }
    println!("{kernels} kernels");
    assert_eq!(counted, (2 * 4 * 3, 3));
    Ok(())
}

#[test]
fn gelu_runs_within_products_of_16_bits() -> Outcome {
    for (recipe, activation, expected) in [
        ("bf16", Activation::GeluNew, 2),
        ("bf16", Activation::Gelu, 0),
        ("unit-fp8", Activation::GeluNew, 0),
    ] {
        let (_, instructions) = train_step(&step_with(recipe, activation)?)?;
        for epilogue in [Epilogue::Gelu, Epilogue::GeluGrad] {
            let with = |work: &Work| matches!(work, Work::Product { product, .. } if product.epilogue == epilogue);
            let found = count(&instructions, with);
            assert_eq!(found, expected, "{recipe} {activation:?} {epilogue:?}");
        }
    }
    Ok(())
}

#[test]
fn queries_keys_and_values_are_one_batch() -> Outcome {
    // Forward and both gradients of each of two layers.
    for recipe in ["unit-fp8", "bf16"] {
        let (_, instructions) = train_step(&step(recipe)?)?;
        let batch =
            |work: &Work| matches!(work, Work::Product { product, .. } if product.batch == 3);
        assert_eq!(count(&instructions, batch), 2 * 3, "{recipe}");
    }
    Ok(())
}

#[test]
fn no_write_is_a_copy() -> Outcome {
    // Weights and moments are updated in their slots.
    for recipe in ["unit-fp8", "bf16"] {
        let program = step(recipe)?;
        let (_, instructions) = train_step(&program)?;
        let copies = count(&instructions, |work| matches!(work, Work::Copy { .. }));
        assert_eq!(copies, 0, "{recipe}");
    }
    Ok(())
}

#[test]
fn nvrtc_compiles_every_kernel() -> Outcome {
    // SAFETY: looks for a library of CUDA.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        println!("skipped: libnvrtc is not here");
        return Ok(());
    }
    let mut seen = Vec::new();
    for recipe in ["unit-fp8", "bf16"] {
        let program = step(recipe)?;
        let entries = program.entries().iter();
        let mut all =
            entries.map(|e| lower(&e.graph, &Libraries)).collect::<Result<Vec<_>, _>>()?;
        let (_, refreshing) = derive(&mut all, program.slots().len());
        all.extend(refreshing.into_iter().map(|(_, entry)| entry));
        for mut lowered in all {
            let tasks = fuse(&lowered);
            for instruction in assemble(&mut lowered, &tasks) {
                let Work::Kernel { kernel, .. } = &instruction.work else { continue };
                if seen.contains(&kernel.source) {
                    continue;
                }
                seen.push(kernel.source.clone());
                let source = CString::new(format!("{PRELUDE}\n{}", kernel.source))?;
                let program = nvrtc::create_program(&source, None)?;
                let options = ["--gpu-architecture=sm_90", "--std=c++17", "-default-device"];
                // SAFETY: the program was created just now and is destroyed once.
                let compiled = unsafe { nvrtc::compile_program(program, &options) };
                if compiled.is_err() {
                    // SAFETY: as above.
                    let log = unsafe { nvrtc::get_program_log(program) }?;
                    let log: String = log.iter().map(|&c| c as u8 as char).collect();
                    panic!("{}: {log}\n{}", kernel.label, kernel.source);
                }
                if let Some(folder) = std::env::var_os("ONESIGMA_CUBIN") {
                    let folder = std::path::PathBuf::from(folder);
                    let name = format!("{:02}", seen.len());
                    std::fs::write(folder.join(format!("{name}.cu")), source.to_bytes())?;
                    let mut bytes = 0;
                    // SAFETY: the size is asked for first.
                    let image = unsafe {
                        cudarc::nvrtc::sys::nvrtcGetCUBINSize(program, &mut bytes).result()?;
                        let mut image = vec![0_u8; bytes];
                        let to = image.as_mut_ptr().cast();
                        cudarc::nvrtc::sys::nvrtcGetCUBIN(program, to).result()?;
                        image
                    };
                    std::fs::write(folder.join(format!("{name}.cubin")), image)?;
                    println!("{name} {}", kernel.label);
                }
                // SAFETY: as above.
                unsafe { nvrtc::destroy_program(program) }?;
            }
        }
    }
    println!("{} kernels", seen.len());
    Ok(())
}
