//! Model-specific registers by name (SDM 4 table 2-2).

use super::RegisterFile;
use super::bits::{CR4_LA57, is_canonical};

/// Which values an MSR takes, as far as this is known here. The hypervisor checks the rest.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The hypervisor decides.
    Any,
    /// A linear address.
    Address,
    /// 32 bits.
    Low,
    /// IA32_PAT: a memory type in each byte.
    MemoryTypes,
    /// It is a register of the client's: its checks are there.
    Register(&'static str),
}

use Rule::{Address, Any, Low, MemoryTypes, Register};

/// Number, name and rule: those that a debugger's user asks for.
const TABLE: [(u32, &str, Rule); 31] = [
    (0x10, "IA32_TSC", Any),
    (0x1b, "IA32_APIC_BASE", Any),
    (0x3a, "IA32_FEATURE_CONTROL", Any),
    (0x3b, "IA32_TSC_ADJUST", Any),
    (0x48, "IA32_SPEC_CTRL", Any),
    (0x8b, "IA32_BIOS_SIGN_ID", Any),
    (0xfe, "IA32_MTRRCAP", Any),
    (0x10a, "IA32_ARCH_CAPABILITIES", Any),
    (0x174, "IA32_SYSENTER_CS", Any),
    (0x175, "IA32_SYSENTER_ESP", Address),
    (0x176, "IA32_SYSENTER_EIP", Address),
    (0x179, "IA32_MCG_CAP", Any),
    (0x17a, "IA32_MCG_STATUS", Any),
    (0x1a0, "IA32_MISC_ENABLE", Any),
    (0x1d9, "IA32_DEBUGCTL", Any),
    (0x277, "IA32_PAT", MemoryTypes),
    (0x2ff, "IA32_MTRR_DEF_TYPE", Any),
    (0x6a0, "IA32_U_CET", Any),
    (0x6a2, "IA32_S_CET", Any),
    (0x6e0, "IA32_TSC_DEADLINE", Any),
    (0xda0, "IA32_XSS", Any),
    (0xc000_0080, "IA32_EFER", Register("write $efer")),
    (0xc000_0081, "IA32_STAR", Any),
    (0xc000_0082, "IA32_LSTAR", Address),
    (0xc000_0083, "IA32_CSTAR", Address),
    (0xc000_0084, "IA32_FMASK", Low),
    (0xc000_0100, "IA32_FS_BASE", Register("write $fs_base")),
    (0xc000_0101, "IA32_GS_BASE", Register("write $gs_base")),
    (
        0xc000_0102,
        "IA32_KERNEL_GS_BASE",
        Register("write $k_gs_base"),
    ),
    (0xc000_0103, "IA32_TSC_AUX", Low),
    (0x4b56_4d01, "MSR_KVM_SYSTEM_TIME_NEW", Any),
];

/// Names and numbers.
pub(super) fn all() -> impl Iterator<Item = (&'static str, u32)> {
    TABLE.iter().map(|(number, name, _)| (*name, *number))
}

/// Returns the number of an MSR, by its name in any case, with or without `IA32_`.
pub(super) fn number(name: &str) -> Option<u32> {
    let short = |known: &'static str| known.strip_prefix("IA32_").unwrap_or(known);
    all()
        .find(|(known, _)| {
            name.eq_ignore_ascii_case(known) || name.eq_ignore_ascii_case(short(known))
        })
        .map(|(_, number)| number)
}

/// Checks a value before a write.
///
/// # Errors
/// Why it is refused.
pub(super) fn check(number: u32, value: u64, registers: &RegisterFile) -> Result<(), &'static str> {
    let rule = TABLE.iter().find(|(known, ..)| *known == number);
    let width = if registers.special.cr4 & CR4_LA57 != 0 {
        57
    } else {
        48
    };
    match rule.map_or(Any, |(_, _, rule)| *rule) {
        Address if !is_canonical(value, width) => Err("it is not a canonical address"),
        Low if value >> 32 != 0 => Err("it has 32 bits"),
        // SDM 3A table 13-10: UC, WC, WT, WP, WB, UC-.
        MemoryTypes
            if !value
                .to_le_bytes()
                .iter()
                .all(|kind| matches!(kind, 0 | 1 | 4..=7)) =>
        {
            Err("a byte of it is no memory type")
        }
        Register(how) => Err(how),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_with_and_without_their_prefix() {
        for (name, wanted) in [
            ("IA32_EFER", Some(0xc000_0080)),
            ("efer", Some(0xc000_0080)),
            ("LSTAR", Some(0xc000_0082)),
            ("ia32_pat", Some(0x277)),
            ("msr_kvm_system_time_new", Some(0x4b56_4d01)),
            ("ia32_", None),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(number(name), wanted, "{name}");
        }
        let mut numbers: Vec<u32> = all().map(|(_, number)| number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all().count());
    }

    #[test]
    fn values_that_would_fault_are_refused() {
        let mut file = RegisterFile::default();
        for (number, value, taken) in [
            (0xc000_0082, 0xffff_ffff_8100_0000, true),
            (0xc000_0082, 0x0000_8000_0000_0000, false),
            (0x176, 0x0000_8000_0000_0000, false),
            (0xc000_0084, 0x1_0000_0000, false),
            (0xc000_0084, 0x700, true),
            (0x277, 0x0007_0406_0007_0406, true),
            (0x277, 0x0007_0406_0007_0402, false),
            (0x277, 0x0800_0000_0000_0000, false),
            (0xc000_0080, 0xd01, false),
            (0xc000_0101, 0, false),
            // Not known here.
            (0x1234, u64::MAX, true),
        ] {
            assert_eq!(check(number, value, &file).is_ok(), taken, "{number:#x}");
        }
        file.special.cr4 |= CR4_LA57;
        assert!(check(0xc000_0082, 0x0000_8000_0000_0000, &file).is_ok());
    }
}
