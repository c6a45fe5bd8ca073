//! Interrupt lines, as a device sees them: it sets a level, and does not know the chips.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use intr_controller::Gsi;
use intr_controller::kvm::KernelIrqchip;
use intr_controller::routing::{GsiRouter, LineChange, SourceId};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// pc-testdev, as a source of the lines.
#[expect(
    clippy::unreachable,
    reason = "the compiler evaluates it: 0 is below 64"
)]
pub const TESTDEV_SOURCE: SourceId = match SourceId::new(0) {
    Ok(source) => source,
    Err(_) => unreachable!(),
};

/// The machine's interrupt lines.
///
/// Several sources may share a line: it is up while one of them holds it up. Any thread may call.
/// When a call returns, the level has reached the chips.
pub trait InterruptLines: Send + Sync {
    /// A source sets its level of a line. A line without a route ignores it.
    fn set_line(&self, gsi: Gsi, source: SourceId, level: bool);
}

/// The interrupt line of a device that signals by an eventfd. Each write is an edge.
#[derive(Debug)]
pub struct EdgeLine {
    event: EventFd,
    /// It was signalled since [`Self::begin_to_watch`].
    signalled: AtomicBool,
}

impl EdgeLine {
    /// A line that is connected to nothing.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            signalled: AtomicBool::new(false),
        })
    }

    /// The descriptor.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// An edge.
    ///
    /// # Errors
    /// If the descriptor's counter is full.
    pub fn signal(&self) -> io::Result<()> {
        // Before the edge: whoever loses the edge sees the flag.
        self.signalled.store(true, Ordering::SeqCst);
        self.event.write(1)
    }

    /// The guest has stopped.
    pub(crate) fn begin_to_watch(&self) {
        self.signalled.store(false, Ordering::SeqCst);
    }

    /// Signals again if there was an edge since [`Self::begin_to_watch`]. It may have been lost while
    /// local APICs were written. If it was not, both are one: no vCPU has run since.
    pub(crate) fn signal_again(&self) {
        if self.signalled.swap(false, Ordering::SeqCst) {
            if let Err(error) = self.event.write(1) {
                tracing::debug!(%error, "an interrupt line");
            }
        }
    }
}

/// The lines of a machine whose chips are KVM's.
///
/// KVM counts all callers of `KVM_IRQ_LINE` as one source, so the sources are kept apart here. An
/// irqfd is that source too: the pulse of a device with an irqfd lowers a line that a source here
/// holds up (`KVM_USERSPACE_IRQ_SOURCE_ID` in Linux's virt/kvm/eventfd.c).
pub struct KernelLines {
    irqchip: Arc<KernelIrqchip<Arc<VmFd>>>,
    /// Held during the ioctl: levels reach KVM in the order in which they were set.
    router: Mutex<GsiRouter>,
}

impl KernelLines {
    /// All lines are down. The table is that of [`KernelIrqchip::new`].
    #[must_use]
    pub fn new(irqchip: Arc<KernelIrqchip<Arc<VmFd>>>) -> Self {
        let routes = GsiRouter::pc_entries();
        let router = GsiRouter::new(&routes, intr_controller::DestinationFormat::default());
        Self {
            irqchip,
            router: Mutex::new(router.unwrap_or_default()),
        }
    }

    /// The chips.
    #[must_use]
    pub fn irqchip(&self) -> &KernelIrqchip<Arc<VmFd>> {
        &self.irqchip
    }
}

impl InterruptLines for KernelLines {
    fn set_line(&self, gsi: Gsi, source: SourceId, level: bool) {
        let mut router = self.router.lock().unwrap_or_else(PoisonError::into_inner);
        match router.set_line(gsi, source, level) {
            Ok(LineChange::Unchanged) => {}
            Ok(LineChange::Rose(_) | LineChange::Fell(_)) => {
                if let Err(error) = self.irqchip.set_irq_line(gsi, level) {
                    tracing::warn!(%error, "an interrupt is lost");
                }
            }
            Err(error) => tracing::debug!(%error, "a line without a route"),
        }
    }
}

impl fmt::Debug for KernelLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelLines").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_but_the_cascade_of_the_8259as_have_a_route() {
        let router = GsiRouter::new(&GsiRouter::pc_entries(), Default::default()).unwrap();
        for gsi in (0..24).filter(|gsi| *gsi != 2) {
            assert!(router.targets(Gsi(gsi)).is_ok(), "{gsi}");
        }
        for gsi in [2, 24] {
            assert!(router.targets(Gsi(gsi)).is_err(), "{gsi}");
        }
    }
}
