use super::*;
use crate::exit::ExitReason;

pub(super) fn devices() -> (Devices, ExitEvent) {
    let exit = ExitEvent::new().unwrap();
    let devices = Devices::new(&SerialOutput::None, &exit).unwrap();
    (devices, exit)
}

pub(super) fn read<const N: usize>(devices: &Devices, port: u16) -> [u8; N] {
    let mut data = [0x55; N];
    devices.io_in(port, AccessSize::from_bytes(N).unwrap(), &mut data);
    data
}

pub(super) fn write<const N: usize>(devices: &Devices, port: u16, data: [u8; N]) {
    devices.io_out(port, AccessSize::from_bytes(N).unwrap(), &data);
}

#[test]
fn what_no_device_claims_reads_as_all_ones_and_takes_writes() {
    let (devices, exit) = devices();
    for port in [0, 0x70, 0xcf8, 0xcfc, 0x3ef, 0x400, 0xffff, DEBUG_EXIT_PORT] {
        write(&devices, port, [0xff]);
        assert_eq!(read(&devices, port), [0xff], "{port:#x}");
    }
    write(&devices, 0xffff, [0; 4]);
    assert_eq!(
        read::<4>(&devices, 0xffff),
        [0xff; 4],
        "beyond the last port"
    );
    for address in [0, 0xfec0_0000, u64::MAX, u64::MAX - 3] {
        let mut data = [0; 8];
        devices.mmio_write(address, &data);
        devices.mmio_read(address, &mut data);
        assert_eq!(data, [0xff; 8], "{address:#x}");
    }
    assert_eq!(exit.reason(), None);
}

#[test]
fn the_keyboard_controller_resets_on_its_command_only() {
    let (devices, exit) = devices();
    write(&devices, 0x60, [0xfe]);
    write(&devices, 0x64, [0xfe, 0]);
    assert_eq!(exit.reason(), None, "a word is no command");
    write(&devices, 0x64, [0xfe]);
    assert_eq!(exit.reason(), Some(ExitReason::Reset));
}

#[test]
fn the_keyboard_controller_resets_when_bit_0_of_its_output_port_falls() {
    let (devices, exit) = devices();
    write(&devices, 0x64, [0xd0]);
    assert_eq!(read(&devices, 0x64), [1], "a byte to read");
    assert_eq!(read(&devices, 0x60), [3], "not reset, and A20 is on");
    assert_eq!(read(&devices, 0x64), [0]);
    write(&devices, 0x64, [0xd1]);
    write(&devices, 0x60, [1]);
    write(&devices, 0x60, [0]);
    assert_eq!(exit.reason(), None, "one byte is the output port's");
    write(&devices, 0x64, [0xd0]);
    assert_eq!(read(&devices, 0x60), [1]);
    write(&devices, 0x64, [0xd1]);
    // A command takes its place.
    write(&devices, 0x64, [0xd0]);
    write(&devices, 0x60, [0]);
    assert_eq!(exit.reason(), None);
    write(&devices, 0x64, [0xd1]);
    write(&devices, 0x60, [2]);
    assert_eq!(exit.reason(), Some(ExitReason::Reset));
}

#[test]
fn port_cf9_resets_when_bit_2_rises() {
    let (devices, exit) = devices();
    write(&devices, 0xcf9, [0x02]);
    assert_eq!(read(&devices, 0xcf9), [0x02]);
    assert_eq!(exit.reason(), None, "the kind alone resets nothing");
    write(&devices, 0xcf9, [0x06]);
    assert_eq!(exit.reason(), Some(ExitReason::Reset));
}

#[test]
fn a_reset_of_the_processors_alone_ends_the_machine_too() {
    let (devices, exit) = devices();
    write(&devices, 0xcf9, [0x04]);
    assert_eq!(exit.reason(), Some(ExitReason::Reset));
}

#[test]
fn port_92_resets_when_bit_0_rises_and_keeps_the_address_line_bit() {
    let (devices, exit) = devices();
    assert_eq!(read(&devices, 0x92), [0x02], "A20 is on");
    write(&devices, 0x92, [0xfe]);
    assert_eq!(read(&devices, 0x92), [0x02]);
    write(&devices, 0x92, [0x00]);
    assert_eq!(read(&devices, 0x92), [0x00]);
    write(&devices, 0x91, [0, 1]);
    assert_eq!(exit.reason(), None);
    write(&devices, 0x92, [0x01]);
    assert_eq!(read(&devices, 0x92), [0x01]);
    assert_eq!(exit.reason(), Some(ExitReason::Reset));
}

#[test]
fn a_pci_configuration_address_is_no_reset() {
    let (devices, exit) = devices();
    // Bus 6: the byte that would be at 0xcf9 has bit 2 set.
    write(&devices, 0xcf8, 0x8000_0600_u32.to_le_bytes());
    assert_eq!(exit.reason(), None);
}

