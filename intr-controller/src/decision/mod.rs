//! May an event enter now? A pure function of the pending events and of what the vCPU allows.

use core::fmt;

use bitflags::bitflags;

use crate::{Activity, Event, Pending, ProcessorPriority, Readiness};

bitflags! {
    /// Everything that keeps one event out.
    ///
    /// A set, not the first reason found: to a user who asks why no interrupt arrives, "IF=0" and
    /// "masked, IF=0" are different answers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct BlockReasons: u16 {
        /// The vCPU is [masked](Readiness::masked).
        const MASKED = 1 << 0;
        /// RFLAGS.IF is clear.
        const INTERRUPT_FLAG = 1 << 1;
        /// The instruction after STI.
        const STI_SHADOW = 1 << 2;
        /// The instruction after MOV SS or POP SS.
        const MOV_SS_SHADOW = 1 << 3;
        /// An NMI handler runs.
        const NMI_BLOCKED = 1 << 4;
        /// The vCPU is in system-management mode.
        const IN_SMM = 1 << 5;
        /// The vector's class is not above the processor priority.
        const PRIORITY = 1 << 6;
        /// Another event is on its way in.
        const EVENT_IN_FLIGHT = 1 << 7;
        /// An exception goes first.
        const EXCEPTION_PENDING = 1 << 8;
        /// The host cannot take a maskable interrupt now.
        const HOST_NOT_READY = 1 << 9;
        /// The vCPU waits for its start-up IPI.
        const WAIT_FOR_SIPI = 1 << 10;
    }
}

impl BlockReasons {
    /// Conditions that pass by themselves within an instruction or two. They do not keep a halted
    /// vCPU asleep.
    const TRANSIENT: Self = Self::STI_SHADOW
        .union(Self::MOV_SS_SHADOW)
        .union(Self::EVENT_IN_FLIGHT)
        .union(Self::EXCEPTION_PENDING)
        .union(Self::HOST_NOT_READY);

    /// Reasons that no window reports. The VMM itself lifts the mask, a lower task priority is an
    /// exit (`KVM_EXIT_SET_TPR`) or an access to the local APIC, and a start-up IPI comes from
    /// another vCPU.
    const NO_WINDOW: Self = Self::MASKED
        .union(Self::PRIORITY)
        .union(Self::WAIT_FOR_SIPI);
}

bitflags! {
    /// What the host should report when it becomes possible.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Windows: u8 {
        /// A maskable interrupt can be taken (`kvm_run.request_interrupt_window`; SDM 3C,
        /// "interrupt-window exiting").
        const INTERRUPT = 1 << 0;
        /// An NMI can be taken (SDM 3C, "NMI-window exiting"). KVM opens it itself for
        /// `KVM_NMI`.
        const NMI = 1 << 1;
        /// An SMI can be taken: RSM executed. KVM opens it itself for `KVM_SMI`.
        const SMI = 1 << 2;
    }
}

impl Windows {
    const fn of(event: Event) -> Self {
        match event {
            Event::Smi => Self::SMI,
            Event::Nmi => Self::NMI,
            Event::ExtInt | Event::Fixed(_) => Self::INTERRUPT,
        }
    }
}

/// A pending event that may not enter, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blocked {
    /// The most urgent pending event.
    pub event: Event,
    /// Everything that keeps it out; never empty.
    pub reasons: BlockReasons,
    /// The processor priority, for [`BlockReasons::PRIORITY`].
    pub priority: ProcessorPriority,
}

/// What to do with a vCPU now.
///
/// After an injection ask again: more may wait, and the answer is then the window to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a decision changes nothing by itself"]
pub enum Decision {
    /// Hand this event to the host, then call [`crate::InjectionPolicy::injected`]. A halted vCPU
    /// runs again: the delivery ends HLT.
    Inject(Event),
    /// Nothing may enter now; run on and have the host report each of these windows. All of them:
    /// an interrupt may become possible long before the NMI that outranks it.
    OpenWindow(Windows, Blocked),
    /// Nothing may enter now, but a pending event ends HLT: let the vCPU run on past it. The event
    /// stays pending and enters when its reasons are gone.
    Wake(Blocked),
    /// Nothing may enter, and there is no window to wait for. A halted vCPU stays halted.
    Blocked(Blocked),
    /// Nothing is pending.
    Idle,
}

