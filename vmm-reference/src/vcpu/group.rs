//! All vCPUs of a guest: run control, without polling.
//!
//! The group is either *stopped* (no vCPU runs, and registers may be read and written) or in a
//! *round*: [`VcpuGroup::resume`] gives each vCPU its order, the first one to stop for a reason
//! of its own kicks the others, and the last one to stop signals [`VcpuGroup::stopped_fd`].
//! That is one hand-over to a vCPU's thread, and one back.
//!
//! A series of steps does without even these: from the second step on, the thread that asks for a
//! step of one vCPU runs it itself, for a bounded [turn](super::kick). Waking another thread costs
//! more than the step. The first step after a free run stays with the vCPU's thread: before Linux
//! 6.13 KVM waits for an RCU grace period when another thread than before runs a vCPU, and a
//! conditional breakpoint (stop, step, go on) would pay for it twice. There the period is longer
//! than a turn too, so that each turn would be lost to it: after a lost turn the vCPU's thread
//! keeps the steps to come, twice as many each time.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use std::{fmt, io};

use debug_stub::kvm::{DebugVcpu, Environment, ExitHandler, OnStop, RunEnd, UserInterrupts};
use debug_stub::x86_64::RegisterFile;
use debug_stub::{Armed, GuestMemory, ResumePlan, Stop, StopReason, VcpuId, VcpuOrder};
use thiserror::Error;

use super::bell::{Bell, Waiting};
use super::kick::{self, Kickable, TURN, Turn};
use super::waker::Waker;
use crate::irqchip::{BoardThread, Irqchip};

