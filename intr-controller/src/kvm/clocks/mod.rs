//! The clocks that KVM keeps for a guest: TSC, kvmclock, the timers of its local APICs, its 8254.
//!
//! KVM cannot stop them. [`KvmClocks::freeze`] notes them when the guest has stopped, and
//! [`KvmClocks::thaw`] sets them back when it goes on, so that the guest sees no time pass in between.
//! The decision how much guest time has passed is [`GuestClock`](crate::GuestClock)'s.
//!
//! # What is exact, and what is not
//!
//! - TSC: all vCPUs are shifted by the same amount, so what the guest has made of their differences stays.
//!   By [`TscControl::Msr`] all get the same value.
//! - The timer of a local APIC goes on with the count that it had. If it expires between the vCPU's last
//!   exit and [`freeze`](KvmClocks::freeze), a periodic timer may lose that one tick.
//! - TSC-deadline: written back after the TSC is shifted. Without [`TscControl`] the TSC has passed the
//!   deadline, and the interrupt comes.
//! - kvmclock and TSC are shifted by the same amount, so that a guest that compares them finds no skew (Linux
//!   takes 0.5 ms for an unstable TSC). With [`TscControl::Offset`] that is exact where `KVM_GET_CLOCK` tells the
//!   host's TSC of the moment (`KVM_CLOCK_HOST_TSC`: Linux 5.16, a host whose TSC is its clock). Otherwise it is as
//!   exact as kvmclock can be read between two reads of the TSC.
//! - On a host whose TSC KVM finds unstable, KVM shows a stopped vCPU's TSC as it was at its last exit, and
//!   computes the one of the next entry from the time since the TSC was set (x86.c, `kvm_guest_time_update`). The
//!   same is computed here from kvmclock: both are set together, for each vCPU, when the clocks are taken over and
//!   at each [`thaw`](KvmClocks::thaw). If the host's TSC becomes unstable later, the first stop is inexact by the
//!   time since the vCPU's last exit.
//! - kvmclock, on a host whose TSC KVM finds unstable: see [`KvmClocks::page_is_stable`].
//! - The 8254 cannot be set back: `KVM_GET_PIT2` does not tell how much of channel 0's period is left, and
//!   `KVM_SET_PIT2` begins every count again. It runs on. Ticks of the stop are dropped except for one,
//!   which is latched, and the next tick comes up to a period early.
//! - An interrupt that another thread sends to a local APIC *during* `thaw` may be lost with the page
//!   that is written back: the caller holds its devices back, or signals again afterwards.

mod timer;

use core::borrow::Borrow;
use core::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd};
use std::vec::Vec;

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_TSC_STABLE, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO,
    kvm_clock_data, kvm_device_attr, kvm_reinject_control,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

use self::timer::{FrozenTimer, Thaw};
use super::calls::{CallError, MSR_TSC, failed, read_msr, write_msr};
use crate::pit::LostTicks;
use crate::x86::MSR_TSC_DEADLINE;
use crate::{GuestTime, IrqchipMode, TscClock};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_io_nr!(KVM_REINJECT_CONTROL, KVMIO, 0x71);

/// The means by which a guest's TSC is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TscControl {
    /// This KVM has none: the TSC runs on.
    #[default]
    None,
    /// `KVM_VCPU_TSC_OFFSET`.
    Offset,
    /// `KVM_SET_MSRS` of IA32_TSC.
    Msr,
}

/// KVM takes a write of IA32_TSC that is within a second of what it expects for an attempt to synchronise
/// vCPUs (x86.c, `kvm_synchronize_tsc`), and sets what it expects. A value as far away as this is set as it
/// is: 2^44 ticks are more than an hour.
const FAR: u64 = 1 << 44;

/// Two clocks that are read within this time are read at once.
const CLOSE_NS: u64 = 100_000;
/// How often it is tried to read or set two clocks at once, on a busy host.
const ATTEMPTS: u32 = 10;

/// Clocks that were read one after the other.
#[derive(Clone, Copy, Debug, Default)]
struct Readings {
    tsc: u64,
    clock_ns: u64,
    /// The time between the first and the last: 0 if it is one moment.
    apart_ns: u64,
    /// The TSC stands still: it is the one of the vCPU's last exit.
    of_last_exit: bool,
}

/// TSCs, by vCPU, and kvmclock as they were set together.
#[derive(Clone, Debug)]
struct Together {
    tsc: Vec<u64>,
    clock_ns: u64,
}

