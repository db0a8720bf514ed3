//! What a backend claims, and how long it takes.

use crate::cases::{name_of, representatives};
use crate::check::{Bench, Operand};
use onesigma_backend::{Backend, Support};
use onesigma_format::Format;
use onesigma_graph::{DType, EntryId, Graph, Op, ReduceKind};
use std::time::Instant;

fn letter(support: Support) -> char {
    match support {
        Support::No => '-',
        Support::Emulated => 'e',
        Support::Native => 'N',
    }
}

/// Prints a Markdown table: for each op and format, support as operand and as result.
pub(crate) fn support(backend: &dyn Backend) {
    println!("`{}` on {}\n", backend.name(), backend.caps().device);
    println!("Operands, then result: N native, e emulated, - not at all.\n");
    let formats: Vec<Format> = Format::NAMED.to_vec();
    let names: Vec<String> = formats.iter().map(|&format| name_of(format)).collect();
    println!("| op | {} |", names.join(" | "));
    println!("| --- |{}", " --- |".repeat(formats.len()));
    for case in representatives() {
        let cells: Vec<String> = formats
            .iter()
            .map(|&format| {
                let narrow = DType::Float(format);
                let types = |dtype| -> Vec<DType> {
                    case.operands
                        .iter()
                        .map(|operand| if operand.dtype == DType::U32 { DType::U32 } else { dtype })
                        .collect()
                };
                let moved = if case.op.is_movement() { narrow } else { DType::F32 };
                let op = match case.op {
                    Op::Cast { .. } => Op::Cast { to: narrow },
                    ref op => op.clone(),
                };
                let read = backend.supports(&case.op, &types(narrow), moved);
                let from = if case.op.is_movement() { narrow } else { DType::F32 };
                let write = backend.supports(&op, &types(from), narrow);
                format!("{}{}", letter(read), letter(write))
            })
            .collect();
        println!("| {} | {} |", case.op.name(), cells.join(" | "));
    }
}

type Build = fn(
    &mut Graph,
    &[onesigma_graph::ValueId],
) -> onesigma_graph::Result<Vec<onesigma_graph::ValueId>>;

/// Prints the median time of some ops of usual sizes.
pub(crate) fn perf(backend: &dyn Backend) -> Result<(), Box<dyn std::error::Error>> {
    let x = |shape: &[usize]| Operand::normal(shape.to_vec());
    let forms: [(&str, Vec<Operand>, f64, Build); 4] = [
        (
            "mat_mul 256x256x256",
            vec![x(&[256, 256]), x(&[256, 256])],
            2.0 * 256e0 * 256e0 * 256e0,
            |g, x| Ok(vec![g.matmul(x[0], x[1]).one()?]),
        ),
        ("map silu 65536", vec![x(&[65536])], 65536.0, |g, x| {
            Ok(vec![g.map(x, |x| x[0].clone() * x[0].sigmoid())?.one()?])
        }),
        ("reduce sum 256x256", vec![x(&[256, 256])], 65536.0, |g, x| {
            Ok(vec![g.reduce(ReduceKind::Sum, x, &[1], false, |x| x[0].clone())?.one()?])
        }),
        ("softmax 256x256", vec![x(&[256, 256])], 65536.0, |g, x| {
            Ok(vec![g.op(Op::Softmax { mult: 1.0 }, x).one()?])
        }),
    ];
    println!("`{}` on {}: median of 9 runs", backend.name(), backend.caps().device);
    for (name, operands, work, build) in forms {
        let bench = Bench::new(&operands, &build, Some(backend))?;
        let contents: Vec<Vec<u8>> = operands.iter().map(|operand| operand.bytes(1)).collect();
        let mut engine = backend.compile(&bench.program)?;
        bench.run(&mut *engine, &contents)?;
        let mut times: Vec<f64> = Vec::new();
        for _ in 0..9 {
            let start = Instant::now();
            engine.run(EntryId::new(0), 1)?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        println!("{name:<24}{:>10.3} ms{:>10.3} G/s", times[4] * 1e3, work / times[4] / 1e9);
    }
    Ok(())
}
