//! Any client before any guest: packets and garbage in any pieces, stops at any time and for any
//! reason, connections that come and go at any byte.
//!
//! Invariants: an INT3 of the session is in memory only while a vCPU may run; actions are legal for the
//! guest's state; the guest is released once after each client; the output for the client is bounded, and
//! each packet's sum is correct; the next client is served.
//!
//! Input: lines of text. The first sets the machine up: a digit for the vCPUs, one of what the
//! host lacks (1: INT3 exits, 2: watchpoints, 4: the mask), one of what it is like (1: 64-bit
//! mode, else real-address mode, 2: can be reset, 4: runs before the client comes, 8: runs on after a reset that it
//! has asked for), and the program's letters (`machine.rs`). Each other line is one operation:
//! - `>body`: a packet with the right sum; `=bytes`: bytes as they are; `/n`: the pieces in which
//!   they arrive;
//! - `.n`: the guest runs n instructions; `!kn`: it stops, reason k, vCPU n;
//! - `Vn`: there are n vCPUs from now on; `Ctext`: the VMM prints on the client's console;
//! - `A`: a client comes; `D`: it goes; `rn`: it reads n bytes; `S`: it does or does not read by
//!   itself.
#![no_main]

#[path = "stub_session/machine.rs"]
mod machine;

use std::sync::OnceLock;

use debug_stub::x86_64::simulated::host_report;
use debug_stub::{
    Action, GuestPhysAddr, GuestState, OnReset, ResumePlan, Session, SessionConfig, Stop,
    StopReason, VcpuId, VcpuOrder, WatchAccess,
};
use libfuzzer_sys::fuzz_target;
use machine::{INT3, Machine};
use vcpu_caps::{Capability, HwBreakpointKind, Plan, Profile, negotiate};

/// The least that a session takes.
const MAX_PACKET: usize = 2048;
/// Twice a packet may wait; on top comes the longest reply, which is `monitor caps`.
const MAX_OUTPUT: usize = 16 * MAX_PACKET;

/// What the guest does, as the VMM knows it.
#[derive(Debug)]
enum Guest {
    /// It runs without a client.
    Free,
    /// It is stopped for the session.
    Stopped,
    Running(ResumePlan),
    /// It has ended by itself.
    Ended,
    Killed,
}

struct Vmm {
    session: Session<Machine>,
    plan: Plan,
    guest: Guest,
    /// `Action::Interrupt` is not carried out yet.
    interrupting: bool,
    /// What a client has received of a packet that is not complete.
    received: Vec<u8>,
    /// The client's bytes may have written 0xcc to memory, which looks like an INT3.
    tainted: bool,
    last_sent: u8,
    /// The client reads all output at once.
    reads: bool,
    replies: Vec<Vec<u8>>,
}

/// The plan of a host that lacks some abilities, a bit each.
fn plan_without(lacks: u8) -> Plan {
    let optional = [
        Capability::BptExit,
        Capability::Watchpoint,
        Capability::MaskHwintr,
    ];
    let absent = optional.into_iter().enumerate();
    let absent: Vec<_> = absent
        .filter_map(|(bit, capability)| (lacks >> bit & 1 == 1).then_some(capability))
        .collect();
    negotiate(&host_report(&absent), &Profile::debugger()).expect("what is required is there")
}

static PLANS: [OnceLock<Plan>; 8] = [const { OnceLock::new() }; 8];

impl Vmm {
    fn new(setup: &[u8]) -> Self {
        let digit = |at: usize| setup.get(at).map_or(0, |byte| byte.wrapping_sub(b'0'));
        let (lacks, like) = (digit(1), digit(2));
        let plan = PLANS[usize::from(lacks & 7)]
            .get_or_init(|| plan_without(lacks))
            .clone();
        let mut machine = Machine::new(
            usize::from(digit(0) & 3) + 1,
            like & 1 != 0,
            &plan,
            setup.get(3..).unwrap_or_default(),
        );
        machine.can_reset = like & 2 != 0;
        let mut config = SessionConfig::new(plan.clone());
        config.max_packet = MAX_PACKET;
        if like & 8 != 0 {
            config.on_reset = OnReset::Continue;
        }
        let mut vmm = Self {
            session: Session::new(machine, config),
            plan,
            guest: if like & 4 != 0 {
                Guest::Free
            } else {
                Guest::Stopped
            },
            interrupting: false,
            received: Vec::new(),
            tainted: false,
            last_sent: 0,
            reads: true,
            replies: Vec::new(),
        };
        vmm.set_running();
        vmm
    }

    fn ended(&self) -> bool {
        matches!(self.guest, Guest::Ended | Guest::Killed)
    }

    fn set_running(&mut self) {
        self.session.host_mut().running = matches!(self.guest, Guest::Free | Guest::Running(_));
    }

    fn attach(&mut self) {
        let state = match self.guest {
            Guest::Free | Guest::Running(_) => GuestState::Running,
            Guest::Stopped | Guest::Ended | Guest::Killed => GuestState::Stopped,
        };
        self.received.clear();
        self.last_sent = 0;
        self.session.attach(state);
        self.act();
    }

