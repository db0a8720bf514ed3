//! Programs as files: compiled once, run without the model, refused when they are not whole.

mod common;

use std::fs;

use common::{command, run};
use onesigma::backend::Engine;
use onesigma::graph::file::Description;
use onesigma::graph::{EntryId, Program, SlotId, SlotKind};
use onesigma::setup;
use onesigma::train::config::Config;

const SIZES: [&str; 10] =
    ["--layers", "1", "--heads", "2", "--hidden", "16", "--seq", "16", "--batch", "2"];

fn compiled(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("program.osp").display().to_string();
    let mut arguments = vec!["compile", "--recipe", "unit-fp8", "-o", &path];
    arguments.extend(SIZES);
    let outcome = run(&mut command(&arguments));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    path
}

#[test]
fn a_program_file_trains_and_continues_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compiled(&folder);
    let at = |name: &str| folder.path().join(name).display().to_string();
    let tokens: Vec<u8> = (0..32_u32).flat_map(|i| (i * 7 % 256).to_le_bytes()).collect();
    fs::write(at("tokens"), &tokens).expect("written");
    let (tokens, targets) =
        (format!("tokens=@{}", at("tokens")), format!("targets=@{}", at("tokens")));
    let step = ["run", &program, "--entry", "train_step", "--input", "lr=0.5", "--input", &tokens]
        .map(str::to_owned);
    let train = |more: &[&str]| {
        let mut command = command(&[]);
        let outcome = run(command.args(&step).args(["--input", &targets]).args(more));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stdout
    };
    let whole = train(&["--times", "3"]);
    assert_eq!(whole.lines().count(), 3, "{whole}");
    let first = train(&["--times", "2", "--save-state", &at("state")]);
    let rest = train(&["--first-step", "2", "--state", &at("state")]);
    let losses = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split(": ").nth(1).expect("a loss").to_owned()).collect()
    };
    assert_eq!([losses(&first), losses(&rest)].concat(), losses(&whole));
    let loss: f32 = losses(&whole)[2].parse().expect("a number");
    assert!(loss < losses(&whole)[0].parse().expect("a number"), "{whole}");
}

#[test]
fn a_profile_lists_every_instruction_of_every_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = compiled(&folder);
    let trace = folder.path().join("trace.json").display().to_string();
    let eval = ["run", &path, "--entry", "init", "--times", "2", "--profile", &trace];
    let outcome = run(&mut command(&eval));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("GFLOP/s") && outcome.stdout.contains("Random"));
    let text = fs::read_to_string(&trace).expect("written");
    let trace: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    let spans: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    let (program, _) = Program::from_bytes(&fs::read(&path).expect("readable")).expect("valid");
    let init = &program.entries()[program.find_entry("init").expect("there is one").index()];
    let views = |op: &&onesigma::graph::Node| matches!(op.op.name(), "Slot" | "Reshape");
    let work = init.graph.nodes().iter().filter(|node| !views(node)).count();
    assert_eq!(spans.len(), 2 * work);
    let starts: Vec<f64> = spans.iter().map(|span| span["ts"].as_f64().expect("a time")).collect();
    assert!(starts.is_sorted() && starts[0] == 0.0);
    let limit = spans[0]["args"]["fraction_of_limit"].as_f64().expect("known on the CPU");
    assert!(limit > 0.0 && limit.is_finite(), "{limit}");
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compiled(&folder);
    let says = |arguments: &[&str], code: i32, text: &str| {
        let outcome = run(&mut command(arguments));
        assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(text), "{}", outcome.stderr);
    };
    says(
        &["run", &program, "--entry", "train"],
        2,
        "no entry named `train`; there are: init, train_step",
    );
    says(
        &["run", &program, "--entry", "init", "--input", "loss=1"],
        2,
        "`loss` is no input slot, its kind is output",
    );
    says(&["run", &program, "--entry", "init", "--input", "lr"], 2, "expected SLOT=VALUE");
    says(&["run", &program, "--entry", "init", "--input", "lr=fast"], 2, "`fast` is no number");
    says(&["run", &program, "--entry", "eval_step", "--input", "tokens=1,2"], 1, "tokens");
    let bytes = fs::read(&program).expect("readable");
    fs::write(&program, &bytes[..bytes.len() / 2]).expect("written");
    says(&["run", &program], 1, "the file is cut or extended");
    fs::write(&program, b"GIF89a").expect("written");
    says(&["run", &program], 1, "no program file");
    says(&["run", "no-such.osp"], 1, "cannot read no-such.osp");
}

/// Bytes changed behind a right checksum: what still validates must run, or be refused, without a
/// panic or an access outside its memory (which the CPU backend's own checks would make a panic).
#[test]
fn hostile_programs_run_or_are_refused() {
    let config: Config = Config {
        batch: 1,
        model: onesigma::train::config::ModelConfig {
            layers: 1,
            heads: 2,
            hidden: 8,
            seq: 8,
            ..Default::default()
        },
        ..Config::default()
    };
    let program = setup::program(&config).expect("a program").program;
    let bytes = program.to_bytes(&Description::new()).expect("short");
    let backend = onesigma::backends::open("cpu").expect("built in");
    let (mut state, mut valid) = (0x9e37_79b9_7f4a_7c15_u64, 0);
    let mut random = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..2000 {
        let mut changed = bytes.clone();
        for _ in 0..1 + random(3) {
            let at = 30 + random(bytes.len() - 30);
            changed[at] = random(256) as u8;
        }
        let checksum = crc32fast::hash(&changed[28..]).to_le_bytes();
        changed[24..28].copy_from_slice(&checksum);
        let Ok((program, _)) = Program::from_bytes(&changed) else { continue };
        valid += 1;
        if program.arena_bytes() < 1 << 26
            && let Ok(mut engine) = backend.compile(&program)
        {
            exercise(&program, engine.as_mut());
        }
    }
    assert!(valid > 100, "only {valid} changed programs are valid: the changes miss");
}

fn exercise(program: &Program, engine: &mut dyn Engine) {
    for (index, slot) in program.slots().iter().enumerate() {
        if slot.kind == SlotKind::Input {
            let _ = engine.write(SlotId::new(index), &vec![0; slot.bytes()]);
        }
    }
    for index in 0..program.entries().len() {
        let _ = engine.run(EntryId::new(index), 1);
    }
}
