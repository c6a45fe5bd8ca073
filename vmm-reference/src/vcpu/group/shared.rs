//! What the vCPUs' threads and the group share, and the orders that pass between them.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::{fmt, io};

use debug_stub::kvm::{DebugVcpu, OnStop, RunEnd};
use debug_stub::{Armed, VcpuOrder};

use super::lock;
use super::round::Round;
use crate::irqchip::Irqchip;
use crate::wake::{Waiting, WakePipe as Bell};

/// What a vCPU's thread is asked to do next.
#[derive(Debug, Default)]
pub(super) enum Mail {
    #[default]
    Nothing,
    Run(VcpuOrder, Arc<Armed>),
    Quit,
}

/// One vCPU, shared between its thread and the group.
#[derive(Debug)]
pub(super) struct Slot {
    /// Held by the thread while the vCPU runs.
    pub(super) vcpu: Mutex<DebugVcpu>,
    mail: Mutex<Mail>,
    bell: Bell,
    pub(super) stop: AtomicBool,
    /// The last order was a step.
    pub(super) stepped: AtomicBool,
}

impl Slot {
    pub(super) fn new(vcpu: DebugVcpu) -> io::Result<Self> {
        Ok(Self {
            vcpu: Mutex::new(vcpu),
            mail: Mutex::default(),
            bell: Bell::new(Waiting::Here)?,
            stop: AtomicBool::new(false),
            stepped: AtomicBool::new(false),
        })
    }

    pub(super) fn post(&self, mail: Mail) {
        *lock(&self.mail) = mail;
        self.bell.ring();
    }

    pub(super) fn wait(&self) -> Mail {
        loop {
            // Not in the match: its guard would be held while the bell is waited for.
            let mail = std::mem::take(&mut *lock(&self.mail));
            match mail {
                Mail::Nothing => self.bell.wait(),
                mail => return mail,
            }
        }
    }
}

/// Runs a vCPU with the machine's devices and memory.
type Run = dyn Fn(&mut DebugVcpu, &VcpuOrder, &Armed, &AtomicBool, OnStop) -> RunEnd + Send + Sync;

pub(super) struct Shared {
    pub(super) slots: Vec<Slot>,
    pub(super) irqchip: Irqchip,
    pub(super) round: Mutex<Round>,
    pub(super) stopped: Bell,
    pub(super) run: Box<Run>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("slots", &self.slots)
            .field("round", &self.round)
            .finish_non_exhaustive()
    }
}
