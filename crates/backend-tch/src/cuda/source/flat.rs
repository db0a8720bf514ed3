//! Groups without rows or transposed results: one thread for each 8 elements.

use std::fmt::Write;

use super::group::{Arg, Group};
use super::{Kernel, blocks, codec, fill, parameters};

const TEMPLATE: &str = include_str!("../kernels/flat.cu");
const THREADS: usize = 256;

/// The kernel of a group. Parameters: loads, stores, then `seed, step` if it draws.
pub(crate) fn kernel(group: &Group, label: &str) -> Kernel {
    let lanes = Group::lanes(group.numel);
    let mut body = String::new();
    emit_body(&mut body, group, lanes);
    for (n, store) in group.stores.iter().enumerate() {
        let codes = Group::words(store.what);
        let _ =
            writeln!(body, "{}", codec::store(store.dtype, lanes, &format!("y{n}"), "i", &codes));
    }
    let draws = group.draws();
    let params = group.loads.len() + group.stores.len() + if draws { 2 } else { 0 };
    let source = fill(
        TEMPLATE,
        &[
            ("threads", THREADS.to_string()),
            ("parameters", parameters(group.loads.len(), group.stores.len(), draws)),
            ("lanes", lanes.to_string()),
            ("numel", group.numel.to_string()),
            ("body", body),
        ],
    );
    let grid = [blocks(group.numel, THREADS * lanes), 1, 1];
    Kernel { label: label.to_owned(), source, params, grid, threads: THREADS as u32 }
}

/// Appends loads and steps of a group without an op over rows.
pub(crate) fn emit_body(body: &mut String, group: &Group, lanes: usize) {
    let mut loaded = vec![false; group.loads.len()];
    // All loads first, so that they are in flight together.
    for step in &group.steps {
        group.emit_loads(body, &step.args, &mut loaded, lanes);
    }
    let stored: Vec<Arg> = group.stores.iter().map(|store| store.what).collect();
    group.emit_loads(body, &stored, &mut loaded, lanes);
    for n in 0..group.steps.len() {
        group.emit_step(body, n, lanes);
    }
}
