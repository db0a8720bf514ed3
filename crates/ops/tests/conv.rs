//! The convolution against its definition in plain loops: values, and gradients as those of the
//! same loops.

use onesigma_backend::{Engine, RefBackend};
use onesigma_format::{Noise, philox};
use onesigma_graph::{
    DType, Graph, Module, Program, ReduceKind, Role, Shape, SlotId, SlotKind, ValueId, autodiff,
};
use onesigma_ops::{Conv1d, Error, Parametrisation, conv1d};

fn random(len: usize, tensor: u32) -> Vec<f32> {
    let mut values = vec![0.0; len];
    philox::fill_normal(Noise { seed: 5, tensor, step: 0, offset: 0 }, &mut values);
    values
}

/// Output and gradients for input, weight and bias, for an upstream gradient.
fn run(
    shapes: [&[usize]; 3],
    options: Conv1d,
    upstream: u32,
) -> Result<(Vec<usize>, [Vec<f64>; 4]), Error> {
    let mut module = Module::new();
    let mut graph = Graph::new();
    let mut slots = Vec::new();
    for (name, shape) in ["x", "w", "b"].into_iter().zip(shapes) {
        slots.push(module.slot(name, SlotKind::Input, shape, DType::F32, Role::Data)?);
    }
    let values: Vec<ValueId> = slots.iter().map(|&slot| module.read(&mut graph, slot)).collect();
    let p = Parametrisation::Regular;
    let y = conv1d(&mut graph, p, values[0], values[1], Some(values[2]), options)?;
    let shape = graph.shape(y).clone();
    let dy = module.slot("dy", SlotKind::Input, shape.clone(), DType::F32, Role::Data)?;
    slots.push(dy);
    let dy = module.read(&mut graph, dy);
    let axes: Vec<isize> = (0..shape.rank() as isize).collect();
    let loss = graph
        .reduce(ReduceKind::Sum, &[y, dy], &axes, false, |x| x[0].clone() * x[1].clone())?
        .one()?;
    let gradients = autodiff::gradients(&mut graph, loss, &values, None)?;
    let mut outputs = Vec::new();
    for (n, value) in std::iter::once(y).chain(gradients).enumerate() {
        let shape = graph.shape(value).clone();
        let slot = module.slot(
            &format!("out{n}"),
            SlotKind::Output,
            shape,
            DType::F32,
            Role::Statistic,
        )?;
        graph.write(slot, value);
        outputs.push(slot);
    }
    module.entry("run", graph)?;
    let program = Program::new(module)?;
    let mut engine = RefBackend::exact().executor(&program)?;
    for (tensor, &slot) in slots.iter().enumerate() {
        let len = program.slots()[slot.index()].shape.numel();
        let tensor = if tensor == 3 { upstream } else { tensor as u32 };
        let bytes: Vec<u8> = random(len, tensor).iter().flat_map(|x| x.to_le_bytes()).collect();
        engine.write(slot, &bytes)?;
    }
    engine.run(program.find_entry("run")?, 1)?;
    let read = |slot: SlotId| engine.tensor(slot).expect("a slot").expect("written").clone();
    Ok((shape.dims().to_vec(), [0, 1, 2, 3].map(|n: usize| read(outputs[n]))))
}

/// Calls `visit(y, x, w)` with the flat indices of every product in the definition.
fn products(
    shapes: [&[usize]; 3],
    options: Conv1d,
    out: &[usize],
    mut visit: impl FnMut(usize, usize, usize),
) {
    let rank = shapes[0].len();
    let batch = if rank == 3 { shapes[0][0] } else { 1 };
    let (channels, length) = (shapes[0][rank - 2], shapes[0][rank - 1]);
    let &[fan_out, fan_in, kernel] = shapes[1] else { panic!("three axes") };
    let out_length = out[rank - 1];
    for b in 0..batch {
        for o in 0..fan_out {
            let group = o / (fan_out / options.groups);
            for t in 0..out_length {
                for f in 0..fan_in {
                    for k in 0..kernel {
                        let at = t * options.stride + k * options.dilation;
                        let Some(at) = at.checked_sub(options.padding) else { continue };
                        if at < length {
                            let channel = group * fan_in + f;
                            visit(
                                (b * fan_out + o) * out_length + t,
                                (b * channels + channel) * length + at,
                                (o * fan_in + f) * kernel + k,
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn it_is_the_sum_of_its_definition_and_so_are_its_gradients() -> Result<(), Error> {
    let plain = Conv1d::default();
    for (x, w, options) in [
        (&[2, 3, 7][..], [4, 3, 3], plain),
        (&[3, 7], [4, 3, 2], Conv1d { padding: 2, ..plain }),
        (&[2, 4, 9], [6, 2, 3], Conv1d { groups: 2, stride: 2, padding: 1, ..plain }),
        (&[1, 6, 11], [6, 1, 3], Conv1d { groups: 6, dilation: 3, padding: 2, ..plain }),
        (&[2, 2, 5], [3, 2, 1], Conv1d { stride: 4, ..plain }),
        (&[2, 2, 8], [3, 2, 8], Conv1d { stride: 3, padding: 4, ..plain }),
    ] {
        let shapes = [x, &w[..], &w[..1]];
        let (out, [y, dx, dw, db]) = run(shapes, options, 9)?;
        let numel = |shape: &[usize]| Shape::from(shape).numel();
        let values = |shape: &[usize], tensor| -> Vec<f64> {
            random(numel(shape), tensor).into_iter().map(f64::from).collect()
        };
        let (xs, ws, bs, dy) = (values(x, 0), values(&w, 1), values(&w[..1], 2), values(&out, 9));
        let out_length = out[out.len() - 1];
        let mut exact =
            [vec![0.0; y.len()], vec![0.0; dx.len()], vec![0.0; dw.len()], vec![0.0; db.len()]];
        for (at, value) in exact[0].iter_mut().enumerate() {
            *value = bs[at / out_length % w[0]];
        }
        for (at, dy) in dy.iter().enumerate() {
            exact[3][at / out_length % w[0]] += dy;
        }
        products(shapes, options, &out, |at_y, at_x, at_w| {
            exact[0][at_y] += xs[at_x] * ws[at_w];
            exact[1][at_x] += dy[at_y] * ws[at_w];
            exact[2][at_w] += dy[at_y] * xs[at_x];
        });
        for (found, exact) in [y, dx, dw, db].iter().zip(&exact) {
            let apart = found.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart < 1e-12, "{x:?} {w:?} {options:?}: {apart:e}");
        }
    }
    Ok(())
}
