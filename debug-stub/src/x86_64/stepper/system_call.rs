//! Steps of SYSCALL and SYSRET, whose trap depends on the TF that they leave.
//!
//! Of all instructions these two are followed by a single-step trap only if TF is set *after*
//! them: SYSCALL clears what IA32_FMASK names, which is TF in every operating system, and SYSRET
//! takes TF from R11 (SDM 2 "SYSCALL", "SYSRET"). A step of SYSCALL would therefore run the whole
//! system call, with interrupts masked for as long as it sleeps, and a step of SYSRET would end at
//! the next interrupt, or never. So TF is left out of the mask, or put into R11, for this one
//! instruction.

use super::arming::may_write;
use super::registers::Registers;
use super::vcpu::{StepperError, Vcpu};
use crate::x86_64::bits::RFLAGS_TF;
use crate::x86_64::{RegisterFile, RegisterGroups, StepClass};

/// IA32_FMASK (SDM 4 table 2-2).
const IA32_FMASK: u32 = 0xc000_0084;

/// What a step has changed for its duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Lent {
    #[default]
    Nothing,
    /// Nothing: IA32_FMASK leaves TF alone.
    NoMask,
    /// IA32_FMASK, and its own value.
    Fmask(u64),
    /// R11, its own value, and the one it has now.
    R11 { own: u64, lent: u64 },
}

impl Lent {
    /// Makes sure that the instruction ends in a trap. Call it before the step is armed, and
    /// [`take_back`](Self::take_back) when it has ended, in whatever way. `now` is what the
    /// registers are, and is kept so.
    pub(super) fn lend<V: Vcpu>(
        class: Option<StepClass>,
        now: &mut RegisterFile,
        vcpu: &mut V,
        registers: &mut Registers,
    ) -> Result<Self, StepperError<V::Error>> {
        match class {
            Some(StepClass::SystemCall) => {
                let mask = vcpu
                    .read_msr(IA32_FMASK)
                    .map_err(StepperError::of("reading IA32_FMASK"))?;
                if mask & RFLAGS_TF == 0 {
                    return Ok(Self::NoMask);
                }
                vcpu.write_msr(IA32_FMASK, mask & !RFLAGS_TF)
                    .map_err(StepperError::of("writing IA32_FMASK"))?;
                Ok(Self::Fmask(mask))
            }
            // An exception that waits comes first.
            Some(StepClass::SystemReturn)
                if now.core.r11 & RFLAGS_TF == 0 && may_write(vcpu, registers)? =>
            {
                let own = now.core.r11;
                let lent = own | RFLAGS_TF;
                now.core.r11 = lent;
                registers.write(vcpu, RegisterGroups::CORE, now)?;
                Ok(Self::R11 { own, lent })
            }
            _ => Ok(Self::Nothing),
        }
    }

    /// IA32_FMASK as the guest has set it, where SYSCALL is stepped.
    pub(super) fn system_call_mask(self) -> Option<u64> {
        match self {
            Self::NoMask => Some(0),
            Self::Fmask(mask) => Some(mask),
            Self::Nothing | Self::R11 { .. } => None,
        }
    }

    /// The registers as they would be without it.
    pub(super) fn hide(self, file: &mut RegisterFile) {
        match self {
            Self::R11 { own, lent } if file.core.r11 == lent => file.core.r11 = own,
            _ => {}
        }
    }

    /// Restores what was lent. If that fails, it is still lent: call it again.
    pub(super) fn take_back<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        registers: &mut Registers,
    ) -> Result<(), StepperError<V::Error>> {
        match *self {
            Self::Nothing | Self::NoMask => {}
            Self::Fmask(mask) => vcpu
                .write_msr(IA32_FMASK, mask)
                .map_err(StepperError::of("writing IA32_FMASK back"))?,
            Self::R11 { own, lent } => {
                let mut now = RegisterFile::default();
                registers.read(vcpu, RegisterGroups::CORE, &mut now)?;
                if now.core.r11 == lent {
                    now.core.r11 = own;
                    registers.write(vcpu, RegisterGroups::CORE, &now)?;
                }
            }
        }
        *self = Self::Nothing;
        Ok(())
    }
}
