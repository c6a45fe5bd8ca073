//! A guest in 64-bit mode. Its loop and its handlers tell where they are by writes to ports, and a handler
//! ends with an EOI of its own.

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Bytes of guest memory, from address 0.
const MEMORY: usize = 0x1_0000;
const LOG: u64 = 0x600;
const GDT: u64 = 0x800;
const LOOP: u64 = 0x1000;
const HANDLERS: u64 = 0x2000;
const HANDLER_SIZE: u64 = 0x20;
const IDT: u64 = 0x5000;
const STACK: u64 = 0x8000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
/// Of the first GiB, and of the fourth.
const DIRECTORIES: [u64; 2] = [0xb000, 0xc000];
const LAPIC: u64 = 0xfee0_0000;
/// RFLAGS: the fixed bit, and IF.
const FLAGS_IF: u64 = 0x202;
/// Selectors, which are offsets into the GDT.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;

/// The loop says that it runs, and a handler that it has begun.
pub(crate) const LOOP_PORT: u16 = 0xe1;
pub(crate) const HANDLER_PORT: u16 = 0xe0;

/// OUT e1h, AL; JMP back.
const LOOP_CODE: [u8; 4] = [0xe6, 0xe1, 0xeb, 0xfc];

/// PUSH RAX; MOV AL, number; STOSB; OUT e0h, AL; MOV DWORD PTR [RBX + b0h], 0; POP RAX; IRETQ.
fn handler(number: u8) -> Vec<u8> {
    let begin = [0x50, 0xb0, number, 0xaa, 0xe6, 0xe0];
    let eoi = [0xc7, 0x83, 0xb0, 0, 0, 0, 0, 0, 0, 0];
    [begin.as_slice(), &eoi, &[0x58, 0x48, 0xcf]].concat()
}

/// The guest's memory, which goes from one VM to the next. It has to outlive them.
pub(crate) struct Memory(GuestMemoryMmap);

impl Memory {
    pub(crate) fn new() -> Self {
        // A guest that blocks forever ends the test with a message rather than hang it.
        // SAFETY: `alarm` has no preconditions.
        unsafe { libc::alarm(240) };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        memory.write_slice(&LOOP_CODE, GuestAddress(LOOP)).unwrap();
        let write = |address, value: u64| memory.write_obj(value, GuestAddress(address)).unwrap();
        // SDM 3A, "Segment Descriptors"; the limits do not count.
        write(GDT + u64::from(CODE), 0x0020_9b00_0000_0000);
        write(GDT + u64::from(DATA), 0x0000_9300_0000_0000);
        for number in 0..=u8::MAX {
            let address = HANDLERS + HANDLER_SIZE * u64::from(number);
            memory
                .write_slice(&handler(number), GuestAddress(address))
                .unwrap();
            // An interrupt gate (SDM 3A, "64-Bit Mode IDT").
            let gate = address & 0xffff | u64::from(CODE) << 16 | 0x8e00 << 32;
            write(IDT + 16 * u64::from(number), gate);
        }
        // Present and writable: the first 2 MiB, and the 2 MiB that the local APIC is in.
        let [low, high] = DIRECTORIES;
        write(PML4, PDPT | 0b11);
        write(PDPT, low | 0b11);
        write(PDPT + 8 * 3, high | 0b11);
        write(low, 0b1000_0011);
        write(high + 8 * (LAPIC >> 21 & 0x1ff), LAPIC | 0b1000_0011);
        Self(memory)
    }

    /// Gives a VM the memory.
    pub(crate) fn give(&self, vm: &VmFd) {
        // Three pages that the guest does not use: kvm_intel needs them.
        vm.set_tss_address(0xfffb_d000).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: self.0.get_host_address(GuestAddress(0)).unwrap() as u64,
        };
        // SAFETY:
        // - the range is a mapping of `MEMORY` bytes;
        // - the owner of this and of the VM keeps it until the VM is closed.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
    }

    /// The vectors whose handlers have begun, in order.
    pub(crate) fn log(&self, vcpu: &VcpuFd) -> Vec<u8> {
        let regs = vcpu.get_regs().unwrap();
        let mut log = vec![0; usize::try_from(regs.rdi - LOG).unwrap()];
        self.0.read_slice(&mut log, GuestAddress(LOG)).unwrap();
        log
    }
}

/// A vCPU at the loop's start, with IF set.
pub(crate) fn start(vcpu: &VcpuFd) {
    let mut sregs = vcpu.get_sregs().unwrap();
    let segment = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        l: 1,
        ..segment(CODE, 0xb)
    };
    let data = segment(DATA, 0x3);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x17);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
    // PE and PG; PAE; LME and LMA.
    sregs.cr0 |= 1 | 1 << 31;
    sregs.cr3 = PML4;
    sregs.cr4 |= 1 << 5;
    sregs.efer |= 1 << 8 | 1 << 10;
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    regs.rip = LOOP;
    regs.rflags = FLAGS_IF;
    regs.rsp = STACK;
    regs.rdi = LOG;
    regs.rbx = LAPIC;
    vcpu.set_regs(&regs).unwrap();
}
