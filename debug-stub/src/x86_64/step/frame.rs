//! Interrupt frames: what the CPU pushes as it delivers an event (SDM 3A 6.12, 6.14; SDM 3B 20).

use super::machine::{Machine, width_mask};
use super::{Mend, StepClass};
use crate::x86_64::bits::{CR0_PE, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_RF, RFLAGS_STATUS, RFLAGS_TF};
use crate::x86_64::descriptor;
use crate::x86_64::paging::translate;
use crate::{GuestMemory, GuestVirtAddr};

/// A place on a stack that may hold a frame, and the frame's format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Base of the stack segment.
    base: u64,
    /// Width of its stack pointer.
    bits: u32,
    /// Offset of the saved IP.
    ip_at: u64,
    /// Bytes of each item.
    slot: u64,
    /// The old SP and SS follow the flags.
    has_stack: bool,
    /// The interrupted code uses this stack.
    own_stack: bool,
}

/// Bytes of the frame of user code, without an error code: five items.
pub(super) const MOST_FRAME: usize = 40;

/// What a frame of user code holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) ip: u64,
    pub(super) cs: u16,
    pub(super) flags: u64,
    pub(super) sp: u64,
    pub(super) ss: u16,
}

/// The saved state by which a frame of the stepped instruction is recognised.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    /// Before the instruction.
    pub(super) machine: &'a Machine,
    /// The possible saved IPs: the instruction's own, for a fault or an interrupt, and the next one, for a
    /// trap.
    pub(super) ips: &'a [u64],
    pub(super) class: StepClass,
    /// Status flags may have changed since then.
    pub(super) loose: bool,
}

impl Place {
    fn address(&self, machine: &Machine, offset: u64) -> GuestVirtAddr {
        let in_segment = self.ip_at.wrapping_add(offset) & width_mask(self.bits);
        let linear = self.base.wrapping_add(in_segment);
        GuestVirtAddr(if machine.long_mode() {
            linear
        } else {
            linear & 0xffff_ffff
        })
    }

    fn item(&self, machine: &Machine, memory: &impl GuestMemory, index: u64) -> Option<u64> {
        machine.read(memory, self.address(machine, index * self.slot), self.slot)
    }

    /// The stack pointer, if nothing lies below the frame.
    pub(super) fn top(&self) -> u64 {
        self.ip_at
    }

    /// Where a frame of five items is, and how many bytes it has.
    pub(super) fn span(&self, machine: &Machine) -> (GuestVirtAddr, usize) {
        let length = usize::try_from(5 * self.slot).unwrap_or(MOST_FRAME);
        (self.address(machine, 0), length.min(MOST_FRAME))
    }

    /// What is saved there, if it is a frame of five items.
    pub(super) fn saved(&self, machine: &Machine, memory: &impl GuestMemory) -> Option<Saved> {
        let item = |index| self.item(machine, memory, index);
        let selector = |index| u16::try_from(item(index)? & 0xffff).ok();
        Some(Saved {
            ip: item(0)?,
            cs: selector(1)?,
            flags: item(2)?,
            sp: item(3)?,
            ss: selector(4)?,
        })
    }

    /// The byte that holds TF: bit 0 of the second byte of the flags, which are the third item.
    fn tf_byte(&self, machine: &Machine) -> GuestVirtAddr {
        self.address(machine, 2 * self.slot + 1)
    }

    /// Returns the saved TF. `None` if there is no memory.
    pub(super) fn tf(&self, machine: &Machine, memory: &impl GuestMemory) -> Option<bool> {
        let byte = machine.read(memory, self.tf_byte(machine), 1)?;
        Some(byte & 1 != 0)
    }

    /// Returns `true` if the place is free at the present stack pointer: the instruction itself has not
    /// pushed what is there.
    pub(super) fn is_free(&self, now: &Machine) -> bool {
        let mask = width_mask(self.bits);
        let flags_end = self.ip_at.wrapping_add(3 * self.slot);
        !self.own_stack || now.sp().wrapping_sub(flags_end) & mask <= mask / 2
    }

