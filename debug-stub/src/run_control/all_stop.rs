//! Run control for a VMM with a thread for each vCPU.
#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_types,
    reason = "this is the adapter that has the lock: the core has none"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use thiserror::Error;
use vcpu_caps::VcpuId;

use super::control::{Effect, Order, ResumeError, RunControl, StopError, VcpuError};
use super::wake_pipe::{Waiting, WakePipe};
use crate::order::{Armed, ResumePlan, Stop, StopReason, VcpuOrder};

/// What the VMM does for [`AllStop`]: one method. A closure that takes a [`VcpuId`] is one, for a
/// VMM that has a kick already; [`VcpuThreads`](super::VcpuThreads) is one for KVM.
pub trait Kick: Send + Sync {
    /// Makes a vCPU leave the guest, or its next entry return at once: see [the
    /// contract](super#the-kick-contract). Also wakes it up if the VMM lets it sleep in HLT.
    ///
    /// The call may come late: the vCPU may have stopped, or its thread may have ended. It then must
    /// do nothing, or no more than a spurious exit. [`VcpuHandle::must_stop`] is true before the call. It
    /// is called on any thread, without a lock of [`AllStop`]'s; it must not wait for the vCPU.
    fn kick(&self, vcpu: VcpuId);

    /// All vCPUs have stopped: for what must stop with them, such as the guest's clocks. Called before a
    /// controller can take the stops, with [`AllStop`]'s lock held: it must return soon, and must not
    /// call [`AllStop`]. Also called for an interrupt of a guest that is stopped already.
    fn all_stopped(&self) {}
}

impl<F: Fn(VcpuId) + Send + Sync> Kick for F {
    fn kick(&self, vcpu: VcpuId) {
        self(vcpu);
    }
}

/// A vCPU could not be added.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddError {
    /// Its id is in use.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Its wake pipe could not be created.
    #[error("the wake pipe of {vcpu} could not be created: raise the limit of open files")]
    Pipe {
        /// The vCPU.
        vcpu: VcpuId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a vCPU's thread and the others share.
#[derive(Debug)]
struct Seat {
    pipe: WakePipe,
    /// [`RunControl::must_stop`], readable without the lock. Written under the lock: when an order is
    /// taken, before a kick, and when the order is done.
    must_stop: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    control: RunControl,
    seats: BTreeMap<VcpuId, Arc<Seat>>,
    /// The vCPU that the controller runs by itself, in [`AllStop::resume_here`]. Its thread may wake
    /// up for a byte that an earlier cycle left in the pipe: there is nothing for it.
    here: Option<VcpuId>,
    /// Threads in [`AllStop::wait_for_stops`].
    waiters: usize,
}

struct Shared {
    state: Mutex<State>,
    /// For [`AllStop::wait_for_stops`].
    all_stopped: Condvar,
    /// For an event loop.
    notifier: WakePipe,
    kick: Box<dyn Kick>,
}

/// All-stop run control of a guest whose vCPUs have a thread each. Clones control the same guest.
///
/// The controller calls [`resume`](Self::resume), [`interrupt`](Self::interrupt) and
/// [`release`](Self::release), watches [`stopped_fd`](Self::stopped_fd), and takes the stops. Each
/// vCPU's thread has a [`VcpuHandle`]:
///
/// ```
/// use debug_stub::run_control::{AllStop, Order};
/// use debug_stub::{StopReason, VcpuId};
///
/// let guest = AllStop::new(|vcpu| { /* the VMM's own kick */ })?;
/// let mut vcpu = guest.add(VcpuId(0))?;
/// let thread = std::thread::spawn(move || {
///     while let Order::Run(order, armed) = vcpu.wait_for_order() {
///         while !vcpu.must_stop() {
///             // Enter the guest as `order` says, with `armed` in force; serve its exits.
///         }
///         vcpu.report(StopReason::Interrupted);
///     }
/// });
/// guest.start()?;
/// guest.interrupt();
/// let stops = guest.wait_for_stops(None);
/// assert_eq!(stops, Some(Vec::new()));
/// guest.remove(VcpuId(0))?;
/// # thread.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A resume costs one hand-over to each vCPU's thread, and the end of the run cycle costs one
/// hand-over back: a byte through a [`WakePipe`] each. [`resume_here`](Self::resume_here) costs none.
///
/// Dropping it stops nothing: [`remove`](Self::remove) the vCPUs first, or their threads wait forever.
///
/// # System calls
/// `tests/system_calls.rs` checks this list under a seccomp filter.
/// - [`AllStop::new`], [`AllStop::add`]: `socketpair`, `ioctl(FIONBIO)`; `close` when dropped.
/// - The controller's thread: `sendto` in `resume`, `release`, `add`, `remove` and `nudge`; `recvfrom`
///   in `take_stops`; `sendto` in `interrupt` and `event`; `futex` when the lock is contended and in
///   `wait_for_stops`; those of [`Kick::kick`]; `close` if a vCPU's thread ends while this thread
///   wakes it.
/// - A vCPU's thread: `recvfrom` in `wait_for_order`, `wait` and `clear_wake_up`; `sendto` and those
///   of [`Kick::kick`] in `report` and when its [`VcpuHandle`] is dropped; then also `close`;
///   `futex` when the lock is contended. None in `must_stop`. No `ioctl` of KVM's.
/// - `fcntl(F_GETFD)` before each `close` in debug builds.
///
/// With the feature `kvm` they are constants: [`CONTROLLER_SYSCALLS`](super::CONTROLLER_SYSCALLS) and
/// [`VCPU_SYSCALLS`](super::VCPU_SYSCALLS).
#[derive(Clone)]
pub struct AllStop(Arc<Shared>);

// A panic leaves no broken state behind that only a caught panic could show. The state machine
// changes its state in calls that run no code of the VMM's, so it is whole whenever the VMM's code
// can unwind, and `Shared::lock` ignores poison because of that. The one part that keeps the compiler
// from seeing it is `dyn Kick`. It is `Sync`: other threads use it after a panic on this one in any
// case, caught or not. The VMM's `Kick` must not panic all the same: the kicks and wake-ups that
// would follow are lost, with or without these impls.
impl UnwindSafe for AllStop {}
impl RefUnwindSafe for AllStop {}

impl fmt::Debug for AllStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllStop")
            .field("state", &self.0.state)
            .finish_non_exhaustive()
    }
}

