//! Gradients of every op, by autodiff, against central finite differences in f64.

mod common;

use common::{Evaluation, Operand, TestResult, float, ids, numbers};
use onesigma_backend::Error;
use onesigma_graph::expr::{Expr, Term};
use onesigma_graph::{DType, Graph, Op, ReduceKind, Shape, ValueId, autodiff};

/// Checks the gradients of `sum(c * f(operands))` for all float operands, where `build` adds an op
/// with the given scales and `c` has no pattern. The forward scale is 0.75, the backward scale of
/// operand `i` is `0.75 (i + 2)`, so its gradient must be `i + 2` times the true one.
fn check(
    operands: &[Operand],
    build: impl Fn(&mut Graph, &[ValueId], f64, &[f64]) -> onesigma_graph::Result<ValueId>,
) -> TestResult {
    check_scaled(operands, 0.75, build)
}

fn check_scaled(
    operands: &[Operand],
    alpha: f64,
    build: impl Fn(&mut Graph, &[ValueId], f64, &[f64]) -> onesigma_graph::Result<ValueId>,
) -> TestResult {
    let floats: Vec<usize> =
        (0..operands.len()).filter(|&n| operands[n].dtype != DType::U32).collect();
    let scaled = alpha != 1.0;
    let ratio = |n: usize| if scaled { n as f64 + 2.0 } else { 1.0 };
    let beta: Vec<f64> = (0..operands.len()).map(|n| alpha * ratio(n)).collect();
    let mut evaluation = Evaluation::new(operands, |graph, x| {
        let y = build(graph, x, alpha, &beta)?;
        let shape = graph.shape(y).clone();
        let weights = pattern(graph, &shape)?;
        let axes: Vec<isize> = (0..shape.rank() as isize).collect();
        let loss = graph
            .reduce(ReduceKind::Sum, &[y, weights], &axes, false, |x| x[0].clone() * x[1].clone())?
            .one()?;
        let parameters: Vec<ValueId> = floats.iter().map(|&n| x[n]).collect();
        let mut results = autodiff::gradients(graph, loss, &parameters, None)?;
        results.insert(0, loss);
        Ok(results)
    })?;
    let results = evaluation.run()?;
    let h = 1e-5;
    for (&n, gradient) in floats.iter().zip(&results[1..]) {
        let largest = gradient.iter().fold(0.0_f64, |max, g| max.max(g.abs()));
        assert!(largest > 0.0, "the gradient of operand {n} is zero");
        for element in 0..operands[n].data.len() {
            let mut loss_at = |by: f64| -> Result<f64, Error> {
                let mut data = operands[n].data.clone();
                data[element] += by;
                evaluation.executor.set_tensor(evaluation.operands[n], data)?;
                Ok(evaluation.run()?[0][0])
            };
            let numeric = (loss_at(h)? - loss_at(-h)?) / (2.0 * h) * ratio(n);
            loss_at(0.0)?;
            let error = (numeric - gradient[element]).abs();
            assert!(
                error <= 1e-7 * (largest + numeric.abs()) + 1e-9,
                "operand {n}, element {element}: autodiff {} against {numeric}",
                gradient[element]
            );
        }
    }
    Ok(())
}

/// A tensor without pattern that depends on no operand: cos of the flat index.
fn pattern(graph: &mut Graph, shape: &Shape) -> onesigma_graph::Result<ValueId> {
    let strides = shape.strides();
    let expr = Expr::new(0, |_| {
        let flat = (0..shape.rank())
            .fold(Term::constant(0.3), |sum, axis| sum + Term::index(axis) * strides[axis] as f64);
        // The fraction of a multiple of the golden ratio, by a smooth detour: tanh(sin-like).
        let wave = flat.clone() * 0.618;
        (wave.clone() - (wave.clone() * 0.25).tanh() * 3.0).tanh() * 0.7 + 0.2
            - (wave - 2.0).square() * 0.01
    });
    graph.op(Op::Map { expr, shape: shape.clone() }, &[]).one()
}

fn check_op(op: Op, operands: &[Operand]) -> TestResult {
    check(operands, |graph, x, alpha, beta| {
        let all = graph.op(op.clone(), x).alpha(alpha).beta(beta).all()?;
        Ok(all[0])
    })
}

fn check_unscaled(op: Op, operands: &[Operand]) -> TestResult {
    check_scaled(operands, 1.0, |graph, x, _, _| graph.op(op.clone(), x).one())
}

