//! A model of a guest's vCPU threads and of its controller, one call at a time. Shared by the
//! property tests and the fuzz target `stub_run_control`.
//!
//! Every call of [`RunControl`] is legal at any time here. The model says what must come of it:
//! - a vCPU runs only with an order, and takes no order after its run cycle was asked to stop;
//! - each vCPU that runs when a stop is due is kicked, once, and finds `must_stop` true;
//! - a run cycle ends with one `AllStopped`, when no vCPU runs, and one list, which has each stop
//!   once and in order;
//! - a thread that waits is woken up when there is something for it;
//! - a call that is refused names the vCPU and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use debug_stub::run_control::{
    Effect, Order, OrderError, ResumeError, RunControl, StopError, VcpuError,
};
use debug_stub::{Armed, ResumePlan, StepOrder, Stop, StopReason, VcpuId, VcpuOrder};

/// One call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// What each of the first vCPUs is told: 0 stay, 1 continue, 2 step; and how many are told.
    Resume {
        orders: [u8; 4],
        count: u8,
    },
    Release,
    /// A debugger attaches, or goes.
    Hold(bool),
    /// The VMM lets the guest run.
    Start,
    Interrupt,
    Event(u16),
    Take,
    Add(u16),
    Remove(u16),
    Left(u16),
    Order(u16),
    GiveBack(u16),
    /// The vCPU has a reason of its own to stop.
    OwnStop(u16),
    /// The vCPU says that it was interrupted, whether that is true or not.
    Interrupted(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// It was told to wait, and waits.
    Parked {
        woken: bool,
    },
    Running {
        kicked: bool,
    },
}

#[derive(Clone, Debug)]
struct Thread {
    phase: Phase,
    /// What it is to run.
    order: Option<VcpuOrder>,
    /// The order has begun and was given back; and whether a stop was requested.
    begun: Option<bool>,
    leaving: bool,
}

impl Thread {
    fn runs(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    fn is_active(&self) -> bool {
        self.runs() || self.order.is_some()
    }

    /// What has begun is not withdrawn.
    fn withdraw(&mut self) {
        match &mut self.begun {
            Some(stop) => *stop = true,
            None => self.order = None,
        }
    }
}

#[derive(Clone, Debug)]
struct Cycle {
    armed: Arc<Armed>,
    late_run: bool,
    stopping: bool,
}

/// The guest, as [`RunControl`] and as the model see it. `Debug` tells two of them apart.
#[derive(Clone, Debug)]
pub(crate) struct World {
    control: RunControl,
    threads: BTreeMap<u16, Thread>,
    cycle: Option<Cycle>,
    /// Of the cycle, or of the list that waits.
    stops: Vec<Stop>,
    /// An `AllStopped` whose list was not taken.
    waiting: bool,
    /// A debugger is attached.
    held: bool,
}

impl Default for World {
    fn default() -> Self {
        Self {
            control: RunControl::new(),
            threads: BTreeMap::new(),
            cycle: None,
            stops: Vec::new(),
            waiting: false,
            held: false,
        }
    }
}

impl World {
    /// Makes one call and checks everything. Returns whether a list of stops came out.
    pub(crate) fn apply(&mut self, op: Op) -> bool {
        let waited = self.waiting;
        let before = self.control.clone();
        let refused = match op {
            Op::Resume { orders, count } => self.resume(&plan(orders, count)),
            Op::Release => self.release(),
            Op::Hold(held) => {
                self.held = held;
                self.control.hold(held);
                false
            }
            Op::Start => self.start(),
            Op::Interrupt => {
                let effects = self.control.interrupt();
                self.ask_to_stop();
                self.check(&effects, &[]);
                false
            }
            Op::Event(id) => {
                let stop = self.stop(id);
                self.stops.push(stop.clone());
                let effects = self.control.event(stop);
                self.ask_to_stop();
                self.check(&effects, &[]);
                false
            }
            Op::Take => {
                self.take();
                false
            }
            Op::Add(id) => self.add(id),
            Op::Remove(id) => self.remove(id),
            Op::Left(id) => self.left(id),
            Op::Order(id) => self.order(id),
            Op::GiveBack(id) => self.give_back(id),
            Op::OwnStop(id) => {
                let reason = self.stop(id).reason;
                self.stopped(id, reason)
            }
            Op::Interrupted(id) => self.stopped(id, StopReason::Interrupted),
        };
        if refused {
            assert_eq!(
                before, self.control,
                "{op:?} was refused and has changed something"
            );
        }
        self.check_views();
        matches!(op, Op::Take) && waited
    }

