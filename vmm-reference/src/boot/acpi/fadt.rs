//! The FADT: the fixed registers (ACPI 6.5, 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, low};
use crate::devices::{
    PM1_CONTROL_PORT, PM1_EVENT_PORT, RESET_PORT, RESET_VALUE, RTC_CENTURY, SCI_IRQ,
};

/// Length of PM1a event: status and enable, two bytes each (4.8.3.1); of PM1a control (4.8.3.2).
const PM1_EVENT_LENGTH: u8 = 4;
const PM1_CONTROL_LENGTH: u8 = 2;

/// IAPC_BOOT_ARCH (table 5.11). Bit 1, a keyboard controller, stays clear: only its resets are
/// emulated. So does bit 5, "CMOS RTC not present".
const LEGACY_DEVICES: u16 = 1 << 0;
const NO_VGA: u16 = 1 << 2;

/// C2 and C3 do not exist: latencies above 100 and 1000 µs say so.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// The FADT, with the addresses of the two tables that it points to.
pub(super) fn fadt(dsdt: u64, facs: u64) -> FADT {
    // These bits say that the power and sleep buttons are not fixed hardware: there are none
    // (4.8.2.2).
    let mut fadt = [
        Flags::Wbinvd,
        Flags::ProcC1,
        Flags::PwrButton,
        Flags::SlpButton,
        Flags::FixRtc,
        Flags::ResetRegSup,
        Flags::Headless,
    ]
    .into_iter()
    .fold(
        FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION),
        FADTBuilder::flag,
    );
    // Both widths of each address, for kernels that know only the older fields. The FACS must have
    // only one of them (5.2.9).
    fadt.dsdt = low(dsdt).into();
    fadt.x_dsdt = dsdt.into();
    fadt.firmware_ctrl = low(facs).into();

    fadt.sci_int = u16::from(SCI_IRQ).into();
    // SMI_CMD stays 0: the machine is always in ACPI mode (4.8.1).
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT_PORT).into();
    fadt.pm1_evt_len = PM1_EVENT_LENGTH;
    fadt.x_pm1a_evt_blk = ports(PM1_EVENT_PORT, PM1_EVENT_LENGTH, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL_PORT).into();
    fadt.pm1_cnt_len = PM1_CONTROL_LENGTH;
    fadt.x_pm1a_cnt_blk = ports(PM1_CONTROL_PORT, PM1_CONTROL_LENGTH, AccessSize::WordAccess);

    fadt.reset_reg = ports(RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = RTC_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    fadt.finalize()
}

fn ports(first: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        bytes * 8,
        0,
        access,
        u64::from(first),
    )
}
