//! The `passt` program.
fn main() {}
