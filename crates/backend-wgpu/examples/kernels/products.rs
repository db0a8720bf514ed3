//! Products by several tiles.

use onesigma_backend::Engine;
use onesigma_backend_wgpu::Tuning;
use onesigma_format::{Conversion, Format, decode};
use onesigma_graph::{DType, Op};
use serde_json::json;

use crate::{Bench, Outcome, seconds};

/// Tiles that are tried; what the numbers mean is told at [`Tuning`].
const VECTORS: [[usize; 7]; 15] = [
    [128, 128, 8, 8, 16, 1, 16],
    [128, 128, 8, 8, 16, 1, 8],
    [128, 128, 8, 8, 16, 2, 8],
    [128, 128, 8, 8, 8, 1, 8],
    [128, 128, 8, 8, 8, 2, 8],
    [128, 128, 8, 8, 32, 1, 8],
    [128, 64, 8, 8, 16, 1, 8],
    [64, 128, 8, 8, 16, 2, 8],
    [64, 64, 8, 8, 16, 2, 8],
    [256, 128, 8, 8, 16, 1, 8],
    [128, 128, 16, 8, 8, 2, 8],
    [256, 128, 16, 8, 8, 2, 8],
    [128, 256, 8, 16, 8, 2, 8],
    [64, 64, 4, 4, 16, 1, 16],
    [64, 64, 4, 4, 32, 1, 8],
];
const MATRICES: [[usize; 5]; 5] = [
    [128, 128, 64, 64, 32],
    [128, 256, 64, 64, 32],
    [256, 128, 64, 64, 32],
    [128, 128, 64, 32, 64],
    [64, 64, 32, 32, 64],
];

impl Bench {
    /// A square product; `tile` as in [`Tuning`]. Compares some elements with f64.
    pub(crate) fn product(
        &mut self,
        format: Format,
        into: Format,
        tuning: Tuning,
        flags: (bool, bool),
    ) -> Outcome<f64> {
        let n = if self.small { 128 } else { 4096 };
        let operands = [(vec![n, n], format), (vec![n, n], format)];
        let op = Op::MatMul { transpose_left: flags.0, transpose_right: flags.1 };
        let (program, mut engine, contents) = self.engine(tuning, &operands, |graph, x| {
            let how = Conversion::SATURATE;
            graph.op(op.clone(), x).stored_as(DType::Float(into), how).one()
        })?;
        let time = seconds(&mut engine, if self.small { 2 } else { 10 })?;
        let slot = program.find_slot("y")?;
        let mut result = vec![0; n * n * into.bytes()];
        engine.read(slot, &mut result)?;
        let value = |bytes: &[u8], format: Format, at: usize| {
            let width = format.bytes();
            let mut word = [0; 4];
            word[..width].copy_from_slice(&bytes[at * width..(at + 1) * width]);
            f64::from(decode(u32::from_le_bytes(word), format))
        };
        let (mut error, mut norm) = (0.0, 0.0);
        for i in 0..97 {
            let (row, column) = ((i * 7919 + 13) % n, (i * 104_729 + 5) % n);
            let exact: f64 = (0..n)
                .map(|k| {
                    let a = if flags.0 { k * n + row } else { row * n + k };
                    let b = if flags.1 { column * n + k } else { k * n + column };
                    value(&contents[0], format, a) * value(&contents[1], format, b)
                })
                .sum();
            error += (value(&result, into, row * n + column) - exact).powi(2);
            norm += exact * exact;
        }
        let tflops = 2.0 * (n as f64).powi(3) / time / 1e12;
        let error = (error / norm).sqrt();
        let tile =
            format!("{:?} {:?}", tuning.matrices.map(Vec::from), tuning.vectors.map(Vec::from));
        println!(
            "product {format} -> {into} {flags:?} {tile}: {tflops:.1} TFLOP/s, error {error:.1e}"
        );
        self.rows.push(json!({
            "bench": "product", "format": format.to_string(), "into": into.to_string(), "n": n,
            "transposed": [flags.0, flags.1], "tile": tile, "tflops": tflops, "error": error,
            "ms": time * 1e3,
        }));
        Ok(tflops)
    }

    pub(crate) fn vectors(&mut self) -> Outcome<()> {
        let plain = (false, false);
        for vectors in VECTORS {
            let tuning = Tuning { vectors: Some(vectors), ..Tuning::default() };
            if let Err(error) = self.product(Format::F32, Format::F32, tuning, plain) {
                println!("product F32 {vectors:?}: {error}");
            }
        }
        for flags in [(false, true), (true, false), (true, true)] {
            self.product(Format::F32, Format::F32, Tuning::default(), flags)?;
        }
        self.product(Format::BF16, Format::BF16, Tuning::default(), plain)?;
        Ok(())
    }

    pub(crate) fn matrices(&mut self) -> Outcome<()> {
        if self.backend.abilities().contains("no cooperative") {
            println!("no cooperative matrices");
            return Ok(());
        }
        let plain = (false, false);
        for matrices in MATRICES {
            self.layouts(matrices)?;
        }
        let chosen = Tuning::default();
        for format in [Format::F16, Format::E4M3, Format::E5M2] {
            for flags in [plain, (false, true), (true, false), (true, true)] {
                self.product(format, Format::F32, chosen, flags)?;
            }
        }
        self.product(Format::F16, Format::F16, chosen, plain)?;
        self.product(Format::E4M3, Format::F16, chosen, plain)?;
        Ok(())
    }

    /// Products by one tile; every operand in both layouts.
    pub(crate) fn layouts(&mut self, matrices: [usize; 5]) -> Outcome<()> {
        let tuning = Tuning { matrices: Some(matrices), ..Tuning::default() };
        for (format, flags) in [
            (Format::F16, (false, false)),
            (Format::F16, (false, true)),
            (Format::F16, (true, false)),
            (Format::E4M3, (false, false)),
            (Format::E4M3, (false, true)),
        ] {
            self.product(format, Format::F32, tuning, flags)?;
        }
        Ok(())
    }
}
