//! The mask as a count of those who want it.

use thiserror::Error;

/// What the host's own mask must become, for those modes in which the host injects.
///
/// In `kernel` mode the mask is KVM_GUESTDBG_BLOCKIRQ, which the VMM's one composer of
/// `kvm_guest_debug` sets; in `split` and `user` mode the policy withholds by itself what it
/// injects, and `split` also needs BLOCKIRQ for the kernel's local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the host's mask does not follow by itself"]
pub enum HostMask {
    /// Leave it.
    Unchanged,
    /// The first hold was taken: mask.
    Set,
    /// The last hold was released: unmask.
    Clear,
}

/// There was no hold to release: the caller released twice. The mask is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("released a hold on interrupt injection that nobody took")]
pub struct NotHeld;

/// How many owners (a debugger, a snapshot, a test) want injection withheld.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Holds(u64);

impl Holds {
    /// Nobody.
    pub const NONE: Self = Self(0);

    /// One owner more.
    pub fn hold(&mut self) -> HostMask {
        // A count of 2^64 holds cannot be reached by adding one at a time.
        self.0 = self.0.saturating_add(1);
        if self.0 == 1 {
            HostMask::Set
        } else {
            HostMask::Unchanged
        }
    }

    /// One owner less.
    ///
    /// # Errors
    /// If there was none.
    pub fn release(&mut self) -> Result<HostMask, NotHeld> {
        self.0 = self.0.checked_sub(1).ok_or(NotHeld)?;
        Ok(if self.0 == 0 {
            HostMask::Clear
        } else {
            HostMask::Unchanged
        })
    }

    /// How many.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.0
    }

    /// Whether anybody holds.
    #[must_use]
    pub const fn is_held(self) -> bool {
        self.0 > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_mask_changes_with_the_first_and_the_last_hold_only() {
        let mut holds = Holds::NONE;
        assert_eq!(holds.hold(), HostMask::Set);
        assert_eq!(holds.hold(), HostMask::Unchanged);
        assert_eq!(holds.release(), Ok(HostMask::Unchanged));
        assert!(holds.is_held());
        assert_eq!(holds.release(), Ok(HostMask::Clear));
        assert_eq!(holds.release(), Err(NotHeld));
        assert_eq!(holds, Holds::NONE);
    }
}
