//! ELF core files of a machine: `monitor dump`.
//!
//! The file is what QEMU's `dump-guest-memory` writes (QEMU, dump/dump.c and target/i386/arch_dump.c), so what reads
//! those reads these: gdb, and crash. It has
//! - for each vCPU a note NT_PRSTATUS with its general-purpose registers, and a note of QEMU's with segments and
//!   control registers;
//! - a segment for each mapping of the first vCPU's page tables, with its linear address, and then one for each range
//!   of RAM, whose linear address is the physical one. The segments of mappings refer to the contents of RAM in the
//!   file: nothing is written twice.
//!
//! Memory is read and written in pieces. Pieces of zeros become holes in the file.

use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;

use debug_stub::x86_64::{Mapping, RegisterFile, Segment};
use debug_stub::{GuestMemory, GuestPhysAddr, VcpuId};
use object::LittleEndian as LE;
use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, ELFOSABI_NONE, EM_X86_64, ET_CORE, EV_CURRENT, FileHeader64,
    Ident, NT_PRSTATUS, PF_R, PF_W, PF_X, PT_LOAD, PT_NOTE, ProgramFlags, ProgramHeader64,
    ProgramType,
};
use object::endian::{U16, U32, U64};
use object::pod::bytes_of;

/// How much memory is read at a time.
const CHUNK: usize = 64 << 10;
const PAGE: u64 = 4 << 10;
const FILE_HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
/// The most mappings that a file has. With the ranges of RAM it is less than PN_XNUM (0xffff).
pub(crate) const MOST_MAPPINGS: usize = 16 << 10;

/// What goes into a core file.
pub(crate) struct Contents<'a, M> {
    pub(crate) vcpus: &'a [(VcpuId, RegisterFile)],
    /// Guest-physical ranges.
    pub(crate) ram: &'a [Range<u64>],
    /// What is mapped where. What is not in RAM is left out.
    pub(crate) mappings: &'a [Mapping],
    pub(crate) memory: &'a M,
}

impl<M: GuestMemory> Contents<'_, M> {
    /// Writes all.
    ///
    /// # Errors
    /// If `file` cannot be written, or memory cannot be read.
    pub(crate) fn write_to(&self, file: &mut (impl Write + Seek)) -> io::Result<()> {
        let notes = self.notes();
        let mapped = self.mapped();
        let headers = 1 + mapped.len() + self.ram.len();
        let count = u16::try_from(headers).map_err(io::Error::other)?;
        let notes_at = FILE_HEADER + PROGRAM_HEADER * u64::from(count);
        let notes_length = u64::try_from(notes.len()).map_err(io::Error::other)?;
        let ram_at = (notes_at + notes_length).next_multiple_of(PAGE);

        file.write_all(bytes_of(&file_header(count)))?;
        file.write_all(bytes_of(&segment(
            PT_NOTE,
            ProgramFlags(0),
            notes_at,
            (0, 0),
            notes_length,
        )))?;
        for mapping in &mapped {
            let Some(at) = self.offset(ram_at, mapping.gpa.0) else {
                continue;
            };
            let mut flags = PF_R;
            if mapping.writable {
                flags |= PF_W;
            }
            if mapping.executable {
                flags |= PF_X;
            }
            let addresses = (mapping.start.0, mapping.gpa.0);
            file.write_all(bytes_of(&segment(
                PT_LOAD,
                flags,
                at,
                addresses,
                mapping.size,
            )))?;
        }
        let mut at = ram_at;
        for range in self.ram {
            let size = range.end - range.start;
            let addresses = (range.start, range.start);
            let flags = PF_R | PF_W | PF_X;
            file.write_all(bytes_of(&segment(PT_LOAD, flags, at, addresses, size)))?;
            at += size;
        }
        file.write_all(&notes)?;
        let padding = ram_at - notes_at - notes_length;
        file.write_all(&vec![
            0;
            usize::try_from(padding).map_err(io::Error::other)?
        ])?;
        for range in self.ram {
            self.write_ram(range, file)?;
        }
        Ok(())
    }

    /// The mappings of RAM, each cut to the range of RAM that it begins in.
    fn mapped(&self) -> Vec<Mapping> {
        let in_ram = |mapping: &Mapping| {
            let gpa = mapping.gpa.0;
            let range = self.ram.iter().find(|range| range.contains(&gpa))?;
            let size = mapping.size.min(range.end - gpa);
            Some(Mapping { size, ..*mapping })
        };
        let most = self.mappings.iter().take(MOST_MAPPINGS);
        most.filter_map(in_ram).collect()
    }

    /// Where the contents of a physical address are in the file.
    fn offset(&self, ram_at: u64, gpa: u64) -> Option<u64> {
        let mut at = ram_at;
        for range in self.ram {
            if range.contains(&gpa) {
                return Some(at + (gpa - range.start));
            }
            at += range.end - range.start;
        }
        None
    }

    fn write_ram(&self, range: &Range<u64>, file: &mut (impl Write + Seek)) -> io::Result<()> {
        let (mut chunk, zeros) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap_or(CHUNK);
            let piece = chunk.get_mut(..left.min(CHUNK)).unwrap_or_default();
            if self.memory.read_memory(GuestPhysAddr(at), piece) != piece.len() {
                let text = format!("guest-physical memory at {at:#x} cannot be read");
                return Err(io::Error::other(text));
            }
            let length = u64::try_from(piece.len()).map_err(io::Error::other)?;
            at += length;
            let is_last = at >= range.end;
            let is_zero = zeros.starts_with(piece);
            if is_last || !is_zero {
                file.write_all(piece)?;
            } else {
                // A hole. The last piece is written, so the file has its length.
                let skip = i64::try_from(length).map_err(io::Error::other)?;
                file.seek(SeekFrom::Current(skip))?;
            }
        }
        Ok(())
    }

    fn notes(&self) -> Vec<u8> {
        let mut notes = Vec::new();
        for (id, registers) in self.vcpus {
            note(&mut notes, "CORE", NT_PRSTATUS.0, &prstatus(*id, registers));
        }
        for (_, registers) in self.vcpus {
            note(&mut notes, "QEMU", 0, &qemu_state(registers));
        }
        notes
    }
}

