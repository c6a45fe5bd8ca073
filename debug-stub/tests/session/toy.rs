//! A session on another architecture: what the core assumes of a CPU, it would have to assume here.
//!
//! The toy has three registers of odd sizes, a second mode in which the client sees two of them in another order and
//! with fewer bits, a program counter that counts words of a code
//! segment, addresses with an offset, a breakpoint instruction of four bytes, six slots for
//! breakpoints and two for watchpoints of 16 bytes, and no way to mask interrupts.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::{BitOr, Range, Sub};
use std::rc::Rc;

use debug_stub::arch::{Arch, DebugSlots, Mapped};
use debug_stub::{Armed, GuestMemory, GuestPhysAddr, GuestVirtAddr, Host, Interrupts, ResumePlan};
use proptest::prelude::*;
use vcpu_caps::{HwBreakpoint, HwBreakpointKind};

use super::*;
use crate::common::Run;

const SIZE: usize = 0x800;
/// The virtual address of physical address 0.
const BASE: u64 = 0x10_0000;
/// Pages are no power of two.
const PAGE: u64 = 0x180;
/// The code segment, virtual.
const CODE: u64 = BASE + 0x180;
const BREAK: [u8; 4] = [0xb0, 0xb1, 0xb2, 0xb3];

#[derive(Debug)]
enum Toy {}

#[derive(Clone, Debug, Default, PartialEq)]
struct Registers {
    /// 3 bytes.
    acc: u32,
    /// 1 byte, even numbers only.
    flags: u8,
    /// 5 bytes: words from the start of the code segment.
    pc: u64,
    /// In this mode the client's registers are `pc`, 2 bytes, and `acc`, 3 bytes.
    short: bool,
}

/// Bit 0: `acc` and `flags`. Bit 1: `pc` and the mode.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Groups(u8);

impl BitOr for Groups {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Sub for Groups {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum View {
    Short,
    Long,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Name {
    Acc,
    Flags,
    Pc,
}

#[derive(Debug, thiserror::Error)]
#[error("a toy has no such value")]
struct Refused;

fn all(view: View) -> &'static [Name] {
    match view {
        View::Short => &[Name::Pc, Name::Acc],
        View::Long => &[Name::Acc, Name::Flags, Name::Pc],
    }
}

fn size((view, name): (View, Name)) -> usize {
    match (name, view) {
        (Name::Acc, _) => 3,
        (Name::Flags, _) => 1,
        (Name::Pc, View::Short) => 2,
        (Name::Pc, View::Long) => 5,
    }
}

impl Arch for Toy {
    type Registers = Registers;
    type Groups = Groups;
    type View = View;
    type RegisterId = (View, Name);
    type WriteError = Refused;
    type AddressSpace = ();

    const ALL_GROUPS: Groups = Groups(3);
    const STOP_GROUPS: Groups = Groups(2);
    const SPACE_GROUPS: Groups = Groups(0);
    const VIEW_GROUPS: Groups = Groups(2);
    const PC_GROUPS: Groups = Groups(2);
    const REGISTER_BYTES: usize = 9;
    const WIDEST_VIEW: View = View::Long;
    const BREAKPOINT: &'static [u8] = &BREAK;
    const SLOTS: DebugSlots = DebugSlots::Separate {
        execute: 6,
        watch: 2,
    };
    const SLOTS_NAME: &'static str = "comparators";
    const SLOTS_COMMAND: &'static str = "comparators";
    const SYSTEM_REGISTER: &'static str = "cell";

    fn system_registers() -> impl Iterator<Item = (&'static str, u32)> {
        [("CLOCK", 7)].into_iter()
    }

    fn system_register(name: &str) -> Option<u32> {
        (name == "clock").then_some(7)
    }

    fn check_system_register(
        _: u32,
        value: u64,
        registers: &Registers,
    ) -> Result<(), &'static str> {
        if registers.short && value > 9 {
            return Err("short mode counts to 9");
        }
        Ok(())
    }

    fn view(registers: &Registers, named: Option<View>) -> View {
        if let Some(view) = named {
            view
        } else if registers.short {
            View::Short
        } else {
            View::Long
        }
    }

    fn view_name(view: View) -> &'static str {
        match view {
            View::Short => "toy:short",
            View::Long => "toy",
        }
    }

    fn view_named(name: &str) -> Option<View> {
        [View::Short, View::Long]
            .into_iter()
            .find(|view| Self::view_name(*view) == name)
    }

    fn is_whole(view: View, registers: &Registers) -> bool {
        view == View::Long || registers.short
    }

