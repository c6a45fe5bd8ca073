//! Steps of SYSCALL and SYSRET, whose trap depends on the TF that they leave.
//!
//! Of all instructions these two are followed by a single-step trap only if TF is set *after*
//! them: SYSCALL clears what IA32_FMASK names, which is TF in every system, and SYSRET takes TF
//! from R11 (SDM 2 "SYSCALL", "SYSRET"). A step of SYSCALL would so run the whole system call,
//! with interrupts masked for as long as it sleeps, and a step of SYSRET would end at the next
//! interrupt, or never. So TF is left out of the mask, or put into R11, for this one instruction.

use super::registers::{RegistersError, read_msr, write_msr};
use super::vcpu::{DebugVcpu, RFLAGS_TF};
use crate::x86_64::{RegisterFile, RegisterGroups, StepClass};

/// IA32_FMASK (SDM 4, table 2-2).
const MSR_FMASK: u32 = 0xc000_0084;

/// What a step has changed for its duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Lent {
    #[default]
    Nothing,
    /// IA32_FMASK, and its own value.
    Mask(u64),
    /// R11, its own value, and the one it has now.
    R11 { own: u64, lent: u64 },
}

impl Lent {
    /// The registers as they would be without it.
    pub(super) fn hide(self, registers: &mut RegisterFile) {
        if let Self::R11 { own, lent } = self {
            if registers.core.r11 == lent {
                registers.core.r11 = own;
            }
        }
    }
}

impl DebugVcpu {
    /// Makes sure that the instruction ends in a trap. Call it before the step is armed, and
    /// [`take_back`](Self::take_back) when it has ended, however that was.
    pub(super) fn lend(
        &mut self,
        class: StepClass,
        before: &RegisterFile,
    ) -> Result<Lent, RegistersError> {
        match class {
            StepClass::SystemCall => {
                let mask = read_msr(&self.fd, MSR_FMASK)?;
                if mask & RFLAGS_TF == 0 {
                    return Ok(Lent::Nothing);
                }
                write_msr(&self.fd, MSR_FMASK, mask & !RFLAGS_TF)?;
                Ok(Lent::Mask(mask))
            }
            StepClass::SystemReturn if before.core.r11 & RFLAGS_TF == 0 => {
                let own = before.core.r11;
                let lent = own | RFLAGS_TF;
                let mut registers = before.clone();
                registers.core.r11 = lent;
                self.write_registers(RegisterGroups::CORE, &registers)?;
                Ok(Lent::R11 { own, lent })
            }
            _ => Ok(Lent::Nothing),
        }
    }

    /// Restores what was lent.
    pub(super) fn take_back(&mut self, lent: Lent) -> Result<(), RegistersError> {
        match lent {
            Lent::Nothing => Ok(()),
            Lent::Mask(mask) => write_msr(&self.fd, MSR_FMASK, mask),
            Lent::R11 { own, lent } => {
                let mut now = RegisterFile::default();
                self.read_registers(RegisterGroups::CORE, &mut now)?;
                if now.core.r11 == lent {
                    now.core.r11 = own;
                    self.write_registers(RegisterGroups::CORE, &now)?;
                }
                Ok(())
            }
        }
    }
}
