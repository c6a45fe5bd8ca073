//! The main thread's event loop: input, signals, debuggers, and the machine's end.

use std::thread;
use std::time::{Duration, Instant};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use thiserror::Error;

use crate::exit::{ExitEvent, ExitReason};

/// The loop cannot wait.
#[derive(Debug, Error)]
#[error("the event loop failed")]
pub struct EventLoopError(#[from] event_manager::Error);

/// Serves its subscribers on the thread that runs it, until the machine is to end.
pub struct EventLoop {
    manager: EventManager<Box<dyn MutEventSubscriber>>,
    exit: ExitEvent,
    busy_poll: Duration,
    /// The last event came within [`Self::busy_poll`] of the previous one; the next one may, too.
    quick: bool,
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop")
            .field("exit", &self.exit)
            .field("busy_poll", &self.busy_poll)
            .finish_non_exhaustive()
    }
}

impl EventLoop {
    /// A loop that runs until `exit` is requested.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new(exit: ExitEvent) -> Result<Self, EventLoopError> {
        let mut manager: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new()?;
        manager.add_subscriber(Box::new(ExitWatch(exit.clone())));
        Ok(Self {
            manager,
            exit,
            busy_poll: Duration::ZERO,
            quick: false,
        })
    }

    /// Sets how long to look for the next event before sleeping, while events follow one another within
    /// this time. An event that takes longer ends the polling; therefore a person who types costs
    /// nothing. The default is zero: the loop sleeps at once.
    ///
    /// Polling saves the wake-up of an idle processor, which is most of a remote step's time where it is
    /// expensive (in a virtual machine: an IPI and an exit from HLT). It uses a processor for that time.
    /// KVM's halt polling makes the same trade.
    pub fn set_busy_poll(&mut self, period: Duration) {
        self.busy_poll = period;
    }

    /// Adds a subscriber.
    pub fn add(&mut self, subscriber: Box<dyn MutEventSubscriber>) -> SubscriberId {
        self.manager.add_subscriber(subscriber)
    }

    /// Removes a subscriber, with its descriptors.
    ///
    /// # Errors
    /// If it is not in the loop.
    pub fn remove(
        &mut self,
        id: SubscriberId,
    ) -> Result<Box<dyn MutEventSubscriber>, EventLoopError> {
        Ok(self.manager.remove_subscriber(id)?)
    }

    /// Runs until the machine is to end. Returns why.
    ///
    /// # Errors
    /// If waiting fails.
    pub fn run(&mut self) -> Result<ExitReason, EventLoopError> {
        loop {
            if let Some(reason) = self.exit.reason() {
                return Ok(reason);
            }
            if !self.poll()? {
                let begun = Instant::now();
                self.serve_once(None)?;
                self.quick = begun.elapsed() < self.busy_poll;
            }
        }
    }

    /// Polls for the time of [`set_busy_poll`](Self::set_busy_poll), if events were quick. Returns `true`
    /// if it served one.
    fn poll(&mut self) -> Result<bool, EventLoopError> {
        if !self.quick {
            return Ok(false);
        }
        let begun = Instant::now();
        while begun.elapsed() < self.busy_poll {
            if self.serve_once(Some(0))? > 0 {
                return Ok(true);
            }
            // The client may need this processor.
            thread::yield_now();
        }
        Ok(false)
    }

    /// Waits once, for at most `milliseconds`, and serves the events. Returns their number. For a caller
    /// that goes on after the end was requested, to report it to a debugger.
    ///
    /// # Errors
    /// If waiting fails.
    pub fn serve_once(&mut self, milliseconds: Option<u16>) -> Result<usize, EventLoopError> {
        let timeout = milliseconds.map_or(-1, i32::from);
        Ok(self.manager.run_with_timeout(timeout)?)
    }
}

/// Wakes the loop for the end, once. The descriptor stays readable, and a caller that goes on serving
/// events must not spin.
struct ExitWatch(ExitEvent);

impl MutEventSubscriber for ExitWatch {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            tracing::error!(%error, "the end of the machine will not be noticed at once");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.remove(events) {
            tracing::debug!(%error, "exit event");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::Signals;

    #[test]
    fn a_request_from_another_thread_ends_the_loop() {
        let exit = ExitEvent::new().unwrap();
        let mut events = EventLoop::new(exit.clone()).unwrap();
        let asker = thread::spawn(move || exit.request(ExitReason::PowerOff));
        assert_eq!(events.run().unwrap(), ExitReason::PowerOff);
        assert!(asker.join().unwrap());
        // The descriptor is still readable, and the loop does not spin: at most the first wait sees it.
        events.serve_once(Some(0)).unwrap();
        assert_eq!(events.serve_once(Some(0)).unwrap(), 0);
    }

    #[test]
    fn it_is_awake_only_while_events_are_quick() {
        let exit = ExitEvent::new().unwrap();
        let mut events = EventLoop::new(exit.clone()).unwrap();
        events.set_busy_poll(Duration::from_secs(10));
        // Not before the loop waits for it.
        let asker = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            exit.request(ExitReason::PowerOff)
        });
        assert_eq!(events.run().unwrap(), ExitReason::PowerOff);
        assert!(asker.join().unwrap());
        assert!(events.quick, "the event came within ten seconds");

        let exit = ExitEvent::new().unwrap();
        let mut events = EventLoop::new(exit.clone()).unwrap();
        events.set_busy_poll(Duration::from_millis(1));
        events.quick = true;
        let asker = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            exit.request(ExitReason::PowerOff)
        });
        assert_eq!(events.run().unwrap(), ExitReason::PowerOff);
        assert!(asker.join().unwrap());
        assert!(!events.quick, "it took 30 ms");
    }

    #[test]
    fn a_busy_loop_serves_what_comes_while_it_is_awake_and_after_it_has_slept() {
        for pause in [Duration::ZERO, Duration::from_millis(30)] {
            let exit = ExitEvent::new().unwrap();
            let mut events = EventLoop::new(exit.clone()).unwrap();
            events.set_busy_poll(Duration::from_millis(10));
            let asker = thread::spawn(move || {
                thread::sleep(pause);
                exit.request(ExitReason::PowerOff)
            });
            assert_eq!(events.run().unwrap(), ExitReason::PowerOff);
            assert!(asker.join().unwrap());
        }
    }

    #[test]
    fn a_signal_ends_the_loop() {
        let exit = ExitEvent::new().unwrap();
        let mut events = EventLoop::new(exit.clone()).unwrap();
        events.add(Box::new(Signals::take_over(exit).unwrap()));
        // SAFETY: it has no precondition; raise directs the signal to this thread, where it is
        // blocked.
        assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
        assert_eq!(events.run().unwrap(), ExitReason::Signal(libc::SIGTERM));
    }
}
