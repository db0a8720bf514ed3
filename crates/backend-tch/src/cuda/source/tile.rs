//! Groups of which one-byte results are written transposed as well, by tiles.

use std::fmt::Write;

use super::group::{Access, Group, Store};
use super::{Kernel, codec, fill, flat, parameters};

const TEMPLATE: &str = include_str!("../kernels/tile.cu");

/// Extents that rows and columns are multiples of.
pub(crate) const TILE: usize = 128;

/// Threads of a block below each other.
const DOWN: usize = 16;

/// Tiles of 128 x 128 below which blocks are small: about two for each multiprocessor of a large
/// GPU.
const FEW: usize = 256;

/// Bytes read and written for each element from which a thread has more rows, so that more of them
/// are on their way at a time.
const HEAVY: usize = 20;

/// Threads of a block side by side, each with 8 columns, and rows of a thread: what was fastest on
/// an H100 (casts, activations and their gradients, AdamW with states of 2 and 4 bytes).
fn shape(group: &Group, tiles: usize, columns: usize) -> (usize, usize) {
    let loads = group.loads.iter().filter(|load| load.access == Access::Full);
    let bytes: usize = loads.map(|load| load.dtype.bytes()).sum::<usize>()
        + group.stores.iter().map(|store| store.dtype.bytes()).sum::<usize>();
    let wide = if columns.is_multiple_of(256) { 32 } else { 16 };
    match tiles {
        _ if tiles < FEW => (16, 4),
        _ if bytes >= HEAVY => (wide, 8),
        _ => (wide, 4),
    }
}

/// Whether a group over `rows` by `columns` can write transposed results.
pub(crate) fn fits(rows: usize, columns: usize) -> bool {
    rows.is_multiple_of(TILE) && columns.is_multiple_of(TILE) && rows > 0 && columns > 0
}

/// The kernel of a group over `rows` by `columns`. Parameters: loads, stores, transposed stores,
/// then `seed, step` if it draws.
pub(crate) fn kernel(
    group: &Group,
    transposed: &[Store],
    rows: usize,
    columns: usize,
    label: &str,
) -> Kernel {
    let mut body = String::new();
    flat::emit_body(&mut body, group, 8);
    for (n, store) in group.stores.iter().enumerate() {
        let codes = Group::words(store.what);
        let _ = writeln!(body, "{}", codec::store(store.dtype, 8, &format!("y{n}"), "i", &codes));
    }
    let (side, deep) = shape(group, (rows / TILE) * (columns / TILE), columns);
    let (mut declarations, mut writes) = (String::new(), String::new());
    for (n, store) in transposed.iter().enumerate() {
        let _ = writeln!(declarations, "uint2 tile{n}[{deep}];");
        let _ = writeln!(body, "tile{n}[row] = two_words({});", Group::words(store.what));
        let to = group.stores.len() + n;
        if n > 0 {
            writes.push_str("__syncthreads();\n");
        }
        let _ = writeln!(
            writes,
            "store_transposed<{rows}>(tile{n}, y{to}, shared, first_row, first_column);"
        );
    }
    let draws = group.draws();
    let outputs = group.stores.len() + transposed.len();
    let params = group.loads.len() + outputs + if draws { 2 } else { 0 };
    let source = fill(
        TEMPLATE,
        &[
            ("parameters", parameters(group.loads.len(), outputs, draws)),
            ("columns", columns.to_string()),
            ("side", side.to_string()),
            ("down", DOWN.to_string()),
            ("deep", deep.to_string()),
            ("declarations", declarations),
            ("body", body),
            ("writes", writes),
        ],
    );
    let grid = [(columns / (8 * side)) as u32, (rows / (DOWN * deep)) as u32, 1];
    Kernel { label: label.to_owned(), source, params, grid, threads: (side * DOWN) as u32 }
}
