//! Ops that only move elements.

use onesigma_graph::Shape;

/// Calls `visit` with every index of a shape, in row-major order.
pub(super) fn each_index(shape: &Shape, mut visit: impl FnMut(&[usize])) {
    if shape.numel() == 0 {
        return;
    }
    let mut index = vec![0; shape.rank()];
    loop {
        visit(&index);
        let mut axis = shape.rank();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < shape.dims()[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

pub(super) fn permute(x: &[f64], shape: &Shape, axes: &[usize]) -> Vec<f64> {
    let strides = shape.strides();
    let dims: Vec<usize> = axes.iter().map(|&axis| shape.dims()[axis]).collect();
    let mut result = Vec::with_capacity(x.len());
    each_index(&dims.into(), |index| {
        let at: usize = index.iter().zip(axes).map(|(i, &axis)| i * strides[axis]).sum();
        result.push(x[at]);
    });
    result
}

/// Extents before, at and behind an axis.
fn around(shape: &Shape, axis: usize) -> (usize, usize, usize) {
    let dims = shape.dims();
    (dims[..axis].iter().product(), dims[axis], dims[axis + 1..].iter().product())
}

pub(super) fn slice(x: &[f64], shape: &Shape, axis: usize, start: usize, len: usize) -> Vec<f64> {
    let (outer, extent, inner) = around(shape, axis);
    let mut result = Vec::with_capacity(outer * len * inner);
    for i in 0..outer {
        result.extend_from_slice(&x[(i * extent + start) * inner..][..len * inner]);
    }
    result
}

pub(super) fn concat(parts: &[(&[f64], &Shape)], axis: usize) -> Vec<f64> {
    let outer = parts.first().map_or(0, |(_, shape)| around(shape, axis).0);
    let mut result = Vec::new();
    for i in 0..outer {
        for (x, shape) in parts {
            let (_, extent, inner) = around(shape, axis);
            result.extend_from_slice(&x[i * extent * inner..][..extent * inner]);
        }
    }
    result
}
