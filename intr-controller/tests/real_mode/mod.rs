//! A real-mode guest of a few bytes: it counts in a loop, and each interrupt handler appends its
//! vector to a log. No local-APIC access from inside: real mode does not reach it, so the tests
//! play EOI from outside.

use intr_controller::Vector;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Bytes of guest memory, from address 0.
const MEMORY: usize = 0x1_0000;
/// The loop: INC AX; JMP back.
pub(crate) const LOOP: u64 = 0x1000;
pub(crate) const LOOP_CODE: [u8; 3] = [0x40, 0xeb, 0xfd];
const HANDLERS: u64 = 0x2000;
const HANDLER_SIZE: u64 = 16;
const LOG: u64 = 0x600;
const STACK: u64 = 0x8000;
/// RFLAGS: the fixed bit, and IF.
pub(crate) const FLAGS: u64 = 0x2;
pub(crate) const FLAGS_IF: u64 = 0x202;

/// Whether this is the build machines' software KVM.
#[allow(dead_code, reason = "not every test meets a deviation of its")]
pub(crate) fn is_pvm() -> bool {
    std::path::Path::new("/sys/module/kvm_pvm").exists()
}

pub(crate) fn vector(number: u8) -> Vector {
    Vector::new(number).unwrap()
}

/// Whether this is an address of the loop's.
pub(crate) fn in_loop(pc: u64) -> bool {
    (LOOP..LOOP + LOOP_CODE.len() as u64).contains(&pc)
}

/// The guest's memory. It has to outlive the VM.
pub(crate) struct RealMode {
    memory: GuestMemoryMmap,
}

impl RealMode {
    /// Gives the VM its memory. `end` is what a vector's handler does when it has written its log: up
    /// to ten bytes of code without an IRET.
    pub(crate) fn new(vm: &VmFd, end: impl Fn(u8) -> &'static [u8]) -> Self {
        // A guest that blocks forever ends the test with a message rather than hang it.
        // SAFETY: `alarm` has no preconditions.
        unsafe { libc::alarm(240) };
        // Three pages that the guest does not use: kvm_intel needs them in real mode.
        vm.set_tss_address(0xfffb_d000).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        };
        // SAFETY:
        // - the range is a mapping of `MEMORY` bytes;
        // - the guest that has this and the VM keeps it until the VM is closed (fields drop in
        //   order, this one last).
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        memory.write_slice(&LOOP_CODE, GuestAddress(LOOP)).unwrap();
        for number in 0..=u8::MAX {
            let address = HANDLERS + HANDLER_SIZE * u64::from(number);
            // PUSH AX; MOV AL, number; STOSB; POP AX: one instruction writes, so an NMI which
            // comes in between loses nothing.
            let mut code = vec![0x50, 0xb0, number, 0xaa, 0x58];
            code.extend(end(number));
            code.push(0xcf); // IRET
            memory.write_slice(&code, GuestAddress(address)).unwrap();
            let gate = u32::try_from(address).unwrap();
            memory
                .write_obj(gate, GuestAddress(4 * u64::from(number)))
                .unwrap();
        }
        Self { memory }
    }

    /// Sets a vCPU to the loop's start, with these RFLAGS.
    pub(crate) fn start(&self, vcpu: &VcpuFd, rflags: u64) {
        let mut sregs = vcpu.get_sregs().unwrap();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        regs.rip = LOOP;
        regs.rflags = rflags;
        regs.rsp = STACK;
        regs.rdi = LOG;
        vcpu.set_regs(&regs).unwrap();
    }

    /// Replaces code.
    #[allow(dead_code, reason = "not every test has code of its own")]
    pub(crate) fn write(&self, address: u64, code: &[u8]) {
        self.memory
            .write_slice(code, GuestAddress(address))
            .unwrap();
    }

    /// The vectors whose handlers ran, in order.
    pub(crate) fn log(&self, vcpu: &VcpuFd) -> Vec<u8> {
        let regs = vcpu.get_regs().unwrap();
        let mut log = vec![0; usize::try_from(regs.rdi - LOG).unwrap()];
        self.memory.read_slice(&mut log, GuestAddress(LOG)).unwrap();
        log
    }
}