#[test]
fn mat_mul_in_every_form() -> TestResult {
    for (transpose_left, transpose_right) in
        [(false, false), (false, true), (true, false), (true, true)]
    {
        let op = Op::MatMul { transpose_left, transpose_right };
        let left = |lead: &[usize]| {
            let matrix = if transpose_left { [4, 3] } else { [3, 4] };
            [lead, &matrix].concat()
        };
        let right = |lead: &[usize]| {
            let matrix = if transpose_right { [2, 4] } else { [4, 2] };
            [lead, &matrix].concat()
        };
        check_op(op.clone(), &[float(1, left(&[])), float(2, right(&[]))])?;
        check_op(op.clone(), &[float(1, left(&[2, 3])), float(2, right(&[2, 3]))])?;
        if !transpose_left {
            check_op(op, &[float(1, left(&[2, 2])), float(2, right(&[]))])?;
        }
    }
    Ok(())
}

#[test]
fn maps_of_every_function() -> TestResult {
    let positive = |seed| {
        let mut x = float(seed, [3, 4]);
        x.data.iter_mut().for_each(|value| *value = value.abs() + 0.3);
        x
    };
    let unary: [fn(&Term) -> Term; 9] = [
        |x| -x.clone(),
        Term::abs,
        Term::exp,
        Term::ln,
        Term::sqrt,
        Term::rsqrt,
        Term::tanh,
        Term::erf,
        Term::sigmoid,
    ];
    for f in unary {
        check(&[positive(3)], |graph, x, alpha, beta| {
            graph.map(x, |x| f(&x[0]))?.alpha(alpha).beta(beta).one()
        })?;
    }
    let binary: [fn(&Term, &Term) -> Term; 7] = [
        |a, b| a.clone() + b.clone() * 2.0,
        |a, b| a.clone() - b.clone(),
        |a, b| a.clone() * b.clone(),
        |a, b| a.clone() / b.clone(),
        |a, b| a.min(b.clone()) + a.clone() + b.clone(),
        |a, b| a.max(b.clone()) + a.clone() + b.clone(),
        |a, b| a.less(b.clone()).select(a.square(), b.exp()) + a.clone() * b.clone(),
    ];
    for f in binary {
        check(&[positive(4), positive(5)], |graph, x, alpha, beta| {
            graph.map(x, |x| f(&x[0], &x[1]))?.alpha(alpha).beta(beta).one()
        })?;
    }
    Ok(())
}

#[test]
fn broadcast_operands_sum_their_gradient() -> TestResult {
    for other in [vec![], vec![4], vec![3, 1], vec![2, 1, 4], vec![1, 1, 1], vec![1]] {
        check(&[float(1, [2, 3, 4]), float(2, other)], |graph, x, alpha, beta| {
            graph.map(x, |x| x[0].clone() * x[1].tanh())?.alpha(alpha).beta(beta).one()
        })?;
    }
    Ok(())
}

#[test]
fn sums_over_any_axes() -> TestResult {
    for (axes, keep_dims) in [
        (vec![0], false),
        (vec![1], true),
        (vec![0, 2], false),
        (vec![0, 1, 2], true),
        (vec![], false),
    ] {
        check(&[float(1, [2, 3, 4]), float(2, [3, 1])], |graph, x, alpha, beta| {
            graph
                .reduce(ReduceKind::Sum, x, &axes, keep_dims, |x| x[0].square() * x[1].clone())?
                .alpha(alpha)
                .beta(beta)
                .one()
        })?;
    }
    Ok(())
}

#[test]
fn gather_and_scatter() -> TestResult {
    check_op(Op::Gather, &[float(1, [5, 3]), ids([2, 2], &[4, 0, 4, 1])])?;
    check_op(Op::ScatterAdd { rows: 5 }, &[float(1, [2, 2, 3]), ids([2, 2], &[4, 0, 4, 9])])
}

#[test]
fn movement() -> TestResult {
    check_unscaled(Op::Permute { axes: vec![2, 0, 1] }, &[float(1, [2, 3, 4])])?;
    check_unscaled(Op::Reshape { shape: [6, 4].into() }, &[float(1, [2, 3, 4])])?;
    for (start, len) in [(0, 1), (1, 2), (2, 1), (0, 3)] {
        check_unscaled(Op::Slice { axis: 1, start, len }, &[float(1, [2, 3, 4])])?;
    }
    check_unscaled(
        Op::Concat { axis: 1 },
        &[float(1, [2, 3, 2]), float(2, [2, 1, 2]), float(3, [2, 2, 2])],
    )
}

#[test]
fn a_cast_passes_the_gradient_straight_through() -> TestResult {
    check_op(Op::Cast { to: DType::Float(onesigma_format::Format::E4M3) }, &[float(1, [3, 4])])
}

#[test]
fn softmax() -> TestResult {
    for shape in [vec![3, 5], vec![4], vec![2, 2, 7]] {
        check_op(Op::Softmax { mult: 1.3 }, &[float(1, shape)])?;
    }
    Ok(())
}

