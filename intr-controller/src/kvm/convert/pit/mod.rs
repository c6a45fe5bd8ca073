//! The 8254's state from and to `struct kvm_pit_state2`.
//!
//! KVM keeps the count of a counter and when it was loaded (`count_load_time`, of the host's
//! CLOCK_MONOTONIC). For channel 0 it keeps only a host timer. `KVM_SET_PIT2` loads every count again.
//! On the way to KVM counters therefore begin their counts again, and channel 0's does on the way from it
//! too: a period is longer once, and a one-shot that has fired fires again, as between
//! two KVMs. Neither the tick between write and load, nor a trigger or a gate that stops a counter,
//! nor a count that waits for the end of a cycle are known to KVM; such counters go on as if the
//! count had just been loaded.

use kvm_bindings::{KVM_PIT_FLAGS_SPEAKER_DATA_ON, kvm_pit_channel_state, kvm_pit_state2};

use super::{FromKvmError, Part};
use crate::GuestTime;
use crate::pit::{Pit, PitChannelState, PitState, PitTicks};

/// Bit 1 of port 0x61.
const SPEAKER_DATA: u8 = 1 << 1;
/// KVM's mode of a counter that was never programmed.
const UNPROGRAMMED: u8 = 0xff;
/// KVM's read and write states.
const LOW: u8 = 1;
const HIGH: u8 = 2;
const WORD_LOW: u8 = 3;
const WORD_HIGH: u8 = 4;
/// 105 ticks in 88,000 ns.
const TICKS: i64 = 105;
const NS: i64 = 88_000;

impl PitState {
    /// From what `KVM_GET_PIT2` gives. `now` and `monotonic_ns` (the host's CLOCK_MONOTONIC) are
    /// the moment of that call.
    ///
    /// # Errors
    /// If a field has a value that a timer cannot have, with its name.
    pub fn from_kvm(
        kvm: &kvm_pit_state2,
        now: GuestTime,
        monotonic_ns: i64,
    ) -> Result<Self, FromKvmError> {
        let kvm_pit_state2 {
            channels,
            flags,
            reserved,
        } = kvm;
        let whole = Part("");
        whole.require(
            *flags & !KVM_PIT_FLAGS_SPEAKER_DATA_ON == 0,
            "flags",
            *flags,
            "only SPEAKER_DATA_ON: there is no HPET whose legacy mode could replace channel 0",
        )?;
        for value in reserved {
            whole.require(*value == 0, "reserved", *value, "0")?;
        }
        let [channel_0, channel_1, channel_2] = channels;
        let restarted = kvm_pit_channel_state {
            count_load_time: monotonic_ns,
            ..*channel_0
        };
        Ok(Self {
            version: Self::VERSION,
            at: PitTicks::at(now),
            channels: [
                channel_from_kvm(Part("channels[0]."), &restarted, monotonic_ns, true)?,
                channel_from_kvm(Part("channels[1]."), channel_1, monotonic_ns, true)?,
                channel_from_kvm(Part("channels[2]."), channel_2, monotonic_ns, false)?,
            ],
            rises: 0,
            port_61: if *flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0 {
                SPEAKER_DATA
            } else {
                0
            },
        })
    }

    /// For `KVM_SET_PIT2`; `monotonic_ns` is the host's CLOCK_MONOTONIC at the moment of
    /// [`PitState::at`]. Rises that were not taken have no place in it: take them first
    /// ([`Pit::irq0`]).
    #[must_use]
    pub fn to_kvm(&self, monotonic_ns: i64) -> kvm_pit_state2 {
        let Self {
            version: _,
            at: _,
            channels,
            rises: _,
            port_61,
        } = self;
        kvm_pit_state2 {
            channels: channels
                .each_ref()
                .map(|channel| channel_to_kvm(channel, monotonic_ns)),
            flags: if port_61 & SPEAKER_DATA != 0 {
                KVM_PIT_FLAGS_SPEAKER_DATA_ON
            } else {
                0
            },
            reserved: [0; 9],
        }
    }
}

/// The value of four decimal digits, which KVM takes for a binary number, and back.
fn from_bcd(digits: u32) -> u32 {
    let places = [(0, 1), (4, 10), (8, 100), (12, 1000)];
    places
        .iter()
        .map(|(shift, place)| (digits >> shift & 0xf) * place)
        .sum()
}

fn to_bcd(value: u32) -> u32 {
    let places = [(0, 1), (4, 10), (8, 100), (12, 1000)];
    // The thousands may be more than nine, if they were written so.
    places
        .iter()
        .map(|(shift, place)| match place {
            1000 => (value / 1000).min(0xf) << shift,
            _ => (value / place % 10) << shift,
        })
        .sum()
}

