//! The test device: what the guests print and read, and how they end.

use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use debug_stub::StopReason;
use intr_controller::routing::SourceId;
use intr_controller::{Gsi, MsiMessage};
use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;
use vmm_reference::devices::InterruptLines;
use vmm_reference::irqchip::Irqchip;
use vmm_reference::vcpu::{Exits, MachineExits};
use vmm_reference::{Entering, Permit};

const DONE: u16 = 0xe0;
const STRAY: u16 = 0xe1;
const PRINT: u16 = 0xe2;
const NEXT: u16 = 0xe3;
const RAISE: u16 = 0xe4;
const RAISE_NMI: u16 = 0xe5;
const RAISE_LINE: u16 = 0xe6;
/// Ports and addresses of the device: the rest are the machine's.
const PORTS: std::ops::RangeInclusive<u16> = DONE..=RAISE_LINE;
const DEVICE: std::ops::Range<u64> = 0x30_0000..0x30_1000;
/// Address and data of a message to vCPU 0 (SDM 3A 11.11).
const TO_VCPU_0: u64 = 0xfee0_0000;
const NMI: u32 = 4 << 8;

/// [`TestDevice::ended`] until the end.
const RUNNING: u16 = u16::MAX;
/// How a guest ended: it says so itself, or a vector came that it has no handler for.
const STRAY_BIT: u16 = 0x100;

/// An access to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Print(Vec<u8>),
    Next(usize),
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Raise(u8),
    RaiseNmi,
    RaiseLine(u8),
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At its last instruction.
    Done,
    /// This vector came, and it has no handler.
    Stray(u8),
    /// It is neither at its end nor able to go on: the text says why.
    Failed(String),
}

/// The device, on the bus of a machine. Clones are the same device.
#[derive(Clone)]
pub struct TestDevice {
    pub machine: MachineExits,
    state: Arc<State>,
}

struct State {
    ended: AtomicU16,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    accesses: Vec<Access>,
    next: u8,
}

impl TestDevice {
    pub fn new(machine: MachineExits) -> Self {
        Self {
            machine,
            state: Arc::new(State {
                ended: AtomicU16::new(RUNNING),
                log: Mutex::default(),
            }),
        }
    }

    /// `None` while the guest runs.
    pub fn ended(&self) -> Option<End> {
        let [code, stray] = match self.state.ended.load(Ordering::Acquire) {
            RUNNING => return None,
            value => value.to_le_bytes(),
        };
        Some(match stray {
            0 => End::Done,
            _ => End::Stray(code),
        })
    }

    pub fn log(&self) -> Vec<Access> {
        self.state.log.lock().unwrap().accesses.clone()
    }

    fn note(&self, access: Access) {
        self.state.log.lock().unwrap().accesses.push(access);
    }

    fn read(&self, access: Access, data: &mut [u8]) {
        let mut log = self.state.log.lock().unwrap();
        log.accesses.push(access);
        for byte in data {
            log.next = log.next.wrapping_add(1);
            *byte = log.next;
        }
    }

    fn end(&self, status: u16) {
        // The first end counts.
        let _ =
            self.state
                .ended
                .compare_exchange(RUNNING, status, Ordering::AcqRel, Ordering::Relaxed);
    }

    fn signal(&self, data: u32) {
        let message = MsiMessage {
            address: TO_VCPU_0,
            data,
        };
        let irqchip: &Irqchip = &self.machine.irqchip;
        let taken = irqchip
            .signal_msi(message)
            .expect("the message is well-formed");
        assert!(taken, "the local APIC of the guest is not enabled");
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "it is at its end"),
            Self::Stray(vector) => write!(f, "vector {vector} comes instead"),
            Self::Failed(text) => write!(f, "{text}"),
        }
    }
}

impl Exits for TestDevice {
    fn io_in(&self, port: u16, data: &mut [u8]) {
        if PORTS.contains(&port) {
            self.read(Access::Next(data.len()), data);
        } else {
            self.machine.io_in(port, data);
        }
    }

    fn io_out(&self, port: u16, data: &[u8]) {
        let value = data[0];
        match port {
            DONE => self.end(0),
            STRAY => self.end(STRAY_BIT | u16::from(value)),
            PRINT | NEXT => self.note(Access::Print(data.to_vec())),
            RAISE => {
                self.note(Access::Raise(value));
                self.signal(value.into());
            }
            RAISE_NMI => {
                self.note(Access::RaiseNmi);
                self.signal(NMI);
            }
            RAISE_LINE => {
                self.note(Access::RaiseLine(value));
                let irqchip = &self.machine.irqchip;
                irqchip.set_line(Gsi(value.into()), SourceId::new(0).unwrap(), true);
            }
            _ => self.machine.io_out(port, data),
        }
    }

    fn mmio_read(&self, vcpu: VcpuId, address: u64, data: &mut [u8]) {
        if DEVICE.contains(&address) {
            self.read(Access::Read(address, data.len()), data);
        } else {
            self.machine.mmio_read(vcpu, address, data);
        }
    }

    fn mmio_write(&self, vcpu: VcpuId, address: u64, data: &[u8]) {
        if DEVICE.contains(&address) {
            self.note(Access::Write(address, data.to_vec()));
        } else {
            self.machine.mmio_write(vcpu, address, data);
        }
    }

    fn ended(&self) -> Option<StopReason> {
        match self.state.ended.load(Ordering::Acquire) {
            RUNNING => self.machine.ended(),
            status => Some(StopReason::Exited(status.to_le_bytes()[0])),
        }
    }

    fn before_entry(&self, vcpu: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        self.machine.before_entry(vcpu, fd, entering)
    }

    fn after_exit(&self, vcpu: VcpuId, cr8: u64) {
        self.machine.after_exit(vcpu, cr8);
    }

    fn halted(&self, vcpu: VcpuId) {
        self.machine.halted(vcpu);
    }

    fn wait(&self, vcpu: VcpuId, must_stop: &dyn Fn() -> bool) {
        self.machine.wait(vcpu, must_stop);
    }

    fn read_msr(&self, vcpu: VcpuId, index: u32) -> Option<u64> {
        self.machine.read_msr(vcpu, index)
    }

    fn write_msr(&self, vcpu: VcpuId, fd: &VcpuFd, index: u32, value: u64) -> bool {
        self.machine.write_msr(vcpu, fd, index, value)
    }

    fn end_of_interrupt(&self, fd: &VcpuFd, vector: u8) {
        self.machine.end_of_interrupt(fd, vector);
    }
}
