//! The registers of the first vCPU at a kernel's first instruction, as data.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::BootData;

/// How the kernel starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, flat segments, no paging: PVH and multiboot.
    Protected {
        /// The first instruction.
        rip: u32,
        /// EAX at the start.
        eax: u32,
        /// EBX at the start: the address of the protocol's information.
        ebx: u32,
    },
    /// As [`Entry::Protected`]: 32-bit Linux.
    Linux32 {
        /// The first instruction.
        rip: u32,
        /// The address of the zero page.
        esi: u32,
    },
    /// 64-bit mode with the first 4 GiB identity-mapped: Linux.
    Long {
        /// The first instruction.
        rip: u64,
        /// The address of the zero page.
        rsi: u64,
    },
}

/// RFLAGS at the start: only bit 1, which is always set (SDM 1 3.4.3). IF is clear, as every
/// protocol requires.
const RFLAGS: u64 = 1 << 1;

/// CR0 (SDM 3A 2.5).
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// CR4: physical-address extension, which long mode needs.
const CR4_PAE: u64 = 1 << 5;
/// IA32_EFER: long mode enabled, and active (SDM 3A 2.2.1).
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// The selectors that Linux's entries require: `__BOOT_CS` and `__BOOT_DS`. PVH and
/// multiboot require no particular numbers.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Segment types (SDM 3A 3.4.5.1 and 3.5): execute/read accessed; read/write accessed; busy TSS,
/// which is the 32-bit one in protected mode and the 64-bit one in long mode.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_BUSY_TSS: u8 = 0xb;

/// The first GDT entries: null, unused, code, data and the two halves of a task-state segment.
pub(super) const GDT_ENTRIES: usize = 6;

impl Entry {
    /// The general registers.
    #[must_use]
    pub fn regs(self) -> kvm_regs {
        match self {
            Self::Protected { rip, eax, ebx } => kvm_regs {
                rip: u64::from(rip),
                rax: u64::from(eax),
                rbx: u64::from(ebx),
                rflags: RFLAGS,
                ..Default::default()
            },
            // "Other registers (EBP, EDI, EBX) must be 0" (boot.rst, "32-bit Boot Protocol").
            Self::Linux32 { rip, esi } => kvm_regs {
                rip: u64::from(rip),
                rsi: u64::from(esi),
                rflags: RFLAGS,
                ..Default::default()
            },
            Self::Long { rip, rsi } => kvm_regs {
                rip,
                rsi,
                rflags: RFLAGS,
                ..Default::default()
            },
        }
    }

    /// The special registers, with the tables in the boot data. The rest, such as the APIC base, stays as at reset.
    #[must_use]
    pub fn sregs(self, boot_data: BootData, reset: kvm_sregs) -> kvm_sregs {
        let code = self.code_segment();
        let data = data_segment();
        let mut sregs = kvm_sregs {
            cs: code,
            ds: data,
            es: data,
            ss: data,
            fs: data,
            gs: data,
            tr: task_segment(),
            gdt: kvm_dtable {
                base: boot_data.gdt().0,
                limit: GDT_LIMIT,
                padding: [0; 3],
            },
            // No IDT: an exception before the kernel has set up its own is a triple fault.
            idt: kvm_dtable::default(),
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            ..reset
        };
        if let Self::Long { .. } = self {
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = boot_data.page_tables().0;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        sregs
    }

    /// The GDT that matches the segments.
    #[must_use]
    pub fn gdt(self) -> [u64; GDT_ENTRIES] {
        [
            0,
            0,
            descriptor(&self.code_segment()),
            descriptor(&data_segment()),
            descriptor(&task_segment()),
            0,
        ]
    }

    fn code_segment(self) -> kvm_segment {
        let long = matches!(self, Self::Long { .. });
        kvm_segment {
            selector: CODE_SELECTOR,
            type_: TYPE_CODE,
            // CS.L = 1 needs CS.D = 0 (SDM 3A 3.4.5).
            l: u8::from(long),
            db: u8::from(!long),
            ..flat()
        }
    }
}

/// Six entries of eight bytes.
const GDT_LIMIT: u16 = 6 * 8 - 1;

/// All of 4 GiB, present, ring 0.
fn flat() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment {
        selector: DATA_SELECTOR,
        type_: TYPE_DATA,
        db: 1,
        ..flat()
    }
}

