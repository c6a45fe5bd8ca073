//! The ways in which a guest is run: free, and with a debugger.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::thread;

use debug_stub::server::{GdbServer, ListenAddress, Listener};
use debug_stub::x86_64::{RegisterFile, translate};
use debug_stub::{
    Armed, GuestMemory, GuestPhysAddr, GuestVirtAddr, OnDisconnect, SessionConfig, StepOrder,
    StopReason, VcpuOrder,
};
use intr_controller::IrqchipMode;
use vcpu_caps::{HwBreakpoint, HwBreakpointKind, VcpuId};
use vmm_reference::debug::MachineHost;
use vmm_reference::remote::RemoteClient;
use vmm_reference::{EventLoop, ExitEvent};

use crate::device::End;
use crate::image::{Guest, Wait};
use crate::machine::{Outcome, Running, end_of, finish, stops};

/// A guest that is not at its end after so many steps never gets there.
const MOST_STEPS: usize = 1500;

/// With a debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Stepped to the end with interrupts masked.
    Masked,
    /// Stepped to the end with interrupts let in.
    Unmasked,
    /// Stepped by ranges of 16 bytes, as lines of a source, masked.
    Range,
    /// Stepped for a while, then the debugger detaches.
    Detached,
    /// Stepped for a while by a client of the session that is gone before the next step is done.
    Killed,
}

impl Way {
    /// Its letter in the tables of what is expected.
    pub fn letter(self) -> char {
        match self {
            Self::Masked => 'm',
            Self::Unmasked => 'u',
            Self::Range => 'r',
            Self::Detached => 'd',
            Self::Killed => 'k',
        }
    }
}

/// The vCPU before a step.
#[derive(Clone, Debug)]
pub struct Place {
    pub registers: RegisterFile,
    /// The bytes at RIP, up to the first that is not memory.
    pub bytes: Vec<u8>,
    /// The bytes at the top of the stack.
    pub stack: Vec<u8>,
}

/// Runs a guest without a debugger.
pub fn free(guest: &Guest, chips: IrqchipMode) -> Outcome {
    let mut running = Running::new(guest, chips);
    let end = match running.run(VcpuOrder::Continue, Armed::default()) {
        Ok(stops) => end_of(&stops, &running.device)
            .unwrap_or_else(|| End::Failed(format!("it stopped: {stops:?}"))),
        Err(_) => End::Failed("it never ends".to_owned()),
    };
    running.finish(end)
}

/// Steps a guest to its end. `at` is called before each step.
pub fn stepped(
    guest: &Guest,
    chips: IrqchipMode,
    way: Way,
    mut at: impl FnMut(&Running, &RegisterFile),
) -> (Outcome, usize) {
    let mut running = Running::new(guest, chips);
    let mut steps = 0;
    let end = loop {
        if steps == MOST_STEPS {
            break End::Failed(format!(
                "it is not at its end after {steps} steps{}",
                here(&running)
            ));
        }
        let file = running.registers();
        at(&running, &file);
        if let Some(end) = step(guest, &mut running, way, &file) {
            break end;
        }
        steps += 1;
    };
    (running.finish(end), steps)
}

/// Steps a guest to its end, masked, while watchpoints take all debug registers. Returns `true` beside the outcome if
/// a step has said that it found no way to stop at a handler.
pub fn beside_watchpoints(guest: &Guest) -> (Outcome, bool) {
    // Nothing is mapped there.
    const WATCHED: u64 = 0x7000_0000;
    let watch = |at| HwBreakpoint::watch(WATCHED + at, 4, HwBreakpointKind::ReadWrite);
    let mut running = Running::new(guest, IrqchipMode::Kernel);
    let mut unguarded = false;
    let mut steps = 0;
    let end = loop {
        if steps == MOST_STEPS {
            break End::Failed(format!("it is not at its end after {steps} steps"));
        }
        steps += 1;
        let order = VcpuOrder::Step(StepOrder {
            mask: true,
            alone: true,
            ..StepOrder::default()
        });
        let armed = Armed {
            hardware: [0, 4, 8, 12].map(watch).to_vec(),
            ..Armed::default()
        };
        let Ok(stops) = running.run(order, armed) else {
            break End::Failed(format!("a step never ends{}", here(&running)));
        };
        unguarded |= running.group().vcpu(VcpuId(0)).unwrap().is_unguarded();
        if let Some(end) = end_of(&stops, &running.device) {
            break end;
        }
    };
    (running.finish(end), unguarded)
}

