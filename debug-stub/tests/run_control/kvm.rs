//! The ready kick, with vCPUs of a real KVM that spin: each interrupt stops each vCPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use debug_stub::run_control::{AllStop, Kick, KickSignal, Order, VcpuThreads};
use debug_stub::{ResumePlan, StopReason, VcpuId, VcpuOrder};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Address as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

const LONG: Duration = Duration::from_secs(60);
/// For vCPU 0, at 0: `jmp .`, which only a kick ends. For the other one, at 2:
/// `1: in al, 0x42; mov cx, 200; 2: loop 2b; jmp 1b`, which is on its way in or out much of the time.
const CODE: &[u8] = &[0xeb, 0xfe, 0xe4, 0x42, 0xb9, 200, 0, 0xe2, 0xfe, 0xeb, 0xf7];

struct Machine {
    vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl Machine {
    fn new() -> Self {
        let kvm = Kvm::new().expect("/dev/kvm is needed");
        let vm = kvm.create_vm().unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let at = memory.get_host_address(GuestAddress(0)).unwrap();
        // SAFETY: within the mapping, which has 0x1000 bytes and no other user yet.
        unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), at, CODE.len()) };
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: GuestAddress(0).raw_value(),
            memory_size: 0x1000,
            userspace_addr: at as u64,
        };
        // SAFETY: the memory lives as long as the VM: both are in `Machine`.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        Self {
            vm,
            _memory: memory,
        }
    }

    fn vcpu(&self, id: u16) -> VcpuFd {
        let fd = self.vm.create_vcpu(u64::from(id)).unwrap();
        let mut special = fd.get_sregs().unwrap();
        special.cs.base = 0;
        special.cs.selector = 0;
        fd.set_sregs(&special).unwrap();
        let mut core = fd.get_regs().unwrap();
        core.rip = 2 * u64::from(id);
        core.rflags = 2;
        fd.set_regs(&core).unwrap();
        fd
    }
}

fn is_kick(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> bool {
    matches!(exit, Err(error) if error.errno() == libc::EINTR)
}

#[test]
fn a_kick_between_the_look_and_the_entry_is_not_lost() {
    let machine = Machine::new();
    let mut fd = machine.vcpu(0);
    let registry = VcpuThreads::new(KickSignal::usual().unwrap());
    let entered = registry.enter(VcpuId(0), &fd).unwrap();
    for _ in 0..100 {
        assert!(entered.may_run(|| false));
        // The signal arrives at once, before KVM_RUN: only `immediate_exit` is left of it.
        registry.kick(VcpuId(0));
        assert!(is_kick(fd.run()));
    }
}

#[test]
fn every_kick_reaches_a_vcpu_wherever_it_is() {
    let machine = Machine::new();
    let registry = Arc::new(VcpuThreads::new(KickSignal::usual().unwrap()));
    let all = AllStop::new(Arc::clone(&registry)).unwrap();
    let exits = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..2)
        .map(|id| {
            let mut fd = machine.vcpu(id);
            let mut handle = all.add(VcpuId(id)).unwrap();
            let registry = Arc::clone(&registry);
            let exits = Arc::clone(&exits);
            thread::spawn(move || {
                let entered = registry.enter(VcpuId(id), &fd).unwrap();
                while let Order::Run(..) = handle.wait_for_order() {
                    while entered.may_run(|| handle.must_stop()) {
                        match fd.run() {
                            Ok(VcpuExit::IoIn(..)) => {
                                exits.fetch_add(1, Ordering::Relaxed);
                            }
                            other => assert!(is_kick(other)),
                        }
                    }
                    handle.report(StopReason::Interrupted);
                }
            })
        })
        .collect();
    let plan = ResumePlan {
        vcpus: vec![VcpuOrder::Continue; 2],
        ..ResumePlan::default()
    };
    for cycle in 0..5000u32 {
        all.resume(&plan).unwrap();
        // From before the order is taken to deep in the guest.
        for _ in 0..cycle * 11 % 4001 {
            std::hint::spin_loop();
        }
        all.interrupt();
        let stops = all.wait_for_stops(Some(LONG));
        assert_eq!(stops, Some(vec![]), "cycle {cycle}: a kick was lost");
    }
    assert!(exits.load(Ordering::Relaxed) > 0, "no vCPU has run");
    for id in 0..2 {
        all.remove(VcpuId(id)).unwrap();
    }
    for thread in threads {
        thread.join().unwrap();
    }
}
