//! Where the interrupt chips are.

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// Which interrupt chips the host's kernel runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum IrqchipMode {
    /// All of them (`KVM_CREATE_IRQCHIP`): the host injects, and its own mask withholds.
    #[default]
    Kernel,
    /// The local APIC; IOAPIC, 8259A and 8254 are the VMM's (`KVM_CAP_SPLIT_IRQCHIP`).
    Split,
    /// None: the VMM injects, and the policy withholds.
    User,
}

impl IrqchipMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Split, Self::User];

    /// The name that the command line uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Split => "split",
            Self::User => "user",
        }
    }
}

impl fmt::Display for IrqchipMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No mode has this name; [`IrqchipMode::ALL`] lists those that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("unknown irqchip mode: use kernel, split or user")]
pub struct UnknownIrqchipMode;

impl FromStr for IrqchipMode {
    type Err = UnknownIrqchipMode;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or(UnknownIrqchipMode)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn names_are_read_back() {
        for mode in IrqchipMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        for name in ["", "Kernel", "kernel ", "on"] {
            assert_eq!(name.parse::<IrqchipMode>(), Err(UnknownIrqchipMode));
        }
    }
}
