//! The register file: all state of a vCPU that a debugger can name, as plain data.

use bitflags::bitflags;

use super::Mode;

bitflags! {
    /// Which part of a [`RegisterFile`]: the parts that a hypervisor reads and writes together.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RegisterGroups: u8 {
        /// [`RegisterFile::core`] (`KVM_GET_REGS`).
        const CORE = 0b0001;
        /// [`RegisterFile::special`] (`KVM_GET_SREGS`).
        const SPECIAL = 0b0010;
        /// [`RegisterFile::fpu`] (`KVM_GET_FPU`).
        const FPU = 0b0100;
        /// [`RegisterFile::kernel_gs_base`] (`KVM_GET_MSRS`).
        const MSRS = 0b1000;
        /// [`RegisterFile::debug`] (`KVM_GET_DEBUGREGS`).
        const DEBUG = 0b1_0000;
        /// What a stop reply carries, and what comes with every exit.
        const EXPEDITED = Self::CORE.bits() | Self::SPECIAL.bits();
    }
}

bitflags! {
    /// XSAVE's state components beyond x87 and SSE whose registers a debugger can name (SDM 1 13.1). A guest has one if
    /// it has set CR4.OSXSAVE and enabled the component in XCR0 (SDM 1 13.3).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct StateComponents: u8 {
        /// The upper halves of YMM0-YMM15: XCR0 bit 2.
        const AVX = 0b001;
        /// Opmask, ZMM_Hi256 and Hi16_ZMM: XCR0 bits 7:5, which need bit 2.
        const AVX512 = 0b010;
        /// PKRU: XCR0 bit 9.
        const PKRU = 0b100;
    }
}

/// All registers of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterFile {
    /// General-purpose registers, RIP and RFLAGS.
    pub core: CoreRegisters,
    /// Segments, descriptor tables, control registers.
    pub special: SpecialRegisters,
    /// What XSAVE holds.
    pub fpu: FpuState,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// The guest's own debug registers. Those that the debugger has armed are not here.
    pub debug: DebugRegisters,
}

/// The guest's own debug registers (SDM 3B 19.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters {
    /// DR0-DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

/// General-purpose registers, RIP and RFLAGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the SDM's")]
pub struct CoreRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part (SDM 3A 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Base, linear address in bytes.
    pub base: u64,
    /// Limit in bytes, after the granularity bit was applied.
    pub limit: u32,
    /// Type field of the descriptor (SDM 3A 3.4.5.1), 4 bits.
    pub kind: u8,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// P: present.
    pub present: bool,
    /// S: code or data, not a system segment.
    pub code_or_data: bool,
    /// L: 64-bit code.
    pub long: bool,
    /// D/B: 32-bit default operand size or stack.
    pub default_big: bool,
    /// G: limit counted in 4 KiB.
    pub granularity: bool,
    /// AVL: for software.
    pub available: bool,
    /// The hypervisor holds it as unusable (SDM 3C 25.4.1).
    pub unusable: bool,
}

impl Segment {
    /// Bits 23:8 of its descriptor's upper half, in their places (SDM 3A 3.4.5). 0 if it is unusable.
    #[must_use]
    pub fn attributes(&self) -> u32 {
        let bit = |set: bool, bit: u32| u32::from(set) << bit;
        if self.unusable {
            return 0;
        }
        u32::from(self.kind & 0xf) << 8
            | bit(self.code_or_data, 12)
            | u32::from(self.dpl & 3) << 13
            | bit(self.present, 15)
            | bit(self.available, 20)
            | bit(self.long, 21)
            | bit(self.default_big, 22)
            | bit(self.granularity, 23)
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Base, linear address.
    pub base: u64,
    /// Limit: size in bytes, less one.
    pub limit: u16,
}

/// Segments, descriptor tables, control registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the SDM's")]
pub struct SpecialRegisters {
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub tr: Segment,
    pub ldtr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    /// IA32_APIC_BASE. GDB does not see it; it is kept for the write, which restores it.
    pub apic_base: u64,
}

/// x87, SSE, AVX and AVX-512 state and PKRU, as XSAVE holds them (SDM 1 10.5.1, 13.4, 13.5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FpuState {
    /// ST0-ST7 in stack order, 80 bits each.
    pub st: [[u8; 10]; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Abridged tag word: bit n set if physical register n is not empty.
    pub ftw_abridged: u8,
    /// Last opcode.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// XMM0-XMM15.
    pub xmm: [[u8; 16]; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// Bits 255:128 of YMM0-YMM15, if the guest has enabled AVX in XCR0.
    pub ymm_high: Option<[[u8; 16]; 16]>,
    /// AVX-512 state, if the guest has enabled it in XCR0. In a box: most guests have not.
    pub avx512: Option<Box<Avx512State>>,
    /// PKRU, if the guest has enabled it in XCR0.
    pub pkru: Option<u32>,
}

impl FpuState {
    /// The components that the guest has enabled.
    #[must_use]
    pub fn components(&self) -> StateComponents {
        let mut enabled = StateComponents::empty();
        enabled.set(StateComponents::AVX, self.ymm_high.is_some());
        enabled.set(StateComponents::AVX512, self.avx512.is_some());
        enabled.set(StateComponents::PKRU, self.pkru.is_some());
        enabled
    }
}

/// AVX-512 state (SDM 1 15.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Avx512State {
    /// K0-K7.
    pub opmask: [u64; 8],
    /// Bits 511:256 of ZMM0-ZMM31.
    pub zmm_high: [[u8; 32]; 32],
    /// Bits 127:0 of ZMM16-ZMM31.
    pub xmm: [[u8; 16]; 16],
    /// Bits 255:128 of ZMM16-ZMM31.
    pub ymm_high: [[u8; 16]; 16],
}

impl RegisterFile {
    /// The linear address of the next instruction: CS.base + RIP, which is RIP in 64-bit mode
    /// and wraps at 32 bits elsewhere (SDM 3A 3.3.5).
    #[must_use]
    pub fn linear_pc(&self) -> u64 {
        if Mode::of(self).is_64_bit() {
            return self.core.rip;
        }
        self.special.cs.base.wrapping_add(self.core.rip) & LINEAR_32
    }

    /// The linear address of the top of the stack: SS.base + ESP, or SP if SS.B is clear (SDM 3A 3.4.5). It is
    /// RSP in 64-bit mode, and wraps at 32 bits elsewhere.
    #[must_use]
    pub fn linear_sp(&self) -> u64 {
        if Mode::of(self).is_64_bit() {
            return self.core.rsp;
        }
        let offset = self.core.rsp & self.stack_mask();
        self.special.ss.base.wrapping_add(offset) & LINEAR_32
    }

    /// The bits of RSP that are the stack pointer, outside 64-bit mode.
    pub(super) fn stack_mask(&self) -> u64 {
        if self.special.ss.default_big {
            0xffff_ffff
        } else {
            0xffff
        }
    }
}

/// The bits of a linear address outside 64-bit mode.
pub(super) const LINEAR_32: u64 = 0xffff_ffff;
