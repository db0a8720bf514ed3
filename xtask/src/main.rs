//! Development tasks: `cargo xtask demo`, `test`, `bench`, `ci`.
fn main() {}
