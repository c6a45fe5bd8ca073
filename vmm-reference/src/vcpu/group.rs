//! All vCPUs of a guest: run control, without polling.
//!
//! The group is either *stopped* (no vCPU runs, and registers may be read and written) or in a
//! *round*: [`VcpuGroup::resume`] gives each vCPU its order, the first one to stop for a reason
//! of its own kicks the others, and the last one to stop signals [`VcpuGroup::stopped_event`].
//! That is one hand-over to a vCPU's thread, and one back.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use debug_stub::kvm::{DebugVcpu, Environment, ExitHandler};
use debug_stub::{Armed, GuestMemory, ResumePlan, Stop, StopReason, VcpuId, VcpuOrder};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::kick::{self, Kickable, VcpuThread};

/// The vCPU threads could not be started.
#[derive(Debug, Error)]
pub enum GroupError {
    /// The signal that kicks vCPUs is not to be had.
    #[error("the signal handler that stops vCPUs could not be installed")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// No eventfd.
    #[error("an eventfd could not be created")]
    EventFd(#[source] io::Error),
    /// No thread.
    #[error("the thread of {vcpu} could not be started")]
    Thread {
        /// Whose.
        vcpu: VcpuId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a vCPU's thread is asked to do next.
#[derive(Debug, Default)]
enum Mail {
    #[default]
    Nothing,
    Run(VcpuOrder, Arc<Armed>),
    Quit,
}

/// One vCPU, shared between its thread and the group.
#[derive(Debug)]
struct Slot {
    /// Held by the thread while the vCPU runs.
    vcpu: Mutex<DebugVcpu>,
    mail: Mutex<Mail>,
    arrived: Condvar,
    stop: AtomicBool,
    thread: OnceLock<VcpuThread>,
}

impl Slot {
    fn post(&self, mail: Mail) {
        *lock(&self.mail) = mail;
        self.arrived.notify_one();
    }

    fn wait(&self) -> Mail {
        let mut mail = lock(&self.mail);
        loop {
            match std::mem::take(&mut *mail) {
                Mail::Nothing => {
                    mail = self
                        .arrived
                        .wait(mail)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                mail => return mail,
            }
        }
    }

    /// Makes the vCPU stop, wherever it is. Before its thread has begun there is nothing to
    /// signal: it finds the flag.
    fn kick(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.kick();
        }
    }
}

/// The round that is under way.
#[derive(Debug, Default)]
struct Round {
    running: usize,
    /// Those that stopped for a reason of their own, first one first.
    stops: Vec<Stop>,
    /// The round is over, and nobody has been told.
    untold: bool,
}

#[derive(Debug)]
struct Shared {
    slots: Vec<Slot>,
    round: Mutex<Round>,
    stopped: EventFd,
}

impl Shared {
    /// One vCPU has stopped.
    fn finish(&self, stop: Stop) {
        if stop.reason != StopReason::Interrupted {
            // Before this vCPU is counted as stopped: nobody can begin another round meanwhile,
            // so this kick cannot hit one.
            for (index, slot) in self.slots.iter().enumerate() {
                if index != stop.vcpu.index() {
                    slot.kick();
                }
            }
        }
        let mut round = lock(&self.round);
        if stop.reason != StopReason::Interrupted {
            round.stops.push(stop);
        }
        round.running = round.running.saturating_sub(1);
        if round.running == 0 {
            round.untold = true;
            self.signal();
        }
    }

    fn signal(&self) {
        if let Err(error) = self.stopped.write(1) {
            tracing::error!(%error, "the stop of the vCPUs could not be signalled");
        }
    }
}

/// All vCPUs of a guest, each with its thread. Dropping it ends them.
#[derive(Debug)]
pub struct VcpuGroup {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuGroup {
    /// Starts the threads; the vCPUs are stopped.
    ///
    /// # Errors
    /// If the host lacks a thread, a signal or a descriptor.
    pub fn start<E, M>(
        vcpus: Vec<DebugVcpu>,
        exits: &Arc<E>,
        memory: &M,
    ) -> Result<Self, GroupError>
    where
        E: ExitHandler + Send + Sync + 'static,
        M: GuestMemory + Clone + Send + 'static,
    {
        kick::install().map_err(GroupError::Signal)?;
        let stopped = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(GroupError::EventFd)?;
        let ids: Vec<VcpuId> = vcpus.iter().map(DebugVcpu::id).collect();
        let slots = vcpus
            .into_iter()
            .map(|vcpu| Slot {
                vcpu: Mutex::new(vcpu),
                mail: Mutex::default(),
                arrived: Condvar::new(),
                stop: AtomicBool::new(false),
                thread: OnceLock::new(),
            })
            .collect();
        let shared = Arc::new(Shared {
            slots,
            round: Mutex::default(),
            stopped,
        });
        // Dropped on an early return, it ends the threads that have begun.
        let mut group = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        for id in ids {
            let (shared, exits, memory) = (Arc::clone(&shared), Arc::clone(exits), memory.clone());
            let thread = thread::Builder::new()
                .name(id.to_string())
                .spawn(move || vcpu_thread(id, &shared, &*exits, &memory))
                .map_err(|source| GroupError::Thread { vcpu: id, source })?;
            group.threads.push(thread);
        }
        Ok(group)
    }

    /// How many vCPUs there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.slots.len()
    }

    /// Begins a round. The group must be stopped; orders for vCPUs that do not exist are ignored,
    /// and vCPUs without an order stay.
    pub fn resume(&self, plan: &ResumePlan) {
        let orders = || {
            self.shared
                .slots
                .iter()
                .zip(&plan.vcpus)
                .filter(|(_, order)| **order != VcpuOrder::Stay)
        };
        let mut round = lock(&self.shared.round);
        debug_assert_eq!(round.running, 0, "a round is under way");
        *round = Round {
            running: orders().count(),
            stops: Vec::new(),
            untold: false,
        };
        if round.running == 0 {
            round.untold = true;
            self.shared.signal();
            return;
        }
        drop(round);
        // All flags before the first order: a vCPU that stops at once kicks the others.
        for slot in &self.shared.slots {
            slot.stop.store(false, Ordering::Release);
        }
        for (slot, order) in orders() {
            slot.post(Mail::Run(order.clone(), Arc::clone(&plan.armed)));
        }
    }

    /// Lets all vCPUs run with nothing armed.
    pub fn resume_all(&self) {
        self.resume(&ResumePlan {
            vcpus: vec![VcpuOrder::Continue; self.count()],
            ..ResumePlan::default()
        });
    }

    /// Ends the round that is under way. Afterwards [`VcpuGroup::take_stops`] answers once,
    /// whether a round was under way or not.
    pub fn interrupt(&self) {
        let mut round = lock(&self.shared.round);
        if round.running == 0 {
            if !round.untold {
                round.untold = true;
                self.shared.signal();
            }
            return;
        }
        drop(round);
        for slot in &self.shared.slots {
            slot.kick();
        }
    }

    /// Becomes readable when a round is over.
    #[must_use]
    pub fn stopped_event(&self) -> &EventFd {
        &self.shared.stopped
    }

    /// The stops of the round that is over, once; `None` if no round has ended since.
    pub fn take_stops(&self) -> Option<Vec<Stop>> {
        // Only a wake-up: what counts is the round.
        let _ = self.shared.stopped.read();
        let mut round = lock(&self.shared.round);
        if !round.untold {
            return None;
        }
        round.untold = false;
        Some(std::mem::take(&mut round.stops))
    }

    /// Whether a round is under way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        lock(&self.shared.round).running != 0
    }

    /// A vCPU of a stopped group; blocks while it runs. `None` if there is no such vCPU.
    #[must_use]
    pub fn vcpu(&self, id: VcpuId) -> Option<MutexGuard<'_, DebugVcpu>> {
        self.shared
            .slots
            .get(id.index())
            .map(|slot| lock(&slot.vcpu))
    }
}

impl Drop for VcpuGroup {
    fn drop(&mut self) {
        for slot in &self.shared.slots {
            slot.post(Mail::Quit);
            slot.kick();
        }
        for thread in self.threads.drain(..) {
            // A panic was reported as a stop already.
            let _ = thread.join();
        }
    }
}

/// Reports a vCPU whose thread unwinds: a round must end whatever happens.
struct ReportPanic<'a> {
    id: VcpuId,
    shared: &'a Shared,
}

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.finish(Stop {
                vcpu: self.id,
                reason: StopReason::InternalError(format!("the thread of {} panicked", self.id)),
                registers: None,
            });
        }
    }
}