fn channel_from_kvm(
    part: Part,
    kvm: &kvm_pit_channel_state,
    monotonic_ns: i64,
    gate_tied: bool,
) -> Result<PitChannelState, FromKvmError> {
    let kvm_pit_channel_state {
        count,
        latched_count,
        count_latched,
        status_latched,
        status,
        read_state,
        write_state,
        write_latch,
        rw_mode,
        mode,
        bcd,
        gate,
        count_load_time,
    } = *kvm;
    let gate = part.flag("gate", gate)?;
    part.require(gate || !gate_tied, "gate", gate, "tied high")?;
    let bcd = part.flag("bcd", bcd)?;
    let status_latched = part.flag("status_latched", status_latched)?;
    part.require(
        (1..=0x1_0000).contains(&count),
        "count",
        count,
        "1 to 0x10000",
    )?;
    part.require(
        mode <= 5 || mode == UNPROGRAMMED,
        "mode",
        mode,
        "0 to 5, or 0xff",
    )?;
    let initial = Pit::new().save().channels;
    let [initial, ..] = initial;
    if mode == UNPROGRAMMED {
        return Ok(PitChannelState { gate, ..initial });
    }
    part.require(
        matches!(rw_mode, LOW | HIGH | WORD_LOW),
        "rw_mode",
        rw_mode,
        "1 to 3",
    )?;
    let word = rw_mode == WORD_LOW;
    let state_of_access = |state: u8| state == rw_mode || (word && state == WORD_HIGH);
    part.require(
        state_of_access(read_state),
        "read_state",
        read_state,
        "as rw_mode, or 4 with 3",
    )?;
    part.require(
        state_of_access(write_state),
        "write_state",
        write_state,
        "as rw_mode, or 4 with 3",
    )?;
    part.require(
        count_latched == 0 || count_latched == rw_mode || (word && count_latched == HIGH),
        "count_latched",
        count_latched,
        "0, as rw_mode, or 2 with 3",
    )?;
    let elapsed_ns = monotonic_ns
        .checked_sub(count_load_time)
        .filter(|ns| *ns >= 0);
    let elapsed_ns = elapsed_ns
        .and_then(|ns| u64::try_from(ns).ok())
        .ok_or_else(|| {
            let shown = count_load_time.unsigned_abs();
            part.refuse(
                "count_load_time",
                shown,
                "not after the moment of the state",
            )
        })?;

    let base = if bcd { 10_000 } else { 0x1_0000 };
    let reload = match (bcd, count & 0xffff) {
        (_, 0) => base,
        (true, digits) => from_bcd(digits),
        (false, count) => count,
    };
    let elapsed = PitTicks::at(GuestTime::from_ns(elapsed_ns)).0;
    let remainder = |divisor: u32| u32::try_from(elapsed % u64::from(divisor)).unwrap_or(0);
    let periodic = matches!(mode, 2 | 3);
    let reached = elapsed >= u64::from(reload);
    let at_count = elapsed == u64::from(reload);
    Ok(PitChannelState {
        control: rw_mode << 4 | mode << 1 | u8::from(bcd),
        gate,
        reload,
        armed: true,
        running: true,
        load_pending: false,
        null_count: false,
        cycle: if periodic { reload } else { base },
        phase: if periodic { remainder(reload) } else { 0 },
        count: if periodic {
            0
        } else {
            (reload % base + base - remainder(base)) % base
        },
        remaining: if periodic || reached {
            0
        } else {
            reload - remainder(reload)
        },
        terminal: match mode {
            0 => reached,
            4 | 5 => at_count,
            _ => false,
        },
        low_byte: (write_state == WORD_HIGH).then_some(write_latch),
        read_high: if count_latched == 0 {
            read_state == WORD_HIGH
        } else {
            word && count_latched == HIGH
        },
        latched_count: (count_latched != 0).then_some(latched_count),
        latched_status: status_latched.then_some(status),
    })
}

fn channel_to_kvm(state: &PitChannelState, monotonic_ns: i64) -> kvm_pit_channel_state {
    let PitChannelState {
        control,
        gate,
        reload,
        armed: _,
        running,
        load_pending,
        null_count,
        cycle: _,
        phase,
        count,
        remaining,
        terminal: _,
        low_byte,
        read_high,
        latched_count,
        latched_status,
    } = *state;
    let rw_mode = control >> 4 & 3;
    let mode = match control >> 1 & 7 {
        // KVM knows them by their lower two bits.
        mode @ 6.. => mode - 4,
        mode => mode,
    };
    let bcd = control & 1 != 0;
    let base = if bcd { 10_000 } else { 0x1_0000 };
    let elapsed = if !running || load_pending || null_count {
        0
    } else if matches!(mode, 2 | 3) {
        phase
    } else if remaining > 0 {
        reload.saturating_sub(remaining)
    } else {
        // After the terminal count it counts on from the largest.
        reload + (base - count) % base
    };
    // Rounded up, because KVM rounds down.
    let elapsed_ns = (i64::from(elapsed) * NS + TICKS - 1) / TICKS;
    let two_bytes = |high: bool| match (rw_mode, high) {
        (WORD_LOW, true) => WORD_HIGH,
        _ => rw_mode,
    };
    kvm_pit_channel_state {
        count: match reload {
            reload if reload == base => 0x1_0000,
            reload if bcd => to_bcd(reload),
            reload => reload,
        },
        latched_count: latched_count.unwrap_or(0),
        count_latched: match latched_count {
            Some(_) if rw_mode == WORD_LOW && read_high => HIGH,
            Some(_) => rw_mode,
            None => 0,
        },
        status_latched: latched_status.is_some().into(),
        status: latched_status.unwrap_or(0),
        read_state: two_bytes(read_high && latched_count.is_none()),
        write_state: two_bytes(low_byte.is_some()),
        write_latch: low_byte.unwrap_or(0),
        rw_mode,
        mode,
        bcd: bcd.into(),
        gate: gate.into(),
        count_load_time: monotonic_ns.saturating_sub(elapsed_ns),
    }
}

#[cfg(test)]
mod tests;