    /// Whatever has happened: an interrupt ends it, with one list, and nothing runs on.
    pub(crate) fn settle(&mut self) {
        let waited = self.waiting;
        self.apply(Op::Interrupt);
        let ids: Vec<u16> = self.threads.keys().copied().collect();
        for id in ids {
            if self.threads[&id].begun.is_some() {
                self.apply(Op::Order(id));
            }
            if self.threads[&id].runs() {
                assert!(
                    self.control.must_stop(VcpuId(id)),
                    "vcpu{id} was not asked to stop"
                );
                self.apply(Op::Interrupted(id));
            }
        }
        assert!(
            self.waiting,
            "no list after an interrupt (before: {waited})"
        );
        self.apply(Op::Take);
        assert!(!self.control.is_running());
        assert_eq!(self.control.take_stops(), None, "two lists");
        let ids: Vec<u16> = self.threads.keys().copied().collect();
        for id in ids {
            self.apply(Op::Order(id));
            let thread = self.threads.get(&id);
            assert!(thread.is_none_or(|thread| !thread.runs()));
        }
    }

    /// A stop that no other stop of the list is like.
    fn stop(&self, id: u16) -> Stop {
        Stop {
            vcpu: VcpuId(id),
            reason: StopReason::Watchpoint {
                address: self.stops.len() as u64,
                access: debug_stub::WatchAccess::Write,
            },
        }
    }

    /// The run cycle, if there is one, is to end; a stopped guest has something to say.
    fn ask_to_stop(&mut self) {
        match &mut self.cycle {
            Some(cycle) => {
                if !cycle.stopping {
                    cycle.stopping = true;
                    for thread in self.threads.values_mut() {
                        thread.withdraw();
                    }
                }
            }
            None => {
                if !self.waiting {
                    // What `check` takes for a cycle that has ended just now.
                    self.cycle = Some(Cycle {
                        armed: Arc::default(),
                        late_run: false,
                        stopping: true,
                    });
                }
            }
        }
    }

    fn resumable(&self) -> Option<ResumeError> {
        if self.cycle.is_some() {
            Some(ResumeError::Running)
        } else if self.waiting {
            Some(ResumeError::StopsWaiting)
        } else {
            None
        }
    }

    fn resume(&mut self, plan: &ResumePlan) -> bool {
        let mut refusal = self.resumable();
        for (id, order) in (0..).zip(&plan.vcpus) {
            if *order != VcpuOrder::Stay && refusal.is_none() {
                refusal = match self.threads.get(&id) {
                    None => Some(ResumeError::NoVcpu(VcpuId(id))),
                    Some(thread) if thread.leaving => Some(ResumeError::Leaving(VcpuId(id))),
                    Some(_) => None,
                };
            }
        }
        let result = self.control.resume(plan);
        if let Some(refusal) = refusal {
            assert_eq!(result, Err(refusal));
            return true;
        }
        let late_run = plan.others == VcpuOrder::Continue;
        self.begin(late_run, &plan.armed, |id| {
            let order = plan.vcpus.get(usize::from(id)).cloned();
            order.or(late_run.then_some(VcpuOrder::Continue))
        });
        self.check(&result.unwrap(), &[]);
        false
    }

    fn release(&mut self) -> bool {
        let refusal = self.resumable();
        let result = self.control.release();
        if let Some(refusal) = refusal {
            assert_eq!(result, Err(refusal));
            return true;
        }
        self.begin(true, &Arc::default(), |_| Some(VcpuOrder::Continue));
        self.check(&result.unwrap(), &[]);
        false
    }

    fn start(&mut self) -> bool {
        if self.cycle.is_some() {
            let before = self.control.clone();
            assert_eq!(self.control.start(), Ok(Vec::new()));
            assert_eq!(before, self.control, "a guest that runs was started");
            return false;
        }
        let refusal = self.resumable();
        if let Some(refusal) = refusal.or(self.held.then_some(ResumeError::Held)) {
            assert_eq!(self.control.start(), Err(refusal));
            return true;
        }
        let result = self.control.start();
        self.begin(true, &Arc::default(), |_| Some(VcpuOrder::Continue));
        self.check(&result.unwrap(), &[]);
        false
    }

    fn begin(
        &mut self,
        late_run: bool,
        armed: &Arc<Armed>,
        order: impl Fn(u16) -> Option<VcpuOrder>,
    ) {
        self.stops.clear();
        self.cycle = Some(Cycle {
            armed: Arc::clone(armed),
            late_run,
            stopping: false,
        });
        for (id, thread) in &mut self.threads {
            if !thread.leaving {
                thread.order = order(*id).filter(|order| *order != VcpuOrder::Stay);
            }
        }
    }

