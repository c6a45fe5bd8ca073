//! The chipset under its lock, its thread, and how its messages reach the processors.
//!
//! The thread serves the 8254 when it is due, and the descriptors by which devices signal. It sleeps in
//! one `ppoll`. While the guest is stopped guest time stands still, so only a descriptor wakes it.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use arrayvec::ArrayVec;
use debug_stub::run_control::{Waiting, WakePipe};
use intr_controller::chipset::{Chipset, ChipsetState};
use intr_controller::ioapic::{IoApic, IoApicPins, IoApicVersion, PIN_COUNT};
use intr_controller::pit::{LostTicks, TickCounters};
use intr_controller::routing::{GsiRouter, RouteError, SourceId};
use intr_controller::{DestinationFormat, Gsi, GuestTime, InterruptMessage};
use nix::poll::{PollFd, PollFlags};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::EventFd;

use super::IrqchipError;
use super::chips::ChipsetView;
use crate::clock::GuestClock;
use crate::devices::InterruptLines;
use crate::entry::Entering;
use crate::exit::{ExitEvent, ExitReason};
use crate::terminal;
use crate::wake::{self, SHORTEST_WAIT};

/// The processors, as the chipset sees them.
pub(super) trait Processors: Send + Sync {
    /// Delivers a message. No lock is held. Returns `true` if it is known to have merged with one that is
    /// pending, in each local APIC that it was for.
    fn deliver(&self, message: &InterruptMessage) -> bool;
    /// INTR is at this level. The chipset's lock is held, so levels come in their order.
    fn intr(&self, level: bool);
    /// Entries of the IOAPIC were written, or interrupts of its pins have ended. The chipset's lock is
    /// held, and nothing has been delivered by the new entries.
    fn ioapic_changed(&self, ioapic: &IoApic);
}

/// Room for all that one operation delivers: at most a message for each pin (fuzz target `intr_chipset`).
type Messages = ArrayVec<InterruptMessage, { PIN_COUNT as usize }>;

/// A chipset that several threads use.
pub(super) struct SharedChipset<P> {
    chipset: Mutex<Chipset>,
    pub(super) processors: P,
    pub(super) clock: Arc<GuestClock>,
    /// When the chipset is due, in nanoseconds of guest time; `u64::MAX` is never.
    next: AtomicU64,
    /// Wakes the thread.
    pipe: WakePipe,
    quit: AtomicBool,
    /// What devices signal, and on which GSI.
    events: Mutex<Vec<Arc<(EventFd, Gsi)>>>,
}

impl<P> fmt::Debug for SharedChipset<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedChipset")
            .field("chipset", &self.chipset)
            .finish_non_exhaustive()
    }
}

/// What remains to be done after an operation on the chipset.
#[derive(Default)]
struct Todo {
    messages: Messages,
    changed: IoApicPins,
}

impl Todo {
    fn deliver(&mut self) -> impl FnMut(InterruptMessage) + '_ {
        |message| {
            if let Err(error) = self.messages.try_push(message) {
                tracing::error!(%error, vector = message.vector, "an interrupt is lost");
            }
        }
    }
}

impl<P: Processors> SharedChipset<P> {
    pub(super) fn new(
        processors: P,
        clock: Arc<GuestClock>,
        lost_ticks: LostTicks,
    ) -> Result<Self, SharedChipsetError> {
        let mut chipset = Chipset::new(
            // The 8254 at IOAPIC pin 2, as the ACPI and MP tables say.
            &GsiRouter::pc_entries(),
            IoApicVersion::V20,
            DestinationFormat::default(),
        )?;
        chipset.set_lost_ticks(lost_ticks);
        processors.ioapic_changed(chipset.ioapic());
        Ok(Self {
            chipset: Mutex::new(chipset),
            processors,
            clock,
            next: AtomicU64::new(u64::MAX),
            pipe: WakePipe::new(Waiting::InALoop)?,
            quit: AtomicBool::new(false),
            events: Mutex::default(),
        })
    }

    /// Acts on the chipset, then does what follows from it.
    fn with<T>(&self, act: impl FnOnce(&mut Chipset, &mut Todo) -> T) -> T {
        self.delivering(act).0
    }

    /// As [`Self::with`]. Also returns `true` if messages were delivered and all of them have merged.
    fn delivering<T>(&self, act: impl FnOnce(&mut Chipset, &mut Todo) -> T) -> (T, bool) {
        let mut todo = Todo::default();
        let mut chipset = lock(&self.chipset);
        let intr = chipset.intr();
        let answer = act(&mut chipset, &mut todo);
        if !todo.changed.is_empty() {
            self.processors.ioapic_changed(chipset.ioapic());
        }
        if chipset.intr() != intr {
            self.processors.intr(!intr);
        }
        let next = chipset.next_deadline().map_or(u64::MAX, GuestTime::as_ns);
        let earlier = next < self.next.swap(next, Ordering::AcqRel);
        drop(chipset);
        if earlier {
            self.pipe.wake();
        }
        let mut merged = !todo.messages.is_empty();
        for message in &todo.messages {
            merged &= self.processors.deliver(message);
        }
        (answer, merged)
    }