/// The vCPU threads could not be started.
#[derive(Debug, Error)]
pub enum GroupError {
    /// The signal that kicks vCPUs is not to be had.
    #[error("the signal handler that stops vCPUs could not be installed")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// No descriptor.
    #[error("the vCPU threads' socket pairs could not be created")]
    Bell(#[source] io::Error),
    /// No thread for the interrupt chips.
    #[error("the interrupt chips' thread could not be started")]
    Chips(#[source] io::Error),
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
    bell: Bell,
    stop: AtomicBool,
    /// The last order was a step.
    stepped: AtomicBool,
}

impl Slot {
    fn post(&self, mail: Mail) {
        *lock(&self.mail) = mail;
        self.bell.ring();
    }

    fn wait(&self) -> Mail {
        loop {
            // Not in the match: its guard would be held while the bell is waited for.
            let mail = std::mem::take(&mut *lock(&self.mail));
            match mail {
                Mail::Nothing => self.bell.wait(),
                mail => return mail,
            }
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

/// Runs a vCPU with the machine's devices and memory.
type Run = dyn Fn(&mut DebugVcpu, &VcpuOrder, &Armed, &AtomicBool, OnStop) -> RunEnd + Send + Sync;

struct Shared {
    slots: Vec<Slot>,
    irqchip: Irqchip,
    round: Mutex<Round>,
    stopped: Bell,
    run: Box<Run>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("slots", &self.slots)
            .field("round", &self.round)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Makes a vCPU stop, wherever it is. Before its thread has begun there is nothing to signal:
    /// it finds the flag.
    fn kick(&self, index: usize, slot: &Slot) {
        slot.stop.store(true, Ordering::SeqCst);
        let id = u16::try_from(index).map(VcpuId).unwrap_or_default();
        if let Some(waker) = self.irqchip.waker(id) {
            waker.rouse_for_stop();
        }
    }

    fn kick_all(&self) {
        for (index, slot) in self.slots.iter().enumerate() {
            self.kick(index, slot);
        }
    }

    /// One vCPU has stopped.
    fn finish(&self, stop: Stop) {
        if stop.reason != StopReason::Interrupted {
            // Before this vCPU is counted as stopped: nobody can begin another round meanwhile,
            // so this kick cannot hit one.
            for (index, slot) in self.slots.iter().enumerate() {
                if index != stop.vcpu.index() {
                    self.kick(index, slot);
                }
            }
        }
        let mut round = lock(&self.round);
        if stop.reason != StopReason::Interrupted {
            round.stops.push(stop);
        }
        round.running = round.running.saturating_sub(1);
        if round.running == 0 {
            self.irqchip.guest_stops();
            round.untold = true;
            self.signal();
        }
    }

    fn signal(&self) {
        self.stopped.ring();
    }
}

/// Turns that ended before the step did, in a row, and what follows from it.
#[derive(Clone, Copy, Debug, Default)]
struct LostTurns {
    in_a_row: u32,
    /// How many steps the vCPU's thread keeps.
    kept: u32,
}

impl LostTurns {
    /// Doubling up to here: then a machine that has become faster is noticed within seconds.
    const MOST: u32 = 16;

    /// Whether to try a turn for the next step.
    fn next_step(&mut self) -> bool {
        let try_it = self.kept == 0;
        self.kept = self.kept.saturating_sub(1);
        try_it
    }

    fn lose(&mut self) {
        self.in_a_row = (self.in_a_row + 1).min(Self::MOST);
        self.kept = 1 << self.in_a_row;
    }
}

/// All vCPUs of a guest, each with its thread; for one thread that controls them. Dropping it ends
/// them.
#[derive(Debug)]
pub struct VcpuGroup {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Outlives the vCPUs' threads, which it serves.
    _chips: Option<BoardThread>,
    /// Of the thread that asks for steps: made at the first one.
    turn: RefCell<Option<Turn>>,
    lost: Cell<LostTurns>,
}

impl VcpuGroup {
    /// Starts the threads; the vCPUs are stopped.
    ///
    /// # Errors
    /// If the host lacks a thread, a signal or a descriptor.
    pub fn start<E, M>(
        vcpus: Vec<DebugVcpu>,
        irqchip: Irqchip,
        exits: E,
        memory: M,
    ) -> Result<Self, GroupError>
    where
        E: ExitHandler + UserInterrupts + Send + Sync + 'static,
        M: GuestMemory + Send + Sync + 'static,
    {
        kick::install().map_err(GroupError::Signal)?;
        let stopped = Bell::new(Waiting::InALoop).map_err(GroupError::Bell)?;
        let ids: Vec<VcpuId> = vcpus.iter().map(DebugVcpu::id).collect();
        let slots = vcpus
            .into_iter()
            .map(|vcpu| {
                Ok(Slot {
                    vcpu: Mutex::new(vcpu),
                    mail: Mutex::default(),
                    bell: Bell::new(Waiting::Here)?,
                    stop: AtomicBool::new(false),
                    stepped: AtomicBool::new(false),
                })
            })
            .collect::<io::Result<_>>()
            .map_err(GroupError::Bell)?;
        let run = move |vcpu: &mut DebugVcpu,
                        order: &VcpuOrder,
                        armed: &Armed,
                        stop: &AtomicBool,
                        on_stop| {
            let environment = Environment {
                exits: &exits,
                memory: &memory,
                stop,
                on_stop,
            };
            vcpu.run(order, armed, &environment)
        };
        let chips = irqchip.start().map_err(GroupError::Chips)?;
        let shared = Arc::new(Shared {
            slots,
            irqchip,
            round: Mutex::default(),
            stopped,
            run: Box::new(run),
        });
        // Dropped on an early return, it ends the threads that have begun.
        let mut group = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            _chips: chips,
            turn: RefCell::default(),
            lost: Cell::default(),
        };
        for id in ids {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new()
                .name(id.to_string())
                .spawn(move || vcpu_thread(id, &shared))
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
    ///
    /// Answers the stops if the round is over already; [`VcpuGroup::take_stops`] has none then.
    pub fn resume(&self, plan: &ResumePlan) -> Option<Vec<Stop>> {
        let orders: Vec<_> = self
            .shared
            .slots
            .iter()
            .zip(&plan.vcpus)
            .enumerate()
            .filter(|(_, (_, order))| **order != VcpuOrder::Stay)
            .map(|(index, (slot, order))| (index, slot, order))
            .collect();
        if let [(index, slot, order)] = orders.as_slice() {
            if let Some((reason, registers)) = self.step_here(slot, order, &plan.armed) {
                let vcpu = u16::try_from(*index).map(VcpuId).unwrap_or_default();
                let stop = Stop {
                    vcpu,
                    reason,
                    registers,
                };
                return Some(vec![stop]);
            }
        }
        let mut round = lock(&self.shared.round);
        debug_assert_eq!(round.running, 0, "a round is under way");
        if orders.is_empty() {
            return Some(Vec::new());
        }
        *round = Round {
            running: orders.len(),
            stops: Vec::new(),
            untold: false,
        };
        drop(round);
        self.shared.irqchip.guest_runs();
        // All flags before the first order: a vCPU that stops at once kicks the others.
        for slot in &self.shared.slots {
            slot.stop.store(false, Ordering::Release);
        }
        for (_, slot, order) in orders {
            let is_step = matches!(order, VcpuOrder::Step(_));
            slot.stepped.store(is_step, Ordering::Relaxed);
            slot.post(Mail::Run(order.clone(), Arc::clone(&plan.armed)));
        }
        None
    }

    /// Runs a step on the calling thread, if the one before was a step too and it is done within a
    /// turn; otherwise the vCPU's own thread is to be given the same order.
    fn step_here(
        &self,
        slot: &Slot,
        order: &VcpuOrder,
        armed: &Armed,
    ) -> Option<(StopReason, Option<Box<RegisterFile>>)> {
        let is_step = matches!(order, VcpuOrder::Step(_));
        if !slot.stepped.swap(is_step, Ordering::Relaxed) || !is_step {
            return None;
        }
        let mut lost = self.lost.get();
        let worth_a_turn = lost.next_step();
        self.lost.set(lost);
        if !worth_a_turn {
            return None;
        }
        let mut turn = self.turn.borrow_mut();
        if turn.is_none() {
            *turn = Turn::new()
                .inspect_err(|error| tracing::debug!(%error, "no turns: each step is handed over"))
                .ok();
        }
        let mut vcpu = lock(&slot.vcpu);
        let run = vcpu.kvm_run();
        let turn = turn.as_mut()?;
        self.shared.irqchip.step_begins();
        let start = Instant::now();
        let end = loop {
            let mut rang = false;
            let end = turn.take(run, |over| {
                let end = (self.shared.run)(&mut vcpu, order, armed, over, OnStop::Yield);
                rang = over.load(Ordering::Acquire);
                end
            });
            // The timer may ring for a turn before this one. If it has not, the vCPU is halted, and
            // its own thread waits.
            let again = rang && matches!(end, Ok(RunEnd::Yielded)) && start.elapsed() < TURN;
            if !again {
                break end;
            }
        };
        self.shared.irqchip.guest_stops();
        match end {
            Ok(RunEnd::Stopped(reason)) => {
                self.lost.set(LostTurns::default());
                Some((reason, vcpu.expedited()))
            }
            Ok(RunEnd::Yielded) => {
                lost.lose();
                self.lost.set(lost);
                None
            }
            Err(error) => {
                tracing::debug!(%error, "no turn: the step is handed over");
                None
            }
        }
    }

    /// Lets all vCPUs run with nothing armed.
    pub fn resume_all(&self) {
        // Nothing is over at once: there are vCPUs, and none is stepped.
        let _ = self.resume(&ResumePlan {
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
        self.shared.kick_all();
    }

    /// Becomes readable when a round is over.
    #[must_use]
    pub fn stopped_fd(&self) -> RawFd {
        self.shared.stopped.as_raw_fd()
    }

    /// The stops of the round that is over, once; `None` if no round has ended since.
    pub fn take_stops(&self) -> Option<Vec<Stop>> {
        // Only a wake-up: what counts is the round.
        self.shared.stopped.wait();
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
        }
        self.shared.kick_all();
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

fn vcpu_thread(id: VcpuId, shared: &Shared) {
    let Some(slot) = shared.slots.get(id.index()) else {
        return;
    };
    let run = lock(&slot.vcpu).kvm_run();
    let _kickable = Kickable::enter(run);
    let _attached = shared.irqchip.waker(id).map(Waker::attach);
    if shared.irqchip.user().is_some() {
        kick::make_alarm();
    }
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
        let end = (shared.run)(&mut vcpu, &order, &armed, &slot.stop, OnStop::Interrupt);
        let reason = match end {
            RunEnd::Stopped(reason) => reason,
            // Not on a thread of its own.
            RunEnd::Yielded => StopReason::Interrupted,
        };
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

#[cfg(test)]
mod tests {
    use super::LostTurns;

    fn tries(lost: &mut LostTurns, steps: u32, turn_is_enough: bool) -> u32 {
        (0..steps)
            .filter(|_| {
                let tried = lost.next_step();
                if tried && turn_is_enough {
                    *lost = LostTurns::default();
                } else if tried {
                    lost.lose();
                }
                tried
            })
            .count()
            .try_into()
            .unwrap()
    }

    /// Before Linux 6.13 a turn always is: seen as 30 ms for each step under Linux 6.1.
    #[test]
    fn where_every_turn_is_lost_few_are_tried() {
        let mut lost = LostTurns::default();
        assert_eq!(tries(&mut lost, 2000, false), 10);
        assert!(tries(&mut lost, 1_000_000, false) < 25);
    }

    #[test]
    fn one_lost_turn_costs_two_hand_overs() {
        let mut lost = LostTurns::default();
        assert_eq!(tries(&mut lost, 1, false), 1);
        assert_eq!(tries(&mut lost, 100, true), 98);
        assert_eq!(tries(&mut lost, 100, true), 100);
    }
}