impl Decision {
    /// The pending event that may not enter, and why, if there is one.
    #[must_use]
    pub const fn blocked(&self) -> Option<&Blocked> {
        match self {
            Self::OpenWindow(_, blocked) | Self::Wake(blocked) | Self::Blocked(blocked) => {
                Some(blocked)
            }
            Self::Inject(_) | Self::Idle => None,
        }
    }
}

/// Decides for one vCPU. Changes nothing, so asking twice gives the same answer twice.
///
/// [`crate::InjectionPolicy::decide`] is this with the policy's own pending set; with a set that
/// was read from the host it explains what the host's chips are doing.
#[inline(always)]
pub fn decide(pending: &Pending, vcpu: &Readiness, priority: ProcessorPriority) -> Decision {
    // The common case: only fixed interrupts, or nothing, and a vCPU that is open.
    if pending.is_fixed_only() {
        let Some(vector) = pending.fixed().highest() else {
            return Decision::Idle;
        };
        let event = Event::Fixed(vector);
        if !vcpu.is_open() {
            return decide_one(event, vcpu, priority);
        }
        if priority.admits(vector) {
            return Decision::Inject(event);
        }
        return Decision::Blocked(Blocked {
            event,
            reasons: BlockReasons::PRIORITY,
            priority,
        });
    }
    decide_in_full(pending, vcpu, priority)
}

#[inline(never)]
fn decide_one(event: Event, vcpu: &Readiness, priority: ProcessorPriority) -> Decision {
    decide_among([event], vcpu, priority)
}

#[inline(never)]
fn decide_in_full(pending: &Pending, vcpu: &Readiness, priority: ProcessorPriority) -> Decision {
    decide_among(pending.candidates(), vcpu, priority)
}

/// Decides among events, the most urgent first.
fn decide_among(
    events: impl IntoIterator<Item = Event>,
    vcpu: &Readiness,
    priority: ProcessorPriority,
) -> Decision {
    let mut first: Option<Blocked> = None;
    let mut windows = Windows::empty();
    let mut wakes = None;
    // In the order of the table: the first that may enter does. One that may not does not stop the
    // next: in an NMI handler that set IF, a second NMI waits and an interrupt enters.
    for event in events {
        let reasons = block_reasons(event, vcpu, priority);
        if reasons.is_empty() {
            return Decision::Inject(event);
        }
        let blocked = Blocked {
            event,
            reasons,
            priority,
        };
        first = first.or(Some(blocked));
        if !reasons.intersects(BlockReasons::NO_WINDOW) {
            windows |= Windows::of(event);
        }
        // The mask does not keep a vCPU asleep. HLT ends, and the event stays pending. KVM's
        // BLOCKIRQ (x86.c: `kvm_vcpu_has_events` does not look at it) and bhyve's mask do the same.
        // A guest cannot tell this from an SMI that ended its HLT, and a debugger that steps over
        // HLT gets its step.
        if wakes.is_none() && (BlockReasons::TRANSIENT | BlockReasons::MASKED).contains(reasons) {
            wakes = Some(blocked);
        }
    }
    match (first, vcpu.activity, wakes) {
        (None, _, _) => Decision::Idle,
        (Some(_), Activity::Halted, Some(blocked)) => Decision::Wake(blocked),
        // A halted vCPU executes nothing that could open a window.
        (Some(blocked), Activity::Halted | Activity::WaitForSipi, _) => Decision::Blocked(blocked),
        (Some(blocked), Activity::Running, _) if windows.is_empty() => Decision::Blocked(blocked),
        (Some(blocked), Activity::Running, _) => Decision::OpenWindow(windows, blocked),
    }
}

