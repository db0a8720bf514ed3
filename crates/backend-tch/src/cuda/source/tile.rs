//! Groups of which one-byte results are written transposed as well: by tiles of 128 x 128, or of
//! 64 x 128 where there are few.

use std::fmt::Write;

use super::group::{Group, Store};
use super::{Kernel, codec, fill, flat, parameters};

const TEMPLATE: &str = include_str!("../kernels/tile.cu");

/// Extent of a tile; rows and columns are multiples of it.
pub(crate) const TILE: usize = 128;

/// Tiles below which they are half as high: about four for each multiprocessor of a large GPU.
const FEW: usize = 512;

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
    // Half as high where whole tiles would leave multiprocessors idle.
    let tiles = (rows / TILE) * (columns / TILE);
    let deep = if tiles < FEW { 4 } else { 8 };
    let (mut declarations, mut writes) = (String::new(), String::new());
    for (n, store) in transposed.iter().enumerate() {
        let _ = writeln!(declarations, "uint2 tile{n}[{deep}];");
        let _ = writeln!(body, "tile{n}[row] = two_words({});", Group::words(store.what));
        let to = group.stores.len() + n;
        let _ = writeln!(
            writes,
            "store_transposed<{rows}, {deep}>(tile{n}, y{to}, shared, first_row, first_column);"
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
            ("deep", deep.to_string()),
            ("declarations", declarations),
            ("body", body),
            ("writes", writes),
        ],
    );
    let grid = [(columns / TILE) as u32, (rows / (16 * deep)) as u32, 1];
    Kernel { label: label.to_owned(), source, params, grid, threads: 256 }
}
