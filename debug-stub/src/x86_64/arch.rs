//! x86-64 behind the architecture seam.

use std::borrow::Cow;
use std::fmt::{self, Write};

use vcpu_caps::{HwBreakpoint, HwBreakpointKind};

use super::paging::{region, translate, write_regions, write_translation, write_walk};
use super::text::{write_debug_registers, write_registers};
use super::{
    Mode, RegisterFile, RegisterGroups, RegisterId, SpecialRegisters, StateComponents, View,
    WriteError, linux, msr, target_xml, write_all,
};
use crate::address::GuestVirtAddr;
use crate::arch::{Arch, DebugSlots, Mapped, Region};
use crate::host::GuestMemory;

/// The x86-64 architecture, in each of its modes.
///
/// There is one register file, of 64-bit registers. A [`View`] is what a client sees of it.
#[derive(Debug)]
pub enum X86_64 {}

impl Arch for X86_64 {
    type Registers = RegisterFile;
    type Groups = RegisterGroups;
    type View = View;
    type RegisterId = RegisterId;
    type WriteError = WriteError;
    type AddressSpace = SpecialRegisters;

    const ALL_GROUPS: RegisterGroups = RegisterGroups::all();
    const STOP_GROUPS: RegisterGroups = RegisterGroups::EXPEDITED;
    const SPACE_GROUPS: RegisterGroups = RegisterGroups::SPECIAL;
    const VIEW_GROUPS: RegisterGroups = RegisterGroups::EXPEDITED.union(RegisterGroups::FPU);
    const PC_GROUPS: RegisterGroups = RegisterGroups::CORE;
    const COMPARES: bool = true;
    const AWAITS: bool = true;

    const REGISTER_BYTES: usize = View::LONGEST;
    const WIDEST_VIEW: View = View::X86_64.with(StateComponents::all());

    /// INT3 (SDM 2A).
    const BREAKPOINT: &'static [u8] = &[0xcc];
    /// DR0 to DR3 (SDM 3B 19.2).
    const SLOTS: DebugSlots = DebugSlots::Shared(4);
    const SLOTS_NAME: &'static str = "debug registers";

    fn view(registers: &RegisterFile, named: Option<View>) -> View {
        named
            .unwrap_or_else(|| Mode::of(registers).view())
            .with(registers.fpu.components())
    }

