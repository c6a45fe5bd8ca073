//! Where things are in the guest's physical address space.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x0` | `0x5000` | left to the guest: real-mode vectors, BIOS data area |
//! | `0x5000` | `0x3_0000` | boot data: GDT, boot parameters, memory map, page tables, command line |
//! | `0x9_fc00` | `0xa_0000` | reserved: extended BIOS data area |
//! | `0xa_0000` | `0xe_0000` | no memory: the legacy hole |
//! | `0xe_0000` | `0x10_0000` | reserved: ACPI tables, Intel MP table |
//! | `0x10_0000` | 3 GiB at most | memory: kernel, initrd |
//! | 3 GiB | 4 GiB | no memory: IOAPIC, local APICs, KVM's own pages; with `--testdev` a page of firmware at its end |
//! | 4 GiB | … | the rest of the memory |

use vm_memory::GuestAddress;

/// The GDT that the 64-bit Linux entry expects.
pub const GDT: GuestAddress = GuestAddress(0x5000);
/// `hvm_start_info`, or the multiboot information.
pub const START_INFO: GuestAddress = GuestAddress(0x6000);
/// Linux's `boot_params`, the "zero page".
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The memory map that PVH and multiboot point to.
pub const MEMORY_MAP: GuestAddress = GuestAddress(0x8000);
/// The module list that PVH and multiboot point to.
pub const MODULES: GuestAddress = GuestAddress(0x8800);
/// Short strings that multiboot points to.
pub const STRINGS: GuestAddress = GuestAddress(0x8900);
/// Room for each of the two strings at [`STRINGS`], with their terminating zero.
pub const STRING_ROOM: u64 = 0x380;
/// PML4, PDPT and four page directories: 4 GiB, identity-mapped with 2 MiB pages.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Room for the command line, with its terminating zero.
pub const CMDLINE_ROOM: u64 = 0x1_0000;

/// First byte of the boot data, which the VMM writes below 1 MiB for the kernel.
pub const BOOT_DATA_START: u64 = 0x5000;
/// One past its last byte.
pub const BOOT_DATA_END: u64 = 0x3_0000;

/// The extended BIOS data area, up to [`LEGACY_HOLE_START`]. Memory for the guest to use ends here.
pub const EBDA: GuestAddress = GuestAddress(0x9_fc00);
/// Where the legacy hole begins.
pub const LEGACY_HOLE_START: u64 = 0xa_0000;
/// Where the ACPI tables begin: in the area that kernels scan for the RSDP (ACPI 6.5, 5.2.5.1), on a
/// 16-byte boundary.
pub const RSDP: GuestAddress = GuestAddress(0xe_0000);
/// One past the last byte that ACPI tables may have.
pub const ACPI_END: u64 = 0xf_e000;
/// The MP configuration table.
pub const MP_TABLE: GuestAddress = GuestAddress(ACPI_END);
/// The MP floating pointer: in the BIOS's area from 0xf0000 on, where kernels scan for it too (MP
/// spec 1.4, section 4).
pub const MP_POINTER: GuestAddress = GuestAddress(0xf_fef0);
/// The firmware, up to [`HIGH_MEMORY_START`]: its last 16 bytes are the reset vector.
pub const FIRMWARE: GuestAddress = GuestAddress(0xf_ff00);
/// Where memory goes on above the legacy hole.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Where the hole below 4 GiB starts.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// Where memory goes on above it.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;
/// The page in which processors start after INIT (SDM 3A 9.1.4), up to [`MMIO_HOLE_END`]. Read-only.
pub const FIRMWARE_PAGE: GuestAddress = GuestAddress(0xffff_f000);
/// The firmware in it.
pub const HIGH_FIRMWARE: GuestAddress = GuestAddress(0xffff_ff00);

/// IOAPIC registers (82093AA 3.1).
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers at reset (SDM 3A 11.4.1).
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that KVM needs on old Intel processors: an identity page table for real mode.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on old Intel processors: a task-state segment.
pub const KVM_TSS: usize = 0xfffb_d000;
