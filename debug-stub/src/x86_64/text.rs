//! Registers as text, in the form of QEMU's `info registers`: scripts and plug-ins of debuggers read it.

use std::fmt::{self, Write};

use super::bits::{CR0_PE, EFER_LMA};
use super::{CoreRegisters, DebugRegisters, FpuState, RegisterFile, Segment, SpecialRegisters};

/// Writes the guest's own debug registers, with what they stop at (SDM 3B 19.2.4).
///
/// # Errors
/// If `out` takes no more.
pub(super) fn write_debug_registers(debug: &DebugRegisters, out: &mut dyn Write) -> fmt::Result {
    let DebugRegisters { dr, dr6, dr7 } = debug;
    for ((index, address), slot) in dr.iter().enumerate().zip(0u32..) {
        let field = |shift: u32| dr7 >> shift & 3;
        let enabled = field(2 * slot) != 0;
        let kind = match field(16 + 4 * slot) {
            0 => "execute",
            1 => "write",
            2 => "I/O",
            _ => "read or write",
        };
        let length = match field(18 + 4 * slot) {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        write!(out, "DR{index}={address:#x}")?;
        if enabled {
            writeln!(out, ": {kind}, {length} bytes")?;
        } else {
            writeln!(out, ": off")?;
        }
    }
    writeln!(out, "DR6={dr6:#x} DR7={dr7:#x}")
}

/// Writes all registers. What the register file does not hold is left out: A20, SMM and HLT. The debug registers are
/// the guest's own.
///
/// # Errors
/// If `out` takes no more.
pub(super) fn write_registers(file: &RegisterFile, out: &mut dyn Write) -> fmt::Result {
    let long = file.special.efer & EFER_LMA != 0;
    general(&file.core, long, out)?;
    flags(&file.core, &file.special, long, out)?;
    segments(&file.special, long, out)?;
    control(&file.special, long, out)?;
    debug(&file.debug, long, out)?;
    writeln!(out, "EFER={:016x}", file.special.efer)?;
    float(file, out)
}

fn general(core: &CoreRegisters, long: bool, out: &mut dyn Write) -> fmt::Result {
    let mut all = vec![
        ("AX", core.rax),
        ("BX", core.rbx),
        ("CX", core.rcx),
        ("DX", core.rdx),
        ("SI", core.rsi),
        ("DI", core.rdi),
        ("BP", core.rbp),
        ("SP", core.rsp),
    ];
    if long {
        all.extend([
            ("8", core.r8),
            ("9", core.r9),
            ("10", core.r10),
            ("11", core.r11),
            ("12", core.r12),
            ("13", core.r13),
            ("14", core.r14),
            ("15", core.r15),
        ]);
    }
    for row in all.chunks(4) {
        for (name, value) in row {
            let space = if row.first().map(|(first, _)| *first) == Some(*name) {
                ""
            } else {
                " "
            };
            if long {
                write!(out, "{space}R{name:<2}={value:016x}")?;
            } else {
                write!(out, "{space}E{name}={:08x}", value & 0xffff_ffff)?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

fn flags(
    core: &CoreRegisters,
    special: &SpecialRegisters,
    long: bool,
    out: &mut dyn Write,
) -> fmt::Result {
    if long {
        write!(out, "RIP={:016x} RFL={:08x} [", core.rip, core.rflags)?;
    } else {
        let low = core.rip & 0xffff_ffff;
        write!(out, "EIP={low:08x} EFL={:08x} [", core.rflags)?;
    }
    // DF OF SF ZF AF PF CF (SDM 1 figure 3-8).
    for (bit, letter) in [
        (10, 'D'),
        (11, 'O'),
        (7, 'S'),
        (6, 'Z'),
        (4, 'A'),
        (2, 'P'),
        (0, 'C'),
    ] {
        let set = core.rflags >> bit & 1 != 0;
        out.write_char(if set { letter } else { '-' })?;
    }
    let cpl = if special.cr0 & CR0_PE == 0 {
        0
    } else {
        special.cs.selector & 3
    };
    writeln!(out, "] CPL={cpl}")
}

fn segments(special: &SpecialRegisters, long: bool, out: &mut dyn Write) -> fmt::Result {
    for (name, segment) in [
        ("ES", &special.es),
        ("CS", &special.cs),
        ("SS", &special.ss),
        ("DS", &special.ds),
        ("FS", &special.fs),
        ("GS", &special.gs),
        ("LDT", &special.ldtr),
        ("TR", &special.tr),
    ] {
        write!(out, "{name:<3}={:04x} ", segment.selector)?;
        if long {
            write!(out, "{:016x}", segment.base)?;
        } else {
            write!(out, "{:08x}", segment.base)?;
        }
        write!(out, " {:08x} {:08x}", segment.limit, segment.attributes())?;
        if special.cr0 & CR0_PE != 0 && segment.present && !segment.unusable {
            kind(segment, long, out)?;
        }
        writeln!(out)?;
    }
    for (name, table) in [("GDT", special.gdtr), ("IDT", special.idtr)] {
        if long {
            writeln!(out, "{name}=     {:016x} {:08x}", table.base, table.limit)?;
        } else {
            writeln!(out, "{name}=     {:08x} {:08x}", table.base, table.limit)?;
        }
    }
    Ok(())
}

fn kind(segment: &Segment, long: bool, out: &mut dyn Write) -> fmt::Result {
    write!(out, " DPL={} ", segment.dpl)?;
    let has = |bit: u8, letter: char| {
        if segment.kind & bit == 0 { '-' } else { letter }
    };
    if !segment.code_or_data {
        // SDM 3A table 3-2.
        let name = match (segment.kind & 0xf, long) {
            (2, _) => "LDT",
            (9, true) => "TSS64-avl",
            (11, true) => "TSS64-busy",
            (9, false) => "TSS32-avl",
            (11, false) => "TSS32-busy",
            (1, false) => "TSS16-avl",
            (3, false) => "TSS16-busy",
            _ => "Reserved",
        };
        return out.write_str(name);
    }
    let (name, first) = if segment.kind & 8 != 0 {
        let name = match (segment.long, segment.default_big) {
            (true, _) => "CS64",
            (false, true) => "CS32",
            (false, false) => "CS16",
        };
        (name, [has(4, 'C'), has(2, 'R')])
    } else {
        let wide = segment.default_big || long;
        let name = if wide { "DS  " } else { "DS16" };
        (name, [has(4, 'E'), has(2, 'W')])
    };
    let [one, two] = first;
    write!(out, "{name} [{one}{two}{}]", has(1, 'A'))
}

fn control(special: &SpecialRegisters, long: bool, out: &mut dyn Write) -> fmt::Result {
    if long {
        writeln!(
            out,
            "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x}",
            special.cr0, special.cr2, special.cr3, special.cr4
        )?;
    } else {
        writeln!(
            out,
            "CR0={:08x} CR2={:08x} CR3={:08x} CR4={:08x}",
            special.cr0, special.cr2, special.cr3, special.cr4
        )?;
    }
    writeln!(out, "CR8={:x}", special.cr8)
}

fn debug(debug: &DebugRegisters, long: bool, out: &mut dyn Write) -> fmt::Result {
    let DebugRegisters { dr, dr6, dr7 } = debug;
    let digits = if long { 16 } else { 8 };
    for (index, value) in dr.iter().enumerate() {
        write!(out, "DR{index}={value:0digits$x} ")?;
    }
    writeln!(out, "\nDR6={dr6:0digits$x} DR7={dr7:0digits$x}")
}

fn float(file: &RegisterFile, out: &mut dyn Write) -> fmt::Result {
    let FpuState {
        st,
        fcw,
        fsw,
        ftw_abridged,
        xmm,
        mxcsr,
        ..
    } = &file.fpu;
    // FSW.TOP (SDM 1 8.1.3).
    let top = fsw >> 11 & 7;
    writeln!(
        out,
        "FCW={fcw:04x} FSW={fsw:04x} [ST={top}] FTW={ftw_abridged:02x} MXCSR={mxcsr:08x}"
    )?;
    for (pair, first) in st.chunks(2).zip((0..).step_by(2)) {
        for ([mantissa @ .., low, high], index) in pair.iter().zip(first..) {
            let space = if index == first { "" } else { " " };
            let mantissa = u64::from_le_bytes(*mantissa);
            let exponent = u16::from_le_bytes([*low, *high]);
            write!(out, "{space}FPR{index}={mantissa:016x} {exponent:04x}")?;
        }
        writeln!(out)?;
    }
    for (pair, first) in xmm.chunks(2).zip((0..).step_by(2)) {
        for (value, index) in pair.iter().zip(first..) {
            let space = if index == first { "" } else { " " };
            let value = u128::from_le_bytes(*value);
            write!(out, "{space}XMM{index:02}={value:032x}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_64_bit_register_file_reads_as_qemus() {
        let mut file = RegisterFile::default();
        file.core.rax = 0x1234;
        file.core.r15 = u64::MAX;
        file.core.rip = 0xffff_ffff_8100_0000;
        file.core.rflags = 0x246;
        let special = &mut file.special;
        (special.cr0, special.cr3, special.cr4) = (0x8005_0033, 0x1_0000, 0x6f0);
        special.efer = 0xd01;
        special.cs = Segment {
            selector: 0x10,
            limit: 0xffff_ffff,
            kind: 11,
            present: true,
            code_or_data: true,
            long: true,
            granularity: true,
            ..Segment::default()
        };
        special.tr = Segment {
            selector: 0x40,
            base: 0xffff_fe00_0000_3000,
            limit: 0x206f,
            kind: 11,
            present: true,
            ..Segment::default()
        };
        special.gdtr.base = 0xffff_fe00_0000_1000;
        special.gdtr.limit = 0x7f;
        file.fpu.xmm[1][0] = 7;
        file.debug.dr[1] = 0x1000;
        (file.debug.dr6, file.debug.dr7) = (0xffff_0ff0, 0x400);
        let mut text = String::new();
        write_registers(&file, &mut text).unwrap();
        for line in [
            "RAX=0000000000001234 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000",
            "R8 =0000000000000000 R9 =0000000000000000 R10=0000000000000000 R11=0000000000000000",
            "R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=ffffffffffffffff",
            "RIP=ffffffff81000000 RFL=00000246 [---Z-P-] CPL=0",
            "CS =0010 0000000000000000 ffffffff 00a09b00 DPL=0 CS64 [-RA]",
            "TR =0040 fffffe0000003000 0000206f 00008b00 DPL=0 TSS64-busy",
            "GDT=     fffffe0000001000 0000007f",
            "CR0=80050033 CR2=0000000000000000 CR3=0000000000010000 CR4=000006f0",
            "DR0=0000000000000000 DR1=0000000000001000 DR2=0000000000000000 DR3=0000000000000000 ",
            "DR6=00000000ffff0ff0 DR7=0000000000000400",
            "EFER=0000000000000d01",
            "FPR6=0000000000000000 0000 FPR7=0000000000000000 0000",
            "XMM00=00000000000000000000000000000000 XMM01=00000000000000000000000000000007",
        ] {
            assert!(text.lines().any(|has| has == line), "{line}\n---\n{text}");
        }
    }

    #[test]
    fn outside_long_mode_registers_have_32_bits() {
        let mut file = RegisterFile::default();
        file.core.rsp = 0x7c00;
        file.special.cr0 = 0x11;
        file.special.ss = Segment {
            selector: 0x10,
            limit: 0xffff,
            kind: 3,
            dpl: 0,
            present: true,
            code_or_data: true,
            ..Segment::default()
        };
        let mut text = String::new();
        write_registers(&file, &mut text).unwrap();
        for line in [
            "ESI=00000000 EDI=00000000 EBP=00000000 ESP=00007c00",
            "EIP=00000000 EFL=00000000 [-------] CPL=0",
            "SS =0010 00000000 0000ffff 00009300 DPL=0 DS16 [-WA]",
            "CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000",
        ] {
            assert!(text.lines().any(|has| has == line), "{line}\n---\n{text}");
        }
        assert!(!text.contains("R8 ="));
    }
}
