//! gdbstub's state machine, fed with nothing that ends it.

use std::convert::Infallible;

use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{GdbStub, MultiThreadStopReason};
use thiserror::Error;

use crate::arch::Expedited;
use crate::filter::push_hex;
use crate::guest::Guest;
use crate::host::Host;

/// gdbstub gave up. It is as new now, and the session goes on.
#[derive(Debug, Error)]
pub(crate) enum StubError {
    #[error("gdbstub refused a packet: {0}")]
    Refused(String),
    #[error("gdbstub cannot be built: {0}")]
    Build(String),
    #[error("gdbstub is not in the state for this")]
    State,
}

/// Receives gdbstub's replies. Framing and acknowledgement are the filter's, so all that is kept
/// is what is between `$` and `#`.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    body: Vec<u8>,
    inside: bool,
}

impl Connection for Wire {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        match (self.inside, byte) {
            (false, b'$') => {
                // One reply to a packet: nothing that gdbstub serves here sends console output.
                self.body.clear();
                self.inside = true;
            }
            (true, b'#') => self.inside = false,
            (true, _) => self.body.push(byte),
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
    /// Of gdbstub's own packet buffer, which also is where it puts register and XML replies.
    buffer: usize,
    frame: Vec<u8>,
}

impl<H: Host> Stub<H> {
    /// For a guest with so many vCPUs.
    ///
    /// The longest packet that is fed names each vCPU with a range to step (`spell`): 40 bytes
    /// each. A larger buffer would cost time: gdbstub looks through all of it at each packet, for
    /// a second `#`.
    pub(crate) fn new(vcpus: u16) -> Self {
        Self {
            machine: None,
            buffer: 2048 + 40 * usize::from(vcpus),
            frame: Vec::new(),
        }
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.machine = None;
    }

    /// Feeds a packet of our own spelling; answers the reply, which is empty if there is none.
    pub(crate) fn exchange(
        &mut self,
        guest: &mut Guest<H>,
        body: &[u8],
    ) -> Result<Vec<u8>, StubError> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.push(b'$');
        frame.extend_from_slice(body);
        frame.push(b'#');
        push_hex(
            &mut frame,
            body.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)),
        );
        let result = self.feed(guest, &frame);
        self.frame = frame;
        result
    }

    fn feed(&mut self, guest: &mut Guest<H>, frame: &[u8]) -> Result<Vec<u8>, StubError> {
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
        let reply = take_reply(&mut machine);
        self.machine = Some(machine);
        Ok(reply)
    }

    /// Makes the reply for a stop. The machine goes from running to idle, whatever it was in.
    pub(crate) fn report(
        &mut self,
        guest: &mut Guest<H>,
        reason: MultiThreadStopReason<u64>,
        registers: &[Expedited],
    ) -> Result<Vec<u8>, StubError> {
        if matches!(self.machine, Some(GdbStubStateMachine::Disconnected(_))) {
            // The guest's end was told before.
            self.machine = None;
        }
        if !matches!(self.machine, Some(GdbStubStateMachine::Running(_))) {
            // A client that has just come, or a machine rebuilt after an error: as if it had
            // continued before.
            self.exchange(guest, b"vCont;c")?;
        }
        let Some(GdbStubStateMachine::Running(running)) = self.machine.take() else {
            return Err(StubError::State);
        };
        let mut registers = registers.iter().map(|(id, value)| (*id, value.as_slice()));
        let mut machine = running
            .report_stop_with_regs(guest, reason, &mut registers)
            .map_err(|error| StubError::Refused(error.to_string()))?;
        let reply = take_reply(&mut machine);
        self.machine = Some(machine);
        Ok(reply)
    }

    fn take(&mut self, guest: &mut Guest<H>) -> Result<Machine<H>, StubError> {
        match self.machine.take() {
            Some(machine) => Ok(machine),
            None => GdbStub::builder(Wire::default())
                .packet_buffer_size(self.buffer)
                .build()
                .map_err(|error| StubError::Build(error.to_string()))?
                .run_state_machine(guest)
                .map_err(|error| StubError::Build(error.to_string())),
        }
    }
}

fn take_reply<H: Host>(machine: &mut Machine<H>) -> Vec<u8> {
    let wire = match machine {
        GdbStubStateMachine::Idle(state) => state.borrow_conn(),
        GdbStubStateMachine::Running(state) => state.borrow_conn(),
        GdbStubStateMachine::CtrlCInterrupt(state) => state.borrow_conn(),
        GdbStubStateMachine::Disconnected(state) => state.borrow_conn(),
    };
    std::mem::take(&mut wire.body)
}
