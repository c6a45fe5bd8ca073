//! What is in the debug registers during a step: the debugger's breakpoints, where a handler begins
//! that the step may enter, and the guest's own watchpoints.

use vcpu_caps::{HwBreakpoint, HwBreakpointKind};

use crate::x86_64::DebugRegisters;
use crate::x86_64::bits::DR7_GD;
use crate::x86_64::step::Guards;

/// Debug-address registers of a processor.
const SLOTS: usize = 4;

/// Guards that no step needs are taken away after so many steps: a processor loads debug registers
/// with each entry while one of them is in use, and a change of them costs a call.
const PATIENCE: u8 = 8;

/// Whose a debug register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// The debugger's.
    Debugger,
    /// A handler begins there that the step may enter.
    Guard,
    /// The guest's own debug register of this number.
    Guest(usize),
}

/// The debug registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots {
    registers: Vec<(HwBreakpoint, Use)>,
    /// Steps in a row that needed no guard, while there are some.
    unguarded: u8,
}

impl Slots {
    /// For a free run: the debugger's. While it has none the guest's own are in force.
    pub(super) fn free(debugger: &[HwBreakpoint]) -> Self {
        Self {
            registers: debugger.iter().map(|at| (*at, Use::Debugger)).collect(),
            unguarded: 0,
        }
    }

    /// The vCPU goes no further than where it is.
    pub(super) fn nowhere(pc: u64) -> Self {
        Self {
            registers: vec![(HwBreakpoint::execute(pc), Use::Guard)],
            unguarded: 0,
        }
    }

    /// For a step of the instruction at `pc`. Execute breakpoints of the debugger come last: a step
    /// compares its end with them in any case. `self` is what the step before had: it is kept if it
    /// serves, because a change costs a call.
    pub(super) fn step(
        &self,
        debugger: &[HwBreakpoint],
        own: &OwnBreakpoints,
        guards: &Guards,
        pc: u64,
    ) -> Self {
        let is_execute = |at: &HwBreakpoint| at.kind() == HwBreakpointKind::Execute;
        let (execute, watch): (Vec<_>, Vec<_>) = debugger.iter().copied().partition(is_execute);
        let mut slots = Self::free(&watch);
        let watched = own.watches();
        if slots.registers.len() + watched.len() <= SLOTS {
            let watched = watched.into_iter();
            slots
                .registers
                .extend(watched.map(|(slot, at)| (at, Use::Guest(slot))));
        }
        let fixed = slots.registers.len();
        let elsewhere = |address: &&u64| **address != pc;
        let unguarded = guards.needed.is_empty();
        let has_guards = self.registers.iter().any(|(_, of)| *of == Use::Guard);
        if unguarded && (!has_guards || self.unguarded >= PATIENCE) {
            for at in execute {
                slots.add(at, Use::Debugger);
            }
            return slots;
        }
        let needed: Vec<u64> = guards.needed.iter().filter(elsewhere).copied().collect();
        let serves = self.registers.get(..fixed) == Some(&slots.registers[..])
            && self.registers.iter().skip(fixed).all(|(at, of)| match of {
                Use::Guard => at.address() != pc,
                Use::Debugger => execute.contains(at),
                Use::Guest(_) => false,
            })
            && needed
                .iter()
                .take(SLOTS - fixed)
                .all(|address| self.guards(*address));
        if serves {
            return Self {
                unguarded: if unguarded { self.unguarded + 1 } else { 0 },
                ..self.clone()
            };
        }
        let spare = guards.spare.iter().filter(elsewhere).copied();
        for address in needed.into_iter().chain(spare) {
            slots.add(HwBreakpoint::execute(address), Use::Guard);
        }
        for at in execute {
            slots.add(at, Use::Debugger);
        }
        slots
    }

    fn add(&mut self, at: HwBreakpoint, of: Use) {
        if self.registers.len() < SLOTS && self.registers.iter().all(|(other, _)| *other != at) {
            self.registers.push((at, of));
        }
    }

    /// Returns `true` if the step stops at this handler.
    pub(super) fn guards(&self, address: u64) -> bool {
        self.registers
            .iter()
            .any(|(at, of)| *of == Use::Guard && at.address() == address)
    }

    /// Returns `true` if the step at `pc` may well enter a handler that it does not stop at, for want of a debug
    /// register.
    pub(super) fn lack(&self, guards: &Guards, pc: u64) -> bool {
        let elsewhere = guards.needed.iter().filter(|address| **address != pc);
        elsewhere.take(SLOTS).any(|address| !self.guards(*address))
    }

    /// The handlers that the step at `pc` does not stop at, where [`lack`](Self::lack) is `true`: also those
    /// that are not needed.
    pub(super) fn missed(&self, guards: &Guards, pc: u64) -> impl Iterator<Item = u64> {
        let all = guards.needed.iter().chain(&guards.spare).copied();
        all.filter(move |address| *address != pc && !self.guards(*address))
    }

