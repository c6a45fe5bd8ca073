//! All-stop run control: the state machine against a model, and the adapter with real threads.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is the world around the core, and it stops where what must hold does not"
)]

#[cfg(all(feature = "threads", unix))]
mod contract;
mod interleavings;
#[cfg(all(
    feature = "threads",
    feature = "kvm",
    target_os = "linux",
    target_arch = "x86_64"
))]
mod kvm;
mod model;
#[cfg(all(feature = "threads", unix))]
mod threads;