/// Everything that keeps this event out.
#[inline]
fn block_reasons(event: Event, vcpu: &Readiness, priority: ProcessorPriority) -> BlockReasons {
    let mut reasons = BlockReasons::empty();
    // The mask withholds SMI, NMI and interrupts, and only their injection. The host finishes
    // exceptions and the events that an earlier decision let in (`event_in_flight`).
    // KVM_GUESTDBG_BLOCKIRQ has the same reach (x86.c, `kvm_check_and_inject_events`: the test
    // stands after re-injection and exceptions, before SMI, NMI and IRQ).
    reasons.set(BlockReasons::MASKED, vcpu.masked);
    // One event enters at a time. Both were raised by instructions that are already over, so they
    // go first whatever their row in the table says of new ones (x86.c, as above).
    reasons.set(BlockReasons::EVENT_IN_FLIGHT, vcpu.event_in_flight);
    reasons.set(BlockReasons::EXCEPTION_PENDING, vcpu.exception_pending);
    // SDM 3C, "Guest Non-Register State": wait-for-SIPI blocks everything else.
    reasons.set(
        BlockReasons::WAIT_FOR_SIPI,
        vcpu.activity == Activity::WaitForSipi,
    );
    match event {
        // A second SMI is latched until RSM (SDM 3C, "Entering SMM").
        Event::Smi => reasons.set(BlockReasons::IN_SMM, vcpu.in_smm),
        Event::Nmi => {
            reasons.set(BlockReasons::NMI_BLOCKED, vcpu.nmi_blocked);
            // Whether STI also shades NMI is up to the processor (SDM 2B, STI; SDM 3C, "Checks on
            // Guest Non-Register State"): KVM withholds NMI in both shadows on VMX and on SVM.
            shadows(&mut reasons, vcpu);
        }
        Event::ExtInt | Event::Fixed(_) => {
            // SDM 3A, "Masking Maskable Hardware Interrupts".
            reasons.set(BlockReasons::INTERRUPT_FLAG, !vcpu.interrupt_flag);
            shadows(&mut reasons, vcpu);
            reasons.set(BlockReasons::HOST_NOT_READY, !vcpu.host_ready);
        }
    }
    // An ExtINT bypasses the local APIC's priorities (SDM 3A, "Local Vector Table", ExtINT).
    if let Event::Fixed(vector) = event {
        reasons.set(BlockReasons::PRIORITY, !priority.admits(vector));
    }
    reasons
}

fn shadows(reasons: &mut BlockReasons, vcpu: &Readiness) {
    reasons.set(BlockReasons::STI_SHADOW, vcpu.sti_shadow);
    reasons.set(BlockReasons::MOV_SS_SHADOW, vcpu.mov_ss_shadow);
}

impl Blocked {
    /// The reasons as text, without the event: "masked, IF=0".
    #[must_use]
    pub fn why(&self) -> impl fmt::Display + use<> {
        Why(*self)
    }
}

struct Why(Blocked);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(blocked) = self;
        for (index, reason) in blocked.reasons.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match reason {
                BlockReasons::MASKED => f.write_str("masked")?,
                BlockReasons::INTERRUPT_FLAG => f.write_str("IF=0")?,
                BlockReasons::STI_SHADOW => f.write_str("STI shadow")?,
                BlockReasons::MOV_SS_SHADOW => f.write_str("MOV SS shadow")?,
                BlockReasons::NMI_BLOCKED => f.write_str("NMIs blocked until IRET")?,
                BlockReasons::IN_SMM => f.write_str("in SMM until RSM")?,
                BlockReasons::PRIORITY => write!(f, "priority ({})", blocked.priority)?,
                BlockReasons::EVENT_IN_FLIGHT => f.write_str("another event is being delivered")?,
                BlockReasons::EXCEPTION_PENDING => f.write_str("an exception goes first")?,
                BlockReasons::HOST_NOT_READY => f.write_str("the host is not ready")?,
                _ => f.write_str("waiting for a start-up IPI")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pending; blocked: {}", self.event, self.why())
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inject(event) => write!(f, "{event} pending; may be injected"),
            Self::OpenWindow(_, blocked) | Self::Blocked(blocked) => blocked.fmt(f),
            Self::Wake(blocked) => write!(f, "{blocked}; ends HLT"),
            Self::Idle => f.write_str("nothing pending"),
        }
    }
}

#[cfg(test)]
mod tests;
