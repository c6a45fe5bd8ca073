//! Notifies a vCPU that something has arrived for it, if its local APIC is emulated.
//!
//! The vCPU is in one of three places: in the guest, which a signal makes it leave; about to enter
//! it, where the signal's handler keeps it out ([`kick`](super::kick)); or asleep, because it is
//! halted, where a [`WakePipe`] wakes it. It looks at what has arrived before each entry and before it
//! sleeps. A device thread therefore first stores what has arrived, then calls [`Waker::wake`].

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use debug_stub::run_control::{Waiting, WakePipe};
use nix::poll::{PollFd, PollFlags};

use super::kick::VcpuThread;
use crate::entry::MustStop;

/// The threads that may run one vCPU. They come and go in any order: a debugger may step a vCPU whose own
/// thread has not begun yet.
#[derive(Debug, Default)]
struct Threads {
    own: Option<VcpuThread>,
    /// The one that runs it for a step slice.
    visitor: Option<VcpuThread>,
}

impl Threads {
    fn runs_it(&self) -> Option<&VcpuThread> {
        self.visitor.as_ref().or(self.own.as_ref())
    }
}

/// The wake-up of one vCPU.
#[derive(Debug)]
pub(crate) struct Waker {
    threads: Mutex<Threads>,
    /// Something has arrived that the vCPU has not looked at.
    attention: AtomicBool,
    /// Its thread sleeps, or is about to.
    asleep: AtomicBool,
    pipe: WakePipe,
}

