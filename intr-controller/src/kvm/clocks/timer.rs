//! The timer of KVM's local APIC while the guest is stopped.
//!
//! KVM cannot stop this timer. When the guest goes on, the timer is put back: its count, its deadline,
//! and the interrupt that it has raised since.

use core::ffi::c_char;
use core::time::Duration;

use kvm_bindings::kvm_lapic_state;

use crate::lapic::kvm_parts;
use crate::{TimerMode, Vector};

/// Register offsets (SDM 3A, table "Local APIC Register Address Map").
const IRR: usize = 0x200;
const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

/// Nanoseconds in a count of the bus clock: KVM's `APIC_BUS_CYCLE_NS`, which nobody here changes
/// (`KVM_CAP_X86_APIC_BUS_CYCLES_NS`).
const BUS_CYCLE_NS: u64 = 1;

/// One local APIC at the time of the stop.
#[derive(Clone, Debug)]
pub(super) struct FrozenTimer {
    page: kvm_lapic_state,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    deadline: u64,
}

/// What is to be written when the guest goes on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Thaw {
    /// `KVM_SET_LAPIC`.
    pub(super) page: kvm_lapic_state,
    /// Then IA32_TSC_DEADLINE.
    pub(super) deadline: Option<u64>,
}

impl FrozenTimer {
    pub(super) const fn new(page: kvm_lapic_state, deadline: u64) -> Self {
        Self { page, deadline }
    }

    /// Whether the page's timer is in TSC-deadline mode: IA32_TSC_DEADLINE is to be read, too.
    pub(super) fn uses_deadline(page: &kvm_lapic_state) -> bool {
        kvm_parts::timer_mode(register(page, LVT_TIMER)) == TimerMode::TscDeadline
    }

    /// Whether the timer was armed.
    pub(super) fn is_armed(&self) -> bool {
        match kvm_parts::timer_mode(register(&self.page, LVT_TIMER)) {
            // At zero a one-shot timer has expired. KVM would start it again.
            TimerMode::OneShot => register(&self.page, CURRENT_COUNT) != 0,
            TimerMode::Periodic => register(&self.page, INITIAL_COUNT) != 0,
            TimerMode::TscDeadline => self.deadline != 0,
            TimerMode::Reserved => false,
        }
    }

    /// Puts the timer back after `passed` of guest time. `page` and `deadline` are KVM's now. Returns
    /// `None` if nothing is to be done: the timer was not armed, or a step has programmed it.
    ///
    /// Interrupts of other sources that arrived since stay pending. One of another source with the timer's
    /// vector is taken for the timer's.
    pub(super) fn thaw(
        &self,
        page: &kvm_lapic_state,
        deadline: u64,
        passed: Duration,
    ) -> Option<Thaw> {
        let programmed = [LVT_TIMER, INITIAL_COUNT, DIVIDE]
            .iter()
            .any(|at| register(page, *at) != register(&self.page, *at));
        // An expiry clears it.
        let rewritten = deadline != self.deadline && deadline != 0;
        if programmed || rewritten || !self.is_armed() {
            return None;
        }
        let mut page = *page;
        let [vector, ..] = register(&page, LVT_TIMER).to_le_bytes();
        if let Ok(vector) = Vector::new(vector) {
            let (at, bit) = place_in(IRR, vector);
            let pending = register(&page, at);
            let arrived = pending & !register(&self.page, at) & bit;
            set_register(&mut page, at, pending & !arrived);
        }
        if Self::uses_deadline(&page) {
            return Some(Thaw {
                page,
                deadline: Some(self.deadline),
            });
        }
        let count_ns = BUS_CYCLE_NS << kvm_parts::timer_shift(register(&page, DIVIDE));
        let counts = passed.as_nanos() / u128::from(count_ns);
        let counts = u32::try_from(counts).unwrap_or(u32::MAX);
        // A periodic timer that reads 0 is about to reload.
        let current = match register(&self.page, CURRENT_COUNT) {
            0 => register(&self.page, INITIAL_COUNT),
            current => current,
        };
        // It expires at once if it was due in between.
        let current = current.saturating_sub(counts).max(1);
        set_register(&mut page, CURRENT_COUNT, current);
        Some(Thaw {
            page,
            deadline: None,
        })
    }
}

/// Eight 32-bit registers, 16 bytes apart.
fn place_in(set: usize, vector: Vector) -> (usize, u32) {
    let number = vector.get();
    (set + 0x10 * usize::from(number / 32), 1 << (number % 32))
}

fn register(page: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes = page.regs.get(offset..).and_then(<[_]>::first_chunk::<4>);
    bytes.map_or(0, |bytes| {
        u32::from_le_bytes(bytes.map(|byte| u8::from_ne_bytes(byte.to_ne_bytes())))
    })
}

