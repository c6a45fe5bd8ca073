//! Kernels that are made for the tests, byte by byte: none of the code under test is used.

/// An ELF file to be.
#[derive(Clone, Debug)]
pub(super) struct Elf {
    pub(super) wide: bool,
    pub(super) machine: u16,
    pub(super) kind: u16,
    pub(super) entry: u64,
    pub(super) loads: Vec<Load>,
    /// One PT_NOTE segment each.
    pub(super) notes: Vec<Vec<u8>>,
    /// Further program headers: type only.
    pub(super) others: Vec<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) physical: u64,
    pub(super) linked: u64,
    pub(super) data: Vec<u8>,
    pub(super) memory_size: u64,
}

pub(super) fn load(physical: u64, data: &[u8]) -> Load {
    Load {
        physical,
        linked: physical,
        data: data.to_vec(),
        memory_size: data.len() as u64,
    }
}

/// A note, with its name and descriptor padded to four bytes.
pub(super) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [
        u32::try_from(name.len()).unwrap(),
        u32::try_from(desc.len()).unwrap(),
        kind,
    ] {
        out.extend(word.to_le_bytes());
    }
    for part in [name, desc] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

pub(super) fn pvh_note(entry: u64) -> Vec<u8> {
    note(b"Xen\0", 18, &entry.to_le_bytes())
}

impl Elf {
    /// A 64-bit kernel of one segment at 1 MiB, entered at its start.
    pub(super) fn wide() -> Self {
        Self {
            wide: true,
            machine: 62,
            kind: 2,
            entry: 0x10_0000,
            loads: vec![load(0x10_0000, b"\xf4kernel code")],
            notes: Vec::new(),
            others: Vec::new(),
        }
    }

    pub(super) fn narrow() -> Self {
        Self {
            wide: false,
            machine: 3,
            ..Self::wide()
        }
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let (header, program_header) = if self.wide { (64, 56) } else { (52, 32) };
        let count = self.loads.len() + self.notes.len() + self.others.len();
        let mut body_at = header + program_header * count;
        let mut headers = Vec::new();
        let mut body: Vec<u8> = Vec::new();
        let mut add = |kind: u32, physical: u64, linked: u64, data: &[u8], memory: u64| {
            let (offset, size) = (body_at as u64, data.len() as u64);
            if self.wide {
                headers.extend(kind.to_le_bytes());
                headers.extend(5_u32.to_le_bytes());
                for word in [offset, linked, physical, size, memory, 4] {
                    headers.extend(word.to_le_bytes());
                }
            } else {
                headers.extend(kind.to_le_bytes());
                for word in [offset, linked, physical, size, memory, 5, 4] {
                    headers.extend(u32::try_from(word).unwrap().to_le_bytes());
                }
            }
            body.extend(data);
            body_at += data.len();
        };
        for load in &self.loads {
            add(1, load.physical, load.linked, &load.data, load.memory_size);
        }
        for note in &self.notes {
            add(4, 0, 0, note, note.len() as u64);
        }
        for &kind in &self.others {
            add(kind, 0, 0, &[], 0);
        }

        let mut out = b"\x7fELF".to_vec();
        out.extend([if self.wide { 2 } else { 1 }, 1, 1, 0]);
        out.extend([0; 8]);
        out.extend(self.kind.to_le_bytes());
        out.extend(self.machine.to_le_bytes());
        out.extend(1_u32.to_le_bytes());
        for word in [self.entry, header as u64, 0] {
            if self.wide {
                out.extend(word.to_le_bytes());
            } else {
                out.extend(u32::try_from(word).unwrap().to_le_bytes());
            }
        }
        out.extend(0_u32.to_le_bytes());
        for half in [header, program_header, count, 0, 0, 0] {
            out.extend(u16::try_from(half).unwrap().to_le_bytes());
        }
        assert_eq!(out.len(), header);
        out.extend(headers);
        out.extend(body);
        out
    }
}

/// A multiboot header with these flags, and the fields that follow them.
pub(super) fn multiboot(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    [&[magic, flags, checksum], addresses]
        .concat()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// A tag of a multiboot 2 header, padded to 8 bytes.
pub(super) fn tag2(kind: u16, flags: u16, words: &[u32]) -> Vec<u8> {
    let size = u32::try_from(8 + 4 * words.len()).unwrap();
    let mut tag = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    tag.extend(size.to_le_bytes());
    tag.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    tag.resize(tag.len().next_multiple_of(8), 0);
    tag
}

/// A multiboot 2 header with these tags and an end tag.
pub(super) fn multiboot2(tags: &[Vec<u8>]) -> Vec<u8> {
    multiboot2_raw(0, &[tags.concat(), tag2(0, 0, &[])].concat(), None)
}

/// One with any bytes as its tags, and any length.
pub(super) fn multiboot2_raw(architecture: u32, tags: &[u8], length: Option<u32>) -> Vec<u8> {
    let magic = 0xe852_50d6_u32;
    let length = length.unwrap_or(u32::try_from(16 + tags.len()).unwrap());
    let checksum = [magic, architecture, length]
        .iter()
        .fold(0_u32, |sum, word| sum.wrapping_sub(*word));
    let mut header: Vec<u8> = [magic, architecture, length, checksum]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    header.extend(tags);
    header
}

/// A bzImage with one setup sector, and 0x400 bytes of code that prefers 2 MiB.
pub(super) fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image.extend((0..0x400_u32).map(|n| u8::try_from(n % 251).unwrap()));
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &0x40_u32.to_le_bytes());
    put(0x1fe, &0xaa55_u16.to_le_bytes());
    // A jump to 0x268: the header of protocol 2.12 ends there, and code begins.
    put(0x200, &[0xeb, 0x66]);
    put(0x264, &0x1a0_u32.to_le_bytes());
    put(0x268, &[0xcc; 0x20]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x007f_ffff_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &255_u32.to_le_bytes());
    put(0x258, &0x20_0000_u64.to_le_bytes());
    put(0x260, &0x10_0000_u32.to_le_bytes());
    image
}
