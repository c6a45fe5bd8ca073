//! Compares a TSC deadline that is due by the TSC's frequency with the guest's counter.

use core::time::Duration;

use super::{Lapic, TimerMode};
use crate::{GuestTime, TscClock};

/// The time after which a counter that has not reached its deadline is read again.
const LOOK_AGAIN: Duration = Duration::from_micros(50);
/// A counter that has made less than this part of the ticks of its frequency has stood still. It moves a
/// little nevertheless, during the host call that reads it.
const STANDS_STILL: u64 = 4;

/// Keeps a vCPU's [`Lapic`] in TSC-deadline mode in step with the counter that the host shows. For a VMM
/// with an adapter of its own; `kvm::UserVcpu` contains one.
///
/// A [`Lapic`] computes when the counter reaches a deadline. The guest sees
/// only the counter, which may differ: its frequency is known to some hundred millionths, and the guest may
/// have written it. The host is therefore asked for the counter, but only when that can change something,
/// because it is a call (`KVM_GET_MSRS`): at each write of IA32_TSC_DEADLINE, and before an entry at which a deadline is
/// due (KVM waits for the counter likewise: lapic.c, `__kvm_wait_lapic_expire`).
///
/// The host's reading is not always right either: where KVM finds the host's TSC unstable, the
/// counter of a vCPU stands still from one exit to the next entry, which makes up for it (x86.c,
/// `kvm_arch_vcpu_load`, `tsc_catchup`). A vCPU that sleeps until such a counter has reached a
/// deadline is never woken. A counter that is too early is therefore read once more after 50 µs. If it has
/// moved, the vCPU waits for it; if not, the deadline is due by the frequency.
///
/// # What a guest sees
///
/// - The host shows the counter as it is: the interrupt is not injected before the counter has reached
///   the deadline. (Unless the guest wrote the counter back between those two looks, by as much as had
///   passed: then it looks as if it had stood still.)
/// - The counter stands still while the host shows it: the interrupt comes by the frequency, 50 µs late.
/// - The guest moves its counter forwards while a deadline is armed: the VMM is not notified, and the
///   interrupt comes when it would have come without. KVM's own local APIC does not re-arm its timer
///   either (x86.c, `kvm_set_msr_common`, MSR_IA32_TSC).
/// - A deadline that a register access finds due, or that passes while the timer's entry in the local
///   vector table is masked, is due by the frequency alone.
///
/// # Example
/// ```
/// # use intr_controller::{DeadlineWatch, GuestTime, Lapic, LapicConfig};
/// # let now = GuestTime::ZERO;
/// # let stood_still = core::time::Duration::ZERO;
/// # let mut lapic = Lapic::new(LapicConfig::new(0, true, 2_000_000_000.try_into()?));
/// # let read_tsc = || Ok::<u64, Box<dyn std::error::Error>>(5);
/// let mut watch = DeadlineWatch::new();
///
/// // An exit: the guest writes IA32_TSC_DEADLINE.
/// watch.left_guest(&mut lapic, read_tsc()?, now);
/// let effect = lapic.write_msr(0x6e0, 1_000_000, now)?;
///
/// // Before each entry, and each look whether a halted vCPU sleeps on:
/// if watch.before_entry(&mut lapic, now, stood_still) {
///     watch.compare(&mut lapic, read_tsc()?, now);
/// }
/// lapic.advance(now);
/// // lapic.decide(..), or sleep until lapic.next_deadline(now)
/// # let _ = effect;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadlineWatch {
    /// For how long guest time had stood still, in total.
    stood_still: Duration,
    /// A deadline was due, and the counter had not reached it when it was read.
    early: Option<Look>,
}

/// A reading of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    shown: u64,
    /// When, by a clock that does not stand still, as the counter does not.
    at: GuestTime,
}

impl DeadlineWatch {
    /// For a vCPU's start. Keep it with the vCPU's [`Lapic`], and make a new one with another.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            stood_still: Duration::ZERO,
            early: None,
        }
    }

    /// The vCPU has just left the guest, so its counter is what the host shows. Call it before a write of
    /// IA32_TSC_DEADLINE is served; [`Self::before_entry`] was called before that entry.
    pub fn left_guest(&mut self, lapic: &mut Lapic, shown: u64, now: GuestTime) {
        lapic.correct_tsc(lapic.tsc().with_ticks_at(now, shown));
        self.early = None;
    }

    /// Before each entry, and before the vCPU sleeps, also if it is masked: a deadline that becomes due
    /// under the mask is delivered afterwards. `stood_still` is for how long guest time has stood still, in
    /// total; the counter has not.
    ///
    /// Returns `true` if a deadline is due by the TSC's frequency: then read the counter and
    /// [`compare`](Self::compare) before the [`Lapic`] advances to `now`. If it cannot be read, the
    /// deadline is due.
    #[must_use = "the counter is to be compared"]
    pub fn before_entry(
        &mut self,
        lapic: &mut Lapic,
        now: GuestTime,
        stood_still: Duration,
    ) -> bool {
        let pause = stood_still.saturating_sub(self.stood_still);
        if pause > Duration::ZERO {
            self.stood_still = stood_still;
            lapic.correct_tsc(lapic.tsc().ran_on(pause));
        }
        lapic.timer_mode() == TimerMode::TscDeadline
            && lapic.next_deadline(now).is_some_and(|at| at <= now)
    }

    /// A deadline was due, and the host shows this counter. Afterwards it is due still, or
    /// [`Lapic::next_deadline`] is the time to look again.
    pub fn compare(&mut self, lapic: &mut Lapic, shown: u64, now: GuestTime) {
        let thought = lapic.tsc();
        let seen = thought.with_ticks_at(now, shown);
        lapic.correct_tsc(seen);
        let left = lapic
            .next_deadline(now)
            .map_or(Duration::ZERO, |at| at.saturating_since(now));
        let first = self.early.take();
        if left == Duration::ZERO {
            return;
        }
        let at = now.saturating_add(self.stood_still);
        // Nearer by this, the deadline is due when the counter is to be looked at again.
        let beyond_next_look = left.saturating_sub(LOOK_AGAIN);
        let Some(first) = first else {
            self.early = Some(Look { shown, at });
            lapic.correct_tsc(seen.ran_on(beyond_next_look));
            return;
        };
        let moved = shown.wrapping_sub(first.shown);
        if moved < nominal(seen, first.at, at) / STANDS_STILL {
            lapic.correct_tsc(thought);
        } else if moved > 0 {
            // Believed for this once: the vCPU may leave the guest next, and sleep. It may have done so
            // since the first look, too, and the counter have gone on.
            let since = at.saturating_since(first.at);
            lapic.correct_tsc(seen.ran_on(since.min(beyond_next_look)));
        } else {
            // No tick was due between the two looks, or too few to tell.
            self.early = Some(first);
        }
    }
}

/// Ticks of the frequency in between.
fn nominal(tsc: TscClock, since: GuestTime, now: GuestTime) -> u64 {
    tsc.ticks_at(now).wrapping_sub(tsc.ticks_at(since))
}
