//! `--irqchip user`: all chips are emulated.
//!
//! Locks are taken in this order: the chipset's, then a vCPU's. The table of destinations is read while
//! no vCPU's lock is held.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use intr_controller::ioapic::IoApic;
use intr_controller::kvm::{
    CallError, ChipStateError, LapicRegisters, Observation, ObserveError, UserEntry, UserVcpu,
};
use intr_controller::pit::{LostTicks, TickCounters};
use intr_controller::{
    Acceptance, ClockReading, Counters, DestinationFormat, Destinations, DestinationsError, Effect,
    Event, Gsi, InterruptMessage, IrqchipMode, Lapic, LapicConfig, MsiMessage, VcpuIndex,
};
use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;
use vmm_sys_util::eventfd::EventFd;

use super::chips::{Chips, ChipsetView};
use super::chipset::{ChipsetThread, Emulated, Processors, lock};
use super::{IrqchipError, SignalError};
use crate::entry::{Entering, MustStop, NMI, Permit};
use crate::exit::ExitEvent;
use crate::wake::{self, Waker};
use debug_stub::x86_64::stepper::RunState;

/// The local APICs, and their destinations.
#[derive(Debug)]
pub(super) struct UserProcessors {
    vcpus: Vec<Mutex<UserVcpu>>,
    destinations: RwLock<Destinations>,
    wakers: Arc<[Waker]>,
}

impl UserProcessors {
    pub(super) fn new(
        configs: impl Iterator<Item = LapicConfig>,
        wakers: Arc<[Waker]>,
    ) -> Result<Self, DestinationsError> {
        let vcpus: Vec<UserVcpu> = configs.map(UserVcpu::new).collect();
        let rows = vcpus.iter().map(|vcpu| vcpu.lapic().destination());
        Ok(Self {
            destinations: RwLock::new(Destinations::new(rows.collect())?),
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            wakers,
        })
    }

    /// Delivers a message. Returns the number of local APICs that it was for, and whether it has merged
    /// with one that is pending in each of them.
    fn send(&self, message: &InterruptMessage) -> (usize, bool) {
        let destinations = self
            .destinations
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut merged = true;
        let targets = destinations.route(message, |target| {
            merged &= self.accept(target, message) == Some(Acceptance::Merged);
        });
        (targets, merged && targets > 0)
    }

    fn accept(&self, target: VcpuIndex, message: &InterruptMessage) -> Option<Acceptance> {
        let vcpu = self.vcpus.get(target.get())?;
        let acceptance = lock(vcpu).lapic_mut().accept(message);
        // A merged interrupt has woken the vCPU when it first came.
        if acceptance == Acceptance::Accepted {
            self.wake(target.get());
        }
        Some(acceptance)
    }

    fn wake(&self, index: usize) {
        if let Some(waker) = self.wakers.get(index) {
            waker.wake();
        }
    }

    /// Brings the table up to date with a vCPU's local APIC.
    fn refresh(&self, index: usize, vcpu: &Mutex<UserVcpu>) {
        let row = lock(vcpu).lapic().destination();
        let place = VcpuIndex(u16::try_from(index).unwrap_or(u16::MAX));
        let mut destinations = self
            .destinations
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = destinations.update(place, row) {
            tracing::error!(%error, "interrupts will miss a vCPU");
        }
    }
}

impl Processors for UserProcessors {
    fn deliver(&self, message: &InterruptMessage) -> bool {
        let (_, merged) = self.send(message);
        merged
    }

    /// INTR is wired to LINT0 of every local APIC (MP spec 1.4, 3.6.2.2, "Virtual Wire Mode").
    fn intr(&self, level: bool) {
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let acceptance = lock(vcpu).lapic_mut().set_lint0(level);
            if acceptance == Acceptance::Accepted {
                self.wake(index);
            }
        }
    }

    /// Messages are made from the entries when they are sent.
    fn ioapic_changed(&self, _: &IoApic) {}
}

/// Returns `true` if the entry is prepared for what would enter with it.
fn is_prepared(entering: &Entering, event: Option<Event>, vcpu: &UserVcpu, fd: &VcpuFd) -> bool {
    match event {
        // What was acknowledged enters before others, and was there as the step was prepared.
        Some(Event::Fixed(vector)) => {
            entering.admits(vector.get()) || vcpu.acknowledged_ext_int().is_some()
        }
        // KVM keeps it while NMIs are blocked.
        Some(Event::Nmi) => {
            entering.admits_nmi()
                || fd
                    .get_vcpu_events()
                    .is_ok_and(|events| events.nmi.masked != 0)
        }
        // An ExtINT's vector is known when it is acknowledged.
        _ => true,
    }
}

