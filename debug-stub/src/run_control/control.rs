//! The state machine.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use thiserror::Error;
use vcpu_caps::VcpuId;

use crate::order::{Armed, ResumePlan, Stop, StopReason, VcpuOrder};

/// What the caller of [`RunControl`] does next. A late effect does no harm; a lost one hangs the
/// guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The vCPU's thread has a new order: if it waits, wake it up.
    Wake(VcpuId),
    /// The vCPU runs and must stop: make it leave the guest, so it finds
    /// [`RunControl::must_stop`] true.
    Kick(VcpuId),
    /// All vCPUs are stopped: [`RunControl::take_stops`] has a list. Once for each list.
    AllStopped,
}

/// What a vCPU's thread does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Run the vCPU until the order is done or [`RunControl::must_stop`] is true, then report with
    /// [`RunControl::stopped`]. Never [`VcpuOrder::Stay`].
    Run(VcpuOrder, Arc<Armed>),
    /// There is no order. Wait for [`Effect::Wake`], then ask again.
    Wait,
    /// The vCPU was removed and is forgotten from now on. Its thread ends.
    Leave,
}

/// A plan was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// A run cycle is in progress.
    #[error("the guest runs: interrupt it and take its stops before the next resume")]
    Running,
    /// The stops of the last run cycle were not taken.
    #[error("the last stops were not taken: call take_stops before the next resume")]
    StopsWaiting,
    /// The plan has an order for a vCPU that does not exist.
    #[error("there is no {0}: it was removed or never added; make a new plan")]
    NoVcpu(VcpuId),
    /// The plan has an order for a vCPU that was removed and whose thread has not left yet.
    #[error("{0} is leaving: make a new plan without it")]
    Leaving(VcpuId),
    /// A debugger is attached and holds the guest.
    #[error("a debugger is attached and holds the guest: it is for the debugger to continue")]
    Held,
    /// The plan has more orders than there are vCPU ids.
    #[error("the plan has {0} orders, more than there are vCPU ids")]
    TooManyOrders(usize),
}

/// A vCPU could not be added or removed. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VcpuError {
    /// A vCPU with this id is present.
    #[error("{0} exists already: remove it first")]
    Exists(VcpuId),
    /// The vCPU was removed and its thread has not left yet.
    #[error("{0} is still leaving: wait until its thread has ended")]
    Leaving(VcpuId),
    /// There is no such vCPU.
    #[error("there is no {0}")]
    NoVcpu(VcpuId),
}

/// A vCPU asked for an order that it cannot have. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OrderError {
    /// There is no such vCPU.
    #[error("there is no {0}: its thread must end")]
    NoVcpu(VcpuId),
    /// The vCPU has an order that is not reported as done.
    #[error("{0} runs: report its stop before asking for the next order")]
    Running(VcpuId),
}

