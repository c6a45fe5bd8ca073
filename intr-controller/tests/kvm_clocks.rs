//! KVM's clocks before and after a stop, without a guest: what is written back is what was read.
#![cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "helpers of tests stop the test, and a stop takes its time"
)]

use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use intr_controller::kvm::{KernelIrqchip, KvmClocks, SplitIrqchip, TscControl};
use intr_controller::pit::LostTicks;
use intr_controller::{GuestTime, IrqchipMode};
use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr,
    kvm_lapic_state, kvm_msr_entry,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

const STOP: Duration = Duration::from_millis(500);
/// More than the calls take on a busy machine, and less than the stop.
const MOST_NS: u64 = 300_000_000;
const AT: GuestTime = GuestTime::from_ns(1_000_000_000);

const IA32_TSC: u32 = 0x10;
const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;
/// At 1 GHz, 4 seconds.
const COUNT: u32 = 4_000_000_000;

struct Machine {
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    tsc_hz: NonZeroU64,
    mode: IrqchipMode,
}

impl Machine {
    fn new(mode: IrqchipMode) -> Self {
        let kvm = Kvm::new().unwrap_or_else(|error| panic!("/dev/kvm: {error}"));
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.set_tss_address(0xfffb_d000).unwrap();
        match mode {
            IrqchipMode::Kernel => drop(KernelIrqchip::new(Arc::clone(&vm)).unwrap()),
            IrqchipMode::Split => drop(SplitIrqchip::new(Arc::clone(&vm)).unwrap()),
            IrqchipMode::User => {}
        }
        let vcpus: Vec<VcpuFd> = (0..2).map(|id| vm.create_vcpu(id).unwrap()).collect();
        let khz = vcpus[0].get_tsc_khz().unwrap();
        Self {
            vm,
            vcpus,
            tsc_hz: NonZeroU64::new(1000 * u64::from(khz)).unwrap(),
            mode,
        }
    }

    fn clocks(&self, tsc: TscControl) -> KvmClocks<Arc<VmFd>> {
        KvmClocks::new(
            Arc::clone(&self.vm),
            &self.vcpus,
            tsc,
            self.tsc_hz,
            self.mode,
            LostTicks::Reinject,
        )
        .unwrap()
    }

    fn tsc_ns(&self, vcpu: usize) -> u64 {
        let entry = kvm_msr_entry {
            index: IA32_TSC,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).unwrap();
        assert_eq!(self.vcpus[vcpu].get_msrs(&mut msrs), Ok(1));
        let ns = u128::from(msrs.as_slice()[0].data) * 1_000_000_000;
        u64::try_from(ns / u128::from(self.tsc_hz.get())).unwrap()
    }

    fn clock_ns(&self) -> u64 {
        self.vm.get_clock().unwrap().clock
    }

    fn count(&self) -> u32 {
        register(&self.vcpus[0].get_lapic().unwrap(), CURRENT_COUNT)
    }

    fn start_timer(&self, lvt: u32) {
        let mut page = self.vcpus[0].get_lapic().unwrap();
        for (at, value) in [
            (LVT_TIMER, lvt | 0x45),
            (DIVIDE, 0b1011),
            (INITIAL_COUNT, COUNT),
            (CURRENT_COUNT, COUNT - 1000),
        ] {
            set_register(&mut page, at, value);
        }
        self.vcpus[0].set_lapic(&page).unwrap();
    }
}

fn register(page: &kvm_lapic_state, at: usize) -> u32 {
    let bytes: Vec<u8> = page.regs[at..at + 4]
        .iter()
        .map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()))
        .collect();
    u32::from_le_bytes(bytes.try_into().unwrap())
}

fn set_register(page: &mut kvm_lapic_state, at: usize, value: u32) {
    for (place, byte) in page.regs[at..].iter_mut().zip(value.to_le_bytes()) {
        *place = std::ffi::c_char::from_ne_bytes([byte]);
    }
}

/// The control: they run.
fn assert_runs(machine: &Machine, timer: bool) {
    let before = (machine.clock_ns(), machine.count_if(timer));
    thread::sleep(STOP);
    let stop = u64::try_from(STOP.as_nanos()).unwrap();
    assert!(machine.clock_ns() - before.0 > stop * 9 / 10);
    assert!(!timer || u64::from(before.1 - machine.count()) > stop * 9 / 10);
}

impl Machine {
    fn count_if(&self, timer: bool) -> u32 {
        if timer { self.count() } else { 0 }
    }
}

fn stop_and_go(mode: IrqchipMode, lvt: u32, passed: u64) {
    let machine = Machine::new(mode);
    let timer = mode != IrqchipMode::User;
    if timer {
        machine.start_timer(lvt);
    }
    assert_runs(&machine, timer);
    let mut clocks = machine.clocks(TscControl::None);
    let before = (machine.clock_ns(), machine.count_if(timer));
    let frozen = clocks.freeze(AT).unwrap();
    thread::sleep(STOP);
    clocks.thaw(&frozen, AT.saturating_add_ns(passed)).unwrap();
    let clock = machine.clock_ns() - before.0;
    assert!(
        (passed..passed + MOST_NS).contains(&clock),
        "{mode:?}: {clock}"
    );
    if timer {
        let counted = u64::from(before.1 - machine.count());
        assert!(
            (passed..passed + MOST_NS).contains(&counted),
            "{mode:?}: {counted}"
        );
    }
    // They go on.
    assert_runs(&machine, timer);
}

