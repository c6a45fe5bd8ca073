//! gdbstub's state machine. It survives every packet: one that ends it is answered with an
//! error, and the next packet finds a new machine.

use std::convert::Infallible;

use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{GdbStub, MultiThreadStopReason};
use thiserror::Error;

use crate::arch::Arch;
use crate::filter::push_hex;
use crate::guest::{Guest, RegisterNumber};
use crate::host::Host;

/// gdbstub's state machine ended.
#[derive(Debug, Error)]
pub(crate) enum StubError {
    #[error("gdbstub refused a packet: {0}")]
    Refused(String),
    #[error("gdbstub cannot be built: {0}")]
    Build(String),
    #[error("gdbstub is not in the state for this")]
    State,
}

/// Receives gdbstub's replies. Framing and acknowledgement are the filter's: this keeps what is
/// between `$` and `#`.
#[derive(Debug, Default)]
struct Wire {
    /// The bodies of all replies, one after the other.
    text: Vec<u8>,
    /// Where each body ends.
    ends: Vec<usize>,
    inside: bool,
}

impl Connection for Wire {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        match (self.inside, byte) {
            (false, b'$') => self.inside = true,
            (true, b'#') => {
                self.inside = false;
                self.ends.push(self.text.len());
            }
            (true, _) => self.text.push(byte),
            // Acknowledgements and checksums.
            (false, _) => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Machine<H> = GdbStubStateMachine<'static, Guest<H>, Wire>;

/// The state machine, in whichever state it is.
pub(crate) struct Stub<H: Host> {
    machine: Option<Machine<H>>,
    frame: Vec<u8>,
}

impl<H: Host> Stub<H> {
    /// Size of gdbstub's own packet buffer. It also puts register and XML replies there.
    ///
    /// A `G` packet has to fit. A larger buffer would cost time: gdbstub searches all of it for a
    /// second `#` at each packet.
    const BUFFER: usize = {
        let registers = 2 * <H::Arch as Arch>::REGISTER_BYTES + 64;
        if registers > 2048 { registers } else { 2048 }
    };

    /// The longest packet that gdbstub takes, in bytes of body.
    pub(crate) const LONGEST: usize = Self::BUFFER - "$#00".len();

    pub(crate) fn new() -> Self {
        Self {
            machine: None,
            frame: Vec::new(),
        }
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.machine = None;
    }

    /// Feeds a packet as the client sent it, and hands gdbstub's replies to `reply`. There is none
    /// to a packet that resumes the guest.
    ///
    /// # Errors
    /// If gdbstub's state machine ended. There is no reply then.
    pub(crate) fn exchange(
        &mut self,
        guest: &mut Guest<H>,
        body: &[u8],
        reply: impl FnMut(&[u8]),
    ) -> Result<(), StubError> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.push(b'$');
        frame.extend_from_slice(body);
        frame.push(b'#');
        push_hex(
            &mut frame,
            body.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)),
        );
        let fed = self.feed(guest, &frame);
        self.frame = frame;
        self.machine = Some(take_replies(fed?, reply));
        Ok(())
    }

    fn feed(&mut self, guest: &mut Guest<H>, frame: &[u8]) -> Result<Machine<H>, StubError> {
        let mut machine = self.take(guest)?;
        for &byte in frame {
            // An error consumes the machine: the next use builds a new one.
            machine = match machine {
                GdbStubStateMachine::Idle(idle) => idle.incoming_data(guest, byte),
                GdbStubStateMachine::Running(running) => running.incoming_data(guest, byte),
                GdbStubStateMachine::CtrlCInterrupt(_) | GdbStubStateMachine::Disconnected(_) => {
                    return Err(StubError::State);
                }
            }
            .map_err(|error| StubError::Refused(error.to_string()))?;
        }
        Ok(machine)
    }

    /// Makes the reply for a stop. The machine goes from running to idle, from whichever state it
    /// is in.
    pub(crate) fn report<'a>(
        &mut self,
        guest: &mut Guest<H>,
        reason: MultiThreadStopReason<u64>,
        mut registers: impl Iterator<Item = (RegisterNumber, &'a [u8])>,
        reply: impl FnMut(&[u8]),
    ) -> Result<(), StubError> {
        if !matches!(self.machine, Some(GdbStubStateMachine::Running(_))) {
            // gdbstub reports a stop only after a resume. There was none for a client that asks
            // with `?`, nor when the session parsed the resume packet itself. The orders that
            // this fills in go nowhere.
            self.exchange(guest, b"vCont;c", |_| {})?;
            guest.orders.clear();
        }
        let Some(GdbStubStateMachine::Running(running)) = self.machine.take() else {
            return Err(StubError::State);
        };
        let machine = running
            .report_stop_with_regs(guest, reason, &mut registers)
            .map_err(|error| StubError::Refused(error.to_string()))?;
        self.machine = Some(take_replies(machine, reply));
        Ok(())
    }

    fn take(&mut self, guest: &mut Guest<H>) -> Result<Machine<H>, StubError> {
        match self.machine.take() {
            // A disconnected one has reported the guest's end. The client may still ask.
            Some(machine) if !matches!(machine, GdbStubStateMachine::Disconnected(_)) => {
                Ok(machine)
            }
            _ => GdbStub::builder(Wire::default())
                .packet_buffer_size(Self::BUFFER)
                .build()
                .map_err(|error| StubError::Build(error.to_string()))?
                .run_state_machine(guest)
                .map_err(|error| StubError::Build(error.to_string())),
        }
    }
}

fn take_replies<H: Host>(mut machine: Machine<H>, mut reply: impl FnMut(&[u8])) -> Machine<H> {
    let wire = match &mut machine {
        GdbStubStateMachine::Idle(state) => state.borrow_conn(),
        GdbStubStateMachine::Running(state) => state.borrow_conn(),
        GdbStubStateMachine::CtrlCInterrupt(state) => state.borrow_conn(),
        GdbStubStateMachine::Disconnected(state) => state.borrow_conn(),
    };
    let mut start = 0;
    for end in wire.ends.drain(..) {
        reply(wire.text.get(start..end).unwrap_or_default());
        start = end;
    }
    wire.text.clear();
    machine
}
