//! Tables of settings: laid over each other, set by path, told apart by a digest.
//!
//! The tasks of the workspace include this file as well, so it needs nothing else of this crate.

use toml::{Table, Value};

/// Puts a value at a path of keys, such as `model.hidden`; false if something on the way is no
/// table.
#[must_use]
pub fn set_path(table: &mut Table, path: &str, value: Value) -> bool {
    match path.split_once('.') {
        None => {
            table.insert(path.into(), value);
            true
        }
        Some((first, rest)) => {
            match table.entry(first).or_insert_with(|| Value::Table(Table::new())) {
                Value::Table(inner) => set_path(inner, rest, value),
                _ => false,
            }
        }
    }
}

/// Puts `over` over `base`, table by table.
pub fn overlay(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => overlay(inner, value),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Fowler, Noll and Vo's hash 1a of 64 bits over a text: stable, where the standard library's is
/// not.
pub fn digest(text: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}
