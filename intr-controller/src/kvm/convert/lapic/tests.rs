use core::num::NonZeroU64;

use kvm_bindings::{KVM_CAP_X2APIC_API, Msrs, kvm_enable_cap, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::*;
use crate::{DeliveryMode, Event, InterruptMessage, Readiness, TriggerMode, Vector};

fn at(ns: u64) -> GuestTime {
    GuestTime::from_ns(ns)
}

fn config(apic_id: u32) -> LapicConfig {
    LapicConfig {
        // What a KVM with its own IOAPIC says.
        eoi_suppression: false,
        ..LapicConfig::new(
            apic_id,
            apic_id == 0,
            NonZeroU64::new(1_000_000_000).unwrap(),
        )
    }
}

fn store(lapic: &mut Lapic, offset: u16, value: u32) {
    let _ = lapic.mmio_write(offset, &value.to_le_bytes(), at(0));
}

fn fixed(vector: u8, trigger_mode: TriggerMode) -> InterruptMessage {
    InterruptMessage {
        delivery_mode: DeliveryMode::Fixed,
        trigger_mode,
        level: true,
        vector,
        ..InterruptMessage::default()
    }
}

/// Mid-handler, with an armed periodic timer.
fn busy(apic_id: u32) -> Lapic {
    let mut lapic = Lapic::new(config(apic_id));
    for (offset, value) in [
        (0x0f0, 0x1fe),
        (0x080, 0x12),
        (0x0d0, 0x0400_0000),
        (0x0e0, 0x0fff_ffff),
        (0x310, 0x0500_0000),
        (0x320, 0x2_00ec),
        (0x350, 0x81),
        (0x370, 0xfe),
        (0x3e0, 3),
        (0x380, 1_000_000),
    ] {
        store(&mut lapic, offset, value);
    }
    let _ = lapic.accept(&fixed(0xa1, TriggerMode::Level));
    lapic
        .injected(Event::Fixed(Vector::new(0xa1).unwrap()))
        .unwrap();
    let _ = lapic.accept(&fixed(0xb1, TriggerMode::Edge));
    lapic
}

/// What a conversion keeps: totals begin anew.
fn carried(lapic: &Lapic) -> LapicState {
    let mut state = lapic.save();
    state.policy.counters = Counters {
        arrived: lapic.policy().pending().len(),
        ..Counters::default()
    };
    state
}

#[test]
fn a_busy_apic_comes_back_exactly() {
    let lapic = busy(0);
    // A whole number of counts, so that nothing is between two.
    let now = at(16 * 1000);
    let kvm = KvmLapic::new(&lapic, X2ApicFormat::Legacy, now);
    assert_eq!(kvm.state(&config(0), now), Ok(carried(&lapic)));
}

#[test]
fn in_x2apic_mode_too_in_both_formats() {
    for (id, format, shown) in [
        (3, X2ApicFormat::Legacy, 0x0300_0000),
        (0x123, X2ApicFormat::Full, 0x123),
    ] {
        let mut lapic = busy(id);
        let base = lapic.apic_base();
        let _ = lapic.write_msr(0x1b, base | 0x400, at(0)).unwrap();
        let _ = lapic
            .write_msr(0x830, 0x0000_0123_0000_4041, at(0))
            .unwrap();
        let kvm = KvmLapic::new(&lapic, format, at(0));
        let bytes = kvm
            .page
            .regs
            .map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()));
        let register =
            |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!(register(0x20), shown);
        assert_eq!(register(0xd0), (id >> 4) << 16 | 1 << (id & 15));
        assert_eq!((register(0x300), register(0x310)), (0x4041, 0x123));
        assert_eq!(kvm.state(&config(id), at(0)), Ok(carried(&lapic)));
    }
}

#[test]
fn an_armed_deadline_is_carried_beside_the_page() {
    let mut lapic = busy(0);
    store(&mut lapic, 0x320, 0x4_00ec);
    let _ = lapic.write_msr(0x6e0, 5_000_000, at(0)).unwrap();
    let kvm = KvmLapic::new(&lapic, X2ApicFormat::Legacy, at(100));
    assert_eq!(kvm.tsc_deadline, 5_000_000);
    assert_eq!(kvm.state(&config(0), at(100)), Ok(carried(&lapic)));
}

#[test]
fn an_expired_one_shot_is_not_fired_again_by_kvm() {
    let mut lapic = busy(0);
    store(&mut lapic, 0x320, 0xec);
    let kvm = KvmLapic::new(&lapic, X2ApicFormat::Legacy, at(u64::MAX / 2));
    let state = kvm.state(&config(0), at(0)).unwrap();
    assert_eq!((state.timer_initial, state.timer_expires_ns), (0, None));
    assert_eq!(state.policy.fixed[3] & 1 << 0x2c, 1 << 0x2c, "0xec waits");
}

