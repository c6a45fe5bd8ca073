//! What the commands of QEMU's monitor are called here (QEMU 9, hmp-commands.hx and hmp-commands-info.hx).

use std::fmt::Write as _;

/// QEMU's command, and what there is instead. Commands that have the same name here are left out.
const NAMES: [(&str, &str); 36] = [
    ("c", "GDB's continue"),
    ("cont", "GDB's continue"),
    ("cpu", "GDB's thread N; the first vCPU is thread 1"),
    ("dump-guest-memory", "monitor dump FILE, if the VMM has it"),
    ("gdbserver", "GDB is connected already"),
    (
        "gpa2hva",
        "nothing; monitor xp ADDRESS reads guest-physical memory",
    ),
    ("gva2gpa", "the same, and monitor translate ADDRESS"),
    ("i", "nothing: a port is not read for a debugger"),
    ("info block", "nothing"),
    ("info chardev", "nothing"),
    (
        "info cpus",
        "the same, and monitor threads; GDB's info threads",
    ),
    ("info history", "GDB's show commands"),
    ("info irq", "monitor irq, if the VMM has it"),
    ("info jit", "nothing: the guest runs on the hypervisor"),
    ("info kvm", "monitor caps"),
    ("info lapic", "monitor lapic, if the VMM has it"),
    ("info mem", "the same, and monitor mem"),
    (
        "info mtree",
        "nothing; monitor xp ADDRESS says whether there is RAM",
    ),
    ("info name", "nothing"),
    ("info network", "nothing"),
    ("info pci", "nothing"),
    (
        "info pic",
        "monitor pic and monitor ioapic, if the VMM has them",
    ),
    ("info qtree", "nothing"),
    (
        "info registers",
        "the same, and monitor regs; GDB's info registers",
    ),
    (
        "info status",
        "nothing: while GDB has a prompt, the guest is stopped",
    ),
    (
        "info tlb",
        "monitor pagewalk ADDRESS for one address, monitor mem for all",
    ),
    ("info version", "nothing"),
    ("memsave", "GDB's dump binary memory FILE START END"),
    ("nmi", "nothing"),
    ("p", "GDB's print"),
    (
        "pmemsave",
        "GDB's dump binary memory, after maintenance packet Qqemu.PhyMemMode:1",
    ),
    ("print", "GDB's print"),
    ("stop", "Ctrl-C in GDB"),
    (
        "system_powerdown",
        "nothing; monitor quit ends the guest at once",
    ),
    ("x", "GDB's x"),
    ("xp/FMT", "monitor xp ADDRESS [LENGTH], without a format"),
];

/// What there is instead of a command of QEMU's: its first two words are looked for, then the first.
pub(super) fn find(command: &str) -> Option<&'static str> {
    let mut words = command.split_whitespace();
    let first = words.next()?;
    let both = words.next().map(|second| format!("{first} {second}"));
    let format = first.starts_with("xp/").then_some("xp/FMT");
    let known = |name: &str| {
        let found = NAMES.iter().find(|(qemus, _)| *qemus == name);
        found.map(|(_, here)| *here)
    };
    both.as_deref()
        .and_then(known)
        .or_else(|| known(format.unwrap_or(first)))
}

/// `monitor help qemu`.
pub(super) fn all() -> String {
    let mut text = String::from("QEMU                 here\n");
    for (qemus, here) in NAMES {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{qemus:<20} {here}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_found_by_its_first_words() {
        assert!(find("info tlb").unwrap().contains("monitor pagewalk"));
        assert!(
            find("  info   tlb -x")
                .unwrap()
                .contains("monitor pagewalk")
        );
        assert_eq!(find("cpu 1"), find("cpu"));
        assert!(find("xp/8xg 0x1000").unwrap().contains("monitor xp"));
        for unknown in ["info", "info nonsense", "tlb", ""] {
            assert_eq!(find(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn each_command_is_listed_once_and_in_order() {
        assert!(NAMES.is_sorted_by(|one, other| one.0 < other.0));
        assert_eq!(all().lines().count(), NAMES.len() + 1);
    }
}