#[test]
fn sleep_enable_powers_off_whatever_the_width() {
    for (port, data) in [
        (0x604, &[0x00, 0x20][..]),
        (0x605, &[0x34]),
        (0x604, &[0x01, 0x3c]),
        // Enable and control at once.
        (0x602, &[0, 0, 0, 0x34]),
    ] {
        let (devices, exit) = devices();
        // Sleep type without the enable bit, and the enable bit's position in the low byte.
        write(&devices, 0x604, [0x20, 0x1c]);
        assert_eq!(exit.reason(), None);
        let size = AccessSize::from_bytes(data.len()).unwrap();
        devices.io_out(port, size, data);
        assert_eq!(exit.reason(), Some(ExitReason::PowerOff));
        let [low, high] = read(&devices, 0x604);
        assert_eq!(low & 1, 1, "ACPI mode is always on");
        assert_eq!(high & 0x20, 0, "write-only");
    }
}

#[test]
fn acpi_events_can_be_enabled_and_never_happen() {
    let (devices, exit) = devices();
    write(&devices, 0x600, [0xff; 4]);
    // Status, and what of enable exists: GBL_EN, PWRBTN_EN, SLPBTN_EN and RTC_EN.
    assert_eq!(read(&devices, 0x600), [0, 0, 0x20, 0x07]);
    // The same by words, one of them twice.
    write(&devices, 0x602, [0x20, 0x00]);
    write(&devices, 0x600, [0x20, 0x01]);
    assert_eq!(read::<2>(&devices, 0x600), [0, 0]);
    assert_eq!(read::<2>(&devices, 0x602), [0x20, 0x00]);
    write(&devices, 0x602, [0, 0]);
    assert_eq!(read::<2>(&devices, 0x602), [0, 0]);
    // 0x2000 is SLP_EN one register further.
    write(&devices, 0x602, [0x00, 0x20]);
    assert_eq!(exit.reason(), None);
}

#[test]
fn only_the_sleep_type_of_acpi_control_is_kept() {
    let (devices, exit) = devices();
    assert_eq!(read(&devices, 0x604), [0x01, 0x00]);
    write(&devices, 0x604, [0xfe, 0xdf]);
    assert_eq!(read(&devices, 0x604), [0x03, 0x1c]);
    write(&devices, 0x604, [0x00, 0x00]);
    assert_eq!(read(&devices, 0x604), [0x01, 0x00]);
    assert_eq!(exit.reason(), None);
    assert_eq!(read(&devices, 0x606), [0xff], "nothing behind it");
}

#[test]
fn serial_output_arrives_in_the_file_and_string_output_byte_by_byte() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    let exit = ExitEvent::new().unwrap();
    let devices = Devices::new(&SerialOutput::File(path.clone()), &exit).unwrap();
    write(&devices, 0x3f8, *b"a");
    // REP OUTSB: many bytes to one port, not to eight registers.
    devices.io_out(0x3f8, AccessSize::Byte, b"hello world");
    // REP OUTSW: each word goes to THR and IER.
    devices.io_out(0x3f8, AccessSize::Word, b"x\x00y\x00");
    assert_eq!(std::fs::read(&path).unwrap(), b"ahello worldxy");
}

#[test]
fn string_input_reads_the_receiver_again_and_again() {
    let (devices, _) = devices();
    assert_eq!(devices.serial().input(b"abc"), 3);
    let mut data = [0; 3];
    devices.io_in(0x3f8, AccessSize::Byte, &mut data);
    assert_eq!(&data, b"abc");
    assert_eq!(read::<1>(&devices, 0x3fd)[0] & 1, 0, "no data ready");
}

#[test]
fn received_data_raises_the_interrupt_once_it_is_enabled() {
    let (devices, _) = devices();
    let interrupt = devices.serial().interrupt().event();
    devices.serial().input(b"a");
    assert!(interrupt.read().is_err(), "not enabled");
    write(&devices, 0x3f9, [1]);
    assert_eq!(interrupt.read().unwrap(), 1);
    assert_eq!(read::<1>(&devices, 0x3fa)[0] & 0xf, 4, "IIR: received data");
}

#[test]
fn a_full_receiver_asks_for_no_more_until_it_is_empty() {
    let (devices, _) = devices();
    let serial = devices.serial();
    let room = serial.room();
    assert_eq!(
        serial.input(&vec![b'x'; room + 10]),
        room,
        "the rest is not taken"
    );
    assert_eq!(serial.room(), 0);
    for left in (0..room).rev() {
        assert!(serial.space_event().read().is_err(), "{left}");
        assert_eq!(read(&devices, 0x3f8), *b"x");
    }
    assert_eq!(serial.space_event().read().unwrap(), 1);
    assert_eq!(serial.room(), room);
    let _ = read::<1>(&devices, 0x3f8);
    assert!(serial.space_event().read().is_err(), "signalled once");
}

#[test]
fn an_output_file_that_cannot_be_made_is_named() {
    let exit = ExitEvent::new().unwrap();
    let output = SerialOutput::File("/no/such/directory/serial".into());
    let error = Devices::new(&output, &exit).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write the serial output to /no/such/directory/serial"
    );
}

#[test]
fn many_threads_may_use_the_devices_at_once() {
    let (devices, _) = devices();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    write(&devices, 0x3f8, [b'x']);
                    let _ = read::<1>(&devices, 0x3fd);
                    let _ = read::<2>(&devices, 0x604);
                }
            });
        }
    });
}
