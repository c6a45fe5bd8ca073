//! The cases that concern the host and the VM, without interrupts from a local APIC.
#![expect(unsafe_code, reason = "four ioctls have no safe wrapper on x86")]

use std::format;

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET,
    KVMIO, Msrs, kvm_clock_data, kvm_device_attr, kvm_enable_cap, kvm_interrupt, kvm_msr_entry,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, SyncReg, VcpuFd};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::machine::{CODE, DATA, Exit, Machine, Stop, refused};
use super::{Case, Seen};
use crate::capability::Capability;

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

pub(super) const CASES: &[Case] = &[
    (Capability::ImmediateExit, immediate_exit),
    (Capability::SyncRegs, sync_regs),
    (Capability::HaltExit, halt_exit),
    (Capability::UserIrqchip, user_irqchip),
    (Capability::TscOffset, tsc_offset),
    (Capability::TscWrite, tsc_write),
    (Capability::ClockSet, clock_set),
    (Capability::ClockCtrl, clock_ctrl),
    (Capability::UserMsrExit, user_msr_exit),
    (Capability::UserTscDeadline, user_tsc_deadline),
];

/// KVM_RUN returns before the first instruction.
fn immediate_exit(machine: &mut Machine<'_>) -> Seen {
    let mut guest = machine.vcpu(
        &[
            0x40, // 1000: inc ax
            0xf4, // 1001: hlt
        ],
        None,
    )?;
    guest.vcpu.set_kvm_immediate_exit(1);
    guest.expect(&Exit::Interrupted)?;
    let regs = guest.regs()?;
    if (regs.rip, regs.rax) != (u64::from(CODE), 0) {
        return Err(Stop::fails(format!(
            "the guest ran to {:#x} all the same",
            regs.rip
        )));
    }
    guest.vcpu.set_kvm_immediate_exit(0);
    guest.expect(&Exit::Hlt)?;
    Ok("KVM_RUN returned EINTR with the guest unmoved".into())
}

/// A register that is written to the run structure arrives in the guest, and one that the guest
/// changes arrives in the run structure.
fn sync_regs(machine: &mut Machine<'_>) -> Seen {
    const WRITTEN: u64 = 0x4100;
    let mut guest = machine.vcpu(
        &[
            0x40, // 1000: inc ax
            0xf4, // 1001: hlt
        ],
        None,
    )?;
    let mut regs = guest.regs()?;
    regs.rax = WRITTEN;
    guest.vcpu.sync_regs_mut().regs = regs;
    guest.vcpu.set_sync_dirty_reg(SyncReg::Register);
    for group in [
        SyncReg::Register,
        SyncReg::SystemRegister,
        SyncReg::VcpuEvents,
    ] {
        guest.vcpu.set_sync_valid_reg(group);
    }
    guest.expect(&Exit::Hlt)?;
    let seen = guest.vcpu.sync_regs();
    let regs = guest.regs()?;
    let sregs = guest.vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    if seen.regs.rax != WRITTEN + 1 {
        Err(Stop::fails(format!(
            "RAX came back as {:#x}, not {:#x}",
            seen.regs.rax,
            WRITTEN + 1
        )))
    } else if seen.regs != regs || seen.sregs != sregs {
        Err(Stop::fails(
            "the run structure and KVM_GET_REGS or KVM_GET_SREGS differ",
        ))
    } else {
        Ok("registers went in and came out with the run structure".into())
    }
}

/// HLT leaves the guest, and the guest continues after it.
fn halt_exit(machine: &mut Machine<'_>) -> Seen {
    let mut guest = machine.vcpu(
        &[
            0xf4, // 1000: hlt
            0x40, // 1001: inc ax
            0xf4, // 1002: hlt
        ],
        None,
    )?;
    guest.expect(&Exit::Hlt)?;
    if guest.regs()?.rax != 0 {
        return Err(Stop::fails("HLT was passed over"));
    }
    guest.expect(&Exit::Hlt)?;
    if guest.regs()?.rax != 1 {
        return Err(Stop::fails("the guest did not go on behind HLT"));
    }
    Ok("HLT left the guest (without a local APIC in the kernel)".into())
}