    fn mode(registers: &Registers) -> &'static str {
        if registers.short {
            "short mode"
        } else {
            "long mode"
        }
    }

    fn register(view: View, number: usize) -> Option<(View, Name)> {
        Some((view, *all(view).get(number)?))
    }

    fn registers(view: View) -> impl Iterator<Item = (View, Name)> {
        all(view).iter().map(move |name| (view, *name))
    }

    fn size(register: (View, Name)) -> usize {
        size(register)
    }

    fn number((view, name): (View, Name)) -> usize {
        all(view).iter().position(|other| *other == name).unwrap()
    }

    fn groups((_, name): (View, Name)) -> Groups {
        match name {
            Name::Acc | Name::Flags => Groups(1),
            Name::Pc => Groups(2),
        }
    }

    fn groups_for_write(register: (View, Name)) -> Groups {
        Self::groups(register)
    }

    fn changed_groups(before: &Registers, after: &Registers) -> Groups {
        let data = (before.acc, before.flags) != (after.acc, after.flags);
        Groups(u8::from(data) | u8::from(before.pc != after.pc) << 1)
    }

    fn expedited(view: View) -> impl Iterator<Item = (View, Name)> {
        [(view, Name::Pc)].into_iter()
    }

    fn read_register(register: (View, Name), from: &Registers, value: &mut Vec<u8>) -> bool {
        let number = match register.1 {
            Name::Acc => from.acc.into(),
            Name::Flags => from.flags.into(),
            Name::Pc => from.pc,
        };
        let (bytes, rest) = (number.to_le_bytes(), size(register));
        let fits = bytes[rest..].iter().all(|byte| *byte == 0);
        if fits {
            value.extend(&bytes[..rest]);
        }
        fits
    }

    fn write_register(
        register: (View, Name),
        registers: &mut Registers,
        _: &impl GuestMemory,
        value: &[u8],
    ) -> Result<(), Refused> {
        if value.len() != size(register) {
            return Err(Refused);
        }
        let mut bytes = [0; 8];
        bytes[..value.len()].copy_from_slice(value);
        let number = u64::from_le_bytes(bytes);
        match register.1 {
            Name::Acc => registers.acc = u32::try_from(number).unwrap(),
            Name::Flags if number % 2 == 1 => return Err(Refused),
            Name::Flags => registers.flags = u8::try_from(number).unwrap(),
            Name::Pc => registers.pc = number,
        }
        Ok(())
    }

    fn write_all(
        view: View,
        registers: &mut Registers,
        memory: &impl GuestMemory,
        data: &[u8],
    ) -> Result<(), Refused> {
        let length: usize = Self::registers(view).map(size).sum();
        if data.len() != length {
            return Err(Refused);
        }
        let mut after = registers.clone();
        let mut rest = data;
        for register in Self::registers(view) {
            let (value, tail) = rest.split_at(size(register));
            Self::write_register(register, &mut after, memory, value)?;
            rest = tail;
        }
        *registers = after;
        Ok(())
    }

    fn pc(registers: &Registers) -> GuestVirtAddr {
        GuestVirtAddr(Self::code_address(registers, registers.pc))
    }

    fn client_pc(registers: &Registers) -> u64 {
        Self::code_address(registers, registers.pc)
    }

    fn code_address(_: &Registers, address: u64) -> u64 {
        CODE.wrapping_add(address.wrapping_mul(4))
    }

    fn set_pc(registers: &mut Registers, _: &impl GuestMemory, pc: u64) -> Result<(), Refused> {
        registers.pc = pc;
        Ok(())
    }

    /// Whole granules: more than was asked for.
    fn watch(
        address: u64,
        length: u64,
        kind: HwBreakpointKind,
    ) -> impl Iterator<Item = HwBreakpoint> {
        let last = address.saturating_add(length - 1);
        (address / 16..=last / 16).map(move |granule| HwBreakpoint::watch(granule * 16, 16, kind))
    }

    fn address_space(_: &Registers) {}

    fn translate((): &(), _: &impl GuestMemory, address: GuestVirtAddr) -> Option<Mapped> {
        let gpa = address.0.checked_sub(BASE)?;
        (gpa < u64::try_from(SIZE).unwrap()).then(|| Mapped {
            gpa: GuestPhysAddr(gpa),
            length: PAGE - gpa % PAGE,
        })
    }

    fn target_description(view: View, annex: &[u8]) -> Option<Cow<'static, str>> {
        match annex {
            b"target.xml" if view == View::Short => Some("<target>short</target>".into()),
            b"target.xml" => Some("<target><xi:include href=\"toy.xml\"/></target>".into()),
            b"toy.xml" => Some("<feature name=\"toy\"/>".into()),
            _ => None,
        }
    }
}

