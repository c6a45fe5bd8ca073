//! GSI routing: where a global system interrupt goes, and lines that several sources share.
//!
//! A [`Gsi`](crate::Gsi) goes to a pin of the 8259A pair, a pin of the IOAPIC, both, or to an MSI, as in KVM's
//! `KVM_SET_GSI_ROUTING`. A shared line is up as long as one of its sources holds it up; what comes
//! back from here is what has changed, for the caller to pass on to the chips.
//!
//! A table is checked whole, when it is made: a route to a pin that does not exist, a second route
//! to the same chip, an MSI that is no interrupt, two GSIs on one pin (their levels would overwrite
//! each other) are refused. Nothing after that can fail but a GSI without a route.

mod router;
mod table;

pub use router::{GsiRouter, LineChange, NoRoute, NoSuchSource, PinLevel, RoutingState, SourceId};
pub use table::{GSI_LIMIT, RouteEntry, RouteError, RouteTarget, Targets};

#[cfg(test)]
mod tests;