fn set_register(page: &mut kvm_lapic_state, offset: usize, value: u32) {
    let bytes = page.regs.get_mut(offset..);
    if let Some(bytes) = bytes.and_then(<[_]>::first_chunk_mut::<4>) {
        *bytes = value
            .to_le_bytes()
            .map(|byte| c_char::from_ne_bytes([byte]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIODIC: u32 = 1 << 17;
    const DEADLINE: u32 = 2 << 17;
    const VECTOR: u32 = 0xa9;
    /// Vector 0xa9 is bit 9 of the sixth register.
    const IRR_A9: usize = 0x250;
    const BIT: u32 = 1 << 9;
    /// By 16.
    const DIVIDE_16: u32 = 0b0011;

    fn page(registers: &[(usize, u32)]) -> kvm_lapic_state {
        let mut page = kvm_lapic_state::default();
        for (at, value) in registers {
            set_register(&mut page, *at, *value);
        }
        page
    }

    fn counting(lvt: u32, initial: u32, current: u32) -> kvm_lapic_state {
        page(&[
            (LVT_TIMER, lvt | VECTOR),
            (INITIAL_COUNT, initial),
            (CURRENT_COUNT, current),
            (DIVIDE, DIVIDE_16),
        ])
    }

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn a_count_goes_on_where_it_stood() {
        for lvt in [0, PERIODIC] {
            let frozen = FrozenTimer::new(counting(lvt, 5000, 4000), 0);
            let thaw = frozen.thaw(&counting(lvt, 5000, 17), 0, us(0)).unwrap();
            assert_eq!(thaw.page, counting(lvt, 5000, 4000));
            assert_eq!(thaw.deadline, None);
            // 16 µs are 1000 counts.
            let thaw = frozen.thaw(&counting(lvt, 5000, 17), 0, us(16)).unwrap();
            assert_eq!(register(&thaw.page, CURRENT_COUNT), 3000);
            let thaw = frozen
                .thaw(&counting(lvt, 5000, 17), 0, us(1_000_000))
                .unwrap();
            assert_eq!(register(&thaw.page, CURRENT_COUNT), 1, "due since then");
        }
    }

    #[test]
    fn a_one_shot_that_has_expired_is_left_alone_and_so_is_one_without_a_count() {
        for (lvt, initial) in [(0, 5000), (0, 0), (PERIODIC, 0)] {
            let frozen = FrozenTimer::new(counting(lvt, initial, 0), 0);
            assert!(!frozen.is_armed());
            assert_eq!(frozen.thaw(&counting(lvt, initial, 0), 0, us(1)), None);
        }
    }

    #[test]
    fn the_timers_interrupt_of_the_stop_is_withdrawn_and_no_other() {
        let mut before = counting(0, 5000, 4000);
        set_register(&mut before, 0x220, 1 << 3);
        let mut after = counting(0, 5000, 0);
        set_register(&mut after, IRR_A9, BIT | 1 << 10);
        set_register(&mut after, 0x220, 1 << 3 | 1 << 4);
        set_register(&mut after, 0x150, BIT);
        let thaw = FrozenTimer::new(before, 0).thaw(&after, 0, us(0)).unwrap();
        assert_eq!(register(&thaw.page, IRR_A9), 1 << 10);
        assert_eq!(register(&thaw.page, 0x220), 1 << 3 | 1 << 4);
        assert_eq!(register(&thaw.page, 0x150), BIT, "ISR");
        assert_eq!(register(&thaw.page, CURRENT_COUNT), 4000);
    }

    #[test]
    fn an_interrupt_that_was_pending_before_the_stop_stays() {
        let mut before = counting(PERIODIC, 5000, 4000);
        set_register(&mut before, IRR_A9, BIT);
        let thaw = FrozenTimer::new(before, 0).thaw(&before, 0, us(0)).unwrap();
        assert_eq!(register(&thaw.page, IRR_A9), BIT);
    }

    #[test]
    fn a_timer_that_a_step_has_programmed_is_the_guests() {
        let frozen = FrozenTimer::new(counting(PERIODIC, 5000, 4000), 0);
        let masked = counting(PERIODIC | 1 << 16, 5000, 17);
        let mut divided = counting(PERIODIC, 5000, 17);
        set_register(&mut divided, DIVIDE, 0b1011);
        for page in [
            counting(PERIODIC, 6000, 17),
            counting(0, 5000, 17),
            masked,
            divided,
        ] {
            assert_eq!(frozen.thaw(&page, 0, us(0)), None);
        }
    }

    #[test]
    fn a_deadline_is_written_back_also_if_it_has_expired() {
        let before = page(&[(LVT_TIMER, DEADLINE | VECTOR)]);
        let mut after = before;
        set_register(&mut after, IRR_A9, BIT);
        let frozen = FrozenTimer::new(before, 77);
        assert!(FrozenTimer::uses_deadline(&before));
        for now in [77, 0] {
            let thaw = frozen.thaw(&after, now, us(3)).unwrap();
            assert_eq!((thaw.page, thaw.deadline), (before, Some(77)));
        }
        assert_eq!(frozen.thaw(&after, 78, us(3)), None, "rewritten");
        assert_eq!(FrozenTimer::new(before, 0).thaw(&after, 0, us(3)), None);
    }
}
