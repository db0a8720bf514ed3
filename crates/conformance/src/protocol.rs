//! What engines do besides arithmetic: state, frames, refusals, repeated runs.

use crate::check::{Operand, decode, encode, text};
use crate::{Make, Verdict, skipped, trial};
use libtest_mimic::Trial;
use onesigma_backend::{Backend, Engine, Error, Support};
use onesigma_format::{Conversion, Format, Overflow, Rounding};
use onesigma_graph::{
    DType, Distribution, EntryId, Graph, Module, Op, Program, Role, SlotId, SlotKind,
};

const N: usize = 5;

type Check = fn(&dyn Backend) -> Verdict;

/// States `a` and `b`, input `x`, output `y`, each `F32 [5]`, and four entries.
struct Fixture {
    program: Program,
    a: SlotId,
    b: SlotId,
    x: SlotId,
    y: SlotId,
    /// `y = a + x; a = a / 2 + x`, so that `a` is updated in place.
    step: EntryId,
    /// `a, b = b, a`.
    swap: EntryId,
    /// `y = a; b = a`.
    copy: EntryId,
    /// `y` stochastic: random numbers plus `a`.
    draw: EntryId,
}

fn fixture() -> onesigma_graph::Result<Fixture> {
    let mut module = Module::new();
    module.seed_slot()?;
    module.step_slot()?;
    let mut slot = |name: &str, kind| module.slot(name, kind, [N], DType::F32, Role::Activation);
    let (a, b) = (slot("a", SlotKind::State)?, slot("b", SlotKind::State)?);
    let (x, y) = (slot("x", SlotKind::Input)?, slot("y", SlotKind::Output)?);

    let mut graph = Graph::new();
    let (old, input) = (module.read(&mut graph, a), module.read(&mut graph, x));
    let sum = graph.map(&[old, input], |x| x[0].clone() + x[1].clone())?.one()?;
    let new = graph.map(&[old, input], |x| x[0].clone() * 0.5 + x[1].clone())?.one()?;
    graph.write(y, sum);
    graph.write(a, new);
    let step = module.entry("step", graph)?;

    let mut graph = Graph::new();
    let (old_a, old_b) = (module.read(&mut graph, a), module.read(&mut graph, b));
    graph.write(a, old_b);
    graph.write(b, old_a);
    let swap = module.entry("swap", graph)?;

    let mut graph = Graph::new();
    let old = module.read(&mut graph, a);
    graph.write(y, old);
    graph.write(b, old);
    let copy = module.entry("copy", graph)?;

    let mut graph = Graph::with_streams_from(1000);
    let old = module.read(&mut graph, a);
    let distribution = Distribution::Normal { mean: 0.0, std: 1.0 };
    let noise = graph.op(Op::Random { distribution, shape: [N].into() }, &[]).one()?;
    let sum = graph.map(&[old, noise], |x| x[0].clone() + x[1].clone())?.one()?;
    graph.write(y, sum);
    graph.write(a, sum);
    let draw = module.entry("draw", graph)?;
    Ok(Fixture { program: Program::new(module)?, a, b, x, y, step, swap, copy, draw })
}

/// An engine of the fixture with `a = 1 .. 5` and `b = -1 .. -5`.
fn ready(backend: &dyn Backend) -> Result<(Fixture, Box<dyn Engine>), String> {
    let fixture = fixture().map_err(text)?;
    let mut engine = backend.compile(&fixture.program).map_err(text)?;
    put(&mut *engine, fixture.a, &[1.0, 2.0, 3.0, 4.0, 5.0])?;
    put(&mut *engine, fixture.b, &[-1.0, -2.0, -3.0, -4.0, -5.0])?;
    Ok((fixture, engine))
}

fn put(engine: &mut dyn Engine, slot: SlotId, values: &[f64]) -> Verdict {
    engine.write(slot, &encode(DType::F32, values)).map_err(text)
}

