//! A connection to the stub on which anything may be sent.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// `$body#sum`.
pub fn frame(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    [b"$", body, format!("#{sum:02x}").as_bytes()].concat()
}

/// A connection without a protocol.
pub struct Raw {
    stream: UnixStream,
}

impl Raw {
    pub fn new(stream: UnixStream) -> Self {
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).unwrap();
        stream.set_write_timeout(limit).unwrap();
        Self { stream }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .expect("the stub reads");
    }

    /// Sends, to a stub that may have hung up.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Reads until `end` has come. Returns everything read.
    #[track_caller]
    pub fn until(&mut self, end: &str) -> String {
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains(end) {
            let count = match self.stream.read(&mut buffer) {
                Ok(count) => count,
                Err(error) => panic!(
                    "{error}, waiting for {end:?} after {:?}",
                    String::from_utf8_lossy(&seen)
                ),
            };
            assert_ne!(
                count,
                0,
                "the stub hung up, waiting for {end:?} after {:?}",
                String::from_utf8_lossy(&seen)
            );
            seen.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Reads a byte at a time, at most `limit`; fewer if the stub sends no more for a short time.
    pub fn bytes(&mut self, limit: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        self.stream
            .set_read_timeout(Some(Duration::from_millis(5)))
            .unwrap();
        while seen.len() < limit {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) => seen.push(byte[0]),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        seen
    }
}

impl Drop for Raw {
    /// Hangs up, even if a process that is being started has a copy of the descriptor.
    fn drop(&mut self) {
        // The stub may have hung up first.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