    pub(super) fn set_line(&self, gsi: Gsi, source: SourceId, level: bool) {
        let set = self.with(|chipset, todo| chipset.set_line(gsi, source, level, todo.deliver()));
        if let Err(error) = set {
            tracing::debug!(%error, "a line that goes nowhere");
        }
    }

    fn pulse(&self, gsi: Gsi) {
        if let Err(error) = self.with(|chipset, todo| chipset.pulse(gsi, todo.deliver())) {
            tracing::debug!(%error, "a line that goes nowhere");
        }
    }

    /// Whether a level awaits an EOI of this vector.
    pub(super) fn awaits_eoi(&self, vector: u8) -> bool {
        !lock(&self.chipset).ioapic().awaiting_eoi(vector).is_empty()
    }

    /// A local APIC's EOI of a level-triggered vector.
    pub(super) fn end_of_interrupt(&self, vector: u8) {
        self.with(|chipset, todo| todo.changed = chipset.eoi(vector, todo.deliver()));
    }

    /// Acknowledges an ExtINT and gives its vector to `inject`, under the chipset's lock: until the
    /// vCPU has it no other vCPU sees that INTR is still up. Returns `None`, and does nothing, if the entry is
    /// not prepared for its vector.
    pub(super) fn acknowledge<T>(
        &self,
        entering: &Entering,
        inject: impl FnOnce(u8) -> T,
    ) -> Option<T> {
        self.with(|chipset, _| {
            if entering.prepared.is_some() && !entering.admits(chipset.next_ext_int()) {
                return None;
            }
            let vector = chipset.acknowledge();
            let answer = inject(vector);
            // Also if it is as before: the acknowledge has ended the request that LINT0 passed on.
            self.processors.intr(chipset.intr());
            Some(answer)
        })
    }

    /// The vector of the ExtINT that would be acknowledged now.
    pub(super) fn next_ext_int(&self) -> u8 {
        lock(&self.chipset).next_ext_int()
    }

    #[cfg(test)]
    pub(super) fn write_port(&self, port: u16, value: u8) {
        self.with(|chipset, todo| {
            chipset.write_port(port, &[value], GuestTime::ZERO, todo.deliver())
        });
    }

    pub(super) fn intr(&self) -> bool {
        lock(&self.chipset).intr()
    }

    /// Serves the 8254 if it is due. A vCPU's thread calls it too, so a step need not wait for the
    /// chipset's thread.
    pub(super) fn advance(&self, now: GuestTime) {
        if now.as_ns() >= self.next.load(Ordering::Acquire) {
            // Nothing but a tick is delivered here.
            let ((), merged) =
                self.delivering(|chipset, todo| chipset.advance(now, todo.deliver()));
            if merged {
                self.with(|chipset, _| chipset.tick_was_lost());
            }
        }
    }

    /// The policy for lost ticks, and the number of ticks of each fate.
    pub(super) fn ticks(&self) -> (LostTicks, TickCounters) {
        let chipset = lock(&self.chipset);
        (chipset.lost_ticks(), chipset.tick_counters())
    }

    /// The state of the chips as it was when they were last asked something. Changes nothing.
    pub(super) fn view(&self) -> ChipsetView {
        let ChipsetState {
            routing: _,
            pic,
            ioapic,
            pit,
        } = lock(&self.chipset).save();
        ChipsetView { pic, ioapic, pit }
    }

    /// Guest time passes again.
    pub(super) fn resumed(&self) {
        if self.next.load(Ordering::Acquire) != u64::MAX {
            self.pipe.wake();
        }
    }

    /// Each event of the descriptor is an edge of the line.
    pub(super) fn connect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqchipError> {
        let event = event.try_clone().map_err(IrqchipError::Eventfd)?;
        lock(&self.events).push(Arc::new((event, gsi)));
        self.pipe.wake();
        Ok(())
    }

    fn serve(&self) {
        while !self.quit.load(Ordering::Acquire) {
            let reading = self.clock.read();
            let mut time = None;
            if reading.running {
                self.advance(reading.now);
                let next = GuestTime::from_ns(self.next.load(Ordering::Acquire));
                if next != GuestTime::MAX {
                    time = Some(next.saturating_since(reading.now).max(SHORTEST_WAIT));
                }
            }
            // Copied: a caller of `connect` must not wait until this thread wakes.
            let events = lock(&self.events).clone();
            let mut polls = Vec::with_capacity(1 + events.len());
            polls.push(PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN));
            let fds = events.iter().map(|source| borrow(&source.0));
            polls.extend(fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            wake::poll(&mut polls, time, "the interrupt chips cannot wait");
            let readable = |poll: &PollFd<'_>| poll.any().unwrap_or(false);
            if polls.first().is_some_and(readable) {
                self.pipe.wait();
            }
            let signalled: Vec<Gsi> = polls
                .iter()
                .skip(1)
                .zip(events.iter())
                .filter(|(poll, _)| readable(poll))
                // Several signals are one edge, as with KVM's irqfd.
                .filter_map(|(_, source)| source.0.read().ok().map(|_| source.1))
                .collect();
            for gsi in signalled {
                self.pulse(gsi);
            }
        }
    }
}

