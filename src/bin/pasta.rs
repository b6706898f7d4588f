//! The `pasta` program.
fn main() {}
