//! Message-signalled interrupts: from address and data to the message, and back.
//!
//! Format: SDM 3A, "Message Address Register Format" and "Message Data Register Format"; the
//! extended destination id is what KVM, QEMU, Hyper-V and Xen agree on (address bits 11 to 5 are
//! bits 14 to 8 of the destination).

use thiserror::Error;

use crate::x86::LOCAL_APIC_ADDRESS;
use crate::{DeliveryMode, DestinationMode, InterruptMessage, MsiMessage, TriggerMode};

/// The upper 12 bits of a message's 32-bit address, which are those of [`LOCAL_APIC_ADDRESS`].
const ADDRESS_BASE_MASK: u64 = !0xf_ffff;
/// Address bits.
const LOGICAL: u64 = 1 << 2;
const REDIRECTION_HINT: u64 = 1 << 3;
const REMAPPABLE: u64 = 1 << 4;
const EXTENDED_SHIFT: u32 = 5;
const EXTENDED_MASK: u64 = 0x7f;
const DESTINATION_SHIFT: u32 = 12;
/// Data bits.
const ASSERT: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;

/// How wide the destination of MSIs and redirection-table entries is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum DestinationFormat {
    /// Eight bits, as the SDM has it. 0xff is every local APIC, and is widened to
    /// [`InterruptMessage::BROADCAST`].
    #[default]
    Xapic,
    /// Fifteen bits. For a guest that was told so (`KVM_FEATURE_MSI_EXT_DEST_ID` in CPUID leaf
    /// 0x4000_0001); 0xff can be one APIC's id, and is left to the receivers.
    Extended,
}

impl DestinationFormat {
    /// From the eight bits of the SDM and the seven further ones.
    pub(crate) const fn destination(self, low: u8, high: u8) -> u32 {
        match self {
            Self::Xapic if low == u8::MAX => InterruptMessage::BROADCAST,
            Self::Xapic => low as u32,
            Self::Extended => u32::from_le_bytes([low, high & 0x7f, 0, 0]),
        }
    }
}

/// A message that is no interrupt. The bus drops it; a route to it is a mistake of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MsiError {
    /// `address` is outside the range of interrupt messages.
    #[error("address: {address:#x} is outside 0xfee00000 to 0xfeefffff")]
    NotAnInterrupt {
        /// The address.
        address: u64,
    },
    /// `address` has the remappable format (bit 4), and there is no interrupt remapping.
    #[error("address: {address:#x} has the remappable format, and nothing remaps interrupts here")]
    RemappableFormat {
        /// The address.
        address: u64,
    },
    /// `data` has a delivery mode that does not exist.
    #[error("data: delivery mode {bits:#05b} of {data:#x} is reserved in an MSI")]
    DeliveryMode {
        /// The field.
        bits: u8,
        /// The data.
        data: u32,
    },
    /// A destination above 0x7fff, which no MSI can name.
    #[error("destination: {destination:#x} does not fit an MSI's 15 bits")]
    Destination {
        /// The destination.
        destination: u32,
    },
}

/// The delivery modes of a redirection-table entry and of an MSI: SIPI is not one of them.
pub(crate) const fn delivery_mode(bits: u8) -> Option<DeliveryMode> {
    match DeliveryMode::from_bits(bits) {
        Some(DeliveryMode::StartUp) => None,
        mode => mode,
    }
}

impl MsiMessage {
    /// The interrupt that this is.
    ///
    /// # Errors
    /// If it is none.
    #[inline]
    pub const fn decode(self, format: DestinationFormat) -> Result<InterruptMessage, MsiError> {
        let Self { address, data } = self;
        if address & ADDRESS_BASE_MASK != LOCAL_APIC_ADDRESS {
            return Err(MsiError::NotAnInterrupt { address });
        }
        if address & REMAPPABLE != 0 {
            return Err(MsiError::RemappableFormat { address });
        }
        let [vector, mode, ..] = data.to_le_bytes();
        let Some(mode) = delivery_mode(mode) else {
            return Err(MsiError::DeliveryMode {
                bits: mode & 0b111,
                data,
            });
        };
        let [low, ..] = (address >> DESTINATION_SHIFT).to_le_bytes();
        let [high, ..] = (address >> EXTENDED_SHIFT & EXTENDED_MASK).to_le_bytes();
        let destination_mode = DestinationMode::from_bit(address & LOGICAL != 0);
        let trigger_mode = TriggerMode::from_bit(data & LEVEL != 0);
        let hint = address & REDIRECTION_HINT != 0;
        Ok(InterruptMessage {
            destination: format.destination(low, high),
            destination_mode,
            // "Redirection Hint": to the one with the lowest priority among those that the logical
            // destination names. A physical one names a single processor anyway, and without the
            // hint the message goes to all that it names.
            delivery_mode: match (mode, destination_mode) {
                (DeliveryMode::Fixed, DestinationMode::Logical) if hint => {
                    DeliveryMode::LowestPriority
                }
                (mode, _) => mode,
            },
            trigger_mode,
            // "Level for trigger mode": looked at for a level only.
            level: matches!(trigger_mode, TriggerMode::Edge) || data & ASSERT != 0,
            vector,
        })
    }