/// Instructions of one word: 0 does nothing, 1 counts, 2 stores at a 16-bit offset, 3 spins.
struct ToyMachine {
    ram: RefCell<[u8; SIZE]>,
    read_only: Range<usize>,
    vcpus: Vec<Registers>,
    groups_read: Vec<Groups>,
    /// How many more calls for registers succeed before one fails.
    until_failure: Option<usize>,
    /// What the host provides of cell 7; others do not exist.
    cell: Option<u64>,
}

impl ToyMachine {
    fn new(program: &[[u8; 4]]) -> Self {
        let mut ram = [0; SIZE];
        let code = usize::try_from(CODE - BASE).unwrap();
        ram[code..code + program.len() * 4].copy_from_slice(&program.concat());
        Self {
            ram: RefCell::new(ram),
            read_only: 0..0,
            vcpus: vec![Registers::default(); 2],
            groups_read: Vec::new(),
            until_failure: None,
            cell: Some(5),
        }
    }

    fn ram(&self) -> [u8; SIZE] {
        *self.ram.borrow()
    }

    fn call(&mut self) -> Result<(), HostError> {
        let Some(left) = self.until_failure else {
            return Ok(());
        };
        self.until_failure = left.checked_sub(1);
        match left {
            0 => Err(HostError("the test says no".into())),
            _ => Ok(()),
        }
    }

    fn execute(&mut self, index: usize, armed: &Armed, first: bool) -> Option<StopReason> {
        let pc = Toy::pc(&self.vcpus[index]).0;
        let at = HwBreakpoint::execute(pc);
        if armed.hardware.contains(&at) && !first {
            return Some(StopReason::HardwareBreakpoint);
        }
        let mapped = Toy::translate(&(), self, GuestVirtAddr(pc));
        let Some(mapped) = mapped else {
            return Some(StopReason::InternalError("beyond RAM".into()));
        };
        let mut word = [0; 4];
        self.read_memory(mapped.gpa, &mut word);
        let registers = &mut self.vcpus[index];
        match word {
            BREAK if armed.software.contains(&mapped.gpa) => {
                return Some(StopReason::SoftwareBreakpoint);
            }
            [3, ..] => return None,
            [1, ..] => registers.acc += 1,
            [2, low, high, _] => {
                registers.pc += 1;
                let to = BASE + u64::from(u16::from_le_bytes([low, high]));
                let value = registers.acc.to_le_bytes();
                self.write_memory(GuestPhysAddr(to - BASE), &value[..1]);
                let mut slots = armed.hardware.iter();
                let hit =
                    slots.find(|b| b.kind() != HwBreakpointKind::Execute && b.overlaps(to, 1));
                return hit.map(|_| StopReason::Watchpoint {
                    address: to,
                    access: WatchAccess::Write,
                });
            }
            _ => {}
        }
        registers.pc += 1;
        None
    }
}

impl Run for ToyMachine {
    fn run(&mut self, plan: &ResumePlan, budget: usize) -> Option<Vec<Stop>> {
        for round in 0..budget {
            for index in 0..self.vcpus.len() {
                let id = VcpuId(u16::try_from(index).unwrap());
                let reason = match plan.order(id) {
                    VcpuOrder::Stay => None,
                    VcpuOrder::Continue => self.execute(index, &plan.armed, false),
                    VcpuOrder::Step(step) => {
                        assert!(!step.mask, "a toy masks nothing");
                        self.execute(index, &plan.armed, round == 0).or_else(|| {
                            let pc = Toy::pc(&self.vcpus[index]).0;
                            let on = step.range.as_ref().is_some_and(|range| range.contains(&pc));
                            (!on).then_some(StopReason::Step)
                        })
                    }
                };
                if let Some(reason) = reason {
                    return Some(vec![Stop { vcpu: id, reason }]);
                }
            }
        }
        None
    }
}

impl GuestMemory for ToyMachine {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        let ram = self.ram.borrow();
        let at = usize::try_from(address.0).unwrap().min(SIZE);
        let length = data.len().min(SIZE - at);
        data[..length].copy_from_slice(&ram[at..at + length]);
        length
    }

    /// Stops at the first byte that is read-only.
    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        let mut ram = self.ram.borrow_mut();
        let at = usize::try_from(address.0).unwrap();
        for (offset, byte) in data.iter().enumerate() {
            if at + offset >= SIZE || self.read_only.contains(&(at + offset)) {
                return offset;
            }
            ram[at + offset] = *byte;
        }
        data.len()
    }
}

/// A host's error need be neither `Send` nor `Sync`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct HostError(Rc<str>);

impl Host for ToyMachine {
    type Arch = Toy;
    type Error = HostError;

    fn vcpu_count(&self) -> u16 {
        u16::try_from(self.vcpus.len()).unwrap()
    }