/// The whole protocol of a userspace irqchip. The VMM requests a window, the window opens when the
/// guest can take an interrupt, and the interrupt that is injected then is delivered. The loop gives
/// KVM time: kvm_pvm opens the window after some thousand instructions.
fn user_irqchip(machine: &mut Machine<'_>) -> Seen {
    const VECTOR: u8 = 0x40;
    const DELIVERED: u16 = 0x84;
    let mut guest = machine.vcpu(
        &[
            0x90, //             1000: nop
            0xfb, //             1001: sti
            0xb9, 0x00, 0x40, // 1002: mov cx, 0x4000
            0xe2, 0xfe, //       1005: loop 0x1005
            0xf4, //             1007: hlt
        ],
        Some((
            VECTOR,
            &[
                0xe6, 0x84, // 1800: out 0x84, al
                0xcf, //       1802: iret
            ],
        )),
    )?;
    guest.vcpu.get_kvm_run().request_interrupt_window = 1;
    guest.expect(&Exit::IrqWindowOpen)?;
    let rip = guest.regs()?.rip;
    // Not before STI has executed.
    if rip < u64::from(CODE) + 2 {
        return Err(Stop::fails(format!(
            "the interrupt window opened at {rip:#x} with interrupts disabled"
        )));
    }
    guest.vcpu.get_kvm_run().request_interrupt_window = 0;
    let interrupt = kvm_interrupt {
        irq: u32::from(VECTOR),
    };
    // SAFETY: the argument is what KVM_INTERRUPT reads, and lives across the call.
    let answer = unsafe { ioctl_with_ref(&guest.vcpu, KVM_INTERRUPT(), &interrupt) };
    check(answer, "KVM_INTERRUPT")?;
    guest.expect(&Exit::Out(DELIVERED))?;
    guest.expect(&Exit::Hlt)?;
    Ok("the interrupt window opened, and KVM_INTERRUPT was delivered".into())
}

/// The guest's time-stamp counter jumps by the value that is added to its offset.
fn tsc_offset(machine: &mut Machine<'_>) -> Seen {
    /// More ticks than pass in the longest stop: 2^44 are an hour and a half at 3 GHz.
    const JUMP: u64 = 1 << 44;
    let mut guest = machine.vcpu(
        &[
            0x0f, 0x31, // 1000: rdtsc
            0xf4, //       1002: hlt
            0x0f, 0x31, // 1003: rdtsc
            0xf4, //       1005: hlt
        ],
        None,
    )?;
    guest.expect(&Exit::Hlt)?;
    let before = guest_tsc(&guest.regs()?);
    let mut offset = 0_u64;
    device_attribute(&guest.vcpu, KVM_GET_DEVICE_ATTR(), &mut offset)
        .map_err(refused("KVM_GET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)"))?;
    let mut wanted = offset.wrapping_add(JUMP);
    device_attribute(&guest.vcpu, KVM_SET_DEVICE_ATTR(), &mut wanted)
        .map_err(refused("KVM_SET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)"))?;
    device_attribute(&guest.vcpu, KVM_GET_DEVICE_ATTR(), &mut offset)
        .map_err(refused("KVM_GET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)"))?;
    if offset != wanted {
        return Err(Stop::fails(format!(
            "KVM_VCPU_TSC_OFFSET took {wanted:#x} and reads back {offset:#x}"
        )));
    }
    guest.expect(&Exit::Hlt)?;
    let passed = guest_tsc(&guest.regs()?).wrapping_sub(before);
    if (JUMP..2 * JUMP).contains(&passed) {
        Ok("RDTSC jumped by what was added to the offset".into())
    } else {
        Err(Stop::fails(format!(
            "RDTSC rose by {passed:#x} after {JUMP:#x} was added to the offset"
        )))
    }
}