    /// Returns `true` if this is a frame of the stepped instruction.
    pub(super) fn matches(
        &self,
        now: &Machine,
        memory: &impl GuestMemory,
        expected: &Expected<'_>,
    ) -> bool {
        let before = expected.machine;
        let mask = width_mask(u32::try_from(8 * self.slot).unwrap_or(64));
        let item = |index| self.item(now, memory, index);
        let is_ip = |ip: u64| {
            expected
                .ips
                .iter()
                .any(|expected| (expected ^ ip) & mask == 0)
        };
        let selector_is = |item: u64, selector: u16| (item ^ u64::from(selector)) & 0xffff == 0;
        // RF is set in the frame of a fault. TF is what may have to be mended.
        let mut free = RFLAGS_TF | RFLAGS_RF;
        if before.virtual_8086() {
            // With CR4.VME, IF is VIF and IOPL is 3 in the image (SDM 3B 20.3.3).
            free |= RFLAGS_IF | RFLAGS_IOPL;
        }
        if expected.loose || expected.class == StepClass::RepeatString {
            free |= RFLAGS_STATUS | RFLAGS_IF;
        }
        item(0).is_some_and(is_ip)
            && item(1).is_some_and(|cs| selector_is(cs, before.special.cs.selector))
            && item(2).is_some_and(|flags| (flags ^ before.core.rflags) & mask & !free == 0)
            && (!self.has_stack
                || (item(3)
                    .is_some_and(|sp| (sp ^ before.core.rsp) & before.sp_mask() & mask == 0)
                    && item(4).is_some_and(|ss| selector_is(ss, before.special.ss.selector))))
    }

    /// Returns the mend that sets the saved TF to `tf`: `None` if it has that value already.
    pub(super) fn mend(
        &self,
        machine: &Machine,
        memory: &impl GuestMemory,
        tf: bool,
    ) -> Option<Mend> {
        mend(machine, memory, self.tf_byte(machine), tf)
    }
}

/// Returns the mend that sets bit 0 of the byte at `address` to `tf`: `None` if it has that value
/// already.
pub(super) fn mend(
    machine: &Machine,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
    tf: bool,
) -> Option<Mend> {
    let address = translate(&machine.special, memory, address).ok()?.gpa;
    let mut byte = [0];
    if memory.read_memory(address, &mut byte) != 1 {
        return None;
    }
    let [byte] = byte;
    let value = (byte & !1) | u8::from(tf);
    (value != byte).then_some(Mend { address, value })
}

/// The frames that may be at the top of the stack if the CPU is at the first instruction of a handler:
/// without an error code, and with one.
pub(super) fn at_top_of_stack(before: &Machine, now: &Machine) -> impl Iterator<Item = Place> {
    let real = now.special.cr0 & CR0_PE == 0 || now.virtual_8086();
    let slots: &[u64] = if now.long_mode() {
        &[8]
    } else if real {
        &[2]
    } else {
        // The gate's size, which may differ from that of the code (SDM 3A 6.12.1).
        &[4, 2]
    };
    let has_stack = now.long_mode() || now.cpl() != before.cpl();
    let (before_sp, now) = (before.sp(), *now);
    slots
        .iter()
        .flat_map(|slot| [(*slot, 0), (*slot, *slot)])
        .filter(move |(_, error_code)| !real || *error_code == 0)
        .map(move |(slot, error_code)| Place {
            base: now.linear(&now.special.ss, 0).0,
            bits: now.stack_bits(),
            ip_at: now.sp().wrapping_add(error_code),
            slot,
            has_stack,
            own_stack: !has_stack,
        })
        .filter(move |place| {
            // If the stack did not change, the frame is right below the old top.
            place.has_stack
                || (place.ip_at.wrapping_add(3 * place.slot) ^ before_sp) & width_mask(place.bits)
                    == 0
        })
}

