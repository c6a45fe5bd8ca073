//! Where things are in the guest's physical address space.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x0` | `0x5000` | left to the guest: real-mode vectors, BIOS data area |
//! | `0x5000` | `0x3_0000` | [boot data](crate::boot::BootData), if the kernel is not linked there |
//! | `0x9_fc00` | `0xa_0000` | reserved: extended BIOS data area |
//! | `0xa_0000` | `0xe_0000` | no memory: the legacy hole |
//! | `0xe_0000` | `0x10_0000` | reserved: ACPI tables, Intel MP table |
//! | `0x10_0000` | 3 GiB at most | memory: kernel, initrd |
//! | 3 GiB | 4 GiB | no memory: IOAPIC, local APICs, KVM's own pages; with `--testdev` a page of firmware at its end |
//! | 4 GiB | … | the rest of the memory |

use vm_memory::GuestAddress;

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