    fn vcpu_name(&self, vcpu: VcpuId) -> String {
        format!("toy {}", vcpu.0)
    }

    fn read_registers(
        &mut self,
        vcpu: VcpuId,
        groups: Groups,
        registers: &mut Registers,
    ) -> Result<(), HostError> {
        self.call()?;
        self.groups_read.push(groups);
        let from = self.vcpus.get(vcpu.index());
        let from = from.ok_or_else(|| HostError(format!("no {vcpu}").into()))?;
        copy(groups, from, registers);
        Ok(())
    }

    fn write_registers(
        &mut self,
        vcpu: VcpuId,
        groups: Groups,
        registers: &Registers,
    ) -> Result<(), HostError> {
        self.call()?;
        copy(groups, registers, &mut self.vcpus[vcpu.index()]);
        Ok(())
    }

    fn read_system_register(&mut self, _: VcpuId, number: u32) -> Option<Result<u64, HostError>> {
        let cell = self.cell?;
        Some(match number {
            7 => self.call().map(|()| cell),
            _ => Err(HostError("no such cell".into())),
        })
    }

    fn write_system_register(
        &mut self,
        _: VcpuId,
        number: u32,
        value: u64,
    ) -> Option<Result<(), HostError>> {
        self.cell?;
        Some(match number {
            7 => self.call().map(|()| self.cell = Some(value)),
            _ => Err(HostError("no such cell".into())),
        })
    }

    fn disarm(&mut self, _: VcpuId) -> Result<(), HostError> {
        Ok(())
    }

    /// Behind memory are eight registers that a read does not change, and eight that it does.
    fn read_device(
        &mut self,
        _: VcpuId,
        address: GuestPhysAddr,
        data: &mut [u8],
        side_effects: bool,
    ) -> usize {
        let count = if side_effects { 16 } else { 8 };
        let first = address.0 - u64::try_from(SIZE).unwrap();
        let registers = (first..count).zip(data);
        registers
            .map(|(at, byte)| *byte = 0xd0 + u8::try_from(at).unwrap())
            .count()
    }

    fn interrupts(&mut self, _: VcpuId) -> Interrupts {
        Interrupts::default()
    }
}

fn copy(groups: Groups, from: &Registers, to: &mut Registers) {
    if groups.0 & 1 != 0 {
        (to.acc, to.flags) = (from.acc, from.flags);
    }
    if groups.0 & 2 != 0 {
        (to.pc, to.short) = (from.pc, from.short);
    }
}

const NOP: [u8; 4] = [0, 0, 0, 0];
const COUNT: [u8; 4] = [1, 0, 0, 0];
const SPIN: [u8; 4] = [3, 0, 0, 0];
/// Stores at virtual `BASE + 0x25`.
const STORE: [u8; 4] = [2, 0x25, 0, 0];

fn toy(program: &[[u8; 4]]) -> Rig<ToyMachine> {
    Rig::with(
        ToyMachine::new(program),
        SessionConfig::new(plan(&[Capability::MaskHwintr])),
    )
}

