//! Small guest programs for the demo, the tests and the benches, assembled from `guests/` at
//! build time. Each is an ELF64 file with a PVH note, symbols and line numbers; [`MODES`] is an ELF32 file with a
//! multiboot header.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use object::LittleEndian as LE;
use object::read::elf::{FileHeader, Sym};

use crate::loader::ImageFile;

/// A guest program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its name, and its source's.
    pub name: &'static str,
    /// The ELF file.
    pub elf: &'static [u8],
}

/// A 1 kHz local-APIC timer (`timer_handler`, `ticks`) beside a loop (`loop_start` to `loop_end`,
/// `iterations`, `flags_image`). Prints "timer guest".
pub static TIMER: Guest = Guest {
    name: "timer",
    elf: include_bytes!(concat!(env!("OUT_DIR"), "/timer.elf")),
};

/// Reads TSC and kvmclock in a loop (`tsc`, `clock`, `max_tsc`, `max_clock`, `backwards`, `iterations`), beside
/// a local-APIC timer at 1 kHz (`ticks`) and the 8254 at 100 Hz (`pit_ticks`). Prints "clocks guest".
pub static CLOCKS: Guest = Guest {
    name: "clocks",
    elf: include_bytes!(concat!(env!("OUT_DIR"), "/clocks.elf")),
};

/// Two processors in one function (`shared_work`), each with a counter (`bsp_counter`,
/// `ap_counter`). Prints "smp guest" and, from the second, "second cpu".
pub static SMP: Guest = Guest {
    name: "smp",
    elf: include_bytes!(concat!(env!("OUT_DIR"), "/smp.elf")),
};

/// A processor that sleeps (`ap_halt`, `ap_woken`, `ap_counted`, `wakes`, `handled`, `flags_image`),
/// and one that does what a debugger writes into `command`: starts it, wakes it, or says "awake".
/// Prints "sleep guest" and, from the second, "second cpu".
pub static SLEEP: Guest = Guest {
    name: "sleep",
    elf: include_bytes!(concat!(env!("OUT_DIR"), "/sleep.elf")),
};

/// Ends, fails or hangs as its command line says: `poweroff`, `reset`, `exit=N`, `triple`,
/// `emulation`, `halt`, `spin` (`spins`) or `echo`. Prints "fault guest".
pub static FAULT: Guest = Guest {
    name: "fault",
    elf: include_bytes!(concat!(env!("OUT_DIR"), "/fault.elf")),
};

/// Resets its processor by five means, comes back each time, and ends with debug-exit code 5. Prints "reset
/// guest" at each boot.
pub static RESET: Guest = Guest {
    name: "reset",
    elf: include_bytes!(concat!(env!("OUT_DIR"), "/reset.elf")),
};

/// Runs tables of operations that the host has written into its memory, on up to 32 processors:
/// for the conformance suite, whose `wire` module has the format. Prints "script guest".
pub static SCRIPT: Guest = Guest {
    name: "script",
    elf: include_bytes!(concat!(env!("OUT_DIR"), "/script.elf")),
};

/// Goes through 32-bit (`double`, `doubled`, `leave32`), 16-bit (`protected16`) and real mode (`real16`, `real_work`,
/// `real_pushed`; it runs at 0x7000), 32-bit mode again (`back32`, `compatibility`), and 64-bit mode (`start64`,
/// `to_high`), enables AVX if there is AVX (`has_avx`), and ends in a loop above 4 GiB (`high_loop`). An ELF32 file.
pub static MODES: Guest = Guest {
    name: "modes",
    elf: include_bytes!(concat!(env!("OUT_DIR"), "/modes.elf")),
};

impl Guest {
    /// The guest as a kernel for [`crate::MachineConfig`].
    #[must_use]
    pub fn image(&self) -> ImageFile {
        ImageFile::embedded(self.name, self.elf)
    }

    /// Writes the ELF file into `directory`, for a debugger to read its symbols. Returns its path.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_to(&self, directory: &Path) -> io::Result<PathBuf> {
        let path = directory.join(format!("{}.elf", self.name));
        std::fs::write(&path, self.elf)?;
        Ok(path)
    }

    /// The address of a symbol.
    ///
    /// `None` if the guest has no such symbol: its source has the list.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.function(name).map(|range| range.start)
    }

    /// The addresses of a symbol with its size: those of a function's instructions.
    ///
    /// `None` if the guest has no such symbol; empty if its source gives it no size.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<Range<u64>> {
        use object::elf::{FileHeader32, FileHeader64};

        self.symbol_in::<FileHeader64<LE>>(name)
            .or_else(|| self.symbol_in::<FileHeader32<LE>>(name))
    }

    fn symbol_in<H: FileHeader<Endian = LE>>(&self, name: &str) -> Option<Range<u64>> {
        let header = H::parse(self.elf).ok()?;
        let sections = header.sections(LE, self.elf).ok()?;
        let symbols = sections
            .symbols(LE, self.elf, object::elf::SHT_SYMTAB)
            .ok()?;
        symbols
            .iter()
            .find(|symbol| symbol.name(LE, symbols.strings()) == Ok(name.as_bytes()))
            .map(|symbol| {
                let start: u64 = symbol.st_value(LE).into();
                start..start.saturating_add(symbol.st_size(LE).into())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::Kernel;

    #[test]
    fn every_guest_is_a_pvh_kernel_that_starts_at_1_mib() {
        for guest in [TIMER, CLOCKS, SMP, SLEEP, FAULT, RESET, SCRIPT] {
            let Ok(Kernel::Pvh { entry, .. }) = Kernel::parse(guest.elf) else {
                panic!("{} is not a PVH kernel", guest.name);
            };
            assert_eq!(entry, 0x10_0000, "{}", guest.name);
            assert_eq!(guest.symbol("_start"), Some(0x10_0000));
        }
    }

    #[test]
    fn the_guest_of_all_modes_is_a_32_bit_multiboot_kernel() {
        assert!(matches!(Kernel::parse(MODES.elf), Ok(Kernel::Multiboot(_))));
        assert!(!MODES.image().is_64_bit());
        assert!(TIMER.image().is_64_bit());
    }

    #[test]
    fn the_documented_symbols_exist() {
        for (guest, names) in [
            (
                TIMER,
                &[
                    "ticks",
                    "iterations",
                    "flags_image",
                    "work_sum",
                    "timer_handler",
                    "loop_start",
                    "loop_end",
                    "work",
                ][..],
            ),
            (
                CLOCKS,
                &[
                    "tsc",
                    "clock",
                    "max_tsc",
                    "max_clock",
                    "backwards",
                    "iterations",
                    "ticks",
                    "pit_ticks",
                ],
            ),
            (SMP, &["shared_work", "bsp_counter", "ap_counter"]),
            (
                SLEEP,
                &[
                    "command",
                    "ap_halt",
                    "ap_woken",
                    "ap_counted",
                    "wakes",
                    "handled",
                    "flags_image",
                ],
            ),
            (FAULT, &["spins", "do_spin", "do_halt"]),
            (
                MODES,
                &[
                    "double",
                    "doubled",
                    "leave32",
                    "protected16",
                    "real16",
                    "real_work",
                    "real_pushed",
                    "back32",
                    "compatibility",
                    "start64",
                    "to_high",
                    "has_avx",
                    "high_loop",
                ],
            ),
        ] {
            for name in names {
                assert!(guest.symbol(name).is_some(), "{}: {name}", guest.name);
            }
        }
        assert_eq!(TIMER.symbol("no_such_symbol"), None);
        assert!(TIMER.symbol("loop_start") < TIMER.symbol("loop_end"));
    }
}