impl AllStop {
    /// A stopped guest without vCPUs.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(kick: impl Kick + 'static) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            state: Mutex::default(),
            all_stopped: Condvar::new(),
            notifier: WakePipe::new(Waiting::InALoop)?,
            kick: Box::new(kick),
        })))
    }

    /// Adds a vCPU, at any time. Give the result to its thread.
    ///
    /// # Errors
    /// If its id is in use, or the process has no descriptors left.
    pub fn add(&self, vcpu: VcpuId) -> Result<VcpuHandle, AddError> {
        let pipe = WakePipe::new(Waiting::Here);
        let pipe = pipe.map_err(|source| AddError::Pipe { vcpu, source })?;
        let seat = Arc::new(Seat {
            pipe,
            must_stop: AtomicBool::new(true),
        });
        let mut state = self.0.lock();
        let effects = state.control.add(vcpu)?;
        state.seats.insert(vcpu, Arc::clone(&seat));
        self.0.act(state, &effects);
        Ok(VcpuHandle {
            id: vcpu,
            seat,
            shared: Arc::clone(&self.0),
            present: true,
        })
    }

    /// Removes a vCPU, at any time: its thread gets [`Order::Leave`], after it has stopped. Does not
    /// wait for that.
    ///
    /// # Errors
    /// If there is no such vCPU, or it was removed already.
    pub fn remove(&self, vcpu: VcpuId) -> Result<(), VcpuError> {
        let mut state = self.0.lock();
        let effects = state.control.remove(vcpu)?;
        self.0.act(state, &effects);
        Ok(())
    }

    /// Begins a run cycle: see [`RunControl::resume`].
    ///
    /// # Errors
    /// If a run cycle is in progress, the last stops were not taken, or the plan names a vCPU that
    /// does not exist. The guest stays as it is.
    pub fn resume(&self, plan: &ResumePlan) -> Result<(), ResumeError> {
        let mut state = self.0.lock();
        let effects = state.control.resume(plan)?;
        self.0.act(state, &effects);
        Ok(())
    }

    /// As [`resume`](Self::resume), but runs one vCPU on the calling thread first: no hand-over, for
    /// a step that is shorter than waking its thread. `run` returns its stop, or `None` if the order
    /// is not done: then the vCPU's own thread goes on with the same order, also if a stop was requested.
    ///
    /// `run` may return early when `must_stop` (its argument) is true; the VMM's [`Kick`] must reach
    /// the calling thread for that, or `run` must be short.
    ///
    /// Returns the stops if the run cycle is over on return; [`take_stops`](Self::take_stops) and
    /// the descriptor have nothing then.
    ///
    /// # Errors
    /// As [`resume`](Self::resume). `run` was not called then.
    pub fn resume_here(
        &self,
        plan: &ResumePlan,
        vcpu: VcpuId,
        run: impl FnOnce(&VcpuOrder, &Arc<Armed>, &dyn Fn() -> bool) -> Option<StopReason>,
    ) -> Result<Option<Vec<Stop>>, ResumeError> {
        let mut state = self.0.lock();
        let mut effects = state.control.resume(plan)?;
        // Without an order of the plan nothing is taken: a vCPU that leaves is told so on its thread.
        let ordered = effects.contains(&Effect::Wake(vcpu));
        let order = ordered.then(|| state.take_order(vcpu)).flatten();
        let Some((Order::Run(order, armed), seat)) = order else {
            return Ok(self.0.act_and_take(state, effects));
        };
        effects.retain(|effect| *effect != Effect::Wake(vcpu));
        state.here = Some(vcpu);
        self.0.act(state, &effects);

        // Also on unwind: the run cycle must end.
        let mut here = Here {
            vcpu,
            shared: &self.0,
            done: false,
        };
        let reason = run(&order, &armed, &|| seat.must_stop.load(Ordering::SeqCst));
        here.done = true;

        let mut state = self.0.lock();
        state.here = None;
        let effects = match reason {
            Some(reason) => state.stopped(vcpu, reason),
            None => state.give_back(vcpu),
        };
        let effects = effects.unwrap_or_else(|error| {
            tracing::error!(%error, "the vCPU was removed while it ran");
            Vec::new()
        });
        Ok(self.0.act_and_take(state, effects))
    }

    /// Lets the guest run on the VMM's own account: as it boots, or after a pause. A guest that runs
    /// already is left as it is.
    ///
    /// # Errors
    /// If a debugger is attached and the guest is stopped: see
    /// [the debugger owns the guest](super#a-debugger-that-is-attached-owns-the-guest). Or if the last stops
    /// were not taken.
    pub fn start(&self) -> Result<(), ResumeError> {
        let mut state = self.0.lock();
        let effects = state.control.start()?;
        self.0.act(state, &effects);
        Ok(())
    }

    /// Says whether a debugger is attached, for [`start`](Self::start). A server does that by itself.
    pub fn hold(&self, held: bool) {
        self.0.lock().control.hold(held);
    }

    /// Lets all vCPUs run with nothing armed, also those that are added later, whether or not a
    /// debugger is attached: for the controller. A VMM [starts](Self::start) its guest.
    ///
    /// # Errors
    /// If a run cycle is in progress, or the last stops were not taken.
    pub fn release(&self) -> Result<(), ResumeError> {
        let mut state = self.0.lock();
        let effects = state.control.release()?;
        self.0.act(state, &effects);
        Ok(())
    }

    /// Stops the guest. Exactly one list of stops comes out afterwards: see
    /// [`RunControl::interrupt`].
    pub fn interrupt(&self) {
        let mut state = self.0.lock();
        let effects = state.control.interrupt();
        self.0.act(state, &effects);
    }

    /// Stops the guest for an event that no vCPU's order has led to: see [`RunControl::event`].
    pub fn event(&self, stop: Stop) {
        let mut state = self.0.lock();
        let effects = state.control.event(stop);
        self.0.act(state, &effects);
    }

    /// Wakes the thread of a vCPU that waits in [`VcpuHandle::wait`], or makes its next wait return at
    /// once: for a request of the VMM's own, which the caller stores first. It also makes the vCPU's
    /// descriptor readable. Does nothing if there is no such vCPU.
    ///
    /// It starts and stops nothing. A vCPU that runs does not leave the guest: the VMM's own kick does
    /// that. [`VcpuHandle::wait_for_order`] goes on waiting. Several nudges may arrive as one.
    ///
    /// May be called on any thread, also in [`Kick::kick`], but not in [`Kick::all_stopped`] and not in
    /// a signal handler.
    pub fn nudge(&self, vcpu: VcpuId) {
        let seat = self.0.lock().seat(vcpu).cloned();
        if let Some(seat) = seat {
            seat.pipe.wake();
        }
    }

    /// The list of stops, once, if all vCPUs are stopped after a resume or an interrupt. Also makes
    /// [`stopped_fd`](Self::stopped_fd) unreadable.
    pub fn take_stops(&self) -> Option<Vec<Stop>> {
        // Before the list: a wake-up that comes later belongs to a later list.
        self.0.notifier.wait();
        self.0.lock().control.take_stops()
    }

    /// Waits for the list of stops and takes it; `None` if `timeout` passes first. For a controller
    /// without an event loop. One thread at a time takes stops.
    pub fn wait_for_stops(&self, timeout: Option<Duration>) -> Option<Vec<Stop>> {
        let mut state = self.0.lock();
        state.waiters += 1;
        let is_empty = |state: &mut State| !state.control.has_stops();
        let all_stopped = &self.0.all_stopped;
        let mut state = match timeout {
            None => all_stopped
                .wait_while(state, is_empty)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = all_stopped.wait_timeout_while(state, timeout, is_empty);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.waiters -= 1;
        // The notifier keeps its wake-up: taken here, it could be that of a later list.
        state.control.take_stops()
    }

    /// Readable while [`take_stops`](Self::take_stops) has a list; now and then also without one.
    /// Always the same descriptor.
    #[must_use]
    pub fn stopped_fd(&self) -> BorrowedFd<'_> {
        self.0.notifier.as_fd()
    }

    /// Whether a run cycle is in progress.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.0.lock().control.is_running()
    }

    /// Whether all vCPUs are stopped and the stops were taken: the guest's registers may be read.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let state = self.0.lock();
        !state.control.is_running() && !state.control.has_stops()
    }

    /// The vCPUs, lowest id first, without those that leave.
    #[must_use]
    pub fn vcpus(&self) -> Vec<VcpuId> {
        self.0.lock().control.vcpus().collect()
    }
}