impl Emulated<UserProcessors> {
    fn processors(&self) -> &UserProcessors {
        &self.0.processors
    }

    fn vcpu(&self, id: VcpuId) -> Option<&Mutex<UserVcpu>> {
        self.processors().vcpus.get(id.index())
    }

    fn enter(&self, id: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        let (Some(vcpu), Some(waker)) = (self.vcpu(id), self.processors().wakers.get(id.index()))
        else {
            return Permit::Failed(format!("{id} has no local APIC"));
        };
        waker.attend();
        let reading = self.0.clock.read();
        let ran_on = self.0.clock.tsc_ran_on(&reading);
        self.0.advance(reading.now);
        loop {
            let mut locked = lock(vcpu);
            if entering.incomplete && locked.lapic().startup_pending() {
                return Permit::Complete;
            }
            if entering.prepared.is_some() {
                match locked.would_inject(fd, reading.now, ran_on) {
                    Ok(event) if is_prepared(&entering, event, &locked, fd) => {}
                    Ok(_) => return Permit::PrepareAgain,
                    Err(error) => return Permit::Failed(error.to_string()),
                }
            }
            match locked.prepare(fd, entering.masked, reading.now, ran_on) {
                Ok(UserEntry::Run) => {
                    // A step is over soon, and a masked vCPU takes nothing.
                    if !entering.stepping && !entering.masked {
                        wake::set_alarm(locked.lapic().next_deadline(reading.now), &reading);
                    }
                    return Permit::Enter;
                }
                Ok(UserEntry::Wait) => return Permit::Wait,
                Ok(UserEntry::Restarted) => {
                    drop(locked);
                    self.processors().refresh(id.index(), vcpu);
                    return Permit::Restarted;
                }
                Ok(UserEntry::Acknowledge) => {
                    drop(locked);
                    let inject = |vector| lock(vcpu).inject_ext_int(fd, vector);
                    match self.0.acknowledge(&entering, inject) {
                        Some(Ok(())) => {}
                        Some(Err(error)) => return Permit::Failed(error.to_string()),
                        None => return Permit::PrepareAgain,
                    }
                }
                Err(error) => return Permit::Failed(error.to_string()),
            }
        }
    }

    fn observed(
        &self,
        id: VcpuId,
        fd: &VcpuFd,
        masked: bool,
    ) -> Option<Result<Observation, ObserveError>> {
        // What is due by now is pending.
        let ClockReading { now, .. } = self.0.clock.read();
        self.0.advance(now);
        let mut vcpu = lock(self.vcpu(id)?);
        vcpu.lapic_mut().advance(now);
        Some(vcpu.observe(fd, masked))
    }

    /// Acts on the local APIC of a vCPU, if the address is in its page.
    fn at<T>(&self, id: VcpuId, address: u64, act: impl FnOnce(&mut Lapic, u16) -> T) -> Option<T> {
        let mut vcpu = lock(self.vcpu(id)?);
        let offset = vcpu.lapic().mmio_offset(address)?;
        Some(act(vcpu.lapic_mut(), offset))
    }

    /// Does what a register access asks for. No lock is held.
    fn apply(&self, id: VcpuId, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::NotSent { delivery_mode } => {
                tracing::debug!(vcpu = %id, delivery_mode, "an IPI of a delivery mode that does not exist");
            }
            Effect::EoiBroadcast(vector) => self.0.end_of_interrupt(vector.get()),
            Effect::IdentityChanged => {
                if let Some(vcpu) = self.vcpu(id) {
                    self.processors().refresh(id.index(), vcpu);
                }
            }
            Effect::Ipi(ipi) => {
                let processors = self.processors();
                let destinations = processors
                    .destinations
                    .read()
                    .unwrap_or_else(PoisonError::into_inner);
                destinations.route_ipi(VcpuIndex(id.0), ipi, |target, message| {
                    processors.accept(target, message);
                });
            }
        }
    }
}

/// The chips of a machine that has none in the kernel.
impl Chips for Emulated<UserProcessors> {
    fn mode(&self) -> IrqchipMode {
        IrqchipMode::User
    }

    fn signal_msi(&self, message: MsiMessage) -> Result<bool, SignalError> {
        let message = message.decode(DestinationFormat::default())?;
        let (targets, _) = self.processors().send(&message);
        Ok(targets > 0)
    }

    fn connect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqchipError> {
        self.0.connect(event, gsi)
    }

