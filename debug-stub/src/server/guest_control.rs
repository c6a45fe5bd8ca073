//! What the VMM does to the guest on the session's behalf.

use std::os::fd::RawFd;

use crate::host::GuestState;
use crate::order::{ResumePlan, Stop};

#[cfg(feature = "threads")]
use crate::order::VcpuOrder;
#[cfg(feature = "threads")]
use crate::run_control::{AllStop, ResumeError};
#[cfg(feature = "threads")]
use std::os::fd::AsRawFd;

/// What the VMM does to the guest on the session's behalf. The calls return soon: vCPUs run on threads of
/// their own, but for short steps.
pub trait GuestControl {
    /// Runs vCPUs until one of them stops for its own reason, or until
    /// [`interrupt`](Self::interrupt). Then all are stopped, and [`take_stops`](Self::take_stops)
    /// returns the stops. If the plan cannot be carried out, that is a stop too.
    ///
    /// Returns the stops if all vCPUs have stopped already, as after a step that the VMM runs on the
    /// calling thread. [`take_stops`](Self::take_stops) then has nothing to return.
    fn resume(&mut self, plan: ResumePlan) -> Option<Vec<Stop>>;

    /// Stops all vCPUs. [`take_stops`](Self::take_stops) then returns one list, exactly once, even if
    /// the vCPUs are stopping by themselves at that time, or are stopped already.
    fn interrupt(&mut self);

    /// Lets all vCPUs go: nothing armed, nothing masked, nothing held.
    fn release(&mut self);

    /// A debugger is attached from now on, or no longer. While one is, only [`resume`](Self::resume) and
    /// [`release`](Self::release) may let a stopped guest run.
    fn hold(&mut self, attached: bool);

    /// Ends the guest.
    fn kill(&mut self);

    /// The guest has stopped while no debugger is attached. It stays stopped unless the VMM acts: after
    /// a triple fault, for instance, it resets or ends the guest.
    fn unattended(&mut self, stops: Vec<Stop>);

    /// A descriptor that is readable while [`take_stops`](Self::take_stops) has a list. Always the same
    /// one.
    fn stopped_fd(&self) -> RawFd;

    /// The stops, once all vCPUs are stopped after a resume or an interrupt; each list once. Also makes
    /// the descriptor unreadable.
    fn take_stops(&mut self) -> Option<Vec<Stop>>;

    /// Whether the guest runs, asked when a client connects. A guest whose stops were not taken counts
    /// as running.
    fn guest_state(&self) -> GuestState;
}

/// A guest whose run control is [`AllStop`]: it has a [`GuestControl`] already.
#[cfg(feature = "threads")]
pub trait AllStopGuest {
    /// The guest's run control.
    fn all_stop(&self) -> &AllStop;

    /// Ends the guest.
    fn kill(&mut self);

    /// The guest has stopped while no debugger is attached: see [`GuestControl::unattended`].
    fn unattended(&mut self, stops: Vec<Stop>);
}

#[cfg(feature = "threads")]
impl<T: AllStopGuest> GuestControl for T {
    fn resume(&mut self, mut plan: ResumePlan) -> Option<Vec<Stop>> {
        loop {
            let error = match self.all_stop().resume(&plan) {
                Ok(()) => return None,
                Err(error) => error,
            };
            match error {
                // Stops come, or wait.
                ResumeError::Running | ResumeError::StopsWaiting => {
                    tracing::error!(%error, "a debugger's resume came too early");
                    return None;
                }
                // Removed since the session made its plan. The others go on if that is possible.
                ResumeError::NoVcpu(vcpu) | ResumeError::Leaving(vcpu) => {
                    let goes_on = |order: &VcpuOrder| *order == VcpuOrder::Continue;
                    let all_continue = plan.vcpus.iter().all(goes_on) && goes_on(&plan.others);
                    match plan.vcpus.get_mut(vcpu.index()) {
                        Some(_) if all_continue => plan.vcpus.clear(),
                        Some(order @ VcpuOrder::Continue) => *order = VcpuOrder::Stay,
                        _ => {
                            tracing::warn!(%error, "a vCPU cannot be stepped");
                            return Some(Vec::new());
                        }
                    }
                }
                error => {
                    tracing::error!(%error, "a debugger's resume was refused");
                    return Some(Vec::new());
                }
            }
        }
    }

    fn interrupt(&mut self) {
        self.all_stop().interrupt();
    }

    fn release(&mut self) {
        if let Err(error) = self.all_stop().release() {
            // It runs already, or a stop has come in between: that is seen next.
            tracing::warn!(%error, "the guest was not released");
        }
    }

    fn hold(&mut self, attached: bool) {
        self.all_stop().hold(attached);
    }

    fn kill(&mut self) {
        AllStopGuest::kill(self);
    }

    fn unattended(&mut self, stops: Vec<Stop>) {
        AllStopGuest::unattended(self, stops);
    }

    fn stopped_fd(&self) -> RawFd {
        self.all_stop().stopped_fd().as_raw_fd()
    }

    fn take_stops(&mut self) -> Option<Vec<Stop>> {
        self.all_stop().take_stops()
    }

    fn guest_state(&self) -> GuestState {
        if self.all_stop().is_stopped() {
            GuestState::Stopped
        } else {
            GuestState::Running
        }
    }
}
