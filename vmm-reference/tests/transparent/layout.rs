//! The guests' memory: descriptor tables, page tables, and the registers that each mode begins with.
//!
//! The other side of `guests/transparent/macros.inc`.

use debug_stub::x86_64::{Segment, SpecialRegisters};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::image::{Gate, Guest, Mode};

/// All of the guest's memory.
pub const MEMORY: u64 = 2 << 20;
/// Where the image is linked to.
///
/// The code is below 64 KiB, so real mode reaches it with CS 0. (QEMU's TCG does not recognise an execute
/// breakpoint where the base of CS is not 0, and the rig ends.)
pub const IMAGE: u64 = 0x8000;
const RESULTS: u64 = 0x3_0000;
/// From the results on: a guest's scratch memory.
pub const DATA: u64 = 0x3_2000;
/// The top of the stack that a guest begins with.
pub const STACK: u64 = 0x4_8000;
const STACKS: [u64; 3] = [0x4_6000, 0x4_4000, 0x4_2000];
const IST: [u64; 2] = [0x4_a000, 0x4_c000];
const GDT: u64 = 0x5_0000;
pub const IDT64: u64 = 0x5_1000;
const IDT32: u64 = 0x5_2000;
const TSS64: u64 = 0x5_3000;
const TSS32: u64 = 0x5_4000;
const TSS32_B: u64 = 0x5_5000;
pub const PML4: u64 = 0x6_0000;
const PDPT: u64 = 0x6_1000;
const DIRECTORY: u64 = 0x6_2000;
const PAGE_TABLES: u64 = 0x6_3000;
/// Page-directory pointers of PAE paging: no bits but P are allowed in them (SDM 3A table 4-8).
const PAE_POINTERS: u64 = 0x6_5000;
const PAGE: u64 = 0x1000;
const MISSING: u64 = 0x18_0000;
const READONLY: u64 = 0x18_2000;
const SUPERVISOR: u64 = 0x18_3000;

/// Page-table bits (SDM 3A 4.5). Accessed and dirty are for the processor to set.
const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;

const CODE64: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_CODE32: u16 = 0x1b;
const USER_DATA: u16 = 0x23;
const USER_CODE64: u16 = 0x2b;
const CODE32: u16 = 0x38;
const CALL_GATE32: usize = 0x78;
const CALL_GATE64: usize = 0x80;
const TASK: u16 = 0x90;
const TASK_B: u16 = 0x98;
const TASK64: u16 = 0xa0;
const GDT_ENTRIES: usize = 0x18;

/// Not a canonical address.
const NOT_CANONICAL: u64 = 1 << 47;
const NOT_PRESENT_SELECTOR: u64 = 0xb8;

/// PG, WP, NE, ET, PE.
const CR0: u64 = 0x8001_0031;
const CR0_PG: u64 = 1 << 31;
const CR0_REAL: u64 = 0x30;
/// PAE, OSFXSR and OSXMMEXCPT.
const CR4: u64 = 0x620;
/// LME, LMA and SCE.
const EFER_LONG: u64 = 0x501;

