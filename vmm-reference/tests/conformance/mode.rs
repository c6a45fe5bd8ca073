//! The modes of `--irqchip`, which chips are KVM's in each, and where KVM's deviate from the architecture.

use std::fmt;
use std::panic::UnwindSafe;
use std::path::Path;

use crate::log::Event;

/// Where the interrupt controllers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All are KVM's.
    Kernel,
    /// The local APICs are KVM's, the other chips are emulated.
    Split,
    /// All are emulated.
    User,
}

/// A part that is KVM's in some modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    LocalApic,
    Ioapic,
    Pic,
    Pit,
}

impl Mode {
    /// Returns `true` if the chip is KVM's.
    pub fn is_kvms(self, chip: Chip) -> bool {
        match self {
            Self::Kernel => true,
            Self::Split => chip == Chip::LocalApic,
            Self::User => false,
        }
    }

    /// Returns `true` if this chip is KVM's, which does `what` instead of what the architecture says. `what`
    /// ends with the place in KVM: `(file, function)`.
    pub fn deviates(self, chip: Chip, what: &str) -> bool {
        let deviates = self.is_kvms(chip);
        if deviates {
            println!("deviation: {self}: {what}");
        }
        deviates
    }

    /// As [`Self::deviates`], for a deviation of only some KVMs: those for which `here` is `true`.
    pub fn deviates_if(self, here: bool, chip: Chip, what: &str) -> bool {
        if !here && self.is_kvms(chip) {
            println!("no deviation here: {self}: {what}");
        }
        here && self.deviates(chip, what)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Split => "split",
            Self::User => "user",
        })
    }
}

/// Returns `true` on the software KVM of the build machines, which emulates kernel code instruction by
/// instruction and lacks some instructions.
pub fn is_pvm() -> bool {
    Path::new("/sys/module/kvm_pvm").exists()
}

/// Returns `true` if KVM is kvm_amd.
pub fn is_amd() -> bool {
    Path::new("/sys/module/kvm_amd").exists()
}

/// Returns `true` if the processor under KVM is QEMU's TCG.
pub fn is_tcg() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    info.contains("QEMU TCG") || cpuid_signature() == *b"TCGTCGTCGTCG"
}

/// The signature of the hypervisor under this machine (CPUID leaf 0x4000_0000).
fn cpuid_signature() -> [u8; 12] {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    let mut signature = [0; 12];
    for (place, register) in signature.chunks_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        place.copy_from_slice(&register.to_le_bytes());
    }
    signature
}

/// Returns `true` if the host runs this Linux or a later one.
pub fn linux_is_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Returns `here`: whether this KVM does `what` instead of what the architecture says, with any chips.
pub fn this_kvm(here: bool, what: &str) -> bool {
    if here {
        println!("this KVM: {what}");
    }
    here
}

/// Returns `true` if the TSC and KVM's timers agree on time.
pub fn clocks_agree() -> bool {
    !this_kvm(
        is_tcg(),
        "under QEMU's TCG the clock of a busy kernel falls behind the TSC: amounts are not compared",
    )
}

/// What kvm_pvm does where a level has to wait for its EOI: the interrupt comes again and again, until the
/// log is full and the guest ends.
pub const STORM: &str = "reason: Exited(2)";

/// Runs a test that needs vectors to stay in service until EOI, on which priorities depend.
///
/// kvm_pvm's local APIC moves a vector out of IRR when it delivers it, and never into ISR. With that chip the
/// test must fail, and `instead` is in its message: what kvm_pvm does. So another failure is noticed, and a
/// kvm_pvm that implements ISR.
pub fn with_in_service(mode: Mode, instead: &str, test: impl FnOnce() + UnwindSafe) {
    with_in_service_of(mode, Chip::LocalApic, instead, test);
}

/// As [`with_in_service`], for a test in which EOIs of levels must reach the IOAPIC.
pub fn with_eois(mode: Mode, instead: &str, test: impl FnOnce() + UnwindSafe) {
    with_in_service_of(mode, Chip::Ioapic, instead, test);
}

/// The events of a test of one level whose handler lowers the line.
///
/// kvm_pvm's local APIC reports an EOI to an emulated IOAPIC when it has delivered the interrupt, before or after
/// the handler has lowered the line. With it the level may therefore come a second time right after the first,
/// and the second one is left out.
pub fn quieted(mode: Mode, mut events: Vec<Event>) -> Vec<Event> {
    let early = this_kvm(
        is_pvm() && mode == Mode::Split,
        "kvm_pvm reports an EOI at the delivery: a level may come once more",
    );
    let again = |pair: &[Event]| matches!(pair, [Event::Got(a), Event::Got(b)] if a == b);
    if let Some(at) = events.windows(2).position(again).filter(|_| early) {
        println!("this KVM: it has");
        events.remove(at);
    }
    events
}

fn with_in_service_of(mode: Mode, chip: Chip, instead: &str, test: impl FnOnce() + UnwindSafe) {
    if !this_kvm(
        is_pvm() && mode.is_kvms(chip),
        "kvm_pvm keeps no vector in service: this test has to fail",
    ) {
        return test();
    }
    let Err(panic) = std::panic::catch_unwind(test) else {
        panic!("it has passed, although kvm_pvm keeps no vector in service");
    };
    let message = match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
    };
    assert!(
        message.contains(instead),
        "it has failed, but not with {instead:?}: {message}"
    );
}