/// The clocks that KVM keeps for a guest.
///
/// It has descriptors of its own of the vCPUs. Call it from any thread while no vCPU runs.
#[derive(Debug)]
pub struct KvmClocks<V> {
    vm: V,
    vcpus: Vec<VcpuFd>,
    tsc: TscControl,
    tsc_hz: NonZeroU64,
    mode: IrqchipMode,
    lost_ticks: LostTicks,
    /// Since when the TSC follows kvmclock, where KVM shows the TSC of a vCPU's last exit.
    together: Option<Together>,
}

/// The clocks at a stop.
#[derive(Clone, Debug)]
pub struct FrozenClocks {
    at: GuestTime,
    tsc: u64,
    /// The TSC of each vCPU, where KVM shows the one of its last exit.
    computed_tsc: Option<Vec<u64>>,
    clock_ns: u64,
    /// By vCPU; empty if the local APICs are not KVM's.
    timers: Vec<FrozenTimer>,
}

impl<V: Borrow<VmFd>> KvmClocks<V> {
    /// For all vCPUs of a VM. `tsc` is what the host was verified to have. KVM's 8254, if there is one,
    /// gets the policy for lost ticks.
    ///
    /// # Errors
    /// If KVM refuses, or the process has no descriptor left.
    pub fn new(
        vm: V,
        vcpus: &[VcpuFd],
        tsc: TscControl,
        tsc_hz: NonZeroU64,
        mode: IrqchipMode,
        lost_ticks: LostTicks,
    ) -> Result<Self, CallError> {
        let vcpus = vcpus
            .iter()
            .map(|vcpu| another_descriptor(vm.borrow(), vcpu))
            .collect::<Result<_, _>>()?;
        let mut clocks = Self {
            vm,
            vcpus,
            tsc,
            tsc_hz,
            mode,
            lost_ticks,
            together: None,
        };
        let Readings {
            clock_ns,
            of_last_exit,
            ..
        } = clocks.read()?;
        if of_last_exit {
            let tsc = clocks.vcpus.iter().map(|vcpu| read_msr(vcpu, MSR_TSC));
            let tsc = tsc.collect::<Result<_, _>>()?;
            clocks.set_together(tsc, clock_ns)?;
        }
        if mode == IrqchipMode::Kernel {
            set_reinjection(clocks.vm.borrow(), lost_ticks == LostTicks::Reinject)?;
        }
        Ok(clocks)
    }

    /// The means by which the TSC is set.
    #[must_use]
    pub const fn tsc(&self) -> TscControl {
        self.tsc
    }

