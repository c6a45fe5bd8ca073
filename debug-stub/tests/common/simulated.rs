//! The simulated machine with a thread that runs it, as a VMM has.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use debug_stub::server::GuestControl;
use debug_stub::x86_64::simulated::SimulatedMachine as Machine;
use debug_stub::{GuestState, Host, ResumePlan, Stop, VcpuOrder};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Run;

/// The stops of the last plan, and whether a plan is being carried out.
#[derive(Default)]
struct Report {
    busy: bool,
    stops: Option<Vec<Stop>>,
}

/// What the threads share.
pub struct Shared {
    pub machine: Mutex<Machine>,
    interrupt: AtomicBool,
    report: Mutex<Report>,
    stopped: EventFd,
    pub resumes: AtomicUsize,
    pub releases: AtomicUsize,
    pub held: AtomicBool,
    pub kills: AtomicUsize,
    /// The last stops that no debugger waited for.
    pub unattended: Mutex<Vec<Stop>>,
    /// A running guest does not stop while this is locked.
    pub brake: Mutex<()>,
}

/// The machine, to be handed to a server.
pub struct Simulated {
    pub shared: Arc<Shared>,
    runner: Sender<ResumePlan>,
}

impl Simulated {
    /// A stopped machine.
    pub fn new(machine: Machine) -> Self {
        let shared = Arc::new(Shared {
            machine: Mutex::new(machine),
            interrupt: AtomicBool::new(false),
            report: Mutex::default(),
            stopped: EventFd::new(EFD_NONBLOCK).expect("no eventfd"),
            resumes: AtomicUsize::new(0),
            releases: AtomicUsize::new(0),
            held: AtomicBool::new(false),
            kills: AtomicUsize::new(0),
            unattended: Mutex::default(),
            brake: Mutex::default(),
        });
        let (runner, plans) = channel::<ResumePlan>();
        let in_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for plan in plans {
                let stops = in_thread.carry_out(&plan);
                in_thread.answer(stops);
            }
        });
        Self { shared, runner }
    }

    fn start(&mut self, plan: ResumePlan) {
        self.shared.interrupt.store(false, Ordering::SeqCst);
        lock(&self.shared.report).busy = true;
        self.runner.send(plan).expect("the runner is gone");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn carry_out(&self, plan: &ResumePlan) -> Vec<Stop> {
        loop {
            drop(lock(&self.brake));
            if self.interrupt.load(Ordering::SeqCst) {
                return Vec::new();
            }
            if let Some(stops) = lock(&self.machine).run(plan, 100) {
                return stops;
            }
            // It spins: other threads need the machine.
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn answer(&self, stops: Vec<Stop>) {
        let mut report = lock(&self.report);
        report.busy = false;
        report.stops = Some(stops);
        self.stopped.write(1).expect("no eventfd");
    }
}

impl GuestControl for Simulated {
    fn resume(&mut self, plan: ResumePlan) -> Option<Vec<Stop>> {
        self.shared.resumes.fetch_add(1, Ordering::SeqCst);
        self.start(plan);
        None
    }

    fn interrupt(&mut self) {
        let (busy, waits) = {
            let report = lock(&self.shared.report);
            self.shared.interrupt.store(true, Ordering::SeqCst);
            (report.busy, report.stops.is_some())
        };
        if !busy && !waits {
            self.shared.answer(Vec::new());
        }
    }

    fn release(&mut self) {
        Run::release(&mut *lock(&self.shared.machine));
        self.shared.releases.fetch_add(1, Ordering::SeqCst);
        let vcpus = usize::from(self.vcpu_count());
        self.start(ResumePlan {
            vcpus: vec![VcpuOrder::Continue; vcpus],
            others: VcpuOrder::Continue,
            ..ResumePlan::default()
        });
    }

    fn hold(&mut self, attached: bool) {
        self.shared.held.store(attached, Ordering::SeqCst);
    }

    fn kill(&mut self) {
        self.shared.kills.fetch_add(1, Ordering::SeqCst);
    }

    fn unattended(&mut self, stops: Vec<Stop>) {
        *lock(&self.shared.unattended) = stops;
    }

    fn stopped_fd(&self) -> RawFd {
        self.shared.stopped.as_raw_fd()
    }

    fn take_stops(&mut self) -> Option<Vec<Stop>> {
        let mut report = lock(&self.shared.report);
        // Any value of the counter means that there is a report. It may have been taken before.
        let _ = self.shared.stopped.read();
        report.stops.take()
    }

    fn guest_state(&self) -> GuestState {
        if lock(&self.shared.report).busy {
            GuestState::Running
        } else {
            GuestState::Stopped
        }
    }
}

host_with_locked_machine!(Simulated, |host| lock(&host.shared.machine));
