use std::time::Duration;

use super::*;
use crate::exit::ExitReason;

pub(super) fn devices() -> (Devices, ExitEvent) {
    let exit = ExitEvent::new().unwrap();
    let devices = devices_on(&SerialOutput::None, &exit);
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
    let ports = [0, 0x70, 0xe9, 0xcf7, 0xd00, 0x3ef, 0x400, 0xffff];
    for port in ports.into_iter().chain([DEBUG_EXIT_PORT]) {
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

/// Reads a register of a PCI function by mechanism 1.
fn pci_read(devices: &Devices, address: u32) -> u32 {
    write(devices, 0xcf8, address.to_le_bytes());
    u32::from_le_bytes(read(devices, 0xcfc))
}

#[test]
fn a_kernel_that_probes_for_pci_finds_mechanism_1_and_a_host_bridge() {
    let (devices, _) = devices();
    // As Linux's `pci_check_type1`: the address can be read back. Then its sanity check.
    write(&devices, 0xcfb, [1]);
    write(&devices, 0xcf8, 0x8000_0000_u32.to_le_bytes());
    assert_eq!(read(&devices, 0xcf8), 0x8000_0000_u32.to_le_bytes());
    assert_eq!(pci_read(&devices, 0x8000_0000), 0x0008_1b36);
    assert_eq!(pci_read(&devices, 0x8000_0008), 0x0600_0000, "class");
    write(&devices, 0xcf8, 0x8000_0008_u32.to_le_bytes());
    assert_eq!(read(&devices, 0xcfe), [0x00, 0x06], "as a word");
    assert_eq!(read(&devices, 0xcff), [0x06], "as a byte");
    // Nothing of it can be written.
    for register in [0x8000_0000, 0x8000_0004, 0x8000_0010] {
        let before = pci_read(&devices, register);
        write(&devices, 0xcfc, [0xff; 4]);
        assert_eq!(pci_read(&devices, register), before);
    }
}

#[test]
fn there_is_no_other_pci_function() {
    let (devices, exit) = devices();
    for address in [
        0x8000_0100, // 00:00.1
        0x8000_0800, // 00:01.0
        0x8001_0000, // 01:00.0
        0x80ff_ff00, // the last
        0x0000_0000, // not enabled
    ] {
        assert_eq!(pci_read(&devices, address), u32::MAX, "{address:#x}");
    }
    // Reserved bits read as zero.
    write(&devices, 0xcf8, [0xff; 4]);
    assert_eq!(read(&devices, 0xcf8), 0x80ff_fffc_u32.to_le_bytes());
    // Parts of the address are no access of it.
    write(&devices, 0xcf8, [0; 2]);
    write(&devices, 0xcfa, [0]);
    assert_eq!(read(&devices, 0xcf8), 0x80ff_fffc_u32.to_le_bytes());
    assert_eq!(read(&devices, 0xcfa), [0xff]);
    assert_eq!(exit.reason(), None);
}

#[test]
fn the_debug_console_says_that_it_is_there_and_writes_each_byte() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("debug");
    let (mut devices, _) = devices();
    let console = DebugConsole::new(&SerialOutput::File(path.clone())).unwrap();
    devices.add_debug_console(Arc::new(console)).unwrap();
    assert_eq!(read(&devices, 0xe9), [0xe9]);
    for byte in b"a\0" {
        write(&devices, 0xe9, [*byte]);
    }
    devices.io_out(0xe9, AccessSize::Byte, b"string output");
    // It has one port.
    write(&devices, 0xe9, *b"no");
    let console = devices.debug_console().unwrap();
    assert_eq!(console.finish(Duration::from_secs(20), false).total(), 0);
    assert_eq!(std::fs::read(&path).unwrap(), b"a\0string output");
    let error = DebugConsole::new(&SerialOutput::File("/no/such/place".into())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write the debug console to /no/such/place"
    );
}

#[test]
fn a_debug_console_that_is_not_read_blocks_no_vcpu_and_counts_what_is_lost() {
    use std::os::fd::AsRawFd;

    let (_reader, writer) = std::io::pipe().unwrap();
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let (mut devices, _) = devices();
    let console = DebugConsole::new(&SerialOutput::File(path.into())).unwrap();
    devices.add_debug_console(Arc::new(console)).unwrap();
    let block = vec![b'x'; 64 << 10];
    for _ in 0..40 {
        devices.io_out(0xe9, AccessSize::Byte, &block);
    }
    let console = devices.debug_console().unwrap();
    let loss = console.finish(Duration::from_millis(10), false);
    assert!(loss.dropped > 0 && loss.unwritten > 0);
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
    let devices = devices_on(&SerialOutput::File(path.clone()), &exit);
    write(&devices, 0x3f8, *b"a");
    // REP OUTSB: many bytes to one port, not to eight registers.
    devices.io_out(0x3f8, AccessSize::Byte, b"hello world");
    // REP OUTSW: each word goes to THR and IER.
    devices.io_out(0x3f8, AccessSize::Word, b"x\x00y\x00");
    let loss = devices.serial().finish(Duration::from_secs(20), false);
    assert_eq!(loss.total(), 0);
    assert_eq!(std::fs::read(&path).unwrap(), b"ahello worldxy");
}

fn devices_on(output: &SerialOutput, exit: &ExitEvent) -> Devices {
    let serial = Arc::new(SerialDevice::new(output).unwrap());
    Devices::new(serial, exit, OnReset::Exit).unwrap()
}

/// A reset is asked for once; the machine has not ended.
#[test]
fn a_reset_that_the_machine_survives_is_not_its_end() {
    for (port, value) in [(0x64, [0xfe]), (0x92, [0x01]), (0xcf9, [0x06])] {
        let exit = ExitEvent::new().unwrap();
        let serial = Arc::new(SerialDevice::new(&SerialOutput::None).unwrap());
        let devices = Devices::new(serial, &exit, OnReset::Restart).unwrap();
        assert!(!devices.reset_requested());
        write(&devices, port, value);
        assert!(devices.reset_requested(), "port {port:#x}");
        assert_eq!(exit.reason(), None);
        // The next machine's devices know nothing of it.
        let next = Devices::new(Arc::clone(devices.serial()), &exit, OnReset::Restart).unwrap();
        assert!(!next.reset_requested());
    }
}

#[test]
fn a_reset_serial_port_is_as_at_power_on_and_keeps_its_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    let exit = ExitEvent::new().unwrap();
    let devices = devices_on(&SerialOutput::File(path.clone()), &exit);
    write(&devices, 0x3f8, *b"a");
    write(&devices, 0x3f9, [0x0f]);
    write(&devices, 0x3fc, [0x1b]);
    let line = Arc::new(EdgeLine::new().unwrap());
    devices.serial().reset(line);
    assert_eq!(read(&devices, 0x3f9), [0], "IER");
    write(&devices, 0x3f8, *b"b");
    devices.serial().finish(Duration::from_secs(20), false);
    assert_eq!(std::fs::read(&path).unwrap(), b"ab");
}