#[test]
fn layer_norm_and_rms_norm() -> TestResult {
    for shape in [vec![3, 5], vec![6], vec![2, 2, 7]] {
        let d = shape[shape.len() - 1];
        let all = [float(1, shape), float(2, [d]), float(3, [d])];
        for operands in 1..=3 {
            check_op(Op::LayerNorm { eps: 1e-3 }, &all[..operands])?;
        }
        for operands in 1..=2 {
            check_op(Op::RmsNorm { eps: 1e-3 }, &all[..operands])?;
        }
    }
    Ok(())
}

#[test]
fn attention() -> TestResult {
    // batch, queries, keys, heads, key-value heads, causal
    for (b, s, t, h, n, causal) in [
        (2, 3, 3, 2, 2, false),
        (2, 3, 3, 2, 2, true),
        (1, 2, 5, 4, 2, true),
        (1, 4, 3, 3, 1, false),
        (1, 1, 1, 1, 1, true),
    ] {
        if (s, t) == (1, 1) {
            continue; // a softmax over one key has no gradient for q and k
        }
        let d = 3;
        let operands = [float(1, [b, s, h, d]), float(2, [b, t, n, d]), float(3, [b, t, n, d])];
        check_op(Op::Attention { causal, logit_scale: 0.8 }, &operands)?;
        // The last key of each item, or of one item every key, is hidden.
        let last: Vec<u32> = (0..b * t).map(|n| u32::from(n % t != t - 1)).collect();
        let item: Vec<u32> = (0..b * t).map(|n| u32::from(n >= t)).collect();
        for mask in [last, item] {
            if mask.iter().all(|&shown| shown == 0) {
                continue;
            }
            let mut operands = operands.to_vec();
            operands.push(ids([b, t], &mask));
            check_op(Op::Attention { causal, logit_scale: 0.8 }, &operands)?;
        }
    }
    Ok(())
}

#[test]
fn cross_entropy() -> TestResult {
    for mean in [true, false] {
        let operands = [float(1, [2, 3, 5]), ids([2, 3], &[0, 4, 2, 2, 1, 3])];
        check_op(Op::CrossEntropy { mult: 1.4, mean }, &operands)?;
        for mask in [[1, 0, 1, 1, 0, 9], [0; 6]] {
            let targets = ids([2, 3], &[0, 7, 2, 2, u32::MAX, 3]);
            let operands = [operands[0].clone(), targets, ids([2, 3], &mask)];
            if mask == [0; 6] {
                let op = Op::CrossEntropy { mult: 1.4, mean };
                let mut zero = Evaluation::new(&operands, |graph, x| {
                    let loss = graph.op(op, x).one()?;
                    autodiff::gradients(graph, loss, &x[..1], None)
                })?;
                assert!(zero.run()?.iter().flatten().all(|x| *x == 0.0));
                continue;
            }
            check_op(Op::CrossEntropy { mult: 1.4, mean }, &operands)?;
        }
    }
    Ok(())
}

#[test]
fn a_value_used_several_times_sums_its_gradients() -> TestResult {
    check_scaled(&[float(1, [3, 3]), float(2, [3])], 1.0, |graph, x, _, _| {
        let a = graph.matmul(x[0], x[0]).one()?;
        let b = graph.op(Op::Softmax { mult: 1.0 }, &[a]).one()?;
        let c = graph.op(Op::LayerNorm { eps: 1e-2 }, &[a, x[1]]).one()?;
        graph
            .map(&[a, b, c, x[0]], |x| x[0].clone() * x[1].clone() + x[2].clone() * x[3].sigmoid())?
            .one()
    })
}

#[test]
fn the_maximum_has_no_gradient_and_says_so() {
    let result = Evaluation::new(&[float(1, [4])], |graph, x| {
        let max = graph.reduce(ReduceKind::Max, x, &[0], false, |x| x[0].clone())?.one()?;
        autodiff::gradients(graph, max, x, None)
    });
    let error = result.err().expect("a maximum is not differentiable");
    assert!(matches!(error, Error::Graph(onesigma_graph::Error::NotDifferentiable { .. })));
}

#[test]
fn the_test_itself_notices_a_wrong_gradient() {
    // A backward scale that the check does not expect.
    let wrong = std::panic::catch_unwind(|| {
        check(&[float(1, [3])], |graph, x, alpha, _| {
            graph.map(x, |x| x[0].square())?.alpha(alpha).beta(&[alpha]).one()
        })
    });
    assert!(wrong.is_err());
    assert!(numbers(1, 8).iter().all(|x| x.abs() > 0.04));
}
