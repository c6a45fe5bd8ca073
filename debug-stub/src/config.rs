//! What a session is set up with.

use vcpu_caps::{Capability, Mechanism, Plan};

/// Set-up of a [`Session`](crate::Session).
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// What the host can do. It decides whether a software breakpoint is an INT3 in guest memory,
    /// whether there are hardware breakpoints and watchpoints, and whether stepping can hold
    /// `mask_hwintr`; `monitor caps` shows it.
    pub plan: Plan,
    /// Longest packet taken, in bytes of body; what `PacketSize` advertises. Taken into
    /// [`SessionConfig::PACKET_SIZES`].
    pub max_packet: usize,
}

impl SessionConfig {
    /// The packet size of [`SessionConfig::new`]: memory is read 16 KiB at a time.
    pub const DEFAULT_MAX_PACKET: usize = 32 * 1024;

    /// What `max_packet` may be: a `G` has to fit in, and a session should not cost megabytes.
    pub const PACKET_SIZES: core::ops::RangeInclusive<usize> = 2048..=1024 * 1024;

    /// The usual set-up for a plan.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            max_packet: Self::DEFAULT_MAX_PACKET,
        }
    }

    pub(crate) fn packet_limit(&self) -> usize {
        self.max_packet
            .clamp(*Self::PACKET_SIZES.start(), *Self::PACKET_SIZES.end())
    }

    /// INT3 in guest memory leaves the guest.
    pub(crate) fn software_breakpoints(&self) -> bool {
        self.plan
            .is_provided_by(Capability::BptExit, &Mechanism::HOST)
    }

    pub(crate) fn hardware_breakpoints(&self) -> bool {
        self.plan.has(Capability::HwBreakpoint)
    }

    pub(crate) fn watchpoints(&self) -> bool {
        self.plan.has(Capability::Watchpoint)
    }

    pub(crate) fn mask(&self) -> bool {
        self.plan.has(Capability::MaskHwintr)
    }
}