#[test]
fn a_whole_session_runs() {
    let mut rig = toy(&[COUNT, NOP, COUNT, STORE, NOP, SPIN]);
    let untouched = rig.machine().ram();
    let features = rig.ask("qSupported:xmlRegisters=toy;swbreak+;hwbreak+");
    assert!(features.contains("qXfer:features:read+"), "{features}");
    assert_eq!(rig.ask("?"), "T05thread:01;02:0000000000;");
    assert_eq!(
        rig.ask("qXfer:features:read:toy.xml:0,100"),
        "l<feature name=\"toy\"/>"
    );
    assert_eq!(rig.ask("qXfer:features:read:other.xml:0,100"), "E00");
    assert_eq!(rig.ask("qThreadExtraInfo,2"), hex("toy 1"));

    // Registers: three, of three sizes, checked.
    assert_eq!(rig.ask("g"), "000000000000000000");
    assert_eq!(rig.ask("P0=030201"), "OK");
    assert_eq!(rig.ask("P0=03020100"), "E16", "one byte too many");
    assert_eq!(rig.ask("P1=01"), "E16", "the architecture refuses it");
    assert_eq!(rig.ask("p0"), "030201");
    assert_eq!(rig.ask("p3"), "E0e");
    assert_eq!(rig.ask("G000000040000000000"), "OK");
    assert_eq!(rig.machine().vcpus[0].flags, 4);
    assert_eq!(rig.ask("G0000000400000000"), "E16", "too short");

    // Memory: the offset, and where it ends.
    assert_eq!(rig.ask(format!("m{:x},4", CODE)), hex(COUNT));
    assert_eq!(rig.ask(format!("m{:x},4", BASE - 1)), "E0e");
    assert_eq!(rig.ask(format!("m{:x},300", BASE)).len(), 0x600);

    // A step, then a range in words, whose order is in addresses.
    let replies = rig.send("vCont;s:1");
    assert!(console(&replies[0]).contains("a toy has no such value"));
    assert_eq!(replies[1], "T05thread:01;02:0100000000;");
    assert_eq!(rig.last_plan().vcpus, [step(false), VcpuOrder::Stay]);
    assert_eq!(rig.ask("vCont;r1,3:1"), "T05thread:01;02:0300000000;");
    let VcpuOrder::Step(order) = &rig.last_plan().vcpus[0] else {
        panic!("no step");
    };
    assert_eq!(order.range, Some(CODE + 4..CODE + 12));
    assert_eq!(rig.machine().vcpus[0].acc, 2);

    // A watchpoint covers its granule.
    assert_eq!(rig.ask(format!("Z2,{:x},1", BASE + 0x20)), "OK");
    let hit = rig.ask("vCont;c:1");
    assert!(hit.starts_with("T05thread:01;watch:100025;"), "{hit}");
    assert_eq!(rig.ask(format!("z2,{:x},1", BASE + 0x20)), "OK");

    // A software breakpoint: hit, not shown, stepped over.
    assert_eq!(rig.ask(format!("Z0,{:x},4", CODE + 16)), "OK");
    assert_eq!(rig.ask("c"), "T05thread:01;swbreak:;02:0400000000;");
    assert_eq!(rig.ask(format!("m{:x},4", CODE + 16)), hex(NOP));
    assert_eq!(rig.ask("vCont;s:1;c"), "T05thread:01;02:0500000000;");
    assert!(rig.last_plan().armed.software.is_empty());
    // The second vCPU comes by.
    assert_eq!(rig.ask("vCont;c"), "T05thread:02;swbreak:;02:0400000000;");
    assert_eq!(rig.ask(format!("z0,{:x},4", CODE + 16)), "OK");

    // A hardware breakpoint, and going on at an address.
    assert_eq!(rig.ask(format!("Z1,{:x},4", CODE + 4)), "OK");
    assert_eq!(rig.ask("Hc2"), "OK");
    let hit = rig.ask("c0");
    assert_eq!(hit, "T05thread:02;hwbreak:;02:0100000000;");

    assert_eq!(rig.ask("qqemu.sstepbits"), "ENABLE=1");
    assert_eq!(rig.ask("D"), "OK");
    assert_eq!(rig.releases, 1);
    let mut expected = untouched;
    expected[0x25] = 2;
    assert_eq!(rig.machine().ram(), expected);
}

#[test]
fn a_mode_with_other_registers_has_a_description_of_its_own() {
    let mut rig = toy(&[NOP, NOP, NOP, SPIN]);
    for vcpu in &mut rig.machine().vcpus {
        vcpu.short = true;
    }
    rig.machine().vcpus[0].acc = 0x11_2233;
    let read = "qXfer:features:read:target.xml:0,100";
    assert_eq!(rig.ask(read), "l<target>short</target>");
    assert_eq!(rig.ask("g"), "0000332211", "two registers, PC first");
    assert_eq!(rig.ask("p1"), "332211");
    assert_eq!(rig.ask("p2"), "E0e");
    assert_eq!(rig.ask("P0=00"), "E16");
    assert_eq!(rig.ask("G0100"), "E16");
    assert_eq!(rig.ask("G0100040000"), "OK");
    assert_eq!(
        (rig.machine().vcpus[0].pc, rig.machine().vcpus[0].acc),
        (1, 4)
    );
    let replies = rig.send("vCont;s:1");
    assert_eq!(replies.last().unwrap(), "T05thread:01;00:0200;");

    // A mode for which it is too narrow, with a value that does not fit.
    rig.machine().vcpus[0].short = false;
    rig.machine().vcpus[0].pc = 0x1_0000_0000;
    rig.session.stopped(Vec::new());
    let replies = rig.stop(Vec::new());
    assert!(replies.is_empty(), "it is stopped");
    assert_eq!(rig.ask("p0"), "xx");
    assert_eq!(rig.ask("g"), "xxxx040000");
    rig.machine().vcpus[0].pc = 1;
    rig.session.stopped(Vec::new());
    let replies = rig.send("vCont;s:1");
    let text = console(&replies[0]);
    assert!(
        text.contains(
            "thread 1: long mode: the registers of this client's target description, toy:short"
        ),
        "{text}"
    );
    assert_eq!(replies[1], "T05thread:01;00:0200;");
    assert!(rig.ask(read).contains("toy.xml"));
    assert_eq!(rig.ask("g"), "040000000200000000");
}

