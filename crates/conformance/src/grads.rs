//! Gradients that autodiff builds, on the backend and in f64.
//!
//! That autodiff itself is right is tested against finite differences, in f64, in the crate
//! `onesigma-backend`.

use crate::check::{Operand, against_reference};
use crate::{Make, tolerance, trial};
use libtest_mimic::Trial;
use onesigma_graph::{DType, Graph, Op, ReduceKind, Result, ValueId, autodiff};

type Forward = fn(&mut Graph, &[ValueId]) -> Result<ValueId>;

fn forms() -> Vec<(&'static str, Vec<Operand>, Forward)> {
    let x = |shape: &[usize]| Operand::normal(shape.to_vec());
    let mask = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0];
    let mask = Operand { dtype: DType::U32, ..Operand::values([2, 6], &mask) };
    vec![
        ("mat_mul", vec![x(&[2, 5, 7]), x(&[7, 3])], |g, x| {
            g.matmul(x[0], x[1]).alpha(0.4).beta(&[0.5, 0.3]).one()
        }),
        ("mat_mul_transposed", vec![x(&[2, 7, 5]), x(&[2, 3, 7])], |g, x| {
            g.op(Op::MatMul { transpose_left: true, transpose_right: true }, x).one()
        }),
        ("gelu", vec![x(&[5, 9])], |g, x| {
            let root = std::f64::consts::FRAC_1_SQRT_2;
            g.map(x, |x| x[0].clone() * 0.5 * ((x[0].clone() * root).erf() + 1.0))?.one()
        }),
        ("broadcast", vec![x(&[3, 4, 5]), x(&[4, 1])], |g, x| {
            g.map(x, |x| x[0].clone() * x[1].sigmoid())?.one()
        }),
        ("slice_and_concat", vec![x(&[3, 6])], |g, x| {
            let left = g.op(Op::Slice { axis: 1, start: 0, len: 2 }, x).one()?;
            let right = g.op(Op::Slice { axis: 1, start: 2, len: 4 }, x).one()?;
            g.op(Op::Concat { axis: 1 }, &[right, left]).one()
        }),
        ("softmax", vec![x(&[4, 11])], |g, x| g.op(Op::Softmax { mult: 1.0 }, x).alpha(3.0).one()),
        ("layer_norm", vec![x(&[4, 11]), x(&[11]), x(&[11])], |g, x| {
            g.op(Op::LayerNorm { eps: 1e-5 }, x).beta(&[1.0, 0.5, 0.25]).one()
        }),
        ("rms_norm", vec![x(&[4, 11]), x(&[11])], |g, x| g.op(Op::RmsNorm { eps: 1e-5 }, x).one()),
        ("attention", vec![x(&[2, 6, 4, 8]), x(&[2, 6, 2, 8]), x(&[2, 6, 2, 8])], |g, x| {
            Ok(g.op(Op::Attention { causal: true, logit_scale: 0.35 }, x).alpha(1.5).all()?[0])
        }),
        (
            "attention_masked",
            vec![x(&[2, 6, 4, 8]), x(&[2, 6, 2, 8]), x(&[2, 6, 2, 8]), mask],
            |g, x| {
                Ok(g.op(Op::Attention { causal: false, logit_scale: 0.35 }, x).alpha(1.5).all()?[0])
            },
        ),
        ("rotation", vec![x(&[3, 5]), x(&[3, 5])], |g, x| {
            g.map(x, |x| x[0].clone() * x[1].cos() - x[1].sin())?.one()
        }),
        ("embedding", vec![x(&[7, 5]), Operand::ids([3, 4], 7)], |g, x| g.op(Op::Gather, x).one()),
        ("cross_entropy", vec![x(&[3, 4, 9]), Operand::ids([3, 4], 9)], |g, x| {
            g.op(Op::CrossEntropy { mult: 1.0, mean: true }, x).one()
        }),
    ]
}

pub(crate) fn trials(make: Make) -> Vec<Trial> {
    forms()
        .into_iter()
        .map(|(name, operands, forward)| {
            trial(format!("grad::{name}"), make, move |backend| {
                let build = |graph: &mut Graph, x: &[ValueId]| {
                    let y = forward(graph, x)?;
                    let axes: Vec<isize> = (0..graph.shape(y).rank() as isize).collect();
                    let loss = graph
                        .reduce(ReduceKind::Sum, &[y], &axes, false, |y| {
                            y[0].square() + y[0].clone()
                        })?
                        .one()?;
                    let floats: Vec<ValueId> = x
                        .iter()
                        .copied()
                        .filter(|&x| graph.value(x).dtype.format().is_some())
                        .collect();
                    let mut results = autodiff::gradients(graph, loss, &floats, None)?;
                    results.push(loss);
                    Ok(results)
                };
                against_reference(backend, &operands, &build, tolerance::CHAIN)
            })
        })
        .collect()
}
