//! The layout of scripts and logs in the guest's memory: the same numbers as in `guests/script.S`.

use vm_memory::GuestAddress;

/// Per processor, the addresses of its scripts: one for each time it is started.
pub const SCRIPTS: GuestAddress = GuestAddress(0x20_0000);
/// The number of scripts of a processor.
pub const STARTS: usize = 8;
/// Per vector, the address of the script that its handler runs, or 0.
pub const HANDLERS: GuestAddress = GuestAddress(0x20_1000);
/// The number of entries of the log.
pub const LOG_HEAD: GuestAddress = GuestAddress(0x20_3000);
/// The log.
pub const LOG: GuestAddress = GuestAddress(0x21_0000);
/// The operations of all scripts.
pub const OPERATIONS: GuestAddress = GuestAddress(0x30_0000);
/// Bytes of memory that a machine needs for all this.
pub const MEMORY: u64 = 8 << 20;
/// The most processors.
pub const CPUS: u16 = 32;

/// The address of an operation is written here, for the host to act on.
pub const HOST_PORT: u16 = 0x5c0;
/// The guest has ended, with this status.
pub const DONE_PORT: u16 = 0x5c8;
/// Where an operation's result is, if the host writes it.
pub const ANSWER: u64 = 24;

/// The page that a startup IPI names, for [`TRAMPOLINE`].
pub const TRAMPOLINE_PAGE: u32 = 0x70;
/// The first of the two pages of real-mode code that a processor may start in.
pub const TRAMPOLINE: u64 = 0x7_0000;

/// An operation's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    End,
    Out,
    In,
    Write,
    Read,
    Wrmsr,
    Rdmsr,
    WriteCr8,
    ReadCr8,
    Sti,
    Cli,
    StiHlt,
    Window,
    Barrier,
    Host,
    Wait,
    Deadline,
    Spin,
    Poll,
    Mark,
    StiCli,
    Hlt,
    Cpuid,
    Count,
    Sync,
    WriteUntil,
}

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub opcode: Opcode,
    pub size: u8,
    pub a: u64,
    pub b: u64,
    pub c: u64,
}

impl Operation {
    pub const SIZE: usize = 32;

    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.opcode as u8;
        bytes[1] = self.size;
        bytes[8..16].copy_from_slice(&self.a.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.b.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.c.to_le_bytes());
        bytes
    }
}

/// The request to the host, in operand A of [`Opcode::Host`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCall {
    /// Drive a GSI.
    Line { gsi: u32, level: bool },
    /// Send a message.
    Msi { address: u64, data: u32 },
}

const LINE_LOW: u64 = 0;
const LINE_HIGH: u64 = 1;
const MSI: u64 = 2;
/// Operand A has the kind in its top byte, which an address does not use.
const KIND: u32 = 56;

impl HostCall {
    /// As operands A and B.
    pub fn encode(self) -> (u64, u64) {
        match self {
            Self::Line { gsi, level } => {
                let kind = if level { LINE_HIGH } else { LINE_LOW };
                (kind << KIND, u64::from(gsi))
            }
            Self::Msi { address, data } => (MSI << KIND | address, u64::from(data)),
        }
    }

    /// From operands A and B.
    pub fn decode(a: u64, b: u64) -> Self {
        let b = u32::try_from(b).unwrap();
        match a >> KIND {
            LINE_LOW => Self::Line {
                gsi: b,
                level: false,
            },
            LINE_HIGH => Self::Line {
                gsi: b,
                level: true,
            },
            MSI => Self::Msi {
                address: a & !(u64::MAX << KIND),
                data: b,
            },
            kind => panic!("host call {kind}"),
        }
    }
}
