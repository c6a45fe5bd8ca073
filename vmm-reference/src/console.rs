//! From standard input to the serial port.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::devices::SerialDevice;
use crate::exit::{ExitEvent, ExitReason};

/// Ctrl-A, which QEMU users know.
const PREFIX: u8 = 0x01;
/// The most that is read at once. The serial port has no more room.
const CHUNK: usize = 64;

/// How often one event reads. The guest may take input as fast as it is read, and the loop has other events.
const READS: usize = 16;

/// Finds the console's own commands in what is typed.
#[derive(Clone, Copy, Debug, Default)]
struct Escapes {
    prefixed: bool,
}

/// What a typed byte means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// Goes to the guest.
    Guest(u8),
    /// The start of a command.
    Nothing,
    /// Ctrl-A x.
    Quit,
}

impl Escapes {
    /// Ctrl-A x ends; Ctrl-A before any other key, itself included, sends that key.
    fn key(&mut self, byte: u8) -> Key {
        let prefixed = std::mem::take(&mut self.prefixed);
        match byte {
            b'x' | b'X' if prefixed => Key::Quit,
            PREFIX if !prefixed => {
                self.prefixed = true;
                Key::Nothing
            }
            _ => Key::Guest(byte),
        }
    }
}

/// What the input is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// The event loop watches it.
    Watched,
    /// Input waits until the guest has taken what the serial port holds.
    Waiting,
    /// It ended.
    Closed,
}

/// The same input, from which a read does not block. epoll's report may be stale when the read comes: another
/// process that shares the terminal or the pipe may have been quicker. The flag belongs to the open file,
/// which that process shares too; therefore the file is opened again. Where that is not possible the input
/// stays as it is.
fn nonblocking(input: File) -> File {
    let reopens = input
        .metadata()
        .map(|metadata| metadata.file_type())
        .is_ok_and(|kind| kind.is_fifo() || kind.is_char_device());
    let again = || {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", input.as_raw_fd()))
    };
    match reopens.then(again) {
        Some(Ok(again)) => again,
        Some(Err(error)) => {
            tracing::debug!(%error, "standard input cannot be opened again");
            input
        }
        None => input,
    }
}

/// Feeds a serial port from a descriptor, no faster than the guest takes it.
#[derive(Debug)]
pub struct Console {
    input: File,
    state: Input,
    /// `true` if epoll accepts the descriptor. It does not accept regular files, which never block.
    pollable: bool,
    serial: Arc<SerialDevice>,
    /// `None` if every byte is for the guest, as from a pipe.
    escapes: Option<Escapes>,
    exit: ExitEvent,
}

impl Console {
    /// Standard input. If it is a `terminal`, Ctrl-A x ends the machine.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn stdin(serial: Arc<SerialDevice>, exit: ExitEvent, terminal: bool) -> io::Result<Self> {
        // A duplicate: reads must bypass the buffer of `io::Stdin`.
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let input = nonblocking(File::from(input));
        Ok(Self::new(input, serial, exit, terminal))
    }

    /// Any descriptor.
    #[must_use]
    pub fn new(input: File, serial: Arc<SerialDevice>, exit: ExitEvent, terminal: bool) -> Self {
        Self {
            input,
            state: Input::Watched,
            pollable: true,
            serial,
            escapes: terminal.then(Escapes::default),
            exit,
        }
    }

    /// Passes on what is there and fits. Returns the next state.
    fn pump(&mut self) -> Input {
        for _ in 0..READS {
            let mut buffer = [0; CHUNK];
            let room = self.serial.room().min(CHUNK);
            if room == 0 {
                return Input::Waiting;
            }
            let Some(space) = buffer.get_mut(..room) else {
                return Input::Waiting;
            };
            match self.input.read(space) {
                Ok(0) => return Input::Closed,
                Ok(count) => self.pass_on(space.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Input::Watched,
                Err(error) => {
                    tracing::warn!(%error, "standard input ended");
                    return Input::Closed;
                }
            }
            if self.pollable {
                // More would block; epoll says when there is more.
                return Input::Watched;
            }
        }
        // There may be more: at the next turn of the loop.
        let _ = self.serial.space_event().write(1);
        Input::Waiting
    }

    fn pass_on(&mut self, bytes: &[u8]) {
        let Some(escapes) = &mut self.escapes else {
            self.serial.input(bytes);
            return;
        };
        let mut keys = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match escapes.key(byte) {
                Key::Guest(byte) => keys.push(byte),
                Key::Nothing => {}
                Key::Quit => {
                    self.exit.request(ExitReason::ConsoleQuit);
                }
            }
        }
        self.serial.input(&keys);
    }

    fn go_to(&mut self, next: Input, ops: &mut EventOps<'_>) {
        if self.pollable {
            let watch = Events::new(&self.input, EventSet::IN);
            let changed = match (self.state, next) {
                (Input::Watched, Input::Waiting | Input::Closed) => ops.remove(watch),
                (Input::Waiting, Input::Watched) => ops.add(watch),
                _ => Ok(()),
            };
            if let Err(error) = changed {
                tracing::warn!(%error, "standard input is no longer watched");
            }
        }
        self.state = next;
    }
}

