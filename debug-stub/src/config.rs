//! What a session is set up with.

use vcpu_caps::{Capability, Mechanism, Plan};

/// Set-up of a [`Session`](crate::Session).
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// What the host can do. It decides whether a software breakpoint is an instruction in guest
    /// memory, whether there are hardware breakpoints and watchpoints, and whether stepping can
    /// hold `mask_hwintr`. `monitor caps` shows it.
    pub plan: Plan,
    /// Longest packet that the session takes, in bytes of body; `PacketSize` advertises it. Values
    /// outside [`SessionConfig::PACKET_SIZES`] are clamped.
    pub max_packet: usize,
    /// What becomes of the guest when a connection ends without `detach`.
    pub on_disconnect: OnDisconnect,
    /// Whether a reset that the guest asks for stops it for the client.
    pub on_reset: OnReset,
    /// Which target description a client gets.
    pub description: Description,
}

/// What becomes of a guest that runs for a client, and has asked for a reset
/// ([`StopReason::ResetRequest`](crate::StopReason::ResetRequest)). Its breakpoints stay set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// It stops before its first instruction, with SIGTRAP.
    #[default]
    Stop,
    /// It starts again, and a line on the client's console says so. A step ends all the same.
    Continue,
}

/// Which target description a client gets: the registers that it knows, and the architecture by which it disassembles.
/// It cannot change by itself in a connection. It changes when the client reads the description again.
///
/// Names are GDB's of architectures: `i386:x86-64`. An unknown one is logged, and taken for
/// [`ByMode`](Self::ByMode).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Description {
    /// That of the mode that the vCPUs are in when the client reads it: the widest of them.
    #[default]
    ByMode,
    /// The one with this name for a client that reads it for the first time, and that of the mode when it reads it
    /// again. For a 64-bit kernel that starts in 32-bit mode: its user has the kernel's symbols, and sets
    /// breakpoints in 64-bit code.
    FirstThis(&'static str),
    /// Always the one with this name.
    Always(&'static str),
}

/// What becomes of the guest when its client has gone without a word: the connection is closed or broken, by
/// a `disconnect`, a killed debugger or a port scan. Nothing is armed, masked, held or written in any case.
///
/// `detach` always lets the guest run. `kill` ends it; in GDB's extended mode with the connection, unless `run` starts
/// it again before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It is as it was before the client came. A guest that ran, runs. A guest that was stopped stays stopped,
    /// unless the client has continued it and it runs at that time.
    #[default]
    AsBefore,
    /// It runs.
    Run,
    /// It is stopped, or stays stopped, for the next client.
    Stop,
}

impl SessionConfig {
    /// The packet size of [`SessionConfig::new`]: memory is read 64 KiB at a time, two digits a byte.
    pub const DEFAULT_MAX_PACKET: usize = 128 * 1024;

    /// What `max_packet` may be. A `G` packet has to fit, and a session should not cost megabytes.
    pub const PACKET_SIZES: core::ops::RangeInclusive<usize> = 2048..=1024 * 1024;

    /// The usual set-up for a plan.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            max_packet: Self::DEFAULT_MAX_PACKET,
            on_disconnect: OnDisconnect::default(),
            on_reset: OnReset::default(),
            description: Description::default(),
        }
    }

    /// Returns the longest packet, in bytes of body.
    pub(crate) fn packet_limit(&self) -> usize {
        self.max_packet
            .clamp(*Self::PACKET_SIZES.start(), *Self::PACKET_SIZES.end())
    }

    /// Returns `true` if a breakpoint instruction in guest memory leaves the guest.
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