impl State {
    fn seat(&self, vcpu: VcpuId) -> Option<&Arc<Seat>> {
        self.seats.get(&vcpu)
    }

    /// The vCPU's next order, with the stop request cleared if it runs from now on.
    fn take_order(&mut self, vcpu: VcpuId) -> Option<(Order, Arc<Seat>)> {
        let seat = Arc::clone(self.seat(vcpu)?);
        let order = self.control.order(vcpu).ok()?;
        match order {
            Order::Run(..) => {
                let must_stop = self.control.must_stop(vcpu);
                seat.must_stop.store(must_stop, Ordering::SeqCst);
            }
            Order::Leave => {
                self.seats.remove(&vcpu);
            }
            Order::Wait => {}
        }
        Some((order, seat))
    }

    fn stopped(&mut self, vcpu: VcpuId, reason: StopReason) -> Result<Vec<Effect>, StopError> {
        let effects = self.control.stopped(vcpu, reason)?;
        self.request_stop(vcpu);
        Ok(effects)
    }

    fn give_back(&mut self, vcpu: VcpuId) -> Result<Vec<Effect>, StopError> {
        let effects = self.control.give_back(vcpu)?;
        self.request_stop(vcpu);
        Ok(effects)
    }

    fn request_stop(&self, vcpu: VcpuId) {
        if let Some(seat) = self.seat(vcpu) {
            seat.must_stop.store(true, Ordering::SeqCst);
        }
    }
}

