//! All-stop run control: the vCPUs of a guest start as one and stop as one.
//!
//! The guest is either *stopped*, and its registers may be read and written, or in a *run cycle*.
//! A [`ResumePlan`](crate::ResumePlan) begins a cycle. The first vCPU that stops for its own reason
//! stops the others. The last vCPU to stop ends the cycle, and one list of stops comes out.
//!
//! ```text
//!              resume                             an own stop, or interrupt
//!   Stopped ------------>  Running: vCPUs take  -------------------------->  Stopping: no vCPU
//!      ^                   their orders, late                               takes an order
//!      |                   vCPUs join                                             |
//!      +--- take_stops --- AllStopped, once <--- the last vCPU has stopped -------+
//! ```
//!
//! - [`RunControl`] is the state machine: no thread, lock, clock or descriptor. Calls go in, and
//!   [`Effect`]s come out for the caller to act on.
//! - [`AllStop`] (feature `threads`) is the state machine with a lock and wake pipes, for a VMM with
//!   one thread for each vCPU. The VMM implements [`Kick`].
//! - [`VcpuThreads`] (feature `kvm`) is a ready [`Kick`] for vCPUs of `/dev/kvm`.
//! - [`KvmRunControl`](crate::kvm::KvmRunControl) puts the last two and the steppers together, and keeps the
//!   contract below: most VMMs on KVM need no more.
//!
//! # The kick contract
//! A vCPU that runs must leave the guest when it is asked to stop, and the request must not be lost
//! between its check and its entry. Four rules are sufficient:
//!
//! 1. The request comes first: the flag that [`VcpuHandle::must_stop`] reads is stored before
//!    [`Kick::kick`] is called.
//! 2. The kick makes the thread leave the guest, *or* makes its next entry return at once. For KVM
//!    this is `kvm_run.immediate_exit = 1`, then a signal: the signal ends a `KVM_RUN` that has
//!    begun, and the byte ends one that begins later.
//! 3. The thread clears the kick first, then executes a fence, then reads the flag, then enters:
//!    `immediate_exit = 0`, `fence(SeqCst)`, `must_stop()`, `KVM_RUN`. With the order reversed, a
//!    kick between the two is erased.
//! 4. A kick may come late: in a later cycle, or when the vCPU does not run. It then means nothing.
//!    The thread finds `must_stop()` false and enters again.
//!
//! The stop request is a predicate, not one flag. A VMM with its own reasons to leave the guest
//! (pause, snapshot, shutdown) checks `vcpu.must_stop() || its_own_reason()` at rule 3, and serves
//! its own reason without reporting a stop.
//!
//! # The VMM's own requests
//! A VMM pauses, snapshots and shuts down its vCPUs by itself, whatever the debugger does.
//!
//! *A vCPU's thread that waits for an order* serves such a request if it waits with
//! [`VcpuHandle::wait`]: the VMM stores the request, then calls [`AllStop::nudge`].
//!
//! *Ctrl-C in a guest that the VMM has paused.* Run control does not know of the pause: the vCPUs have
//! their orders and count as running until each has reported. So:
//! - [`Kick::kick`] also unparks a paused thread, with a wake-up that is not lost if it comes before
//!   the wait. [`VcpuThreads`] does for `thread::park`; with a condition variable the lock is taken around the
//!   notification.
//! - A paused thread that wakes up looks at [`VcpuHandle::must_stop`]. If that is true, it ends the order as
//!   the run loop does, with [`Stepper::interrupt`](crate::x86_64::stepper::Stepper::interrupt) and
//!   [`VcpuHandle::report`], and parks again: the guest stays paused.
//!   [`VcpuThread::paused_turn`](crate::kvm::VcpuThread::paused_turn) is that:
//!
//! ```text
//! while paused() {
//!     park();
//!     let turn = thread.paused_turn(driver, vcpu, memory);
//!     thread.take(turn);
//! }
//! ```
//!
//! After the debugger's next resume the thread takes its order when it is not paused any more.
//!
//! *A snapshot reads the MP state*, and `KVM_GET_MP_STATE` makes KVM accept a pending INIT or start-up
//! IPI. The registers that a [`Stepper`](crate::x86_64::stepper::Stepper) has cached are stale then:
//! call [`Stepper::forget_registers`](crate::x86_64::stepper::Stepper::forget_registers) after the
//! snapshot, and after the VMM has written registers.
//!
//! # A debugger that is attached owns the guest
//! [`AllStop::start`] lets the guest run on the VMM's own account. While a debugger is attached and the
//! guest is stopped, it is refused: the session takes the guest for stopped, and its next register read
//! would block on a vCPU that is in the guest. Do not call [`AllStop::release`] or [`AllStop::resume`] at
//! that time: they are the controller's. A VMM that wants to resume the guest under the debugger closes the
//! debugger's connection; the session then releases the guest.
//!
//! # Late and leaving vCPUs
//! The count of vCPUs may start at 0 and may change at any time.
//! - A vCPU that is added while the guest is stopped waits for the next plan.
//! - A vCPU that is added during a run cycle gets the plan's order for
//!   [`others`](crate::ResumePlan::others). It stays while the debugger steps one vCPU alone, or lifts
//!   a breakpoint for it.
//! - So does a vCPU that a shorter plan does not name.
//! - A vCPU that is removed while it runs is asked to stop, as any other. It counts as running until
//!   it has stopped. Its next [`Order`] is [`Order::Leave`].
//! - A run cycle without vCPUs goes on if late vCPUs would run. [`RunControl::interrupt`] ends it.
//!
//! # Interrupts
//! After [`RunControl::interrupt`] exactly one list of stops comes out: that of the cycle that it
//! stops; that of the cycle that is ending already; that which waits to be taken; or an empty one, if
//! the guest is stopped and nothing waits.

#[cfg(all(feature = "threads", unix))]
mod all_stop;
mod control;
#[cfg(all(feature = "threads", feature = "kvm", target_os = "linux"))]
mod kvm_kick;
#[cfg(all(feature = "threads", feature = "kvm", target_os = "linux"))]
mod syscalls;
#[cfg(all(feature = "threads", unix))]
mod wake_pipe;

#[cfg(all(feature = "threads", unix))]
pub use all_stop::{AddError, AllStop, Kick, VcpuHandle};
pub use control::{Effect, Order, OrderError, ResumeError, RunControl, StopError, VcpuError};
#[cfg(all(feature = "threads", feature = "kvm", target_os = "linux"))]
pub use kvm_kick::{Entered, ImmediateExit, InstallError, KickSignal, VcpuThreads};
#[cfg(all(feature = "threads", feature = "kvm", target_os = "linux"))]
pub use syscalls::{CONTROLLER_SYSCALLS, KICK_SYSCALLS, VCPU_SYSCALLS};
#[cfg(all(feature = "threads", unix))]
pub use wake_pipe::{Waiting, WakePipe};
