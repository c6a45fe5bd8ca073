//! All vCPUs of a guest, each on its thread, under all-stop run control.
//!
//! The run control is [`debug_stub::run_control`]. This module adds the vCPUs and their threads, the
//! guest's clock, which stands still while the guest is stopped, and inline steps (`steps`): steps
//! without a hand-over.

mod shared;
mod steps;
mod thread;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use debug_stub::run_control::{AddError, AllStop, ResumeError};
use debug_stub::{GuestMemory, ResumePlan, Stop, VcpuId, VcpuOrder};
use thiserror::Error;

use super::exits::Exits;
use super::run::Vcpu;
use super::stats::VcpuStats;
use crate::irqchip::Irqchip;
use crate::wake::{self, StepSlice};
use shared::{Shared, Wakers};
use steps::LostSlices;
use thread::Threads;

/// The vCPU threads could not be started.
#[derive(Debug, Error)]
pub enum GroupError {
    /// The signal that kicks vCPUs is not available.
    #[error("the signal handler that stops vCPUs could not be installed")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// No descriptor.
    #[error("the notifier of the vCPU threads could not be created")]
    Notifier(#[source] io::Error),
    /// A vCPU cannot be run.
    #[error(transparent)]
    Add(#[from] AddError),
    /// A vCPU cannot be kicked.
    #[error("the run structure of {vcpu} could not be mapped")]
    Map {
        /// The vCPU.
        vcpu: VcpuId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread for the interrupt chips.
    #[error("the interrupt chips' thread could not be started")]
    Chips(#[source] io::Error),
    /// No thread.
    #[error("the thread of {vcpu} could not be started")]
    Thread {
        /// The vCPU.
        vcpu: VcpuId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// All vCPUs of a guest, each with its thread; for one thread that controls them. Dropping it ends
/// them.
#[derive(Debug)]
pub struct VcpuGroup {
    all: AllStop,
    wakers: Wakers,
    threads: Threads,
    /// The step slice of the thread that asks for steps; created at the first one.
    slice: RefCell<Option<StepSlice>>,
    lost: Cell<LostSlices>,
}

impl VcpuGroup {
    /// Starts the threads; the vCPUs are stopped.
    ///
    /// # Errors
    /// If the host lacks a thread, a signal or a descriptor.
    pub fn start<E, M>(
        vcpus: Vec<Vcpu>,
        irqchip: Irqchip,
        exits: E,
        memory: M,
    ) -> Result<Self, GroupError>
    where
        E: Exits + Send + Sync + 'static,
        M: GuestMemory + Send + Sync + 'static,
    {
        wake::install().map_err(GroupError::Signal)?;
        let wakers = Wakers::new(irqchip.clone());
        let all = AllStop::new(wakers.clone()).map_err(GroupError::Notifier)?;
        let threads = Threads::start(&all, Shared::new(vcpus, irqchip, exits, memory)?)?;
        Ok(Self {
            all,
            wakers,
            threads,
            slice: RefCell::default(),
            lost: Cell::default(),
        })
    }

    /// Replaces the vCPUs, which are stopped, by those of the machine after a reset. These are stopped too.
    ///
    /// # Errors
    /// As [`start`](Self::start). If [`is_empty`](Self::is_empty) then, the old vCPUs have gone, and the
    /// guest cannot go on.
    pub fn replace<E, M>(
        &mut self,
        vcpus: Vec<Vcpu>,
        irqchip: Irqchip,
        exits: E,
        memory: M,
    ) -> Result<(), GroupError>
    where
        E: Exits + Send + Sync + 'static,
        M: GuestMemory + Send + Sync + 'static,
    {
        let shared = Shared::new(vcpus, irqchip.clone(), exits, memory)?;
        self.threads.end(&self.all, thread::REPLACED);
        self.wakers.replace(irqchip);
        self.threads = Threads::start(&self.all, shared)?;
        self.lost = Cell::default();
        Ok(())
    }

    /// Whether there are no vCPUs left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.vcpus().is_empty()
    }

    /// Returns the number of vCPUs.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.shared.slots.len()
    }

    /// A vCPU of a stopped group; blocks while it runs. `None` if there is no such vCPU.
    #[must_use]
    pub fn vcpu(&self, id: VcpuId) -> Option<MutexGuard<'_, Vcpu>> {
        self.threads
            .shared
            .slots
            .get(id.index())
            .map(|slot| lock(&slot.vcpu))
    }

    /// What a vCPU has done. `None` if there is no such vCPU, or it still runs.
    pub(crate) fn stats(&self, id: VcpuId) -> Option<VcpuStats> {
        let slot = self.threads.shared.slots.get(id.index())?;
        match slot.vcpu.try_lock() {
            Ok(vcpu) => Some(vcpu.stats()),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner().stats()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Ends the vCPUs' threads, at the machine's end.
    pub(crate) fn end(&mut self) {
        self.threads.end(&self.all, thread::LAST_EXIT);
    }

    /// Begins a run cycle. Returns the stops if it is over already; [`VcpuGroup::take_stops`] has none
    /// then. A plan that cannot be carried out is an empty list of stops.
    pub fn resume(&self, plan: &ResumePlan) -> Option<Vec<Stop>> {
        let irqchip = &self.threads.shared.irqchip;
        let resumed = match self.inline_step(plan) {
            Some(id) => {
                irqchip.step_begins();
                self.all.resume_here(plan, id, |order, armed, must_stop| {
                    let reason = self.step_here(id, order, armed, must_stop);
                    if reason.is_none() {
                        irqchip.step_goes_on();
                    }
                    reason
                })
            }
            None => {
                if is_one_step(plan) {
                    irqchip.guest_steps();
                } else {
                    irqchip.guest_runs();
                }
                self.all.resume(plan).map(|()| None)
            }
        };
        resumed.unwrap_or_else(|error| {
            self.not_resumed(&error);
            Some(Vec::new())
        })
    }

    /// Lets all vCPUs run with nothing armed.
    pub fn resume_all(&self) {
        for slot in &self.threads.shared.slots {
            slot.order_is_step(false);
        }
        self.threads.shared.irqchip.guest_runs();
        if let Err(error) = self.all.release() {
            self.not_resumed(&error);
        }
    }

    fn not_resumed(&self, error: &ResumeError) {
        tracing::error!(%error, "the vCPUs were not resumed");
        if *error != ResumeError::Running {
            self.threads.shared.irqchip.guest_stops();
        }
    }

    /// Says whether a debugger is attached.
    pub fn hold(&self, attached: bool) {
        self.all.hold(attached);
    }

    /// Ends the run cycle. Afterwards [`VcpuGroup::take_stops`] returns one list, whether there was a
    /// run cycle or not.
    pub fn interrupt(&self) {
        self.all.interrupt();
    }

    /// Becomes readable when a run cycle is over.
    #[must_use]
    pub fn stopped_fd(&self) -> RawFd {
        self.all.stopped_fd().as_raw_fd()
    }

    /// The stops of the run cycle that is over, once.
    pub fn take_stops(&self) -> Option<Vec<Stop>> {
        self.all.take_stops()
    }

    /// Returns `true` if all vCPUs are stopped and their stops were taken.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.all.is_stopped()
    }
}

impl Drop for VcpuGroup {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns `true` if the plan steps one vCPU, and the others stay.
fn is_one_step(plan: &ResumePlan) -> bool {
    let mut running = plan.vcpus.iter().filter(|order| **order != VcpuOrder::Stay);
    matches!(running.next(), Some(VcpuOrder::Step(_))) && running.next().is_none()
}

/// Locks, also after a panic elsewhere: the data behind these mutexes is consistent between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
