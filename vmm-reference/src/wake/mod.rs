//! How threads wake each other, and how a vCPU is made to leave the guest.
//!
//! Below both the interrupt chips and the vCPUs' threads, which use it and do not know each other here:
//!
//! - [`kick`]: a signal that makes a vCPU leave `KVM_RUN`, or not enter it;
//! - [`StepSlice`]: a bounded time for which another thread than the vCPU's own runs it;
//! - [`alarm`]: a timer that kicks the vCPU thread which set it;
//! - [`poll()`]: a wait for descriptors;
//! - [`Waker`]: notifies one vCPU that something has arrived for it: in the guest, before it, or asleep.

mod alarm;
mod kick;
mod poll;
mod slice;
mod waker;

pub(crate) use alarm::{SHORTEST_WAIT, make_alarm, set_alarm};
pub(crate) use kick::{Kickable, install};
pub(crate) use poll::poll;
pub(crate) use slice::{STEP_SLICE, StepSlice};
pub(crate) use waker::Waker;