/// The guest's time-stamp counter goes on from the value that the host writes. It is far from the value that
/// KVM expects: a near one would pass for an attempt to synchronise vCPUs (x86.c, `kvm_synchronize_tsc`).
fn tsc_write(machine: &mut Machine<'_>) -> Seen {
    const TSC: u32 = 0x10;
    /// More ticks than pass in the life of a micro-guest.
    const JUMP: u64 = 1 << 44;
    let mut guest = machine.vcpu(
        &[
            0x0f, 0x31, // 1000: rdtsc
            0xf4, //       1002: hlt
            0x0f, 0x31, // 1003: rdtsc
            0xf4, //       1005: hlt
        ],
        None,
    )?;
    guest.expect(&Exit::Hlt)?;
    let wanted = guest_tsc(&guest.regs()?).wrapping_add(JUMP);
    set_msr(&guest.vcpu, TSC, wanted)?;
    guest.expect(&Exit::Hlt)?;
    let seen = guest_tsc(&guest.regs()?);
    if seen.wrapping_sub(wanted) < JUMP {
        Ok("RDTSC went on from what was written to IA32_TSC".into())
    } else {
        Err(Stop::fails(format!(
            "RDTSC read {seen:#x} after {wanted:#x} was written to IA32_TSC"
        )))
    }
}

fn set_msr(vcpu: &VcpuFd, index: u32, data: u64) -> Result<(), Stop> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries =
        Msrs::from_entries(&[entry]).map_err(|error| Stop::Unclear(format!("{error:?}").into()))?;
    let set = vcpu.set_msrs(&entries).map_err(refused("KVM_SET_MSRS"))?;
    if set == 1 {
        Ok(())
    } else {
        Err(Stop::fails(format!("KVM refused MSR {index:#x}")))
    }
}

/// `MSR_KVM_SYSTEM_TIME_NEW` (cpuid.rst, msr.rst): address of the clock page; bit 0 enables.
const SYSTEM_TIME: u32 = 0x4b56_4d01;

/// The clock in the guest's clock page goes on from the one that is set, ahead and back.
fn clock_set(machine: &mut Machine<'_>) -> Seen {
    /// `system_time` in `struct pvclock_vcpu_time_info`: nanoseconds when the page was written.
    const SYSTEM_TIME_NS: u16 = DATA + 16;
    const HOUR_NS: u64 = 3_600_000_000_000;
    let mut guest = machine.vcpu(
        &[
            0xf4, //       1000: hlt
            0xeb, 0xfd, // 1001: jmp 0x1000
        ],
        None,
    )?;
    set_msr(&guest.vcpu, SYSTEM_TIME, u64::from(DATA) | 1)?;
    guest.expect(&Exit::Hlt)?;
    for wanted in [2 * HOUR_NS, HOUR_NS] {
        let clock = kvm_clock_data {
            clock: wanted,
            ..Default::default()
        };
        guest
            .vm()
            .set_clock(&clock)
            .map_err(refused("KVM_SET_CLOCK"))?;
        guest.expect(&Exit::Hlt)?;
        let mut shown = 0;
        for word in (0..4).rev() {
            shown = shown << 16 | u64::from(guest.word(SYSTEM_TIME_NS + 2 * word)?);
        }
        if !(wanted..wanted + HOUR_NS / 2).contains(&shown) {
            return Err(Stop::fails(format!(
                "the guest's clock page showed {shown} ns after the clock was set to {wanted} ns"
            )));
        }
    }
    Ok("the guest's clock page followed KVM_SET_CLOCK, ahead and back".into())
}

/// EDX:EAX.
fn guest_tsc(regs: &kvm_bindings::kvm_regs) -> u64 {
    ((regs.rdx & 0xffff_ffff) << 32) | (regs.rax & 0xffff_ffff)
}

fn device_attribute(
    vcpu: &VcpuFd,
    request: std::ffi::c_ulong,
    value: &mut u64,
) -> Result<(), errno::Error> {
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(value) as u64,
    };
    // SAFETY: both requests take a kvm_device_attr, and read or write 8 bytes at its address
    // (devices/vcpu.rst 4.1), which `value` borrows mutably across the call.
    let answer = unsafe { ioctl_with_ref(vcpu, request, &attribute) };
    if answer == 0 {
        Ok(())
    } else {
        Err(errno::Error::last())
    }
}