#[test]
fn a_page_that_the_configuration_cannot_have_is_refused_by_field() {
    let kvm = KvmLapic::new(&busy(0), X2ApicFormat::Legacy, at(0));
    let refused = |change: fn(&mut KvmLapic), field: &str| {
        let mut kvm = kvm.clone();
        change(&mut kvm);
        let error = kvm.state(&config(0), at(0)).unwrap_err();
        let text = alloc::string::ToString::to_string(&error);
        assert!(text.starts_with(field), "{text}");
    };
    refused(|kvm| kvm.apic_base |= 1, "apic_base");
    refused(|kvm| kvm.tsc_deadline = 7, "tsc_deadline");
    refused(|kvm| kvm.nmis = 3, "policy");
    refused(|kvm| kvm.page.regs[0xf1] = 0x11, "spurious");
    refused(|kvm| kvm.page.regs[0x3e0] = 4, "timer_divide");
}

fn vcpu(format: X2ApicFormat) -> (VmFd, VcpuFd) {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    if format == X2ApicFormat::Full {
        vm.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_X2APIC_API,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        })
        .unwrap();
    }
    let vcpu = vm.create_vcpu(0).unwrap();
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .unwrap();
    vcpu.set_cpuid2(&cpuid).unwrap();
    (vm, vcpu)
}

/// Into a real KVM and out again, by the documented order.
fn through_kvm(vcpu: &VcpuFd, kvm: &KvmLapic) -> KvmLapic {
    let mut sregs = vcpu.get_sregs().unwrap();
    sregs.apic_base = kvm.apic_base;
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_lapic(&kvm.page).unwrap();
    let deadline = |data| kvm_msr_entry {
        index: 0x6e0,
        data,
        ..kvm_msr_entry::default()
    };
    let msrs = Msrs::from_entries(&[deadline(kvm.tsc_deadline)]).unwrap();
    assert_eq!(vcpu.set_msrs(&msrs).unwrap(), 1);
    let mut msrs = Msrs::from_entries(&[deadline(0)]).unwrap();
    assert_eq!(vcpu.get_msrs(&mut msrs).unwrap(), 1);
    KvmLapic {
        page: vcpu.get_lapic().unwrap(),
        apic_base: vcpu.get_sregs().unwrap().apic_base,
        tsc_deadline: msrs.as_slice()[0].data,
        ..kvm.clone()
    }
}

#[test]
fn kvm_takes_the_state_and_gives_it_back() {
    for (format, x2apic) in [
        (X2ApicFormat::Legacy, false),
        (X2ApicFormat::Legacy, true),
        (X2ApicFormat::Full, true),
    ] {
        let (_vm, vcpu) = vcpu(format);
        let mut lapic = busy(0);
        if x2apic {
            let base = lapic.apic_base();
            let _ = lapic.write_msr(0x1b, base | 0x400, at(0)).unwrap();
        }
        // Masked and stopped: KVM's own time goes on while this test looks.
        store(&mut lapic, 0x320, 0x1_00ec);
        store(&mut lapic, 0x380, 0);
        if x2apic {
            let _ = lapic.write_msr(0x832, 0x1_00ec, at(0)).unwrap();
            let _ = lapic.write_msr(0x838, 0, at(0)).unwrap();
        }
        let kvm = through_kvm(&vcpu, &KvmLapic::new(&lapic, format, at(0)));
        assert_eq!(
            kvm.state(&config(0), at(0)),
            Ok(carried(&lapic)),
            "{format:?} {x2apic}"
        );
    }
}

#[test]
fn kvm_goes_on_with_a_periodic_timer_where_it_was() {
    let (_vm, vcpu) = vcpu(X2ApicFormat::Legacy);
    let mut lapic = busy(0);
    // Divisor 16: a period of 1000 s, of which 250 s have passed.
    store(&mut lapic, 0x320, 0x3_00ec);
    store(&mut lapic, 0x380, 62_500_000);
    store(&mut lapic, 0x3e0, 0xa);
    let period = 62_500_000u64 * 128;
    let now = at(period / 4);
    let kvm = through_kvm(&vcpu, &KvmLapic::new(&lapic, X2ApicFormat::Legacy, now));
    let state = kvm.state(&config(0), now).unwrap();
    let expires = state.timer_expires_ns.unwrap();
    // KVM's clock ran for less than a second between the two ioctls.
    assert!(
        (period - 1_000_000_000..=period).contains(&expires),
        "{expires} of {period}"
    );
}

#[test]
fn an_open_vcpu_takes_what_waited_in_kvm() {
    let (_vm, vcpu) = vcpu(X2ApicFormat::Legacy);
    let kvm = KvmLapic::new(&busy(0), X2ApicFormat::Legacy, at(0));
    let kvm = through_kvm(&vcpu, &kvm);
    let mut lapic = Lapic::new(config(0));
    lapic
        .restore(&kvm.state(&config(0), at(0)).unwrap())
        .unwrap();
    let waits = Event::Fixed(Vector::new(0xb1).unwrap());
    assert_eq!(
        lapic.decide(&Readiness::OPEN),
        crate::Decision::Inject(waits)
    );
}