/// A pipe as the serial output, whose reader is not reading yet.
fn unread_output() -> (std::io::PipeReader, Devices) {
    use std::os::fd::AsRawFd;

    let (reader, writer) = std::io::pipe().unwrap();
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let exit = ExitEvent::new().unwrap();
    let devices = devices_on(&SerialOutput::File(path.into()), &exit);
    (reader, devices)
}

fn line_status(devices: &Devices) -> u8 {
    read::<1>(devices, 0x3fd)[0]
}

#[test]
fn an_output_that_is_not_read_is_a_busy_transmitter_and_blocks_no_vcpu() {
    use std::io::Read;

    const EMPTY: u8 = 0x60;
    let (mut reader, devices) = unread_output();
    let serial = devices.serial();
    assert_eq!(line_status(&devices) & EMPTY, EMPTY);
    // The interrupt of an empty transmitter.
    write(&devices, 0x3f9, [2]);
    let mut written = 0;
    while line_status(&devices) & EMPTY != 0 {
        write(&devices, 0x3f8, [b'x']);
        written += 1;
        assert!(written < 1 << 20, "there is a limit");
    }
    assert_eq!(line_status(&devices) & EMPTY, 0);
    // As a driver does: the cause is read, and there is none.
    assert_eq!(read::<1>(&devices, 0x3fa)[0] & 0xf, 1, "IIR: none");
    let _ = serial.interrupt().event().read();
    // A guest that does not look loses what it writes.
    for _ in 0..10 {
        write(&devices, 0x3f8, [b'y']);
    }
    let _ = read::<1>(&devices, 0x3fa);
    let _ = serial.interrupt().event().read();
    let loss = serial.finish(Duration::from_millis(10), false);
    assert_eq!(loss.dropped, 10);
    assert!(loss.unwritten > 0);
    // Input arrives all the same.
    assert_eq!(serial.input(b"abc"), 3);
    // The reader reads: the transmitter is empty again, and says so.
    let mut seen = vec![0; written];
    reader.read_exact(&mut seen).unwrap();
    assert!(seen.iter().all(|byte| *byte == b'x'));
    let begun = std::time::Instant::now();
    while serial.interrupt().event().read().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no interrupt");
        std::thread::yield_now();
    }
    assert_eq!(line_status(&devices) & EMPTY, EMPTY);
    assert_eq!(read::<1>(&devices, 0x3fa)[0] & 0xf, 2, "IIR: empty");
}

#[test]
fn the_interrupt_of_a_transmitter_leaves_the_divisor_alone() {
    let (mut reader, devices) = unread_output();
    while line_status(&devices) & 0x20 != 0 {
        write(&devices, 0x3f8, [b'x']);
    }
    // The divisor latch is open while the room comes back.
    write(&devices, 0x3fb, [0x83]);
    write(&devices, 0x3f9, [0x12]);
    let mut seen = vec![0; 64 << 10];
    std::io::Read::read_exact(&mut reader, &mut seen).unwrap();
    let begun = std::time::Instant::now();
    while line_status(&devices) & 0x20 == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    assert_eq!(read(&devices, 0x3f9), [0x12]);
    assert_eq!(read(&devices, 0x3fb), [0x83]);
}

#[test]
fn a_port_in_loopback_has_no_room_for_input_until_it_leaves_it() {
    let (devices, _) = devices();
    let serial = devices.serial();
    write(&devices, 0x3fc, [0x10]);
    assert_eq!(serial.room(), 0);
    assert!(serial.space_event().read().is_err());
    write(&devices, 0x3fc, [0]);
    assert_eq!(serial.space_event().read().unwrap(), 1);
    assert!(serial.room() > 0);
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
    let line = devices.serial().interrupt();
    let interrupt = line.event();
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
    let output = SerialOutput::File("/no/such/directory/serial".into());
    let error = SerialDevice::new(&output).unwrap_err();
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
