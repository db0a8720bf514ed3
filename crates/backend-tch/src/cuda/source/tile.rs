//! Groups of which one-byte results are written transposed as well: by tiles of 128 x 128.

use std::fmt::Write;

use super::group::{Group, Store};
use super::{Kernel, codec, fill, flat, parameters};

const TEMPLATE: &str = include_str!("../kernels/tile.cu");

/// Extent of a tile; rows and columns are multiples of it.
pub(crate) const TILE: usize = 128;

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
    let (mut declarations, mut writes) = (String::new(), String::new());
    for (n, store) in transposed.iter().enumerate() {
        let _ = writeln!(declarations, "uint2 tile{n}[8];");
        let _ = writeln!(body, "tile{n}[row] = two_words({});", Group::words(store.what));
        let to = group.stores.len() + n;
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
            ("declarations", declarations),
            ("body", body),
            ("writes", writes),
        ],
    );
    let grid = [(columns / TILE) as u32, (rows / TILE) as u32, 1];
    Kernel { label: label.to_owned(), source, params, grid, threads: 256 }
}
