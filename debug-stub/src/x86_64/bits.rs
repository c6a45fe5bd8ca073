//! Register bits, each named once. Only those that this crate uses.

/// RFLAGS.TF: trap after each instruction (SDM 1 3.4.3.3).
pub(crate) const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF.
pub(crate) const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.DF: string instructions go downwards.
pub(crate) const RFLAGS_DF: u64 = 1 << 10;
/// RFLAGS.IOPL.
pub(crate) const RFLAGS_IOPL: u64 = 3 << 12;
/// RFLAGS.NT.
pub(crate) const RFLAGS_NT: u64 = 1 << 14;
/// RFLAGS.RF.
pub(crate) const RFLAGS_RF: u64 = 1 << 16;
/// RFLAGS.AC: alignment checks at privilege level 3.
pub(crate) const RFLAGS_AC: u64 = 1 << 18;
/// RFLAGS.VM: virtual-8086 mode.
pub(crate) const RFLAGS_VM: u64 = 1 << 17;
/// CF, PF, AF, ZF, SF, OF.
pub(crate) const RFLAGS_STATUS: u64 = 0x8d5;
/// Bit 1, which always reads as 1.
pub(crate) const RFLAGS_FIXED: u64 = 1 << 1;
/// Undefined bits: 3, 5, 15 and 22 upwards (SDM 1 figure 3-8).
pub(crate) const RFLAGS_RESERVED: u64 = !0x003f_7fd7;

/// CR0.PE: protected mode.
pub(crate) const CR0_PE: u64 = 1;
/// CR0.EM: no x87.
pub(crate) const CR0_EM: u64 = 1 << 2;
/// CR0.TS: x87 and vector state belong to another task.
pub(crate) const CR0_TS: u64 = 1 << 3;
/// CR0.ET, which always reads as 1.
pub(crate) const CR0_ET: u64 = 1 << 4;
/// CR0.WP: the supervisor may not write read-only pages.
pub(crate) const CR0_WP: u64 = 1 << 16;
/// CR0.AM: alignment checks.
pub(crate) const CR0_AM: u64 = 1 << 18;
/// CR0.NW.
pub(crate) const CR0_NW: u64 = 1 << 29;
/// CR0.CD.
pub(crate) const CR0_CD: u64 = 1 << 30;
/// CR0.PG: paging.
pub(crate) const CR0_PG: u64 = 1 << 31;
/// PE MP EM TS ET NE WP AM NW CD PG. A write ignores the others (SDM 3A 2.5).
pub(crate) const CR0_DEFINED: u64 = 0xe005_003f;

/// CR3: address up to the architecture's 52 bits, PCID, and the LAM bits 62:61 (SDM 3A 2.5).
pub(crate) const CR3_DEFINED: u64 = 0x600f_ffff_ffff_ffff;

/// CR4.VME: virtual-8086 mode extensions.
pub(crate) const CR4_VME: u64 = 1;
/// CR4.PSE: 4 MiB pages.
pub(crate) const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE.
pub(crate) const CR4_PAE: u64 = 1 << 5;
/// CR4.OSFXSR: SSE is enabled.
pub(crate) const CR4_OSFXSR: u64 = 1 << 9;
/// CR4.LA57: 5-level paging.
pub(crate) const CR4_LA57: u64 = 1 << 12;
/// CR4.PCIDE.
pub(crate) const CR4_PCIDE: u64 = 1 << 17;
/// CR4.OSXSAVE: XCR0 is in force.
#[cfg(feature = "kvm")]
pub(crate) const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4.SMEP: the supervisor may not execute user pages.
pub(crate) const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP: the supervisor may not touch user pages while RFLAGS.AC is clear.
pub(crate) const CR4_SMAP: u64 = 1 << 21;
/// CR4.PKE: protection keys.
pub(crate) const CR4_PKE: u64 = 1 << 22;
/// CR4.CET: shadow stacks and indirect branch tracking.
pub(crate) const CR4_CET: u64 = 1 << 23;
/// Defined CR4 bits, up to FRED (SDM 3A 2.5). The hypervisor checks which of them the CPU has.
pub(crate) const CR4_DEFINED: u64 = 0x1_1bf7_7fff;

/// IA32_EFER.SCE: SYSCALL and SYSRET are enabled.
pub(crate) const EFER_SCE: u64 = 1;
/// IA32_EFER.LME: long mode enabled (SDM 4 table 2-2).
pub(crate) const EFER_LME: u64 = 1 << 8;
/// IA32_EFER.LMA: long mode active.
pub(crate) const EFER_LMA: u64 = 1 << 10;
/// IA32_EFER.NXE.
pub(crate) const EFER_NXE: u64 = 1 << 11;
/// SCE LME LMA NXE SVME LMSLE FFXSR TCE MCOMMIT INTWB UAIE AIBRSE (APM 2 3.1.7).
pub(crate) const EFER_DEFINED: u64 = 0x0036_fd01;

/// The longest instruction, in bytes (SDM 2A 2.3.11).
pub(crate) const MAX_INSTRUCTION: usize = 15;

/// DR6.B0-B3: which debug-address register hit (SDM 3B 19.2.3).
pub(crate) const DR6_HITS: u64 = 0xf;
/// DR6.BD: debug-register access under DR7.GD.
pub(crate) const DR6_BD: u64 = 1 << 13;
/// Bits of DR6 that a debug exception sets: RTM among them, and reserved ones.
pub(crate) const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;
/// DR6.BS: single step.
pub(crate) const DR6_BS: u64 = 1 << 14;

/// DR6 bits that a write may set: B0-B3, BD, BS, BT. The others are fixed here: BLD and RTM of active-low DR6 are
/// for CPUs that report bus locks or transactions.
pub(crate) const DR6_WRITABLE: u64 = 0xe00f;
/// DR7 bits that a write may set: all but 10, which is 1, and 12, 14, 15 and the upper half, which are 0 (SDM 3B
/// 19.2.4).
pub(crate) const DR7_WRITABLE: u64 = 0xffff_2bff;
/// DR7 bit 10, which always reads as 1.
pub(crate) const DR7_FIXED: u64 = 1 << 10;
/// DR7.GD: an access to a debug register raises #DB.
pub(crate) const DR7_GD: u64 = 1 << 13;
/// CR4.DE: DR4 and DR5 are undefined.
pub(crate) const CR4_DE: u64 = 1 << 3;

/// Returns `true` if `address` is canonical for linear addresses of `width` bits (SDM 1 3.3.7.1).
pub(crate) fn is_canonical(address: u64, width: u32) -> bool {
    // All bits from the sign bit up are equal.
    let sign = width.saturating_sub(1);
    let top = address.checked_shr(sign).unwrap_or(0);
    top == 0 || Some(top) == u64::MAX.checked_shr(sign)
}
