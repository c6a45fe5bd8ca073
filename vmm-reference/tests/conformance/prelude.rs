//! What every test uses.

pub use crate::chips::{bit, rte_high, rte_low};
pub use crate::log::Event::{Got, Mark, Started};
pub use crate::mode::{
    Chip, Mode, STORM, clocks_agree, is_amd, is_pvm, is_tcg, linux_is_at_least, quieted, this_kvm,
    with_eois, with_in_service,
};
pub use crate::program::Program;
pub use crate::registers::*;
pub use crate::script::{Handle, Script, Size};

/// No vector.
pub const NOTHING: [u8; 0] = [];