#[test]
fn devices_are_read_where_there_is_no_memory() {
    let mut rig = toy(&[SPIN]);
    assert_eq!(rig.ask("Qqemu.PhyMemMode:1"), "OK");
    let read = |at: usize, length: usize| format!("m{:x},{length:x}", SIZE + at);
    let monitor = |rig: &mut Rig<ToyMachine>, command: &str| {
        let replies = rig.send(format!("qRcmd,{}", hex(command)));
        console(&replies[0])
    };
    for _ in 0..2 {
        assert_eq!(rig.ask(format!("m{:x},4", SIZE - 2)), "0000d0d1");
        assert_eq!(rig.ask(read(3, 2)), "d3d4");
        assert_eq!(rig.ask(read(6, 4)), "d6d7", "a read would change the rest");
        assert_eq!(rig.ask(read(8, 4)), "E0e");
        assert!(monitor(&mut rig, "mmio").starts_with("of devices only"));
        assert!(monitor(&mut rig, "mmio on").contains("this may change them"));
        assert_eq!(rig.ask(read(6, 4)), "d6d7d8d9");
        assert_eq!(rig.ask(read(15, 4)), "df");
        assert_eq!(rig.ask(read(16, 4)), "E0e");
        assert!(monitor(&mut rig, "mmio maybe").contains("mmio on, or mmio off"));
        monitor(&mut rig, "mmio off");
    }
    let text = monitor(&mut rig, &format!("xp {} 4", SIZE - 2));
    assert!(text.contains(": 0x00 0x00 0xd0 0xd1"), "{text}");
    // Nothing is written there, and no breakpoint is.
    assert_eq!(rig.ask(format!("M{SIZE:x},1:00")), "E0e");
    assert_eq!(rig.ask("Qqemu.PhyMemMode:0"), "OK");
}

#[test]
fn an_architecture_without_page_tables_translates_and_has_no_regions() {
    let mut rig = toy(&[SPIN]);
    let mut monitor = |command: &str| {
        let replies = rig.send(format!("qRcmd,{}", hex(command)));
        console(&replies[0])
    };
    for command in ["translate", "gva2gpa", "pagewalk"] {
        assert_eq!(monitor(&format!("{command} {:#x}", BASE + 4)), "gpa: 0x4\n");
        assert_eq!(monitor(&format!("{command} 0")), "Unmapped\n");
    }
    assert!(monitor("kaslr").contains("no kernel is known"));
    assert!(monitor("threads").starts_with("* thread 1: toy 0, "));
    assert_eq!(rig.ask(format!("qMemoryRegionInfo:{BASE:x}")), "");
}

#[test]
fn monitor_commands_for_slots_and_system_registers_have_the_architectures_names() {
    let mut rig = toy(&[SPIN]);
    let mut monitor = |command: &str, cell: Option<u64>, short: bool| {
        rig.machine().cell = cell;
        rig.machine().vcpus[0].short = short;
        rig.session.stopped(Vec::new());
        let replies = rig.send(format!("qRcmd,{}", hex(command)));
        let text = console(&replies[0]);
        (text, rig.machine().cell)
    };
    for (command, cell, short, says, after) in [
        ("cell clock", Some(5), false, "CLOCK (0x7) = 0x5\n", Some(5)),
        (
            "cell 7 0x20",
            Some(5),
            false,
            "CLOCK (0x7) = 0x20\n",
            Some(32),
        ),
        ("cell", Some(5), false, "CLOCK (0x7) = 0x5\n", Some(5)),
        ("cell 8", Some(5), false, "refused: no such cell\n", Some(5)),
        (
            "cell 8 1",
            Some(5),
            false,
            "refused: no such cell\n",
            Some(5),
        ),
        (
            "cell clock 10",
            Some(5),
            true,
            "refused: short mode counts to 9\n",
            Some(5),
        ),
        (
            "cell clock x",
            Some(5),
            false,
            "refused: the value is no number of 64 bits\n",
            Some(5),
        ),
        (
            "cell 0x100000000",
            Some(5),
            false,
            "no CELL is called \"0x100000000\"\n",
            Some(5),
        ),
        (
            "cell dial",
            Some(5),
            false,
            "no CELL is called \"dial\"\n",
            Some(5),
        ),
        (
            "cell clock 1",
            None,
            false,
            "refused: this VMM does not let a debugger at CELLs\n",
            None,
        ),
        (
            "cell",
            None,
            false,
            "refused: this VMM does not let a debugger at CELLs\n",
            None,
        ),
    ] {
        assert_eq!(
            monitor(command, cell, short),
            (says.to_owned(), after),
            "{command}"
        );
    }
    let (text, _) = monitor("help", None, false);
    assert!(text.contains("monitor comparators"), "{text}");
    assert!(text.contains("monitor cell NAME|NUMBER [VALUE]"), "{text}");
    let (text, _) = monitor("cell 1 2 3", None, false);
    assert!(text.contains("NAME|NUMBER"), "{text}");
    assert_eq!(rig.ask(format!("Z1,{CODE:x},4")), "OK");
    assert_eq!(rig.ask(format!("Z2,{BASE:x},4")), "OK");
    rig.send("vCont;c");
    rig.bytes(b"\x03");
    assert_eq!(rig.ask(format!("z1,{CODE:x},4")), "OK", "as GDB does");
    let text = console(&rig.send(format!("qRcmd,{}", hex("comparators")))[0]);
    assert!(
        text.contains("the debugger's, on all vCPUs while they ran last: 2 of 6"),
        "{text}"
    );
    assert!(text.contains(&format!("execute at {CODE:#x}")), "{text}");
    assert!(text.contains("(16 bytes)"), "{text}");
}