/// A vCPU that runs on the controller's thread. Dropped before it is done, the thread unwinds.
struct Here<'a> {
    vcpu: VcpuId,
    shared: &'a Shared,
    done: bool,
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.lock().here = None;
            self.shared.report(self.vcpu, panicked(self.vcpu));
        }
    }
}

fn panicked(vcpu: VcpuId) -> StopReason {
    StopReason::InternalError(format!("the thread that ran {vcpu} panicked"))
}

impl Shared {
    /// Also after a panic elsewhere: what the lock guards is whole between statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on effects. Stop requests are set under the lock; kicks and wake-ups follow without it.
    fn act(&self, state: MutexGuard<'_, State>, effects: &[Effect]) {
        let mut wake = Vec::new();
        let mut waiters = 0;
        for effect in effects {
            match effect {
                Effect::Kick(vcpu) => state.request_stop(*vcpu),
                Effect::Wake(vcpu) => wake.extend(state.seat(*vcpu).cloned()),
                Effect::AllStopped => {
                    waiters = state.waiters;
                    self.kick.all_stopped();
                }
            }
        }
        drop(state);
        for effect in effects {
            match effect {
                Effect::Kick(vcpu) => self.kick.kick(*vcpu),
                Effect::Wake(_) => {}
                Effect::AllStopped => self.notifier.wake(),
            }
        }
        for seat in wake {
            seat.pipe.wake();
        }
        if waiters > 0 {
            self.all_stopped.notify_all();
        }
    }

