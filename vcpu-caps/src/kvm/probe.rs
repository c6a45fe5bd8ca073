//! KVM's claims.

use std::ffi::c_ulong;
use std::format;
use std::fs;
use std::path::Path;
use std::string::String;

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_KVMCLOCK_CTRL, KVM_CAP_SET_GUEST_DEBUG,
    KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_SYNC_REGS, KVM_CAP_VCPU_ATTRIBUTES,
    KVM_CAP_X86_USER_SPACE_MSR,
};
use kvm_ioctls::Kvm;

use super::x86::GuestDebugFlags;
use crate::capability::Capability;
use crate::evidence::Finding;
use crate::report::{HostFacts, HostReport};

/// The modules of KVM's flavours. All share the module `kvm`.
const FLAVOURS: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_pvm"];

/// `KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS`: all groups there are.
const SYNC_ALL: u32 = 0b111;

/// Asks KVM what it can do: `KVM_CHECK_EXTENSION` and the mask of debug flags.
///
/// No guest is run, so no finding is better than claimed. It takes some ten system calls.
#[must_use]
pub fn probe(kvm: &Kvm) -> HostReport {
    let claims = Claims::read(kvm);
    let mut report = HostReport::new(flavour(Path::new("/sys/module")), claims.facts(kvm));
    for &capability in Capability::ALL {
        report.record(capability, claims.finding(capability));
    }
    report
}

/// The flavour that is in use: the one whose module is loaded (or built in: those have a folder
/// here too).
fn flavour(modules: &Path) -> String {
    let loaded: std::vec::Vec<&str> = FLAVOURS
        .into_iter()
        .filter(|name| modules.join(name).is_dir())
        .collect();
    if loaded.is_empty() {
        String::from("unknown")
    } else {
        loaded.join("+")
    }
}

/// The answers to `KVM_CHECK_EXTENSION`; 0 is "no".
struct Claims {
    guest_debug: u32,
    guest_debug_mask: u32,
    sync_regs: u32,
    immediate_exit: u32,
    vcpu_attributes: u32,
    kvmclock_ctrl: u32,
    adjust_clock: u32,
    split_irqchip: u32,
    user_space_msr: u32,
}

impl Claims {
    fn read(kvm: &Kvm) -> Self {
        let ask = |extension: u32| {
            // A negative answer is an error, and no claim.
            u32::try_from(kvm.check_extension_raw(c_ulong::from(extension))).unwrap_or(0)
        };
        Self {
            guest_debug: ask(KVM_CAP_SET_GUEST_DEBUG),
            guest_debug_mask: ask(KVM_CAP_SET_GUEST_DEBUG2),
            sync_regs: ask(KVM_CAP_SYNC_REGS),
            immediate_exit: ask(KVM_CAP_IMMEDIATE_EXIT),
            vcpu_attributes: ask(KVM_CAP_VCPU_ATTRIBUTES),
            kvmclock_ctrl: ask(KVM_CAP_KVMCLOCK_CTRL),
            adjust_clock: ask(KVM_CAP_ADJUST_CLOCK),
            split_irqchip: ask(KVM_CAP_SPLIT_IRQCHIP),
            user_space_msr: ask(KVM_CAP_X86_USER_SPACE_MSR),
        }
    }