    /// Returns `true` if KVM changes the guest's kvmclock page only when a clock is set
    /// (`KVM_CLOCK_TSC_STABLE`). On a host whose TSC it finds unstable it changes the page at every entry:
    /// a guest that is stepped through a read of kvmclock finds the page changed, and reads again for ever.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn page_is_stable(&self) -> Result<bool, CallError> {
        Ok(self.read_clock()?.flags & KVM_CLOCK_TSC_STABLE != 0)
    }

    /// Notes the clocks. Call it when the last vCPU has stopped; `at` is guest time.
    ///
    /// # Errors
    /// If KVM refuses. The guest goes on with clocks that have run.
    pub fn freeze(&self, at: GuestTime) -> Result<FrozenClocks, CallError> {
        let Readings {
            tsc,
            clock_ns,
            of_last_exit,
            ..
        } = self.read()?;
        let computed_tsc = of_last_exit.then(|| self.compute_tsc(clock_ns));
        let timers = match self.mode {
            IrqchipMode::User => Vec::new(),
            IrqchipMode::Kernel | IrqchipMode::Split => self
                .vcpus
                .iter()
                .map(read_timer)
                .collect::<Result<_, _>>()?,
        };
        Ok(FrozenClocks {
            at,
            tsc,
            computed_tsc: computed_tsc.transpose()?,
            clock_ns,
            timers,
        })
    }

    /// Sets the clocks back to what they were, and on by the guest time that has passed since. Call it
    /// before the first vCPU runs, and [`drop_ticks`](Self::drop_ticks) after a long stop.
    ///
    /// # Errors
    /// If KVM refuses. Some clocks may have been set.
    pub fn thaw(&mut self, frozen: &FrozenClocks, now: GuestTime) -> Result<(), CallError> {
        let passed = now.saturating_since(frozen.at);
        let target = |tsc| {
            let clock = TscClock::new(self.tsc_hz).with_ticks_at(frozen.at, tsc);
            clock.ticks_at(now)
        };
        let passed_ns = now.saturating_ns_since(frozen.at);
        let clock_ns = frozen.clock_ns.saturating_add(passed_ns);
        if let Some(computed) = &frozen.computed_tsc {
            let targets = computed.iter().copied().map(target).collect();
            self.set_together(targets, clock_ns)?;
        } else {
            let target = target(frozen.tsc);
            self.set_tsc(target)?;
            self.set_clock(clock_ns, target)?;
        }
        for (vcpu, timer) in self.vcpus.iter().zip(&frozen.timers) {
            if timer.is_armed() {
                self.thaw_timer(vcpu, timer, passed)?;
            }
        }
        Ok(())
    }

    /// Drops the ticks that KVM's 8254 still owes the guest: they would come as fast as the guest takes
    /// them. It takes KVM some milliseconds, which wait for RCU: too long for each step.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn drop_ticks(&self) -> Result<(), CallError> {
        if self.mode == IrqchipMode::Kernel && self.lost_ticks == LostTicks::Reinject {
            // Switching it on forgets the backlog (i8254.c, `kvm_pit_set_reinject`).
            set_reinjection(self.vm.borrow(), false)?;
            set_reinjection(self.vm.borrow(), true)?;
        }
        Ok(())
    }

    /// The TSC of the first vCPU. By [`TscControl::Msr`] all get the same value, so it is the greatest: where
    /// KVM finds the host's TSC unstable, it shows a vCPU's as it was at the last exit.
    fn read_tsc(&self) -> Result<u64, CallError> {
        let read = match self.tsc {
            TscControl::None => 0,
            TscControl::Offset => 1,
            TscControl::Msr => self.vcpus.len(),
        };
        let mut tsc = 0;
        for vcpu in self.vcpus.iter().take(read) {
            tsc = read_msr(vcpu, MSR_TSC)?.max(tsc);
        }
        Ok(tsc)
    }

    /// Reads the TSC and kvmclock, as close to each other as the host's scheduler permits.
    fn read(&self) -> Result<Readings, CallError> {
        let mut best: Option<Readings> = None;
        for _ in 0..ATTEMPTS {
            let before = self.read_tsc()?;
            let clock = self.read_clock()?;
            let clock_ns = clock.clock;
            let after = self.read_tsc()?;
            let (tsc, apart_ns) = match self.tsc_of(&clock)? {
                Some(tsc) if (before..=after).contains(&tsc) => (tsc, 0),
                // Or the guest's TSC runs at another frequency than the host's.
                _ => {
                    let apart = after.saturating_sub(before);
                    (before.wrapping_add(apart / 2), self.ns(apart))
                }
            };
            if best.as_ref().is_none_or(|best| apart_ns < best.apart_ns) {
                best = Some(Readings {
                    tsc,
                    clock_ns,
                    apart_ns,
                    of_last_exit: self.tsc != TscControl::None && before == after,
                });
            }
            if apart_ns < CLOSE_NS {
                break;
            }
        }
        Ok(best.unwrap_or_default())
    }

    /// The TSC at the moment at which kvmclock was read, if KVM tells.
    fn tsc_of(&self, clock: &kvm_clock_data) -> Result<Option<u64>, CallError> {
        let tells = self.tsc == TscControl::Offset && clock.flags & KVM_CLOCK_HOST_TSC != 0;
        match self.vcpus.first() {
            Some(vcpu) if tells => Ok(Some(clock.host_tsc.wrapping_add(tsc_offset(vcpu)?))),
            _ => Ok(None),
        }
    }

    /// What the TSC of each vCPU would be if it entered when kvmclock is `clock_ns`. KVM does not compute less than
    /// the TSC of the last exit: the guest may have set it forward.
    fn compute_tsc(&self, clock_ns: u64) -> Result<Vec<u64>, CallError> {
        let vcpus = self.vcpus.iter();
        let last = vcpus.map(|vcpu| read_msr(vcpu, MSR_TSC));
        let last = last.collect::<Result<Vec<_>, _>>()?;
        let Some(together) = &self.together else {
            // Since when the host's TSC is unstable, nobody knows. Until then vCPUs had equal TSCs.
            let newest = last.iter().copied().max().unwrap_or_default();
            return Ok(last.iter().map(|_| newest).collect());
        };
        let since = self.ticks(clock_ns.saturating_sub(together.clock_ns));
        let computed = together.tsc.iter().map(|tsc| tsc.wrapping_add(since));
        let later = |(last, computed): (u64, u64)| {
            let ahead = computed.wrapping_sub(last);
            if ahead > u64::MAX / 2 { last } else { computed }
        };
        Ok(last.into_iter().zip(computed).map(later).collect())
    }

    /// Sets kvmclock, and the TSC of each vCPU at the same moment of guest time, where KVM shows the TSC of the
    /// last exit.
    fn set_together(&mut self, tsc: Vec<u64>, clock_ns: u64) -> Result<(), CallError> {
        let tsc = match self.tsc {
            TscControl::None | TscControl::Offset => tsc,
            TscControl::Msr => {
                let newest = tsc.iter().copied().max().unwrap_or_default();
                tsc.iter().map(|_| newest).collect()
            }
        };
        self.write_clock(clock_ns)?;
        let set = match self.tsc {
            TscControl::None => 0,
            TscControl::Offset => self.vcpus.len(),
            TscControl::Msr => 1, // sets all
        };
        for (vcpu, tsc) in self.vcpus.iter().zip(&tsc).take(set) {
            for _ in 0..ATTEMPTS {
                let before = self.read_clock()?.clock;
                let since = self.ticks(before.saturating_sub(clock_ns));
                let target = tsc.wrapping_add(since);
                if self.tsc == TscControl::Offset {
                    let shift = target.wrapping_sub(read_msr(vcpu, MSR_TSC)?);
                    set_tsc_offset(vcpu, tsc_offset(vcpu)?.wrapping_add(shift))?;
                } else {
                    self.set_tsc(target)?;
                }
                // The thread may have been kept from running in between.
                if self.read_clock()?.clock.saturating_sub(before) < CLOSE_NS {
                    break;
                }
            }
        }
        self.together = Some(Together { tsc, clock_ns });
        Ok(())
    }

    fn read_clock(&self) -> Result<kvm_clock_data, CallError> {
        let clock = self.vm.borrow().get_clock();
        clock.map_err(failed("KVM_GET_CLOCK"))
    }

    /// Without `KVM_CLOCK_REALTIME`: KVM would add the length of the stop.
    fn write_clock(&self, clock_ns: u64) -> Result<(), CallError> {
        let clock = kvm_clock_data {
            clock: clock_ns,
            ..Default::default()
        };
        let set = self.vm.borrow().set_clock(&clock);
        set.map_err(failed("KVM_SET_CLOCK"))
    }

    /// Sets kvmclock to what it was when the TSC was `tsc`, and on by what the TSC has run since. A guest that
    /// compares the two takes its TSC for unstable if they have moved apart.
    fn set_clock(&self, clock_ns: u64, tsc: u64) -> Result<(), CallError> {
        let expected = |now: u64| match self.tsc {
            TscControl::None => clock_ns,
            TscControl::Offset | TscControl::Msr => {
                clock_ns.saturating_add(self.ns(now.wrapping_sub(tsc)))
            }
        };
        for _ in 0..ATTEMPTS {
            self.write_clock(expected(self.read_tsc()?))?;
            if self.tsc == TscControl::None {
                break;
            }
            // The thread may have been kept from running in between.
            let seen = self.read()?;
            if seen.clock_ns.abs_diff(expected(seen.tsc)) < 2 * CLOSE_NS {
                break;
            }
        }
        if self.tsc == TscControl::Offset {
            // KVM sets kvmclock to a value at whichever moment of the call. The TSC follows.
            let seen = self.read()?;
            let ticks = self.ticks(seen.clock_ns.saturating_sub(clock_ns));
            self.shift_tsc(tsc.wrapping_add(ticks).wrapping_sub(seen.tsc))?;
        }
        Ok(())
    }

    /// Nanoseconds in ticks of the TSC.
    fn ticks(&self, ns: u64) -> u64 {
        TscClock::new(self.tsc_hz).ticks_at(GuestTime::from_ns(ns))
    }

    /// Ticks of the TSC in nanoseconds. A counter that has gone backwards counts as one that has stood still.
    fn ns(&self, ticks: u64) -> u64 {
        let ticks = if ticks > u64::MAX / 2 { 0 } else { ticks };
        let ns = u128::from(ticks) * 1_000_000_000 / u128::from(self.tsc_hz.get());
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    fn set_tsc(&self, target: u64) -> Result<(), CallError> {
        let Some((first, others)) = self.vcpus.split_first() else {
            return Ok(());
        };
        match self.tsc {
            TscControl::None => {}
            TscControl::Offset => {
                self.shift_tsc(target.wrapping_sub(read_msr(first, MSR_TSC)?))?;
            }
            TscControl::Msr => {
                write_msr(first, MSR_TSC, target.wrapping_add(FAR))?;
                write_msr(first, MSR_TSC, target)?;
                // Within a second of the first: KVM gives them its offset.
                for vcpu in others {
                    write_msr(vcpu, MSR_TSC, target)?;
                }
            }
        }
        Ok(())
    }

    /// Adds to the TSC of each vCPU. For [`TscControl::Offset`].
    fn shift_tsc(&self, ticks: u64) -> Result<(), CallError> {
        for vcpu in &self.vcpus {
            let offset = tsc_offset(vcpu)?;
            set_tsc_offset(vcpu, offset.wrapping_add(ticks))?;
        }
        Ok(())
    }

    fn thaw_timer(
        &self,
        vcpu: &VcpuFd,
        timer: &FrozenTimer,
        passed: core::time::Duration,
    ) -> Result<(), CallError> {
        let (page, deadline) = read_page(vcpu)?;
        if self.tsc == TscControl::None && FrozenTimer::uses_deadline(&page) {
            return Ok(());
        }
        let Some(Thaw { page, deadline }) = timer.thaw(&page, deadline, passed) else {
            return Ok(());
        };
        vcpu.set_lapic(&page).map_err(failed("KVM_SET_LAPIC"))?;
        if let Some(deadline) = deadline {
            write_msr(vcpu, MSR_TSC_DEADLINE, deadline)?;
        }
        Ok(())
    }
}

