//! A deadline of the local APIC's timer, and the counter that the guest compares it with.

use core::time::Duration;

use kvm_ioctls::VcpuFd;

use super::UserVcpu;
use crate::kvm::calls::{self, CallError};
use crate::{GuestTime, TimerMode};

/// IA32_TIME_STAMP_COUNTER.
const MSR_TSC: u32 = 0x10;

/// When a TSC that has not reached a deadline in time is looked at again.
const LOOK_AGAIN: Duration = Duration::from_micros(50);

impl UserVcpu {
    /// The vCPU has just come from the guest: its counter is what KVM shows.
    pub(super) fn take_counter(&mut self, vcpu: &VcpuFd, now: GuestTime) -> Result<(), CallError> {
        let shown = calls::read_msr(vcpu, MSR_TSC)?;
        let seen = self.lapic.tsc().with_ticks_at(now, shown);
        self.lapic.correct_tsc(seen);
        self.early = None;
        Ok(())
    }

    /// Before an entry. The counter has gone on while guest time stood still, and may have another
    /// opinion of a deadline that is due. A masked vCPU takes nothing, so that it is not asked.
    pub(super) fn compare_counter(
        &mut self,
        vcpu: &VcpuFd,
        masked: bool,
        now: GuestTime,
        stood_still: Duration,
    ) -> Result<(), CallError> {
        let pause = stood_still.saturating_sub(self.stood_still);
        if pause > Duration::ZERO {
            self.stood_still = stood_still;
            self.lapic.correct_tsc(self.lapic.tsc().ran_on(pause));
        }
        if masked || self.lapic.timer_mode() != TimerMode::TscDeadline {
            return Ok(());
        }
        match self.lapic.next_deadline(now) {
            Some(deadline) if deadline <= now => self.ask_counter(vcpu, now),
            _ => Ok(()),
        }
    }

    /// A deadline is due by the TSC's frequency, and perhaps not by the counter, which alone is what a
    /// guest sees (KVM waits for it likewise: lapic.c, `__kvm_wait_lapic_expire`).
    ///
    /// What KVM shows is not to be relied on: where the host's TSC is unstable, that of a vCPU stands
    /// still from one exit to the next entry, which makes up for it (x86.c, `kvm_arch_vcpu_load`,
    /// `tsc_catchup`). So a counter that is too early is looked at again, and one that has not moved by
    /// then is not waited for.
    fn ask_counter(&mut self, vcpu: &VcpuFd, now: GuestTime) -> Result<(), CallError> {
        let thought = self.lapic.tsc();
        let shown = calls::read_msr(vcpu, MSR_TSC)?;
        let seen = thought.with_ticks_at(now, shown);
        self.lapic.correct_tsc(seen);
        let deadline = self.lapic.next_deadline(now);
        let left = deadline.map_or(Duration::ZERO, |at| at.saturating_since(now));
        if left == Duration::ZERO {
            self.early = None;
            return Ok(());
        }
        match self.early.replace((shown, now)) {
            None => {
                let sooner = left.saturating_sub(LOOK_AGAIN);
                self.lapic.correct_tsc(seen.ran_on(sooner));
            }
            Some((before, since)) => {
                let nominal = thought.ticks_at(now).wrapping_sub(thought.ticks_at(since));
                if shown.wrapping_sub(before) < nominal / 2 {
                    self.early = None;
                    self.lapic.correct_tsc(thought);
                }
            }
        }
        Ok(())
    }
}