impl Waker {
    /// # Errors
    /// If there is no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            threads: Mutex::default(),
            attention: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            pipe: WakePipe::new(Waiting::InALoop)?,
        })
    }

    /// The calling thread is the vCPU's own for as long as the result lives.
    pub(crate) fn attach(&self) -> Attached<'_> {
        self.threads().own = Some(VcpuThread::current());
        Attached {
            waker: self,
            thread: |threads| &mut threads.own,
        }
    }

    /// The calling thread runs the vCPU in place of its own for as long as the result lives.
    pub(crate) fn visit(&self) -> Attached<'_> {
        self.threads().visitor = Some(VcpuThread::current());
        Attached {
            waker: self,
            thread: |threads| &mut threads.visitor,
        }
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has arrived. The thread that runs the vCPU does not wake itself: it looks before it
    /// enters.
    pub(crate) fn wake(&self) {
        if self.attention.swap(true, Ordering::SeqCst) {
            return;
        }
        match self.threads().runs_it() {
            Some(thread) if !thread.is_current() => self.rouse(thread),
            _ => {}
        }
    }

    /// Makes the thread look: for a stop, which the caller has requested (`SeqCst`).
    pub(crate) fn rouse_for_stop(&self) {
        if let Some(thread) = self.threads().runs_it() {
            self.rouse(thread);
        }
    }

    fn rouse(&self, thread: &VcpuThread) {
        // Either this thread sees that the vCPU sleeps, or the vCPU sees, before it sleeps, what has
        // arrived: both write first and then look, in one order for all (SeqCst).
        if self.asleep.load(Ordering::SeqCst) {
            self.pipe.wake();
        } else {
            thread.kick();
        }
    }

    /// The vCPU looks at what has arrived, right after this.
    pub(crate) fn attend(&self) {
        self.attention.store(false, Ordering::SeqCst);
    }

    /// Sleeps until something arrives, `must_stop` is true, or this much time has passed. May return
    /// early.
    pub(crate) fn sleep(&self, must_stop: &MustStop<'_>, time: Option<Duration>) {
        self.asleep.store(true, Ordering::SeqCst);
        if !self.attention.load(Ordering::SeqCst) && !must_stop() {
            self.wait_for(time);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

impl Waker {
    /// Waits for a wake-up, or until this much time has passed. May return early.
    fn wait_for(&self, time: Option<Duration>) {
        let mut poll = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        if super::poll(&mut poll, time, "a halted vCPU cannot sleep") {
            self.pipe.wait();
        }
    }
}

/// While it lives, the thread that made it can be woken.
#[derive(Debug)]
pub(crate) struct Attached<'a> {
    waker: &'a Waker,
    thread: fn(&mut Threads) -> &mut Option<VcpuThread>,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        *(self.thread)(&mut self.waker.threads()) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, AtomicU32};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Instant;

    use super::super::kick::Kickable;
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// As a halted vCPU does: it looks, and sleeps if there is nothing.
    #[test]
    fn no_wake_up_is_lost_however_it_meets_the_sleeper() {
        const ROUNDS: u32 = 20_000;
        super::super::kick::install().unwrap();
        let waker = Arc::new(Waker::new().unwrap());
        let arrived = Arc::new(AtomicU32::new(0));
        let taken = Arc::new(AtomicU32::new(0));
        let sleeper = thread::spawn({
            let (waker, arrived, taken) = (waker.clone(), arrived.clone(), taken.clone());
            move || {
                let _attached = waker.attach();
                while taken.load(Ordering::SeqCst) < ROUNDS {
                    waker.attend();
                    let all = arrived.load(Ordering::SeqCst);
                    if taken.swap(all, Ordering::SeqCst) == all {
                        let begun = Instant::now();
                        waker.sleep(&|| false, Some(LONG));
                        assert!(begun.elapsed() < LONG / 2, "a wake-up was lost");
                    }
                }
            }
        });
        for round in 1..=ROUNDS {
            arrived.store(round, Ordering::SeqCst);
            waker.wake();
            while taken.load(Ordering::SeqCst) < round {
                std::hint::spin_loop();
                if sleeper.is_finished() {
                    break;
                }
            }
        }
        sleeper.join().unwrap();
    }

    /// As in an inline step: the vCPU's own thread waits while another one runs the vCPU.
    #[test]
    fn a_wake_up_reaches_the_thread_that_runs_the_vcpu() {
        super::super::kick::install().unwrap();
        let waker = Waker::new().unwrap();
        let byte = AtomicU8::new(0);
        let wake = |waker: &Waker| {
            waker.attend();
            thread::scope(|scope| scope.spawn(|| waker.wake()).join().unwrap());
            // The signal comes before this thread goes on from a system call.
            thread::yield_now();
            byte.swap(0, Ordering::SeqCst)
        };
        thread::scope(|scope| {
            let (attached, is_attached) = channel();
            let (end, ended) = channel::<()>();
            scope.spawn({
                let waker = &waker;
                move || {
                    let _own = waker.attach();
                    attached.send(()).unwrap();
                    let _ = ended.recv();
                }
            });
            is_attached.recv().unwrap();
            let _kickable = Kickable::enter(&byte).unwrap();
            assert_eq!(wake(&waker), 0, "its own thread runs it");
            let here = waker.visit();
            assert_eq!(wake(&waker), 1, "this thread runs it");
            drop(here);
            assert_eq!(wake(&waker), 0, "its own thread runs it again");
            drop(end);
        });
    }

    /// A vCPU may be stepped before its own thread has begun, which then begins during the slice.
    #[test]
    fn a_thread_that_begins_while_another_one_runs_the_vcpu_is_woken_afterwards() {
        let waker = Waker::new().unwrap();
        let here = waker.visit();
        thread::scope(|scope| {
            let own = scope.spawn(|| std::mem::forget(waker.attach()));
            own.join().unwrap();
        });
        assert!(waker.threads().runs_it().unwrap().is_current());
        drop(here);
        let own = waker.threads().own;
        assert_eq!(waker.threads().runs_it(), own.as_ref());
        assert!(!own.unwrap().is_current());
    }

    #[test]
    fn a_sleep_ends_by_itself() {
        let waker = Waker::new().unwrap();
        let begun = Instant::now();
        waker.sleep(&|| false, Some(Duration::from_millis(2)));
        assert!(begun.elapsed() >= Duration::from_millis(2));
        waker.sleep(&|| true, None);
    }
}