/// The flag that reports a stop appears in the guest's clock page.
fn clock_ctrl(machine: &mut Machine<'_>) -> Seen {
    /// `flags` in `struct pvclock_vcpu_time_info`.
    const FLAGS: u16 = DATA + 29;
    /// `PVCLOCK_GUEST_STOPPED`.
    const STOPPED: u8 = 1 << 1;
    let mut guest = machine.vcpu(
        &[
            0xf4, // 1000: hlt
            0xf4, // 1001: hlt
        ],
        None,
    )?;
    set_msr(&guest.vcpu, SYSTEM_TIME, u64::from(DATA) | 1)?;
    guest.expect(&Exit::Hlt)?;
    if guest.byte(FLAGS)? & STOPPED != 0 {
        return Err(Stop::fails("the guest was told of a stop that was none"));
    }
    guest
        .vcpu
        .kvmclock_ctrl()
        .map_err(refused("KVM_KVMCLOCK_CTRL"))?;
    guest.expect(&Exit::Hlt)?;
    if guest.byte(FLAGS)? & STOPPED == 0 {
        return Err(Stop::fails("the guest was not told of the stop"));
    }
    Ok("the guest's clock page told of a stop".into())
}

/// The value that the guest reads.
pub(super) const MSR_ANSWER: u64 = 0x1234_5678;

/// A filtered RDMSR leaves the guest, and the guest reads the value from userspace.
fn user_msr_exit(machine: &mut Machine<'_>) -> Seen {
    /// `IA32_MISC_ENABLE`: every KVM has it, and no other case reads it.
    const MISC_ENABLE: u32 = 0x1a0;
    filter(machine, MISC_ENABLE, MsrFilterRangeFlags::READ)?;
    let mut guest = machine.vcpu(
        &[
            0x66, 0xb9, 0xa0, 0x01, 0x00, 0x00, // 1000: mov ecx, 0x1a0
            0x0f, 0x32, //                         1006: rdmsr
            0xf4, //                               1008: hlt
        ],
        None,
    )?;
    guest.expect(&Exit::Rdmsr(MISC_ENABLE))?;
    guest.expect(&Exit::Hlt)?;
    let eax = guest.regs()?.rax;
    if eax != MSR_ANSWER {
        return Err(Stop::fails(format!(
            "the guest read {eax:#x}, not the {MSR_ANSWER:#x} it was given"
        )));
    }
    Ok("a filtered RDMSR left the guest and was answered".into())
}

/// A filtered write of IA32_TSC_DEADLINE leaves the guest. VMX may handle the write before KVM looks
/// at the filter, and drop it, as there is no local APIC (vmx.c, `handle_fastpath_set_tscdeadline`).
fn user_tsc_deadline(machine: &mut Machine<'_>) -> Seen {
    /// `IA32_TSC_DEADLINE`.
    const TSC_DEADLINE: u32 = 0x6e0;
    filter(machine, TSC_DEADLINE, MsrFilterRangeFlags::WRITE)?;
    let mut guest = machine.vcpu(
        &[
            0x66, 0xb9, 0xe0, 0x06, 0x00, 0x00, // 1000: mov ecx, 0x6e0
            0x66, 0xb8, 0x45, 0x23, 0x01, 0x00, // 1006: mov eax, 0x12345
            0x66, 0x31, 0xd2, //                   100c: xor edx, edx
            0x0f, 0x30, //                         100f: wrmsr
            0xf4, //                               1011: hlt
        ],
        None,
    )?;
    guest.expect(&Exit::Wrmsr(TSC_DEADLINE, 0x1_2345))?;
    guest.expect(&Exit::Hlt)?;
    Ok("a filtered WRMSR of IA32_TSC_DEADLINE left the guest".into())
}

/// Makes accesses to one MSR leave the guest.
fn filter(machine: &Machine<'_>, msr: u32, accesses: MsrFilterRangeFlags) -> Result<(), Stop> {
    let mut capability = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..Default::default()
    };
    capability.args = [u64::from(KVM_MSR_EXIT_REASON_FILTER), 0, 0, 0];
    machine
        .vm
        .enable_cap(&capability)
        .map_err(refused("KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)"))?;
    let denied = MsrFilterRange {
        flags: accesses,
        base: msr,
        msr_count: 1,
        bitmap: &[0],
    };
    machine
        .vm
        .set_msr_filter(MsrFilterDefaultAction::ALLOW, &[denied])
        .map_err(refused("KVM_X86_SET_MSR_FILTER"))
}

fn check(answer: std::ffi::c_int, call: &'static str) -> Result<(), Stop> {
    if answer == 0 {
        Ok(())
    } else {
        Err(refused(call)(errno::Error::last()))
    }
}