    fn report(&self, vcpu: VcpuId, reason: StopReason) {
        let mut state = self.lock();
        match state.stopped(vcpu, reason) {
            Ok(effects) => self.act(state, &effects),
            Err(error) => {
                drop(state);
                tracing::error!(%error, "a stop was reported that cannot be");
            }
        }
    }

    /// As [`act`](Self::act), and takes the stops if these effects have ended the run cycle: the
    /// caller gets them and the descriptor stays unreadable.
    fn act_and_take(
        &self,
        mut state: MutexGuard<'_, State>,
        mut effects: Vec<Effect>,
    ) -> Option<Vec<Stop>> {
        let before = effects.len();
        effects.retain(|effect| *effect != Effect::AllStopped);
        let stops = if effects.len() < before {
            self.kick.all_stopped();
            state.control.take_stops()
        } else {
            None
        };
        self.act(state, &effects);
        stops
    }
}

/// One vCPU, for its thread. Dropping it ends its part in the guest: a vCPU that ran is counted as
/// stopped, and if its thread panics, the panic is its stop.
pub struct VcpuHandle {
    id: VcpuId,
    seat: Arc<Seat>,
    shared: Arc<Shared>,
    /// Run control knows it.
    present: bool,
}

// As for `AllStop`: the rest of it is an id, two flags and the descriptors of the wake pipe.
impl UnwindSafe for VcpuHandle {}
impl RefUnwindSafe for VcpuHandle {}

impl fmt::Debug for VcpuHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuHandle")
            .field("id", &self.id)
            .field("must_stop", &self.seat.must_stop)
            .finish_non_exhaustive()
    }
}

impl VcpuHandle {
    /// The vCPU's id.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// Waits until there is something to do: [`Order::Run`] or [`Order::Leave`], never
    /// [`Order::Wait`]. After [`Order::Run`] the thread runs the vCPU and calls
    /// [`report`](Self::report). A vCPU that has an order and was not reported is reported as
    /// interrupted first.
    pub fn wait_for_order(&mut self) -> Order {
        loop {
            match self.next_order() {
                Order::Wait => self.seat.pipe.wait(),
                order => return order,
            }
        }
    }

