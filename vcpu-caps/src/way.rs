//! The ways in which an ability can be had.

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

    /// The ability that the host must have for this mode, besides KVM's own chips.
    #[must_use]
    pub const fn needs(self) -> Option<Capability> {
        match self {
            Self::Kernel => None,
            Self::Split => Some(Capability::SplitIrqchip),
            Self::User => Some(Capability::UserIrqchip),
        }
    }

    /// What this mode uses of the host if it is there, and only if it was seen to work: a guest that
    /// was promised it and does not get it waits for ever.
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

/// One way to have an ability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Way {
    /// The hypervisor does it.
    Host,
    /// For `mask_hwintr`: the injection policy of a userspace interrupt controller withholds
    /// what waits.
    InjectionPolicy,
    /// For `bpt_exit`: the breakpoint takes one of the four debug-address registers in place of
    /// an INT3 in guest memory.
    HardwareSlot,
}

impl Way {
    /// The stable snake_case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::InjectionPolicy => "injection_policy",
            Self::HardwareSlot => "hardware_slot",
        }
    }

    /// The ways to have `capability`, best first, unless a profile says otherwise.
    #[must_use]
    pub const fn ladder(capability: Capability) -> &'static [Self] {
        match capability {
            Capability::MaskHwintr => &[Self::Host, Self::InjectionPolicy],
            Capability::BptExit => &[Self::Host, Self::HardwareSlot],
            _ => &[Self::Host],
        }
    }

    /// The ability of the host on which this way rests when it provides `capability`: its
    /// evidence is the way's evidence.
    #[must_use]
    pub const fn rests_on(self, capability: Capability) -> Capability {
        match self {
            Self::Host => capability,
            Self::InjectionPolicy => Capability::UserIrqchip,
            Self::HardwareSlot => Capability::HwBreakpoint,
        }
    }

    /// Why this way cannot provide `capability` under `irqchip`, whatever the host can do;
    /// `None` if it can.
    #[must_use]
    pub const fn obstacle(
        self,
        capability: Capability,
        irqchip: IrqchipMode,
    ) -> Option<&'static str> {
        match (self, capability, irqchip) {
            // KVM_INTERRUPT without a local APIC in the kernel marks the interrupt as injected at
            // once, and BLOCKIRQ withholds only what is not injected yet.
            (Self::Host, Capability::MaskHwintr, IrqchipMode::User) => {
                Some("KVM_GUESTDBG_BLOCKIRQ does not hold back KVM_INTERRUPT")
            }
            (Self::InjectionPolicy, _, IrqchipMode::Kernel | IrqchipMode::Split) => {
                Some("needs the user irqchip: KVM's own local APIC injects")
            }
            // With a local APIC in the kernel, HLT waits inside KVM_RUN.
            (Self::Host, Capability::HaltExit, IrqchipMode::Kernel | IrqchipMode::Split) => {
                Some("needs the user irqchip: KVM's own local APIC waits in HLT")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