    fn facts(&self, kvm: &Kvm) -> HostFacts {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        HostFacts {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| String::new(), |release| String::from(release.trim())),
            api_version: u32::try_from(kvm.get_api_version()).unwrap_or(0),
            guest_debug_mask: self.guest_debug_mask,
            sync_regs_mask: self.sync_regs,
            max_vcpus: count(kvm.get_max_vcpus()),
            recommended_vcpus: count(kvm.get_nr_vcpus()),
            memory_slots: count(kvm.get_nr_memslots()),
        }
    }

    fn finding(&self, capability: Capability) -> Finding {
        match capability {
            Capability::SingleStep | Capability::SingleStepUser => {
                self.debug_flag(GuestDebugFlags::SINGLESTEP)
            }
            Capability::MaskHwintr => self.debug_flag(GuestDebugFlags::BLOCKIRQ),
            Capability::BptExit => self.debug_flag(GuestDebugFlags::USE_SW_BP),
            Capability::HwBreakpoint | Capability::Watchpoint => {
                self.debug_flag(GuestDebugFlags::USE_HW_BP)
            }
            Capability::InjectBp => self.debug_flag(GuestDebugFlags::INJECT_BP),
            Capability::InjectDb => self.debug_flag(GuestDebugFlags::INJECT_DB),
            Capability::ImmediateExit => extension("KVM_CAP_IMMEDIATE_EXIT", self.immediate_exit),
            Capability::SyncRegs if self.sync_regs & SYNC_ALL == SYNC_ALL => {
                Finding::claimed(format!("KVM_CAP_SYNC_REGS {:#x}", self.sync_regs))
            }
            Capability::SyncRegs => Finding::absent(format!(
                "KVM_CAP_SYNC_REGS {:#x}, needs {SYNC_ALL:#x}",
                self.sync_regs
            )),
            Capability::TscOffset => extension("KVM_CAP_VCPU_ATTRIBUTES", self.vcpu_attributes),
            // Every KVM takes it.
            Capability::TscWrite => Finding::claimed("KVM_SET_MSRS"),
            Capability::ClockSet => extension("KVM_CAP_ADJUST_CLOCK", self.adjust_clock),
            Capability::ClockCtrl => extension("KVM_CAP_KVMCLOCK_CTRL", self.kvmclock_ctrl),
            Capability::SplitIrqchip => extension("KVM_CAP_SPLIT_IRQCHIP", self.split_irqchip),
            // KVM does not report whether it asks the filter for this MSR.
            Capability::UserMsrExit | Capability::UserTscDeadline => {
                extension("KVM_CAP_X86_USER_SPACE_MSR", self.user_space_msr)
            }
            // No extension stands for these: every VM is so until an irqchip is created.
            Capability::UserIrqchip => Finding::claimed("a VM without KVM_CREATE_IRQCHIP"),
            Capability::HaltExit => {
                Finding::claimed("KVM_EXIT_HLT, without a local APIC in the kernel")
            }
            // KVM_CAP_X86_DISABLE_EXITS only stops KVM from looking at PAUSE.
            Capability::PauseExit => Finding::absent("KVM handles PAUSE loops itself"),
        }
    }

    fn debug_flag(&self, flag: GuestDebugFlags) -> Finding {
        // Before Linux 5.13 there was no mask. The debug interface itself (2.6.30) had all flags
        // but BLOCKIRQ.
        let before_mask = GuestDebugFlags::all().difference(GuestDebugFlags::BLOCKIRQ);
        if self.guest_debug == 0 {
            Finding::absent("no KVM_CAP_SET_GUEST_DEBUG")
        } else if self.guest_debug_mask & flag.bits() != 0 {
            Finding::claimed(format!("KVM_CAP_SET_GUEST_DEBUG2 has {:#x}", flag.bits()))
        } else if self.guest_debug_mask == 0 && before_mask.contains(flag) {
            Finding::claimed("KVM_CAP_SET_GUEST_DEBUG")
        } else if flag == GuestDebugFlags::BLOCKIRQ {
            Finding::absent(format!(
                "KVM_CAP_SET_GUEST_DEBUG2 lacks {:#x}; Linux 5.15 and later have it",
                flag.bits()
            ))
        } else {
            Finding::absent(format!("KVM_CAP_SET_GUEST_DEBUG2 lacks {:#x}", flag.bits()))
        }
    }
}

fn extension(name: &'static str, answer: u32) -> Finding {
    if answer == 0 {
        Finding::absent(format!("no {name}"))
    } else {
        Finding::claimed(name)
    }
}
