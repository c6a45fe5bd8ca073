//! The routes that a host with its own local APICs needs to report EOIs to an IOAPIC.

use super::PIN_COUNT;
use crate::{DeliveryMode, DestinationMode, Gsi, InterruptMessage};

/// The routes whose EOIs matter to an IOAPIC ([`IoApic::eoi_routes`](super::IoApic::eoi_routes)): up
/// to three for each pin.
///
/// KVM with a split irqchip keeps for each vCPU the vectors whose EOIs it reports: those of
/// level-triggered routes that name this vCPU. A guest may write an entry while its level is pending or
/// in service in a local APIC, for example to send the next one elsewhere. If KVM knew only the entry's
/// new route, it would not report the EOI, remote IRR would stay set, and the pin would be dead.
/// Therefore the route that the level was sent by stays until the level has ended. If its vector is not
/// the entry's any more, it is dropped: [its EOI would end nothing](super::IoApic::eoi).
///
/// A guest may also rename a local APIC that has a level (LDR, DFR, a change to x2APIC mode). The route
/// does not name it any more then, and the IOAPIC is not notified. Therefore a logical destination has a
/// third route, to every local APIC. It stays before and after the level, because a change of routes at
/// each delivery would cost more than a superfluous EOI exit.
///
/// A physical destination has no third route, although a guest may write the APIC id too. No known guest
/// does this, and a broadcast route would make every vCPU exit on the EOI of any edge interrupt with this
/// vector.
///
/// A reported EOI was not necessarily broadcast. If it was not, it ends nothing: look at the local APIC's
/// TMR (`kvm::SplitVcpu::broadcasts_eoi`).
///
/// Masked pins have routes: a level in service may be masked before its EOI. Edges have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EoiRoutes {
    pub(super) pins: [PinRoutes; PIN_COUNT as usize],
}

/// Those of one pin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PinRoutes {
    /// Of the entry.
    now: Option<InterruptMessage>,
    /// Of the entry that a level awaiting its EOI was sent by.
    sent_by: Option<InterruptMessage>,
    /// To every local APIC, for those that are renamed.
    everyone: Option<InterruptMessage>,
}

impl PinRoutes {
    /// Of levels that have the same vector.
    pub(super) fn new(now: Option<InterruptMessage>, sent_by: Option<InterruptMessage>) -> Self {
        let logical = |message: &&InterruptMessage| message.destination_mode.bit();
        let named = now.as_ref().into_iter().chain(&sent_by).find(logical);
        Self {
            now,
            sent_by,
            everyone: named.map(|message| InterruptMessage {
                destination: InterruptMessage::BROADCAST,
                destination_mode: DestinationMode::Physical,
                delivery_mode: DeliveryMode::Fixed,
                ..*message
            }),
        }
    }
}

impl EoiRoutes {
    /// The GSIs that the routes take, from 0 on: the pins' own numbers, as many above them for levels
    /// that were sent by an entry which has changed, and as many for logical destinations.
    pub const GSI_COUNT: u8 = 3 * PIN_COUNT;