    fn disconnect(&mut self) {
        self.session.disconnected();
        self.received.clear();
        assert_eq!(
            self.session.output(),
            b"",
            "output for a client that has gone"
        );
        self.act();
    }

    fn send(&mut self, bytes: &[u8], piece: usize) {
        for &byte in bytes {
            let pair = [self.last_sent, byte].map(|b| b.to_ascii_lowercase());
            self.tainted |= pair == *b"cc" || byte == INT3 || byte == INT3 ^ 0x20;
            self.last_sent = byte;
        }
        for piece in bytes.chunks(piece.max(1)) {
            self.session.receive(piece);
            self.act();
            while self.session.has_work() {
                self.session.work();
                self.act();
            }
        }
    }

    fn read(&mut self, count: usize) {
        let output = self.session.output();
        let count = count.min(output.len());
        self.received.extend(&output[..count]);
        self.session.consume_output(count);
        while self.session.has_work() {
            self.session.work();
            self.act();
        }
        while let Some(used) = packet(&self.received, &mut self.replies) {
            self.received.drain(..used);
        }
    }

    /// The guest runs on; the machine decides whether it stops then.
    fn run(&mut self, instructions: usize) {
        let stops = match &self.guest {
            Guest::Running(plan) => self.session.host_mut().run(plan, instructions),
            // Without a debugger it stops only at an interrupt.
            Guest::Free | Guest::Stopped | Guest::Ended | Guest::Killed => Vec::new(),
        };
        if !stops.is_empty() || self.interrupting {
            self.stopped(stops);
        }
    }

    fn stopped(&mut self, stops: Vec<Stop>) {
        let ended = stops
            .iter()
            .any(|stop| matches!(stop.reason, StopReason::Exited(_)));
        self.interrupting = false;
        if ended {
            self.guest = Guest::Ended;
            self.session.host_mut().can_reset = false;
        } else if !self.ended() {
            self.guest = Guest::Stopped;
        }
        self.set_running();
        self.session.stopped(stops);
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.session.next_action() {
            match action {
                Action::Resume(plan) => {
                    assert!(
                        matches!(self.guest, Guest::Stopped),
                        "resumed: {:?}",
                        self.guest
                    );
                    self.check_plan(&plan);
                    self.guest = Guest::Running(plan);
                }
                Action::Interrupt => {
                    // The next client is attached, and the guest's end is reported to it.
                    assert!(!matches!(self.guest, Guest::Stopped | Guest::Killed));
                    assert!(!self.interrupting, "interrupted twice");
                    self.interrupting = true;
                }
                Action::Release => {
                    assert!(
                        matches!(self.guest, Guest::Stopped),
                        "released: {:?}",
                        self.guest
                    );
                    self.check_memory(&[]);
                    self.session.host_mut().release();
                    if !self.ended() {
                        self.guest = Guest::Free;
                    }
                }
                Action::Kill => {
                    // A client that came as the guest ended has seen it stopped, and may kill it.
                    assert!(
                        matches!(self.guest, Guest::Stopped | Guest::Ended),
                        "killed: {:?}",
                        self.guest
                    );
                    // Also one that has killed it in extended mode, and has gone.
                    assert!(self.session.is_closing() || !self.session.is_attached());
                    if !self.ended() {
                        self.guest = Guest::Killed;
                    }
                }
            }
            self.set_running();
        }
        assert!(
            self.session.output().len() <= MAX_OUTPUT,
            "{}",
            self.session.output().len()
        );
        if !matches!(self.guest, Guest::Running(_)) {
            self.check_memory(&[]);
        }
        if self.reads {
            self.read(usize::MAX);
            // After a read the session may serve more.
            if !self.session.output().is_empty() {
                self.act();
            }
        }
    }

    /// Checks that memory differs from the guest's only by the session's INT3s.
    fn check_memory(&self, armed: &[GuestPhysAddr]) {
        if !self.tainted {
            assert_eq!(self.session.host().foreign_bytes(), armed);
        }
    }

    fn check_plan(&self, plan: &ResumePlan) {
        let machine = self.session.host();
        let armed: Vec<GuestPhysAddr> = plan.armed.software.iter().copied().collect();
        self.check_memory(&armed);
        assert_eq!(
            plan.vcpus.len(),
            usize::from(debug_stub::Host::vcpu_count(machine))
        );
        assert!(
            plan.vcpus.is_empty() || plan.vcpus.iter().any(|order| *order != VcpuOrder::Stay),
            "nothing is to run"
        );
        assert!(
            !matches!(plan.others, VcpuOrder::Step(_)),
            "a vCPU that does not exist cannot step"
        );
        for (index, order) in plan.vcpus.iter().enumerate() {
            let VcpuOrder::Step(step) = order else {
                continue;
            };
            assert!(!step.mask || self.plan.has(Capability::MaskHwintr));
            assert!(step.range.as_ref().is_none_or(|range| !range.is_empty()));
            let pc = machine.physical_pc(index);
            assert!(
                pc.is_none_or(|pc| !armed.contains(&pc)),
                "a step begins on an INT3"
            );
        }
        for breakpoint in plan.armed.hardware.iter() {
            let watches = breakpoint.kind() != HwBreakpointKind::Execute;
            assert!(!watches || self.plan.has(Capability::Watchpoint));
        }
        assert!(
            armed.is_empty()
                || !self.plan.has(Capability::BptExit)
                || self
                    .plan
                    .is_provided_by(Capability::BptExit, &vcpu_caps::Mechanism::HOST)
        );
    }