/// An eventfd as what `ppoll` takes.
fn borrow(event: &EventFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` lives, which the result borrows.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(event)) }
}

/// The chipset could not be created.
#[derive(Debug, thiserror::Error)]
pub enum SharedChipsetError {
    /// Its routes.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// No descriptor, or no thread.
    #[error("the interrupt chips' socket pair could not be created")]
    System(#[from] io::Error),
}

/// Requests the end when a panic drops it.
struct EndOnPanic(ExitEvent);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let text =
                "the interrupt chips' thread panicked, and the guest has no timers without it";
            self.0.request(ExitReason::VmmFailed(text.to_owned()));
        }
    }
}

/// The chipset's thread. Dropping it ends it.
pub(crate) struct ChipsetThread {
    stop: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for ChipsetThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChipsetThread").finish_non_exhaustive()
    }
}

impl ChipsetThread {
    pub(super) fn start<P: Processors + 'static>(
        chipset: &Arc<SharedChipset<P>>,
        exit: ExitEvent,
    ) -> io::Result<Self> {
        chipset.quit.store(false, Ordering::Release);
        let served = Arc::clone(chipset);
        let thread = thread::Builder::new().name("chips".to_owned());
        let serve = move || {
            let _guard = EndOnPanic(exit);
            served.serve();
        };
        let thread = terminal::stops_stay_here(|| thread.spawn(serve))??;
        let stopped = Arc::clone(chipset);
        Ok(Self {
            stop: Box::new(move || {
                stopped.quit.store(true, Ordering::Release);
                stopped.pipe.wake();
            }),
            thread: Some(thread),
        })
    }
}

impl Drop for ChipsetThread {
    fn drop(&mut self) {
        (self.stop)();
        if let Some(thread) = self.thread.take() {
            // A panic was printed already.
            let _ = thread.join();
        }
    }
}

/// The chips of a machine whose chipset is emulated: [`Chips`](super::chips::Chips) of both modes that have
/// one.
#[derive(Debug)]
pub(super) struct Emulated<P>(pub(super) Arc<SharedChipset<P>>);

impl<P: Processors> InterruptLines for Emulated<P> {
    fn set_line(&self, gsi: Gsi, source: SourceId, level: bool) {
        self.0.set_line(gsi, source, level);
    }
}

/// The chipset on the machine's bus.
pub(super) struct OnTheBus<P>(pub(super) Arc<SharedChipset<P>>);

impl<P: Processors> DevicePio for OnTheBus<P> {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let port = base.0.wrapping_add(offset);
        let now = self.0.clock.read().now;
        self.0.with(|chipset, _| chipset.read_port(port, data, now));
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let port = base.0.wrapping_add(offset);
        let now = self.0.clock.read().now;
        self.0
            .with(|chipset, todo| chipset.write_port(port, data, now, todo.deliver()));
    }
}

impl<P: Processors> DeviceMmio for OnTheBus<P> {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        lock(&self.0.chipset).read_memory(base.0.wrapping_add(offset), data);
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.0.with(|chipset, todo| {
            let address = base.0.wrapping_add(offset);
            todo.changed = chipset.write_memory(address, data, todo.deliver()).changed;
        });
    }
}

/// Locks, also after a panic elsewhere: the data behind these mutexes is consistent between statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use intr_controller::DebugTime;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    struct Panics;

    impl Processors for Panics {
        fn deliver(&self, _: &InterruptMessage) -> bool {
            false
        }

        fn intr(&self, _: bool) {
            panic!("as a bug would");
        }

        fn ioapic_changed(&self, _: &IoApic) {}
    }

    #[test]
    fn a_panic_of_the_chips_thread_ends_the_machine() {
        let clock = Arc::new(GuestClock::new(DebugTime::default()));
        let chipset = SharedChipset::new(Panics, clock, LostTicks::default()).unwrap();
        let chipset = Arc::new(chipset);
        // ICW1 to ICW4 and OCW1 (8259A data sheet): line 1 is vector 0x21, and raises INTR.
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] {
            chipset.write_port(port, value);
        }
        let exit = ExitEvent::new().unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        chipset.connect(&event, Gsi(1)).unwrap();
        let thread = ChipsetThread::start(&chipset, exit.clone()).unwrap();
        assert_eq!(exit.reason(), None);
        event.write(1).unwrap();
        let begun = Instant::now();
        while exit.reason().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it goes on");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(exit.reason(), Some(ExitReason::VmmFailed(_))));
        drop(thread);
    }
}
