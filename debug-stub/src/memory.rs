//! Guest memory as the client addresses it: linear addresses of the selected vCPU, or physical
//! ones (`Qqemu.PhyMemMode:1`).

use crate::address::{GuestPhysAddr, GuestVirtAddr};
use crate::host::GuestMemory;
use crate::x86_64::{SpecialRegisters, read_virtual, translate};

/// How far `qSearch:memory` and `qCRC` go in one packet. It bounds how long a client can keep the
/// event loop busy: about a tenth of a second.
pub(crate) const SCAN_LIMIT: u64 = 64 << 20;

/// Bytes read at a time by a scan.
const SCAN_CHUNK: usize = 64 << 10;

/// How an address is to be understood.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one lives on the stack while a packet is served: an allocation would cost more"
)]
pub(crate) enum Space {
    /// Guest-physical.
    Physical,
    /// Linear, through the tables that these registers point to.
    Linear(SpecialRegisters),
}

impl Space {
    /// Reads; answers how many bytes from the start could be read.
    pub(crate) fn read(&self, memory: &impl GuestMemory, address: u64, data: &mut [u8]) -> usize {
        let length = data.len();
        let done = match self {
            Self::Physical => memory.read_memory(GuestPhysAddr(address), data),
            Self::Linear(special) => read_virtual(special, memory, GuestVirtAddr(address), data),
        };
        done.min(length)
    }

    /// Writes all of `data`, or answers false. What can be known before is checked before:
    /// unless all of the range is mapped to RAM, nothing is written.
    pub(crate) fn write(&self, memory: &impl GuestMemory, address: u64, data: &[u8]) -> bool {
        let Some(pieces) = self.pieces(memory, address, data.len()) else {
            return false;
        };
        let mut rest = data;
        for (gpa, length) in pieces {
            let Some((piece, tail)) = rest.split_at_checked(length) else {
                return false;
            };
            if memory.write_memory(gpa, piece) != length {
                return false;
            }
            rest = tail;
        }
        true
    }

    /// Where an address is in guest-physical memory, if that is RAM which can be written.
    pub(crate) fn writable(
        &self,
        memory: &impl GuestMemory,
        address: u64,
    ) -> Option<GuestPhysAddr> {
        let gpa = match self {
            Self::Physical => GuestPhysAddr(address),
            Self::Linear(special) => translate(special, memory, GuestVirtAddr(address)).ok()?.gpa,
        };
        // To write what is there already is the one way to learn that the memory takes it.
        let mut byte = [0];
        let works = memory.read_memory(gpa, &mut byte) == 1 && memory.write_memory(gpa, &byte) == 1;
        works.then_some(gpa)
    }

    /// The physical pieces of a range; `None` unless all of it is RAM.
    fn pieces(
        &self,
        memory: &impl GuestMemory,
        address: u64,
        length: usize,
    ) -> Option<Vec<(GuestPhysAddr, usize)>> {
        let mut pieces = Vec::new();
        let mut at = address;
        let mut left = length;
        while left != 0 {
            let (gpa, run) = match self {
                Self::Physical => (GuestPhysAddr(at), left),
                Self::Linear(special) => {
                    let found = translate(special, memory, GuestVirtAddr(at)).ok()?;
                    let in_page = usize::try_from(found.bytes_to_page_end()).unwrap_or(usize::MAX);
                    (found.gpa, left.min(in_page))
                }
            };
            let mut present = vec![0; run];
            if memory.read_memory(gpa, &mut present) != run {
                return None;
            }
            pieces.push((gpa, run));
            left -= run;
            if left != 0 {
                at = at.checked_add(u64::try_from(run).ok()?)?;
            }
        }
        Some(pieces)
    }