fn vcpu_thread<E: ExitHandler, M: GuestMemory>(id: VcpuId, shared: &Shared, exits: &E, memory: &M) {
    let Some(slot) = shared.slots.get(id.index()) else {
        return;
    };
    let run = lock(&slot.vcpu).kvm_run();
    let _kickable = Kickable::enter(run);
    // Once only: each slot has one thread.
    let _ = slot.thread.set(VcpuThread::current());
    let mut resumed = false;
    loop {
        let (order, armed) = match slot.wait() {
            Mail::Run(order, armed) => (order, armed),
            Mail::Quit | Mail::Nothing => return,
        };
        let report = ReportPanic { id, shared };
        let mut vcpu = lock(&slot.vcpu);
        if resumed && order == VcpuOrder::Continue {
            // So that the guest's watchdogs do not count the stop. EINVAL: it uses no kvmclock.
            let _ = vcpu.fd().kvmclock_ctrl();
        }
        resumed = true;
        let environment = Environment {
            exits,
            memory,
            stop: &slot.stop,
        };
        let reason = vcpu.run(&order, &armed, &environment);
        let registers = vcpu.expedited();
        drop(vcpu);
        drop(report);
        shared.finish(Stop {
            vcpu: id,
            reason,
            registers,
        });
    }
}

/// Locks, also after a panic elsewhere: what these mutexes guard is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
