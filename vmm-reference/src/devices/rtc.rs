//! The clock chip: an MC146818 (its data sheet, "Address Map" and "Registers") with the CMOS bytes of a PC/AT.
//!
//! The guest reads guest time, which stands still while a debugger has stopped it. Everything else is a plain
//! byte that keeps what is written, and begins with what a PC's firmware leaves there.
//!
//! # Unsupported
//! - The time cannot be set: writes to it are ignored. With SET in register B it stands still for the reader,
//!   as on the chip, and goes on with the right time.
//! - There are no interrupts: their enable bits in register B stay clear, and so do the flags in register C.
//! - The divider of register A is kept, and does not stop the clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::boot::{BASE_MEMORY_KIB, EQUIPMENT_LOW};
use crate::layout;
use crate::memory::MemoryLayout;

/// Its ports: the index of a byte, and the byte.
pub(super) const PORTS: u16 = 0x70;
pub(super) const PORT_COUNT: PioAddressOffset = 2;
const INDEX: u32 = 0;
const DATA: u32 = 1;
/// The index without bit 7, which masks NMIs in a PC. Here it does nothing.
const INDEX_BITS: u8 = 0x7f;

/// What the byte at an index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Time(TimeField),
    A,
    B,
    C,
    D,
    /// A byte of memory: alarms, the shutdown status, what the firmware left.
    Byte(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimeField {
    Seconds,
    Minutes,
    Hours,
    /// 1 is Sunday.
    Weekday,
    Day,
    Month,
    Year,
    Century,
}

impl Register {
    fn at(index: u8) -> Self {
        match index & INDEX_BITS {
            0x00 => Self::Time(TimeField::Seconds),
            0x02 => Self::Time(TimeField::Minutes),
            0x04 => Self::Time(TimeField::Hours),
            0x06 => Self::Time(TimeField::Weekday),
            0x07 => Self::Time(TimeField::Day),
            0x08 => Self::Time(TimeField::Month),
            0x09 => Self::Time(TimeField::Year),
            CENTURY => Self::Time(TimeField::Century),
            0x0a => Self::A,
            0x0b => Self::B,
            0x0c => Self::C,
            0x0d => Self::D,
            other => Self::Byte(other),
        }
    }
}

/// The century, which no register of the chip has. The FADT names this index.
pub(crate) const CENTURY: u8 = 0x32;

/// Register A: an update is in progress (read-only); at reset, a 32.768 kHz crystal and 1.024 kHz.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const A_AT_RESET: u8 = 0b010 << 4 | 0b0110;
/// How long before each second's end the bit is set ("Update Cycle": t_BUC).
const BEFORE_UPDATE: Duration = Duration::from_micros(244);

/// Register B: no updates; square wave; binary rather than BCD; 24 hours rather than 12; daylight saving.
const SET: u8 = 1 << 7;
const SQUARE_WAVE: u8 = 1 << 3;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const DAYLIGHT_SAVING: u8 = 1 << 0;
/// The bits that keep what is written. The others enable interrupts.
const B_WRITABLE: u8 = SET | SQUARE_WAVE | BINARY | HOURS_24 | DAYLIGHT_SAVING;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;
/// Hours of a 12-hour clock: afternoon.
const PM: u8 = 1 << 7;

/// The shutdown status, where IBM's PC/AT has it, and its value for "go on at 40:67".
const SHUTDOWN_STATUS: usize = 0x0f;
const JUMP_40_67: u8 = 0x0a;

/// The PC/AT's checksum: the sum of these bytes, high byte first.
const CHECKED: std::ops::RangeInclusive<usize> = 0x10..=0x2d;
const CHECKSUM: usize = 0x2e;

/// Returns the time since 1970-01-01 00:00 UTC.
pub type WallClock = Box<dyn Fn() -> Duration + Send + Sync>;

/// The chip. Time is a parameter.
struct Chip {
    selected: u8,
    a: u8,
    b: u8,
    bytes: [u8; 128],
    /// The time when SET was set.
    held: Option<Duration>,
}

impl Chip {
    fn new(memory: MemoryLayout) -> Self {
        Self {
            selected: 0,
            a: A_AT_RESET,
            b: HOURS_24,
            bytes: firmware_bytes(memory),
            held: None,
        }
    }

    fn read(&self, now: Duration) -> u8 {
        let shown = self.held.unwrap_or(now);
        match Register::at(self.selected) {
            Register::Time(field) => self.encode(field, shown),
            Register::A => {
                let left = Duration::from_nanos((NANOS_PER_SECOND - shown.subsec_nanos()).into());
                let updating = self.held.is_none() && left <= BEFORE_UPDATE;
                self.a | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            Register::B => self.b,
            Register::C => 0,
            Register::D => VALID,
            Register::Byte(index) => self.bytes.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }

    fn write(&mut self, value: u8, now: Duration) {
        match Register::at(self.selected) {
            Register::Time(field) => {
                tracing::debug!(?field, value, "the guest's clock cannot be set")
            }
            Register::A => self.a = value & !UPDATE_IN_PROGRESS,
            Register::B => {
                self.b = value & B_WRITABLE;
                self.held = (self.b & SET != 0).then(|| self.held.unwrap_or(now));
            }
            Register::C | Register::D => {}
            Register::Byte(index) => {
                if let Some(byte) = self.bytes.get_mut(usize::from(index)) {
                    *byte = value;
                }
            }
        }
    }

    fn encode(&self, field: TimeField, now: Duration) -> u8 {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let time =
            OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let year = time.year();
        let small = |number: i32| self.number(u8::try_from(number).unwrap_or(0));
        match field {
            TimeField::Seconds => self.number(time.second()),
            TimeField::Minutes => self.number(time.minute()),
            TimeField::Hours if self.b & HOURS_24 != 0 => self.number(time.hour()),
            TimeField::Hours => {
                let hour = match time.hour() % 12 {
                    0 => 12,
                    hour => hour,
                };
                self.number(hour) | if time.hour() < 12 { 0 } else { PM }
            }
            TimeField::Weekday => self.number(time.weekday().number_days_from_sunday() + 1),
            TimeField::Day => self.number(time.day()),
            TimeField::Month => self.number(time.month().into()),
            TimeField::Year => small(year % 100),
            TimeField::Century => small(year / 100),
        }
    }

    /// A number below 100 as register B says.
    fn number(&self, number: u8) -> u8 {
        if self.b & BINARY != 0 {
            number
        } else {
            ((number / 10) << 4) | (number % 10)
        }
    }
}

const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// What a PC's firmware leaves (SeaBIOS's `hw/rtc.h` and QEMU's `pc_cmos_init` have the same indices): the
/// sizes of memory, the equipment, the checksum. The other bytes are zero: no disk, no error at power-on.
fn firmware_bytes(memory: MemoryLayout) -> [u8; 128] {
    /// Fields of 16 bits that cannot count further.
    const FULL: u64 = 0xffff;
    const KIB: u64 = 1 << 10;
    const SEGMENT: u64 = 64 << 10;
    const MIB_16: u64 = 16 << 20;
    let above = |from: u64, to: u64, unit: u64| to.saturating_sub(from) / unit;
    let low_end = memory.low_end();
    let extended = above(layout::HIGH_MEMORY_START, low_end, KIB).min(FULL);
    let above_16_mib = above(MIB_16, low_end, SEGMENT).min(FULL);
    let above_4_gib = above(low_end, memory.size(), SEGMENT);

    let mut bytes = [0; 128];
    let mut put = |at: usize, count: usize, value: u64| {
        for (slot, byte) in bytes
            .iter_mut()
            .skip(at)
            .take(count)
            .zip(value.to_le_bytes())
        {
            *slot = byte;
        }
    };
    put(0x14, 1, EQUIPMENT_LOW.into());
    put(0x15, 2, BASE_MEMORY_KIB.into());
    put(0x17, 2, extended);
    put(0x30, 2, extended);
    put(0x34, 2, above_16_mib);
    put(0x5b, 3, above_4_gib);
    let sum = bytes
        .iter()
        .skip(*CHECKED.start())
        .take(CHECKED.count())
        .fold(0_u16, |sum, &byte| sum.wrapping_add(byte.into()));
    for (slot, byte) in bytes.iter_mut().skip(CHECKSUM).zip(sum.to_be_bytes()) {
        *slot = byte;
    }
    bytes
}

struct Shared {
    chip: Mutex<Chip>,
    clock: WallClock,
}

/// The device. Clones share their state.
#[derive(Clone)]
pub struct Rtc(Arc<Shared>);

impl std::fmt::Debug for Rtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rtc").finish_non_exhaustive()
    }
}

impl Rtc {
    /// The chip of a machine with this memory.
    #[must_use]
    pub fn new(memory: MemoryLayout, clock: WallClock) -> Self {
        Self(Arc::new(Shared {
            chip: Mutex::new(Chip::new(memory)),
            clock,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.0.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` if the guest wants to go on after a reset of its processor.
    pub(super) fn wants_to_resume(&self) -> bool {
        self.lock().bytes.get(SHUTDOWN_STATUS) == Some(&JUMP_40_67)
    }
}

impl DevicePio for Rtc {
    /// An access of several bytes accesses one port after the other, as on the 8-bit ISA bus. The index
    /// port is write-only.
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let now = (self.0.clock)();
        let chip = self.lock();
        for (port, byte) in (u32::from(offset)..).zip(data) {
            if port == DATA {
                *byte = chip.read(now);
            }
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let now = (self.0.clock)();
        let mut chip = self.lock();
        for (port, &byte) in (u32::from(offset)..).zip(data) {
            match port {
                INDEX => chip.selected = byte,
                DATA => chip.write(byte, now),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn chip() -> Chip {
        Chip::new(MemoryLayout::new(128 * MIB).unwrap())
    }

    fn read(chip: &mut Chip, index: u8, now: Duration) -> u8 {
        chip.selected = index;
        chip.read(now)
    }

    fn write(chip: &mut Chip, index: u8, value: u8, now: Duration) {
        chip.selected = index;
        chip.write(value, now);
    }

    /// Seconds, minutes, hours, weekday, day, month, year, century.
    fn time(chip: &mut Chip, now: Duration) -> [u8; 8] {
        [0, 2, 4, 6, 7, 8, 9, 0x32].map(|index| read(chip, index, now))
    }

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const LEAP_DAY: Duration = Duration::from_secs(1_709_251_198);
    const NOON: Duration = Duration::from_secs(1_709_208_000);

    #[test]
    fn the_time_is_utc_in_bcd_and_24_hours() {
        let mut chip = chip();
        assert_eq!(
            time(&mut chip, LEAP_DAY),
            [0x58, 0x59, 0x23, 5, 0x29, 0x02, 0x24, 0x20]
        );
        let next = LEAP_DAY + Duration::from_secs(2);
        assert_eq!(time(&mut chip, next), [0, 0, 0, 6, 1, 3, 0x24, 0x20]);
        assert_eq!(
            time(&mut chip, Duration::ZERO),
            [0, 0, 0, 5, 1, 1, 0x70, 0x19]
        );
    }

    #[test]
    fn register_b_chooses_binary_and_12_hours() {
        let mut chip = chip();
        write(&mut chip, 0x0b, 0b110, LEAP_DAY);
        assert_eq!(time(&mut chip, LEAP_DAY), [58, 59, 23, 5, 29, 2, 24, 20]);
        write(&mut chip, 0x0b, 0b100, LEAP_DAY);
        for (hour, shown) in [
            (0, 0x80 | 12),
            (1, 0x81),
            (11, 0x8b),
            (12, 12),
            (13, 1),
            (23, 11),
        ] {
            let now = NOON + Duration::from_secs(3600 * hour);
            assert_eq!(read(&mut chip, 4, now), shown, "{hour} hours after noon");
        }
        write(&mut chip, 0x0b, 0, LEAP_DAY);
        assert_eq!(read(&mut chip, 4, LEAP_DAY), 0x91, "11 p.m. in BCD");
    }

    #[test]
    fn an_update_is_in_progress_for_244_microseconds_of_each_second() {
        let mut chip = chip();
        let at = |micros| LEAP_DAY + Duration::from_micros(micros);
        for (micros, busy) in [
            (0, false),
            (500_000, false),
            (999_755, false),
            (999_756, true),
            (999_999, true),
            (1_000_000, false),
        ] {
            let a = read(&mut chip, 0x0a, at(micros));
            assert_eq!(a, if busy { 0xa6 } else { 0x26 }, "{micros}");
        }
    }

    #[test]
    fn set_holds_the_time_and_the_clock_goes_on_behind_it() {
        let mut chip = chip();
        write(&mut chip, 0x0b, 0x82, LEAP_DAY);
        let later = LEAP_DAY + Duration::from_micros(1_999_900);
        assert_eq!(read(&mut chip, 0, later), 0x58);
        assert_eq!(read(&mut chip, 0x0a, later), 0x26, "no update");
        // A second time, later: it stays where it is.
        write(&mut chip, 0x0b, 0x82, later);
        assert_eq!(read(&mut chip, 0, later), 0x58);
        // The time cannot be set.
        for index in [0, 2, 4, 6, 7, 8, 9, 0x32] {
            write(&mut chip, index, 0x11, later);
        }
        write(&mut chip, 0x0b, 0x02, later);
        assert_eq!(time(&mut chip, later)[..3], [0x59, 0x59, 0x23]);
    }

    #[test]
    fn status_registers_have_no_interrupts_and_a_good_battery() {
        let mut chip = chip();
        let now = LEAP_DAY;
        assert_eq!(read(&mut chip, 0x0b, now), 0x02);
        for _ in 0..2 {
            for index in 0x0a..=0x0d {
                write(&mut chip, index, 0x7d, now);
            }
            let status = [0x0a, 0x0b, 0x0c, 0x0d].map(|index| read(&mut chip, index, now));
            assert_eq!(status, [0x7d, 0x0d, 0, 0x80]);
        }
        write(&mut chip, 0x0a, 0xff, now);
        assert_eq!(read(&mut chip, 0x0a, now), 0x7f, "UIP is read-only");
    }

    #[test]
    fn the_sizes_of_memory_are_those_of_the_machine() {
        let sizes = |memory: u64| {
            let mut chip = Chip::new(MemoryLayout::new(memory).unwrap());
            [0x15, 0x17, 0x30, 0x34, 0x5b].map(|index| {
                let [low, high] = [0, 1].map(|n| read(&mut chip, index + n, LEAP_DAY));
                u16::from_le_bytes([low, high])
            })
        };
        assert_eq!(sizes(2 * MIB), [639, 1024, 1024, 0, 0]);
        assert_eq!(sizes(48 * MIB), [639, 47 * 1024, 47 * 1024, 512, 0]);
        assert_eq!(sizes(3 * GIB), [639, 0xffff, 0xffff, 48 * 1024 - 256, 0]);
        assert_eq!(
            sizes(5 * GIB),
            [639, 0xffff, 0xffff, 48 * 1024 - 256, 0x8000]
        );
        // 1 TiB: the third byte counts.
        let mut chip = Chip::new(MemoryLayout::new(1 << 40).unwrap());
        let bytes = [0x5b, 0x5c, 0x5d, 0x5e].map(|index| read(&mut chip, index, LEAP_DAY));
        assert_eq!(u32::from_le_bytes(bytes), (1 << 24) - 48 * 1024);
    }

    #[test]
    fn the_firmwares_checksum_is_right() {
        let mut chip = chip();
        let sum: u16 = (0x10..=0x2d)
            .map(|index| u16::from(read(&mut chip, index, LEAP_DAY)))
            .sum();
        let [high, low] = [0x2e, 0x2f].map(|index| read(&mut chip, index, LEAP_DAY));
        assert_eq!(u16::from_be_bytes([high, low]), sum);
        assert_eq!(read(&mut chip, 0x0e, LEAP_DAY), 0, "no error at power-on");
        assert_eq!(read(&mut chip, 0x14, LEAP_DAY), 0x22);
    }

    #[test]
    fn every_other_byte_keeps_what_is_written() {
        let mut chip = chip();
        let others = || (0x0e..0x80).filter(|&index| index != 0x32).chain([1, 3, 5]);
        for value in [0x5a, 0xa5] {
            for index in others() {
                write(&mut chip, index, index ^ value, LEAP_DAY);
            }
            for index in others() {
                assert_eq!(read(&mut chip, index, LEAP_DAY), index ^ value);
                assert_eq!(
                    read(&mut chip, index | 0x80, LEAP_DAY),
                    index ^ value,
                    "NMI masked"
                );
            }
        }
    }

    #[test]
    fn a_word_to_the_index_port_writes_the_byte_too() {
        let rtc = Rtc::new(MemoryLayout::new(128 * MIB).unwrap(), Box::new(|| LEAP_DAY));
        let base = PioAddress(0x70);
        rtc.pio_write(base, 0, &[0x0f, 0x0a]);
        assert!(rtc.wants_to_resume());
        let mut data = [0x55; 2];
        rtc.pio_read(base, 0, &mut data);
        assert_eq!(data, [0x55, 0x0a], "the index port cannot be read");
    }

    proptest! {
        #[test]
        fn any_time_and_any_writes_are_served(
            now in any::<u64>(),
            writes in prop::collection::vec(any::<(u8, u8)>(), 0..16),
            index in any::<u8>(),
        ) {
            let mut chip = chip();
            let now = Duration::from_nanos(now);
            for (index, value) in writes {
                write(&mut chip, index, value, now);
            }
            read(&mut chip, index, now);
            read(&mut chip, index, Duration::MAX);
        }
    }
}