/// The frames that an event during the next instruction may leave, also after its handler's first
/// instruction: on the stack in use, or on the one that the TSS names for privilege level 0.
///
/// Not covered: stacks of the interrupt stack table, levels 1 and 2, task gates. A frame on them
/// is found only while its handler is at its first instruction.
pub(super) fn candidates(
    machine: &Machine,
    memory: &impl GuestMemory,
) -> impl Iterator<Item = Place> {
    let same = |slot: u64| {
        let sp = machine.sp();
        // Long mode aligns the stack to 16 bytes first, and always saves SS:RSP (SDM 3A 6.14.2).
        let (top, items) = if machine.long_mode() {
            (sp & !0xf, 5)
        } else {
            (sp, 3)
        };
        Place {
            base: machine.linear(&machine.special.ss, 0).0,
            bits: if machine.long_mode() {
                64
            } else {
                machine.stack_bits()
            },
            ip_at: top.wrapping_sub(items * slot),
            slot,
            has_stack: machine.long_mode(),
            own_stack: true,
        }
    };
    let places = if machine.long_mode() {
        let place = if machine.cpl() == 0 {
            Some(same(8))
        } else {
            inner_long(machine, memory)
        };
        [place, None]
    } else if machine.virtual_8086() {
        [Some(same(2)), inner_protected(machine, memory)]
    } else if machine.real_segments() {
        [Some(same(2)), None]
    } else if machine.cpl() == 0 {
        [Some(same(4)), Some(same(2))]
    } else {
        [inner_protected(machine, memory), None]
    };
    places.into_iter().flatten()
}

/// The frame that an event of user code leaves, on this interrupt stack if it is not 0. Not for
/// virtual-8086 mode.
pub(super) fn of_user_event(
    machine: &Machine,
    memory: &impl GuestMemory,
    stack: u64,
) -> Option<Place> {
    if machine.long_mode() {
        // RSP0, or IST1 to IST7.
        let offset = stack.checked_sub(1).map_or(4, |index| 0x24 + 8 * index);
        long_stack(machine, memory, offset)
    } else {
        inner_protected(machine, memory)
    }
}

fn inner_long(machine: &Machine, memory: &impl GuestMemory) -> Option<Place> {
    long_stack(machine, memory, 4)
}

/// A stack of the 64-bit TSS: the offset of its pointer there (SDM 3A figure 8-11).
fn long_stack(machine: &Machine, memory: &impl GuestMemory, offset: u64) -> Option<Place> {
    let tss = GuestVirtAddr(machine.special.tr.base);
    let top = machine.read(memory, tss.checked_add(offset)?, 8)? & !0xf;
    Some(Place {
        base: 0,
        bits: 64,
        ip_at: top.wrapping_sub(40),
        slot: 8,
        has_stack: true,
        own_stack: false,
    })
}

/// SS0:ESP0 of a 32-bit TSS (SDM 3A figure 8-2).
fn inner_protected(machine: &Machine, memory: &impl GuestMemory) -> Option<Place> {
    // Types 9 and 11. An old 16-bit TSS is not supported.
    if machine.special.tr.kind & 0xd != 9 {
        return None;
    }
    let tss = GuestVirtAddr(machine.special.tr.base);
    let esp0 = machine.read(memory, tss.checked_add(4)?, 4)?;
    let ss0 = u16::try_from(machine.read(memory, tss.checked_add(8)?, 2)?).ok()?;
    let stack = descriptor::read(&machine.special, memory, ss0).ok()?;
    let bits = if stack.default_big { 32 } else { 16 };
    // Virtual-8086 mode saves GS, FS, DS and ES first (SDM 3B 20.3.1).
    let items = if machine.virtual_8086() { 9 } else { 5 };
    Some(Place {
        base: stack.base,
        bits,
        ip_at: (esp0 & width_mask(bits)).wrapping_sub(items * 4),
        slot: 4,
        has_stack: true,
        own_stack: false,
    })
}