fn here(running: &Running) -> String {
    let file = running.registers();
    format!(
        ", at {:#x} with RFLAGS {:#x}",
        file.linear_pc(),
        file.core.rflags
    )
}

/// One step, or the guest's wait for an interrupt. Returns its end, if it came.
fn step(guest: &Guest, running: &mut Running, way: Way, file: &RegisterFile) -> Option<End> {
    let pc = file.linear_pc();
    let mask = way != Way::Unmasked;
    let waits = guest.waits.iter().find(|wait| mask && wait.at == pc);
    let (order, armed) = match waits {
        Some(wait) => (VcpuOrder::Continue, vec![HwBreakpoint::execute(wait.until)]),
        None => {
            let line = pc & !0xf;
            // A range that a wait is in would not end.
            let waits = guest.waits.iter().map(|wait| wait.at).filter(|at| *at > pc);
            let end = waits.min().unwrap_or(u64::MAX).min(line + 0x10);
            let range = (way == Way::Range).then_some(line..end);
            (
                VcpuOrder::Step(StepOrder {
                    range,
                    mask,
                    ..StepOrder::default()
                }),
                Vec::new(),
            )
        }
    };
    let armed = Armed {
        hardware: armed,
        ..Armed::default()
    };
    let stops = match running.run(order.clone(), armed) {
        Ok(stops) => stops,
        Err(_) => {
            let end = running.device.ended();
            return end.or_else(|| {
                Some(End::Failed(format!(
                    "{order:?} never ends{}",
                    here(running)
                )))
            });
        }
    };
    end_of(&stops, &running.device).or_else(|| {
        let fine = stops.iter().any(|stop| {
            matches!(
                stop.reason,
                StopReason::Step | StopReason::HardwareBreakpoint
            )
        });
        (!fine).then(|| End::Failed(format!("a step ended with {stops:?}")))
    })
}

/// Steps a guest `steps` times, masked, and detaches.
pub fn detached(guest: &Guest, chips: IrqchipMode, steps: usize) -> Outcome {
    let mut running = Running::new(guest, chips);
    for _ in 0..steps {
        let file = running.registers();
        if let Some(end) = step(guest, &mut running, Way::Masked, &file) {
            return running.finish(end);
        }
    }
    running.detach();
    let end = match running.wait() {
        Ok(stops) => end_of(&stops, &running.device)
            .unwrap_or_else(|| End::Failed(format!("it stopped: {stops:?}"))),
        Err(_) => {
            let text = format!(
                "detached after {steps} steps, it never ends{}",
                here(&running)
            );
            running.device.ended().unwrap_or(End::Failed(text))
        }
    };
    running.finish(end)
}

