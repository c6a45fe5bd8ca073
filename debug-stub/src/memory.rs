//! Guest memory as the client addresses it: virtual addresses of the selected vCPU, or physical
//! ones (`Qqemu.PhyMemMode:1`).

use crate::address::{GuestPhysAddr, GuestVirtAddr};
use crate::arch::{Arch, Mapped};
use crate::host::GuestMemory;

/// How far `qSearch:memory` and `qCRC` go in one packet. It bounds how long a client can keep the
/// event loop busy: about a tenth of a second.
pub(crate) const SCAN_LIMIT: u64 = 64 << 20;

/// Bytes that a scan reads at a time.
const SCAN_CHUNK: usize = 64 << 10;

/// What the client's addresses mean.
#[derive(Debug)]
pub(crate) enum Space<A: Arch> {
    /// They are guest-physical.
    Physical,
    /// They are virtual addresses of this address space.
    Virtual(A::AddressSpace),
}

impl<A: Arch> Space<A> {
    /// Translates an address. Returns `None` where nothing is mapped.
    pub(crate) fn translate(&self, memory: &impl GuestMemory, address: u64) -> Option<Mapped> {
        match self {
            Self::Physical => Some(Mapped {
                gpa: GuestPhysAddr(address),
                length: u64::MAX - address,
            })
            .filter(|mapped| mapped.length != 0),
            Self::Virtual(space) => A::translate(space, memory, GuestVirtAddr(address)),
        }
    }

    /// The contiguous physical piece that begins `done` bytes after `address`, of at most
    /// `length` bytes. `None` where nothing is mapped and at the end of the address space.
    fn piece(
        &self,
        memory: &impl GuestMemory,
        address: u64,
        done: usize,
        length: usize,
    ) -> Option<(GuestPhysAddr, usize)> {
        let at = address.checked_add(u64::try_from(done).ok()?)?;
        let mapped = self.translate(memory, at)?;
        let contiguous = usize::try_from(mapped.length).unwrap_or(usize::MAX);
        Some((mapped.gpa, length.min(contiguous)))
    }

    /// Reads. Returns the number of bytes from the start that could be read.
    pub(crate) fn read(&self, memory: &impl GuestMemory, address: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some((gpa, length)) = self.piece(memory, address, done, rest.len()) else {
                break;
            };
            let read = memory.read_memory(gpa, rest.get_mut(..length).unwrap_or_default());
            done += read.min(length);
            if read < length {
                break;
            }
        }
        done
    }

    /// Writes all of `data`. Returns `false` if that is not possible; if some of the range is not
    /// mapped to RAM, nothing is written then.
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

    /// Returns where `length` bytes are in guest-physical memory, if they are contiguous there
    /// and RAM that can be written.
    pub(crate) fn writable(
        &self,
        memory: &impl GuestMemory,
        address: u64,
        length: usize,
    ) -> Option<GuestPhysAddr> {
        let mapped = self.translate(memory, address)?;
        if u64::try_from(length).ok()? > mapped.length {
            return None;
        }
        // Writing what is there already is the one way to learn that memory can be written.
        let mut bytes = vec![0; length];
        let works = memory.read_memory(mapped.gpa, &mut bytes) == length
            && memory.write_memory(mapped.gpa, &bytes) == length;
        works.then_some(mapped.gpa)
    }

    /// Returns the physical pieces of a range; `None` unless all of it is RAM.
    fn pieces(
        &self,
        memory: &impl GuestMemory,
        address: u64,
        length: usize,
    ) -> Option<Vec<(GuestPhysAddr, usize)>> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < length {
            let (gpa, run) = self.piece(memory, address, done, length - done)?;
            let mut present = vec![0; run];
            if memory.read_memory(gpa, &mut present) != run {
                return None;
            }
            pieces.push((gpa, run));
            done += run;
        }
        Some(pieces)
    }

    /// Hands `length` bytes to `each`, chunk by chunk, until it returns `false`.
    ///
    /// Returns `false` if some byte cannot be read.
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

    /// Returns the first place in the range where `pattern` is; `Err` if memory could not be read
    /// before one was found.
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

    /// Returns GDB's checksum of the range ("qCRC"); `None` if some byte cannot be read.
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

/// Knuth, Morris and Pratt's search: its time is linear for any pattern that a client sends.
struct Matcher<'a> {
    pattern: &'a [u8],
    /// For each prefix, the length of its longest proper prefix that is also its suffix.
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

    /// Takes the next byte. At a match, returns how far back its first byte was.
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
