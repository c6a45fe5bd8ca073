//! All local APICs of a machine under one owner.

use alloc::vec::Vec;

use crate::{
    Acceptance, Destinations, DestinationsError, Effect, GuestTime, InterruptMessage, Lapic,
    LapicConfig, NoSuchVcpu, VcpuIndex, Vector,
};

/// The local APICs and the table that routes between them, for a VMM that keeps them under one
/// lock or on one thread. One that gives each vCPU its own lock uses [`Destinations`] and its
/// [`Lapic`]s by themselves; this is nothing more than the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapics {
    lapics: Vec<Lapic>,
    destinations: Destinations,
}

impl Lapics {
    /// One for each vCPU, as after power-up.
    ///
    /// # Errors
    /// If two have the same APIC id, or there are too many.
    pub fn new(configs: impl IntoIterator<Item = LapicConfig>) -> Result<Self, DestinationsError> {
        let lapics: Vec<_> = configs.into_iter().map(Lapic::new).collect();
        let rows = lapics.iter().map(Lapic::destination).collect();
        Ok(Self {
            destinations: Destinations::new(rows)?,
            lapics,
        })
    }

    /// All, by vCPU.
    #[must_use]
    pub fn lapics(&self) -> &[Lapic] {
        &self.lapics
    }

    /// The routing table.
    #[must_use]
    pub const fn destinations(&self) -> &Destinations {
        &self.destinations
    }

    /// One vCPU's.
    #[must_use]
    pub fn get(&self, vcpu: VcpuIndex) -> Option<&Lapic> {
        self.lapics.get(vcpu.get())
    }

    /// One vCPU's. Give the [`Effect`] of a register access to [`Self::apply`], and call
    /// [`Self::refresh`] after a reset, an INIT ([`Lapic::take_startup`]) and a restore.
    pub fn get_mut(&mut self, vcpu: VcpuIndex) -> Option<&mut Lapic> {
        self.lapics.get_mut(vcpu.get())
    }

    /// Brings the routing table up to date with one APIC.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn refresh(&mut self, vcpu: VcpuIndex) -> Result<(), NoSuchVcpu> {
        let row = self.get(vcpu).ok_or(NoSuchVcpu(vcpu))?.destination();
        self.destinations.update(vcpu, row)
    }

    /// Delivers a message of a device. `arrived` is called with the result at each target: wake the vCPU
    /// where it was accepted. Returns the number of targets.
    pub fn deliver(
        &mut self,
        message: &InterruptMessage,
        mut arrived: impl FnMut(VcpuIndex, Acceptance),
    ) -> usize {
        let Self {
            lapics,
            destinations,
        } = self;
        destinations.route(message, |vcpu| {
            if let Some(lapic) = lapics.get_mut(vcpu.get()) {
                arrived(vcpu, lapic.accept(message));
            }
        })
    }

    /// Does what one vCPU's register access asked for. Returns the vector whose EOI has to be reported to
    /// the IOAPICs, if there is one.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn apply(
        &mut self,
        vcpu: VcpuIndex,
        effect: Effect,
        mut arrived: impl FnMut(VcpuIndex, Acceptance),
    ) -> Result<Option<Vector>, NoSuchVcpu> {
        let Effect::Ipi(ipi) = effect else {
            return self.apply_other(vcpu, effect);
        };
        let Self {
            lapics,
            destinations,
        } = self;
        // Moved in: each of many targets is found without a look through a reference.
        let lapics = lapics.as_mut_slice();
        destinations.route_ipi(vcpu, ipi, move |target, message| {
            if let Some(lapic) = lapics.get_mut(target.get()) {
                arrived(target, lapic.accept(message));
            }
        });
        Ok(None)
    }

    /// The effects that concern no other APIC. In a function of its own, so one comparison tells an IPI
    /// from them.
    fn apply_other(
        &mut self,
        vcpu: VcpuIndex,
        effect: Effect,
    ) -> Result<Option<Vector>, NoSuchVcpu> {
        match effect {
            Effect::None | Effect::NotSent { .. } | Effect::Ipi(_) => Ok(None),
            Effect::EoiBroadcast(vector) => Ok(Some(vector)),
            Effect::IdentityChanged => self.refresh(vcpu).map(|()| None),
        }
    }

    /// Brings every timer up to `now`. `expired` is called for those that have expired.
    pub fn advance(&mut self, now: GuestTime, mut expired: impl FnMut(VcpuIndex)) {
        for (vcpu, lapic) in (0..).map(VcpuIndex).zip(&mut self.lapics) {
            if lapic.advance(now) > 0 {
                expired(vcpu);
            }
        }
    }

    /// When to call [`Self::advance`] next.
    #[must_use]
    pub fn next_deadline(&self, now: GuestTime) -> Option<GuestTime> {
        let deadlines = self.lapics.iter();
        deadlines.filter_map(|lapic| lapic.next_deadline(now)).min()
    }
}

#[cfg(test)]
mod tests;
