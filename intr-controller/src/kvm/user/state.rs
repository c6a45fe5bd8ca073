//! The saved form of a vCPU whose chips are all in userspace.

use thiserror::Error;

use super::UserVcpu;
use super::lent::Lent;
use crate::{DeadlineWatch, LapicRestoreError, LapicState};

/// A [`UserVcpu`] as plain data. Save it behind [`UserVcpu::prepare`] under the mask, which takes back what KVM
/// was given and the guest has not taken; the rest of the vCPU is in KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct UserVcpuState {
    /// The layout, [`UserVcpuState::VERSION`].
    pub version: u16,
    /// The local APIC.
    pub lapic: LapicState,
    /// The vCPU waits in HLT.
    pub halted: bool,
    /// An ExtINT that the 8259A has given up and the guest has not taken. No chip's state has it.
    pub ext_int: Option<u8>,
}

/// A saved state was refused; the vCPU is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UserVcpuRestoreError {
    /// `version`.
    #[error(
        "version: {found} is unknown, this build reads {}",
        UserVcpuState::VERSION
    )]
    Version {
        /// What the state says.
        found: u16,
    },
    /// `lapic`.
    #[error("lapic.{0}")]
    Lapic(#[from] LapicRestoreError),
}

impl UserVcpuState {
    /// The layout that this build writes and reads.
    pub const VERSION: u16 = 1;
}

impl UserVcpu {
    /// The state as plain data.
    #[must_use]
    pub fn save(&self) -> UserVcpuState {
        let Self {
            lapic,
            halted,
            // KVM's state has it, if the guest has not taken it.
            lent: _,
            acknowledged,
            // The copy of CR8 is made before each entry, the readings of the counter after the restore.
            entered_with: _,
            watch: _,
        } = self;
        UserVcpuState {
            version: UserVcpuState::VERSION,
            lapic: lapic.save(),
            halted: *halted,
            ext_int: *acknowledged,
        }
    }

    /// Takes a saved state over, whole or not at all. Give [`Lapic::destination`](crate::Lapic::destination) to
    /// the table afterwards.
    ///
    /// # Errors
    /// If the state is not one that [`save`](Self::save) can have made with this configuration; nothing has
    /// changed then.
    pub fn restore(&mut self, state: &UserVcpuState) -> Result<(), UserVcpuRestoreError> {
        let UserVcpuState {
            version,
            lapic,
            halted,
            ext_int,
        } = state;
        if *version != UserVcpuState::VERSION {
            return Err(UserVcpuRestoreError::Version { found: *version });
        }
        self.lapic.restore(lapic)?;
        self.halted = *halted;
        self.acknowledged = *ext_int;
        self.lent = Lent::default();
        self.entered_with = self.lapic.cr8();
        self.watch = DeadlineWatch::new();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::num::NonZeroU64;

    use super::*;
    use crate::LapicConfig;

    fn vcpu() -> UserVcpu {
        UserVcpu::new(LapicConfig::new(0, true, NonZeroU64::MIN))
    }

    #[test]
    fn an_acknowledged_ext_int_and_hlt_survive_a_restore() {
        let mut saved = vcpu();
        saved.halt();
        saved.requeue(0x5a);
        let _ = saved.lapic_mut().set_lint1(true);
        let mut restored = vcpu();
        restored.restore(&saved.save()).unwrap();
        assert!(restored.is_halted());
        assert_eq!(restored.acknowledged_ext_int(), Some(0x5a));
        assert_eq!(restored.save(), saved.save());
        // Again, over another state.
        restored.restore(&vcpu().save()).unwrap();
        assert!(!restored.is_halted());
        assert_eq!(restored.acknowledged_ext_int(), None);
    }

    #[test]
    fn a_state_that_is_refused_changes_nothing() {
        let mut vcpu = vcpu();
        vcpu.requeue(0x21);
        let before = vcpu.save();
        let mut state = before;
        state.version = 2;
        state.ext_int = None;
        let refused = vcpu.restore(&state);
        assert_eq!(refused, Err(UserVcpuRestoreError::Version { found: 2 }));
        state.version = UserVcpuState::VERSION;
        state.lapic.apic_id = 7;
        assert!(matches!(
            vcpu.restore(&state),
            Err(UserVcpuRestoreError::Lapic(
                LapicRestoreError::ApicId { .. }
            ))
        ));
        assert_eq!(vcpu.save(), before);
    }
}