impl MutEventSubscriber for Console {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let space = Events::new(self.serial.space_event(), EventSet::IN);
        if let Err(error) = ops.add(space) {
            tracing::warn!(%error, "long input may stall");
        }
        if ops.add(Events::new(&self.input, EventSet::IN)).is_err() {
            self.pollable = false;
            self.state = self.pump();
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.serial.space_event().as_raw_fd() {
            // Reset the counter; a spurious wake-up does no harm.
            let _ = self.serial.space_event().read();
            if self.state == Input::Waiting {
                let next = if self.pollable {
                    Input::Watched
                } else {
                    self.pump()
                };
                self.go_to(next, ops);
            }
        } else {
            let next = self.pump();
            self.go_to(next, ops);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::SerialOutput;
    use crate::event_loop::EventLoop;
    use std::io::{Seek, Write};
    use vm_device::DevicePio;
    use vm_device::bus::PioAddress;

    fn read_byte(serial: &SerialDevice) -> Option<u8> {
        let base = PioAddress(0x3f8);
        let mut lsr = [0];
        serial.pio_read(base, 5, &mut lsr);
        (lsr[0] & 1 != 0).then(|| {
            let mut byte = [0];
            serial.pio_read(base, 0, &mut byte);
            byte[0]
        })
    }

    fn setup(input: File, terminal: bool) -> (EventLoop, Arc<SerialDevice>, ExitEvent) {
        let exit = ExitEvent::new().unwrap();
        let serial = Arc::new(SerialDevice::new(&SerialOutput::None).unwrap());
        let mut events = EventLoop::new(exit.clone()).unwrap();
        events.add(Box::new(Console::new(
            input,
            Arc::clone(&serial),
            exit.clone(),
            terminal,
        )));
        (events, serial, exit)
    }

    /// A guest that reads all it can, whenever the loop has nothing left to do.
    fn drain(events: &mut EventLoop, serial: &SerialDevice) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            while events.serve_once(Some(0)).unwrap() > 0 && serial.room() > 0 {}
            let before = all.len();
            while let Some(byte) = read_byte(serial) {
                all.push(byte);
            }
            if all.len() == before {
                return all;
            }
        }
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length)
            .map(|n| b'a' + u8::try_from(n % 26).unwrap())
            .collect()
    }

    #[test]
    fn a_long_paste_arrives_whole_and_in_order() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (mut events, serial, _) = setup(File::from(std::os::fd::OwnedFd::from(reader)), true);
        let sent = text(1000);
        writer.write_all(&sent).unwrap();
        assert_eq!(drain(&mut events, &serial), sent);
        // And the console still listens.
        writer.write_all(b"more").unwrap();
        assert_eq!(drain(&mut events, &serial), b"more");
    }

    #[test]
    fn a_regular_file_is_read_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        let sent = text(300);
        file.write_all(&sent).unwrap();
        file.rewind().unwrap();
        let (mut events, serial, exit) = setup(file, false);
        assert_eq!(drain(&mut events, &serial), sent);
        assert_eq!(
            exit.reason(),
            None,
            "the end of the input is not the end of the guest"
        );
    }

    #[test]
    fn an_input_without_an_end_leaves_the_loop_to_other_events() {
        let (mut events, serial, _) = setup(File::open("/dev/zero").unwrap(), false);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let guest = std::thread::spawn({
            let (serial, stop) = (Arc::clone(&serial), Arc::clone(&stop));
            move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = read_byte(&serial);
                }
            }
        });
        for _ in 0..100 {
            events.serve_once(Some(1)).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        guest.join().unwrap();
        // In loopback the port takes nothing. The input waits, and is not thrown away in a loop.
        serial.pio_write(PioAddress(0x3f8), 4, &[0x10]);
        for _ in 0..100 {
            events.serve_once(Some(0)).unwrap();
        }
    }

    #[test]
    fn a_read_of_an_input_that_another_process_has_emptied_does_not_block() {
        let (reader, _writer) = io::pipe().unwrap();
        let mut input = nonblocking(File::from(std::os::fd::OwnedFd::from(reader)));
        let error = input.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_input_that_ends_is_no_longer_watched() {
        let (reader, writer) = io::pipe().unwrap();
        let (mut events, serial, _) = setup(File::from(std::os::fd::OwnedFd::from(reader)), false);
        drop(writer);
        assert_eq!(drain(&mut events, &serial), b"");
        assert_eq!(
            events.serve_once(Some(0)).unwrap(),
            0,
            "no busy loop on the hang-up"
        );
    }

    #[test]
    fn ctrl_a_x_quits_on_a_terminal_only() {
        for terminal in [true, false] {
            let (reader, mut writer) = io::pipe().unwrap();
            let (mut events, serial, exit) =
                setup(File::from(std::os::fd::OwnedFd::from(reader)), terminal);
            writer.write_all(b"a\x01x").unwrap();
            let seen = drain(&mut events, &serial);
            if terminal {
                assert_eq!(exit.reason(), Some(ExitReason::ConsoleQuit));
                assert_eq!(seen, b"a");
            } else {
                assert_eq!(exit.reason(), None);
                assert_eq!(seen, b"a\x01x");
            }
        }
    }

    #[test]
    fn the_prefix_survives_a_split_and_sends_itself() {
        let mut escapes = Escapes::default();
        let keys = [b'x', 1, 1, b'x', 1, b'c', 3, 1].map(|byte| escapes.key(byte));
        assert_eq!(
            keys,
            [
                Key::Guest(b'x'),
                Key::Nothing,
                Key::Guest(1),
                Key::Guest(b'x'),
                Key::Nothing,
                Key::Guest(b'c'),
                Key::Guest(3),
                Key::Nothing,
            ]
        );
        assert_eq!(escapes.key(b'X'), Key::Quit);
    }
}
