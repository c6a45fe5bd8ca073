//! Whether an instruction may read a clock.
//!
//! A debugger that hides the time of a stop from the guest need not set the hypervisor's clocks before an
//! instruction that reads none.

use iced_x86::{Instruction, Mnemonic};

use super::StepClass;
use super::operand;
use super::unit::Unit;
use crate::GuestVirtAddr;

/// Registers of the local APIC's timer, as offsets in a page (SDM 3A, table "Local APIC Register Address
/// Map"): LVT entry, initial count, current count, divide configuration.
const TIMER_REGISTERS: [u64; 4] = [0x320, 0x380, 0x390, 0x3e0];
/// Registers are 16 bytes apart, in a page of 4 KiB.
const REGISTER_IN_PAGE: u64 = 0xff0;

impl Unit {
    /// Returns `true` if the instruction may read a clock, set one, or wait for one: a time-stamp counter,
    /// an MSR, a port, or the local APIC's page, which is recognised by the offset in the page. Also if
    /// a handler may run inside its step, or it was not decoded.
    pub(super) fn may_read_clock(&self) -> bool {
        match self.class() {
            StepClass::PortIo
            | StepClass::Halt
            | StepClass::SoftwareInterrupt
            | StepClass::Unknown => return true,
            _ => {}
        }
        let instruction = &self.decoded.instruction;
        // These name memory that they do not read.
        let reads_memory = !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
        let is_timer = |at: GuestVirtAddr| TIMER_REGISTERS.contains(&(at.0 & REGISTER_IN_PAGE));
        reads_by_name(instruction)
            || (reads_memory && operand::address(&self.machine, instruction).is_some_and(is_timer))
    }
}

fn reads_by_name(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Rdtsc
            | Mnemonic::Rdtscp
            | Mnemonic::Rdpmc
            | Mnemonic::Rdmsr
            | Mnemonic::Wrmsr
            | Mnemonic::Wrmsrns
            | Mnemonic::Rdmsrlist
            | Mnemonic::Wrmsrlist
            // With REP these are string instructions, by class.
            | Mnemonic::Insb
            | Mnemonic::Insw
            | Mnemonic::Insd
            | Mnemonic::Outsb
            | Mnemonic::Outsw
            | Mnemonic::Outsd
            | Mnemonic::Mwait
            | Mnemonic::Mwaitx
            | Mnemonic::Umwait
            | Mnemonic::Tpause
            // A hypercall may ask the host for the time (KVM_HC_CLOCK_PAIRING).
            | Mnemonic::Vmcall
            | Mnemonic::Vmmcall
    )
}