    /// The MSI that says this, for a host that takes MSIs (`KVM_SIGNAL_MSI`, a route in split
    /// mode). A destination above 0xff uses the extended bits: the host must know that.
    ///
    /// # Errors
    /// If its destination or delivery mode does not fit one.
    pub const fn encode(message: &InterruptMessage) -> Result<Self, MsiError> {
        let InterruptMessage {
            destination,
            destination_mode,
            delivery_mode,
            trigger_mode,
            level,
            vector,
        } = *message;
        let destination = match destination {
            InterruptMessage::BROADCAST => 0xff,
            destination if destination <= 0x7fff => destination as u64,
            _ => return Err(MsiError::Destination { destination }),
        };
        let data = vector as u32
            | (delivery_mode.bits() as u32) << 8
            | if level { ASSERT } else { 0 }
            | if trigger_mode.bit() { LEVEL } else { 0 };
        if matches!(delivery_mode, DeliveryMode::StartUp) {
            return Err(MsiError::DeliveryMode {
                bits: delivery_mode.bits(),
                data,
            });
        }
        Ok(Self {
            address: LOCAL_APIC_ADDRESS
                | (destination & 0xff) << DESTINATION_SHIFT
                | (destination >> 8) << EXTENDED_SHIFT
                | if destination_mode.bit() { LOGICAL } else { 0 },
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn decode(address: u64, data: u32) -> Result<InterruptMessage, MsiError> {
        MsiMessage { address, data }.decode(DestinationFormat::Extended)
    }

    const FIXED_31: InterruptMessage = InterruptMessage {
        destination: 0,
        destination_mode: DestinationMode::Physical,
        delivery_mode: DeliveryMode::Fixed,
        trigger_mode: TriggerMode::Edge,
        level: true,
        vector: 0x31,
    };

    #[test]
    fn address_bits_19_to_12_are_the_destination() {
        let message = decode(0xfeea_5000, 0x31).unwrap();
        assert_eq!(
            message,
            InterruptMessage {
                destination: 0xa5,
                ..FIXED_31
            }
        );
    }

    #[test]
    fn address_bits_11_to_5_are_destination_bits_14_to_8() {
        assert_eq!(decode(0xfee0_0020, 0x31).unwrap().destination, 0x100);
        assert_eq!(decode(0xfee0_0800, 0x31).unwrap().destination, 0x4000);
        assert_eq!(decode(0xfeef_ffe0, 0x31).unwrap().destination, 0x7fff);
    }

    #[test]
    fn without_the_extension_those_bits_are_ignored_and_0xff_is_everyone() {
        let xapic = |address| {
            let message = MsiMessage { address, data: 0 };
            message
                .decode(DestinationFormat::Xapic)
                .unwrap()
                .destination
        };
        assert_eq!(xapic(0xfee0_3fe0), 3);
        assert_eq!(xapic(0xfeef_f000), 0xffff_ffff);
        assert_eq!(decode(0xfeef_f000, 0).unwrap().destination, 0xff);
    }

    #[test]
    fn the_destination_mode_counts_with_and_without_the_hint() {
        for (bits, mode, delivery) in [
            (0x0, DestinationMode::Physical, DeliveryMode::Fixed),
            (0x4, DestinationMode::Logical, DeliveryMode::Fixed),
            (0x8, DestinationMode::Physical, DeliveryMode::Fixed),
            (0xc, DestinationMode::Logical, DeliveryMode::LowestPriority),
        ] {
            let message = decode(0xfee0_3000 | bits, 0x31).unwrap();
            assert_eq!(message.destination_mode, mode, "{bits:#x}");
            assert_eq!(message.delivery_mode, delivery, "{bits:#x}");
        }
    }

    #[test]
    fn the_hint_does_not_turn_an_nmi_into_an_interrupt() {
        let message = decode(0xfee0_300c, 0x431).unwrap();
        assert_eq!(message.delivery_mode, DeliveryMode::Nmi);
    }

    #[test]
    fn the_remappable_format_is_refused_by_name() {
        let error = decode(0xfee0_0010, 0x31).unwrap_err();
        assert!(error.to_string().contains("remappable format"), "{error}");
    }

    #[test]
    fn an_address_outside_the_range_is_no_interrupt() {
        for address in [0, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, u64::MAX] {
            assert_eq!(
                decode(address, 0x31),
                Err(MsiError::NotAnInterrupt { address })
            );
        }
    }

    #[test]
    fn reserved_delivery_modes_are_refused_and_the_others_kept() {
        for bits in 0..8 {
            let message = decode(0xfee0_0000, 0x31 | bits << 8);
            match bits {
                3 | 6 => assert!(matches!(message, Err(MsiError::DeliveryMode { .. }))),
                _ => assert_eq!(u32::from(message.unwrap().delivery_mode.bits()), bits),
            }
        }
    }

    #[test]
    fn the_level_bit_counts_only_with_level_trigger() {
        assert!(decode(0xfee0_0000, 0x0031).unwrap().level);
        assert!(!decode(0xfee0_0000, 0x8031).unwrap().level);
        let asserted = decode(0xfee0_0000, 0xc031).unwrap();
        assert!(asserted.level);
        assert_eq!(asserted.trigger_mode, TriggerMode::Level);
    }

    #[test]
    fn an_id_above_15_bits_does_not_fit_an_msi() {
        let message = InterruptMessage {
            destination: 0x8000,
            ..FIXED_31
        };
        assert_eq!(
            MsiMessage::encode(&message),
            Err(MsiError::Destination {
                destination: 0x8000
            })
        );
    }

    proptest! {
        #[test]
        fn what_is_decoded_is_encoded_back(low in 0u64..0x10_0000, data in any::<u32>()) {
            let message = MsiMessage { address: 0xfee0_0000 | low, data };
            for format in [DestinationFormat::Xapic, DestinationFormat::Extended] {
                if let Ok(decoded) = message.decode(format) {
                    let encoded = MsiMessage::encode(&decoded).unwrap();
                    prop_assert_eq!(encoded.decode(format), Ok(decoded));
                }
            }
        }
    }
}