    /// The breakpoints, in the order of the registers.
    pub(super) fn breakpoints(&self) -> Vec<HwBreakpoint> {
        self.registers.iter().map(|(at, _)| *at).collect()
    }

    /// Those that DR6 names by B0-B3.
    pub(super) fn hit(&self, dr6: u64) -> impl Iterator<Item = (HwBreakpoint, Use)> {
        let hit = move |slot: &usize| dr6 >> slot & 1 == 1;
        (0..SLOTS)
            .filter(hit)
            .filter_map(|slot| self.registers.get(slot).copied())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.registers.is_empty()
    }
}

/// The guest's own breakpoints, as its DR0-DR3 and DR7 have them (SDM 3B 19.2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OwnBreakpoints(DebugRegisters);

impl OwnBreakpoints {
    pub(super) fn new(status: DebugRegisters) -> Self {
        Self(status)
    }

    /// Enabled ones: the number of the register, its address, its R/W and LEN fields.
    fn enabled(&self) -> impl Iterator<Item = (usize, u64, u64, u64)> {
        let dr7 = self.0.dr7;
        let addresses = self.0.dr.into_iter().enumerate();
        addresses
            .filter(move |(slot, _)| dr7 >> (2 * slot) & 3 != 0)
            .map(move |(slot, address)| {
                let fields = dr7 >> (16 + 4 * slot);
                (slot, address, fields & 3, fields >> 2 & 3)
            })
    }

    /// DR6.B0-B3 of the breakpoints that are hit as the instruction at `pc` begins. None of them is
    /// if RFLAGS.RF is set: that is the caller's to look at.
    pub(super) fn execute_hits(&self, pc: u64) -> u64 {
        self.enabled()
            .filter(|(_, address, kind, _)| *kind == 0 && *address == pc)
            .fold(0, |bits, (slot, ..)| bits | 1 << slot)
    }

    /// The watchpoints.
    fn watches(&self) -> Vec<(usize, HwBreakpoint)> {
        self.enabled()
            .filter_map(|(slot, address, kind, length)| {
                let kind = match kind {
                    1 => HwBreakpointKind::Write,
                    3 => HwBreakpointKind::ReadWrite,
                    _ => return None,
                };
                let length = [1, 2, 8, 4]
                    .into_iter()
                    .nth(usize::try_from(length).ok()?)?;
                // The low bits of the address do not count.
                let at = HwBreakpoint::watch(address & !(length - 1), length, kind);
                Some((slot, at))
            })
            .collect()
    }

    /// Returns `true` if each access to a debug register raises #DB (DR7.GD).
    pub(super) fn detects_accesses(&self) -> bool {
        self.0.dr7 & DR7_GD != 0
    }

    /// Returns `true` if the guest watches I/O ports, which no debug register of the debugger can.
    pub(super) fn watches_ports(&self) -> bool {
        self.enabled().any(|(_, _, kind, _)| kind == 2)
    }

    /// DR6.B0-B3 of the breakpoints that are enabled.
    pub(super) fn enabled_bits(&self) -> u64 {
        self.enabled().fold(0, |bits, (slot, ..)| bits | 1 << slot)
    }

