//! The counter that the guest compares a deadline of the local APIC's timer with, read from KVM for
//! [`DeadlineWatch`](crate::DeadlineWatch), which judges it.

use core::time::Duration;

use kvm_ioctls::VcpuFd;

use super::UserVcpu;
use crate::GuestTime;
use crate::kvm::calls::{self, CallError, MSR_TSC};

impl UserVcpu {
    /// The vCPU has just come from the guest, which arms a deadline.
    pub(super) fn take_counter(&mut self, vcpu: &VcpuFd, now: GuestTime) -> Result<(), CallError> {
        let shown = calls::read_msr(vcpu, MSR_TSC)?;
        self.watch.left_guest(&mut self.lapic, shown, now);
        Ok(())
    }

    /// Before an entry.
    pub(super) fn compare_counter(
        &mut self,
        vcpu: &VcpuFd,
        now: GuestTime,
        stood_still: Duration,
    ) -> Result<(), CallError> {
        if self.watch.before_entry(&mut self.lapic, now, stood_still) {
            let shown = calls::read_msr(vcpu, MSR_TSC)?;
            self.watch.compare(&mut self.lapic, shown, now);
        }
        Ok(())
    }
}
