//! The end of the process: soon, under any neighbour, and with nothing left behind. And what neighbours that do not
//! read, or a system that is short of something, may do to it before.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

#[path = "ending/limits.rs"]
mod limits;
#[path = "ending/logs.rs"]
mod logs;
#[path = "ending/matrix.rs"]
mod matrix;
#[path = "ending/process.rs"]
mod process;
#[path = "ending/remains.rs"]
mod remains;
#[path = "ending/terminal.rs"]
mod terminal;
