//! The IOAPIC's state from and to `struct kvm_ioapic_state`.
//!
//! KVM's `irr` is the lines of level-triggered pins; of edge-triggered ones it is, in a saved state,
//! the rises that were not delivered, which a masked pin has. KVM delivers those when the state is
//! set and the pin is not masked; the emulated IOAPIC ignores them, as it does when they happen.

use kvm_bindings::{kvm_ioapic_state, kvm_ioapic_state__bindgen_ty_1};

use super::{FromKvmError, Part, ToKvmError};
use crate::DestinationFormat;
use crate::ioapic::{IoApicPins, IoApicState, IoApicVersion, PIN_COUNT, RedirectionEntry};
use crate::x86::IOAPIC_ADDRESS;

/// Bits 55 to 49 of an entry.
const EXTENDED_DESTINATION: u64 = 0x00fe_0000_0000_0000;

/// An IOAPIC's state from KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicFromKvm {
    /// The state.
    pub state: IoApicState,
    /// Pins whose line is up and whose interrupt KVM had not sent yet. They are down in `state`:
    /// raise them after it was restored ([`crate::ioapic::IoApic::set_line`]), which sends them.
    pub unsent: IoApicPins,
}

impl IoApicState {
    /// From what `KVM_GET_IRQCHIP` gives for `KVM_IRQCHIP_IOAPIC`. KVM's is of
    /// [`IoApicVersion::V11`] with destinations of eight bits; a guest that is told so must keep
    /// them. It does not say by what entry a level was sent that has changed since.
    ///
    /// # Errors
    /// If a field has a value that an IOAPIC cannot have, with its name.
    pub fn from_kvm(
        kvm: &kvm_ioapic_state,
        model: IoApicVersion,
    ) -> Result<IoApicFromKvm, FromKvmError> {
        let kvm_ioapic_state {
            base_address,
            ioregsel,
            id,
            irr,
            pad: _,
            redirtbl,
        } = kvm;
        let whole = Part("");
        let destination_format = DestinationFormat::Xapic;
        whole.require(
            *base_address == IOAPIC_ADDRESS,
            "base_address",
            *base_address,
            "an IOAPIC is at 0xfec00000",
        )?;
        let select = u8::try_from(*ioregsel)
            .map_err(|_| whole.refuse("ioregsel", *ioregsel, "at most eight bits"))?;
        let id = u8::try_from(*id)
            .ok()
            .filter(|id| *id <= 0xf)
            .ok_or_else(|| whole.refuse("id", *id, "at most four bits"))?;
        whole.require(
            *irr & !IoApicPins::ALL.0 == 0,
            "irr",
            *irr,
            "there are 24 pins",
        )?;
        let mut entries = [RedirectionEntry::RESET; 24];
        let mut lines = *irr;
        let mut unsent = 0;
        for (pin, (entry, kvm)) in entries.iter_mut().zip(redirtbl).enumerate() {
            let bits = entry_bits(kvm);
            *entry = RedirectionEntry::from_bits(bits, destination_format);
            if !entry.is_valid(destination_format) {
                let rule = "remote IRR needs level trigger";
                return Err(whole.refuse("redirtbl", bits, rule));
            }
            let bit = 1 << pin;
            if entry.owes_level() && lines & bit != 0 {
                lines &= !bit;
                unsent |= bit;
            }
        }
        Ok(IoApicFromKvm {
            state: Self {
                version: Self::VERSION,
                model,
                destination_format,
                id,
                select,
                lines: IoApicPins(lines),
                // KVM has no latched pulses.
                latched: IoApicPins(0),
                entries,
                sent_by: [None; PIN_COUNT as usize],
            },
            unsent: IoApicPins(unsent),
        })
    }

    /// For `KVM_SET_IRQCHIP`. KVM's has no EOI register, whatever this one has.
    ///
    /// # Errors
    /// If an entry has an extended destination, which KVM would send elsewhere, or if a pulse is
    /// [latched](crate::ioapic::IoApic::pulse_latched), which KVM would lose. In the second case clear
    /// `latched`, and have the devices of those pins signal again when KVM has the state.
    pub fn to_kvm(&self) -> Result<kvm_ioapic_state, ToKvmError> {
        let Self {
            version: _,
            model: _,
            destination_format: _,
            id,
            select,
            lines,
            latched,
            entries,
            // KVM looks at its local APICs for it.
            sent_by: _,
        } = self;
        if *latched != IoApicPins(0) {
            return Err(ToKvmError {
                field: "latched",
                rule: "KVM's IOAPIC latches no pulses",
            });
        }
        let mut kvm = kvm_ioapic_state {
            base_address: IOAPIC_ADDRESS,
            ioregsel: (*select).into(),
            id: (*id).into(),
            ..Default::default()
        };
        for (pin, (entry, kvm_entry)) in entries.iter().zip(&mut kvm.redirtbl).enumerate() {
            if entry.bits() & EXTENDED_DESTINATION != 0 {
                return Err(ToKvmError {
                    field: "entries",
                    rule: "KVM's IOAPIC has destinations of eight bits",
                });
            }
            kvm_entry.bits = entry.bits();
            // KVM sends what is in `irr` when it is set; an edge has been sent.
            if entry.trigger_mode().bit() {
                kvm.irr |= lines.0 & 1 << pin;
            }
        }
        Ok(kvm)
    }
}

