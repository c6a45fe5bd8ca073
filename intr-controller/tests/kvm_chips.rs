//! The states of KVM's own chips, from a real KVM, become ours and go back: `KVM_GET_IRQCHIP` and
//! `KVM_GET_PIT2` of a virtual machine that has them.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test machine that cannot be made is a failed test"
)]

mod kvms_chips;

use intr_controller::GuestTime;
use intr_controller::ioapic::{IoApic, IoApicPin, IoApicState, IoApicVersion};
use intr_controller::pic::{Pic, PicPin, PicState};
use intr_controller::pit::{Pit, PitChannelState, PitState};
use kvm_bindings::{kvm_pic_state, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use kvms_chips::{ioapic_of, monotonic_ns, pics, set_ioapic, set_pics};

fn machine() -> VmFd {
    let kvm = Kvm::new().expect("/dev/kvm");
    let vm = kvm.create_vm().expect("a virtual machine");
    vm.create_irq_chip().expect("KVM's chips");
    vm.create_pit2(kvm_pit_config::default())
        .expect("KVM's PIT");
    vm
}

fn ours(states: &[kvm_pic_state; 2]) -> Pic {
    let [master, slave] = states;
    let state = PicState::from_kvm(master, slave).expect("KVM's state is a chip's");
    let mut pic = Pic::new();
    pic.restore(&state).expect("and our own");
    pic
}

#[test]
fn kvms_8259a_pair_at_power_on_is_ours() {
    assert_eq!(ours(&pics(&machine())), Pic::new());
}

#[test]
fn lines_of_kvms_8259a_pair_become_requests_of_the_emulated_one() {
    let vm = machine();
    for gsi in [4, 12] {
        vm.set_irq_line(gsi, true).expect("KVM_IRQ_LINE");
    }
    let mut pic = ours(&pics(&vm));
    for (pin, vector) in [(12, 0x04), (4, 0x04)] {
        assert!(pic.line(PicPin::new(pin).unwrap()));
        let acknowledge = pic.acknowledge();
        assert_eq!(acknowledge.pin, PicPin::new(pin).ok());
        assert_eq!(acknowledge.vector, vector, "both bases are 0");
        let _ = pic.write(0xa0, &[0x20]);
        let _ = pic.write(0x20, &[0x20]);
    }
    assert!(!pic.intr());
}

#[test]
fn our_8259a_pair_in_the_middle_of_a_handler_is_taken_by_kvm_and_comes_back() {
    let mut pic = Pic::new();
    for (port, base, wiring) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
        let _ = pic.write(port, &[0x11]);
        for word in [base, wiring, 0x01] {
            let _ = pic.write(port + 1, &[word]);
        }
    }
    let _ = pic.write(0x4d0, &[0x20, 0x0c]);
    let _ = pic.write(0x20, &[0xc6]);
    pic.set_line(PicPin::new(11).unwrap(), true);
    assert_eq!(pic.acknowledge().vector, 0x3b);
    pic.set_line(PicPin::new(1).unwrap(), true);

    let vm = machine();
    set_pics(&vm, pic.save().to_kvm().unwrap());
    assert_eq!(ours(&pics(&vm)), pic);
}

#[test]
fn our_ioapic_with_a_level_in_service_is_taken_by_kvm_and_comes_back() {
    let mut ioapic = IoApic::new(IoApicVersion::V11, Default::default());
    for (index, value) in [
        (0x1b, 0x0100_0000),
        (0x1a, 0xa041),
        (0x10, 0x0031),
        (0, 9 << 24),
    ] {
        let _ = ioapic.write_register(0x00, index, |_| {});
        let _ = ioapic.write_register(0x10, value, |_| {});
    }
    let message = ioapic.set_line(IoApicPin::new(5).unwrap(), true);
    assert_eq!(message.map(|message| message.vector), Some(0x41));

    let vm = machine();
    set_ioapic(&vm, ioapic.save().to_kvm().unwrap());
    let back = IoApicState::from_kvm(&ioapic_of(&vm), IoApicVersion::V11).unwrap();
    assert!(back.unsent.is_empty());
    assert_eq!(back.state, ioapic.save());
}

#[test]
fn kvms_ioapic_at_power_on_is_ours() {
    let state = ioapic_of(&machine());
    let state = IoApicState::from_kvm(&state, IoApicVersion::V11).unwrap();
    let ours = IoApic::new(IoApicVersion::V11, Default::default());
    assert_eq!(state.state, ours.save());
}

#[test]
fn kvms_pit_at_power_on_is_ours() {
    let now = GuestTime::from_ns(7_000_000);
    let state = machine().get_pit2().expect("KVM_GET_PIT2");
    let mut ours = Pit::new();
    ours.reset(now);
    assert_eq!(
        PitState::from_kvm(&state, now, monotonic_ns()),
        Ok(ours.save())
    );
}

#[test]
fn our_programmed_pit_is_taken_by_kvm_and_comes_back() {
    let now = GuestTime::from_ns(7_000_000);
    let mut pit = Pit::new();
    pit.write(now, 0x61, &[0x03]);
    for (control, port, count) in [(0x34, 0x40, 0xe89b_u16), (0xb6, 0x42, 0x1234)] {
        pit.write(now, 0x43, &[control]);
        for byte in count.to_le_bytes() {
            pit.write(now, port, &[byte]);
        }
    }
    let later = GuestTime::from_ns(7_100_000);
    let _ = pit.irq0(later);
    pit.read(later, 0x42, &mut [0]);

    let vm = machine();
    let saved = pit.save();
    vm.set_pit2(&saved.to_kvm(monotonic_ns()))
        .expect("KVM_SET_PIT2");
    let state = vm.get_pit2().expect("KVM_GET_PIT2");
    let back = PitState::from_kvm(&state, later, monotonic_ns()).unwrap();
    // KVM starts every count again when it is set (i8254.c, `kvm_vm_ioctl_set_pit2`), and
    // channel 0's once more when it comes back. All else is what it was.
    assert_eq!(back.channels[0].phase, 0);
    for (back, saved) in back.channels.iter().zip(&saved.channels).step_by(2) {
        let at_its_phase = PitChannelState {
            phase: saved.phase,
            ..*back
        };
        assert_eq!(at_its_phase, *saved);
    }
    assert_eq!(back.port_61, saved.port_61);
}
