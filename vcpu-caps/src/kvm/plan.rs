//! From `/dev/kvm` to a plan in one call.

use thiserror::Error;

use super::{OpenError, VerifyError, open, probe, verify};
use crate::irqchip::IrqchipMode;
use crate::negotiate::negotiate;
use crate::plan::{Plan, Refusal};
use crate::profile::{Profile, ProfileError};

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// There is no usable KVM.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The verification could not run.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The profile does not fit the irqchip.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The host lacks what a debugger requires.
    #[error(transparent)]
    Refused(#[from] alloc::boxed::Box<Refusal>),
}

/// Opens `/dev/kvm`, probes and verifies it, and negotiates [`Profile::debugger`] for a VMM with this
/// irqchip. Takes some tens of milliseconds; keep the plan.
///
/// # Errors
/// If a step fails. The message says what to do.
pub fn debugger_plan(irqchip: IrqchipMode) -> Result<Plan, PlanError> {
    let kvm = open()?;
    let mut report = probe(&kvm);
    verify(&kvm, &mut report)?;
    let profile = Profile::debugger().with_irqchip(irqchip)?;
    Ok(negotiate(&report, &profile)?)
}