fn get(engine: &mut dyn Engine, slot: SlotId, frames: usize) -> Result<Vec<f64>, String> {
    let mut bytes = vec![0; frames * N * 4];
    engine.read(slot, &mut bytes).map_err(text)?;
    Ok(decode(DType::F32, &bytes))
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Verdict {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: found {found:?}, expected {expected:?}"))
}

fn refused<T>(
    what: &str,
    result: onesigma_backend::Result<T>,
    is: impl Fn(&Error) -> bool,
) -> Verdict {
    match result {
        Err(error) if is(&error) => Ok(()),
        Err(error) => Err(format!("{what}: refused with another error: {error}")),
        Ok(_) => Err(format!("{what}: not refused")),
    }
}

/// Three frames of input.
fn frames() -> Vec<f64> {
    (0..3 * N).map(|n| n as f64 * 0.25 - 1.0).collect()
}

fn state_starts_as_zeros(backend: &dyn Backend) -> Verdict {
    let fixture = fixture().map_err(text)?;
    let mut engine = backend.compile(&fixture.program).map_err(text)?;
    expect("a", get(&mut *engine, fixture.a, 1)?, vec![0.0; N])
}

fn state_is_shared_by_entries(backend: &dyn Backend) -> Verdict {
    let (f, mut engine) = ready(backend)?;
    put(&mut *engine, f.x, &[1.0; N])?;
    engine.run(f.step, 1).map_err(text)?;
    expect("y", get(&mut *engine, f.y, 1)?, vec![2.0, 3.0, 4.0, 5.0, 6.0])?;
    let a = vec![1.5, 2.0, 2.5, 3.0, 3.5];
    expect("a, updated in place", get(&mut *engine, f.a, 1)?, a.clone())?;
    engine.run(f.copy, 1).map_err(text)?;
    expect("y of another entry", get(&mut *engine, f.y, 1)?, a.clone())?;
    expect("b", get(&mut *engine, f.b, 1)?, a)
}

fn writes_see_the_old_state(backend: &dyn Backend) -> Verdict {
    let (f, mut engine) = ready(backend)?;
    engine.run(f.swap, 1).map_err(text)?;
    expect("a", get(&mut *engine, f.a, 1)?, vec![-1.0, -2.0, -3.0, -4.0, -5.0])?;
    expect("b", get(&mut *engine, f.b, 1)?, vec![1.0, 2.0, 3.0, 4.0, 5.0])?;
    engine.run(f.swap, 3).map_err(text)?;
    expect("a after four swaps", get(&mut *engine, f.a, 1)?, vec![1.0, 2.0, 3.0, 4.0, 5.0])
}

fn many_times_equal_many_runs(backend: &dyn Backend) -> Verdict {
    let (f, mut engine) = ready(backend)?;
    put(&mut *engine, f.x, &frames())?;
    engine.run(f.step, 3).map_err(text)?;
    let together = (get(&mut *engine, f.y, 3)?, get(&mut *engine, f.a, 1)?);
    let last = get(&mut *engine, f.y, 1)?;
    expect("the last frame alone", &last[..], &together.0[2 * N..])?;
    expect("two frames", &get(&mut *engine, f.y, 2)?[..], &together.0[N..])?;

    let (f, mut engine) = ready(backend)?;
    let mut outputs = Vec::new();
    for frame in frames().chunks(N) {
        put(&mut *engine, f.x, frame)?;
        engine.run(f.step, 1).map_err(text)?;
        outputs.extend(get(&mut *engine, f.y, 1)?);
    }
    expect("outputs and state", together, (outputs, get(&mut *engine, f.a, 1)?))?;
    put(&mut *engine, f.x, &[1.0; N])?;
    engine.run(f.step, 4).map_err(text)?;
    get(&mut *engine, f.y, 4).map(|_| ())
}

fn no_times_do_nothing(backend: &dyn Backend) -> Verdict {
    let (f, mut engine) = ready(backend)?;
    engine.run(f.step, 0).map_err(|error| format!("without a frame of input: {error}"))?;
    put(&mut *engine, f.x, &[1.0; N])?;
    engine.run(f.step, 0).map_err(text)?;
    expect("a", get(&mut *engine, f.a, 1)?, vec![1.0, 2.0, 3.0, 4.0, 5.0])
}

fn slots_that_nothing_wrote_are_zeros_or_missing(backend: &dyn Backend) -> Verdict {
    let (f, mut engine) = ready(backend)?;
    refused("read of an input", engine.read(f.x, &mut [0; 4 * N]), |error| {
        matches!(error, Error::MissingFrames { .. })
    })?;
    let mut y = vec![0xff; 4 * N];
    engine.read(f.y, &mut y).map_err(text)?;
    expect("y", y, vec![0; 4 * N])?;
    refused("two frames of an output", engine.read(f.y, &mut [0; 8 * N]), |error| {
        matches!(error, Error::WrongSize { .. })
    })?;
    put(&mut *engine, f.x, &frames())?;
    expect("two frames of an input", get(&mut *engine, f.x, 2)?, frames()[N..].to_vec())
}

fn wrong_sizes_are_refused(backend: &dyn Backend) -> Verdict {
    let (f, mut engine) = ready(backend)?;
    let wrong = |error: &Error| matches!(error, Error::WrongSize { .. });
    let frame = 4 * N;
    refused("short state", engine.write(f.a, &vec![0; frame - 1]), wrong)?;
    refused("two frames of state", engine.write(f.a, &vec![0; 2 * frame]), wrong)?;
    refused("half a frame of input", engine.write(f.x, &vec![0; frame + 2]), wrong)?;
    refused("no frame of input", engine.write(f.x, &[]), wrong)?;
    refused("long read of a state", engine.read(f.a, &mut vec![0; 2 * frame]), wrong)?;
    refused("odd read of an output", engine.read(f.y, &mut vec![0; frame - 4]), wrong)?;
    put(&mut *engine, f.x, &[1.0; N])?;
    engine.run(f.step, 1).map_err(text)?;
    refused("more frames than ran", engine.read(f.y, &mut vec![0; 2 * frame]), wrong)?;
    expect("a is intact", get(&mut *engine, f.a, 1)?, vec![1.5, 2.0, 2.5, 3.0, 3.5])
}

fn unknown_names_are_refused(backend: &dyn Backend) -> Verdict {
    let (f, mut engine) = ready(backend)?;
    let (slot, entry) = (SlotId::new(99), EntryId::new(99));
    let unknown = |error: &Error| matches!(error, Error::UnknownSlot { .. });
    refused("write of an unknown slot", engine.write(slot, &[0; 4]), unknown)?;
    refused("read of an unknown slot", engine.read(slot, &mut [0; 4]), unknown)?;
    refused("an unknown entry", engine.run(entry, 1), |error| {
        matches!(error, Error::UnknownEntry { .. })
    })?;
    refused("write of an output", engine.write(f.y, &[0; 4 * N]), |error| {
        matches!(error, Error::NotWritable { .. })
    })
}

fn missing_frames_are_refused(backend: &dyn Backend) -> Verdict {
    let (f, mut engine) = ready(backend)?;
    let missing = |error: &Error| matches!(error, Error::MissingFrames { .. });
    refused("an input without frames", engine.run(f.step, 1), missing)?;
    put(&mut *engine, f.x, &frames())?;
    refused("three frames for two steps", engine.run(f.step, 2), missing)?;
    refused("random numbers without a seed", engine.run(f.draw, 1), missing)?;
    expect("a is intact", get(&mut *engine, f.a, 1)?, vec![1.0, 2.0, 3.0, 4.0, 5.0])?;
    // Entries that do not read the input run without it.
    let (f, mut engine) = ready(backend)?;
    engine.run(f.copy, 1).map_err(text)
}

fn draws_follow_seed_and_step(backend: &dyn Backend) -> Verdict {
    let draw = |seed: u32, steps: &[u32]| -> Result<Vec<f64>, String> {
        let (f, mut engine) = ready(backend)?;
        let words = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let seed_slot = f.program.seed().ok_or("no seed")?;
        engine.write(seed_slot, &words(&[seed, 0])).map_err(text)?;
        engine.write(f.program.step().ok_or("no step")?, &words(steps)).map_err(text)?;
        engine.run(f.draw, 2).map_err(text)?;
        get(&mut *engine, f.y, 2)
    };
    let first = draw(1, &[4, 5])?;
    expect("the same again", draw(1, &[4, 5])?, first.clone())?;
    for (what, other) in [("seed", draw(2, &[4, 5])?), ("step", draw(1, &[4, 6])?)] {
        if other == first {
            return Err(format!("another {what} draws the same numbers"));
        }
    }
    let [a, b] = [&first[..N], &first[N..]];
    if a.iter().zip(b).all(|(a, b)| a == b) {
        return Err("two steps draw the same numbers".to_owned());
    }
    Ok(())
}

fn unsupported_ops_are_typed_errors(backend: &dyn Backend, op: Op, format: Format) -> Verdict {
    let mut module = Module::new();
    let dtype = DType::Float(format);
    let x = module.slot("x", SlotKind::Input, [4, 4], dtype, Role::Activation).map_err(text)?;
    let y =
        module.slot("y", SlotKind::Output, [4, 4], DType::F32, Role::Activation).map_err(text)?;
    let mut graph = Graph::new();
    let read = module.read(&mut graph, x);
    let inputs = vec![read; if matches!(op, Op::MatMul { .. }) { 2 } else { 1 }];
    let value = graph.op(op, &inputs).one().map_err(text)?;
    graph.write(y, value);
    module.entry("main", graph).map_err(text)?;
    let program = Program::new(module).map_err(text)?;
    refused("an op that is not claimed", backend.compile(&program), |error| {
        matches!(error, Error::Unsupported { .. })
    })
}

fn runs_are_deterministic(backend: &dyn Backend) -> Verdict {
    if !backend.caps().deterministic {
        return Ok(()); // the backend says that it is not
    }
    let case = |_: u32| -> Result<Vec<Vec<u8>>, String> {
        let operands = [Operand::normal([64, 128]), Operand::normal([128, 96])];
        let build = |graph: &mut Graph, x: &[_]| {
            let y = graph.matmul(x[0], x[1]).one()?;
            let how = Conversion {
                rounding: Rounding::Stochastic { bits: 16 },
                overflow: Overflow::Saturate,
            };
            let bf16 = DType::Float(Format::BF16);
            let cast = Op::Cast { to: bf16 };
            let mut results = vec![y];
            if backend.supports(&cast, &[DType::F32], bf16) != Support::No {
                results.push(graph.op(cast, &[y]).stored_as(bf16, how).one()?);
            }
            let sum = graph
                .reduce(onesigma_graph::ReduceKind::Sum, &[y], &[0, 1], false, |x| x[0].square())?
                .one()?;
            results.push(sum);
            Ok(results)
        };
        let bench = crate::check::Bench::new(&operands, &build, Some(backend)).map_err(text)?;
        let contents: Vec<Vec<u8>> = operands.iter().map(|operand| operand.bytes(5)).collect();
        let mut engine = backend.compile(&bench.program).map_err(text)?;
        let first = bench.run(&mut *engine, &contents).map_err(text)?;
        let second = bench.run(&mut *engine, &contents).map_err(text)?;
        expect("the same engine again", first == second, true)?;
        Ok(first)
    };
    expect("a new engine", case(0)? == case(1)?, true)
}

fn a_report_is_there(backend: &dyn Backend) -> Verdict {
    let (f, engine) = ready(backend)?;
    let planned = engine.report().planned_bytes;
    expect("planned bytes", planned >= f.program.slot_bytes(), true)?;
    expect("a device name", backend.caps().device.is_empty(), false)
}

pub(crate) fn trials(make: Make, backend: &dyn Backend) -> Vec<Trial> {
    let checks: [(&str, Check); 13] = [
        ("state_starts_as_zeros", state_starts_as_zeros),
        ("state_is_shared_by_entries", state_is_shared_by_entries),
        ("writes_see_the_old_state", writes_see_the_old_state),
        ("many_times_equal_many_runs", many_times_equal_many_runs),
        ("no_times_do_nothing", no_times_do_nothing),
        (
            "slots_that_nothing_wrote_are_zeros_or_missing",
            slots_that_nothing_wrote_are_zeros_or_missing,
        ),
        ("wrong_sizes_are_refused", wrong_sizes_are_refused),
        ("unknown_names_are_refused", unknown_names_are_refused),
        ("missing_frames_are_refused", missing_frames_are_refused),
        ("draws_follow_seed_and_step", draws_follow_seed_and_step),
        ("runs_are_deterministic", runs_are_deterministic),
        ("a_report_is_there", a_report_is_there),
        ("fresh_engines_share_nothing", |backend| {
            let (f, mut engine) = ready(backend)?;
            let (_, mut other) = ready(backend)?;
            put(&mut *other, f.a, &[9.0; N])?;
            expect("a", get(&mut *engine, f.a, 1)?, vec![1.0, 2.0, 3.0, 4.0, 5.0])
        }),
    ];
    let mut trials: Vec<Trial> = checks
        .into_iter()
        .map(|(name, check)| trial(format!("engine::{name}"), make, check))
        .collect();
    let ops = [
        Op::MatMul { transpose_left: false, transpose_right: false },
        Op::Softmax { mult: 1.0 },
        Op::Cast { to: DType::F32 },
    ];
    let denied = ops.iter().find_map(|op| {
        let tiny = Format::new(8, 6, 143, onesigma_format::Specials::Ieee).ok();
        let formats = Format::NAMED.iter().copied().chain(tiny);
        let count = if matches!(op, Op::MatMul { .. }) { 2 } else { 1 };
        let denies = |&format: &Format| {
            let inputs = vec![DType::Float(format); count];
            backend.supports(op, &inputs, DType::F32) == Support::No
        };
        formats.clone().find(denies).map(|format| (op.clone(), format))
    });
    let name = "engine::unsupported_ops_are_typed_errors";
    trials.push(match denied {
        Some((op, format)) => {
            trial(name, make, move |backend| unsupported_ops_are_typed_errors(backend, op, format))
        }
        None => skipped(name, "the backend claims every op that was tried"),
    });
    trials
}
