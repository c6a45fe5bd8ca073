//! Saved and restored.

use alloc::string::ToString;

use super::*;

#[test]
fn a_level_in_service_is_restored_with_its_eoi_still_to_come() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let message = up(&mut ioapic, 5).unwrap();
    let mut restored = IoApic::default();
    restored.restore(&ioapic.save()).unwrap();
    assert_eq!(restored, ioapic);
    assert_eq!(eoi(&mut restored, 0x41), [message]);
}

#[test]
fn restore_refuses_what_an_ioapic_cannot_be_and_changes_nothing() {
    type Break = fn(&mut IoApicState);
    fn bits(state: &mut IoApicState, bits: u64) {
        let everything = DestinationFormat::Extended;
        state.entries[5] = RedirectionEntry::from_bits(bits, everything);
    }
    let cases: [(&str, Break); 6] = [
        ("version", |state| state.version = 0),
        ("id", |state| state.id = 0x10),
        ("lines", |state| state.lines = IoApicPins(1 << 24)),
        ("entries[5]", |state| bits(state, 0x0002_0000_0001_0000)),
        ("entries[5]", |state| bits(state, REMOTE_IRR | MASKED)),
        ("entries[5]", |state| {
            state.lines = IoApicPins(1 << 5);
            bits(state, LEVEL | 0x41);
        }),
    ];
    for (field, spoil) in cases {
        let mut ioapic = with_entry(6, LEVEL | 0x42);
        let _ = up(&mut ioapic, 6);
        let before = ioapic;
        let mut state = IoApic::default().save();
        assert_eq!(IoApic::default().restore(&state), Ok(()));
        spoil(&mut state);
        let error = ioapic.restore(&state).unwrap_err();
        assert!(error.to_string().starts_with(field), "{field}: {error}");
        assert_eq!(ioapic, before);
    }
}

#[cfg(feature = "serde")]
#[test]
fn an_entry_is_refused_for_the_same_bits_whatever_the_other_pins_do() {
    for bit in 0..64 {
        for others in [0, LEVEL, LEVEL | REMOTE_IRR] {
            let mut plain = IoApic::default().save();
            let bits = others | 1 << bit;
            plain.entries[7] = serde_json::from_value(bits.into()).unwrap();
            // Another pin is asserted: each is asked alone.
            let mut asserted = plain;
            asserted.lines = IoApicPins(1 << 9);
            let [plain, asserted] =
                [plain, asserted].map(|state| IoApic::default().restore(&state).err());
            assert_eq!(plain, asserted, "{bits:#x}");
        }
    }
}

#[cfg(feature = "serde")]
#[test]
fn the_entry_that_a_level_was_sent_by_awaits_its_eoi() {
    let mut state = with_entry(5, LEVEL | 0x41).save();
    state.sent_by[5] = Some(serde_json::from_value(0x8042.into()).unwrap());
    let error = IoApic::default().restore(&state).unwrap_err();
    assert!(matches!(
        error,
        IoApicRestoreError::SentBy {
            pin: 5,
            bits: 0x8042
        }
    ));
    assert_eq!(SentEntry::new(RedirectionEntry::RESET), None);
    assert!(serde_json::from_value::<SentEntry>(0.into()).is_err());
}

#[cfg(feature = "serde")]
#[test]
fn the_state_survives_serde_and_unknown_fields_do_not() {
    let ioapic = with_entry(5, LEVEL | 0x41);
    let json = serde_json::to_string(&ioapic.save()).unwrap();
    assert_eq!(
        serde_json::from_str::<IoApicState>(&json).unwrap(),
        ioapic.save()
    );
    let odd = json.replacen('{', "{\"more\":1,", 1);
    assert!(serde_json::from_str::<IoApicState>(&odd).is_err());
}
