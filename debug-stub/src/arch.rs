//! The architecture seam: everything that differs between CPUs, behind one trait.
//!
//! A session, its breakpoint table, its register cache and its memory code are written against
//! [`Arch`] and name no CPU. [`X86_64`](crate::x86_64::X86_64) is the implementation that exists.
//! To add an architecture, implement this trait in a module of its own and name it in
//! [`Host::Arch`](crate::Host::Arch); nothing above this module changes.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::ops::{BitOr, Sub};

use vcpu_caps::{HwBreakpoint, HwBreakpointKind};

use crate::address::{GuestPhysAddr, GuestVirtAddr};
use crate::host::GuestMemory;

/// A CPU architecture, as a debugger sees it.
///
/// The type is a name and has no values: every method is an associated function.
///
/// # Register groups
/// Hypervisors read and write registers in groups. A session asks the host for the groups that it
/// needs and no more, and remembers which ones it has.
pub trait Arch: fmt::Debug + Send + 'static {
    /// All registers of a vCPU, as plain data.
    type Registers: Clone + fmt::Debug + Default + Send;

    /// A set of register groups. The default is the empty set, `|` is the union, and `-` the
    /// difference.
    type Groups: Copy
        + Send
        + fmt::Debug
        + Default
        + PartialEq
        + BitOr<Output = Self::Groups>
        + Sub<Output = Self::Groups>;

    /// A target description: which registers a client can name, their numbers and sizes. A CPU with one mode has
    /// one. A greater one shows all that a smaller one does.
    type View: Copy + fmt::Debug + Ord + Send;

    /// One register that the client can name, in a view.
    type RegisterId: Copy + fmt::Debug + Send;

    /// Why a register cannot have a value. The text is shown to the client.
    type WriteError: std::error::Error;

    /// What translates addresses: a copy of the registers that decide it.
    type AddressSpace: fmt::Debug + Send;

    /// All groups.
    const ALL_GROUPS: Self::Groups;
    /// The groups that a stop needs: [`expedited`](Self::expedited), [`pc`](Self::pc),
    /// [`code_address`](Self::code_address), [`set_pc`](Self::set_pc), [`mode`](Self::mode) and
    /// [`is_whole`](Self::is_whole).
    const STOP_GROUPS: Self::Groups;
    /// The groups that [`address_space`](Self::address_space) needs.
    const SPACE_GROUPS: Self::Groups;
    /// The groups that [`view`](Self::view) needs.
    const VIEW_GROUPS: Self::Groups;
    /// The groups that [`set_pc`](Self::set_pc) changes.
    const PC_GROUPS: Self::Groups;

    /// Length of the registers in a `g` packet, in bytes before hexadecimal: that of the longest view.
    const REGISTER_BYTES: usize;

    /// The view with all registers.
    const WIDEST_VIEW: Self::View;

    /// `true` if numbers in memory and in packets have their most significant byte first.
    const IS_BIG_ENDIAN: bool = false;

    /// The breakpoint instruction, as it is in memory. At least one byte.
    const BREAKPOINT: &'static [u8];
    /// The debug slots of a vCPU.
    const SLOTS: DebugSlots;
    /// Steppers of this architecture carry out [`Armed::compared`](crate::Armed::compared).
    const COMPARES: bool = false;
    /// Steppers of this architecture look after [`Armed::awaited`](crate::Armed::awaited), and after breakpoint
    /// instructions that the guest overwrites.
    const AWAITS: bool = false;
    /// What to call debug slots in messages, in the plural: "debug registers".
    const SLOTS_NAME: &'static str;

    /// Returns the view for the mode that a vCPU is in, or the `named` one, with the registers that the vCPU has.
    /// [`VIEW_GROUPS`](Self::VIEW_GROUPS) are filled. The default is the widest.
    fn view(registers: &Self::Registers, named: Option<Self::View>) -> Self::View {
        let _ = registers;
        named.unwrap_or(Self::WIDEST_VIEW)
    }

    /// Returns the client's name of a view's architecture.
    fn view_name(view: Self::View) -> &'static str;

    /// Returns LLVM's target triple for a view, as LLDB asks for. The default is none.
    fn triple(view: Self::View) -> Option<&'static str> {
        let _ = view;
        None
    }

    /// Returns the view with this name, if there is one.
    fn view_named(name: &str) -> Option<Self::View>;

    /// Returns `false` if a view has too few bits for the registers of the mode that a vCPU is in. The default is
    /// `true`.
    fn is_whole(view: Self::View, registers: &Self::Registers) -> bool {
        let _ = (view, registers);
        true
    }

    /// Returns the name of the mode that a vCPU is in.
    fn mode(registers: &Self::Registers) -> &'static str;

    /// Returns the register with the client's number, if there is one.
    fn register(view: Self::View, number: usize) -> Option<Self::RegisterId>;

    /// Returns the registers of the `g` packet in its order. A client asks for others one by one.
    fn registers(view: Self::View) -> impl Iterator<Item = Self::RegisterId>;

    /// Returns the size of a register, in bytes.
    fn size(register: Self::RegisterId) -> usize;

    /// Returns the client's number of a register.
    fn number(register: Self::RegisterId) -> usize;

    /// Returns the group that holds a register. It must be filled before a read, and written back
    /// after a write.
    fn groups(register: Self::RegisterId) -> Self::Groups;

    /// Returns the groups that must be filled before a write: the register's own, and those that
    /// decide whether a value is legal.
    fn groups_for_write(register: Self::RegisterId) -> Self::Groups;

    /// Returns the groups in which two register files differ.
    fn changed_groups(before: &Self::Registers, after: &Self::Registers) -> Self::Groups;

    /// Returns the registers that a stop reply carries, so a client need not ask for them.
    fn expedited(view: Self::View) -> impl Iterator<Item = Self::RegisterId>;

    /// Appends the value of a register to `value`, in the byte order of the packets. Returns `false`, and appends
    /// nothing, if the view has too few bits for it.
    fn read_register(
        register: Self::RegisterId,
        from: &Self::Registers,
        value: &mut Vec<u8>,
    ) -> bool;

    /// Sets a register. All or nothing: after an error `registers` is unchanged.
    ///
    /// # Errors
    /// If the length or the value is wrong.
    fn write_register(
        register: Self::RegisterId,
        registers: &mut Self::Registers,
        memory: &impl GuestMemory,
        value: &[u8],
    ) -> Result<(), Self::WriteError>;

    /// Sets all registers from the data of a `G` packet. All or nothing: after an error
    /// `registers` is unchanged.
    ///
    /// # Errors
    /// If the length or a value is wrong.
    fn write_all(
        view: Self::View,
        registers: &mut Self::Registers,
        memory: &impl GuestMemory,
        data: &[u8],
    ) -> Result<(), Self::WriteError>;

    /// Returns the address of the next instruction: what breakpoints and step ranges are compared
    /// with. It may differ from the program counter that the client sees.
    fn pc(registers: &Self::Registers) -> GuestVirtAddr;

    /// Returns the program counter as the client sees it, as an address: where the client looks for a
    /// breakpoint of its own when the vCPU has stopped.
    fn client_pc(registers: &Self::Registers) -> u64;

    /// Returns the address that [`pc`](Self::pc) has when the client's program counter is
    /// `address`.
    fn code_address(registers: &Self::Registers, address: u64) -> u64;

    /// Sets the program counter that the client sees. All or nothing.
    ///
    /// # Errors
    /// If no instruction can be there.
    fn set_pc(
        registers: &mut Self::Registers,
        memory: &impl GuestMemory,
        address: u64,
    ) -> Result<(), Self::WriteError>;

    /// Splits a watched range into what single slots can watch. The pieces cover the range
    /// exactly or more than it. A caller takes as many as there are slots and no more: the range
    /// may be of any length.
    fn watch(
        address: u64,
        length: u64,
        kind: HwBreakpointKind,
    ) -> impl Iterator<Item = HwBreakpoint>;

    /// Returns the address space that the registers select.
    fn address_space(registers: &Self::Registers) -> Self::AddressSpace;

    /// Translates an address without side effects: no access bit is set and no fault is taken.
    /// Returns `None` where nothing is mapped.
    fn translate(
        space: &Self::AddressSpace,
        memory: &impl GuestMemory,
        address: GuestVirtAddr,
    ) -> Option<Mapped>;

    /// Writes all registers as text, for people and for scripts. The default writes nothing.
    ///
    /// # Errors
    /// If `out` takes no more.
    fn write_registers_text(registers: &Self::Registers, out: &mut dyn Write) -> fmt::Result {
        let _ = (registers, out);
        Ok(())
    }

    /// Writes what is mapped as text, a line for each range of addresses with equal rights. It has to end
    /// for any tables. The default writes nothing.
    ///
    /// # Errors
    /// If `out` takes no more.
    fn write_mappings(
        space: &Self::AddressSpace,
        memory: &impl GuestMemory,
        out: &mut dyn Write,
    ) -> fmt::Result {
        let _ = (space, memory, out);
        Ok(())
    }

    /// Writes where an address is, in the form of QEMU's `gva2gpa`: a line `gpa: 0x1000`, or `Unmapped` and why. The
    /// default does not say why.
    ///
    /// # Errors
    /// If `out` takes no more.
    fn write_translation(
        space: &Self::AddressSpace,
        memory: &impl GuestMemory,
        address: GuestVirtAddr,
        out: &mut dyn Write,
    ) -> fmt::Result {
        match Self::translate(space, memory, address) {
            Some(mapped) => writeln!(out, "gpa: {}", mapped.gpa),
            None => writeln!(out, "Unmapped"),
        }
    }

    /// Writes each step of the translation of an address, and its result. The default writes the result.
    ///
    /// # Errors
    /// If `out` takes no more.
    fn write_walk(
        space: &Self::AddressSpace,
        memory: &impl GuestMemory,
        address: GuestVirtAddr,
        out: &mut dyn Write,
    ) -> fmt::Result {
        Self::write_translation(space, memory, address, out)
    }

    /// Returns the region of equal rights around an address, mapped or not. The work is bounded for any tables; a
    /// region may be a part of one. The default is `None`: not provided.
    fn region(
        space: &Self::AddressSpace,
        memory: &impl GuestMemory,
        address: GuestVirtAddr,
    ) -> Option<Region> {
        let _ = (space, memory, address);
        None
    }

    /// Looks for an operating system's kernel that was loaded at a random address, and writes where it is and how
    /// the client gets its symbols there. The work is bounded for any memory. The default knows no kernel.
    ///
    /// # Errors
    /// If `out` takes no more.
    fn write_kernel(
        space: &Self::AddressSpace,
        memory: &impl GuestMemory,
        out: &mut dyn Write,
    ) -> fmt::Result {
        let _ = (space, memory);
        writeln!(out, "no kernel is known on this architecture")
    }

    /// The `monitor` command that shows debug slots: `dr`.
    const SLOTS_COMMAND: &'static str;

    /// The `monitor` command for registers of the system that are not among [`Registers`](Self::Registers), which is
    /// what one of them is called: `msr`.
    const SYSTEM_REGISTER: &'static str;

    /// Writes the guest's own debug slots as text, a line for each register. The default writes nothing.
    ///
    /// # Errors
    /// If `out` takes no more.
    fn write_slots_text(registers: &Self::Registers, out: &mut dyn Write) -> fmt::Result {
        let _ = (registers, out);
        Ok(())
    }

    /// Returns the names and numbers of system registers. Others are known by their number only. The default has
    /// none.
    fn system_registers() -> impl Iterator<Item = (&'static str, u32)> {
        std::iter::empty()
    }

    /// Returns the number of a system register with this name. The default has none.
    fn system_register(name: &str) -> Option<u32> {
        let _ = name;
        None
    }

    /// Checks a value for a system register, as far as the architecture knows better than the hypervisor.
    /// [`STOP_GROUPS`](Self::STOP_GROUPS) of `registers` are filled. The default takes all.
    ///
    /// # Errors
    /// Why it is refused.
    fn check_system_register(
        number: u32,
        value: u64,
        registers: &Self::Registers,
    ) -> Result<(), &'static str> {
        let _ = (number, value, registers);
        Ok(())
    }

    /// Returns an annex of a view's target description ("Target Description Format"); the client asks
    /// for `target.xml` first.
    fn target_description(view: Self::View, annex: &[u8]) -> Option<Cow<'static, str>>;
}

