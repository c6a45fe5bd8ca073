//! What is known of a vCPU's registers between two runs.

use super::vcpu::{RunState, StepperError, Vcpu};
use crate::x86_64::bits::RFLAGS_TF;
use crate::x86_64::{RegisterFile, RegisterGroups};

/// The guest's own RFLAGS.TF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum GuestTf {
    /// RFLAGS show it.
    #[default]
    InRflags,
    /// The hypervisor's single step hides it (`kvm_get_rflags` masks TF): this is its value.
    Hidden(bool),
}

/// The registers that came with the last exit, the run state, and the guest's own TF.
#[derive(Debug, Default)]
pub(super) struct Registers {
    /// [`RegisterGroups::EXPEDITED`] as they are now, if known. TF is the guest's own.
    cached: Option<Box<RegisterFile>>,
    run_state: RunState,
    guest_tf: GuestTf,
    /// The last run ended in a debug exception: no other exception is queued.
    trapped: bool,
    /// A handler ran inside a step with the debugger's TF in its frame. What POPF, IRET or SYSRET
    /// loads from now on may be a copy of that.
    pub(super) tf_may_be_copied: bool,
}

impl Registers {
    /// Returns `true` if the registers are known without asking the hypervisor.
    pub(super) fn are_cached(&self) -> bool {
        self.cached.is_some()
    }

    /// The run state, as it was last read; `Runnable` if the vCPU has run since.
    pub(super) fn run_state(&self) -> RunState {
        self.run_state
    }

    /// The vCPU has run. `synced` says that registers came with the exit, and `trapped` that it was a
    /// debug exception.
    pub(super) fn ran<V: Vcpu>(&mut self, vcpu: &mut V, synced: bool, trapped: bool) {
        self.run_state = RunState::Runnable;
        self.trapped = trapped;
        let tf = self.guest_tf;
        let file = self.cached.take();
        self.cached = if synced {
            vcpu.synced_registers()
        } else {
            None
        }
        .map(|(core, special)| {
            let mut file = file.unwrap_or_default();
            (file.core, file.special) = (core, special);
            if let GuestTf::Hidden(tf) = tf {
                set_tf(&mut file, tf);
            }
            file
        });
    }

    /// Returns `true` if a write of registers loses no exception, without asking the hypervisor.
    pub(super) fn trapped(&self) -> bool {
        self.trapped
    }

    /// An exception or interrupt was queued since the last run.
    pub(super) fn event_queued(&mut self) {
        self.trapped = false;
    }

    /// Something else may have changed the registers.
    pub(super) fn forget(&mut self) {
        self.cached = None;
        self.trapped = false;
    }

    /// INIT or a start-up IPI has replaced the registers: RFLAGS after it have no TF.
    pub(super) fn restarted(&mut self) {
        self.forget();
        self.tf_may_be_copied = false;
        if let GuestTf::Hidden(tf) = &mut self.guest_tf {
            *tf = false;
        }
    }

