//! The vCPUs' own threads.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use debug_stub::run_control::{AllStop, Order, VcpuHandle};
use debug_stub::{StopReason, VcpuOrder};

use super::shared::Shared;
use super::{GroupError, lock};
use crate::irqchip::ChipsetThread;
use crate::terminal;
use crate::vcpu::run::{OnStop, RunEnd};
use crate::wake::{self, Kickable, Waker};

/// How long the end of a group waits for its threads. They leave the guest at once, and never wait for a host
/// descriptor.
pub(super) const LAST_EXIT: Duration = Duration::from_millis(400);
/// How long a reset waits for those of the old machine, which are stopped: a loaded host may be slow to run them, and
/// without their end there is no new machine.
pub(super) const REPLACED: Duration = Duration::from_secs(10);

/// The threads of a machine's vCPUs, and that of its emulated chips.
#[derive(Debug)]
pub(super) struct Threads {
    pub(super) shared: Arc<Shared>,
    vcpus: Vec<JoinHandle<()>>,
    /// Closed when the last thread has ended: each holds the other side.
    ended: mpsc::Receiver<()>,
    /// Ends after the vCPUs' threads, which it serves.
    chips: Option<ChipsetThread>,
}

impl Threads {
    /// Starts them; the vCPUs are stopped. If that fails, none is left.
    pub(super) fn start(all: &AllStop, shared: Shared) -> Result<Self, GroupError> {
        let chips = shared.irqchip.start().map_err(GroupError::Chips)?;
        let (alive, ended) = mpsc::channel();
        let ids: Vec<_> = shared
            .slots
            .iter()
            .map(|slot| lock(&slot.vcpu).id())
            .collect();
        let mut threads = Self {
            shared: Arc::new(shared),
            vcpus: Vec::new(),
            ended,
            chips,
        };
        for id in ids {
            let shared = Arc::clone(&threads.shared);
            let lives = alive.clone();
            let started = all.add(id).map_err(GroupError::Add).and_then(|handle| {
                let thread = Builder::new().name(id.to_string());
                let run = move || {
                    let _lives = lives;
                    vcpu_thread(handle, &shared);
                };
                terminal::stops_stay_here(|| thread.spawn(run))
                    .and_then(|spawned| spawned)
                    .map_err(|source| GroupError::Thread { vcpu: id, source })
            });
            match started {
                Ok(thread) => threads.vcpus.push(thread),
                Err(error) => {
                    drop(alive);
                    threads.end(all, LAST_EXIT);
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }

    /// Ends them. Waits for that, for at most `limit`.
    pub(super) fn end(&mut self, all: &AllStop, limit: Duration) {
        for id in all.vcpus() {
            // No error: only this thread removes vCPUs, and one that has panicked is gone.
            let _ = all.remove(id);
        }
        if self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            // It keeps what it uses: `Shared` is counted.
            tracing::error!("a vCPU thread does not end: it is left to the end of the process");
            return;
        }
        for thread in self.vcpus.drain(..) {
            // A panic was reported as a stop already.
            let _ = thread.join();
        }
        self.chips = None;
    }
}

/// Runs one vCPU, order by order. If it panics, the handle reports that.
fn vcpu_thread(mut handle: VcpuHandle, shared: &Shared) {
    let id = handle.id();
    let Some(slot) = shared.slots.get(id.index()) else {
        return;
    };
    let _kickable = Kickable::enter(slot.immediate_exit.byte())
        .inspect_err(|error| tracing::error!(%error, %id, "the vCPU cannot be stopped"));
    let _attached = shared.irqchip.waker(id).map(Waker::attach);
    if shared.irqchip.chips().has_local_timers() {
        wake::make_alarm();
    }
    let mut resumed = false;
    while let Order::Run(order, armed) = handle.wait_for_order() {
        let mut vcpu = lock(&slot.vcpu);
        if resumed && order == VcpuOrder::Continue && shared.irqchip.clock().passes_in_a_stop() {
            // The guest's watchdogs must not count the stop. EINVAL: the guest does not use kvmclock.
            let _ = vcpu.fd().kvmclock_ctrl();
        }
        resumed = true;
        let must_stop = || handle.must_stop();
        let end = (shared.run)(&mut vcpu, &order, &armed, &must_stop, OnStop::Interrupt);
        let reason = match end {
            RunEnd::Stopped(reason) => reason,
            // Does not happen on the vCPU's own thread.
            RunEnd::Yielded => StopReason::Interrupted,
        };
        drop(vcpu);
        handle.report(reason);
    }
}