/// Where an address is in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The guest-physical address.
    pub gpa: GuestPhysAddr,
    /// Bytes from the address to the end of its page: at least 1. They follow each other in both
    /// address spaces.
    pub length: u64,
}

/// Addresses with equal rights, that of their pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The last address: a region may end where the address space does.
    pub last: u64,
    /// What the guest's page tables permit, or `None` if they map nothing here.
    pub rights: Option<RegionRights>,
}

/// The rights of a region that is mapped. It can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRights {
    /// It can be written.
    pub writable: bool,
    /// Its code can be executed.
    pub executable: bool,
}

/// The debug slots of a vCPU: comparators for code and data addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugSlots {
    /// Each slot takes a breakpoint or a watchpoint.
    Shared(usize),
    /// Breakpoints and watchpoints have slots of their own.
    Separate {
        /// For breakpoints.
        execute: usize,
        /// For watchpoints.
        watch: usize,
    },
}

impl DebugSlots {
    /// Returns the number of slots that can hold such a breakpoint.
    #[must_use]
    pub const fn count(self, kind: HwBreakpointKind) -> usize {
        match (self, kind) {
            (Self::Shared(count), _) => count,
            (Self::Separate { execute, .. }, HwBreakpointKind::Execute) => execute,
            (
                Self::Separate { watch, .. },
                HwBreakpointKind::Write | HwBreakpointKind::ReadWrite,
            ) => watch,
        }
    }

    /// Returns `true` if breakpoints of the two kinds compete for the same slots.
    #[must_use]
    pub fn competes(self, one: HwBreakpointKind, other: HwBreakpointKind) -> bool {
        let executes = |kind| kind == HwBreakpointKind::Execute;
        matches!(self, Self::Shared(_)) || executes(one) == executes(other)
    }
}