    /// Fills the `groups` of `file`, with the guest's own TF.
    pub(super) fn read<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        groups: RegisterGroups,
        file: &mut RegisterFile,
    ) -> Result<(), StepperError<V::Error>> {
        let mut wanted = groups;
        if let Some(cached) = &self.cached {
            if groups.contains(RegisterGroups::CORE) {
                file.core = cached.core;
            }
            if groups.contains(RegisterGroups::SPECIAL) {
                file.special = cached.special;
            }
            wanted -= RegisterGroups::EXPEDITED;
        }
        if wanted.intersects(RegisterGroups::EXPEDITED) {
            // May change CS and RIP, by accepting a start-up IPI: before the registers.
            self.refresh_run_state(vcpu)?;
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let special = file.special;
        let fpu_alone =
            wanted.contains(RegisterGroups::FPU) && !groups.contains(RegisterGroups::SPECIAL);
        if fpu_alone {
            match &self.cached {
                Some(cached) => file.special = cached.special,
                None => wanted |= RegisterGroups::SPECIAL,
            }
        }
        let read = vcpu.read_registers(wanted, file);
        if fpu_alone {
            file.special = special;
        }
        read.map_err(StepperError::of("reading registers"))?;
        if let (true, GuestTf::Hidden(tf)) = (wanted.contains(RegisterGroups::CORE), self.guest_tf)
        {
            set_tf(file, tf);
        }
        Ok(())
    }

    /// [`RegisterGroups::EXPEDITED`].
    pub(super) fn expedited<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
    ) -> Result<RegisterFile, StepperError<V::Error>> {
        let mut file = RegisterFile::default();
        self.read(vcpu, RegisterGroups::EXPEDITED, &mut file)?;
        Ok(file)
    }

    /// Sets the `groups` from `file`, whose TF is the guest's own.
    pub(super) fn write<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        groups: RegisterGroups,
        file: &RegisterFile,
    ) -> Result<(), StepperError<V::Error>> {
        const CALL: &str = "writing registers";
        self.cached = None;
        vcpu.discard_tf_at_entry();
        if let (true, GuestTf::Hidden(tf)) =
            (groups.contains(RegisterGroups::CORE), &mut self.guest_tf)
        {
            // TF in the hypervisor's copy is the single step's.
            let mut hidden = file.clone();
            set_tf(&mut hidden, false);
            vcpu.write_registers(groups, &hidden)
                .map_err(StepperError::of(CALL))?;
            *tf = has_tf(file);
            return Ok(());
        }
        vcpu.write_registers(groups, file)
            .map_err(StepperError::of(CALL))
    }

    pub(super) fn refresh_run_state<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
    ) -> Result<RunState, StepperError<V::Error>> {
        self.run_state = vcpu
            .run_state()
            .map_err(StepperError::of("reading the run state"))?;
        Ok(self.run_state)
    }

    /// A single step hides the guest's own TF from now on. It is `tf`, unless it is hidden already.
    pub(super) fn hide_tf(&mut self, tf: bool) {
        if self.guest_tf == GuestTf::InRflags {
            self.guest_tf = GuestTf::Hidden(tf);
        }
    }

    /// Returns `true` if the guest's own TF has to be found out before a single step hides it.
    pub(super) fn tf_is_in_rflags(&self) -> bool {
        self.guest_tf == GuestTf::InRflags
    }

    /// Returns `true` if a single step hides that the guest has set TF.
    pub(super) fn hides_tf(&self) -> bool {
        self.guest_tf == GuestTf::Hidden(true)
    }

    /// The single step is over: RFLAGS show the guest's own TF again.
    ///
    /// The hypervisor has cleared it together with its own: KVM reads RFLAGS while the step still
    /// masks TF (`kvm_arch_vcpu_ioctl_set_guest_debug`). If a call fails, the TF stays hidden, and
    /// the next call tries again.
    pub(super) fn show_tf<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<(), StepperError<V::Error>> {
        if self.hides_tf() {
            self.cached = None;
            let core = RegisterGroups::CORE;
            let mut file = RegisterFile::default();
            vcpu.read_registers(core, &mut file)
                .map_err(StepperError::of("reading registers"))?;
            set_tf(&mut file, true);
            vcpu.write_registers(core, &file)
                .map_err(StepperError::of("writing registers"))?;
        }
        self.guest_tf = GuestTf::InRflags;
        Ok(())
    }

    /// The guest's own TF has become this.
    pub(super) fn set_guest_tf(&mut self, tf: bool) {
        self.guest_tf = GuestTf::Hidden(tf);
        if let Some(cached) = &mut self.cached {
            set_tf(cached, tf);
        }
    }

    /// Lends the cache, to be put back with [`restore`](Self::restore) when the hypervisor's
    /// registers are again what it says.
    pub(super) fn take(&mut self) -> Option<Box<RegisterFile>> {
        self.cached.take()
    }

    /// See [`take`](Self::take).
    pub(super) fn restore(&mut self, cached: Option<Box<RegisterFile>>) {
        self.cached = cached;
    }
}

pub(super) fn has_tf(file: &RegisterFile) -> bool {
    file.core.rflags & RFLAGS_TF != 0
}

pub(super) fn set_tf(file: &mut RegisterFile, tf: bool) {
    file.core.rflags &= !RFLAGS_TF;
    if tf {
        file.core.rflags |= RFLAGS_TF;
    }
}