#[test]
fn conditions_and_commands_use_the_toys_registers_and_memory() {
    // acc == 2, and a byte of memory; then the program counter is printed.
    let at = CODE + 8;
    let mut rig = toy(&[COUNT, NOP, COUNT, NOP, SPIN]);
    let condition = "X8,2600002202132721";
    assert_eq!(rig.ask(format!("Z0,{at:x},4;{condition}")), "E16", "cut");
    let condition = "X7,26000022021327";
    assert_eq!(rig.ask(format!("Z0,{at:x},4;{condition}")), "OK");
    rig.send("vCont;c:1");
    assert!(rig.running.is_some(), "acc is 1 there");
    rig.bytes(b"\x03");
    assert_eq!(rig.machine().vcpus[0].acc, 2);
    assert_eq!(rig.ask("P2=0000000000"), "OK");
    assert_eq!(rig.ask("P0=010000"), "OK");
    let hit = rig.ask("vCont;c:1");
    assert_eq!(hit, "T05thread:01;swbreak:;02:0200000000;");

    let mut rig = toy(&[COUNT, NOP, COUNT, NOP, SPIN]);
    let mut code = vec![0x26, 0, 2, 0x24];
    code.extend(u32::try_from(CODE).unwrap().to_be_bytes());
    code.extend([0x19, 0x22, 0, 0x22, 0, 0x34, 2, 0, 7]);
    code.extend(b"%d %x;\0\x27");
    let commands = format!("cmds:1,X{:x},{}", code.len(), hex(code));
    assert_eq!(rig.ask(format!("Z1,{at:x},4;{commands}")), "OK");
    let replies = rig.send("vCont;c:1");
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!(console(&replies[0]), "1 2;");
}

#[test]
fn only_the_groups_that_are_needed_are_read() {
    let mut rig = toy(&[SPIN]);
    rig.ask("?");
    rig.ask("p1");
    rig.ask("p0");
    rig.ask("g");
    // Of the first vCPU: its mode asks for no wider description than it has.
    assert_eq!(rig.machine().groups_read, [Groups(2), Groups(1)]);
}