/// The guest's memory before its first instruction, but for the image.
pub fn tables(guest: &Guest, stray: u64) -> Vec<(u64, Vec<u8>)> {
    let mut gdt = descriptors();
    let mut idt64 = vec![0u64; 512];
    let mut idt32 = vec![0u64; 256];
    let mut ivt = Vec::new();
    for vector in 0..256u64 {
        let handler = stray + 5 * vector;
        let place = usize::try_from(vector).unwrap();
        idt32[place] = gate32(handler, CODE32, 0xe);
        idt64[2 * place] = gate64(handler, CODE64, 0xe, 0);
        ivt.extend(real_address(handler));
    }
    for gate in &guest.gates {
        let Gate {
            vector,
            ist,
            kind,
            handler,
            selector,
        } = *gate;
        let place = usize::from(vector);
        let or = |default| if selector == 0 { default } else { selector };
        idt32[place] = gate32(handler, or(CODE32), kind);
        idt64[2 * place] = gate64(handler, or(CODE64), kind, ist);
        if guest.mode == Mode::Real {
            ivt[4 * place..4 * place + 4].copy_from_slice(&real_address(handler));
        }
    }
    if let Some(call) = &guest.call {
        gdt[CALL_GATE32 / 8] =
            gate32(call.handler, call.selector, 0xc) | u64::from(call.parameters) << 32;
        gdt[CALL_GATE64 / 8] = gate64(call.handler, call.selector, 0xc, 0);
    }
    let mut memory = vec![
        (GDT, words(&gdt)),
        (IDT64, words(&idt64)),
        (IDT32, words(&idt32)),
        (TSS64, tss64()),
        (TSS32, tss32()),
        (TSS32_B, tss32()),
    ];
    if guest.mode == Mode::Real {
        memory.push((0, ivt));
    }
    memory.extend(page_tables());
    memory
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Offset and segment of an address in the image.
fn real_address(address: u64) -> [u8; 4] {
    let offset = u16::try_from(address).expect("the image's code is below 64 KiB");
    let [a, b] = offset.to_le_bytes();
    [a, b, 0, 0]
}

/// A present gate of DPL3 (SDM 3A 6.11, 5.8.3). A task gate (type 5) has no offset.
fn gate32(offset: u64, selector: u16, kind: u8) -> u64 {
    let offset = if kind == 5 { 0 } else { offset };
    (offset & 0xffff)
        | u64::from(selector) << 16
        | u64::from(kind | 0xe0) << 40
        | (offset >> 16 & 0xffff) << 48
}

/// The low half of a 64-bit gate (SDM 3A 6.14.1): the high half is 0, below 4 GiB.
fn gate64(offset: u64, selector: u16, kind: u8, ist: u8) -> u64 {
    gate32(offset, selector, kind) | u64::from(ist) << 32
}

/// A flat segment: the access byte, and the flags G, D/B and L.
fn flat(access: u64, flags: u64) -> u64 {
    0xffff | access << 40 | 0xf << 48 | flags << 52
}

/// A 16-bit segment of 64 KiB.
fn small(base: u64, access: u64) -> u64 {
    0xffff | (base & 0xff_ffff) << 16 | access << 40
}

fn system(base: u64, limit: u64, kind: u64) -> u64 {
    limit | (base & 0xff_ffff) << 16 | (0x80 | kind) << 40
}

fn descriptors() -> Vec<u64> {
    const LONG: u64 = 0xa;
    const WIDE: u64 = 0xc;
    let mut gdt = vec![
        0,
        flat(0x9b, LONG),
        flat(0x93, WIDE),
        flat(0xfb, WIDE),
        flat(0xf3, WIDE),
        flat(0xfb, LONG),
        flat(0xf3, WIDE),
        flat(0x9b, WIDE),
        small(0, 0x9b),
        small(STACK - 0x8000, 0x93),
        flat(0xbb, WIDE), // ring 1
        flat(0xb3, WIDE),
        flat(0xdb, WIDE), // ring 2
        flat(0xd3, WIDE),
        flat(0xbb, LONG), // ring 1, 64 bit
        0,                // call gates
        0,
        0,
        system(TSS32, 0xff, 0xb),
        system(TSS32_B, 0xff, 0x9),
        system(TSS64, 0xff, 0xb),
        0,
        u64::from(TASK_B) << 16 | 0xe5 << 40,
        flat(0x13, WIDE), // not present
    ];
    gdt.resize(GDT_ENTRIES, 0);
    gdt
}

/// SDM 3A figure 8-11. An I/O bitmap that opens all ports below 0x200 to user code.
fn tss64() -> Vec<u8> {
    let mut tss = vec![0; 0x100];
    for (place, top) in [(0x04, STACKS[0]), (0x0c, STACKS[1]), (0x14, STACKS[2])] {
        tss[place..place + 8].copy_from_slice(&top.to_le_bytes());
    }
    for (place, top) in [(0x24, IST[0]), (0x2c, IST[1])] {
        tss[place..place + 8].copy_from_slice(&top.to_le_bytes());
    }
    tss[0x66] = IO_BITMAP;
    tss[0xc0] = 0xff;
    tss
}

const IO_BITMAP: u8 = 0x80;

/// SDM 3A figure 8-2.
fn tss32() -> Vec<u8> {
    let mut tss = vec![0; 0x100];
    let segments = [KERNEL_DATA, 0x59, 0x6a];
    for (ring, (top, segment)) in STACKS.iter().zip(segments).enumerate() {
        let place = 4 + 8 * ring;
        let top = u32::try_from(*top).unwrap();
        tss[place..place + 4].copy_from_slice(&top.to_le_bytes());
        tss[place + 4..place + 6].copy_from_slice(&segment.to_le_bytes());
    }
    let cr3 = u32::try_from(PAE_POINTERS).unwrap();
    tss[0x1c..0x20].copy_from_slice(&cr3.to_le_bytes());
    tss[0x66] = IO_BITMAP;
    tss[0xc0] = 0xff;
    tss
}

/// The first 4 MiB in pages of 4 KiB: 2 MiB of memory, and the devices behind it. The local APIC at its
/// own address.
fn page_tables() -> Vec<(u64, Vec<u8>)> {
    let all = P | RW | US;
    let pages: Vec<u64> = (0..1024)
        .map(|page| match page * PAGE {
            MISSING => 0,
            READONLY => READONLY | P | US,
            SUPERVISOR => SUPERVISOR | P | RW,
            address => address | all,
        })
        .collect();
    vec![
        (PML4, words(&[PDPT | all])),
        (PDPT, words(&[DIRECTORY | all])),
        (
            DIRECTORY,
            words(&[PAGE_TABLES | all, (PAGE_TABLES + PAGE) | all]),
        ),
        (PAGE_TABLES, words(&pages)),
        (PAE_POINTERS, words(&[DIRECTORY | P, 0, 0, 0])),
    ]
}

/// The general registers at a guest's first instruction.
pub fn registers(guest: &Guest) -> kvm_regs {
    let real = guest.mode == Mode::Real;
    kvm_regs {
        rax: 0x1111,
        rbx: 0x2222,
        rdi: if real { 0 } else { RESULTS },
        rsi: if real { DATA - RESULTS } else { DATA },
        rsp: if real { 0x8000 } else { STACK },
        rbp: NOT_CANONICAL,
        r8: 0x8888,
        r9: 0x9999,
        r10: 0xaaaa,
        r11: 0xbbbb,
        r12: 0xcccc,
        r13: 0xdddd,
        r14: NOT_PRESENT_SELECTOR,
        r15: NOT_CANONICAL,
        rip: guest.entry,
        rflags: 2,
        ..kvm_regs::default()
    }
}

/// The special registers; what is not named here stays.
pub fn special(guest: &Guest, reset: kvm_sregs, flavour: &str) -> kvm_sregs {
    let mut sregs = reset;
    let (code, data) = match guest.mode {
        Mode::Long => (CODE64, KERNEL_DATA),
        Mode::User => (USER_CODE64, USER_DATA),
        Mode::Compat | Mode::Protected3 | Mode::Paged3 => (USER_CODE32, USER_DATA),
        Mode::Protected => (CODE32, KERNEL_DATA),
        Mode::Real => return real(sregs),
    };
    let gdt = descriptors();
    sregs.cs = loaded(code, &gdt);
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.ss,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        *segment = loaded(data, &gdt);
    }
    let long = matches!(guest.mode, Mode::Long | Mode::User | Mode::Compat);
    let (task, base) = if long { (TASK64, TSS64) } else { (TASK, TSS32) };
    sregs.tr = kvm_segment {
        base,
        limit: 0xff,
        selector: task,
        // VMX wants a busy TSS (SDM 3C 27.3.1.2). QEMU's AMD-V ends with "invalid tss type" at one.
        type_: if flavour == "kvm_amd" { 0x9 } else { 0xb },
        present: 1,
        ..kvm_segment::default()
    };
    sregs.ldt = kvm_segment {
        unusable: 1,
        ..kvm_segment::default()
    };
    let table = |base, limit| kvm_dtable {
        base,
        limit,
        ..kvm_dtable::default()
    };
    sregs.gdt = table(GDT, 0xbf);
    sregs.idt = if long {
        table(IDT64, 0xfff)
    } else {
        table(IDT32, 0x7ff)
    };
    sregs.cr0 = match guest.mode {
        Mode::Protected | Mode::Protected3 => CR0 & !CR0_PG,
        _ => CR0,
    };
    sregs.cr3 = if long { PML4 } else { PAE_POINTERS };
    sregs.cr4 = CR4;
    sregs.efer = if long { EFER_LONG } else { 0 };
    sregs
}

