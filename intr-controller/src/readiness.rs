//! What the vCPU allows now.

use core::fmt;

use crate::Vector;

/// What the vCPU is doing (SDM 3C, "Guest Non-Register State", activity state).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running,
    /// HLT executed: an event that may be delivered ends it (SDM 2A, HLT).
    Halted,
    /// An application processor before its start-up IPI, which alone can wake it.
    WaitForSipi,
}

/// A snapshot of everything about one vCPU that decides whether an event may enter it.
///
/// The mask is a part of it: a parameter of the decision, as time is. This crate does not count who
/// wants a vCPU masked (in this workspace `vcpu-caps` does), and no saved state contains the mask.
///
/// The default is the state in which nothing may: IF clear and the host not ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Readiness {
    /// What the vCPU is doing.
    pub activity: Activity,
    /// RFLAGS.IF.
    pub interrupt_flag: bool,
    /// The instruction boundary after an STI that set IF (SDM 2B, STI).
    pub sti_shadow: bool,
    /// The instruction boundary after MOV SS or POP SS (SDM 3A, "Masking Exceptions and Interrupts
    /// When Switching Stacks").
    ///
    /// SVM keeps one bit for both shadows, and KVM then reports both.
    pub mov_ss_shadow: bool,
    /// From the delivery of an NMI until IRET (SDM 3A, "Handling Multiple NMIs"), and in
    /// system-management mode.
    pub nmi_blocked: bool,
    /// In system-management mode.
    pub in_smm: bool,
    /// An event was handed to the host and has not reached the guest's handler yet, or its
    /// delivery was interrupted and must be repeated. It goes first, masked or not.
    pub event_in_flight: bool,
    /// An exception waits to be delivered. It goes first, masked or not.
    pub exception_pending: bool,
    /// The host takes a maskable interrupt now: `kvm_run.ready_for_interrupt_injection` in the
    /// modes that use `KVM_INTERRUPT`. NMI and SMI do not depend on it, because KVM queues them.
    pub host_ready: bool,
    /// `mask_hwintr`: the VMM withholds SMI, NMI, ExtINT and fixed interrupts from this vCPU, as
    /// when a debugger steps it. What it withholds stays pending.
    pub masked: bool,
}

impl Readiness {
    /// Executing with IF set, and nothing in the way.
    pub const OPEN: Self = Self {
        activity: Activity::Running,
        interrupt_flag: true,
        sti_shadow: false,
        mov_ss_shadow: false,
        nmi_blocked: false,
        in_smm: false,
        event_in_flight: false,
        exception_pending: false,
        host_ready: true,
        masked: false,
    };

    /// Whether it is [`Self::OPEN`]. Without a branch for each field: nearly every entry asks.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        let Self {
            activity,
            interrupt_flag,
            sti_shadow,
            mov_ss_shadow,
            nmi_blocked,
            in_smm,
            event_in_flight,
            exception_pending,
            host_ready,
            masked,
        } = *self;
        let closed = sti_shadow
            | mov_ss_shadow
            | nmi_blocked
            | in_smm
            | event_in_flight
            | exception_pending
            | masked;
        (activity == Activity::Running) & interrupt_flag & host_ready & !closed
    }

    /// [`Self::OPEN`], but masked.
    pub const MASKED: Self = Self {
        masked: true,
        ..Self::OPEN
    };
}

/// The processor-priority register, PPR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct ProcessorPriority(u8);

impl ProcessorPriority {
    /// Nothing in service and TPR 0: every legal vector may be delivered.
    pub const ZERO: Self = Self(0);

    /// From the task-priority register (or CR8 << 4, which is the same register) and the highest
    /// vector in service (SDM 3A, "Task and Processor Priorities").
    #[must_use]
    pub const fn new(tpr: u8, in_service: Option<Vector>) -> Self {
        match in_service {
            Some(vector) if vector.class() > tpr >> 4 => Self(vector.class() << 4),
            _ => Self(tpr),
        }
    }

    /// The register's value.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The class, which alone decides.
    #[must_use]
    pub const fn class(self) -> u8 {
        self.0 >> 4
    }

    /// A vector is delivered only if its class is above the processor's (SDM 3A, "Interrupt
    /// Acceptance for Fixed Interrupts").
    #[must_use]
    pub const fn admits(self, vector: Vector) -> bool {
        vector.class() > self.class()
    }
}

impl fmt::Display for ProcessorPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PPR {:#04x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(number: u8) -> Vector {
        Vector::new(number).unwrap()
    }

    #[test]
    fn ppr_is_the_tpr_where_its_class_is_not_below_that_in_service() {
        assert_eq!(ProcessorPriority::new(0x3a, None).get(), 0x3a);
        // Equal classes: the whole TPR, sub-class included.
        assert_eq!(ProcessorPriority::new(0x35, Some(vector(0x3f))).get(), 0x35);
        assert_eq!(ProcessorPriority::new(0x2f, Some(vector(0x31))).get(), 0x30);
    }

    #[test]
    fn only_the_class_is_compared() {
        let ppr = ProcessorPriority::new(0x20, None);
        assert!(!ppr.admits(vector(0x2f)));
        assert!(ppr.admits(vector(0x30)));
        let ppr = ProcessorPriority::new(0x2f, None);
        assert!(!ppr.admits(vector(0x2f)));
        assert!(ppr.admits(vector(0x30)));
        assert!(!ProcessorPriority::new(0xf0, None).admits(vector(0xff)));
        assert!(ProcessorPriority::ZERO.admits(vector(0x10)));
    }
}
