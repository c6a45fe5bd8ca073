//! The reference VMM.
fn main() {}