/// A stop was reported that cannot be. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StopError {
    /// There is no such vCPU.
    #[error("there is no {0}: its stop is dropped")]
    NoVcpu(VcpuId),
    /// The vCPU has not taken an order, or has reported its stop already.
    #[error("{0} does not run: its stop is dropped")]
    NotRunning(VcpuId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Work {
    order: VcpuOrder,
    armed: Arc<Armed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Stopped,
    /// It has an order and has not taken it.
    Ordered(Work),
    /// It has taken its order.
    Running {
        work: Work,
        /// It was asked to stop, and kicked.
        stop: bool,
    },
    /// Its order has begun and was given back. It is taken again in any case: only a thread that runs
    /// the vCPU can end what has begun.
    GivenBack {
        work: Work,
        stop: bool,
    },
}

impl State {
    /// Whether the run cycle waits for this vCPU.
    fn is_active(&self) -> bool {
        !matches!(self, Self::Stopped)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Vcpu {
    state: State,
    /// It was removed: it gets no other order than to leave.
    leaving: bool,
}

/// A run cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cycle {
    armed: Arc<Armed>,
    /// The vCPUs that are ordered or running.
    active: usize,
    /// vCPUs that are added now run.
    late_run: bool,
    /// No vCPU begins to run; those that run were asked to stop.
    stopping: bool,
    /// First one first.
    stops: Vec<Stop>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Guest {
    Stopped {
        /// The list that waits to be taken.
        waiting: Option<Vec<Stop>>,
    },
    Running(Cycle),
}

/// All-stop run control of one guest. See the [module](super) for the rules.
///
/// A vCPU's thread calls [`order`](Self::order), [`must_stop`](Self::must_stop) and
/// [`stopped`](Self::stopped). The controller calls the rest. Each call returns what the caller must
/// do next, as [`Effect`]s. All calls of one guest must be serialised, by a lock for instance;
/// effects are best acted on after the lock is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunControl {
    vcpus: BTreeMap<VcpuId, Vcpu>,
    guest: Guest,
    /// A debugger is attached: only it lets a stopped guest run.
    held: bool,
}

impl Default for RunControl {
    fn default() -> Self {
        Self::new()
    }
}

impl RunControl {
    /// A stopped guest without vCPUs.
    #[must_use]
    pub fn new() -> Self {
        Self {
            vcpus: BTreeMap::new(),
            guest: Guest::Stopped { waiting: None },
            held: false,
        }
    }

    /// Adds a vCPU. It waits for the next plan, or runs at once if the current plan lets the whole
    /// guest run.
    ///
    /// # Errors
    /// If there is a vCPU with this id, or a removed one whose thread has not left.
    pub fn add(&mut self, vcpu: VcpuId) -> Result<Vec<Effect>, VcpuError> {
        let entry = match self.vcpus.entry(vcpu) {
            Entry::Occupied(entry) if entry.get().leaving => {
                return Err(VcpuError::Leaving(vcpu));
            }
            Entry::Occupied(_) => return Err(VcpuError::Exists(vcpu)),
            Entry::Vacant(entry) => entry,
        };
        let (state, effects) = match &mut self.guest {
            Guest::Running(cycle) if cycle.late_run && !cycle.stopping => {
                cycle.active += 1;
                let work = Work {
                    order: VcpuOrder::Continue,
                    armed: Arc::clone(&cycle.armed),
                };
                (State::Ordered(work), vec![Effect::Wake(vcpu)])
            }
            _ => (State::Stopped, Vec::new()),
        };
        entry.insert(Vcpu {
            state,
            leaving: false,
        });
        Ok(effects)
    }

    /// Removes a vCPU: the next order of its thread is [`Order::Leave`]. One that runs is stopped
    /// first.
    ///
    /// # Errors
    /// If there is no such vCPU, or it was removed already.
    pub fn remove(&mut self, vcpu: VcpuId) -> Result<Vec<Effect>, VcpuError> {
        let entry = self.vcpus.get_mut(&vcpu).ok_or(VcpuError::NoVcpu(vcpu))?;
        if entry.leaving {
            return Err(VcpuError::Leaving(vcpu));
        }
        entry.leaving = true;
        let mut effects = Vec::new();
        match &mut entry.state {
            State::Stopped => effects.push(Effect::Wake(vcpu)),
            State::Ordered(_) => {
                entry.state = State::Stopped;
                effects.push(Effect::Wake(vcpu));
                self.one_less(&mut effects);
            }
            State::Running { stop, .. } => {
                if !std::mem::replace(stop, true) {
                    effects.push(Effect::Kick(vcpu));
                }
            }
            State::GivenBack { stop, .. } => *stop = true,
        }
        Ok(effects)
    }

    /// The vCPU's thread has ended, whatever it was doing. The vCPU is forgotten without a stop;
    /// to say why it ended, call [`stopped`](Self::stopped) before.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn left(&mut self, vcpu: VcpuId) -> Result<Vec<Effect>, VcpuError> {
        let entry = self.vcpus.remove(&vcpu).ok_or(VcpuError::NoVcpu(vcpu))?;
        let mut effects = Vec::new();
        if entry.state.is_active() {
            self.one_less(&mut effects);
        }
        Ok(effects)
    }

    /// Begins a run cycle.
    ///
    /// If the plan lets no vCPU run, and none that is added later, the cycle ends at once with an
    /// empty list.
    ///
    /// # Errors
    /// If a run cycle is in progress, the last stops were not taken, or the plan has an order other
    /// than [`VcpuOrder::Stay`] for a vCPU that does not exist. The guest stays as it is.
    pub fn resume(&mut self, plan: &ResumePlan) -> Result<Vec<Effect>, ResumeError> {
        self.check_stopped()?;
        for (index, order) in plan.vcpus.iter().enumerate() {
            let id = u16::try_from(index).map(VcpuId);
            let id = id.map_err(|_| ResumeError::TooManyOrders(plan.vcpus.len()))?;
            if *order == VcpuOrder::Stay {
                continue;
            }
            match self.vcpus.get(&id) {
                None => return Err(ResumeError::NoVcpu(id)),
                Some(vcpu) if vcpu.leaving => return Err(ResumeError::Leaving(id)),
                Some(_) => {}
            }
        }
        let late_run = plan.others == VcpuOrder::Continue;
        Ok(self.begin(&plan.armed, late_run, |id| plan.order(id).clone()))
    }

    /// Lets all vCPUs run with nothing armed, also those that are added later.
    ///
    /// # Errors
    /// If a run cycle is in progress, or the last stops were not taken.
    pub fn release(&mut self) -> Result<Vec<Effect>, ResumeError> {
        self.check_stopped()?;
        Ok(self.begin(&Arc::default(), true, |_| VcpuOrder::Continue))
    }

    /// Says whether a debugger is attached, for [`start`](Self::start).
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Lets the guest run as [`release`](Self::release) does, on the VMM's own account: as it boots, or
    /// after it was paused. A guest that runs already is left as it is.
    ///
    /// # Errors
    /// If a debugger is attached and the guest is stopped, or the last stops were not taken.
    pub fn start(&mut self) -> Result<Vec<Effect>, ResumeError> {
        match self.check_stopped() {
            Err(ResumeError::Running) => Ok(Vec::new()),
            Err(error) => Err(error),
            Ok(()) if self.held => Err(ResumeError::Held),
            Ok(()) => self.release(),
        }
    }

    /// Stops the guest. Afterwards exactly one list of stops comes out: see the [module](super).
    pub fn interrupt(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        match &mut self.guest {
            Guest::Running(_) => self.stop_all(&mut effects),
            Guest::Stopped { waiting } => {
                if waiting.is_none() {
                    *waiting = Some(Vec::new());
                    effects.push(Effect::AllStopped);
                }
            }
        }
        effects
    }

    /// Stops the guest for an event that is not the result of a vCPU's order: a reset or a power-off
    /// that a device has seen. The stop is in the list that comes out, once. The vCPU need not
    /// exist, nor run: the debugger shows it first.
    pub fn event(&mut self, stop: Stop) -> Vec<Effect> {
        match &mut self.guest {
            Guest::Running(cycle) => {
                cycle.stops.push(stop);
                self.interrupt()
            }
            Guest::Stopped { waiting } => {
                let effects = if waiting.is_none() {
                    vec![Effect::AllStopped]
                } else {
                    Vec::new()
                };
                waiting.get_or_insert_default().push(stop);
                effects
            }
        }
    }

    /// The next order of a vCPU, for its thread. The vCPU that gets [`Order::Run`] runs from now on;
    /// [`must_stop`](Self::must_stop) may be true already, if the order was given back before.
    ///
    /// The controller may take the order itself, and run the vCPU on its own thread.
    ///
    /// # Errors
    /// If there is no such vCPU, or it has not reported the stop of its last order.
    pub fn order(&mut self, vcpu: VcpuId) -> Result<Order, OrderError> {
        let Entry::Occupied(mut entry) = self.vcpus.entry(vcpu) else {
            return Err(OrderError::NoVcpu(vcpu));
        };
        let (work, stop) = match &entry.get().state {
            State::Stopped if entry.get().leaving => {
                entry.remove();
                return Ok(Order::Leave);
            }
            State::Stopped => return Ok(Order::Wait),
            State::Running { .. } => return Err(OrderError::Running(vcpu)),
            State::Ordered(work) => (work.clone(), false),
            State::GivenBack { work, stop } => (work.clone(), *stop),
        };
        let order = Order::Run(work.order.clone(), Arc::clone(&work.armed));
        entry.get_mut().state = State::Running { work, stop };
        Ok(order)
    }

    /// Gives an order back that has begun and is not done, for another thread to go on with:
    /// [`order`](Self::order) then returns it again. Also if a stop was requested: the other thread
    /// finds [`must_stop`](Self::must_stop) true and ends what has begun.
    ///
    /// # Errors
    /// If there is no such vCPU, or it does not run.
    pub fn give_back(&mut self, vcpu: VcpuId) -> Result<Vec<Effect>, StopError> {
        let entry = self.vcpus.get_mut(&vcpu).ok_or(StopError::NoVcpu(vcpu))?;
        let State::Running { work, stop } = &entry.state else {
            return Err(StopError::NotRunning(vcpu));
        };
        entry.state = State::GivenBack {
            work: work.clone(),
            stop: *stop,
        };
        Ok(vec![Effect::Wake(vcpu)])
    }

    /// Whether a vCPU must leave the guest and report a stop. Also true for one that has no order
    /// to run.
    #[must_use]
    pub fn must_stop(&self, vcpu: VcpuId) -> bool {
        let state = self.vcpus.get(&vcpu).map(|vcpu| &vcpu.state);
        !matches!(state, Some(State::Running { stop: false, .. }))
    }

    /// A vCPU that ran has stopped. [`StopReason::Interrupted`] says that it has no reason of its
    /// own; if it was not asked to stop, this is taken as an [`interrupt`](Self::interrupt).
    ///
    /// # Errors
    /// If there is no such vCPU, or it does not run.
    pub fn stopped(&mut self, vcpu: VcpuId, reason: StopReason) -> Result<Vec<Effect>, StopError> {
        let entry = self.vcpus.get_mut(&vcpu).ok_or(StopError::NoVcpu(vcpu))?;
        let State::Running { stop, .. } = entry.state else {
            return Err(StopError::NotRunning(vcpu));
        };
        let leaves = entry.leaving;
        entry.state = State::Stopped;
        let mut effects = Vec::new();
        if reason == StopReason::Interrupted {
            if !stop {
                self.stop_all(&mut effects);
            }
        } else {
            if let Guest::Running(cycle) = &mut self.guest {
                cycle.stops.push(Stop { vcpu, reason });
            }
            self.stop_all(&mut effects);
        }
        if leaves {
            effects.push(Effect::Wake(vcpu));
        }
        self.one_less(&mut effects);
        Ok(effects)
    }

    /// The list of stops, once, if all vCPUs are stopped after a resume or an interrupt. The list is
    /// empty if no vCPU had a reason of its own.
    pub fn take_stops(&mut self) -> Option<Vec<Stop>> {
        match &mut self.guest {
            Guest::Stopped { waiting } => waiting.take(),
            Guest::Running(_) => None,
        }
    }

    /// Whether a run cycle is in progress.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.guest, Guest::Running(_))
    }

    /// Whether [`take_stops`](Self::take_stops) has a list.
    #[must_use]
    pub fn has_stops(&self) -> bool {
        matches!(self.guest, Guest::Stopped { waiting: Some(_) })
    }

    /// The vCPUs, lowest id first, without those that leave.
    pub fn vcpus(&self) -> impl Iterator<Item = VcpuId> + '_ {
        let present = self.vcpus.iter().filter(|(_, vcpu)| !vcpu.leaving);
        present.map(|(id, _)| *id)
    }

    fn check_stopped(&self) -> Result<(), ResumeError> {
        match &self.guest {
            Guest::Running(_) => Err(ResumeError::Running),
            Guest::Stopped { waiting: Some(_) } => Err(ResumeError::StopsWaiting),
            Guest::Stopped { waiting: None } => Ok(()),
        }
    }

    /// Begins a run cycle of a guest that is stopped.
    fn begin(
        &mut self,
        armed: &Arc<Armed>,
        late_run: bool,
        order: impl Fn(VcpuId) -> VcpuOrder,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut active = 0;
        for (id, vcpu) in &mut self.vcpus {
            let order = order(*id);
            if vcpu.leaving || order == VcpuOrder::Stay {
                continue;
            }
            vcpu.state = State::Ordered(Work {
                order,
                armed: Arc::clone(armed),
            });
            active += 1;
            effects.push(Effect::Wake(*id));
        }
        self.guest = Guest::Running(Cycle {
            armed: Arc::clone(armed),
            active,
            late_run,
            stopping: false,
            stops: Vec::new(),
        });
        self.end_if_over(&mut effects);
        effects
    }

    /// Stops all vCPUs: an order that has not begun is withdrawn, and a vCPU that runs is kicked.
    /// Does nothing the second time. The caller counts the vCPU that it has stopped itself.
    fn stop_all(&mut self, effects: &mut Vec<Effect>) {
        let Guest::Running(cycle) = &mut self.guest else {
            return;
        };
        if !std::mem::replace(&mut cycle.stopping, true) {
            for (id, vcpu) in &mut self.vcpus {
                match &mut vcpu.state {
                    State::Stopped => {}
                    State::Ordered(_) => {
                        vcpu.state = State::Stopped;
                        cycle.active -= 1;
                    }
                    State::Running { stop, .. } => {
                        if !std::mem::replace(stop, true) {
                            effects.push(Effect::Kick(*id));
                        }
                    }
                    State::GivenBack { stop, .. } => *stop = true,
                }
            }
        }
        self.end_if_over(effects);
    }

    /// A vCPU that was ordered or running is neither any more.
    fn one_less(&mut self, effects: &mut Vec<Effect>) {
        if let Guest::Running(cycle) = &mut self.guest {
            cycle.active -= 1;
        }
        self.end_if_over(effects);
    }

    /// Ends the run cycle when no vCPU runs and none will.
    fn end_if_over(&mut self, effects: &mut Vec<Effect>) {
        if let Guest::Running(cycle) = &mut self.guest {
            if cycle.active == 0 && (cycle.stopping || !cycle.late_run) {
                let stops = std::mem::take(&mut cycle.stops);
                self.guest = Guest::Stopped {
                    waiting: Some(stops),
                };
                effects.push(Effect::AllStopped);
            }
        }
    }
}