/// The entry as a number.
#[expect(
    unsafe_code,
    reason = "the binding is a union of a number and its bit-fields"
)]
fn entry_bits(entry: &kvm_ioapic_state__bindgen_ty_1) -> u64 {
    // SAFETY: both members of the union are eight bytes of which every pattern is valid, and every
    // constructor of the union writes all of them.
    unsafe { entry.bits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ioapic::{IoApic, IoApicPin};

    const MASKED: u64 = 1 << 16;
    const LEVEL: u64 = 1 << 15;
    const REMOTE_IRR: u64 = 1 << 14;

    fn kvm() -> kvm_ioapic_state {
        let mut kvm = kvm_ioapic_state {
            base_address: 0xfec0_0000,
            ..Default::default()
        };
        for entry in &mut kvm.redirtbl {
            entry.bits = MASKED;
        }
        kvm
    }

    fn from_kvm(kvm: &kvm_ioapic_state) -> Result<IoApicFromKvm, FromKvmError> {
        IoApicState::from_kvm(kvm, IoApicVersion::V11)
    }

    fn bits(kvm: &kvm_ioapic_state) -> [u64; 24] {
        core::array::from_fn(|pin| entry_bits(&kvm.redirtbl[pin]))
    }

    #[test]
    fn kvms_chip_at_power_on_is_ours() {
        let ours = IoApic::new(IoApicVersion::V11, DestinationFormat::Xapic).save();
        assert_eq!(
            from_kvm(&kvm()),
            Ok(IoApicFromKvm {
                state: ours,
                unsent: IoApicPins(0)
            })
        );
        assert_eq!(bits(&ours.to_kvm().unwrap()), bits(&kvm()));
    }

    #[test]
    fn every_field_goes_over_and_comes_back() {
        let mut kvm = kvm();
        kvm.ioregsel = 0x17;
        kvm.id = 9;
        kvm.irr = 1 << 5 | 1 << 6;
        kvm.redirtbl[5].bits = 0xa500_0000_0000_0041 | LEVEL | REMOTE_IRR;
        kvm.redirtbl[6].bits = LEVEL | MASKED | 0x42;
        kvm.redirtbl[7].bits = 0x0943;
        let state = from_kvm(&kvm).unwrap().state;
        assert_eq!(IoApic::default().restore(&state), Ok(()));
        assert_eq!(state.lines, IoApicPins(1 << 5 | 1 << 6));
        let back = state.to_kvm().unwrap();
        assert_eq!(bits(&back), bits(&kvm));
        assert_eq!((back.ioregsel, back.id, back.irr), (0x17, 9, kvm.irr));
        assert_eq!(back.base_address, 0xfec0_0000);
    }

    #[test]
    fn a_level_that_kvm_owes_is_sent_when_its_line_is_raised() {
        let mut kvm = kvm();
        kvm.irr = 1 << 5;
        kvm.redirtbl[5].bits = LEVEL | 0x41;
        let IoApicFromKvm { state, unsent } = from_kvm(&kvm).unwrap();
        let mut ioapic = IoApic::default();
        ioapic.restore(&state).unwrap();
        assert_eq!(unsent, IoApicPins(1 << 5));
        let message = ioapic.set_line(IoApicPin::new(5).unwrap(), true);
        assert_eq!(message.unwrap().vector, 0x41);
    }

    #[test]
    fn an_edge_that_was_sent_is_not_sent_again_by_kvm() {
        let mut ioapic = IoApic::default();
        let mut state = ioapic.save();
        state.entries[4] = RedirectionEntry::from_bits(0x41, DestinationFormat::Xapic);
        ioapic.restore(&state).unwrap();
        assert!(ioapic.set_line(IoApicPin::new(4).unwrap(), true).is_some());
        assert_eq!(ioapic.save().to_kvm().unwrap().irr, 0);
    }

    #[test]
    fn reserved_bits_that_kvm_keeps_are_left_out() {
        let mut kvm = kvm();
        kvm.redirtbl[1].bits = 0x00ff_ffff_fffe_0000 | MASKED;
        let state = from_kvm(&kvm).unwrap().state;
        assert_eq!(state.entries[1].bits(), MASKED);
    }

    #[test]
    fn hostile_values_are_refused_by_name() {
        type Break = fn(&mut kvm_ioapic_state);
        let cases: [(&str, Break); 6] = [
            ("base_address", |kvm| kvm.base_address = 0),
            ("ioregsel", |kvm| kvm.ioregsel = 0x100),
            ("id", |kvm| kvm.id = 0x10),
            ("id", |kvm| kvm.id = u32::MAX),
            ("irr", |kvm| kvm.irr = 1 << 24),
            ("redirtbl", |kvm| {
                kvm.redirtbl[23].bits = REMOTE_IRR | MASKED;
            }),
        ];
        for (field, spoil) in cases {
            let mut bad = kvm();
            spoil(&mut bad);
            assert_eq!(from_kvm(&bad).unwrap_err().field, field);
        }
    }

    #[test]
    fn a_latched_pulse_is_refused() {
        let mut ioapic = IoApic::default();
        assert_eq!(ioapic.pulse_latched(IoApicPin::new(3).unwrap()), None);
        assert_eq!(ioapic.save().to_kvm().unwrap_err().field, "latched");
    }

    #[test]
    fn an_extended_destination_is_refused() {
        let mut state = IoApic::default().save();
        let extended = DestinationFormat::Extended;
        state.destination_format = extended;
        state.entries[3] = RedirectionEntry::from_bits(0x0002_0000_0000_0041, extended);
        assert_eq!(state.to_kvm().unwrap_err().field, "entries");
    }
}