/// Steps a guest `steps` times by the remote protocol. The client sends one step more, and is gone before the
/// stub has looked at it.
pub fn killed(guest: &Guest, chips: IrqchipMode, steps: usize) -> Outcome {
    /// Of [`TURN_MS`]: see [`crate::machine::stops`].
    const MOST_TURNS: u32 = 500;
    const TURN_MS: u16 = 20;
    let running = Running::new(guest, chips);
    let plan = running.plan.clone();
    let (host, device, memory) = running.into_host();
    let address: ListenAddress = "tcp:127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&address, false).unwrap();
    let ListenAddress::Tcp(at) = listener.address().clone() else {
        panic!("bound to {}", listener.address());
    };
    let mut events = EventLoop::new(ExitEvent::new().unwrap()).unwrap();
    let mut config = SessionConfig::new(plan);
    // It is stopped before the client comes, and is to end after the client has gone.
    config.on_disconnect = OnDisconnect::Run;
    let server = Rc::new(RefCell::new(GdbServer::new(listener, host, config)));
    events.add(Box::new(Rc::clone(&server)));
    let waits = guest.waits.clone();
    let mut client = Some(thread::spawn(move || step_by_protocol(at, &waits, steps)));
    let mut turns = 0;
    let end = loop {
        // A turn that has served something took no time.
        if events.serve_once(Some(TURN_MS)).unwrap() == 0 {
            turns += 1;
        }
        if let Some(thread) = client.take_if(|thread| thread.is_finished()) {
            // The guest may have ended before the client's last step, and with it the connection.
            if let Ok(mut client) = thread.join().unwrap() {
                let _ = client.send(STEP);
            }
        }
        if let (true, Some(end)) = (client.is_none() && is_stopped(&server), device.ended()) {
            break end;
        }
        if turns > MOST_TURNS {
            let server = server.borrow();
            server.host().group().interrupt();
            stops(server.host().group());
            let text = format!("after the client was killed at step {steps}, it never ends");
            break device.ended().unwrap_or(End::Failed(text));
        }
    };
    let outcome = finish(server.borrow().host().group(), &device, &memory, end);
    // A client that still waits for a reply sees that the connection is closed.
    drop((events, server));
    if let Some(thread) = client {
        let _ = thread.join().unwrap();
    }
    outcome
}

fn is_stopped(server: &RefCell<GdbServer<MachineHost>>) -> bool {
    server.borrow().host().group().is_stopped()
}

const STEP: &str = "vCont;s:p1.1;c";

/// Steps by the remote protocol. Returns the client, which is still connected.
fn step_by_protocol(
    at: SocketAddr,
    waits: &[Wait],
    steps: usize,
) -> std::io::Result<RemoteClient<TcpStream>> {
    let mut client = RemoteClient::over(TcpStream::connect(at)?)?;
    for _ in 0..steps {
        let pc = client.read_rip()?;
        match waits.iter().find(|wait| wait.at == pc) {
            Some(wait) => {
                client.request(&format!("Z1,{:x},1", wait.until))?;
                client.request("c")?;
                client.request(&format!("z1,{:x},1", wait.until))?;
            }
            None => {
                client.request(STEP)?;
            }
        }
    }
    Ok(client)
}

/// The vCPU's place, with what is in memory there.
pub fn place(memory: &impl GuestMemory, registers: &RegisterFile) -> Place {
    let special = &registers.special;
    let sp = match (
        crate::report::bitness(registers) == 64,
        special.ss.default_big,
    ) {
        (true, _) => registers.core.rsp,
        (false, true) => special
            .ss
            .base
            .wrapping_add(registers.core.rsp & 0xffff_ffff),
        (false, false) => special.ss.base.wrapping_add(registers.core.rsp & 0xffff),
    };
    Place {
        registers: registers.clone(),
        bytes: bytes(memory, registers, registers.linear_pc(), 15),
        stack: bytes(memory, registers, sp, 8),
    }
}

/// Up to `count` bytes at a linear address, until the first that is not memory.
fn bytes(memory: &impl GuestMemory, registers: &RegisterFile, start: u64, count: u64) -> Vec<u8> {
    let found = (0..count).map_while(|offset| {
        let address = GuestVirtAddr(start.wrapping_add(offset));
        let at = translate(&registers.special, memory, address).ok()?;
        let mut byte = [0];
        (memory.read_memory(GuestPhysAddr(at.gpa.0), &mut byte) == 1).then_some(byte[0])
    });
    found.collect()
}
