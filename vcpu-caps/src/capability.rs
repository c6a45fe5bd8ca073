//! The vocabulary: ids of vCPUs, names of abilities.

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// A vCPU's index, as passed to `KVM_CREATE_VCPU`: 0 is the bootstrap processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VcpuId(pub u16);

impl VcpuId {
    /// Returns the id as an index into a table of vCPUs.
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
        /// The name ([`Capability::name`]) is stable: `caps`, profiles and saved plans use it.
        /// Abilities that bhyve has keep bhyve's name (`VM_CAP_MASK_HWINTR` is `mask_hwintr`).
        /// [`Capability::is_x86`] says which abilities exist on x86 only.
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
    /// The hypervisor withholds hardware interrupts from the vCPU without a change to the guest:
    /// it injects none and loses none (bhyve's `VM_CAP_MASK_HWINTR`, KVM's
    /// `KVM_GUESTDBG_BLOCKIRQ`).
    MaskHwintr = "mask_hwintr",
    /// The vCPU can be run for one instruction.
    SingleStep = "single_step",
    /// The same for code of the user's privilege level (on x86 CPL3). A software KVM may run that
    /// code in another way than the kernel's.
    SingleStepUser = "single_step_user",
    /// A breakpoint instruction in guest memory (on x86 INT3) leaves the guest
    /// (bhyve's `VM_CAP_BPT_EXIT`).
    BptExit = "bpt_exit",
    /// An execute breakpoint in a debug register leaves the guest (x86: SDM 3B 19.2).
    HwBreakpoint = "hw_breakpoint",
    /// A write or read/write watchpoint in a debug register leaves the guest.
    Watchpoint = "watchpoint",
    /// A breakpoint exception (on x86 #BP) can be given back to the guest.
    InjectBp = "inject_bp",
    /// A debug exception (on x86 #DB) can be given back to the guest.
    InjectDb = "inject_db",
    /// The run call (KVM's `KVM_RUN`) can be made to return before it enters the guest, for a
    /// kick that cannot be lost.
    ImmediateExit = "immediate_exit",
    /// Registers travel in the run structure: no system call reads them after an exit.
    SyncRegs = "sync_regs",
    /// The instruction that waits for an interrupt (on x86 HLT) leaves the guest (bhyve's
    /// `VM_CAP_HALT_EXIT`).
    HaltExit = "halt_exit",
    /// x86: PAUSE loops leave the guest (bhyve's `VM_CAP_PAUSE_EXIT`).
    PauseExit = "pause_exit",
    /// x86: the guest's time-stamp counter can be shifted while the guest is stopped.
    TscOffset = "tsc_offset",
    /// x86: a time-stamp counter that the host writes (KVM_SET_MSRS of IA32_TSC) is the one that the
    /// guest reads.
    TscWrite = "tsc_write",
    /// x86: kvmclock can be set while the guest is stopped (`KVM_SET_CLOCK`).
    ClockSet = "clock_set",
    /// x86: kvmclock can report a stop to the guest (`KVM_KVMCLOCK_CTRL`).
    ClockCtrl = "clock_ctrl",
    /// x86: the local APIC can be in the kernel while IOAPIC and PIC are in userspace.
    SplitIrqchip = "split_irqchip",
    /// All interrupt controllers can be in userspace.
    UserIrqchip = "user_irqchip",
    /// x86: accesses to chosen model-specific registers leave the guest.
    UserMsrExit = "user_msr_exit",
    /// x86: without a local APIC in the kernel, a filtered write to IA32_TSC_DEADLINE leaves the
    /// guest. A local APIC in userspace can then provide TSC-deadline mode.
    UserTscDeadline = "user_tsc_deadline",
}

impl Capability {
    /// Returns `true` if the ability exists on x86 only. The others are named for what a debugger
    /// or a VMM needs on any architecture.
    #[must_use]
    pub const fn is_x86(self) -> bool {
        match self {
            Self::PauseExit
            | Self::TscOffset
            | Self::TscWrite
            | Self::ClockSet
            | Self::ClockCtrl
            | Self::SplitIrqchip
            | Self::UserMsrExit
            | Self::UserTscDeadline => true,
            Self::MaskHwintr
            | Self::SingleStep
            | Self::SingleStepUser
            | Self::BptExit
            | Self::HwBreakpoint
            | Self::Watchpoint
            | Self::InjectBp
            | Self::InjectDb
            | Self::ImmediateExit
            | Self::SyncRegs
            | Self::HaltExit
            | Self::UserIrqchip => false,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is not the name of an ability. [`Capability::ALL`] lists the abilities.
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
    use alloc::vec::Vec;

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
    fn abilities_of_x86_are_told_from_those_of_any_architecture() {
        let x86 = Capability::ALL.iter().filter(|c| c.is_x86());
        assert_eq!(
            x86.map(|c| c.name()).collect::<Vec<_>>(),
            [
                "pause_exit",
                "tsc_offset",
                "tsc_write",
                "clock_set",
                "clock_ctrl",
                "split_irqchip",
                "user_msr_exit",
                "user_tsc_deadline"
            ]
        );
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
