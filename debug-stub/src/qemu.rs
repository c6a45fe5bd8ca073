//! QEMU's maintenance packets, `qqemu.*` and `Qqemu.*`, with QEMU's meaning and replies
//! (QEMU documentation, "GDB usage", "Advanced debugging options").

use crate::guest::{Guest, errno};
use crate::host::Host;
use crate::request::QemuRequest;

/// How single steps are made: QEMU's `sstep` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepBits {
    set: u64,
    supported: u64,
}

impl StepBits {
    /// A step is a step; without it, `s` continues.
    const ENABLE: u64 = 1;
    /// No interrupt enters the vCPU during a step: `mask_hwintr`.
    const NO_IRQ: u64 = 2;

    /// All supported bits are set, as QEMU starts. NOTIMER (4), which stops the guest's timers
    /// while it steps, is not supported.
    pub(crate) fn new(mask: bool) -> Self {
        let supported = if mask {
            Self::ENABLE | Self::NO_IRQ
        } else {
            Self::ENABLE
        };
        Self {
            set: supported,
            supported,
        }
    }

    /// Returns `true` if a step is a step, and `false` if it continues.
    pub(crate) fn steps(self) -> bool {
        self.set & Self::ENABLE != 0
    }

    /// Returns `true` if steps hold `mask_hwintr`.
    pub(crate) fn masks(self) -> bool {
        self.set & Self::NO_IRQ != 0
    }

    /// Returns `true` if the host provides the mask.
    pub(crate) fn can_mask(self) -> bool {
        self.supported & Self::NO_IRQ != 0
    }

    /// Switches the mask. Returns `false` if the host does not provide it.
    #[must_use]
    pub(crate) fn set_mask(&mut self, mask: bool) -> bool {
        if mask {
            self.set |= Self::NO_IRQ & self.supported;
        } else {
            self.set &= !Self::NO_IRQ;
        }
        self.masks() == mask
    }
}

/// Carries out a maintenance packet. Returns the reply.
pub(crate) fn answer<H: Host>(guest: &mut Guest<H>, request: QemuRequest) -> String {
    let bits = guest.step_bits;
    match request {
        QemuRequest::Supported => "sstepbits;sstep;PhyMemMode".into(),
        QemuRequest::StepBits if bits.can_mask() => {
            format!("ENABLE={:x},NOIRQ={:x}", StepBits::ENABLE, StepBits::NO_IRQ)
        }
        QemuRequest::StepBits => format!("ENABLE={:x}", StepBits::ENABLE),
        QemuRequest::Step => format!("{:#x}", bits.set),
        QemuRequest::SetStep(set) if set & !bits.supported != 0 => {
            format!("E{}", errno::EINVAL)
        }
        QemuRequest::SetStep(set) => {
            guest.step_bits.set = set;
            "OK".into()
        }
        QemuRequest::PhysicalMemory => u8::from(guest.physical_memory).to_string(),
        QemuRequest::SetPhysicalMemory(on) => {
            guest.physical_memory = on;
            "OK".into()
        }
    }
}
