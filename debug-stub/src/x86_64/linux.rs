//! Finds a Linux kernel in a guest: `monitor kaslr`.
//!
//! A 64-bit kernel is mapped somewhere in one GiB of linear addresses (Documentation/arch/x86/x86_64/mm.rst, "kernel
//! text mapping"), at a multiple of 2 MiB, and nothing is mapped there below it. Its banner, "Linux version ...", is
//! in its read-only data. What is looked at is bounded: an entry for each 2 MiB, and 64 MiB behind the base.

use std::fmt::{self, Write};

use super::SpecialRegisters;
use super::paging::{PagingMode, read_virtual, translate};
use crate::{GuestMemory, GuestVirtAddr};

/// `__START_KERNEL_map`.
const START: u64 = 0xffff_ffff_8000_0000;
/// `KERNEL_IMAGE_SIZE` with `CONFIG_RANDOMIZE_BASE`.
const LENGTH: u64 = 1 << 30;
/// A kernel is aligned to it (`MIN_KERNEL_ALIGN`).
const ALIGN: u64 = 2 << 20;
/// Where it is linked to with the default `CONFIG_PHYSICAL_START`.
const LINKED: u64 = 0xffff_ffff_8100_0000;
/// With page-table isolation, the tables of user code lie a page behind the kernel's (`PTI_USER_PGTABLE_BIT`).
const USER_TABLES: u64 = 1 << 12;

/// How far the banner is looked for.
const SEARCHED: u64 = 64 << 20;
const CHUNK: usize = 64 << 10;
const PAGE: u64 = 4 << 10;
const BANNER: &[u8] = b"Linux version ";
/// Compilers align an array of this length so. It makes the search short.
const BANNER_ALIGN: usize = 16;
/// How much of the banner is shown.
const LONGEST: usize = 256;

/// A kernel that was found.
struct Kernel {
    base: u64,
    banner: String,
}

/// Writes where the kernel is, and a line for GDB that loads its symbols there.
///
/// # Errors
/// If `out` takes no more.
pub(super) fn write_kernel(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    out: &mut dyn Write,
) -> fmt::Result {
    if !matches!(
        PagingMode::of(special),
        PagingMode::FourLevel | PagingMode::FiveLevel
    ) {
        return writeln!(
            out,
            "the selected vCPU is not in 64-bit mode: a Linux kernel of 64 bits is not mapped yet"
        );
    }
    let kernels_tables = SpecialRegisters {
        cr3: special.cr3 & !USER_TABLES,
        ..*special
    };
    // The kernel's own come first: user code's map a part of it, which may begin later.
    let found = [&kernels_tables, special]
        .into_iter()
        .find_map(|special| find(special, memory).map(|kernel| (special, kernel)));
    let Some((special, Kernel { base, banner })) = found else {
        return writeln!(
            out,
            "no Linux kernel: nothing between {START:#x} and {:#x} is followed by its banner",
            START + LENGTH
        );
    };
    writeln!(out, "{banner}")?;
    write!(out, "the kernel is at {base:#x}")?;
    if let Ok(found) = translate(special, memory, GuestVirtAddr(base)) {
        write!(out, ", physical {}", found.gpa)?;
    }
    let offset = base.wrapping_sub(LINKED);
    writeln!(
        out,
        "; by default it is linked to {LINKED:#x}, an offset of {offset:#x}"
    )?;
    writeln!(out, "symbol-file -o {offset:#x} vmlinux")
}

/// The first mapping, if a banner follows it.
fn find(special: &SpecialRegisters, memory: &impl GuestMemory) -> Option<Kernel> {
    let blocks = (START..START + LENGTH).step_by(usize::try_from(ALIGN).ok()?);
    let mut mapped = blocks.filter(|at| translate(special, memory, GuestVirtAddr(*at)).is_ok());
    let base = mapped.next()?;
    let banner = banner(special, memory, base)?;
    Some(Kernel { base, banner })
}

fn banner(special: &SpecialRegisters, memory: &impl GuestMemory, base: u64) -> Option<String> {
    let mut chunk = vec![0; CHUNK];
    let mut at = base;
    let end = base + SEARCHED.min(START + LENGTH - base);
    while at < end {
        let read = read_virtual(special, memory, GuestVirtAddr(at), &mut chunk);
        let data = chunk.get(..read).unwrap_or_default();
        let places = data.chunks(BANNER_ALIGN).zip((at..).step_by(BANNER_ALIGN));
        for (bytes, place) in places {
            if bytes.starts_with(BANNER) {
                if let Some(text) = text_at(special, memory, place) {
                    return Some(text);
                }
            }
        }
        // Whole pages were read, up to one that is not mapped.
        at += match u64::try_from(read) {
            Ok(read) if read >= PAGE => read,
            _ => PAGE,
        };
    }
    None
}

