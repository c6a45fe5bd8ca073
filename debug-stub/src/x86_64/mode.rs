//! The mode of a vCPU, and what GDB sees of one in each mode.

use super::bits::{CR0_PE, EFER_LMA, RFLAGS_VM};
use super::{RegisterFile, StateComponents};

/// What the CPU makes of the next instruction's bytes (SDM 3A 2.2 and 3.4.5, flag D/B and L).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected mode, 16-bit code segment.
    Protected16,
    /// Protected mode, 32-bit code segment.
    Protected32,
    /// IA-32e compatibility mode, 16-bit code segment.
    Compatibility16,
    /// IA-32e compatibility mode, 32-bit code segment.
    Compatibility32,
    /// IA-32e 64-bit mode.
    Bits64,
}

impl Mode {
    /// The mode of a vCPU with these registers.
    #[must_use]
    pub fn of(file: &RegisterFile) -> Self {
        let special = &file.special;
        let long = special.efer & EFER_LMA != 0;
        let big = special.cs.default_big;
        if special.cr0 & CR0_PE == 0 {
            Self::Real
        } else if long && special.cs.long {
            Self::Bits64
        } else if long {
            // RFLAGS.VM has no effect in IA-32e mode (SDM 3A 2.2).
            if big {
                Self::Compatibility32
            } else {
                Self::Compatibility16
            }
        } else if file.core.rflags & RFLAGS_VM != 0 {
            Self::Virtual8086
        } else if big {
            Self::Protected32
        } else {
            Self::Protected16
        }
    }

    /// Its name, as a user reads it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Real => "real mode (16-bit code)",
            Self::Virtual8086 => "virtual-8086 mode (16-bit code)",
            Self::Protected16 => "protected mode, 16-bit code",
            Self::Protected32 => "protected mode, 32-bit code",
            Self::Compatibility16 => "long mode, compatibility mode, 16-bit code",
            Self::Compatibility32 => "long mode, compatibility mode, 32-bit code",
            Self::Bits64 => "long mode, 64-bit code",
        }
    }

    /// The view with which GDB shows this mode's code and registers as they are.
    #[must_use]
    pub fn view(self) -> View {
        match self {
            Self::Real | Self::Virtual8086 | Self::Protected16 => View::I8086,
            Self::Protected32 => View::I386,
            // The kernel around the compatibility-mode code is a 64-bit one.
            Self::Compatibility16 | Self::Compatibility32 | Self::Bits64 => View::X86_64,
        }
    }

    pub(super) fn is_64_bit(self) -> bool {
        self == Self::Bits64
    }
}

/// A target description: the architecture by which GDB disassembles, and the registers with their numbers and
/// sizes. Of two with the same state components, the greater one shows all that the other one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View {
    code: CodeSize,
    components: StateComponents,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum CodeSize {
    Bits16,
    Bits32,
    Bits64,
}

impl View {
    /// 16-bit code, 32-bit registers.
    pub const I8086: Self = Self::of(CodeSize::Bits16);
    /// 32-bit code, 32-bit registers. The registers and numbers are those of [`View::I8086`].
    pub const I386: Self = Self::of(CodeSize::Bits32);
    /// 64-bit code, 64-bit registers.
    pub const X86_64: Self = Self::of(CodeSize::Bits64);
    /// All views, with x87 and SSE only.
    pub const ALL: [Self; 3] = [Self::I8086, Self::I386, Self::X86_64];

    const fn of(code: CodeSize) -> Self {
        Self {
            code,
            components: StateComponents::empty(),
        }
    }

    /// This view with the registers of these state components, and of no others. AVX-512 needs AVX.
    #[must_use]
    pub const fn with(self, components: StateComponents) -> Self {
        let components = if components.contains(StateComponents::AVX) {
            components
        } else {
            components.difference(StateComponents::AVX512)
        };
        Self { components, ..self }
    }

    /// The state components whose registers it has.
    #[must_use]
    pub const fn components(self) -> StateComponents {
        self.components
    }

    /// GDB's name of the architecture.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.code {
            CodeSize::Bits16 => "i8086",
            CodeSize::Bits32 => "i386",
            CodeSize::Bits64 => "i386:x86-64",
        }
    }

    /// LLVM's target triple.
    pub(super) fn triple(self) -> &'static str {
        match self.code {
            CodeSize::Bits16 => "i386-unknown-unknown-code16",
            CodeSize::Bits32 => "i386-unknown-unknown",
            CodeSize::Bits64 => "x86_64-unknown-unknown",
        }
    }

    /// The view with this name, if there is one, with x87 and SSE only.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|view| view.name() == name)
    }

    /// Returns `true` if its general-purpose registers have 64 bits.
    #[must_use]
    pub const fn is_wide(self) -> bool {
        matches!(self.code, CodeSize::Bits64)
    }

    /// Returns `true` if GDB disassembles 16-bit code.
    pub(super) fn is_16_bit(self) -> bool {
        self.code == CodeSize::Bits16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_told_by_its_registers() {
        // CR0.PE, EFER.LMA, RFLAGS.VM, CS.L, CS.D.
        for (pe, lma, vm, l, d, mode, view) in [
            (false, false, false, false, false, Mode::Real, View::I8086),
            // "Unreal" CS after leaving protected mode: its D bit is ignored.
            (false, false, false, false, true, Mode::Real, View::I8086),
            (
                true,
                false,
                true,
                false,
                false,
                Mode::Virtual8086,
                View::I8086,
            ),
            (
                true,
                false,
                false,
                false,
                false,
                Mode::Protected16,
                View::I8086,
            ),
            (
                true,
                false,
                false,
                false,
                true,
                Mode::Protected32,
                View::I386,
            ),
            // L is for IA-32e mode only.
            (
                true,
                false,
                false,
                true,
                true,
                Mode::Protected32,
                View::I386,
            ),
            (
                true,
                true,
                false,
                false,
                false,
                Mode::Compatibility16,
                View::X86_64,
            ),
            (
                true,
                true,
                false,
                false,
                true,
                Mode::Compatibility32,
                View::X86_64,
            ),
            (true, true, false, true, false, Mode::Bits64, View::X86_64),
            (true, true, true, true, false, Mode::Bits64, View::X86_64),
        ] {
            let mut file = RegisterFile::default();
            file.special.cr0 = u64::from(pe);
            file.special.efer = u64::from(lma) << 10;
            file.core.rflags = u64::from(vm) << 17 | 2;
            (file.special.cs.long, file.special.cs.default_big) = (l, d);
            assert_eq!(Mode::of(&file), mode);
            assert_eq!(mode.view(), view);
        }
    }

    #[test]
    fn names_are_gdbs() {
        assert_eq!(View::from_name("i386:x86-64"), Some(View::X86_64));
        assert_eq!(View::from_name("i386"), Some(View::I386));
        assert_eq!(View::from_name("i8086"), Some(View::I8086));
        assert_eq!(View::from_name("x86-64"), None);
        assert!(View::I8086 < View::I386 && View::I386 < View::X86_64);
    }
}