    fn observe(
        &self,
        vcpu: VcpuId,
        fd: &VcpuFd,
        masked: bool,
    ) -> Result<Option<Observation>, ObserveError> {
        self.observed(vcpu, fd, masked).transpose()
    }

    fn before_entry(&self, vcpu: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        self.enter(vcpu, fd, entering)
    }

    fn start(&self, exit: &ExitEvent) -> io::Result<Option<ChipsetThread>> {
        ChipsetThread::start(&self.0, exit.clone()).map(Some)
    }

    fn ticks(&self) -> Option<(LostTicks, TickCounters)> {
        Some(self.0.ticks())
    }

    fn resumed(&self) {
        self.0.resumed();
    }

    fn has_local_timers(&self) -> bool {
        true
    }

    fn after_exit(&self, id: VcpuId, cr8: u64) {
        if let Some(vcpu) = self.vcpu(id) {
            lock(vcpu).returned(cr8);
        }
    }

    fn halted(&self, id: VcpuId) {
        if let Some(vcpu) = self.vcpu(id) {
            lock(vcpu).halt();
        }
    }

    fn wait(&self, id: VcpuId, must_stop: &MustStop<'_>) {
        let (Some(vcpu), Some(waker)) = (self.vcpu(id), self.processors().wakers.get(id.index()))
        else {
            return;
        };
        let ClockReading { now, .. } = self.0.clock.read();
        let deadline = lock(vcpu).lapic().next_deadline(now);
        let left = deadline.map(|at| at.saturating_since(now).max(wake::SHORTEST_WAIT));
        waker.sleep(must_stop, left);
    }

    fn run_state(&self, id: VcpuId) -> Option<RunState> {
        let vcpu = lock(self.vcpu(id)?);
        Some(if vcpu.lapic().waiting_for_sipi() {
            RunState::WaitForSipi
        } else if vcpu.is_halted() {
            RunState::Halted
        } else {
            RunState::Runnable
        })
    }

    fn set_halted(&self, id: VcpuId, halted: bool) {
        if let Some(vcpu) = self.vcpu(id) {
            if halted {
                lock(vcpu).halt();
            } else {
                lock(vcpu).wake();
            }
        }
    }

    fn counters(&self, id: VcpuId) -> Option<Counters> {
        let ClockReading { now, .. } = self.0.clock.read();
        let mut vcpu = lock(self.vcpu(id)?);
        // The timer is looked at when the vCPU enters.
        vcpu.lapic_mut().advance(now);
        Some(*vcpu.lapic().policy().counters())
    }

    fn lapic(&self, id: VcpuId, _: &VcpuFd) -> Result<Option<LapicRegisters>, CallError> {
        let ClockReading { now, .. } = self.0.clock.read();
        let vcpu = self.vcpu(id).map(lock);
        Ok(vcpu.map(|vcpu| LapicRegisters::of(vcpu.lapic(), now)))
    }

    fn chipset(&self) -> Result<ChipsetView, ChipStateError> {
        Ok(self.0.view())
    }

    fn next_interrupt(&self, id: VcpuId, enabled: bool, nmis_blocked: bool) -> Option<u8> {
        // What is due by now is pending.
        let ClockReading { now, .. } = self.0.clock.read();
        self.0.advance(now);
        let mut vcpu = lock(self.vcpu(id)?);
        vcpu.lapic_mut().advance(now);
        let acknowledged = vcpu.acknowledged_ext_int().filter(|_| enabled);
        let next = vcpu.next_event(enabled, nmis_blocked);
        // The chipset's lock comes before a vCPU's.
        drop(vcpu);
        acknowledged.or_else(|| match next? {
            Event::Fixed(vector) => Some(vector.get()),
            Event::ExtInt => Some(self.0.next_ext_int()),
            Event::Nmi => Some(NMI),
            // An SMI is not the guest's.
            _ => None,
        })
    }

    fn requeue(&self, id: VcpuId, vector: u8) -> bool {
        let Some(vcpu) = self.vcpu(id) else {
            return false;
        };
        lock(vcpu).requeue(vector);
        true
    }

    fn cr8(&self, id: VcpuId) -> Option<u8> {
        Some(lock(self.vcpu(id)?).lapic().cr8())
    }

    fn set_cr8(&self, id: VcpuId, value: u64) {
        if let Some(vcpu) = self.vcpu(id) {
            // KVM has taken it, so it has no reserved bit.
            let _ = lock(vcpu).lapic_mut().set_cr8(value);
        }
    }

    fn local_read(&self, id: VcpuId, address: u64, data: &mut [u8]) -> bool {
        let ClockReading { now, .. } = self.0.clock.read();
        self.at(id, address, |lapic, offset| {
            lapic.mmio_read(offset, data, now)
        })
        .is_some()
    }