/// The banner here, if a version follows: printable characters up to the end of the line.
fn text_at(special: &SpecialRegisters, memory: &impl GuestMemory, at: u64) -> Option<String> {
    let mut bytes = [0; LONGEST];
    let read = read_virtual(special, memory, GuestVirtAddr(at), &mut bytes);
    let text: String = bytes
        .get(..read)?
        .iter()
        .take_while(|byte| byte.is_ascii_graphic() || **byte == b' ')
        .map(|byte| char::from(*byte))
        .collect();
    let version = text.as_bytes().get(BANNER.len())?;
    version.is_ascii_digit().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestPhysAddr;
    use crate::x86_64::bits::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME};

    const RAM: usize = 8 << 20;

    struct Ram(Vec<u8>);

    impl GuestMemory for Ram {
        fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
            let at = usize::try_from(address.0).unwrap().min(RAM);
            let length = data.len().min(RAM - at);
            data[..length].copy_from_slice(&self.0[at..at + length]);
            length
        }

        fn write_memory(&self, _: GuestPhysAddr, _: &[u8]) -> usize {
            0
        }
    }

    impl Ram {
        fn put(&mut self, at: usize, entry: u64) {
            self.0[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }

        fn say(&mut self, at: usize, text: &str) {
            self.0[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
    }

    /// A kernel of 4 MiB at physical 4 MiB, mapped `block` times 2 MiB behind the start. Tables are at `tables`.
    fn kernel(tables: usize, block: usize) -> Ram {
        let mut ram = Ram(vec![0; RAM]);
        let next = |number: usize| u64::try_from(tables + number * 0x1000).unwrap() | 3;
        // Where the tables of user code would be.
        ram.put(tables + 0xff8, next(2));
        ram.put(tables + 0x2ff0, next(3));
        ram.put(tables + 0x3000 + block * 8, 0x40_0083);
        ram.put(tables + 0x3000 + block * 8 + 8, 0x60_0083);
        ram
    }

    fn special(cr3: u64) -> SpecialRegisters {
        SpecialRegisters {
            cr0: CR0_PE | CR0_PG,
            cr3,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..SpecialRegisters::default()
        }
    }

    fn said(special: &SpecialRegisters, ram: &Ram) -> String {
        let mut text = String::new();
        write_kernel(special, ram, &mut text).unwrap();
        text
    }

    #[test]
    fn a_kernel_at_a_random_base_is_found_and_gdb_gets_its_line() {
        let mut ram = kernel(0x2000, 0x123);
        // In the second block, and not at its beginning.
        ram.say(
            0x61_2340,
            "Linux version 6.1.0-18-amd64 (who@where) #1 SMP\n\0",
        );
        assert_eq!(
            said(&special(0x2000), &ram),
            "Linux version 6.1.0-18-amd64 (who@where) #1 SMP\n\
             the kernel is at 0xffffffffa4600000, physical 0x400000; by default it is linked to \
             0xffffffff81000000, an offset of 0x23600000\n\
             symbol-file -o 0x23600000 vmlinux\n"
        );
    }

    #[test]
    fn in_user_code_the_kernels_own_tables_are_read() {
        let mut ram = kernel(0x2000, 8);
        ram.say(0x40_0010, "Linux version 5.10 \x1b[31m");
        // User code's tables map the entry code only, which begins later.
        ram.put(0x3ff8, 0x6003);
        ram.put(0x6ff0, 0x7003);
        ram.put(0x7000 + 9 * 8, 0x40_0083);
        let text = said(&special(0x3000), &ram);
        assert!(
            text.starts_with("Linux version 5.10 \nthe kernel is at 0xffffffff81000000,"),
            "{text}"
        );
        assert!(text.ends_with("symbol-file -o 0x0 vmlinux\n"), "{text}");
        // Nothing of the guest's reaches the terminal as a control sequence.
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn without_page_table_isolation_the_tables_may_be_on_any_page() {
        let mut ram = kernel(0x1000, 8);
        ram.say(0x40_0010, "Linux version 6.12.0");
        assert!(said(&special(0x1000), &ram).starts_with("Linux version 6.12.0\n"));
    }

    #[test]
    fn what_is_no_kernel_is_refused_in_bounded_time() {
        let none = "no Linux kernel: nothing between 0xffffffff80000000 and 0xffffffffc0000000 is followed by its \
                    banner\n";
        // Nothing mapped; a mapping without a banner; a banner without a version.
        assert_eq!(said(&special(0x100_0000), &kernel(0x2000, 3)), none);
        assert_eq!(said(&special(0x2000), &kernel(0x2000, 3)), none);
        let mut ram = kernel(0x2000, 3);
        ram.say(0x40_0020, "Linux version %s");
        assert_eq!(said(&special(0x2000), &ram), none);
        // Tables that point to themselves map everything.
        let mut ram = Ram(vec![0; RAM]);
        for entry in 0..512 {
            ram.put(0x2000 + entry * 8, 0x2003);
        }
        assert_eq!(said(&special(0x2000), &ram), none);
        let real_mode = SpecialRegisters::default();
        assert!(said(&real_mode, &ram).contains("not in 64-bit mode"));
    }
}
