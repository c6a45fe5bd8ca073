//! Where the guest's interrupt controllers are.

use core::fmt;

use crate::capability::Capability;

/// Where the guest's interrupt controllers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum IrqchipMode {
    /// All in the kernel (`KVM_CREATE_IRQCHIP`).
    #[default]
    Kernel,
    /// The local APICs in the kernel, IOAPIC and PIC in userspace (`KVM_CAP_SPLIT_IRQCHIP`).
    Split,
    /// All in userspace.
    User,
}

impl IrqchipMode {
    /// The name, as on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Split => "split",
            Self::User => "user",
        }
    }

    /// The ability that the host must have for this mode, besides the hypervisor's own chips.
    #[must_use]
    pub const fn needs(self) -> Option<Capability> {
        match self {
            Self::Kernel => None,
            Self::Split => Some(Capability::SplitIrqchip),
            Self::User => Some(Capability::UserIrqchip),
        }
    }

    /// The ability that this mode uses if it is verified. A claim is not enough: a guest that is
    /// promised the ability and does not get it waits forever.
    #[must_use]
    pub const fn wants(self) -> Option<Capability> {
        match self {
            Self::Kernel | Self::Split => None,
            Self::User => Some(Capability::UserTscDeadline),
        }
    }
}

impl fmt::Display for IrqchipMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
