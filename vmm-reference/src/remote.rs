//! A small client of GDB's remote protocol, with which the demo, the tests and the benches drive our
//! stub or another one.
//!
//! It is strict: a reply with a wrong checksum is an error, and is not requested again.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The longest that a reply may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The longest reply: more than any request here gets.
const MAX_REPLY: usize = 1 << 20;

/// A connected client.
#[derive(Debug)]
pub struct RemoteClient<S> {
    stream: S,
    /// Bytes read and not used yet.
    buffer: Vec<u8>,
    start: usize,
    no_ack: bool,
}

impl RemoteClient<UnixStream> {
    /// Connects to a stub on a Unix socket, and switches acknowledgements off.
    ///
    /// # Errors
    /// If nothing listens there, or the listener is not a stub.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Self::over(stream)
    }
}

impl RemoteClient<TcpStream> {
    /// Connects to a stub on a loopback port, and switches acknowledgements off.
    ///
    /// # Errors
    /// If nothing listens there, or the listener is not a stub.
    pub fn tcp(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Self::over(stream)
    }
}

fn protocol(message: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}

fn checksum(payload: &[u8]) -> u8 {
    payload.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

impl<S: Read + Write> RemoteClient<S> {
    /// Begins a session over a connected stream: asks for the features, and switches acknowledgements off.
    ///
    /// # Errors
    /// If the peer is not a stub, or turns this client away ([`ErrorKind::ResourceBusy`]).
    pub fn over(stream: S) -> io::Result<Self> {
        let mut client = Self {
            stream,
            buffer: Vec::new(),
            start: 0,
            no_ack: false,
        };
        let features = "qSupported:multiprocess-;swbreak+;hwbreak+;vContSupported+";
        let supported = client.request(features)?;
        if let Some(why) = supported.strip_prefix("E.") {
            // Said in place of a reply, to a client that is turned away.
            return Err(io::Error::new(ErrorKind::ResourceBusy, why));
        }
        if supported.contains("QStartNoAckMode+") {
            let answer = client.request("QStartNoAckMode")?;
            if answer != "OK" {
                return Err(protocol(format!(
                    "the reply to QStartNoAckMode is {answer:?}"
                )));
            }
            client.no_ack = true;
        }
        Ok(client)
    }

    /// Sends a packet and waits for its reply. Console output before it is skipped.
    ///
    /// # Errors
    /// If the connection fails, or the reply is not one.
    pub fn request(&mut self, payload: &str) -> io::Result<String> {
        self.send(payload)?;
        self.reply()
    }

    /// Sends a packet and does not wait.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send(&mut self, payload: &str) -> io::Result<()> {
        let packet = format!("${payload}#{:02x}", checksum(payload.as_bytes()));
        self.stream.write_all(packet.as_bytes())
    }

    /// Sends a Ctrl-C.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn interrupt(&mut self) -> io::Result<()> {
        self.stream.write_all(&[3])
    }

    /// Waits for a reply, and skips console output.
    ///
    /// # Errors
    /// If the connection fails, or the reply is not one.
    pub fn reply(&mut self) -> io::Result<String> {
        loop {
            let payload = self.packet()?;
            // `O` and hex digits is console output; `OK` is not.
            if payload.starts_with('O') && payload != "OK" {
                continue;
            }
            return Ok(payload);
        }
    }

    /// Runs a `monitor` command. Returns what it printed.
    ///
    /// # Errors
    /// If the stub replies with an error, or the connection fails.
    pub fn monitor(&mut self, command: &str) -> io::Result<String> {
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(&format!("qRcmd,{hex}"))?;
        let mut text = Vec::new();
        loop {
            let payload = self.packet()?;
            match payload.strip_prefix('O') {
                _ if payload == "OK" => break,
                Some(hex) => text.extend(unhex(hex)?),
                None if payload.starts_with('E') => {
                    return Err(protocol(format!("monitor {command}: {payload}")));
                }
                // gdbserver and QEMU may reply with the text itself.
                None => {
                    text.extend(unhex(&payload)?);
                    break;
                }
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Reads guest memory.
    ///
    /// # Errors
    /// If the stub replies with an error, or the connection fails.
    pub fn read_memory(&mut self, address: u64, length: usize) -> io::Result<Vec<u8>> {
        let answer = self.request(&format!("m{address:x},{length:x}"))?;
        if answer.starts_with('E') {
            return Err(protocol(format!("memory at {address:#x}: {answer}")));
        }
        unhex(&answer)
    }

    /// Reads a little-endian 64-bit word of guest memory.
    ///
    /// # Errors
    /// As [`RemoteClient::read_memory`].
    pub fn read_u64(&mut self, address: u64) -> io::Result<u64> {
        let bytes = self.read_memory(address, 8)?;
        let bytes = <[u8; 8]>::try_from(bytes)
            .map_err(|bytes| protocol(format!("{} bytes at {address:#x}", bytes.len())))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads RIP: register 16, in QEMU's order.
    ///
    /// # Errors
    /// If the stub replies with an error, or the connection fails.
    pub fn read_rip(&mut self) -> io::Result<u64> {
        let answer = self.request("p10")?;
        register(&answer)
    }

    /// The next packet's payload. It is acknowledged unless acknowledgements are off.
    fn packet(&mut self) -> io::Result<String> {
        while self.byte()? != b'$' {}
        let mut payload = Vec::new();
        loop {
            match self.byte()? {
                b'#' => break,
                byte => payload.push(byte),
            }
            if payload.len() > MAX_REPLY {
                return Err(protocol("a reply of more than 1 MiB".to_owned()));
            }
        }
        let sum = [self.byte()?, self.byte()?];
        let said = std::str::from_utf8(&sum)
            .ok()
            .and_then(|sum| u8::from_str_radix(sum, 16).ok());
        if said != Some(checksum(&payload)) {
            return Err(protocol("a reply with a wrong checksum".to_owned()));
        }
        if !self.no_ack {
            self.stream.write_all(b"+")?;
        }
        String::from_utf8(payload).map_err(|_| protocol("a reply that is not text".to_owned()))
    }

    fn byte(&mut self) -> io::Result<u8> {
        if let Some(byte) = self.buffer.get(self.start) {
            self.start += 1;
            return Ok(*byte);
        }
        self.buffer.resize(4096, 0);
        let read = self.stream.read(&mut self.buffer)?;
        self.buffer.truncate(read);
        self.start = 1;
        self.buffer
            .first()
            .copied()
            .ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))
    }
}

/// Bytes from hex digits.
///
/// # Errors
/// If a character is not a hex digit.
pub fn unhex(hex: &str) -> io::Result<Vec<u8>> {
    let digits: Vec<u8> = hex
        .chars()
        .map(|digit| {
            digit
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        })
        .collect::<Option<_>>()
        .ok_or_else(|| protocol(format!("{hex:?} is not hexadecimal")))?;
    Ok(digits
        .chunks_exact(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| (byte << 4) | digit))
        .collect())
}