    /// Reads `length` bytes piece by piece into `each`, until it answers false.
    ///
    /// Answers false if some byte cannot be read.
    fn scan(
        &self,
        memory: &impl GuestMemory,
        address: u64,
        length: u64,
        mut each: impl FnMut(u64, &[u8]) -> bool,
    ) -> bool {
        let mut buffer = vec![0; SCAN_CHUNK];
        let mut done = 0u64;
        while done < length {
            let want = usize::try_from(length - done).map_or(SCAN_CHUNK, |n| n.min(SCAN_CHUNK));
            let Some(at) = address.checked_add(done) else {
                return false;
            };
            let Some(chunk) = buffer.get_mut(..want) else {
                return false;
            };
            let read = self.read(memory, at, chunk);
            if !each(at, chunk.get(..read).unwrap_or_default()) {
                return true;
            }
            if read < want {
                return false;
            }
            done += u64::try_from(read).unwrap_or(u64::MAX);
        }
        true
    }

    /// The first place in the range where `pattern` is; `Err` if memory could not be read before
    /// one was found.
    pub(crate) fn search(
        &self,
        memory: &impl GuestMemory,
        address: u64,
        length: u64,
        pattern: &[u8],
    ) -> Result<Option<u64>, ()> {
        let mut matcher = Matcher::new(pattern);
        let mut found = None;
        let whole = self.scan(memory, address, length, |at, chunk| {
            for (byte, offset) in chunk.iter().zip(0u64..) {
                if let Some(behind) = matcher.push(*byte) {
                    found = Some(at.wrapping_add(offset).wrapping_sub(behind));
                    return false;
                }
            }
            true
        });
        if whole { Ok(found) } else { Err(()) }
    }

    /// GDB's checksum of the range ("qCRC"); `None` if some byte cannot be read.
    pub(crate) fn crc(&self, memory: &impl GuestMemory, address: u64, length: u64) -> Option<u32> {
        let mut crc = u32::MAX;
        let whole = self.scan(memory, address, length, |_, chunk| {
            for &byte in chunk {
                let [_, _, _, top] = crc.to_le_bytes();
                let entry = CRC_TABLE.get(usize::from(top ^ byte)).copied();
                crc = (crc << 8) ^ entry.unwrap_or_default();
            }
            true
        });
        whole.then_some(crc)
    }
}

/// CRC-32 with the polynomial 0x04c11db7, most significant bit first, starting from all ones and
/// not inverted at the end (GDB manual, "qCRC").
const CRC_TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut index = 0u32;
    let mut rest: &mut [u32] = &mut table;
    while let [entry, tail @ ..] = rest {
        let mut crc = index << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc << 1) ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 };
            bit += 1;
        }
        *entry = crc;
        index += 1;
        rest = tail;
    }
    table
};

/// Knuth, Morris and Pratt's search: one look at each byte, whatever pattern a client sends.
struct Matcher<'a> {
    pattern: &'a [u8],
    /// For each prefix, the length of its longest proper prefix that is a suffix of it, too.
    fallback: Vec<usize>,
    matched: usize,
}

impl<'a> Matcher<'a> {
    fn new(pattern: &'a [u8]) -> Self {
        let mut matcher = Self {
            pattern,
            fallback: vec![0],
            matched: 0,
        };
        for &byte in pattern.iter().skip(1) {
            matcher.advance(byte);
            matcher.fallback.push(matcher.matched);
        }
        matcher.matched = 0;
        matcher
    }

    fn advance(&mut self, byte: u8) {
        while self.matched > 0 && self.pattern.get(self.matched) != Some(&byte) {
            self.matched = self.fallback.get(self.matched - 1).copied().unwrap_or(0);
        }
        if self.pattern.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
    }

    /// Takes the next byte; at a match answers how far back its first byte was.
    fn push(&mut self, byte: u8) -> Option<u64> {
        self.advance(byte);
        if self.matched < self.pattern.len() {
            return None;
        }
        u64::try_from(self.matched.checked_sub(1)?).ok()
    }
}

#[cfg(test)]
mod tests;