    fn view_name(view: View) -> &'static str {
        view.name()
    }

    fn triple(view: View) -> Option<&'static str> {
        Some(view.triple())
    }

    fn view_named(name: &str) -> Option<View> {
        View::from_name(name)
    }

    fn is_whole(view: View, registers: &RegisterFile) -> bool {
        view.is_wide() || !Mode::of(registers).is_64_bit()
    }

    fn mode(registers: &RegisterFile) -> &'static str {
        Mode::of(registers).name()
    }

    fn register(view: View, number: usize) -> Option<RegisterId> {
        view.register(number)
    }

    fn registers(view: View) -> impl Iterator<Item = RegisterId> {
        view.registers_in_g()
    }

    fn size(register: RegisterId) -> usize {
        register.size_bytes()
    }

    fn number(register: RegisterId) -> usize {
        register.number()
    }

    fn groups(register: RegisterId) -> RegisterGroups {
        register.groups()
    }

    fn groups_for_write(register: RegisterId) -> RegisterGroups {
        register.groups_for_write()
    }

    fn changed_groups(before: &RegisterFile, after: &RegisterFile) -> RegisterGroups {
        // A register file that gains a part does not compile here until its group is compared.
        let RegisterFile {
            core,
            special,
            fpu,
            kernel_gs_base,
            debug,
        } = before;
        let mut changed = RegisterGroups::empty();
        changed.set(RegisterGroups::CORE, *core != after.core);
        changed.set(RegisterGroups::SPECIAL, *special != after.special);
        changed.set(RegisterGroups::FPU, *fpu != after.fpu);
        changed.set(
            RegisterGroups::MSRS,
            *kernel_gs_base != after.kernel_gs_base,
        );
        changed.set(RegisterGroups::DEBUG, *debug != after.debug);
        changed
    }

    fn expedited(view: View) -> impl Iterator<Item = RegisterId> {
        view.expedited()
    }

    fn read_register(register: RegisterId, from: &RegisterFile, value: &mut Vec<u8>) -> bool {
        let mut bytes = [0; RegisterId::LONGEST];
        let Some(length) = register.read(from, &mut bytes) else {
            return false;
        };
        value.extend_from_slice(bytes.get(..length).unwrap_or_default());
        true
    }

    fn write_register(
        register: RegisterId,
        registers: &mut RegisterFile,
        memory: &impl GuestMemory,
        value: &[u8],
    ) -> Result<(), WriteError> {
        register.write(registers, memory, value)
    }

    fn write_all(
        view: View,
        registers: &mut RegisterFile,
        memory: &impl GuestMemory,
        data: &[u8],
    ) -> Result<(), WriteError> {
        write_all(view, registers, memory, data)
    }

    fn pc(registers: &RegisterFile) -> GuestVirtAddr {
        GuestVirtAddr(registers.linear_pc())
    }

    /// The client counts in linear addresses, as breakpoints do.
    fn client_pc(registers: &RegisterFile) -> u64 {
        registers.linear_pc()
    }

    fn code_address(_: &RegisterFile, address: u64) -> u64 {
        address
    }

    fn set_pc(
        registers: &mut RegisterFile,
        memory: &impl GuestMemory,
        address: u64,
    ) -> Result<(), WriteError> {
        View::X86_64.program_counter().map_or(Ok(()), |rip| {
            rip.write(registers, memory, &address.to_le_bytes())
        })
    }

    /// Aligned runs of 1, 2, 4 or 8 bytes (SDM 3B 19.2.5), the largest first where the alignment
    /// allows.
    fn watch(
        address: u64,
        length: u64,
        kind: HwBreakpointKind,
    ) -> impl Iterator<Item = HwBreakpoint> {
        let mut at = address;
        let mut left = length;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let run = [8u64, 4, 2]
                .into_iter()
                .find(|run| *run <= left && at.is_multiple_of(*run))
                .unwrap_or(1);
            let piece = HwBreakpoint::watch(at, run, kind);
            left -= run;
            at = at.wrapping_add(run);
            Some(piece)
        })
    }

    fn address_space(registers: &RegisterFile) -> SpecialRegisters {
        registers.special
    }

    fn translate(
        space: &SpecialRegisters,
        memory: &impl GuestMemory,
        address: GuestVirtAddr,
    ) -> Option<Mapped> {
        let found = translate(space, memory, address).ok()?;
        Some(Mapped {
            gpa: found.gpa,
            length: found.bytes_to_page_end(),
        })
    }

    const SLOTS_COMMAND: &'static str = "dr";
    const SYSTEM_REGISTER: &'static str = "msr";

    fn write_slots_text(registers: &RegisterFile, out: &mut dyn Write) -> fmt::Result {
        write_debug_registers(&registers.debug, out)
    }

    fn system_registers() -> impl Iterator<Item = (&'static str, u32)> {
        msr::all()
    }

    fn system_register(name: &str) -> Option<u32> {
        msr::number(name)
    }

    fn check_system_register(
        number: u32,
        value: u64,
        registers: &RegisterFile,
    ) -> Result<(), &'static str> {
        msr::check(number, value, registers)
    }

    fn write_registers_text(registers: &RegisterFile, out: &mut dyn Write) -> fmt::Result {
        write_registers(registers, out)
    }

    fn write_mappings(
        space: &SpecialRegisters,
        memory: &impl GuestMemory,
        out: &mut dyn Write,
    ) -> fmt::Result {
        write_regions(space, memory, out)
    }

    fn write_translation(
        space: &SpecialRegisters,
        memory: &impl GuestMemory,
        address: GuestVirtAddr,
        out: &mut dyn Write,
    ) -> fmt::Result {
        write_translation(space, memory, address, out)
    }

    fn write_walk(
        space: &SpecialRegisters,
        memory: &impl GuestMemory,
        address: GuestVirtAddr,
        out: &mut dyn Write,
    ) -> fmt::Result {
        write_walk(space, memory, address, out)
    }

    fn region(
        space: &SpecialRegisters,
        memory: &impl GuestMemory,
        address: GuestVirtAddr,
    ) -> Option<Region> {
        Some(region(space, memory, address))
    }

    fn write_kernel(
        space: &SpecialRegisters,
        memory: &impl GuestMemory,
        out: &mut dyn Write,
    ) -> fmt::Result {
        linux::write_kernel(space, memory, out)
    }

    fn target_description(view: View, annex: &[u8]) -> Option<Cow<'static, str>> {
        (annex == b"target.xml").then(|| target_xml(view).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_watched_range_is_covered_exactly_by_pieces_that_a_debug_register_holds(
            address in 0u64..64,
            length in 0u64..40,
        ) {
            let mut next = address;
            for piece in X86_64::watch(address, length, HwBreakpointKind::Write) {
                prop_assert!(piece.check_x86().is_ok());
                prop_assert_eq!(piece.address(), next);
                next += piece.length();
            }
            prop_assert_eq!(next, address + length);
        }
    }

    #[test]
    fn the_groups_that_differ_are_named() {
        let before = RegisterFile::default();
        let mut after = before.clone();
        assert_eq!(
            X86_64::changed_groups(&before, &after),
            RegisterGroups::empty()
        );
        after.core.rax = 1;
        after.kernel_gs_base = 1;
        assert_eq!(
            X86_64::changed_groups(&before, &after),
            RegisterGroups::CORE | RegisterGroups::MSRS
        );
        after.special.cr2 = 1;
        after.fpu.fcw = 1;
        after.debug.dr[3] = 1;
        assert_eq!(
            X86_64::changed_groups(&before, &after),
            RegisterGroups::all()
        );
    }
}
