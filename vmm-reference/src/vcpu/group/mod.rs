//! All vCPUs of a guest: run control, without polling.
//!
//! The group is either *stopped* (no vCPU runs, and registers may be read and written) or in a
//! *round*: [`VcpuGroup::resume`] gives each vCPU its order, the first one to stop for a reason
//! of its own kicks the others, and the last one to stop signals [`VcpuGroup::stopped_fd`].
//! That is one hand-over to a vCPU's thread, and one back.
//!
//! A series of steps does without even these (`steps`).

mod round;
mod shared;
mod steps;
mod thread;

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use debug_stub::kvm::{DebugVcpu, Environment, ExitHandler, UserInterrupts};
use debug_stub::{Armed, GuestMemory, VcpuId, VcpuOrder};
use thiserror::Error;

use crate::irqchip::{ChipsetThread as BoardThread, Irqchip};
use crate::wake::{self as kick, StepSlice as Turn, Waiting, WakePipe as Bell};
use shared::{Mail, Shared, Slot};
use steps::LostTurns;

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
            .map(Slot::new)
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
            let thread = Builder::new()
                .name(id.to_string())
                .spawn(move || thread::vcpu_thread(id, &shared))
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

/// Locks, also after a panic elsewhere: what these mutexes guard is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
