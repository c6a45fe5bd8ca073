use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::ioapic::IoApicPin;
use crate::pic::PicPin;
use crate::{DestinationFormat, Gsi, MsiMessage};

const GOOD_MSI: MsiMessage = MsiMessage {
    address: 0xfee0_1000,
    data: 0x31,
};

fn route(gsi: u32, target: RouteTarget) -> RouteEntry {
    RouteEntry {
        gsi: Gsi(gsi),
        target,
    }
}

fn router(entries: &[RouteEntry]) -> GsiRouter {
    GsiRouter::new(entries, DestinationFormat::Xapic).unwrap()
}

fn source(id: u8) -> SourceId {
    SourceId::new(id).unwrap()
}

fn pins(targets: Targets) -> (Option<u8>, Option<u8>) {
    (
        targets.pic.map(PicPin::get),
        targets.ioapic.map(IoApicPin::get),
    )
}

#[test]
fn the_identity_table_is_kvms_without_the_cascade() {
    let router = router(&GsiRouter::identity_entries());
    for gsi in 0..24u8 {
        let pic = (gsi < 16 && gsi != 2).then_some(gsi);
        let targets = router.targets(Gsi(gsi.into())).unwrap();
        assert_eq!(pins(targets), (pic, Some(gsi)));
    }
    assert_eq!(router.targets(Gsi(24)), Err(NoRoute(Gsi(24))));
}

#[test]
fn the_pc_table_has_the_timer_at_pin_2() {
    let router = router(&GsiRouter::pc_entries());
    assert_eq!(pins(router.targets(Gsi(0)).unwrap()), (Some(0), Some(2)));
    assert_eq!(router.targets(Gsi(2)), Err(NoRoute(Gsi(2))));
    assert_eq!(pins(router.targets(Gsi(9)).unwrap()), (Some(9), Some(9)));
}

#[test]
fn a_shared_line_is_the_or_of_its_sources() {
    let mut router = router(&GsiRouter::identity_entries());
    let mut set = |id, up| router.set_line(Gsi(10), source(id), up).unwrap();
    assert!(matches!(set(0, true), LineChange::Rose(_)));
    assert_eq!(set(63, true), LineChange::Unchanged);
    assert_eq!(set(0, true), LineChange::Unchanged);
    assert_eq!(set(0, false), LineChange::Unchanged);
    assert_eq!(set(0, false), LineChange::Unchanged);
    assert!(
        matches!(set(63, false), LineChange::Fell(targets) if pins(targets) == (Some(10), Some(10)))
    );
}

#[test]
fn lines_do_not_touch_each_other() {
    let mut router = router(&GsiRouter::identity_entries());
    let _ = router.set_line(Gsi(10), source(1), true).unwrap();
    assert!(router.is_up(Gsi(10)) && !router.is_up(Gsi(11)));
    assert!(matches!(
        router.set_line(Gsi(11), source(1), true),
        Ok(LineChange::Rose(_))
    ));
}

#[test]
fn an_msi_route_is_decoded_when_the_table_is_made() {
    let mut router = router(&[route(40, RouteTarget::Msi(GOOD_MSI))]);
    let change = router.set_line(Gsi(40), source(0), true).unwrap();
    let LineChange::Rose(Targets {
        msi: Some(message), ..
    }) = change
    else {
        panic!("{change:?}");
    };
    assert_eq!((message.destination, message.vector), (1, 0x31));
}

#[test]
fn a_gsi_without_a_route_is_an_error_and_changes_nothing() {
    let mut router = router(&[route(40, RouteTarget::Msi(GOOD_MSI))]);
    let before = router.clone();
    for gsi in [0, 39, 41, u32::MAX] {
        let error = router.set_line(Gsi(gsi), source(0), true);
        assert_eq!(error, Err(NoRoute(Gsi(gsi))));
    }
    assert_eq!(router, before);
}

#[test]
fn mistakes_of_a_table_are_refused_with_their_place() {
    let bad_msi = MsiMessage {
        address: 0xfee0_0010,
        data: 0,
    };
    let good = route(1, RouteTarget::IoApic(1));
    for (entry, place) in [
        (
            route(2, RouteTarget::Pic(2)),
            "entries[1].target: the 8259A pair has no input 2",
        ),
        (
            route(2, RouteTarget::Pic(16)),
            "entries[1].target: the 8259A pair has no input 16",
        ),
        (
            route(2, RouteTarget::IoApic(24)),
            "entries[1].target: the IOAPIC has no pin 24",
        ),
        (route(4096, RouteTarget::IoApic(2)), "entries[1].gsi: 4096"),
        (
            route(u32::MAX, RouteTarget::IoApic(2)),
            "entries[1].gsi: 4294967295",
        ),
        (
            route(2, RouteTarget::Msi(bad_msi)),
            "entries[1].target: address: 0xfee00010 has the remappable",
        ),
        (
            route(1, RouteTarget::IoApic(2)),
            "entries[1].target: GSI 1 has such a route",
        ),
        (
            route(1, RouteTarget::Msi(GOOD_MSI)),
            "entries[1].target: GSI 1 has such a route",
        ),
        (
            route(2, RouteTarget::IoApic(1)),
            "entries[1].target: another GSI",
        ),
    ] {
        let error = GsiRouter::new(&[good, entry], DestinationFormat::Xapic).unwrap_err();
        assert!(error.to_string().starts_with(place), "{error}");
    }
    let many = vec![good; 8193];
    let error = GsiRouter::new(&many, DestinationFormat::Xapic);
    assert_eq!(error, Err(RouteError::TooMany { found: 8193 }));
}

