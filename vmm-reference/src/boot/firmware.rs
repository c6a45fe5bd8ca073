//! The firmware of `--testdev`, assembled from `guests/firmware.S`.

use vm_memory::Bytes;

use super::SetupError;
use crate::layout;
use crate::memory::GuestRam;

static FIRMWARE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/firmware.bin"));

/// Writes the firmware to both of its addresses.
///
/// # Errors
/// [`SetupError::Memory`] if guest memory lacks the page below 4 GiB.
pub(crate) fn write_firmware(memory: &GuestRam) -> Result<(), SetupError> {
    for place in [layout::FIRMWARE, layout::HIGH_FIRMWARE] {
        memory
            .write_slice(FIRMWARE, place)
            .map_err(|source| SetupError::Memory {
                what: "the firmware",
                source,
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_where_the_memory_below_1_mib_and_4_gib_does() {
        let length = FIRMWARE.len() as u64;
        assert_eq!(layout::FIRMWARE.0 + length, layout::HIGH_MEMORY_START);
        assert_eq!(layout::HIGH_FIRMWARE.0 + length, layout::MMIO_HOLE_END);
        // JMP F000:FF00, 16 bytes before its end (SDM 3A 9.1.4).
        let vector = FIRMWARE.get(FIRMWARE.len() - 16..).unwrap();
        assert_eq!(vector.first_chunk(), Some(&[0xea, 0x00, 0xff, 0x00, 0xf0]));
    }
}