    fn take(&mut self) {
        let stops = self.control.take_stops();
        if !self.waiting {
            assert_eq!(stops, None, "a list that nothing has led to");
            return;
        }
        assert_eq!(stops.as_ref(), Some(&self.stops));
        self.waiting = false;
        self.stops.clear();
    }

    fn add(&mut self, id: u16) -> bool {
        let vcpu = VcpuId(id);
        let result = self.control.add(vcpu);
        match self.threads.get(&id) {
            Some(thread) if thread.leaving => {
                assert_eq!(result, Err(VcpuError::Leaving(vcpu)));
                return true;
            }
            Some(_) => {
                assert_eq!(result, Err(VcpuError::Exists(vcpu)));
                return true;
            }
            None => {}
        }
        let runs = self
            .cycle
            .as_ref()
            .is_some_and(|cycle| cycle.late_run && !cycle.stopping);
        let thread = Thread {
            phase: Phase::Idle,
            order: runs.then_some(VcpuOrder::Continue),
            begun: None,
            leaving: false,
        };
        self.threads.insert(id, thread);
        self.check(&result.unwrap(), &[]);
        false
    }

    fn remove(&mut self, id: u16) -> bool {
        let vcpu = VcpuId(id);
        let result = self.control.remove(vcpu);
        let Some(thread) = self.threads.get_mut(&id) else {
            assert_eq!(result, Err(VcpuError::NoVcpu(vcpu)));
            return true;
        };
        if thread.leaving {
            assert_eq!(result, Err(VcpuError::Leaving(vcpu)));
            return true;
        }
        thread.leaving = true;
        thread.withdraw();
        let kicked = thread.phase == Phase::Running { kicked: false };
        let kicks = if kicked { vec![id] } else { vec![] };
        self.check(&result.unwrap(), &kicks);
        false
    }

    fn left(&mut self, id: u16) -> bool {
        let vcpu = VcpuId(id);
        let result = self.control.left(vcpu);
        if self.threads.remove(&id).is_none() {
            assert_eq!(result, Err(VcpuError::NoVcpu(vcpu)));
            return true;
        }
        self.check(&result.unwrap(), &[]);
        false
    }

    fn order(&mut self, id: u16) -> bool {
        let vcpu = VcpuId(id);
        let result = self.control.order(vcpu);
        let Some(thread) = self.threads.get_mut(&id) else {
            assert_eq!(result, Err(OrderError::NoVcpu(vcpu)));
            return true;
        };
        if thread.runs() {
            assert_eq!(result, Err(OrderError::Running(vcpu)));
            return true;
        }
        if thread.leaving && thread.begun.is_none() {
            assert_eq!(result, Ok(Order::Leave));
            self.threads.remove(&id);
            return false;
        }
        match thread.order.take() {
            Some(order) => {
                let cycle = self.cycle.as_ref().expect("an order without a run cycle");
                let begun = thread.begun.take();
                assert!(
                    !cycle.stopping || begun == Some(true),
                    "an order after the stop request"
                );
                assert_eq!(result, Ok(Order::Run(order, Arc::clone(&cycle.armed))));
                // It finds the request when it looks: no kick is due.
                let kicked = begun == Some(true);
                thread.phase = Phase::Running { kicked };
            }
            None => {
                assert_eq!(result, Ok(Order::Wait));
                thread.phase = Phase::Parked { woken: false };
            }
        }
        false
    }

    /// Whether a call on a vCPU that must run is refused.
    fn not_running(&self, id: u16) -> Option<StopError> {
        match self.threads.get(&id) {
            None => Some(StopError::NoVcpu(VcpuId(id))),
            Some(thread) if !thread.runs() => Some(StopError::NotRunning(VcpuId(id))),
            Some(_) => None,
        }
    }

    fn give_back(&mut self, id: u16) -> bool {
        let refusal = self.not_running(id);
        // What it gives back is what it gets again.
        let mut probe = self.control.clone();
        let result = self.control.give_back(VcpuId(id));
        if let Some(refusal) = refusal {
            assert_eq!(result, Err(refusal));
            return true;
        }
        let thread = self.threads.get_mut(&id).unwrap();
        probe.give_back(VcpuId(id)).unwrap();
        let Ok(Order::Run(order, _)) = probe.order(VcpuId(id)) else {
            panic!("an order that was given back is lost");
        };
        thread.order = Some(order);
        thread.begun = Some(thread.phase == Phase::Running { kicked: true });
        thread.phase = Phase::Idle;
        self.check(&result.unwrap(), &[]);
        false
    }

