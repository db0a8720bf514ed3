//! Whether cooperative matrices compute what they should: they are experimental in wgpu, so a
//! device has to show it before programs use them.

use std::sync::Arc;

use onesigma_backend::{Engine, Result};
use onesigma_format::{Conversion, Format, decode};
use onesigma_graph::{DType, EntryId, Module, Op, Program, Role, SlotKind};

use crate::backend::Tuning;
use crate::engine::WgpuEngine;
use crate::gpu::Gpu;

/// Rows, columns and inner elements: more than one tile, and tiles that go beyond the result.
const SIZES: [usize; 3] = [80, 96, 64];

/// A small integer that depends on row and column.
fn integer(row: usize, column: usize) -> f32 {
    ((row * 7 + column * 3) % 13) as f32 - 6.0
}

/// Products of small integers, which are exact, with each operand as it is and transposed, in F16
/// and E4M3.
///
/// # Errors
/// Those of the engine.
pub(crate) fn matrices_are_right(gpu: &Arc<Gpu>, segment: usize) -> Result<bool> {
    for format in [Format::F16, Format::E4M3] {
        for (transpose_left, transpose_right) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            if !product_is_right(gpu, segment, format, transpose_left, transpose_right)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn product_is_right(
    gpu: &Arc<Gpu>,
    segment: usize,
    format: Format,
    transpose_left: bool,
    transpose_right: bool,
) -> Result<bool> {
    let [m, n, k] = SIZES;
    let codes = |rows: usize, columns: usize, transposed: bool| {
        let (outer, inner) = if transposed { (columns, rows) } else { (rows, columns) };
        let mut codes = Vec::new();
        for i in 0..outer {
            for j in 0..inner {
                let value = if transposed { integer(j, i) } else { integer(i, j) };
                let code = onesigma_format::encode(value, format, Conversion::SATURATE, 0);
                codes.extend_from_slice(&code.to_le_bytes()[..format.bytes()]);
            }
        }
        (vec![outer, inner], codes)
    };
    let (left, right) = (codes(m, k, transpose_left), codes(k, n, transpose_right));
    let mut module = Module::new();
    let dtype = DType::Float(format);
    let role = Role::Activation;
    let x = module.slot("x", SlotKind::State, left.0, dtype, role)?;
    let y = module.slot("y", SlotKind::State, right.0, dtype, role)?;
    let z = module.slot("z", SlotKind::State, [m, n], DType::F32, role)?;
    let mut graph = onesigma_graph::Graph::new();
    let operands = [x, y].map(|slot| module.read(&mut graph, slot));
    let op = Op::MatMul { transpose_left, transpose_right };
    let product = graph.op(op, &operands).one()?;
    graph.write(z, product);
    module.entry("main", graph)?;
    let program = Program::new(module)?;
    let mut engine = WgpuEngine::new(&program, Arc::clone(gpu), segment, Tuning::default())?;
    engine.write(x, &left.1)?;
    engine.write(y, &right.1)?;
    engine.run(EntryId::new(0), 1)?;
    let mut found = vec![0; 4 * m * n];
    engine.read(z, &mut found)?;
    let found =
        found.as_chunks().0.iter().map(|word| decode(u32::from_le_bytes(*word), Format::F32));
    let exact = (0..m * n)
        .map(|at| (0..k).map(|inner| integer(at / n, inner) * integer(inner, at % n)).sum::<f32>());
    Ok(found.eq(exact))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Options;

    #[test]
    #[allow(clippy::print_stdout)] // a skip is said aloud
    fn exact_products_pass() {
        let Ok(gpu) = Gpu::open(&Options::default()) else {
            println!("skipped: no adapter");
            return;
        };
        let segment = gpu.segment_bytes();
        let right = matrices_are_right(&Arc::new(gpu), segment);
        assert!(matches!(right, Ok(true)), "{right:?}");
    }
}
