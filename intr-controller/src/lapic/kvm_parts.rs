//! The meaning of register bits, for the adapter that reads and writes KVM's register page.

use super::base::{ApicBase, ApicMode};
use super::registers::{
    Command, Lvt, LvtEntry, Spurious, TimerMode, divide_shift, low_byte, version,
};
use super::timer::Timer;
use super::{Lapic, LapicConfig, LapicState};
use crate::GuestTime;

/// Registers that are computed, at a time to which the timer has been brought.
pub(crate) struct View {
    pub(crate) x2apic: bool,
    pub(crate) version: u32,
    pub(crate) logical_destination: u32,
    pub(crate) current_count: u32,
    /// An unmasked one-shot timer that has counted to zero.
    pub(crate) idle_one_shot: bool,
}

pub(crate) fn view(lapic: &Lapic, now: GuestTime) -> View {
    let x2apic = lapic.mode() == ApicMode::X2Apic;
    let row = lapic.destination();
    let entry = lapic.vectors.get(LvtEntry::Timer);
    let mode = entry.timer_mode();
    View {
        x2apic,
        version: version(lapic.config.cmci, lapic.config.eoi_suppression),
        logical_destination: if x2apic {
            row.logical_id
        } else {
            row.logical_id << 24
        },
        current_count: lapic.timer.current(mode, now),
        idle_one_shot: mode == TimerMode::OneShot
            && !entry.is_masked()
            && lapic.timer.stands_at_zero(),
    }
}

pub(crate) const fn is_x2apic(apic_base: u64) -> bool {
    matches!(ApicBase::from_host(apic_base).mode(), ApicMode::X2Apic)
}

/// Where the registers' page is, in xAPIC mode.
pub(crate) const fn page_address(apic_base: u64) -> Option<u64> {
    let base = ApicBase::from_host(apic_base);
    match base.mode() {
        ApicMode::XApic => Some(base.address()),
        ApicMode::X2Apic | ApicMode::Disabled => None,
    }
}

pub(crate) const fn is_enabled(apic_base: u64) -> bool {
    !matches!(ApicBase::from_host(apic_base).mode(), ApicMode::Disabled)
}

pub(crate) const fn software_enabled(spurious: u32) -> bool {
    Spurious(spurious).enabled()
}

pub(crate) const fn suppresses_eoi(spurious: u32) -> bool {
    Spurious(spurious).suppresses_eoi()
}

/// Whether a LINT0 entry passes the 8259A pair's INTR on.
pub(crate) fn passes_ext_int(lint0: u32) -> bool {
    Lvt(lint0).passes_ext_int()
}

/// Without what software cannot write: this side has no such history.
pub(crate) const fn writable_lvt(entry: LvtEntry, value: u32) -> u32 {
    value & !Lvt::read_only(entry)
}

pub(crate) fn writable_command(low: u32, high: u32, x2apic: bool) -> u64 {
    let high = if x2apic { high } else { high & 0xff00_0000 };
    (u64::from(high) << 32 | u64::from(low)) & Command::WRITABLE
}

/// How the timer counts, by its entry in the local vector table.
pub(crate) fn timer_mode(entry: u32) -> TimerMode {
    Lvt(entry).timer_mode()
}

/// Counts of the bus clock in one count of the timer, as a power of two.
pub(crate) const fn timer_shift(divide: u32) -> u32 {
    divide_shift(low_byte(divide))
}

/// When a timer expires that reads `count` now. A periodic one that reads 0 is about to reload.
pub(crate) fn expiry(
    state: &LapicState,
    config: &LapicConfig,
    count: u32,
    now: GuestTime,
) -> Option<GuestTime> {
    let [entry, ..] = state.lvt;
    let count = match Lvt(entry).timer_mode() {
        TimerMode::OneShot => count,
        TimerMode::Periodic if count == 0 => state.timer_initial,
        TimerMode::Periodic => count,
        TimerMode::TscDeadline | TimerMode::Reserved => return None,
    };
    let registers = (state.timer_initial, state.timer_divide);
    Timer::expiry(config, registers, count, now)
}