    fn stopped(&mut self, id: u16, reason: StopReason) -> bool {
        let refusal = self.not_running(id);
        let result = self.control.stopped(VcpuId(id), reason.clone());
        if let Some(refusal) = refusal {
            assert_eq!(result, Err(refusal));
            return true;
        }
        let thread = self.threads.get_mut(&id).unwrap();
        let asked = thread.phase == Phase::Running { kicked: true };
        thread.phase = Phase::Idle;
        if reason != StopReason::Interrupted {
            self.stops.push(Stop {
                vcpu: VcpuId(id),
                reason,
            });
            self.ask_to_stop();
        } else if !asked {
            self.ask_to_stop();
        }
        self.check(&result.unwrap(), &[]);
        false
    }

    /// Checks the effects of a call that the model has made too. `kicks` are due beside those of a
    /// cycle that was asked to stop.
    fn check(&mut self, effects: &[Effect], kicks: &[u16]) {
        let mut due: Vec<u16> = kicks.to_vec();
        if self.cycle.as_ref().is_some_and(|cycle| cycle.stopping) {
            let not_kicked = self
                .threads
                .iter()
                .filter(|(_, thread)| thread.phase == Phase::Running { kicked: false });
            due.extend(not_kicked.map(|(id, _)| *id));
        }
        due.sort_unstable();
        due.dedup();
        let mut kicked = Vec::new();
        let mut all_stopped = 0;
        for effect in effects {
            match effect {
                Effect::Kick(VcpuId(id)) => kicked.push(*id),
                Effect::AllStopped => all_stopped += 1,
                Effect::Wake(VcpuId(id)) => {
                    let thread = self.threads.get_mut(id);
                    if let Some(Phase::Parked { woken }) = thread.map(|thread| &mut thread.phase) {
                        *woken = true;
                    }
                }
            }
        }
        kicked.sort_unstable();
        assert_eq!(kicked, due, "kicks");
        for id in kicked {
            self.threads.get_mut(&id).unwrap().phase = Phase::Running { kicked: true };
        }
        let active = self.threads.values().any(Thread::is_active);
        let over = self
            .cycle
            .as_ref()
            .is_some_and(|cycle| !active && (cycle.stopping || !cycle.late_run));
        assert_eq!(all_stopped, usize::from(over), "AllStopped");
        if over {
            assert!(!self.waiting, "a list on top of a list");
            self.cycle = None;
            self.waiting = true;
        }
    }

    /// Checks what the calls without effects say.
    fn check_views(&self) {
        assert_eq!(self.control.is_running(), self.cycle.is_some());
        assert_eq!(self.control.has_stops(), self.waiting);
        let present: Vec<VcpuId> = self
            .threads
            .iter()
            .filter(|(_, thread)| !thread.leaving)
            .map(|(id, _)| VcpuId(*id))
            .collect();
        assert_eq!(self.control.vcpus().collect::<Vec<_>>(), present);
        assert!(self.control.must_stop(VcpuId(999)));
        for (id, thread) in &self.threads {
            let free = thread.phase == Phase::Running { kicked: false };
            assert_eq!(self.control.must_stop(VcpuId(*id)), !free, "vcpu{id}");
            assert!(
                !thread.runs() || self.cycle.is_some(),
                "vcpu{id} runs on after its run cycle"
            );
            if thread.phase == (Phase::Parked { woken: false }) {
                assert!(
                    thread.order.is_none() && !thread.leaving,
                    "vcpu{id} sleeps and has something to do"
                );
            }
        }
    }
}

fn plan(orders: [u8; 4], count: u8) -> ResumePlan {
    let [.., last] = orders;
    let orders = orders.iter().take(usize::from(count));
    ResumePlan {
        others: if last & 4 == 0 {
            VcpuOrder::Continue
        } else {
            VcpuOrder::Stay
        },
        vcpus: orders
            .map(|order| match order % 3 {
                0 => VcpuOrder::Stay,
                1 => VcpuOrder::Continue,
                _ => VcpuOrder::Step(StepOrder {
                    range: None,
                    mask: true,
                    ..StepOrder::default()
                }),
            })
            .collect(),
        armed: Arc::new(Armed {
            hardware: Vec::new(),
            software: [debug_stub::GuestPhysAddr(0x1000)].into(),
            ..Armed::default()
        }),
    }
}
