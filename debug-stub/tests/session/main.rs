//! A session as a client and a VMM see it, on a simulated machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop where what must hold does not"
)]

#[path = "../common/mod.rs"]
mod common;

mod breakpoints;
mod changes;
mod conditions;
mod connecting;
mod ends;
mod errors;
mod extended;
mod framing;
mod interrupts;
mod leaving;
mod lldb;
mod maintenance;
mod memory;
mod modes;
mod properties;
mod protocol;
mod registers;
mod resets;
mod stepping;
mod toy;
mod watchpoints;

use common::{Rig, console, frame, hex, machine, plan, registers, registers_mut, unframe};
use debug_stub::x86_64::simulated::{
    ALIAS, ALIASED, ENTRY, RAM, SimulatedMachine as Machine, code,
};
use debug_stub::{
    GuestState, Session, SessionConfig, StepOrder, Stop, StopReason, VcpuId, VcpuOrder, WatchAccess,
};
use vcpu_caps::Capability;

fn spinning(vcpus: usize) -> Rig {
    Rig::new(machine(vcpus, &[code::SPIN]))
}

fn nops(vcpus: usize) -> Rig {
    let mut program = vec![code::NOP; 64];
    program.push(code::SPIN);
    Rig::new(machine(vcpus, &program))
}

/// vCPUs that store a byte to 0x9000, and go on with `rest`.
fn storing(vcpus: usize, rest: &[&[u8]]) -> Machine {
    let program = [&[code::STORE], rest].concat();
    machine(vcpus, &program).with_registers(|file| file.core.rdi = 0x9000)
}

/// Without INT3 exits, as on a host that does not intercept them.
fn without(absent: &[Capability], machine: Machine) -> Rig {
    Rig::with(machine, SessionConfig::new(plan(absent)))
}

fn step(mask: bool) -> VcpuOrder {
    VcpuOrder::Step(StepOrder {
        mask,
        ..StepOrder::default()
    })
}

fn stop(vcpu: u16, reason: StopReason) -> Stop {
    Stop {
        vcpu: VcpuId(vcpu),
        reason,
    }
}
