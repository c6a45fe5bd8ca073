//! The vocabulary: which vCPU, which ability.

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// A vCPU's index, as passed to `KVM_CREATE_VCPU`: 0 is the bootstrap processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VcpuId(pub u16);

impl VcpuId {
    /// The id as an index into a table of vCPUs.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu{}", self.0)
    }
}

macro_rules! capabilities {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// One run-control ability of a vCPU.
        ///
        /// The name ([`Capability::name`]) is stable: it is what `caps`, profiles and saved plans
        /// use. Abilities that bhyve has keep bhyve's name (`VM_CAP_MASK_HWINTR` is
        /// `mask_hwintr`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
        #[non_exhaustive]
        pub enum Capability {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Capability {
            /// Every ability, in the order in which tables show them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable snake_case name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

capabilities! {
    /// Hardware interrupts can be withheld from the vCPU without touching the guest: nothing is
    /// injected, nothing is lost (bhyve's `VM_CAP_MASK_HWINTR`, KVM's `KVM_GUESTDBG_BLOCKIRQ`).
    MaskHwintr = "mask_hwintr",
    /// The vCPU can be run for one instruction.
    SingleStep = "single_step",
    /// A breakpoint instruction (INT3) written into guest memory leaves the guest
    /// (bhyve's `VM_CAP_BPT_EXIT`).
    BptExit = "bpt_exit",
    /// An execute breakpoint in a debug-address register leaves the guest (SDM 3B 19.2).
    HwBreakpoint = "hw_breakpoint",
    /// A write or read/write watchpoint in a debug-address register leaves the guest.
    Watchpoint = "watchpoint",
    /// A #BP can be given back to the guest.
    InjectBp = "inject_bp",
    /// A #DB can be given back to the guest.
    InjectDb = "inject_db",
    /// `KVM_RUN` can be made to return before it enters the guest, for a race-free kick.
    ImmediateExit = "immediate_exit",
    /// Registers travel in the run structure: no ioctl to read them after an exit.
    SyncRegs = "sync_regs",
    /// HLT leaves the guest (bhyve's `VM_CAP_HALT_EXIT`).
    HaltExit = "halt_exit",
    /// PAUSE loops leave the guest (bhyve's `VM_CAP_PAUSE_EXIT`).
    PauseExit = "pause_exit",
    /// The guest's time-stamp counter can be shifted while it is stopped.
    TscOffset = "tsc_offset",
    /// The guest can be told that it was stopped (`KVM_KVMCLOCK_CTRL`).
    ClockCtrl = "clock_ctrl",
    /// The local APIC can be in the kernel while IOAPIC and PIC are in userspace.
    SplitIrqchip = "split_irqchip",
    /// All interrupt chips can be in userspace.
    UserIrqchip = "user_irqchip",
    /// Accesses to chosen model-specific registers leave the guest.
    UserMsrExit = "user_msr_exit",
    /// Without a local APIC in the kernel, a write to IA32_TSC_DEADLINE leaves the guest if it is
    /// filtered: the timer of a local APIC in userspace can have TSC-deadline mode.
    UserTscDeadline = "user_tsc_deadline",
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No ability has this name; [`Capability::ALL`] lists those that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("unknown capability name")]
pub struct UnknownCapability;

impl FromStr for Capability {
    type Err = UnknownCapability;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|capability| capability.name() == name)
            .ok_or(UnknownCapability)
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_name_finds_its_ability_and_no_other() {
        for &capability in Capability::ALL {
            assert_eq!(capability.name().parse(), Ok(capability));
            assert_eq!(capability.to_string(), capability.name());
        }
        let names: BTreeSet<_> = Capability::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Capability::ALL.len());
    }

    #[test]
    fn bhyves_names_are_kept() {
        for name in ["mask_hwintr", "bpt_exit", "halt_exit", "pause_exit"] {
            assert!(name.parse::<Capability>().is_ok(), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        for name in ["", "MASK_HWINTR", "mask_hwintr ", "MaskHwintr"] {
            assert_eq!(name.parse::<Capability>(), Err(UnknownCapability));
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn the_serialised_name_is_the_stable_name() {
        for &capability in Capability::ALL {
            let json = serde_json::to_value(capability).unwrap();
            assert_eq!(json, capability.name());
        }
    }
}