    fn local_write(&self, id: VcpuId, address: u64, data: &[u8]) -> bool {
        let ClockReading { now, .. } = self.0.clock.read();
        let effect = self.at(id, address, |lapic, offset| {
            lapic.mmio_write(offset, data, now)
        });
        match effect {
            Some(effect) => {
                self.apply(id, effect);
                true
            }
            None => false,
        }
    }

    fn read_msr(&self, id: VcpuId, index: u32) -> Option<u64> {
        if !Lapic::owns_msr(index) {
            return None;
        }
        let ClockReading { now, .. } = self.0.clock.read();
        lock(self.vcpu(id)?).read_msr(index, now).ok()
    }

    fn write_msr(&self, id: VcpuId, fd: &VcpuFd, index: u32, value: u64) -> bool {
        let Some(vcpu) = self.vcpu(id).filter(|_| Lapic::owns_msr(index)) else {
            return false;
        };
        let ClockReading { now, .. } = self.0.clock.read();
        let written = lock(vcpu).write_msr(fd, index, value, now);
        match written {
            Ok(effect) => {
                self.apply(id, effect);
                true
            }
            Err(_) => false,
        }
    }
}

/// Chips of one vCPU, whose 8259A pair has vectors 0x20 to 0x2f, with nothing masked.
#[cfg(test)]
pub(super) fn for_tests() -> Emulated<UserProcessors> {
    let config = LapicConfig {
        virtual_wire: true,
        ..LapicConfig::new(0, true, std::num::NonZeroU64::MIN)
    };
    let wakers = Arc::new([Waker::new().unwrap()]);
    let processors = UserProcessors::new(std::iter::once(config), wakers).unwrap();
    let clock = Arc::new(crate::clock::GuestClock::new(
        intr_controller::DebugTime::default(),
    ));
    let chipset = super::SharedChipset::new(processors, clock, LostTicks::default()).unwrap();
    // ICW1 to ICW4 and OCW1 of both (8259A data sheet, "Initialization Command Words").
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0x21, 0x00),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0xa1, 0x00),
    ] {
        chipset.write_port(port, value);
    }
    let chips = Emulated(Arc::new(chipset));
    // Bit 8 of the spurious-vector register enables the local APIC.
    assert!(chips.local_write(VcpuId(0), 0xfee0_00f0, &0x1ff_u32.to_le_bytes()));
    chips
}

#[cfg(test)]
mod tests {
    use intr_controller::routing::SourceId;

    use super::*;

    const VCPU: VcpuId = VcpuId(0);

    fn raise(chips: &impl Chips, gsi: u32) {
        let source = SourceId::new(0).unwrap();
        crate::devices::InterruptLines::set_line(chips, Gsi(gsi), source, true);
    }

    #[test]
    fn the_vector_of_an_ext_int_is_known_before_it_is_acknowledged() {
        let chips = for_tests();
        assert_eq!(chips.next_interrupt(VCPU, true, false), None);
        raise(&chips, 10);
        assert_eq!(chips.next_interrupt(VCPU, true, false), Some(0x2a));
        assert_eq!(chips.next_interrupt(VCPU, false, false), None);
        // More urgent.
        raise(&chips, 1);
        assert_eq!(chips.next_interrupt(VCPU, true, false), Some(0x21));
        // Asking changes nothing.
        assert_eq!(chips.next_interrupt(VCPU, true, false), Some(0x21));
    }

    #[test]
    fn an_ext_int_that_a_step_is_not_prepared_for_is_not_acknowledged() {
        let chips = for_tests();
        raise(&chips, 1);
        let entering = |prepared| Entering {
            masked: false,
            stepping: true,
            reads_clock: false,
            incomplete: false,
            prepared,
        };
        for unprepared in [Some(None), Some(Some(0x2a))] {
            let taken = chips.0.acknowledge(&entering(unprepared), |vector| vector);
            assert_eq!(taken, None);
            assert!(chips.0.intr());
        }
        let taken = chips
            .0
            .acknowledge(&entering(Some(Some(0x21))), |vector| vector);
        assert_eq!(taken, Some(0x21));
        assert!(!chips.0.intr());
    }

    #[test]
    fn an_interrupt_that_is_put_back_enters_before_others() {
        let chips = for_tests();
        raise(&chips, 1);
        assert!(chips.requeue(VCPU, 0x77));
        assert_eq!(chips.next_interrupt(VCPU, true, false), Some(0x77));
        assert_eq!(chips.next_interrupt(VCPU, false, false), None);
    }
}