#[test]
fn six_breakpoints_and_two_watchpoints_fit_and_no_more() {
    let mut rig = toy(&[SPIN]);
    for at in 0..6 {
        assert_eq!(rig.ask(format!("Z1,{:x},4", CODE + at * 4)), "OK");
    }
    assert_eq!(rig.ask(format!("Z1,{:x},4", CODE + 0x40)), "E1c");
    assert_eq!(rig.ask(format!("Z2,{:x},1", BASE)), "OK");
    assert_eq!(rig.ask(format!("Z2,{:x},11", BASE)), "OK", "a share of one");
    assert_eq!(rig.ask(format!("Z4,{BASE:x},1")), "E1c");
    assert_eq!(rig.ask(format!("Z2,{BASE:x},ffffffffffffffff")), "E1c");
    let replies = rig.send(format!("qRcmd,{}", hex("caps")));
    let text = console(&replies[0]);
    rig.send("vCont;c");
    for part in [
        "needs 1 of the 0 free comparators",
        "need more than the 2 comparators",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(rig.last_plan().armed.hardware.len(), 8);
}

#[test]
fn a_breakpoint_that_overlaps_another_or_the_end_of_a_page_takes_a_slot() {
    let mut rig = toy(&[SPIN]);
    let before = rig.machine().ram();
    for at in [CODE + 8, CODE + 10, CODE + 5, BASE + PAGE * 2 - 2] {
        assert_eq!(rig.ask(format!("Z0,{at:x},4")), "OK");
    }
    let text = console(&rig.send("vCont;c")[0]);
    assert!(
        text.contains("takes one of the six comparators: it overlaps another breakpoint"),
        "{text}"
    );
    let armed = &rig.last_plan().armed;
    assert_eq!(armed.software.len(), 1);
    assert_eq!(armed.hardware.len(), 3);
    let code = usize::try_from(CODE - BASE).unwrap();
    assert_eq!(rig.machine().ram()[code + 8..code + 12], BREAK);
    rig.bytes(b"\x03");
    assert_eq!(rig.machine().ram(), before);
}

#[test]
fn a_breakpoint_of_which_a_part_cannot_be_written_leaves_no_byte() {
    let mut rig = toy(&[SPIN]);
    for at in [CODE + 8, CODE + 16, CODE + 24] {
        assert_eq!(rig.ask(format!("Z0,{at:x},4")), "OK");
    }
    let before = rig.machine().ram();
    let code = usize::try_from(CODE - BASE).unwrap();
    rig.machine().read_only = code + 18..code + 20;
    let replies = rig.send("vCont;c");
    assert!(console(&replies[0]).contains("cannot be written"));
    assert!(replies[1].starts_with("T05thread:01;"), "{replies:?}");
    assert!(rig.plans.is_empty());
    assert_eq!(rig.machine().ram(), before);
}

#[test]
fn an_instruction_that_the_guest_writes_over_a_breakpoint_stays_whole() {
    let mut rig = toy(&[SPIN]);
    let code = usize::try_from(CODE - BASE).unwrap();
    assert_eq!(rig.ask(format!("Z0,{:x},4", CODE + 8)), "OK");
    rig.send("vCont;c");
    // It shares two bytes with the breakpoint instruction.
    let new = [BREAK[0], 9, 9, BREAK[3]];
    rig.machine().ram.borrow_mut()[code + 8..code + 12].copy_from_slice(&new);
    rig.bytes(b"\x03");
    assert_eq!(rig.machine().ram()[code + 8..code + 12], new);
}

#[test]
fn each_call_of_the_host_may_fail_once_and_the_session_lives() {
    let packets = [
        "?".to_owned(),
        "g".into(),
        "p1".into(),
        "P0=030201".into(),
        "G000000040000000000".into(),
        format!("m{CODE:x},4"),
        format!("M{:x},1:07", BASE),
        format!("Z0,{:x},4", CODE + 8),
        "vCont;s:1".into(),
        "vCont;r1,2:1".into(),
        "s0".into(),
        "vCont;s".into(),
        "vCont;c".into(),
        "vCont;s:1;c".into(),
    ];
    let mut failures = 0;
    for fails_after in 0.. {
        let mut rig = toy(&[NOP, NOP, NOP, SPIN]);
        rig.machine().until_failure = Some(fails_after);
        for packet in &packets {
            let replies = rig.send(packet);
            assert!(rig.running.is_none(), "{packet}");
            // One reply, whatever is printed before it.
            let told = replies
                .iter()
                .filter(|reply| !reply.starts_with('O') || *reply == "OK");
            assert_eq!(told.count(), 1, "{packet}: {replies:?}");
            failures += replies.iter().filter(|reply| *reply == "E05").count();
        }
        let done = rig.machine().until_failure.is_some();
        rig.machine().until_failure = None;
        assert_eq!(rig.ask("p0").len(), 6);
        assert_eq!(rig.ask("D"), "OK");
        assert_eq!(rig.releases, 1);
        let memory = rig.machine().ram();
        assert!(!memory.windows(4).any(|bytes| bytes == BREAK));
        if done {
            break;
        }
    }
    assert!(failures >= 5, "{failures}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_set_a_stopped_toy_is_whole(
        operations in proptest::collection::vec((any::<bool>(), 0u64..3, 0u64..40, 0u64..40), 0..40),
    ) {
        let mut rig = toy(&[SPIN]);
        let before = rig.machine().ram();
        for (insert, kind, at, length) in operations {
            let operation = if insert { 'Z' } else { 'z' };
            rig.ask(format!("{operation}{kind},{:x},{length:x}", CODE + at));
            rig.send("vCont;c");
            // What is in memory is what is said to be there, and nothing overlaps.
            let mut expected = before;
            for at in &rig.last_plan().armed.software {
                let at = usize::try_from(at.0).unwrap();
                prop_assert_eq!(&expected[at..at + 4], &before[at..at + 4]);
                expected[at..at + 4].copy_from_slice(&BREAK);
            }
            // The guest stops at once if it begins on a breakpoint.
            if rig.running.is_some() {
                prop_assert_eq!(rig.machine().ram(), expected);
            }
            rig.bytes(b"\x03");
            prop_assert_eq!(rig.machine().ram(), before);
        }
    }
}