fn file_header(segments: u16) -> FileHeader64<LE> {
    let half = |value| U16::new(LE, value);
    FileHeader64 {
        e_ident: Ident {
            magic: ELFMAG,
            class: ELFCLASS64,
            data: ELFDATA2LSB,
            version: EV_CURRENT,
            os_abi: ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(LE, ET_CORE),
        e_machine: U16::new(LE, EM_X86_64),
        e_version: U32::new(LE, EV_CURRENT.0.into()),
        e_entry: U64::new(LE, 0),
        e_phoff: U64::new(LE, FILE_HEADER),
        e_shoff: U64::new(LE, 0),
        e_flags: U32::new(LE, object::elf::FileFlags(0)),
        e_ehsize: half(64),
        e_phentsize: half(56),
        e_phnum: half(segments),
        e_shentsize: half(0),
        e_shnum: half(0),
        e_shstrndx: U16::new(LE, object::elf::SymbolSection(0)),
    }
}

fn segment(
    kind: ProgramType,
    flags: ProgramFlags,
    offset: u64,
    (linear, physical): (u64, u64),
    size: u64,
) -> ProgramHeader64<LE> {
    let word = |value| U64::new(LE, value);
    ProgramHeader64 {
        p_type: U32::new(LE, kind),
        p_flags: U32::new(LE, flags),
        p_offset: word(offset),
        p_vaddr: word(linear),
        p_paddr: word(physical),
        p_filesz: word(size),
        p_memsz: word(size),
        p_align: word(0),
    }
}

/// Appends a note: lengths, type, name and contents, padded to 4 bytes.
fn note(notes: &mut Vec<u8>, name: &str, kind: u32, contents: &[u8]) {
    // The name has its zero.
    let name_length = u32::try_from(name.len() + 1).unwrap_or_default();
    let length = u32::try_from(contents.len()).unwrap_or_default();
    for word in [name_length, length, kind] {
        notes.extend(word.to_le_bytes());
    }
    for part in [name.as_bytes(), contents] {
        notes.extend(part);
        if part == name.as_bytes() {
            notes.push(0);
        }
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus` of Linux on x86-64. The process id is the thread's number in GDB.
fn prstatus(id: VcpuId, registers: &RegisterFile) -> Vec<u8> {
    const LENGTH: usize = 336;
    const PID: usize = 32;
    const REGISTERS: usize = 112;
    let RegisterFile { core, special, .. } = registers;
    let mut status = vec![0; PID];
    status.extend((u32::from(id.0) + 1).to_le_bytes());
    status.resize(REGISTERS, 0);
    // `struct user_regs_struct`.
    for value in [
        core.r15,
        core.r14,
        core.r13,
        core.r12,
        core.rbp,
        core.rbx,
        core.r11,
        core.r10,
        core.r9,
        core.r8,
        core.rax,
        core.rcx,
        core.rdx,
        core.rsi,
        core.rdi,
        // orig_rax: no system call is restarted.
        u64::MAX,
        core.rip,
        special.cs.selector.into(),
        core.rflags,
        core.rsp,
        special.ss.selector.into(),
        special.fs.base,
        special.gs.base,
        special.ds.selector.into(),
        special.es.selector.into(),
        special.fs.selector.into(),
        special.gs.selector.into(),
    ] {
        status.extend(value.to_le_bytes());
    }
    status.resize(LENGTH, 0);
    status
}

/// QEMU's `QEMUCPUState`, version 1: crash finds a kernel's random base with it.
fn qemu_state(registers: &RegisterFile) -> Vec<u8> {
    const VERSION: u32 = 1;
    const LENGTH: u32 = 440;
    let RegisterFile {
        core,
        special,
        kernel_gs_base,
        ..
    } = registers;
    let mut state = Vec::new();
    for word in [VERSION, LENGTH] {
        state.extend(word.to_le_bytes());
    }
    for value in [
        core.rax,
        core.rbx,
        core.rcx,
        core.rdx,
        core.rsi,
        core.rdi,
        core.rsp,
        core.rbp,
        core.r8,
        core.r9,
        core.r10,
        core.r11,
        core.r12,
        core.r13,
        core.r14,
        core.r15,
        core.rip,
        core.rflags,
    ] {
        state.extend(value.to_le_bytes());
    }
    let table = |table: &debug_stub::x86_64::DescriptorTable| Segment {
        base: table.base,
        limit: table.limit.into(),
        ..Segment::default()
    };
    for segment in [
        special.cs,
        special.ds,
        special.es,
        special.fs,
        special.gs,
        special.ss,
        special.ldtr,
        special.tr,
        table(&special.gdtr),
        table(&special.idtr),
    ] {
        let attributes = segment.attributes();
        for word in [u32::from(segment.selector), segment.limit, attributes, 0] {
            state.extend(word.to_le_bytes());
        }
        state.extend(segment.base.to_le_bytes());
    }
    for value in [special.cr0, 0, special.cr2, special.cr3, special.cr4] {
        state.extend(value.to_le_bytes());
    }
    state.extend(kernel_gs_base.to_le_bytes());
    state
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use debug_stub::GuestVirtAddr;
    use object::read::elf::{FileHeader, ProgramHeader};

    use super::*;

    /// Two ranges of RAM, whose bytes are their page's number; pages from 0x40 are zero.
    struct Ram([Range<u64>; 2]);

    impl GuestMemory for Ram {
        fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
            let readable = |at| self.0.iter().any(|range| range.contains(&at));
            for (byte, at) in data.iter_mut().zip(address.0..) {
                if !readable(at) {
                    return usize::try_from(at - address.0).unwrap();
                }
                let page = at / PAGE;
                *byte = if (0x40..0x10_0000).contains(&page) {
                    0
                } else {
                    page.to_le_bytes()[0]
                };
            }
            data.len()
        }

        fn write_memory(&self, _: GuestPhysAddr, _: &[u8]) -> usize {
            0
        }
    }

    fn ram() -> Ram {
        Ram([0..0x8_1000, 0x1_0000_0000..0x1_0001_0000])
    }

    fn registers(rip: u64) -> RegisterFile {
        let mut file = RegisterFile::default();
        file.core.rip = rip;
        file.core.r15 = 15;
        file.special.cs.selector = 0x10;
        file.special.idtr.base = 0xffff_fe00_0000_0000;
        file.special.cr3 = 0x1000;
        file
    }

    fn mapping(start: u64, gpa: u64, size: u64) -> Mapping {
        Mapping {
            start: GuestVirtAddr(start),
            gpa: GuestPhysAddr(gpa),
            size,
            writable: false,
            executable: true,
            user: false,
        }
    }

    fn core(mappings: &[Mapping]) -> Vec<u8> {
        let ram = ram();
        let contents = Contents {
            vcpus: &[
                (VcpuId(0), registers(0x1234)),
                (VcpuId(1), registers(0x5678)),
            ],
            ram: &ram.0,
            mappings,
            memory: &ram,
        };
        let mut file = Cursor::new(Vec::new());
        contents.write_to(&mut file).unwrap();
        file.into_inner()
    }

    /// Linear and physical address, size, and offset in the file of each PT_LOAD.
    fn loads(file: &[u8]) -> Vec<(u64, u64, u64, u64)> {
        let header = FileHeader64::<LE>::parse(file).unwrap();
        let segments = header.program_headers(LE, file).unwrap();
        segments
            .iter()
            .filter(|segment| segment.p_type(LE) == PT_LOAD)
            .map(|segment| {
                let offset = segment.p_offset(LE);
                (
                    segment.p_vaddr(LE),
                    segment.p_paddr(LE),
                    segment.p_filesz(LE),
                    offset,
                )
            })
            .collect()
    }

    #[test]
    fn ram_is_in_segments_at_its_physical_addresses_with_holes_for_zeros() {
        let file = core(&[]);
        let loads = loads(&file);
        let [
            (0, 0, 0x8_1000, low),
            (0x1_0000_0000, 0x1_0000_0000, 0x1_0000, high),
        ] = loads[..]
        else {
            panic!("{loads:x?}");
        };
        assert_eq!(low % PAGE, 0);
        assert_eq!(high, low + 0x8_1000);
        let at = |offset: u64| file[usize::try_from(offset).unwrap()];
        assert_eq!(at(low + 0x3_f123), 0x3f);
        assert_eq!(at(low + 0x4_0000), 0);
        assert_eq!(at(high + 0x2000), 2);
        assert_eq!(file.len(), usize::try_from(high).unwrap() + 0x1_0000);
    }

    #[test]
    fn a_mapping_refers_to_the_ram_that_it_maps_and_others_are_left_out() {
        let file = core(&[
            mapping(0xffff_ffff_8000_0000, 0x2000, 0x1000),
            // Leaves RAM; is outside.
            mapping(0xffff_ffff_9000_0000, 0x8_0000, 0x20_0000),
            mapping(0xffff_ffff_a000_0000, 0xfee0_0000, 0x1000),
        ]);
        let loads = loads(&file);
        assert_eq!(loads.len(), 4, "{loads:x?}");
        let low = loads[2].3;
        assert_eq!(
            loads[0],
            (0xffff_ffff_8000_0000, 0x2000, 0x1000, low + 0x2000)
        );
        assert_eq!(
            loads[1],
            (0xffff_ffff_9000_0000, 0x8_0000, 0x1000, low + 0x8_0000)
        );
    }

    #[test]
    fn each_vcpu_has_its_notes() {
        let file = core(&[]);
        let header = FileHeader64::<LE>::parse(&*file).unwrap();
        let segments = header.program_headers(LE, &*file).unwrap();
        let mut notes = segments[0].notes(LE, &*file).unwrap().unwrap();
        let mut all = Vec::new();
        while let Some(note) = notes.next().unwrap() {
            all.push((note.name().to_vec(), note.n_type(LE), note.desc().to_vec()));
        }
        let word =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(all.len(), 4);
        for (index, rip) in [0x1234, 0x5678].into_iter().enumerate() {
            let (name, kind, status) = &all[index];
            assert_eq!((&name[..], kind.0, status.len()), (&b"CORE"[..], 1, 336));
            assert_eq!(usize::from(status[32]), index + 1);
            assert_eq!(word(status, 112), 15, "r15");
            assert_eq!(word(status, 112 + 16 * 8), rip);
            assert_eq!(word(status, 112 + 17 * 8), 0x10, "cs");
            let (name, kind, state) = &all[2 + index];
            assert_eq!((&name[..], kind.0, state.len()), (&b"QEMU"[..], 0, 440));
            assert_eq!(word(state, 8 + 16 * 8), rip);
            // The last table is IDTR.
            assert_eq!(word(state, 8 + 18 * 8 + 9 * 24 + 16), 0xffff_fe00_0000_0000);
            assert_eq!(word(state, 8 + 18 * 8 + 10 * 24 + 3 * 8), 0x1000, "cr3");
        }
    }

    #[test]
    fn memory_that_cannot_be_read_and_a_full_disk_are_errors() {
        let ram = ram();
        let absent = 0x8_0000..0x9_0000;
        let contents = Contents {
            vcpus: &[],
            ram: std::slice::from_ref(&absent),
            mappings: &[],
            memory: &ram,
        };
        let error = contents.write_to(&mut Cursor::new(Vec::new())).unwrap_err();
        assert!(error.to_string().contains("0x80000"), "{error}");
        let contents = Contents {
            ram: &ram.0,
            ..contents
        };
        let mut small = [0; 0x2000];
        contents
            .write_to(&mut Cursor::new(&mut small[..]))
            .unwrap_err();
    }
}