    /// The routes.
    pub fn iter(&self) -> impl Iterator<Item = (Gsi, InterruptMessage)> {
        let now = self.pins.iter().map(|pin| pin.now);
        let sent_by = self.pins.iter().map(|pin| pin.sent_by);
        let everyone = self.pins.iter().map(|pin| pin.everyone);
        (0..)
            .map(Gsi)
            .zip(now.chain(sent_by).chain(everyone))
            .filter_map(|(gsi, message)| Some((gsi, message?)))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::DestinationFormat;
    use crate::ioapic::{
        IoApic, IoApicPin, IoApicState, IoApicVersion, RedirectionEntry, SentEntry,
    };

    const MASKED: u32 = 1 << 16;
    const LEVEL: u32 = 1 << 15;
    const NMI: u32 = 4 << 8;
    const LOGICAL: u32 = 1 << 11;
    const ALL: u32 = 0xffff_ffff;

    fn write(ioapic: &mut IoApic, index: u8, value: u32) {
        let _ = ioapic.write_register(0x00, index.into(), |_| ());
        let _ = ioapic.write_register(0x10, value, |_| ());
    }

    fn low(ioapic: &mut IoApic, pin: u8, value: u32) {
        write(ioapic, 0x10 + 2 * pin, value);
    }

    fn destination(ioapic: &mut IoApic, pin: u8, destination: u8) {
        write(ioapic, 0x11 + 2 * pin, u32::from(destination) << 24);
    }

    fn eoi(ioapic: &mut IoApic, vector: u8) {
        let _ = ioapic.eoi(vector, |_| ());
    }

    /// GSI, vector and destination of each route.
    fn routes(ioapic: &IoApic) -> Vec<(u32, u8, u32)> {
        let routes = ioapic.eoi_routes();
        routes
            .iter()
            .map(|(gsi, message)| (gsi.0, message.vector, message.destination))
            .collect()
    }

    /// A level of pin 5 as vector 0x41 to local APIC 0, which has been sent and has fallen.
    fn sent() -> IoApic {
        let mut ioapic = IoApic::default();
        low(&mut ioapic, 5, LEVEL | 0x41);
        let pin = IoApicPin::new(5).unwrap();
        assert!(ioapic.pulse(pin).is_some());
        ioapic
    }

    /// And its destination has changed to 1.
    fn moved() -> IoApic {
        let mut ioapic = sent();
        destination(&mut ioapic, 5, 1);
        assert_eq!(routes(&ioapic), [(5, 0x41, 1), (29, 0x41, 0)]);
        ioapic
    }

    #[test]
    fn levels_have_one_masked_or_not_and_all_else_has_none() {
        let mut ioapic = IoApic::default();
        assert_eq!(routes(&ioapic), []);
        low(&mut ioapic, 0, LEVEL | 0x41);
        low(&mut ioapic, 1, 0x42);
        low(&mut ioapic, 2, LEVEL | MASKED | 0x43);
        low(&mut ioapic, 3, LEVEL | NMI | 0x44);
        low(&mut ioapic, 4, LEVEL | 3 << 8 | 0x45);
        low(&mut ioapic, 23, LEVEL | 0x46);
        let all = [(0, 0x41, 0), (2, 0x43, 0), (23, 0x46, 0)];
        assert_eq!(routes(&ioapic), all);
    }

    #[test]
    fn an_interrupt_and_its_eoi_change_nothing() {
        for mode in [0, LOGICAL] {
            let mut ioapic = IoApic::default();
            low(&mut ioapic, 5, LEVEL | mode | 0x41);
            let before = ioapic.eoi_routes();
            let pin = IoApicPin::new(5).unwrap();
            assert!(ioapic.set_line(pin, true).is_some());
            assert_eq!(ioapic.eoi_routes(), before);
            eoi(&mut ioapic, 0x41);
            assert_eq!(ioapic.eoi_routes(), before);
        }
    }

    #[test]
    fn to_mask_a_level_in_service_changes_nothing() {
        let mut ioapic = sent();
        let before = ioapic.eoi_routes();
        low(&mut ioapic, 5, LEVEL | MASKED | 0x41);
        assert_eq!(ioapic.eoi_routes(), before);
    }

    #[test]
    fn a_level_that_was_moved_has_its_old_route_until_its_eoi() {
        let mut ioapic = moved();
        eoi(&mut ioapic, 0x42);
        assert_eq!(routes(&ioapic), [(5, 0x41, 1), (29, 0x41, 0)]);
        eoi(&mut ioapic, 0x41);
        assert_eq!(routes(&ioapic), [(5, 0x41, 1)]);
    }

    #[test]
    fn or_until_a_write_to_eoir() {
        let mut ioapic = moved();
        let _ = ioapic.write_register(IoApic::EOIR, 0x41, |_| ());
        assert_eq!(routes(&ioapic), [(5, 0x41, 1)]);
    }

    #[test]
    fn or_until_it_is_an_edge() {
        let mut ioapic = moved();
        low(&mut ioapic, 5, 0x41);
        assert_eq!(routes(&ioapic), []);
        low(&mut ioapic, 5, LEVEL | 0x41);
        assert_eq!(routes(&ioapic), [(5, 0x41, 1)]);
    }

    #[test]
    fn or_until_reset() {
        let mut ioapic = moved();
        ioapic.reset();
        assert_eq!(routes(&ioapic), []);
        low(&mut ioapic, 5, LEVEL | 0x41);
        assert_eq!(routes(&ioapic), [(5, 0x41, 0)]);
    }

    #[test]
    fn the_old_route_is_the_one_it_was_sent_by_however_often_it_is_moved() {
        let mut ioapic = moved();
        destination(&mut ioapic, 5, 2);
        destination(&mut ioapic, 5, 3);
        assert_eq!(routes(&ioapic), [(5, 0x41, 3), (29, 0x41, 0)]);
        destination(&mut ioapic, 5, 0);
        assert_eq!(routes(&ioapic), [(5, 0x41, 0)]);
        destination(&mut ioapic, 5, 4);
        assert_eq!(routes(&ioapic), [(5, 0x41, 4), (29, 0x41, 0)]);
    }

    #[test]
    fn what_is_sent_at_the_eoi_is_sent_by_the_new_entry() {
        let mut ioapic = moved();
        let pin = IoApicPin::new(5).unwrap();
        assert_eq!(ioapic.set_line(pin, true), None);
        eoi(&mut ioapic, 0x41);
        assert!(ioapic.entry(pin).remote_irr());
        assert_eq!(routes(&ioapic), [(5, 0x41, 1)]);
        destination(&mut ioapic, 5, 2);
        assert_eq!(routes(&ioapic), [(5, 0x41, 2), (29, 0x41, 1)]);
    }

    #[test]
    fn an_old_vector_has_none_as_long_as_it_is_not_the_entrys() {
        let mut ioapic = moved();
        low(&mut ioapic, 5, LEVEL | 0x51);
        assert_eq!(routes(&ioapic), [(5, 0x51, 1)]);
        eoi(&mut ioapic, 0x41);
        assert!(ioapic.entry(IoApicPin::new(5).unwrap()).remote_irr());
        low(&mut ioapic, 5, LEVEL | 0x41);
        assert_eq!(routes(&ioapic), [(5, 0x41, 1), (29, 0x41, 0)]);
    }

    #[test]
    fn other_fields_of_the_route_count_as_well() {
        let mut ioapic = sent();
        low(&mut ioapic, 5, LEVEL | 1 << 8 | 0x41);
        assert_eq!(routes(&ioapic), [(5, 0x41, 0), (29, 0x41, 0)]);
        low(&mut ioapic, 5, LEVEL | LOGICAL | 0x41);
        let all = [(5, 0x41, 0), (29, 0x41, 0), (53, 0x41, ALL)];
        assert_eq!(routes(&ioapic), all);
        low(&mut ioapic, 5, LEVEL | NMI | 0x41);
        assert_eq!(routes(&ioapic), [(29, 0x41, 0)], "an NMI has no EOI");
        low(&mut ioapic, 5, LEVEL | 3 << 8 | 0x41);
        assert_eq!(routes(&ioapic), [(29, 0x41, 0)], "reserved");
    }

    #[test]
    fn a_logical_destination_has_one_to_everyone_whatever_it_is_and_as_long_as_it_is_one() {
        let mut ioapic = IoApic::default();
        low(&mut ioapic, 5, LEVEL | LOGICAL | MASKED | 0x41);
        assert_eq!(routes(&ioapic), [(5, 0x41, 0), (53, 0x41, ALL)]);
        destination(&mut ioapic, 5, 4);
        low(&mut ioapic, 5, LEVEL | LOGICAL | 1 << 8 | 0x42);
        assert_eq!(routes(&ioapic), [(5, 0x42, 4), (53, 0x42, ALL)]);
        low(&mut ioapic, 5, LEVEL | 0x42);
        assert_eq!(routes(&ioapic), [(5, 0x42, 4)]);
        low(&mut ioapic, 5, LOGICAL | 0x42);
        assert_eq!(routes(&ioapic), []);
    }

    #[test]
    fn it_is_fixed_and_physical() {
        let mut ioapic = IoApic::default();
        low(&mut ioapic, 5, LEVEL | LOGICAL | 1 << 8 | 0x41);
        let everyone = InterruptMessage {
            destination: ALL,
            destination_mode: DestinationMode::Physical,
            delivery_mode: DeliveryMode::Fixed,
            trigger_mode: crate::TriggerMode::Level,
            level: true,
            vector: 0x41,
        };
        let last = ioapic.eoi_routes().iter().last();
        assert_eq!(last, Some((Gsi(53), everyone)));
    }

    #[test]
    fn a_level_that_was_sent_to_a_logical_destination_keeps_it_until_its_eoi() {
        let mut ioapic = IoApic::default();
        low(&mut ioapic, 5, LEVEL | LOGICAL | 0x41);
        let _ = ioapic.pulse(IoApicPin::new(5).unwrap());
        low(&mut ioapic, 5, LEVEL | 0x41);
        let all = [(5, 0x41, 0), (29, 0x41, 0), (53, 0x41, ALL)];
        assert_eq!(routes(&ioapic), all);
        eoi(&mut ioapic, 0x41);
        assert_eq!(routes(&ioapic), [(5, 0x41, 0)]);
    }

    #[test]
    fn a_pin_that_is_not_in_service_has_no_old_route() {
        let mut ioapic = sent();
        eoi(&mut ioapic, 0x41);
        destination(&mut ioapic, 5, 1);
        assert_eq!(routes(&ioapic), [(5, 0x41, 1)]);
    }

    #[test]
    fn all_pins_have_three() {
        let mut ioapic = IoApic::default();
        for pin in 0..PIN_COUNT {
            low(&mut ioapic, pin, LEVEL | LOGICAL | 0x41);
            let _ = ioapic.pulse(IoApicPin::new(pin).unwrap());
            destination(&mut ioapic, pin, 1);
        }
        let gsis: Vec<_> = routes(&ioapic).iter().map(|route| route.0).collect();
        let all: Vec<_> = (0..EoiRoutes::GSI_COUNT.into()).collect();
        assert_eq!(gsis, all);
    }

    #[test]
    fn the_old_route_is_saved_and_restored() {
        let ioapic = moved();
        let mut restored = IoApic::default();
        assert_eq!(restored.restore(&ioapic.save()), Ok(()));
        assert_eq!(restored.eoi_routes(), ioapic.eoi_routes());
    }

    #[test]
    fn a_state_with_an_old_route_that_cannot_be_is_refused() {
        type Break = fn(&mut IoApicState);
        let cases: [Break; 3] = [
            |state| state.sent_by[6] = SentEntry::new(state.entries[5]),
            |state| {
                let edge = RedirectionEntry::from_bits(0x4041, DestinationFormat::Xapic);
                state.sent_by[5] = SentEntry::new(edge);
            },
            |state| {
                let bits = state.entries[5].bits() | 1 << 49;
                let extended = RedirectionEntry::from_bits(bits, DestinationFormat::Extended);
                state.sent_by[5] = SentEntry::new(extended);
            },
        ];
        for spoil in cases {
            let mut state = moved().save();
            spoil(&mut state);
            let mut ioapic = IoApic::new(IoApicVersion::V11, DestinationFormat::Extended);
            let before = ioapic;
            let error = ioapic.restore(&state).unwrap_err();
            assert!(alloc::string::ToString::to_string(&error).starts_with("sent_by["));
            assert_eq!(ioapic, before);
        }
    }
}
