//! Products by several tiles.

use onesigma_backend::Engine;
use onesigma_backend_wgpu::Tuning;
use onesigma_format::{Conversion, Format, decode};
use onesigma_graph::{DType, Op};
use serde_json::json;

use crate::{Bench, Outcome, seconds};

/// Tiles that are tried; what the numbers mean is told at [`Tuning`].
const VECTORS: [[usize; 7]; 16] = [
    [128, 128, 8, 8, 16, 1, 16],
    [128, 128, 8, 8, 16, 1, 8],
    [128, 128, 8, 8, 16, 2, 8],
    [128, 128, 8, 8, 8, 1, 8],
    [128, 128, 8, 8, 8, 2, 8],
    [128, 128, 8, 8, 32, 1, 8],
    [128, 64, 8, 8, 16, 1, 8],
    [64, 128, 8, 8, 16, 2, 8],
    [64, 64, 8, 8, 16, 1, 8],
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
/// Tiles that are tried for the products of a GPT.
const MODEL: [[usize; 5]; 6] = [
    [128, 128, 64, 64, 32],
    [128, 64, 64, 32, 32],
    [64, 128, 32, 64, 32],
    [128, 64, 64, 64, 32],
    [64, 64, 32, 32, 64],
    [64, 64, 32, 32, 32],
];

impl Bench {
    /// A square product, see [`product_of`](Self::product_of).
    pub(crate) fn product(
        &mut self,
        format: Format,
        into: Format,
        tuning: Tuning,
        flags: (bool, bool),
    ) -> Outcome<()> {
        let n = if self.small { 128 } else { 4096 };
        self.product_of([n; 3], [format; 2], into, tuning, flags)
    }

    /// A product of given rows, columns and inner elements; the tile as in [`Tuning`]. Compares some
    /// elements with f64.
    fn product_of(
        &mut self,
        [m, n, inner]: [usize; 3],
        formats: [Format; 2],
        into: Format,
        tuning: Tuning,
        flags: (bool, bool),
    ) -> Outcome<()> {
        let of = |rows, columns, transposed| match transposed {
            true => vec![columns, rows],
            false => vec![rows, columns],
        };
        let operands = [(of(m, inner, flags.0), formats[0]), (of(inner, n, flags.1), formats[1])];
        let op = Op::MatMul { transpose_left: flags.0, transpose_right: flags.1 };
        let (program, mut engine, contents) = self.engine(tuning, &operands, |graph, x| {
            let how = Conversion::SATURATE;
            graph.op(op.clone(), x).stored_as(DType::Float(into), how).one()
        })?;
        let time = seconds(&mut engine, if self.small { 2 } else { 10 })?;
        let slot = program.find_slot("y")?;
        let mut result = vec![0; m * n * into.bytes()];
        engine.read(slot, &mut result)?;
        let value = |bytes: &[u8], format: Format, at: usize| {
            let width = format.bytes();
            let mut word = [0; 4];
            word[..width].copy_from_slice(&bytes[at * width..(at + 1) * width]);
            f64::from(decode(u32::from_le_bytes(word), format))
        };
        let (mut error, mut norm) = (0.0, 0.0);
        for i in 0..97 {
            let (row, column) = ((i * 7919 + 13) % m, (i * 104_729 + 5) % n);
            let exact: f64 = (0..inner)
                .map(|k| {
                    let a = if flags.0 { k * m + row } else { row * inner + k };
                    let b = if flags.1 { column * inner + k } else { k * n + column };
                    value(&contents[0], formats[0], a) * value(&contents[1], formats[1], b)
                })
                .sum();
            error += (value(&result, into, row * n + column) - exact).powi(2);
            norm += exact * exact;
        }
        let tflops = 2.0 * (m * n * inner) as f64 / time / 1e12;
        let error = (error / norm).sqrt();
        let tile =
            format!("{:?} {:?}", tuning.matrices.map(Vec::from), tuning.vectors.map(Vec::from));
        let formats = formats.map(|format| format.to_string());
        println!(
            "product {m} x {n} x {inner} {} x {} -> {into} {flags:?} {tile}: {tflops:.1} TFLOP/s, \
             error {error:.1e}",
            formats[0], formats[1]
        );
        self.rows.push(json!({
            "bench": "product", "sizes": [m, n, inner], "formats": formats, "into": into.to_string(),
            "transposed": [flags.0, flags.1], "tile": tile, "tflops": tflops, "error": error,
            "ms": time * 1e3,
        }));
        Ok(())
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

    fn has_matrices(&self) -> bool {
        !self.backend.abilities().contains("no cooperative")
    }

    pub(crate) fn matrices(&mut self) -> Outcome<()> {
        if !self.has_matrices() {
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

    /// Products as in a training step of a GPT of width 768.
    pub(crate) fn model(&mut self) -> Outcome<()> {
        let scale = if self.small { 16 } else { 1 };
        let [forward, back] = [[Format::E4M3; 2], [Format::E5M2, Format::E4M3]];
        for (sizes, formats, flags) in [
            ([4096, 768, 768], forward, (false, true)),
            ([4096, 3072, 768], forward, (false, true)),
            ([4096, 768, 3072], forward, (false, true)),
            ([4096, 8192, 768], [Format::F16; 2], (false, true)),
            ([4096, 768, 768], back, (false, false)),
            ([4096, 3072, 768], back, (false, false)),
            ([4096, 768, 3072], back, (false, false)),
            ([768, 768, 4096], back, (true, false)),
            ([768, 3072, 4096], back, (true, false)),
        ] {
            let sizes = sizes.map(|size| size / scale);
            self.product_of(sizes, formats, Format::F16, Tuning::default(), flags)?;
            let tiles = if self.has_matrices() { &MODEL[..] } else { &[] };
            for &tile in tiles {
                let tuning = Tuning { matrices: Some(tile), ..Tuning::default() };
                self.product_of(sizes, formats, Format::F16, tuning, flags)?;
            }
        }
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
            (Format::E5M2, (false, false)),
            (Format::E5M2, (false, true)),
        ] {
            self.product(format, Format::F32, tuning, flags)?;
        }
        Ok(())
    }
}
