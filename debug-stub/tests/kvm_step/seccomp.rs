//! The list of ioctls is whole: steps under a filter that lets nothing else through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use debug_stub::kvm::{IOCTLS, KvmVcpu, pending_interrupts};
use debug_stub::x86_64::{RegisterFile, RegisterGroups};
use debug_stub::{Armed, StepOrder, StopReason, VcpuOrder};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use vcpu_caps::HwBreakpoint;

use crate::guest::{CODE, Guest, OnStop, TF};

/// `KVM_RUN`, the VMM's own.
const KVM_RUN: u64 = 0xae80;

/// What a thread does beside ioctls: memory, locks, the standard library's own.
const OTHERS: [i64; 12] = [
    libc::SYS_futex,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_write,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sched_yield,
    libc::SYS_exit,
];

/// Nothing but [`IOCTLS`], `KVM_RUN` and [`OTHERS`]; the rest fails with EPERM.
fn filter() -> BpfProgram {
    let allowed = IOCTLS.iter().map(|(_, number)| *number).chain([KVM_RUN]);
    let ioctls = allowed
        .map(|number| {
            let is_it = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number);
            SeccompRule::new(vec![is_it.unwrap()]).unwrap()
        })
        .collect();
    let mut rules: BTreeMap<_, Vec<SeccompRule>> = OTHERS
        .into_iter()
        .map(|number| (number, Vec::new()))
        .collect();
    rules.insert(libc::SYS_ioctl, ioctls);
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        TargetArch::x86_64,
    )
    .unwrap()
    .try_into()
    .unwrap()
}

#[test]
fn a_thread_under_a_filter_of_the_listed_ioctls_can_debug_its_vcpu() {
    // inc ax; out 0x80, al; in al, 0x81; pushf; pop ax; jmp back
    let code = [0x40, 0xe6, 0x80, 0xe4, 0x81, 0x9c, 0x58, 0xeb, 0xf7];
    let mut guest = Guest::new(&code);
    let run = |guest: &mut Guest, order: &VcpuOrder, armed: &Arc<Armed>| {
        let Guest {
            vcpu,
            devices,
            memory,
            stop,
            ..
        } = guest;
        vcpu.run(order, armed, devices, memory, stop, OnStop::Interrupt)
            .unwrap()
    };
    // The watchdog of `Guest::run` is a thread of its own: not here.
    thread::scope(|scope| {
        scope.spawn(|| {
            apply_filter(&filter()).expect("this kernel has seccomp");
            let fd = guest.vcpu.fd();
            let refused = fd.get_cpuid2(1).expect_err("the filter holds");
            assert_eq!(refused.errno(), libc::EPERM);

            let step = |range, mask| {
                VcpuOrder::Step(StepOrder {
                    range,
                    mask,
                    ..StepOrder::default()
                })
            };
            let nothing = Arc::default();
            for mask in [true, false] {
                for _ in 0..20 {
                    let stop = run(&mut guest, &step(None, mask), &nothing);
                    assert_eq!(stop, StopReason::Step);
                }
            }
            let armed = Arc::new(Armed {
                hardware: vec![HwBreakpoint::execute(CODE)],
                ..Armed::default()
            });
            for order in [step(Some(CODE..CODE + 9), true), VcpuOrder::Continue] {
                let stop = run(&mut guest, &order, &armed);
                assert_eq!(stop, StopReason::HardwareBreakpoint);
            }
            // The guest's own trap, and a debugger that reads and writes everything.
            guest.set(|file| file.core.rflags |= TF);
            assert_eq!(
                run(&mut guest, &step(None, true), &nothing),
                StopReason::Step
            );
            let file: RegisterFile = guest.registers();
            guest.vcpu.write_registers(RegisterGroups::all(), &file);
            assert_eq!(guest.vcpu.waiting(), None);
            let masked = guest.vcpu.stepper.is_masked();
            pending_interrupts(guest.vcpu.fd(), masked).unwrap();
            let vcpu = &mut KvmVcpu(&mut guest.vcpu.fd);
            guest.vcpu.stepper.release(vcpu, &guest.memory).unwrap();
        });
    });
}
