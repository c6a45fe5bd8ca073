//! Run control of vCPUs that have a thread each: what `AllStop`, a kick and a `Driver` need of each other.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use thiserror::Error;
use vcpu_caps::{Plan, VcpuId};

use crate::host::GuestMemory;
use crate::order::StopReason;
use crate::run_control::{AllStop, Entered, KickSignal, Order, VcpuHandle, VcpuThreads};
use crate::x86_64::stepper::{Driver, Entry, Vcpu};

/// Run control of a guest with a thread for each vCPU: [`AllStop`] with [`VcpuThreads`] as its kick, and
/// the plan for its vCPUs' drivers. Clones control the same guest.
///
/// A VMM with a kick of its own composes the parts by itself.
#[derive(Clone, Debug)]
pub struct KvmRunControl {
    all_stop: AllStop,
    threads: Arc<VcpuThreads>,
    plan: Plan,
}

/// A thread could not become a vCPU's: it could not be kicked.
#[derive(Debug, Error)]
#[error("{vcpu} could not be kicked: its run structure is not mapped, or the signal is blocked")]
pub struct EnterError {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl KvmRunControl {
    /// A stopped guest without vCPUs.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(plan: Plan, signal: KickSignal) -> io::Result<Self> {
        let threads = Arc::new(VcpuThreads::new(signal));
        Ok(Self {
            all_stop: AllStop::new(Arc::clone(&threads))?,
            threads,
            plan,
        })
    }

    /// The state machine: to [start](AllStop::start) the guest, and to [remove](AllStop::remove) vCPUs.
    #[must_use]
    pub fn all_stop(&self) -> &AllStop {
        &self.all_stop
    }

    /// What the host can do.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The calling thread runs the vCPU from now on. `handle` is what [`AllStop::add`] returned for it, before
    /// the debugger is served: a vCPU that its own thread adds is not there yet for a client that is early.
    /// `fd` is its descriptor. Its [`Driver`] is beside the descriptor, where the debugger's thread finds both:
    /// see [`ThreadedGuest::with_vcpu`](super::ThreadedGuest::with_vcpu).
    ///
    /// # Errors
    /// If the process has no room for a mapping, or the signal cannot be unblocked. The vCPU is removed.
    pub fn enter(
        &self,
        handle: VcpuHandle,
        fd: &impl AsRawFd,
    ) -> Result<VcpuThread<'_>, EnterError> {
        let vcpu = handle.id();
        let entered = self.threads.enter(vcpu, fd);
        let entered = entered.map_err(|source| EnterError { vcpu, source })?;
        Ok(VcpuThread { entered, handle })
    }
}

/// What comes next for a vCPU: give it to [`VcpuThread::take`].
#[derive(Debug)]
#[must_use = "the vCPU neither runs nor reports otherwise"]
pub enum Turn {
    /// Enter the guest.
    Enter,
    /// An order has begun: ask again.
    Again,
    /// The order is over. For a guest that uses kvmclock, and whose clocks run on while it is stopped,
    /// this is the moment of `KVM_KVMCLOCK_CTRL`.
    Report(StopReason),
    /// There is no order.
    Wait,
    /// The vCPU was removed.
    Leave,
}

/// What the vCPU's thread does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Task {
    /// Enter the guest, serve the exit, and call [`Driver::ran`].
    Enter,
    /// Look for requests of the VMM's own, then ask for the next turn.
    Again,
    /// End: the vCPU was removed.
    Leave,
}

/// A vCPU's own thread. Dropping it ends the vCPU's part in the guest.
///
/// The VMM locks its vCPU for [`turn`](Self::turn), and not for [`take`](Self::take), which may wait:
///
/// ```
/// # use debug_stub::GuestMemory;
/// # use debug_stub::kvm::{KvmVcpu, Task, VcpuThread};
/// # use debug_stub::x86_64::stepper::{Driver, Outcome};
/// # use kvm_ioctls::VcpuFd;
/// # use std::sync::Mutex;
/// fn run(
///     mut thread: VcpuThread<'_>,
///     vcpu: &Mutex<(VcpuFd, Driver)>,
///     memory: &impl GuestMemory,
///     enter: impl Fn(&mut VcpuFd) -> Outcome, // KVM_RUN, with its exit served
/// ) {
///     loop {
///         let turn = {
///             let (fd, driver) = &mut *vcpu.lock().unwrap();
///             thread.turn(driver, &mut KvmVcpu(fd), memory)
///         };
///         match thread.take(turn) {
///             Task::Enter => {
///                 let (fd, driver) = &mut *vcpu.lock().unwrap();
///                 let outcome = enter(fd);
///                 driver.ran(outcome, &mut KvmVcpu(fd), memory);
///             }
///             Task::Again => {}
///             Task::Leave => break,
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct VcpuThread<'a> {
    entered: Entered<'a>,
    handle: VcpuHandle,
}

impl VcpuThread<'_> {
    /// What comes next for the vCPU. Begins its order if there is one, and ends it if a stop is
    /// requested: the kick contract is kept here. [`Turn::Enter`] may be an entry that only completes an
    /// access: `immediate_exit` is set then.
    pub fn turn<V: Vcpu>(
        &mut self,
        driver: &mut Driver,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Turn {
        let may_run = || self.entered.may_run(|| self.handle.must_stop());
        match driver.next_entry(may_run, vcpu, memory) {
            Entry::Enter => Turn::Enter,
            Entry::Complete => {
                self.entered.exit_at_once();
                Turn::Enter
            }
            Entry::Stopped(reason) => Turn::Report(reason),
            Entry::Idle => match self.handle.next_order() {
                Order::Run(order, armed) => {
                    driver.start(&order, &armed, vcpu, memory);
                    Turn::Again
                }
                Order::Wait => Turn::Wait,
                Order::Leave => Turn::Leave,
            },
        }
    }

    /// As [`turn`](Self::turn), of a vCPU that the VMM has paused: it does not enter the guest. For the
    /// loop in which a paused thread is parked, each time it wakes up: if the debugger asks for a stop
    /// (Ctrl-C), the order ends here. The VMM completes an access before it pauses a vCPU.
    pub fn paused_turn<V: Vcpu>(
        &mut self,
        driver: &mut Driver,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Turn {
        if !driver.is_busy() || !self.handle.must_stop() {
            return Turn::Again;
        }
        match driver.next_entry(|| false, vcpu, memory) {
            Entry::Stopped(reason) => Turn::Report(reason),
            Entry::Enter | Entry::Complete | Entry::Idle => Turn::Again,
        }
    }

    /// Acts on a turn, without a lock that the debugger's thread takes. Waits if there is no order: until
    /// there may be one, or until [`AllStop::nudge`].
    pub fn take(&mut self, turn: Turn) -> Task {
        match turn {
            Turn::Enter => return Task::Enter,
            Turn::Leave => return Task::Leave,
            Turn::Again => {}
            Turn::Report(reason) => self.handle.report(reason),
            Turn::Wait => self.handle.wait(),
        }
        Task::Again
    }
}
