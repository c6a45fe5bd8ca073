//! Small obvious models, and random operations that run each beside what it models.
//!
//! For this crate's property tests and for fuzz targets; not covered by semver.

pub mod lapic;
pub mod policy;