    /// As [`wait_for_order`](Self::wait_for_order), but returns [`Order::Wait`] in place of waiting.
    /// For a thread that waits for other things too, in one of two ways:
    /// - It calls [`wait`](Self::wait) and asks again.
    /// - It polls this vCPU's descriptor and others, calls [`clear_wake_up`](Self::clear_wake_up) if
    ///   this one is readable, and asks again.
    pub fn next_order(&mut self) -> Order {
        if !self.present {
            return Order::Leave;
        }
        let mut state = self.shared.lock();
        if state.here == Some(self.id) {
            return Order::Wait;
        }
        let order = match state.take_order(self.id) {
            Some((order, _)) => order,
            None => {
                drop(state);
                tracing::error!(vcpu = %self.id, "an order was never reported as done");
                self.report(StopReason::Interrupted);
                state = self.shared.lock();
                let order = state.take_order(self.id);
                order.map_or(Order::Leave, |(order, _)| order)
            }
        };
        drop(state);
        if order == Order::Leave {
            self.present = false;
        }
        order
    }

    /// Waits until there may be an order, or until [`AllStop::nudge`]: for a thread that also serves
    /// the VMM's own requests while the debugger holds its vCPU. It may return early. The thread looks
    /// for requests *before each* wait, and asks for an order after it:
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use std::sync::atomic::{AtomicBool, Ordering};
    /// use debug_stub::run_control::{AllStop, Order};
    /// # use debug_stub::{StopReason, VcpuId};
    /// # let guest = AllStop::new(|vcpu| {})?;
    /// # let mut vcpu = guest.add(VcpuId(0))?;
    /// # let requested = Arc::new(AtomicBool::new(false));
    /// # let seen = Arc::clone(&requested);
    /// # let serve_requests = move || seen.store(false, Ordering::SeqCst);
    /// # let thread = std::thread::spawn(move || {
    /// loop {
    ///     serve_requests(); // pause, snapshot, shutdown: the VMM's own
    ///     match vcpu.next_order() {
    ///         Order::Wait => vcpu.wait(),
    ///         Order::Run(order, armed) => {
    ///             // Run the vCPU.
    ///             vcpu.report(StopReason::Interrupted);
    ///         }
    ///         Order::Leave => break,
    ///     }
    /// }
    /// # });
    /// // On another thread: the request first, then the nudge.
    /// requested.store(true, Ordering::SeqCst);
    /// guest.nudge(VcpuId(0));
    /// # while requested.load(Ordering::SeqCst) { std::thread::yield_now(); }
    /// # guest.remove(VcpuId(0))?;
    /// # thread.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// No order and no nudge is lost: one that comes before the wait ends it at once, because its byte
    /// stays in the wake pipe.
    ///
    /// A signal ends the wait too, but only if its handler was installed without `SA_RESTART`
    /// ([`VcpuThreads`](super::VcpuThreads) installs its own with it) and only if it arrives *during* the
    /// wait. A signal just before the wait is lost: a request needs a nudge.
    pub fn wait(&self) {
        // A vCPU that has left gets no wake-up.
        if self.present {
            self.seat.pipe.wait();
        }
    }

    /// Makes the vCPU's descriptor unreadable, after a poll has shown that it is readable. Blocks if it
    /// is not readable. A thread that does not poll calls [`wait`](Self::wait).
    pub fn clear_wake_up(&self) {
        self.seat.pipe.wait();
    }

    /// Whether the vCPU must leave the guest and report. Cheap: one load. Check it after the kick was
    /// cleared and before each entry: see [the contract](super#the-kick-contract).
    #[must_use]
    pub fn must_stop(&self) -> bool {
        self.seat.must_stop.load(Ordering::SeqCst)
    }

    /// The vCPU has stopped, for its own reason or, with [`StopReason::Interrupted`], because it was
    /// asked to. Without an order to run the call does nothing but log an error.
    pub fn report(&mut self, reason: StopReason) {
        self.shared.report(self.id, reason);
    }
}

impl AsFd for VcpuHandle {
    /// Readable when there may be an order, and after [`AllStop::nudge`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.seat.pipe.as_fd()
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        if !self.present {
            return;
        }
        let mut state = self.shared.lock();
        let mut effects = Vec::new();
        if thread::panicking() {
            // An error says that it did not run: then its panic stops nothing.
            let stopped = state.stopped(self.id, panicked(self.id));
            effects.extend(stopped.unwrap_or_default());
        }
        effects.extend(state.control.left(self.id).unwrap_or_default());
        state.seats.remove(&self.id);
        self.shared.act(state, &effects);
    }
}
