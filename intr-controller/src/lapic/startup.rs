//! INIT and start-up IPIs: what waits for the vCPU's thread, and whether the vCPU runs at all.

use super::{Acceptance, LapicRestoreError, Refusal};

/// What the vCPU's thread has to do to the vCPU: neither enters it, both replace its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Startup {
    /// Give the vCPU its state after INIT (SDM 3A, table "IA-32 and Intel 64 Processor States
    /// Following Power-up, Reset, or INIT"). Then it runs (bootstrap processor) or waits.
    Init {
        /// It waits for its start-up IPI.
        wait_for_sipi: bool,
    },
    /// Start it in real mode at this page: CS.selector is the vector << 8, CS.base the vector <<
    /// 12, RIP 0 (SDM 3A, "MP Initialization Protocol Algorithm").
    Sipi {
        /// The page.
        vector: u8,
    },
}

/// Where the vCPU is between INIT and its first instruction (SDM 3A, "MP Initialization Protocol
/// Algorithm").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartupState {
    /// It executes instructions, and ignores start-up IPIs.
    Running,
    /// It waits for a start-up IPI, or has one that its thread has not taken.
    WaitForSipi {
        /// The vector of the one that has arrived.
        sipi: Option<u8>,
    },
    /// An INIT has arrived that its thread has not taken.
    InitPending {
        /// The vCPU waited for a start-up IPI when the INIT came.
        waited: bool,
        /// A start-up IPI that came after the INIT.
        sipi: Option<u8>,
    },
}

impl StartupState {
    /// After reset and INIT.
    pub(super) const fn reset(bootstrap: bool) -> Self {
        if bootstrap {
            Self::Running
        } else {
            Self::WaitForSipi { sipi: None }
        }
    }

    /// From a saved state.
    pub(super) const fn from_parts(
        init_pending: bool,
        sipi: Option<u8>,
        waiting: bool,
    ) -> Result<Self, LapicRestoreError> {
        match (init_pending, waiting, sipi) {
            // Behind an INIT a start-up IPI may wait on a bootstrap processor too: the guest can write
            // that bit of IA32_APIC_BASE after the start-up IPI has come. The INIT then drops it.
            (true, waited, sipi) => Ok(Self::InitPending { waited, sipi }),
            (false, true, sipi) => Ok(Self::WaitForSipi { sipi }),
            (false, false, None) => Ok(Self::Running),
            (false, false, Some(_)) => Err(LapicRestoreError::Contradiction {
                field: "sipi_pending",
                other: "waiting_for_sipi",
            }),
        }
    }

    #[inline]
    pub(super) const fn is_running(self) -> bool {
        matches!(self, Self::Running)
    }

    /// Whether the vCPU waits for its start-up IPI.
    pub(super) const fn waits(self) -> bool {
        matches!(
            self,
            Self::WaitForSipi { .. } | Self::InitPending { waited: true, .. }
        )
    }

    pub(super) const fn init_pending(self) -> bool {
        matches!(self, Self::InitPending { .. })
    }

    pub(super) const fn sipi_pending(self) -> Option<u8> {
        match self {
            Self::Running => None,
            Self::WaitForSipi { sipi } | Self::InitPending { sipi, .. } => sipi,
        }
    }

    /// Whether [`Self::take`] returns something.
    pub(super) const fn is_pending(self) -> bool {
        matches!(
            self,
            Self::InitPending { .. } | Self::WaitForSipi { sipi: Some(_) }
        )
    }

    /// An INIT arrives. It outranks a start-up IPI that came before it (KVM: lapic.c,
    /// `__apic_accept_irq`).
    pub(super) fn accept_init(&mut self) -> Acceptance {
        let merged = self.init_pending();
        *self = Self::InitPending {
            waited: self.waits(),
            sipi: None,
        };
        if merged {
            Acceptance::Merged
        } else {
            Acceptance::Accepted
        }
    }

    /// A start-up IPI arrives. Only a vCPU that waits for one, or will after its INIT, takes it, and
    /// the first one ends the wait.
    pub(super) fn accept_sipi(&mut self, vector: u8, bootstrap: bool) -> Acceptance {
        match self {
            Self::Running => Acceptance::Refused(Refusal::NotWaitingForSipi),
            Self::InitPending { waited: false, .. } if bootstrap => {
                Acceptance::Refused(Refusal::NotWaitingForSipi)
            }
            Self::WaitForSipi { sipi } | Self::InitPending { sipi, .. } => {
                if sipi.is_some() {
                    return Acceptance::Merged;
                }
                *sipi = Some(vector);
                Acceptance::Accepted
            }
        }
    }

    /// The vCPU's thread takes what has arrived. After [`Startup::Init`] the local APIC is reset too.
    pub(super) fn take(&mut self, bootstrap: bool) -> Option<Startup> {
        match *self {
            Self::InitPending { sipi, .. } => {
                *self = match Self::reset(bootstrap) {
                    Self::WaitForSipi { .. } => Self::WaitForSipi { sipi },
                    other => other,
                };
                Some(Startup::Init {
                    wait_for_sipi: !bootstrap,
                })
            }
            Self::WaitForSipi { sipi } => {
                let vector = sipi?;
                *self = Self::Running;
                Some(Startup::Sipi { vector })
            }
            Self::Running => None,
        }
    }
}
