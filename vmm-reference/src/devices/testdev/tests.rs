use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use intr_controller::Gsi;
use intr_controller::routing::SourceId;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::tests::{devices as plain_devices, read, write};
use crate::devices::{AccessSize, DEBUG_EXIT_PORT};
use crate::exit::ExitReason;
use crate::memory::MemoryLayout;

/// Remembers what was set.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u32, bool)>>);

impl Recorder {
    fn take(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl InterruptLines for Recorder {
    fn set_line(&self, gsi: Gsi, _: SourceId, level: bool) {
        self.0.lock().unwrap().push((gsi.0, level));
    }
}

struct Setup {
    devices: Devices,
    exit: ExitEvent,
    lines: Arc<Recorder>,
    memory: GuestRam,
}

/// Three vCPUs and 6 MiB.
fn setup() -> Setup {
    setup_with(None)
}

fn setup_with(firmware: Option<Firmware>) -> Setup {
    let (mut devices, exit) = plain_devices();
    let lines = Arc::new(Recorder::default());
    let layout = MemoryLayout::new(6 << 20).unwrap();
    let memory = layout.allocate().unwrap();
    let rtc = Rtc::new(layout, Box::new(|| Duration::ZERO));
    devices.add_rtc(rtc.clone()).unwrap();
    let machine = TestMachine {
        lines: Arc::clone(&lines) as _,
        memory: memory.clone(),
        cpus: 3,
        rtc,
        firmware,
    };
    devices.add_test_devices(machine, &exit).unwrap();
    Setup {
        devices,
        exit,
        lines,
        memory,
    }
}

fn item<const N: usize>(devices: &Devices, key: u16) -> [u8; N] {
    write(devices, 0x510, key.to_le_bytes());
    std::array::from_fn(|_| read::<1>(devices, 0x511)[0])
}

#[test]
fn the_debug_exit_port_takes_every_width_and_is_there_on_request_only() {
    for data in [&[7][..], &[7, 9], &[7, 9, 9, 9]] {
        let Setup { devices, exit, .. } = setup();
        assert_eq!(read(&devices, 0xf4), [0]);
        let size = AccessSize::from_bytes(data.len()).unwrap();
        devices.io_out(DEBUG_EXIT_PORT, size, data);
        assert_eq!(exit.reason(), Some(ExitReason::DebugExit(7)));
    }
    let (devices, exit) = plain_devices();
    write(&devices, 0xf4, [7]);
    assert_eq!(exit.reason(), None);
}

/// What firmware did.
#[derive(Default)]
struct Calls {
    inits: AtomicUsize,
    loads: AtomicUsize,
}

/// With firmware that counts what it does, and boots as `boots` says.
fn with_firmware(boots: Result<Entry, &'static str>) -> (Setup, Arc<Calls>) {
    let calls = Arc::new(Calls::default());
    let (sends, loads) = (Arc::clone(&calls), Arc::clone(&calls));
    let setup = setup_with(Some(Firmware {
        send_init: Box::new(move || {
            sends.inits.fetch_add(1, Ordering::Relaxed);
        }),
        load: Box::new(move || {
            loads.loads.fetch_add(1, Ordering::Relaxed);
            boots.map_err(str::to_owned)
        }),
    }));
    (setup, calls)
}

const BOOTS: Result<Entry, &str> = Ok(Entry::Protected {
    rip: 0x10_0000,
    eax: 0x2bad_b002,
    ebx: 0x6000,
});

#[test]
fn a_reset_of_the_processors_is_an_init_if_they_want_to_go_on() {
    let ways: [&[(u16, u8)]; 4] = [
        &[(0x92, 0), (0x92, 1)],
        &[(0x64, 0xfe)],
        &[(0x64, 0xd1), (0x60, 2)],
        &[(0xcf9, 0), (0xcf9, 4)],
    ];
    let (Setup { devices, exit, .. }, calls) = with_firmware(BOOTS);
    write(&devices, 0x70, [0x8f]);
    write(&devices, 0x71, [0x0a]);
    for (count, way) in (1..).zip(ways) {
        for (port, value) in way {
            write(&devices, *port, [*value]);
        }
        assert_eq!(calls.inits.load(Ordering::Relaxed), count, "{way:x?}");
    }
    assert_eq!(exit.reason(), None);
    // The whole machine's.
    write(&devices, 0xcf9, [0]);
    write(&devices, 0xcf9, [6]);
    assert_eq!(exit.reason(), Some(ExitReason::Reset));
    assert_eq!(calls.inits.load(Ordering::Relaxed), 4);

    for way in ways {
        let (Setup { devices, exit, .. }, calls) = with_firmware(BOOTS);
        for (port, value) in way {
            write(&devices, *port, [*value]);
        }
        assert_eq!(
            exit.reason(),
            Some(ExitReason::Reset),
            "no status: {way:x?}"
        );
        assert_eq!(calls.inits.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn the_firmware_boots_again_or_says_why_it_cannot() {
    let (Setup { devices, exit, .. }, calls) = with_firmware(BOOTS);
    let register = || u32::from_le_bytes(read(&devices, 0xf00));
    assert_eq!(register(), 0, "not loaded");
    for _ in 0..2 {
        write(&devices, 0xf00, [0; 4]);
        assert_eq!([register(), register()], [0x10_0000, 0x6000]);
    }
    assert_eq!([register(), register()], [0x2bad_b002, 0]);
    assert_eq!(exit.reason(), None);
    assert_eq!(calls.loads.load(Ordering::Relaxed), 2);
    // REP OUTSL: one exit, and one load.
    devices.io_out(0xf00, AccessSize::Dword, &[0; 4096]);
    assert_eq!(calls.loads.load(Ordering::Relaxed), 3);

    let long = Entry::Long { rip: 0, rsi: 0 };
    for (boots, why) in [(Err("no such file"), "no such file"), (Ok(long), "Linux")] {
        let (Setup { devices, exit, .. }, _) = with_firmware(boots);
        write(&devices, 0xf00, [0; 4]);
        let Some(ExitReason::GuestFailed(text)) = exit.reason() else {
            panic!("{:?}", exit.reason());
        };
        assert!(text.contains("second time") && text.contains(why), "{text}");
    }
}

#[test]
fn a_byte_to_a_line_port_sets_that_line() {
    let Setup { devices, lines, .. } = setup();
    write(&devices, 0x200e, [1]);
    write(&devices, 0x200e, [0]);
    write(&devices, 0x2000, [0x80]);
    write(&devices, 0x2017, [2]);
    assert_eq!(
        lines.take(),
        [(14, true), (14, false), (0, true), (23, true)]
    );
}

#[test]
fn wider_writes_and_reads_leave_the_lines_alone() {
    let Setup { devices, lines, .. } = setup();
    write(&devices, 0x200e, [1, 1]);
    write(&devices, 0x2000, [1; 4]);
    write(&devices, 0x2018, [1]);
    write(&devices, 0x1fff, [1]);
    assert_eq!(read(&devices, 0x200e), [0xff]);
    assert_eq!(lines.take(), []);
}

#[test]
fn string_output_to_a_line_port_toggles_it() {
    let Setup { devices, lines, .. } = setup();
    devices.io_out(0x2003, AccessSize::Byte, &[1, 0, 1]);
    assert_eq!(lines.take(), [(3, true), (3, false), (3, true)]);
}

#[test]
fn the_four_bytes_keep_what_is_written_at_any_width_at_both_places() {
    let Setup { devices, .. } = setup();
    write(&devices, 0xe0, [0x11, 0x22, 0x33, 0x44]);
    assert_eq!(read(&devices, 0xe0), [0x11, 0x22, 0x33, 0x44]);
    write(&devices, 0xe1, [0x55]);
    write(&devices, 0xea, [0x66, 0x77]);
    assert_eq!(read(&devices, 0xe8), [0x11, 0x55, 0x66, 0x77]);
    assert_eq!(read(&devices, 0xe2), [0x66, 0x77]);
    assert_eq!(read(&devices, 0xe3), [0x77]);
    // REP INSB: the same port again and again.
    let mut data = [0; 3];
    devices.io_in(0xe1, AccessSize::Byte, &mut data);
    assert_eq!(data, [0x55; 3]);
}

#[test]
fn io_memory_keeps_what_is_written_up_to_its_end() {
    let Setup { devices, .. } = setup();
    let mut data = [0xff; 8];
    devices.mmio_read(0xff00_0000, &mut data);
    assert_eq!(data, [0; 8]);
    devices.mmio_write(0xff00_0003, &[1, 2]);
    devices.mmio_write(0xff00_0004, &[3]);
    devices.mmio_write(0xff00_fff8, &[8; 8]);
    devices.mmio_read(0xff00_0000, &mut data);
    assert_eq!(data, [0, 0, 0, 1, 3, 0, 0, 0]);
    devices.mmio_read(0xff00_fff8, &mut data);
    assert_eq!(data, [8; 8]);
    devices.mmio_read(0xff00_fff9, &mut data);
    assert_eq!(data, [0xff; 8], "beyond the end");
    devices.mmio_write(0xff00_ffff, &[7, 7]);
    devices.mmio_read(0xff01_0000, &mut data);
    assert_eq!(data, [0xff; 8]);
}

#[test]
fn firmware_configuration_tells_the_machine() {
    let Setup { devices, .. } = setup();
    assert_eq!(&item(&devices, 0x00), b"QEMU");
    assert_eq!(item(&devices, 0x01), [1, 0, 0, 0], "no DMA");
    assert_eq!(item(&devices, 0x05), [3, 0], "vCPUs");
    assert_eq!(item(&devices, 0x0f), [3, 0], "the most there can be");
    assert_eq!(u64::from_le_bytes(item(&devices, 0x03)), 6 << 20);
}

#[test]
fn selecting_an_item_again_begins_it_again() {
    let Setup { devices, .. } = setup();
    assert_eq!(&item(&devices, 0), b"QE");
    assert_eq!(&item(&devices, 0), b"QEM");
}

#[test]
fn behind_an_items_end_and_without_an_item_there_are_zeros() {
    let Setup { devices, .. } = setup();
    assert_eq!(item(&devices, 0x05), [3, 0, 0, 0, 0, 0, 0, 0]);
    for key in [0x02, 0x09, 0x11, 0x19, 0x4000, 0x8000, 0xffff] {
        assert_eq!(item(&devices, key), [0; 8], "{key:#x}");
    }
}

#[test]
fn an_item_is_read_by_string_input_and_from_the_first_port_too() {
    let Setup { devices, .. } = setup();
    write(&devices, 0x510, [0, 0]);
    let mut data = [0; 6];
    devices.io_in(0x511, AccessSize::Byte, &mut data);
    assert_eq!(&data, b"QEMU\0\0");
    write(&devices, 0x510, [0, 0]);
    assert_eq!(read(&devices, 0x510), *b"Q");
    assert_eq!(read::<2>(&devices, 0x510), [0xff; 2], "bytes only");
    assert_eq!(read(&devices, 0x511), *b"E");
}

#[test]
fn only_a_word_to_the_first_port_selects() {
    let Setup { devices, .. } = setup();
    write(&devices, 0x510, [0x05, 0x00]);
    write(&devices, 0x510, [0]);
    write(&devices, 0x511, [0]);
    write(&devices, 0x511, [0, 0]);
    write(&devices, 0x510, [0; 4]);
    assert_eq!(read(&devices, 0x511), [3]);
}

#[test]
fn a_flushed_page_keeps_its_contents_and_can_be_written() {
    let Setup {
        devices, memory, ..
    } = setup();
    let at = GuestAddress(0x20_0ffc);
    memory.write_obj(0x1122_3344_u32, at).unwrap();
    write(&devices, 0xe4, 0x20_0ffc_u32.to_le_bytes());
    assert_eq!(memory.read_obj::<u32>(at).unwrap(), 0x1122_3344);
    memory.write_obj(0x5566_7788_u32, at).unwrap();
    assert_eq!(memory.read_obj::<u32>(at).unwrap(), 0x5566_7788);
}

#[test]
fn flushing_where_there_is_no_memory_does_nothing() {
    let Setup { devices, exit, .. } = setup();
    for address in [6 << 20, 0xfee0_0000, u32::MAX] {
        write(&devices, 0xe4, u32::to_le_bytes(address));
    }
    write(&devices, 0xe4, [0; 2]);
    write(&devices, 0xe5, [0]);
    assert_eq!(exit.reason(), None);
}

#[test]
fn flushing_takes_nothing_from_those_who_use_the_page() {
    let Setup {
        devices, memory, ..
    } = setup();
    let at = GuestAddress(0x30_0000);
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            for _ in 0..2000 {
                write(&devices, 0xe4, 0x30_0000_u32.to_le_bytes());
            }
        });
        let mut count = 0_u64;
        while !flusher.is_finished() {
            memory.write_obj(count, at).unwrap();
            assert_eq!(memory.read_obj::<u64>(at).unwrap(), count);
            count += 1;
        }
    });
}

/// One access of a guest, anywhere near the test devices or not.
#[derive(Clone, Debug)]
enum Access {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

fn access() -> impl Strategy<Value = Access> {
    let port = prop_oneof![
        0xdc_u16..0x100,
        0x1ffc_u16..0x201c,
        0x50c_u16..0x518,
        0x5c_u16..0x74,
        0xefc_u16..0xf08,
        any::<u16>()
    ];
    let address = prop_oneof![
        0xfeff_fff0_u64..0xff00_0010,
        0xff00_fff0_u64..0xff01_0010,
        any::<u64>()
    ];
    let bytes = || prop::collection::vec(any::<u8>(), 0..70);
    prop_oneof![
        (port.clone(), 0..70_usize).prop_map(|(port, length)| Access::In(port, length)),
        (port, bytes()).prop_map(|(port, data)| Access::Out(port, data)),
        (address.clone(), 0..70_usize).prop_map(|(at, length)| Access::Read(at, length)),
        (address, bytes()).prop_map(|(at, data)| Access::Write(at, data)),
    ]
}

fn size() -> impl Strategy<Value = AccessSize> {
    prop_oneof![
        Just(AccessSize::Byte),
        Just(AccessSize::Word),
        Just(AccessSize::Dword)
    ]
}

proptest! {
    #[test]
    fn hostile_accesses_panic_nowhere_and_set_lines_below_24_only(
        accesses in prop::collection::vec((access(), size()), 0..200)
    ) {
        let (Setup { devices, lines, .. }, _) = with_firmware(BOOTS);
        for (access, size) in accesses {
            match access {
                Access::In(port, length) => devices.io_in(port, size, &mut vec![0; length]),
                Access::Out(port, data) => devices.io_out(port, size, &data),
                Access::Read(address, length) => devices.mmio_read(address, &mut vec![0; length]),
                Access::Write(address, data) => devices.mmio_write(address, &data),
            }
        }
        prop_assert!(lines.take().iter().all(|(gsi, _)| *gsi < 24));
    }

    /// Also without the bus, which checks the lengths.
    #[test]
    fn a_device_alone_takes_any_offset_and_length(
        offset in any::<u64>(),
        length in 0..70_usize,
    ) {
        use vm_device::bus::{MmioAddress, PioAddress};
        use vm_device::{DeviceMmio, DevicePio};

        let layout = MemoryLayout::new(2 << 20).unwrap();
        let memory = layout.allocate().unwrap();
        let boots = Box::new(|| BOOTS.map_err(str::to_owned));
        let devices: [&dyn DevicePio; 7] = [
            &boot_again::BootAgain::new(boots, ExitEvent::new().unwrap()),
            &Rtc::new(layout, Box::new(|| Duration::ZERO)),
            &debug_exit::DebugExit::new(ExitEvent::new().unwrap()),
            &registers::Registers::default(),
            &fw_cfg::FwCfg::new(1, &memory),
            &memory::FlushPage::new(memory.clone()),
            &irq_lines::IrqLines::new(Arc::new(Recorder::default())),
        ];
        let mut data = vec![0xff; length];
        let narrow = u16::try_from(offset & 0xffff).unwrap();
        for device in devices {
            for offset in [narrow, narrow & 3] {
                device.pio_write(PioAddress(0), offset, &data);
                device.pio_read(PioAddress(0), offset, &mut data);
            }
        }
        let io_memory = memory::IoMemory::default();
        for offset in [offset, offset & 0x1_ffff] {
            io_memory.mmio_write(MmioAddress(0), offset, &data);
            io_memory.mmio_read(MmioAddress(0), offset, &mut data);
        }
    }
}