    /// Of the watchpoints alone.
    pub(super) fn watch_bits(&self) -> u64 {
        let watches = self.enabled().filter(|(_, _, kind, _)| *kind != 0);
        watches.fold(0, |bits, (slot, ..)| bits | 1 << slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(dr7: u64) -> OwnBreakpoints {
        OwnBreakpoints::new(DebugRegisters {
            dr: [0x1000, 0x2003, 0x3000, 0x4000],
            dr6: 0,
            dr7,
        })
    }

    #[test]
    fn a_breakpoint_is_enabled_locally_or_globally() {
        for (dr7, bits) in [
            (0x400, 0),
            (0x401, 0b0001),
            (0x402, 0b0001),
            (0x404, 0b0010),
            (0x420, 0b0100),
            (0x440, 0b1000),
            // Types and lengths of others, LE, GE and GD enable nothing.
            (0xffff_2700, 0),
            (0xffff_27ff, 0b1111),
        ] {
            assert_eq!(own(dr7).enabled_bits(), bits, "DR7 {dr7:#x}");
        }
    }

    #[test]
    fn dr7_says_what_a_breakpoint_waits_for() {
        // DR0 executes, DR1 is written (4 bytes), DR2 is a port, DR3 is read or written (8 bytes).
        let own = own(0xb2d0_04ff);
        assert_eq!(own.execute_hits(0x1000), 1);
        assert_eq!(own.execute_hits(0x3000), 0);
        assert_eq!(own.watch_bits(), 0b1110);
        assert!(own.watches_ports());
        let watches = [
            (1, HwBreakpoint::watch(0x2000, 4, HwBreakpointKind::Write)),
            (
                3,
                HwBreakpoint::watch(0x4000, 8, HwBreakpointKind::ReadWrite),
            ),
        ];
        assert_eq!(own.watches(), watches);
    }

    fn guards(needed: &[u64], spare: &[u64]) -> Guards {
        Guards {
            needed: needed.iter().copied().collect(),
            spare: spare.iter().copied().collect(),
        }
    }

    fn addresses(slots: &Slots) -> Vec<u64> {
        let all = slots.breakpoints();
        all.iter().map(HwBreakpoint::address).collect()
    }

    #[test]
    fn watchpoints_come_first_and_execute_breakpoints_of_the_debugger_last() {
        let watch = HwBreakpoint::watch(0x9000, 8, HwBreakpointKind::Write);
        let debugger = [HwBreakpoint::execute(0x5000), watch];
        let none = OwnBreakpoints::default();
        let wanted = guards(&[0x6000], &[]);
        let slots = Slots::default().step(&debugger, &none, &wanted, 0x100);
        assert_eq!(addresses(&slots), [0x9000, 0x6000, 0x5000]);
        let wanted = guards(&[0x6000, 0x7000], &[0x8000]);
        let slots = Slots::default().step(&debugger, &none, &wanted, 0x100);
        assert_eq!(addresses(&slots), [0x9000, 0x6000, 0x7000, 0x8000]);
        // Of the guest's own: the debug register of the same number.
        let slots = Slots::default().step(&[], &own(0x1000_0404), &wanted, 0x100);
        assert_eq!(addresses(&slots), [0x6000, 0x7000, 0x8000]);
        let slots = Slots::default().step(&[], &own(0x0010_0404), &wanted, 0x100);
        assert_eq!(addresses(&slots), [0x2003, 0x6000, 0x7000, 0x8000]);
        assert_eq!(slots.hit(1).next().unwrap().1, Use::Guest(1));
    }

    #[test]
    fn handlers_that_find_no_debug_register_are_noticed() {
        let watch = |address| HwBreakpoint::watch(address, 8, HwBreakpointKind::Write);
        let watches = [0x9000, 0x9008, 0x9010, 0x9018].map(watch);
        let none = OwnBreakpoints::default();
        let wanted = guards(&[0x6000], &[0x8000]);
        for (watches, lack) in [(&watches[..3], false), (&watches[..], true)] {
            let slots = Slots::default().step(watches, &none, &wanted, 0x100);
            assert_eq!(slots.lack(&wanted, 0x100), lack);
        }
        // What is not needed is not missed, and no step needs a guard where it begins.
        let slots = Slots::default().step(&watches, &none, &wanted, 0x6000);
        assert!(!slots.lack(&wanted, 0x6000));
        assert!(!slots.lack(&guards(&[], &[0x8000]), 0x100));
        // There are four, and no step gets more.
        let many = guards(&[1, 2, 3, 4, 5], &[]);
        let slots = Slots::default().step(&[], &none, &many, 0x100);
        assert!(!slots.lack(&many, 0x100));
    }

    #[test]
    fn what_serves_is_kept_and_what_stands_in_the_way_is_not() {
        let none = OwnBreakpoints::default();
        let first = guards(&[0x6000, 0x7000], &[0x8000]);
        let slots = Slots::default().step(&[], &none, &first, 0x100);
        let fewer = guards(&[0x7000], &[0x9000]);
        assert_eq!(slots.step(&[], &none, &fewer, 0x200), slots);
        // Without a need they stay for a while.
        let nothing = guards(&[], &[0x9000]);
        let mut later = slots.clone();
        for _ in 0..PATIENCE {
            later = later.step(&[], &none, &nothing, 0x200);
            assert_eq!(addresses(&later), addresses(&slots));
        }
        assert!(later.step(&[], &none, &nothing, 0x200).is_empty());
        // The handler itself is stepped.
        let here = slots.step(&[], &none, &first, 0x6000);
        assert_eq!(addresses(&here), [0x7000, 0x8000]);
        let more = guards(&[0xa000], &[]);
        assert_eq!(addresses(&slots.step(&[], &none, &more, 0x200)), [0xa000]);
        // A breakpoint of the debugger that is gone goes.
        let debugger = [HwBreakpoint::execute(0x5000)];
        let armed = Slots::default().step(&debugger, &none, &fewer, 0x200);
        assert_eq!(addresses(&armed), [0x7000, 0x9000, 0x5000]);
        assert_eq!(
            addresses(&armed.step(&[], &none, &fewer, 0x200)),
            [0x7000, 0x9000]
        );
    }
}
