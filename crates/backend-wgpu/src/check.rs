//! Whether cooperative matrices compute what they should: they are experimental in wgpu, so a
//! device has to show it before programs use them.

use std::sync::Arc;

use onesigma_backend::{Engine, Result};
use onesigma_format::{Conversion, Format, decode};
use onesigma_graph::{DType, EntryId, Module, Op, Program, Role, SlotKind};

use crate::backend::Tuning;
use crate::engine::WgpuEngine;
use crate::gpu::{Gpu, on_processors};
use crate::shader::matrices::{self, Tile};

/// A small integer that depends on row and column; NaN in one place of each operand if asked for.
fn integer(row: usize, column: usize, nan: bool) -> f32 {
    match nan && (row, column) == (13, 21) {
        true => f32::NAN,
        false => ((row * 7 + column * 3) % 13) as f32 - 6.0,
    }
}

/// Products of small integers, which are exact, by every tile that the device takes, with each
/// operand as it is and transposed, in F16 and E4M3: one that no tile divides, and one of whole
/// tiles, in which there are NaN and the left numbers are counted in the smallest subnormal one.
/// Returns what is wrong first.
///
/// # Errors
/// Those of the engine.
pub(crate) fn wrong_product(gpu: &Arc<Gpu>) -> Result<Option<String>> {
    let mut cases = Vec::new();
    let abilities = gpu.abilities;
    let tiles = abilities.matrices.map(|device| matrices::tiles(device, abilities.shared_bytes));
    for tile in tiles.unwrap_or_default() {
        let Tile { bm, bn, bk, .. } = tile;
        for format in [Format::F16, Format::E4M3] {
            for transposed in [(false, false), (false, true), (true, false), (true, true)] {
                let least = format.min_subnormal() as f32;
                let sizes = [([bm + 16, bn + 32, bk + 8], 1.0), ([bm, bn, 2 * bk], least)];
                cases.extend(sizes.map(|(sizes, unit)| (tile, format, transposed, sizes, unit)));
            }
        }
    }
    let found = on_processors(&cases, |&(tile, format, transposed, sizes, unit)| {
        let wrong = wrong_element(gpu, tile, format, transposed, sizes, unit)?;
        Ok(wrong.map(|wrong| {
            format!("product of {format} in {sizes:?}, transposed {transposed:?}: {wrong}")
        }))
    })?;
    Ok(found.into_iter().flatten().next())
}

/// Whether a product of a subnormal number is 0.
///
/// # Errors
/// Those of the engine.
pub(crate) fn subnormals_are_flushed(gpu: &Arc<Gpu>) -> Result<bool> {
    let mut module = Module::new();
    let x = module.slot("x", SlotKind::State, [4], DType::F32, Role::Activation)?;
    let mut graph = onesigma_graph::Graph::new();
    let read = module.read(&mut graph, x);
    let larger = graph.map(&[read], |x| x[0].clone() * 2f64.powi(60))?.one()?;
    graph.write(x, larger);
    module.entry("main", graph)?;
    let program = Program::new(module)?;
    let mut engine =
        WgpuEngine::new(&program, Arc::clone(gpu), gpu.segment_bytes(), Tuning::default())?;
    engine.write(x, &2f32.powi(-140).to_le_bytes().repeat(4))?;
    engine.run(EntryId::new(0), 1)?;
    let mut found = [0; 16];
    engine.read(x, &mut found)?;
    Ok(found == [0; 16])
}

fn wrong_element(
    gpu: &Arc<Gpu>,
    tile: Tile,
    format: Format,
    (transpose_left, transpose_right): (bool, bool),
    [m, n, k]: [usize; 3],
    unit: f32,
) -> Result<Option<String>> {
    let nan = unit != 1.0;
    let codes = |rows: usize, columns: usize, transposed: bool, unit: f32| {
        let (outer, inner) = if transposed { (columns, rows) } else { (rows, columns) };
        let mut codes = Vec::new();
        for i in 0..outer {
            for j in 0..inner {
                let value = if transposed { integer(j, i, nan) } else { integer(i, j, nan) };
                let code = onesigma_format::encode(unit * value, format, Conversion::SATURATE, 0);
                codes.extend_from_slice(&code.to_le_bytes()[..format.bytes()]);
            }
        }
        (vec![outer, inner], codes)
    };
    let (left, right) = (codes(m, k, transpose_left, unit), codes(k, n, transpose_right, 1.0));
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
    let Tile { bm, bn, sm, sn, bk } = tile;
    let tuning = Tuning { matrices: Some([bm, bn, sm, sn, bk]), ..Tuning::default() };
    let mut engine = WgpuEngine::new(&program, Arc::clone(gpu), gpu.segment_bytes(), tuning)?;
    engine.write(x, &left.1)?;
    engine.write(y, &right.1)?;
    engine.run(EntryId::new(0), 1)?;
    let mut found = vec![0; 4 * m * n];
    engine.read(z, &mut found)?;
    let found =
        found.as_chunks().0.iter().map(|word| decode(u32::from_le_bytes(*word), Format::F32));
    let exact = (0..m * n).map(|at| {
        let terms = (0..k).map(|inner| integer(at / n, inner, nan) * integer(inner, at % n, nan));
        unit * terms.sum::<f32>()
    });
    // The second pattern has NaN in row 13 and column 21.
    let same = |found: f32, exact: f32| found == exact || (found.is_nan() && exact.is_nan());
    let wrong = found.zip(exact).enumerate().find(|(_, (found, exact))| !same(*found, *exact));
    Ok(wrong.map(|(at, (found, exact))| {
        format!("{found} at row {} and column {}, not {exact}", at / n, at % n)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{CooperativeMatrices, Options};

    #[test]
    #[allow(clippy::print_stdout)] // a skip is said aloud
    fn exact_products_pass() {
        let options = Options { matrices: CooperativeMatrices::Everywhere, ..Options::default() };
        let Ok(gpu) = pollster::block_on(Gpu::open(&options)) else {
            println!("skipped: no adapter");
            return;
        };
        let wrong = wrong_product(&Arc::new(gpu));
        assert!(matches!(wrong, Ok(None)), "{wrong:?}");
    }
}
