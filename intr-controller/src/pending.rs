//! The events that have arrived and have not been injected yet.

use crate::{Event, VectorSet};

/// The largest number of pending NMIs.
///
/// A processor latches one (SDM 3A, "Handling Multiple NMIs"). But of two that arrive together
/// it takes the first at once and latches the second behind it, and a vCPU that is stopped,
/// scheduled out or held cannot take the first at once. KVM therefore lets two wait (x86.c,
/// `process_nmi`), and so does this. KVM lowers its limit to one while the guest is in its NMI
/// handler; an arrival does not know that here, so the one NMI by which the two differ is
/// delivered once more rather than lost.
pub const NMI_LIMIT: u8 = 2;

/// The result of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a merged event causes no further delivery"]
pub enum Arrival {
    /// It is pending, and will be delivered once.
    Accepted,
    /// One like it is pending already: the architecture delivers both as one.
    Merged,
}

/// The pending events of one vCPU, kept as the architecture keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pending {
    fixed: VectorSet,
    nmis: u8,
    smi: bool,
    ext_int: bool,
}

impl Pending {
    /// From its parts. NMIs above [`NMI_LIMIT`] are merged.
    #[must_use]
    pub const fn new(fixed: VectorSet, nmis: u8, smi: bool, ext_int: bool) -> Self {
        Self {
            fixed,
            nmis: if nmis > NMI_LIMIT { NMI_LIMIT } else { nmis },
            smi,
            ext_int,
        }
    }

    /// The vectors that the local APIC accepted: its IRR.
    #[must_use]
    pub const fn fixed(&self) -> &VectorSet {
        &self.fixed
    }

    /// Pending NMIs, at most [`NMI_LIMIT`].
    #[must_use]
    pub const fn nmis(&self) -> u8 {
        self.nmis
    }

    /// Whether an SMI is pending. A processor latches one (SDM 3C, "Entering SMM").
    #[must_use]
    pub const fn smi(&self) -> bool {
        self.smi
    }

    /// Whether the 8259A pair asserts INTR.
    #[must_use]
    pub const fn ext_int(&self) -> bool {
        self.ext_int
    }

    /// The number of pending deliveries.
    #[must_use]
    pub fn len(&self) -> u64 {
        u64::from(self.fixed.len())
            + u64::from(self.nmis)
            + u64::from(self.smi)
            + u64::from(self.ext_int)
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether nothing but vectors is pending, if anything is.
    pub(crate) const fn is_fixed_only(&self) -> bool {
        !(self.smi | self.ext_int) && self.nmis == 0
    }

    /// Whether this event is pending.
    #[must_use]
    pub fn contains(&self, event: Event) -> bool {
        match event {
            Event::Smi => self.smi,
            Event::Nmi => self.nmis > 0,
            Event::ExtInt => self.ext_int,
            Event::Fixed(vector) => self.fixed.contains(vector),
        }
    }

    /// The events that could be next, most urgent first: within the maskable class the ExtINT line is
    /// looked at before the local APIC, as KVM does (irq.c, `kvm_cpu_get_interrupt`), and of the
    /// vectors only the highest counts.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = Event> {
        [
            self.smi.then_some(Event::Smi),
            (self.nmis > 0).then_some(Event::Nmi),
            self.ext_int.then_some(Event::ExtInt),
            self.fixed.highest().map(Event::Fixed),
        ]
        .into_iter()
        .flatten()
    }

    /// Adds an event.
    pub(crate) fn insert(&mut self, event: Event) -> Arrival {
        let accepted = match event {
            Event::Smi => !core::mem::replace(&mut self.smi, true),
            Event::Nmi if self.nmis < NMI_LIMIT => {
                self.nmis += 1;
                true
            }
            Event::Nmi => false,
            Event::ExtInt => !core::mem::replace(&mut self.ext_int, true),
            Event::Fixed(vector) => self.fixed.insert(vector),
        };
        if accepted {
            Arrival::Accepted
        } else {
            Arrival::Merged
        }
    }

    /// Takes one delivery of an event out. Returns `true` if it was pending.
    pub(crate) fn remove(&mut self, event: Event) -> bool {
        match event {
            Event::Smi => core::mem::take(&mut self.smi),
            Event::Nmi => {
                let waiting = self.nmis > 0;
                self.nmis = self.nmis.saturating_sub(1);
                waiting
            }
            Event::ExtInt => core::mem::take(&mut self.ext_int),
            Event::Fixed(vector) => self.fixed.remove(vector),
        }
    }
}