/// A register's value from its little-endian hex digits.
///
/// # Errors
/// If a character is not a hex digit.
pub fn register(hex: &str) -> io::Result<u64> {
    Ok(unhex(hex)?
        .iter()
        .take(8)
        .rev()
        .fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

/// The value of an expedited register in a `T` stop reply: `T05thread:01;10:…;`.
#[must_use]
pub fn expedited(reply: &str, number: u8) -> Option<u64> {
    reply.get(3..)?.split(';').find_map(|pair| {
        let (key, value) = pair.split_once(':')?;
        (u8::from_str_radix(key, 16) == Ok(number)).then(|| register(value).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expedited_registers_are_found_by_number_and_read_little_endian() {
        let reply = "T05thread:01;10:8877665544332211;07:0010000000000000;";
        assert_eq!(expedited(reply, 0x10), Some(0x1122_3344_5566_7788));
        assert_eq!(expedited(reply, 7), Some(0x1000));
        assert_eq!(expedited(reply, 6), None);
        assert_eq!(expedited("S05", 6), None);
    }

    #[derive(Debug)]
    struct Peer(io::Cursor<Vec<u8>>);

    impl Read for Peer {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            self.0.read(data)
        }
    }

    impl Write for Peer {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_client_that_is_turned_away_learns_why() {
        let said = Peer(io::Cursor::new(b"$E.one is attached#0f".to_vec()));
        let error = RemoteClient::over(said).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        assert_eq!(error.to_string(), "one is attached");
    }

    #[test]
    fn a_reply_with_a_wrong_checksum_is_an_error() {
        let error = RemoteClient::over(Peer(io::Cursor::new(b"+$OK#00".to_vec()))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