fn read_timer(vcpu: &VcpuFd) -> Result<FrozenTimer, CallError> {
    let (page, deadline) = read_page(vcpu)?;
    Ok(FrozenTimer::new(page, deadline))
}

/// The local APIC's page, and IA32_TSC_DEADLINE if the timer uses it.
fn read_page(vcpu: &VcpuFd) -> Result<(kvm_bindings::kvm_lapic_state, u64), CallError> {
    let page = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    let deadline = if FrozenTimer::uses_deadline(&page) {
        read_msr(vcpu, MSR_TSC_DEADLINE)?
    } else {
        0
    };
    Ok((page, deadline))
}

fn another_descriptor(vm: &VmFd, vcpu: &VcpuFd) -> Result<VcpuFd, CallError> {
    #[expect(unsafe_code, reason = "a VcpuFd is no OwnedFd")]
    // SAFETY: the descriptor is open while `vcpu` lives, which is longer than the borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    let copy = fd.as_fd().try_clone_to_owned().map_err(|error| {
        let number = error.raw_os_error().unwrap_or_default();
        failed("dup of a vCPU's descriptor")(errno::Error::new(number))
    })?;
    #[expect(unsafe_code, reason = "kvm-ioctls has no other way from a descriptor")]
    // SAFETY: the descriptor is that of a vCPU, and the callee owns it from here on.
    let vcpu = unsafe { vm.create_vcpu_from_rawfd(copy.into_raw_fd()) };
    vcpu.map_err(failed("mmap of a vCPU"))
}

