//! Nothing on an interrupt's way allocates: from a device's line, an MSI or an IPI through the
//! routing table into the local APIC, to the decision, the injection and the EOI; nor do register
//! accesses, timers, save and restore.
#![expect(
    clippy::expect_used,
    reason = "a machine that cannot be made is a failed test"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::num::NonZeroU64;

use intr_controller::ioapic::{IoApic, IoApicPin, IoApicVersion};
use intr_controller::pic::{Pic, PicPin};
use intr_controller::pit::Pit;
use intr_controller::routing::{GsiRouter, SourceId};
use intr_controller::{
    Decision, DeliveryMode, DestinationFormat, Effect, Event, Gsi, GuestTime, InjectionPolicy,
    InterruptMessage, Lapic, LapicConfig, Lapics, LocalSource, MsiMessage, ProcessorPriority,
    Readiness, TriggerMode, VcpuIndex,
};

thread_local! {
    /// Of this thread: the test harness has others, which allocate.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, and a count.
struct Counting;

fn count() {
    ALLOCATIONS.with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it came, and counting allocates nothing: the
// counter is initialised at compile time and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on, and what `alloc` gave was the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on, and what `alloc` gave was the system's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often it allocates.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

const NOW: GuestTime = GuestTime::from_ns(1_000_000);
const LATER: GuestTime = GuestTime::from_ns(1_000_000_000);
const VCPUS: u16 = 64;
const TARGET: VcpuIndex = VcpuIndex(40);
const X2APIC_MODE: u64 = 0xc00;

/// All enabled by software, in x2APIC mode or not.
fn machine(x2apic: bool) -> Lapics {
    let tsc_hz = NonZeroU64::new(2_400_000_000).expect("a frequency");
    let configs = (0..VCPUS).map(|id| LapicConfig::new(id.into(), id == 0, tsc_hz));
    let mut lapics = Lapics::new(configs).expect("different ids");
    for vcpu in (0..VCPUS).map(VcpuIndex) {
        let lapic = lapics.get_mut(vcpu).expect("a vCPU");
        let _ = lapic.mmio_write(0xf0, &0x1ff_u32.to_le_bytes(), NOW);
        if x2apic {
            let base = lapic.apic_base();
            let effect = lapic.write_msr(0x1b, base | X2APIC_MODE, NOW);
            assert_eq!(effect, Ok(Effect::IdentityChanged));
        }
        let _ = lapic.accept(&InterruptMessage {
            delivery_mode: DeliveryMode::StartUp,
            ..InterruptMessage::default()
        });
        let _ = lapic.take_startup();
        assert!(!lapic.waiting_for_sipi());
        lapics.refresh(vcpu).expect("a vCPU");
    }
    lapics
}

fn write(lapic: &mut Lapic, register: u16, value: u32) -> Effect {
    let msr = 0x800 + u32::from(register >> 4);
    match lapic.mmio_offset(lapic.base_address()) {
        Some(_) => lapic.mmio_write(register, &value.to_le_bytes(), NOW),
        None => lapic
            .write_msr(msr, value.into(), NOW)
            .expect("a writable register"),
    }
}

/// Takes what waits and ends it. How many there were.
fn take_all(lapics: &mut Lapics, vcpu: VcpuIndex, ioapic: &mut IoApic) -> u32 {
    let mut taken = 0;
    while let Some(lapic) = lapics.get_mut(vcpu) {
        let Decision::Inject(event) = lapic.decide(&Readiness::OPEN) else {
            break;
        };
        lapic.injected(event).expect("it waited");
        let effect = write(lapic, 0xb0, 0);
        if let Ok(Some(vector)) = lapics.apply(vcpu, effect, |_, _| ()) {
            ioapic.eoi(vector.get(), |message| {
                black_box(message);
            });
        }
        taken += 1;
    }
    taken
}

#[test]
fn an_allocation_is_counted() {
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1);
    let grow = || {
        let mut vector = Vec::with_capacity(1);
        vector.push(1);
        vector.reserve(100);
        black_box(vector);
    };
    assert_eq!(allocations(grow), 2);
}

#[test]
fn a_device_interrupt_allocates_nothing_from_its_line_to_its_eoi() {
    let format = DestinationFormat::Extended;
    let pin = IoApicPin::new(10).expect("a pin");
    let source = SourceId::new(3).expect("a source");
    for x2apic in [false, true] {
        let mut lapics = machine(x2apic);
        let mut router = GsiRouter::new(&GsiRouter::pc_entries(), format).expect("routes");
        let mut ioapic = IoApic::new(IoApicVersion::V20, format);
        let mut pic = Pic::new();
        let mut taken = 0;
        let work = || {
            // An edge and a level: the redirection entry, the line, the message, its end.
            for low in [0x51, 0x8061_u32] {
                for (register, value) in [(0x25, u32::from(TARGET.0) << 24), (0x24, low)] {
                    let _ = ioapic.write(0x00, &[register], |_| {});
                    let _ = ioapic.write(0x10, &value.to_le_bytes(), |_| {});
                }
                let _ = router.set_line(Gsi(10), source, true);
                let message = ioapic.set_line(pin, true);
                let _ = ioapic.set_line(pin, false);
                let _ = router.set_line(Gsi(10), source, false);
                if let Some(message) = message {
                    lapics.deliver(&message, |_, _| ());
                }
                taken += take_all(&mut lapics, TARGET, &mut ioapic);
            }
            let msi = MsiMessage {
                address: 0xfee0_0000 | u64::from(TARGET.0) << 12,
                data: 0x41,
            };
            if let Ok(message) = msi.decode(format) {
                lapics.deliver(&message, |_, _| ());
            }
            taken += take_all(&mut lapics, TARGET, &mut ioapic);
            for number in [4, 12] {
                if let Ok(pin) = PicPin::new(number) {
                    pic.set_line(pin, true);
                    let _ = black_box(pic.acknowledge());
                    pic.set_line(pin, false);
                }
            }
        };
        assert_eq!(allocations(work), 0);
        assert_eq!(taken, 3);
    }
}

#[test]
fn an_ipi_allocates_nothing_whatever_its_destination() {
    for x2apic in [false, true] {
        let mut lapics = machine(x2apic);
        let mut ioapic = IoApic::default();
        let mut taken = 0;
        let work = || {
            // All, all others, itself.
            for shorthand in [0b10, 0b11, 0b01] {
                for delivery_mode in [0b000, 0b001, 0b100] {
                    if let Some(lapic) = lapics.get_mut(TARGET) {
                        let command = shorthand << 18 | 1 << 14 | delivery_mode << 8 | 0x71;
                        let effect = write(lapic, 0x300, command);
                        let _ = lapics.apply(TARGET, effect, |_, _| ());
                    }
                    for vcpu in (0..VCPUS).map(VcpuIndex) {
                        // An NMI is not ended by the EOI, which finds nothing then.
                        taken += take_all(&mut lapics, vcpu, &mut ioapic);
                    }
                }
            }
            // One, and one of the sixteen that a logical destination can name.
            for (destination, logical, mode) in [(TARGET.0, 0, 0), (0x3, 1, 0b001)] {
                let message = InterruptMessage {
                    destination: destination.into(),
                    destination_mode: intr_controller::DestinationMode::from_bit(logical != 0),
                    delivery_mode: DeliveryMode::from_bits(mode).unwrap_or_default(),
                    trigger_mode: TriggerMode::Edge,
                    level: true,
                    vector: 0x72,
                };
                lapics.deliver(&message, |_, _| ());
            }
            for vcpu in (0..VCPUS).map(VcpuIndex) {
                taken += take_all(&mut lapics, vcpu, &mut ioapic);
            }
        };
        assert_eq!(allocations(work), 0);
        let (all, others, itself) = (64 + 1 + 64, 63 + 1 + 63, 3);
        // Without LDRs a logical destination names no vCPU in xAPIC mode.
        let addressed = if x2apic { 2 } else { 1 };
        assert_eq!(taken, all + others + itself + addressed);
    }
}

#[test]
fn a_decision_under_the_mask_and_its_reasons_allocate_nothing() {
    let mut policy = InjectionPolicy::new();
    let mut lapics = machine(true);
    let work = || {
        for event in [Event::Smi, Event::Nmi, Event::Nmi, Event::ExtInt] {
            let _ = policy.arrive(event);
        }
        let closed = Readiness {
            masked: true,
            ..Readiness::default()
        };
        for vcpu in [Readiness::MASKED, closed] {
            let decision = policy.decide(&vcpu, ProcessorPriority::ZERO);
            assert!(decision.blocked().is_some());
        }
        while let Decision::Inject(event) = policy.decide(&Readiness::OPEN, ProcessorPriority::ZERO)
        {
            policy.injected(event).expect("it waited");
        }
        let lapic = lapics.get_mut(TARGET).expect("a vCPU");
        let _ = lapic.signal(LocalSource::Thermal);
        let _ = lapic.set_lint0(true);
        let _ = lapic.set_lint1(true);
        let _ = black_box(lapic.decide(&Readiness::MASKED));
    };
    assert_eq!(allocations(work), 0);
}

#[test]
fn registers_timers_and_states_allocate_nothing() {
    for x2apic in [false, true] {
        let mut lapics = machine(x2apic);
        let mut pit = Pit::new();
        let mut ioapic = IoApic::default();
        let work = || {
            let lapic = lapics.get_mut(TARGET).expect("a vCPU");
            // Every register there is and is not, whatever comes of it.
            for slot in 0..=0xff_u16 {
                let (offset, msr) = (slot << 4, 0x800 + u32::from(slot));
                let mut data = [0; 4];
                lapic.mmio_read(offset, &mut data, NOW);
                let _ = lapic.read_msr(msr, NOW);
            }
            let _ = write(lapic, 0x320, 0x2_00ec);
            let _ = write(lapic, 0x3e0, 0b1011);
            let _ = write(lapic, 0x380, 1000);
            assert!(lapic.advance(LATER) > 0);
            black_box(lapic.next_deadline(LATER));
            let state = lapic.save();
            lapic.restore(&state).expect("its own state");
            black_box(lapics.refresh(TARGET)).expect("a vCPU");
            lapics.advance(LATER, |_| ());

            for byte in [0xa9, 0x04] {
                pit.write(NOW, 0x40, &[byte]);
            }
            let _ = black_box(pit.irq0(LATER));
            black_box(pit.next_deadline());
            let state = ioapic.save();
            ioapic.restore(&state).expect("its own state");
        };
        assert_eq!(allocations(work), 0);
    }
}
