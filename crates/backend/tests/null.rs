//! The null backend: fit, cost, refusals.

use onesigma_backend::{Backend, Device, Error, NullBackend};
use onesigma_format::Format;
use onesigma_graph::{
    DType, EntryId, Graph, Module, Op, Program, ReduceKind, Role, SlotKind, print,
};

fn product(format: Format) -> Result<Program, onesigma_graph::Error> {
    let mut module = Module::new();
    let dtype = DType::Float(format);
    let x = module.slot("x", SlotKind::Input, [8, 64, 32], dtype, Role::Data)?;
    let w = module.slot("w", SlotKind::State, [16, 32], dtype, Role::Weight)?;
    let y = module.slot("y", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let mut graph = Graph::new();
    let (x, w) = (module.read(&mut graph, x), module.read(&mut graph, w));
    let op = Op::MatMul { transpose_left: false, transpose_right: true };
    let product = graph.op(op, &[x, w]).one()?;
    let axes = [0, 1, 2];
    let sum = graph.reduce(ReduceKind::Sum, &[product], &axes, false, |x| x[0].square())?.one()?;
    graph.write(y, sum);
    module.entry("main", graph)?;
    Program::new(module)
}

#[test]
fn flops_and_bytes_are_counted() -> Result<(), Error> {
    let program = product(Format::E4M3)?;
    let device = Device::h100();
    let backend = NullBackend::new(device.clone());
    let cost = backend.cost(&program, EntryId::new(0))?;
    let (m, k, n) = (8.0 * 64.0, 32.0, 16.0);
    assert_eq!(cost.matmul_flops, 2.0 * m * k * n);
    assert_eq!(cost.flops, 2.0 * m * k * n + 2.0 * m * n);
    assert_eq!(cost.bytes, m * k + n * k + 4.0 * m * n + 4.0 * m * n + 4.0);
    let products = cost.ops.iter().find(|op| op.op == "MatMul").expect("the product is listed");
    let memory = (m * k + n * k + 4.0 * m * n) / device.bytes_per_second;
    let time = (2.0 * m * k * n / 1.979e15).max(memory);
    assert!((products.seconds - time).abs() < 1e-18);
    Ok(())
}

#[test]
fn narrow_operands_are_cheaper() -> Result<(), Error> {
    let seconds = |format| -> Result<f64, Error> {
        Ok(NullBackend::new(Device::h100()).cost(&product(format)?, EntryId::new(0))?.seconds)
    };
    assert!(seconds(Format::E4M3)? < seconds(Format::F16)?);
    assert!(seconds(Format::F16)? < seconds(Format::F32)?);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<(), Error> {
    let program = product(Format::F32)?;
    let needed = program.arena_bytes() as u64;
    let compile = |memory| NullBackend::new(Device::server_core(memory)).compile(&program);
    assert!(compile(needed).is_ok());
    let error = compile(needed - 1).err().expect("one byte is missing");
    assert!(matches!(error, Error::OutOfMemory { needed: n, .. } if n == needed));
    assert!(!print::program_text(&program).is_empty());
    Ok(())
}

#[test]
fn formats_without_a_rate_are_refused() -> Result<(), Error> {
    let mut device = Device::h100();
    device.matmul.pop();
    let backend = NullBackend::new(device);
    assert!(backend.compile(&product(Format::F16)?).is_ok());
    let error = backend.compile(&product(Format::F32)?).err().expect("no F32 products");
    assert!(matches!(error, Error::Unsupported { op: "MatMul", .. }));
    Ok(())
}

#[test]
fn a_run_checks_frames() -> Result<(), Error> {
    let program = product(Format::F32)?;
    let mut engine = NullBackend::new(Device::h100()).compile(&program)?;
    let refused = engine.run(EntryId::new(0), 2);
    assert!(matches!(refused, Err(Error::MissingFrames { .. })));
    let x = program.find_slot("x")?;
    engine.write(x, &vec![0; 8 * 64 * 32 * 4])?;
    engine.run(EntryId::new(0), 2)?;
    assert!(engine.report().notes.iter().any(|note| note.starts_with("main:")));
    Ok(())
}

#[test]
fn slots_keep_the_contract_of_engines() -> Result<(), Error> {
    let program = product(Format::F32)?;
    let mut engine = NullBackend::new(Device::h100()).compile(&program)?;
    let [x, w, y] = ["x", "w", "y"].map(|name| program.find_slot(name));
    let (x, w, y) = (x?, w?, y?);
    let frame = 16 * 32 * 4;
    let wrong = |result| matches!(result, Err(Error::WrongSize { .. }));
    // State starts as zeros, and is one frame.
    let mut weight = vec![7; frame];
    engine.read(w, &mut weight)?;
    assert!(weight.iter().all(|&byte| byte == 0));
    engine.write(w, &vec![3; frame])?;
    engine.read(w, &mut weight)?;
    assert!(weight.iter().all(|&byte| byte == 3));
    assert!(wrong(engine.read(w, &mut vec![0; 2 * frame])));
    assert!(wrong(engine.read(w, &mut [])));
    // An input has what was written.
    let frame = 8 * 64 * 32 * 4;
    assert!(matches!(engine.read(x, &mut vec![0; frame]), Err(Error::MissingFrames { .. })));
    engine.write(x, &[vec![1; frame], vec![2; frame]].concat())?;
    let mut last = vec![0; frame];
    engine.read(x, &mut last)?;
    assert!(last.iter().all(|&byte| byte == 2));
    assert!(wrong(engine.read(x, &mut vec![0; 3 * frame])));
    // An output has one frame for each step of the last run, and one before that.
    engine.read(y, &mut [7; 4])?;
    assert!(wrong(engine.read(y, &mut [0; 8])));
    engine.run(EntryId::new(0), 2)?;
    let mut losses = [7; 8];
    engine.read(y, &mut losses)?;
    assert_eq!(losses, [0; 8]);
    assert!(wrong(engine.read(y, &mut [0; 12])));
    assert!(matches!(engine.write(y, &[0; 4]), Err(Error::NotWritable { .. })));
    Ok(())
}
