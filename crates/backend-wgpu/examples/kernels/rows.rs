//! Kernels whose limit is memory, beside a copy.

use onesigma_backend_wgpu::Tuning;
use onesigma_format::{Conversion, Format};
use onesigma_graph::{DType, Graph, Op, ValueId};
use serde_json::json;

use crate::{Bench, Outcome, seconds};

impl Bench {
    /// An op whose limit is memory; `bytes` is what it has to move.
    pub(crate) fn memory_bound(
        &mut self,
        name: &str,
        copy: f64,
        operands: &[(Vec<usize>, Format)],
        build: impl Fn(&mut Graph, &[ValueId]) -> onesigma_graph::Result<ValueId>,
    ) -> Outcome<f64> {
        let (program, mut engine, _) = self.engine(self.tuning, operands, build)?;
        let bytes: usize = program.slots().iter().map(|slot| slot.bytes()).sum();
        let time = seconds(&mut engine, if self.small { 2 } else { 20 })?;
        let rate = bytes as f64 / time / 1e9;
        let share = if copy > 0.0 { rate / copy } else { 1.0 };
        println!("{name}: {rate:.0} GB/s, {share:.2} of a copy");
        self.rows.push(json!({
            "bench": "memory", "name": name, "gb_per_s": rate, "of_copy": share, "us": time * 1e6,
        }));
        Ok(rate)
    }

    pub(crate) fn rows(&mut self) -> Outcome<()> {
        let (rows, width) = if self.small { (64, 256) } else { (16_384, 4096) };
        let of = |format: Format| vec![(vec![rows, width], format)];
        // A state copied to another is one kernel that moves words as they are.
        let copy = self.memory_bound("copy F32", 0.0, &of(Format::F32), |_, x| Ok(x[0]))?;
        for (from, to) in [
            (Format::F32, Format::F16),
            (Format::F32, Format::BF16),
            (Format::F32, Format::E4M3),
            (Format::F32, Format::E5M2),
            (Format::BF16, Format::E4M3),
            (Format::BF16, Format::E5M2),
            (Format::F16, Format::E4M3),
            (Format::E4M3, Format::F16),
            (Format::E5M2, Format::BF16),
            (Format::F16, Format::F32),
        ] {
            let to_type = DType::Float(to);
            let narrow = from.bytes() <= 2 && to.bytes() <= 2;
            for quads in if narrow { &[Some(1), Some(2), Some(4)][..] } else { &[None] } {
                let name = match quads {
                    Some(quads) => format!("cast {from} to {to}, {quads} quads"),
                    None => format!("cast {from} to {to}"),
                };
                self.tuning = Tuning { quads: *quads, ..Tuning::default() };
                self.memory_bound(&name, copy, &of(from), |graph, x| {
                    let op = Op::Cast { to: to_type };
                    graph.op(op, x).stored_as(to_type, Conversion::SATURATE).one()
                })?;
            }
            self.tuning = Tuning::default();
        }
        self.memory_bound("gelu F32", copy, &of(Format::F32), |graph, x| {
            graph.map(x, |x| x[0].clone() * (x[0].clone() * 1.702).sigmoid())?.one()
        })?;
        let two = [of(Format::F32), of(Format::F32)].concat();
        self.memory_bound("add F32", copy, &two, |graph, x| {
            graph.map(x, |x| x[0].clone() + x[1].clone())?.one()
        })?;
        for (name, op) in [
            ("softmax", Op::Softmax { mult: 1.0 }),
            ("layer_norm", Op::LayerNorm { eps: 1e-5 }),
            ("rms_norm", Op::RmsNorm { eps: 1e-5 }),
        ] {
            self.memory_bound(name, copy, &of(Format::F32), |graph, x| {
                graph.op(op.clone(), x).one()
            })?;
        }
        self.memory_bound("rms_norm_grad", copy, &two, |graph, x| {
            graph.op(Op::RmsNormGrad { eps: 1e-5 }, x).one()
        })?;
        self.memory_bound("sum of columns", copy, &of(Format::F32), |graph, x| {
            graph.reduce(onesigma_graph::ReduceKind::Sum, x, &[0], false, |x| x[0].clone())?.one()
        })?;
        self.memory_bound("sum of rows", copy, &of(Format::F32), |graph, x| {
            graph.reduce(onesigma_graph::ReduceKind::Sum, x, &[1], false, |x| x[0].clone())?.one()
        })?;
        Ok(())
    }
}