/// VM entry needs a busy TSS in TR (SDM 3C 27.3.1.2); PVH gives it the limit 0x67.
fn task_segment() -> kvm_segment {
    kvm_segment {
        selector: TASK_SELECTOR,
        type_: TYPE_BUSY_TSS,
        limit: 0x67,
        present: 1,
        ..Default::default()
    }
}

/// The GDT entry for a segment (SDM 3A 3.4.5, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    // With G = 1 the limit counts pages.
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    (limit & 0xffff)
        | ((segment.base & 0x00ff_ffff) << 16)
        | u64::from(segment.type_) << 40
        | u64::from(segment.s) << 44
        | u64::from(segment.dpl) << 45
        | u64::from(segment.present) << 47
        | ((limit >> 16) & 0xf) << 48
        | u64::from(segment.avl) << 52
        | u64::from(segment.l) << 53
        | u64::from(segment.db) << 54
        | u64::from(segment.g) << 55
        | ((segment.base >> 24) & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryLayout;

    const PVH: Entry = Entry::Protected {
        rip: 0x10_0020,
        eax: 0x1111,
        ebx: 0x6000,
    };
    const LINUX32: Entry = Entry::Linux32 {
        rip: 0x10_0000,
        esi: 0x7000,
    };

    /// In its usual place, 0x5000.
    fn boot_data() -> BootData {
        BootData::place(MemoryLayout::new(4 << 20).unwrap(), &[]).unwrap()
    }

    const LINUX: Entry = Entry::Long {
        rip: 0x100_0200,
        rsi: 0x7000,
    };

    #[test]
    fn the_gdt_has_the_well_known_flat_descriptors() {
        assert_eq!(PVH.gdt()[2], 0x00cf_9b00_0000_ffff);
        assert_eq!(PVH.gdt()[3], 0x00cf_9300_0000_ffff);
        assert_eq!(LINUX.gdt()[2], 0x00af_9b00_0000_ffff);
        assert_eq!(LINUX.gdt()[4], 0x0000_8b00_0000_0067);
    }

    #[test]
    fn protected_mode_has_neither_paging_nor_long_mode() {
        let reset = kvm_sregs {
            apic_base: 0xfee0_0900,
            cr3: 0x1234,
            ..Default::default()
        };
        let sregs = PVH.sregs(boot_data(), reset);
        assert_eq!(sregs, LINUX32.sregs(boot_data(), reset));
        assert_eq!(sregs.cr0, 0x11);
        assert_eq!((sregs.cr3, sregs.cr4, sregs.efer), (0, 0, 0));
        assert_eq!((sregs.cs.db, sregs.cs.l), (1, 0));
        assert_eq!(sregs.apic_base, 0xfee0_0900, "kept from reset");
        let regs = PVH.regs();
        assert_eq!(
            (regs.rip, regs.rax, regs.rbx, regs.rflags),
            (0x10_0020, 0x1111, 0x6000, 2)
        );
    }

    #[test]
    fn linux_starts_in_64_bit_mode_with_its_boot_selectors() {
        let sregs = LINUX.sregs(boot_data(), kvm_sregs::default());
        assert_eq!(sregs.cr0, 0x8000_0011);
        assert_eq!(sregs.cr4, 0x20);
        assert_eq!(sregs.efer, 0x500);
        assert_eq!(sregs.cr3, 0x9000);
        assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18));
        assert_eq!((sregs.cs.db, sregs.cs.l), (0, 1));
        assert_eq!(LINUX.regs().rsi, 0x7000);
    }

    #[test]
    fn linux_at_its_32_bit_entry_gets_the_zero_page_and_zeroes() {
        let regs = LINUX32.regs();
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x10_0000, 0x7000, 2));
        assert_eq!((regs.rbp, regs.rdi, regs.rbx), (0, 0, 0));
        assert_eq!(LINUX32.gdt(), PVH.gdt());
    }
}
