//! Totals of what became of each arrival.

/// Totals since the policy was created. Each saturates.
///
/// Always: `arrived` = `merged` + `delivered` + `withdrawn` + `dropped` + what is pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Counters {
    /// Events that arrived.
    pub arrived: u64,
    /// Of those, the ones that were merged into one that was pending already.
    pub merged: u64,
    /// Events that were injected.
    pub delivered: u64,
    /// ExtINT lines that fell before they were acknowledged.
    pub withdrawn: u64,
    /// Events that a reset discarded.
    pub dropped: u64,
    /// ExtINTs injected although the line had fallen: the 8259A gives its
    /// spurious vector then. Also acknowledges for which a local APIC gave its spurious vector. They are
    /// not part of the sum, because nothing arrived.
    pub spurious: u64,
}

impl Counters {
    /// How many wait: what `arrived` is more than the sum of what has become of the others.
    #[must_use]
    pub const fn pending(&self) -> u64 {
        self.arrived.saturating_sub(self.accounted(0))
    }

    /// The sum that `arrived` must equal when this many events wait.
    ///
    /// Holds for saturated counters too: every term is at most the true count, and the sum
    /// saturates only where `arrived` does.
    pub(crate) const fn accounted(&self, waiting: u64) -> u64 {
        self.merged
            .saturating_add(self.delivered)
            .saturating_add(self.withdrawn)
            .saturating_add(self.dropped)
            .saturating_add(waiting)
    }
}

pub(crate) const fn add(counter: &mut u64, count: u64) {
    *counter = counter.saturating_add(count);
}
