//! What a vCPU has done since its machine was built: entries, and exits by reason.
//!
//! These are plain numbers in the [`Vcpu`](super::Vcpu), which belongs to the thread that runs it. They are read
//! while it is stopped.

use std::fmt;

use kvm_ioctls::{Error, VcpuExit};

use crate::entry::Entering;

/// How a `KVM_RUN` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Returned {
    Io,
    Mmio,
    Rdmsr,
    Wrmsr,
    Hlt,
    IrqWindowOpen,
    IoapicEoi,
    SetTpr,
    Debug,
    Interrupted,
    Completed,
    Restarted,
    Shutdown,
    SystemEvent,
    FailEntry,
    InternalError,
    Other,
    Failed,
}

/// What each is called: KVM's name, if it has one. In the order of [`Returned`].
const NAMES: [(Returned, &str); 18] = [
    (Returned::Io, "KVM_EXIT_IO"),
    (Returned::Mmio, "KVM_EXIT_MMIO"),
    (Returned::Rdmsr, "KVM_EXIT_X86_RDMSR"),
    (Returned::Wrmsr, "KVM_EXIT_X86_WRMSR"),
    (Returned::Hlt, "KVM_EXIT_HLT"),
    (Returned::IrqWindowOpen, "KVM_EXIT_IRQ_WINDOW_OPEN"),
    (Returned::IoapicEoi, "KVM_EXIT_IOAPIC_EOI"),
    (Returned::SetTpr, "KVM_EXIT_SET_TPR"),
    (Returned::Debug, "KVM_EXIT_DEBUG"),
    (
        Returned::Interrupted,
        "KVM_EXIT_INTR: interrupted by a signal",
    ),
    (
        Returned::Completed,
        "EINTR: an access was completed, and no instruction was run",
    ),
    (
        Returned::Restarted,
        "EAGAIN: INIT or a start-up IPI was accepted",
    ),
    (Returned::Shutdown, "KVM_EXIT_SHUTDOWN"),
    (Returned::SystemEvent, "KVM_EXIT_SYSTEM_EVENT"),
    (Returned::FailEntry, "KVM_EXIT_FAIL_ENTRY"),
    (Returned::InternalError, "KVM_EXIT_INTERNAL_ERROR"),
    (Returned::Other, "an exit that this VMM does not serve"),
    (Returned::Failed, "KVM_RUN failed"),
];

impl Returned {
    /// For the result of a `KVM_RUN`. `completes`: it was only to complete an access.
    pub(super) fn of(result: &Result<VcpuExit<'_>, Error>, completes: bool) -> Self {
        match result {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Self::Io,
            Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => Self::Mmio,
            Ok(VcpuExit::X86Rdmsr(_)) => Self::Rdmsr,
            Ok(VcpuExit::X86Wrmsr(_)) => Self::Wrmsr,
            Ok(VcpuExit::Hlt) => Self::Hlt,
            Ok(VcpuExit::IrqWindowOpen) => Self::IrqWindowOpen,
            Ok(VcpuExit::IoapicEoi(_)) => Self::IoapicEoi,
            Ok(VcpuExit::SetTpr) => Self::SetTpr,
            Ok(VcpuExit::Debug(_)) => Self::Debug,
            Ok(VcpuExit::Intr) => Self::Interrupted,
            Ok(VcpuExit::Shutdown) => Self::Shutdown,
            Ok(VcpuExit::SystemEvent(..)) => Self::SystemEvent,
            Ok(VcpuExit::FailEntry(..)) => Self::FailEntry,
            Ok(VcpuExit::InternalError) => Self::InternalError,
            Ok(_) => Self::Other,
            Err(error) => match error.errno() {
                // `immediate_exit` (api.rst 5).
                libc::EINTR if completes => Self::Completed,
                libc::EINTR => Self::Interrupted,
                libc::EAGAIN => Self::Restarted,
                _ => Self::Failed,
            },
        }
    }
}

/// What a vCPU has done. Its `Display` has a line for each kind of exit that there was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VcpuStats {
    /// By [`Returned`].
    returned: [u64; NAMES.len()],
    stepping: u64,
    masked: u64,
}

impl VcpuStats {
    /// The guest is entered.
    pub(super) fn enters(&mut self, entering: &Entering) {
        self.stepping += u64::from(entering.stepping);
        self.masked += u64::from(entering.masked);
    }

    /// A `KVM_RUN` has returned.
    pub(super) fn returns(&mut self, returned: Returned) {
        if let Some(count) = self.returned.get_mut(returned as usize) {
            *count += 1;
        }
    }
}

impl fmt::Display for VcpuStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            returned,
            stepping,
            masked,
        } = self;
        let entries: u64 = returned.iter().sum();
        writeln!(
            f,
            "{entries} entries (KVM_RUN), {stepping} of them to step one instruction, {masked} with interrupts masked"
        )?;
        for (count, (_, name)) in returned.iter().zip(NAMES) {
            if *count != 0 {
                writeln!(f, "{count:>12}  {name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Entering = Entering {
        masked: false,
        stepping: false,
        reads_clock: true,
        incomplete: false,
        prepared: None,
    };

    fn failed(errno: i32, completes: bool) -> Returned {
        Returned::of(&Err(Error::new(errno)), completes)
    }

    #[test]
    fn each_reason_has_its_own_counter_and_name() {
        for (index, (returned, name)) in NAMES.iter().enumerate() {
            assert_eq!(*returned as usize, index, "{name}");
            let mut stats = VcpuStats::default();
            stats.returns(*returned);
            let text = stats.to_string();
            assert!(text.starts_with("1 entries"), "{text}");
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(text.ends_with(&format!(" 1  {name}\n")), "{text}");
        }
    }

    #[test]
    fn an_access_is_an_exit_of_its_kind_in_both_directions() {
        let port = [0];
        let mut answer = [0];
        let mut word = [0; 8];
        for (exit, returned) in [
            (VcpuExit::IoOut(0x80, &port), Returned::Io),
            (VcpuExit::IoIn(0x80, &mut answer), Returned::Io),
            (VcpuExit::MmioWrite(1, &port), Returned::Mmio),
            (VcpuExit::MmioRead(1, &mut word), Returned::Mmio),
            (VcpuExit::Hlt, Returned::Hlt),
            (VcpuExit::IrqWindowOpen, Returned::IrqWindowOpen),
            (VcpuExit::Unsupported(99), Returned::Other),
        ] {
            assert_eq!(Returned::of(&Ok(exit), false), returned);
        }
    }

    #[test]
    fn a_signal_and_a_completed_access_are_two_things() {
        assert_eq!(failed(libc::EINTR, false), Returned::Interrupted);
        assert_eq!(failed(libc::EINTR, true), Returned::Completed);
        assert_eq!(failed(libc::EAGAIN, false), Returned::Restarted);
        assert_eq!(failed(libc::EFAULT, false), Returned::Failed);
    }

    #[test]
    fn entries_are_counted_by_what_they_are_for() {
        let mut stats = VcpuStats::default();
        for (stepping, masked) in [(false, false), (true, false), (true, true), (true, true)] {
            stats.enters(&Entering {
                stepping,
                masked,
                ..FREE
            });
            stats.returns(Returned::Debug);
        }
        stats.returns(Returned::Hlt);
        assert_eq!(
            stats.to_string(),
            "5 entries (KVM_RUN), 3 of them to step one instruction, 2 with interrupts masked\n           \
             1  KVM_EXIT_HLT\n           4  KVM_EXIT_DEBUG\n"
        );
    }
}