#[test]
fn kvmclock_and_a_one_shot_timer_go_on_where_they_stood() {
    for mode in IrqchipMode::ALL {
        stop_and_go(mode, 0, 0);
    }
}

#[test]
fn a_periodic_timer_goes_on_where_it_stood_and_by_what_has_passed() {
    for mode in IrqchipMode::ALL {
        stop_and_go(mode, 1 << 17, 400_000_000);
    }
}

/// Also where KVM cannot set the TSC: then both run on together.
#[test]
fn the_tscs_of_all_vcpus_stay_equal() {
    for mode in IrqchipMode::ALL {
        for control in [TscControl::None, TscControl::Offset, TscControl::Msr] {
            let machine = Machine::new(mode);
            let mut clocks = machine.clocks(control);
            let frozen = match clocks.freeze(AT) {
                Ok(frozen) => frozen,
                Err(error) => panic!("{control:?}: {error}"),
            };
            thread::sleep(Duration::from_millis(50));
            if let Err(error) = clocks.thaw(&frozen, AT) {
                // Before Linux 5.16.
                assert_eq!(control, TscControl::Offset, "{error}");
                println!("no KVM_VCPU_TSC_OFFSET: {error}");
                continue;
            }
            let apart = (0..20)
                .map(|_| machine.tsc_ns(0).abs_diff(machine.tsc_ns(1)))
                .min()
                .unwrap();
            assert!(apart < 2_000_000, "{mode:?} {control:?}: {apart} ns");
        }
    }
}

/// TSC and kvmclock of one moment, from KVM's own pair.
fn pair(machine: &Machine) -> Option<(u64, u64)> {
    let clock = machine.vm.get_clock().unwrap();
    let host_tsc = (clock.flags & KVM_CLOCK_HOST_TSC != 0).then_some(clock.host_tsc)?;
    let mut offset = 0_u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw mut offset as u64,
        ..Default::default()
    };
    let fd = machine.vcpus[0].as_raw_fd();
    // KVM_GET_DEVICE_ATTR
    let request = libc::_IOW::<kvm_device_attr>(0xae, 0xe2);
    // SAFETY: it takes a kvm_device_attr, and writes 8 bytes at its address, which is `offset`.
    let answer = unsafe { libc::ioctl(fd, request, &raw const attribute) };
    (answer == 0).then(|| (host_tsc.wrapping_add(offset), clock.clock))
}

/// Linux takes a skew of 0.5 ms between two clocks for an unstable TSC, and stops add up.
#[test]
fn tsc_and_kvmclock_stay_together_over_stops() {
    for mode in IrqchipMode::ALL {
        let machine = Machine::new(mode);
        let Some((tsc, clock_ns)) = pair(&machine) else {
            println!(
                "not exact: this KVM does not tell the host's TSC of the moment (KVM_CLOCK_HOST_TSC)"
            );
            return;
        };
        let mut clocks = machine.clocks(TscControl::Offset);
        for _ in 0..10 {
            let frozen = clocks.freeze(AT).unwrap();
            thread::sleep(Duration::from_millis(10));
            clocks.thaw(&frozen, AT).unwrap();
        }
        let after = pair(&machine).unwrap();
        let ticks = u128::from(after.0.wrapping_sub(tsc));
        let tsc_ns = ticks * 1_000_000_000 / u128::from(machine.tsc_hz.get());
        let skew = i128::try_from(tsc_ns).unwrap() - i128::from(after.1 - clock_ns);
        // The TSC's frequency is known to 1 kHz only.
        let inexact = i128::from(after.1 - clock_ns) * 1000 / i128::from(machine.tsc_hz.get());
        println!("{mode:?}: {skew} ns, of which {inexact} may be the frequency's");
        assert!(skew.abs() < 10_000 + inexact, "{mode:?}: {skew} ns");
    }
}

/// Where KVM finds the host's TSC unstable it shows the TSC of a vCPU's last exit: what it would be at the next entry
/// is computed. The vCPUs here never enter.
#[test]
fn tsc_and_kvmclock_go_on_together_however_long_the_last_exit_ago() {
    const AWAY: Duration = Duration::from_millis(200);
    let skew = |control, vcpu| {
        let machine = Machine::new(IrqchipMode::Kernel);
        let mut clocks = machine.clocks(control);
        let tsc = machine.tsc_ns(vcpu);
        let clock_ns = machine.clock_ns();
        thread::sleep(AWAY);
        let frozen = clocks.freeze(AT).ok()?;
        thread::sleep(AWAY);
        clocks.thaw(&frozen, AT).ok()?;
        let tsc = machine.tsc_ns(vcpu) - tsc;
        let clock_ns = machine.clock_ns() - clock_ns;
        assert!(clock_ns >= 200_000_000);
        Some(tsc.abs_diff(clock_ns))
    };
    for control in [TscControl::Offset, TscControl::Msr] {
        for vcpu in 0..2 {
            // The least, on a busy machine.
            let Some(skew) = (0..5).map(|_| skew(control, vcpu)).min().unwrap() else {
                assert_eq!(control, TscControl::Offset, "IA32_TSC can be set");
                println!("no KVM_VCPU_TSC_OFFSET before Linux 5.16");
                continue;
            };
            println!("{control:?}, vCPU {vcpu}: {skew} ns");
            assert!(skew < 5_000_000, "{control:?}, vCPU {vcpu}: {skew} ns");
        }
    }
}
