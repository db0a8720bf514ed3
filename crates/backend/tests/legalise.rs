//! Legalisation: what it rewrites, what it refuses, and that the numbers stay.

use onesigma_backend::{Engine, Error, RefBackend, Support};
use onesigma_format::{Conversion, Format, Overflow, Rounding};
use onesigma_graph::passes::legalise::{RewriteKind, legalise, node_support};
use onesigma_graph::{DType, EntryId, Graph, Module, Op, Program, Role, SlotKind, ValueId};

const E4M3: DType = DType::Float(Format::E4M3);

/// Products of E4M3, a stochastic E4M3 result, a norm, a slice of E4M3.
fn module() -> Result<Module, onesigma_graph::Error> {
    let mut module = Module::new();
    module.seed_slot()?;
    module.step_slot()?;
    let x = module.slot("x", SlotKind::Input, [6, 8], E4M3, Role::Data)?;
    let w = module.slot("w", SlotKind::State, [8, 8], E4M3, Role::Weight)?;
    let mut graph = Graph::new();
    let (x, w) = (module.read(&mut graph, x), module.read(&mut graph, w));
    let how =
        Conversion { rounding: Rounding::Stochastic { bits: 16 }, overflow: Overflow::Saturate };
    let product = graph.matmul(x, w).alpha(0.4).stored_as(E4M3, how).one()?;
    let norm = graph.op(Op::RmsNorm { eps: 1e-3 }, &[product]).stored_as(E4M3, how).one()?;
    let part = graph.op(Op::Slice { axis: 1, start: 1, len: 3 }, &[norm]).one()?;
    let mut output =
        |graph: &mut Graph, name: &str, value: ValueId| -> onesigma_graph::Result<()> {
            let info = graph.value(value).clone();
            let slot = module.slot(name, SlotKind::Output, info.shape, info.dtype, info.role)?;
            graph.write(slot, value);
            Ok(())
        };
    output(&mut graph, "product", product)?;
    output(&mut graph, "norm", norm)?;
    output(&mut graph, "part", part)?;
    module.entry("main", graph)?;
    Ok(module)
}

/// F32 only, but for casts; no fused op.
fn plain(op: &Op, inputs: &[DType], output: DType) -> Support {
    let wide = inputs.iter().chain([&output]).all(|&dtype| dtype == DType::F32);
    match op {
        Op::Cast { .. } => Support::Native,
        _ if wide && !op.is_fused() => Support::Native,
        _ => Support::No,
    }
}

fn run(program: &Program) -> Result<Vec<Vec<u8>>, Error> {
    let mut engine = RefBackend::rounding().executor(program)?;
    let codes = |count: usize| -> Vec<u8> { (0..count).map(|n| (n * 37 % 120) as u8).collect() };
    engine.write(program.find_slot("x")?, &codes(48))?;
    engine.write(program.find_slot("w")?, &codes(64))?;
    engine.write(program.find_slot("seed")?, &[5; 8])?;
    engine.write(program.find_slot("step")?, &[1, 0, 0, 0])?;
    engine.run(EntryId::new(0), 1)?;
    [("product", 48), ("norm", 48), ("part", 18)]
        .into_iter()
        .map(|(name, bytes)| {
            let mut content = vec![0; bytes];
            engine.read(program.find_slot(name)?, &mut content)?;
            Ok(content)
        })
        .collect()
}

#[test]
fn a_legal_program_computes_the_same_bits() -> Result<(), Error> {
    let mut module = module()?;
    let expected = run(&Program::new(module.clone())?)?;
    let mut rewrites = Vec::new();
    module.rewrite(|graph| {
        let legal = legalise(graph, &plain, false)?;
        rewrites.extend(legal.rewrites);
        for node in legal.graph.nodes() {
            assert_ne!(node_support(&legal.graph, node, &plain), Support::No, "{}", node.name);
        }
        Ok(legal.graph)
    })?;
    assert_eq!(run(&Program::new(module)?)?, expected);
    let kinds = |of: fn(&RewriteKind) -> bool| rewrites.iter().filter(|r| of(&r.kind)).count();
    assert_eq!(kinds(|kind| matches!(kind, RewriteKind::Decomposed)), 1);
    assert!(kinds(|kind| matches!(kind, RewriteKind::OperandsUpcast(_))) >= 3);
    assert!(kinds(|kind| matches!(kind, RewriteKind::ResultCast(_))) >= 3);
    assert!(rewrites.iter().all(|rewrite| rewrite.to_string().contains(rewrite.effect())));
    Ok(())
}

#[test]
fn a_supported_graph_stays_as_it_is() -> Result<(), Error> {
    let module = module()?;
    let graph = &module.entries()[0].graph;
    let legal = legalise(graph, &|_, _, _| Support::Native, true)?;
    assert_eq!(&legal.graph, graph);
    assert!(legal.rewrites.is_empty());
    Ok(())
}

#[test]
fn strict_refuses_what_it_would_rewrite() -> Result<(), Error> {
    let module = module()?;
    let error = legalise(&module.entries()[0].graph, &plain, true).expect_err("E4M3 products");
    assert!(matches!(error, onesigma_graph::Error::Unsupported { op: "MatMul", .. }));
    Ok(())
}

#[test]
fn a_core_op_that_is_nowhere_is_an_error() -> Result<(), Error> {
    let module = module()?;
    let without = |op: &Op, inputs: &[DType], output: DType| match op {
        Op::Reduce { .. } => Support::No,
        _ => plain(op, inputs, output),
    };
    let error = legalise(&module.entries()[0].graph, &without, false).expect_err("no reductions");
    assert!(matches!(error, onesigma_graph::Error::Unsupported { op: "Reduce", .. }), "{error}");
    Ok(())
}