#[test]
fn a_pin_beside_an_msi_is_refused_in_either_order() {
    let entries = [
        route(1, RouteTarget::Msi(GOOD_MSI)),
        route(1, RouteTarget::Pic(1)),
    ];
    let error = GsiRouter::new(&entries, DestinationFormat::Xapic);
    assert_eq!(error, Err(RouteError::Duplicate { index: 1, gsi: 1 }));
}

#[test]
fn a_refused_table_leaves_the_old_one() {
    let mut router = router(&GsiRouter::identity_entries());
    let _ = router.set_line(Gsi(5), source(3), true).unwrap();
    let before = router.clone();
    assert!(router.replace(&[route(0, RouteTarget::Pic(99))]).is_err());
    assert_eq!(router, before);
}

#[test]
fn replacing_the_table_names_the_pins_that_change_level() {
    let mut router = router(&GsiRouter::identity_entries());
    let _ = router.set_line(Gsi(5), source(3), true).unwrap();
    let _ = router.set_line(Gsi(6), source(3), true).unwrap();
    let pins: Vec<_> = router
        .replace(&[
            route(5, RouteTarget::IoApic(17)),
            route(6, RouteTarget::IoApic(6)),
        ])
        .unwrap()
        .iter()
        .map(|pin| (pins(pin.target), pin.up))
        .collect();
    assert_eq!(
        pins,
        [
            ((Some(5), None), false),
            ((None, Some(5)), false),
            ((Some(6), None), false),
            ((None, Some(17)), true)
        ]
    );
    assert!(router.is_up(Gsi(5)));
}

#[test]
fn sources_are_0_to_63() {
    assert!(SourceId::new(63).is_ok());
    assert_eq!(SourceId::new(64), Err(NoSuchSource(64)));
}

#[test]
fn restore_refuses_a_hostile_state_and_changes_nothing() {
    type Break = fn(&mut RoutingState);
    let cases: [(&str, Break); 6] = [
        ("version", |state| state.version = 7),
        ("entries[0]", |state| {
            state.entries[0].target = RouteTarget::Pic(2)
        }),
        ("asserted[1]", |state| state.asserted.push((Gsi(3000), 1))),
        ("asserted[1]", |state| {
            state.asserted.push((Gsi(u32::MAX), 1))
        }),
        ("asserted[1]", |state| state.asserted.push((Gsi(7), 0))),
        ("asserted[1]", |state| {
            state.asserted.push(state.asserted[0])
        }),
    ];
    for (field, spoil) in cases {
        let mut saved = router(&GsiRouter::identity_entries());
        let _ = saved.set_line(Gsi(5), source(3), true).unwrap();
        let mut state = saved.save();
        spoil(&mut state);
        let mut target = router(&[route(40, RouteTarget::Msi(GOOD_MSI))]);
        let before = target.clone();
        let error = target.restore(&state).unwrap_err();
        assert!(error.to_string().starts_with(field), "{field}: {error}");
        assert_eq!(target, before);
    }
}

#[cfg(feature = "serde")]
#[test]
fn the_state_survives_serde() {
    let mut router = router(&GsiRouter::pc_entries());
    let _ = router.set_line(Gsi(5), source(3), true).unwrap();
    let json = serde_json::to_string(&router.save()).unwrap();
    assert_eq!(
        serde_json::from_str::<RoutingState>(&json).unwrap(),
        router.save()
    );
}

proptest! {
    /// Against a set of (GSI, source) pairs.
    #[test]
    fn a_line_is_up_while_a_source_holds_it(
        events in proptest::collection::vec((0u32..26, 0u8..4, any::<bool>()), 0..200),
    ) {
        let mut router = router(&GsiRouter::identity_entries());
        let mut held = alloc::collections::BTreeSet::new();
        for (gsi, id, up) in events {
            let was = held.iter().any(|(g, _)| *g == gsi);
            let routed = gsi < 24;
            if routed && up {
                held.insert((gsi, id));
            } else {
                held.remove(&(gsi, id));
            }
            let is = held.iter().any(|(g, _)| *g == gsi);
            let change = router.set_line(Gsi(gsi), source(id), up);
            match (routed, was, is) {
                (false, ..) => prop_assert_eq!(change, Err(NoRoute(Gsi(gsi)))),
                (_, false, true) => prop_assert!(matches!(change, Ok(LineChange::Rose(_)))),
                (_, true, false) => prop_assert!(matches!(change, Ok(LineChange::Fell(_)))),
                _ => prop_assert_eq!(change, Ok(LineChange::Unchanged)),
            }
            let mut restored = GsiRouter::default();
            prop_assert_eq!(restored.restore(&router.save()), Ok(()));
            prop_assert_eq!(&restored, &router);
        }
    }
}