    /// The guest stops for any reason, true or not.
    fn stop_for(&mut self, kind: u8, vcpu: u16) {
        let may = match self.guest {
            Guest::Running(_) => true,
            Guest::Free => self.interrupting,
            // An event that no vCPU's order has led to.
            Guest::Stopped => self.session.is_attached(),
            Guest::Ended | Guest::Killed => false,
        };
        if !may {
            return;
        }
        let reason = match kind {
            b's' => StopReason::Step,
            b'b' => StopReason::SoftwareBreakpoint,
            b'h' => StopReason::HardwareBreakpoint,
            b'w' => StopReason::Watchpoint {
                address: 0x8001,
                access: WatchAccess::Write,
            },
            b'a' => StopReason::Watchpoint {
                address: 0x8001,
                access: WatchAccess::ReadWrite,
            },
            b't' => StopReason::TripleFault("\u{fc} no IDT }$#*".into()),
            b'e' => StopReason::InternalError("emulation failed".into()),
            b'x' => StopReason::Exited(7),
            b'q' => StopReason::ResetRequest,
            b'c' => StopReason::CodeChanged,
            b'r' => {
                self.session.host_mut().reset();
                StopReason::Reset
            }
            _ => StopReason::Interrupted,
        };
        // All vCPUs from there on have the same to say.
        let stops = (vcpu..4)
            .map(|vcpu| Stop {
                vcpu: VcpuId(vcpu),
                reason: reason.clone(),
            })
            .collect();
        self.stopped(stops);
    }

    /// Ends everything that is in progress.
    fn settle(&mut self) {
        while self.interrupting {
            self.stopped(Vec::new());
        }
    }
}

/// Takes one packet or acknowledgement from the front. Returns its length, once it is complete.
fn packet(bytes: &[u8], replies: &mut Vec<Vec<u8>>) -> Option<usize> {
    match bytes.first()? {
        b'+' | b'-' => Some(1),
        b'$' => {
            let end = bytes.iter().position(|byte| *byte == b'#')?;
            let digits = bytes.get(end + 1..end + 3)?;
            let body = &bytes[1..end];
            let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(
                digits,
                format!("{sum:02x}").as_bytes(),
                "{}",
                body.escape_ascii()
            );
            assert!(!body.contains(&b'$'), "{}", body.escape_ascii());
            replies.push(body.to_vec());
            Some(end + 3)
        }
        other => panic!("{other:#04x} between packets"),
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    [b"$", body, format!("#{sum:02x}").as_bytes()].concat()
}

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut vmm = Vmm::new(lines.next().unwrap_or_default());
    let mut piece = usize::MAX;
    for line in lines.take(64) {
        let (Some(&operation), operands) = (line.first(), line.get(1..).unwrap_or_default()) else {
            continue;
        };
        let operand = |at: usize| operands.get(at).copied().unwrap_or_default();
        match operation {
            b'>' => vmm.send(&frame(operands), piece),
            b'=' => vmm.send(operands, piece),
            b'/' => piece = usize::from(operand(0) & 15),
            b'.' => vmm.run(usize::from(operand(0))),
            b'!' => vmm.stop_for(operand(0), u16::from(operand(1) & 7)),
            b'V' => vmm
                .session
                .host_mut()
                .set_vcpus(usize::from(operand(0) & 7)),
            b'C' => {
                vmm.session
                    .console_message(&String::from_utf8_lossy(operands));
                vmm.act();
            }
            b'A' => vmm.attach(),
            b'D' => vmm.disconnect(),
            b'r' => vmm.read(usize::from(operand(0))),
            b'S' => vmm.reads = !vmm.reads,
            _ => {}
        }
        if vmm.ended() {
            vmm.disconnect();
            vmm.settle();
            assert!(!vmm.session.is_attached());
            return;
        }
    }

    // In any case: the guest goes on without a trace, and the next client is served.
    vmm.reads = true;
    vmm.disconnect();
    vmm.settle();
    assert!(!vmm.session.is_attached());
    vmm.check_memory(&[]);
    if vmm.ended() {
        // A guest that was killed in extended mode ends with its client.
        return;
    }
    vmm.attach();
    vmm.settle();
    vmm.replies.clear();
    vmm.send(&frame(b"?"), usize::MAX);
    assert!(
        matches!(vmm.replies.as_slice(), [reply] if reply.first() == Some(&b'T')),
        "{:?}",
        vmm.replies
    );
    vmm.send(&frame(b"D"), usize::MAX);
    assert_eq!(
        vmm.replies.last().map(Vec::as_slice),
        Some(b"OK".as_slice())
    );
    assert!(matches!(vmm.guest, Guest::Free), "released");
    vmm.check_memory(&[]);
});
