//! Copies of elements to other places: permute, slice, concatenate, and transposed FP8 copies.

use super::{Kernel, blocks, fill, parameters};

const COPY: &str = include_str!("../kernels/copy.cu");
const TRANSPOSE: &str = include_str!("../kernels/transpose.cu");

/// Elements over `dims`, from strided places to strided places.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Copy {
    pub dims: Vec<usize>,
    pub from_offset: usize,
    pub from_strides: Vec<usize>,
    pub to_offset: usize,
    pub to_strides: Vec<usize>,
}

fn place(offset: usize, dims: &[usize], strides: &[usize]) -> String {
    let mut terms = vec![format!("{offset}ull")];
    let mut inner = 1;
    for axis in (0..dims.len()).rev() {
        if dims[axis] != 1 {
            terms.push(format!("i / {inner} % {} * {}ull", dims[axis], strides[axis]));
        }
        inner *= dims[axis];
    }
    terms.join(" + ")
}

/// The kernel of a copy of elements of `bytes` bytes. Parameters: source, target.
pub(crate) fn copy(op: &Copy, bytes: usize, label: &str) -> Kernel {
    let numel: usize = op.dims.iter().product();
    let word = ["u8", "u8", "u16", "u32", "u32"][bytes.min(4)];
    let source = fill(
        COPY,
        &[
            ("parameters", parameters(1, 1, false)),
            ("numel", numel.to_string()),
            ("word", word.to_owned()),
            ("from", place(op.from_offset, &op.dims, &op.from_strides)),
            ("to", place(op.to_offset, &op.dims, &op.to_strides)),
        ],
    );
    let grid = [blocks(numel, 256), 1, 1];
    Kernel { label: label.to_owned(), source, params: 2, grid, threads: 256 }
}

/// The kernel that transposes a matrix of bytes of any size. Parameters: source, target.
pub(crate) fn transpose(rows: usize, columns: usize, label: &str) -> Kernel {
    let source = fill(
        TRANSPOSE,
        &[
            ("parameters", parameters(1, 1, false)),
            ("rows", rows.to_string()),
            ("columns", columns.to_string()),
        ],
    );
    let grid = [columns.div_ceil(32).max(1) as u32, rows.div_ceil(32).max(1) as u32, 1];
    Kernel { label: label.to_owned(), source, params: 2, grid, threads: 256 }
}