fn set_reinjection(vm: &VmFd, reinject: bool) -> Result<(), CallError> {
    let control = kvm_reinject_control {
        pit_reinject: reinject.into(),
        ..Default::default()
    };
    #[expect(unsafe_code, reason = "kvm-ioctls does not have KVM_REINJECT_CONTROL")]
    // SAFETY: KVM_REINJECT_CONTROL reads a `kvm_reinject_control`, which lives across the call.
    let answer = unsafe { ioctl_with_ref(vm, KVM_REINJECT_CONTROL(), &control) };
    check(answer, "KVM_REINJECT_CONTROL")
}

fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, CallError> {
    let mut offset = 0;
    let call = "KVM_GET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)";
    offset_attribute(vcpu, KVM_GET_DEVICE_ATTR(), &mut offset, call)?;
    Ok(offset)
}

fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), CallError> {
    let call = "KVM_SET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)";
    offset_attribute(vcpu, KVM_SET_DEVICE_ATTR(), &mut offset, call)
}

fn offset_attribute(
    vcpu: &VcpuFd,
    request: core::ffi::c_ulong,
    value: &mut u64,
    call: &'static str,
) -> Result<(), CallError> {
    let value: *mut u64 = value;
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: value as u64,
    };
    #[expect(unsafe_code, reason = "kvm-ioctls does not have it for a vCPU of x86")]
    // SAFETY: both requests take a kvm_device_attr, and read or write 8 bytes at its address
    // (devices/vcpu.rst 4.1), which `value` borrows mutably across the call.
    let answer = unsafe { ioctl_with_ref(vcpu, request, &attribute) };
    check(answer, call)
}

fn check(answer: core::ffi::c_int, call: &'static str) -> Result<(), CallError> {
    if answer == 0 {
        Ok(())
    } else {
        Err(failed(call)(errno::Error::last()))
    }
}