/// As after a reset (SDM 3A table 9-1), but for the bases.
fn real(mut sregs: kvm_sregs) -> kvm_sregs {
    let segment = |base, type_| kvm_segment {
        base,
        limit: 0xffff,
        selector: u16::try_from(base >> 4).unwrap(),
        type_,
        present: 1,
        s: 1,
        ..kvm_segment::default()
    };
    sregs.cs = segment(0, 0xb);
    sregs.ss = segment(STACK - 0x8000, 3);
    (sregs.ds, sregs.es) = (segment(RESULTS, 3), segment(RESULTS, 3));
    (sregs.fs, sregs.gs) = (segment(0, 3), segment(0, 3));
    let system = |type_| kvm_segment {
        limit: 0xffff,
        type_,
        present: 1,
        ..kvm_segment::default()
    };
    (sregs.tr, sregs.ldt) = (system(0xb), system(2));
    let table = kvm_dtable {
        limit: 0xffff,
        ..kvm_dtable::default()
    };
    (sregs.gdt, sregs.idt) = (table, table);
    sregs.cr0 = CR0_REAL;
    (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
    sregs
}

/// The bases of CS, DS, ES and SS in real mode, for a simulated vCPU.
pub fn real_segments(special: &mut SpecialRegisters) -> [(&mut Segment, u64); 4] {
    let SpecialRegisters { cs, ds, es, ss, .. } = special;
    [(cs, 0), (ds, RESULTS), (es, RESULTS), (ss, STACK - 0x8000)]
}

/// A segment register as its descriptor says.
fn loaded(selector: u16, gdt: &[u64]) -> kvm_segment {
    let descriptor = gdt[usize::from(selector >> 3)];
    let bit = |place: u32| u8::from(descriptor >> place & 1 != 0);
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: u8::try_from(descriptor >> 40 & 0xf).unwrap(),
        present: 1,
        dpl: u8::try_from(descriptor >> 45 & 3).unwrap(),
        db: bit(54),
        s: 1,
        l: bit(53),
        g: 1,
        ..kvm_segment::default()
    }
}
