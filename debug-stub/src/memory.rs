//! Guest memory as the client addresses it: virtual addresses of the selected vCPU, or physical
//! ones (`Qqemu.PhyMemMode:1`).

use crate::address::{GuestPhysAddr, GuestVirtAddr};
use crate::arch::{Arch, Mapped};
use crate::host::GuestMemory;

/// How far a scan goes at once. It bounds how long a client can keep the event loop busy: some milliseconds, and
/// a second in an emulated machine.
pub(crate) const SLICE: u64 = 1 << 20;

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
    pub(crate) fn piece(
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
}

/// What a scan looks for.
#[derive(Debug)]
enum Aim {
    Search(Matcher),
    Crc(u32),
}

/// What a scan has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scanned {
    /// The first place where the pattern is.
    Found(u64),
    /// The pattern is nowhere in the range.
    NotFound,
    /// GDB's checksum of the range.
    Crc(u32),
    /// The byte at this address cannot be read. What is before it has been scanned.
    Unreadable(u64),
}

/// A search or a checksum over a range of any length, which goes on slice by slice. The guest is stopped until
/// it is over.
#[derive(Debug)]
pub(crate) struct Scan<A: Arch> {
    space: Space<A>,
    address: u64,
    length: u64,
    aim: Aim,
}

impl<A: Arch> Scan<A> {
    /// `qSearch:memory`.
    pub(crate) fn search(space: Space<A>, address: u64, length: u64, pattern: Vec<u8>) -> Self {
        Self {
            space,
            address,
            length,
            aim: Aim::Search(Matcher::new(pattern)),
        }
    }

    /// `qCRC`.
    pub(crate) fn crc(space: Space<A>, address: u64, length: u64) -> Self {
        Self {
            space,
            address,
            length,
            aim: Aim::Crc(u32::MAX),
        }
    }

    /// Goes on for `slice` bytes. Returns `None` if there is more.
    pub(crate) fn go_on(&mut self, memory: &impl GuestMemory, slice: u64) -> Option<Scanned> {
        let mut buffer = vec![0; SCAN_CHUNK];
        let mut left = slice;
        while self.length > 0 {
            if left == 0 {
                return None;
            }
            let want = usize::try_from(self.length.min(left)).unwrap_or(SCAN_CHUNK);
            let chunk = buffer.get_mut(..want.min(SCAN_CHUNK)).unwrap_or_default();
            let read = self.space.read(memory, self.address, chunk);
            let whole = read == chunk.len();
            let bytes = chunk.get(..read).unwrap_or_default();
            match &mut self.aim {
                Aim::Search(matcher) => {
                    for (byte, offset) in bytes.iter().zip(0u64..) {
                        if let Some(behind) = matcher.push(*byte) {
                            let at = self.address.wrapping_add(offset);
                            return Some(Scanned::Found(at.wrapping_sub(behind)));
                        }
                    }
                }
                Aim::Crc(crc) => {
                    for &byte in bytes {
                        let [_, _, _, top] = crc.to_le_bytes();
                        let entry = CRC_TABLE.get(usize::from(top ^ byte)).copied();
                        *crc = (*crc << 8) ^ entry.unwrap_or_default();
                    }
                }
            }
            let read = u64::try_from(read).unwrap_or(u64::MAX);
            self.length -= read;
            left -= read;
            match self.address.checked_add(read) {
                Some(next) if whole => self.address = next,
                _ if whole && self.length == 0 => {}
                _ => return Some(Scanned::Unreadable(self.address.saturating_add(read))),
            }
        }
        Some(match self.aim {
            Aim::Search(_) => Scanned::NotFound,
            Aim::Crc(crc) => Scanned::Crc(crc),
        })
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
#[derive(Debug)]
struct Matcher {
    pattern: Vec<u8>,
    /// For each prefix, the length of its longest proper prefix that is also its suffix.
    fallback: Vec<usize>,
    matched: usize,
}

impl Matcher {
    fn new(pattern: Vec<u8>) -> Self {
        let mut matcher = Self {
            pattern,
            fallback: vec![0],
            matched: 0,
        };
        let mut at = 1;
        while let Some(&byte) = matcher.pattern.get(at) {
            matcher.advance(byte);
            matcher.fallback.push(matcher.matched);
            at += 1;
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
