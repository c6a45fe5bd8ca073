//! The kernel-irqchip adapter on the real `/dev/kvm`: what waits is seen with its reason, is not
//! delivered while masked, and is delivered exactly once afterwards.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop at the first thing that does not hold"
)]

mod guest;
#[path = "../real_mode/mod.rs"]
mod real_mode;

use guest::{Guest, PIC_BASE, PIC_LEVEL_INPUT, put, set_in_service};
use intr_controller::kvm::{CreateError, KernelIrqchip, MsiOutcome, observe};
use intr_controller::{
    Activity, BlockReasons, Decision, Event, Gsi, MsiMessage, NMI_LIMIT, VectorSet,
};
use kvm_bindings::KVM_CAP_X86_SMM;
use kvm_ioctls::Kvm;
use real_mode::{FLAGS, FLAGS_IF, is_pvm, vector};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Steps that are enough for KVM to deliver whatever it means to.
const STEPS: usize = 200;

fn fixed(number: u8) -> Event {
    Event::Fixed(vector(number))
}

/// What is in service when a handler has run and has not written EOI (SDM 3A, "Interrupt
/// Acceptance for Fixed Interrupts": the vector moves from IRR to ISR).
///
/// kvm_pvm deviates: in real mode it delivers without setting the ISR bit, as if at once ended.
fn in_service_after(number: u8) -> VectorSet {
    if is_pvm() {
        VectorSet::EMPTY
    } else {
        VectorSet::from_iter([vector(number)])
    }
}

#[test]
fn without_the_mask_the_interrupt_lands() {
    let mut guest = Guest::new(FLAGS_IF);
    assert_eq!(guest.step(STEPS), 0);
    assert_eq!(guest.observe().decision, Decision::Idle);

    guest.msi(0x40);
    assert_eq!(guest.observe().decision, Decision::Inject(fixed(0x40)));
    guest.step(STEPS);
    assert_eq!(guest.log(), [0x40]);
    let after = guest.observe();
    assert_eq!(after.in_service, in_service_after(0x40));
    assert_eq!(after.decision, Decision::Idle);
}

#[test]
fn a_masked_interrupt_is_seen_withheld_and_delivered_once() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.mask(true);
    guest.msi(0x40);
    let observed = guest.observe();
    assert_eq!(observed.to_string(), "vector 0x40 pending; blocked: masked");
    assert!(matches!(observed.decision, Decision::Blocked(_)));

    assert_eq!(guest.step(STEPS), 0);
    assert_eq!(guest.log(), []);
    assert_eq!(guest.observe(), observed);

    guest.mask(false);
    assert_eq!(guest.observe().decision, Decision::Inject(fixed(0x40)));
    guest.step(STEPS);
    assert_eq!(guest.log(), [0x40]);
    guest.edit_lapic(|page| set_in_service(page, None));
    guest.step(STEPS);
    assert_eq!(guest.log(), [0x40]);
}

#[test]
fn if_0_is_reported_with_and_without_the_mask() {
    let mut guest = Guest::new(FLAGS);
    guest.msi(0x40);
    assert_eq!(
        guest.observe().to_string(),
        "vector 0x40 pending; blocked: IF=0"
    );
    guest.step(STEPS);
    assert_eq!(guest.log(), []);

    guest.mask(true);
    assert_eq!(
        guest.observe().to_string(),
        "vector 0x40 pending; blocked: masked, IF=0"
    );
    guest.set_flags(FLAGS_IF);
    guest.step(STEPS);
    assert_eq!(guest.log(), []);
    guest.mask(false);
    guest.step(STEPS);
    assert_eq!(guest.log(), [0x40]);
}

#[test]
fn the_same_vector_merges_and_different_ones_are_delivered_by_priority() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.mask(true);
    for number in [0x41, 0x50, 0x41, 0x50, 0x41] {
        guest.msi(number);
    }
    let observed = guest.observe();
    assert_eq!(
        *observed.pending.fixed(),
        VectorSet::from_iter([vector(0x41), vector(0x50)])
    );
    guest.step(STEPS);
    assert_eq!(guest.log(), []);

    guest.mask(false);
    guest.step(STEPS);
    if !is_pvm() {
        // Without an EOI the lower one waits for the higher.
        assert_eq!(guest.log(), [0x50]);
        assert_eq!(
            guest.observe().to_string(),
            "vector 0x41 pending; blocked: priority (PPR 0x50)"
        );
    }
    for _ in 0..2 {
        guest.edit_lapic(|page| set_in_service(page, None));
        guest.step(STEPS);
        assert_eq!(guest.log(), [0x50, 0x41]);
    }
}

#[test]
fn a_vector_in_service_holds_back_its_class_and_those_below() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.edit_lapic(|page| set_in_service(page, Some(0x52)));
    guest.msi(0x41);
    guest.msi(0x5f);
    assert_eq!(
        guest.observe().to_string(),
        "vector 0x5f pending; blocked: priority (PPR 0x50)"
    );
    guest.step(STEPS);
    assert_eq!(guest.log(), []);
    guest.msi(0x60);
    assert_eq!(guest.observe().decision, Decision::Inject(fixed(0x60)));
    guest.step(STEPS);
    assert_eq!(guest.log(), [0x60]);
}

#[test]
fn the_task_priority_is_seen() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.edit_lapic(|page| put(page, 0x080, 0x45));
    guest.msi(0x4f);
    assert_eq!(
        guest.observe().to_string(),
        "vector 0x4f pending; blocked: priority (PPR 0x45)"
    );
    guest.step(STEPS);
    assert_eq!(guest.log(), []);
    guest.edit_lapic(|page| put(page, 0x080, 0x3f));
    guest.step(STEPS);
    assert_eq!(guest.log(), [0x4f]);
}

#[test]
fn a_masked_nmi_is_seen_withheld_and_delivered_once() {
    let mut guest = Guest::new(FLAGS);
    guest.mask(true);
    guest.vcpu.nmi().unwrap();
    assert_eq!(guest.observe().to_string(), "NMI pending; blocked: masked");
    assert_eq!(guest.step(STEPS), 0);
    assert_eq!(guest.log(), []);
    guest.mask(false);
    guest.step(STEPS);
    assert_eq!(guest.log(), [0x02]);
    assert_eq!(guest.observe().decision, Decision::Idle);
}

#[test]
fn of_many_masked_nmis_two_are_delivered() {
    let mut guest = Guest::new(FLAGS);
    guest.mask(true);
    for _ in 0..5 {
        guest.vcpu.nmi().unwrap();
    }
    guest.step(STEPS);
    assert_eq!(guest.log(), []);
    // Kernels before 6.3 report whether, not how many.
    assert!((1..=NMI_LIMIT).contains(&guest.observe().pending.nmis()));
    guest.mask(false);
    guest.step(STEPS);
    assert_eq!(guest.log(), [0x02, 0x02]);
}

#[test]
fn a_masked_smi_is_seen_and_withheld() {
    let mut guest = Guest::new(FLAGS);
    guest.mask(true);
    if guest.chip.vm().check_extension_raw(KVM_CAP_X86_SMM.into()) == 0 {
        // A KVM built without SMM: refused, and not ignored.
        assert_eq!(guest.vcpu.smi().unwrap_err().errno(), libc::ENOTTY);
        return;
    }
    guest.vcpu.smi().unwrap();
    assert_eq!(guest.observe().to_string(), "SMI pending; blocked: masked");
    assert_eq!(guest.step(STEPS), 0);
    let observed = guest.observe();
    assert!(observed.pending.smi() && !observed.vcpu.in_smm);
}

#[test]
fn a_masked_8259a_interrupt_is_seen_withheld_and_delivered_once() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.enable_pic();
    assert_eq!(guest.observe().decision, Decision::Idle);
    guest.mask(true);
    for level in [true, false, true, false] {
        guest.chip.set_irq_line(Gsi(3), level).unwrap();
    }
    assert_eq!(
        guest.observe().to_string(),
        "ExtINT pending; blocked: masked"
    );
    assert_eq!(guest.step(STEPS), 0);
    assert_eq!(guest.log(), []);
    guest.mask(false);
    guest.step(STEPS);
    assert_eq!(guest.log(), [PIC_BASE + 3]);
    assert_eq!(guest.observe().decision, Decision::Idle);
}

#[test]
fn an_8259a_behind_a_masked_lint0_is_not_pending() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.enable_pic();
    guest.edit_lapic(|page| put(page, 0x350, 0x1_0700));
    guest.chip.set_irq_line(Gsi(3), true).unwrap();
    assert_eq!(guest.observe().decision, Decision::Idle);
    guest.step(STEPS);
    assert_eq!(guest.log(), []);
}

#[test]
fn an_irqfd_raises_its_line_until_it_is_unregistered() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.enable_pic();
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    guest.chip.register_irqfd(&fd, Gsi(4)).unwrap();
    assert!(guest.chip.register_irqfd(&fd, Gsi(4)).is_err());
    fd.write(1).unwrap();
    // KVM raises such a line from a work queue, so it may take a while.
    for _ in 0..1_000 {
        guest.step(STEPS);
        if !guest.log().is_empty() {
            break;
        }
    }
    guest.step(STEPS);
    assert_eq!(guest.log(), [PIC_BASE + 4]);

    guest.chip.unregister_irqfd(&fd, Gsi(4)).unwrap();
    fd.write(1).unwrap();
    guest.step(10 * STEPS);
    assert_eq!(guest.log(), [PIC_BASE + 4]);
}

#[test]
fn a_level_irqfd_is_lowered_and_reported_by_the_eoi() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.enable_pic();
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    let resample = EventFd::new(EFD_NONBLOCK).unwrap();
    guest
        .chip
        .register_level_irqfd(&fd, &resample, Gsi(u32::from(PIC_LEVEL_INPUT)))
        .unwrap();
    assert!(resample.read().is_err());
    fd.write(1).unwrap();
    for _ in 0..1_000 {
        guest.step(STEPS);
        if !guest.log().is_empty() {
            break;
        }
    }
    guest.step(STEPS);
    assert_eq!(guest.log(), [PIC_BASE + PIC_LEVEL_INPUT]);
    assert_eq!(resample.read().unwrap(), 1);
}

#[test]
fn halted_and_masked_the_interrupt_ends_hlt_and_stays_pending() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.set_mp_state(kvm_bindings::KVM_MP_STATE_HALTED);
    let asleep = guest.observe();
    assert_eq!(asleep.vcpu.activity, Activity::Halted);
    assert_eq!(asleep.decision, Decision::Idle);

    guest.mask(true);
    guest.msi(0x40);
    assert_eq!(
        guest.observe().to_string(),
        "vector 0x40 pending; blocked: masked; ends HLT"
    );
    assert_eq!(guest.step(STEPS), 0);
    assert_eq!(guest.log(), []);
    let awake = guest.observe();
    assert_eq!(awake.vcpu.activity, Activity::Running);
    assert!(matches!(awake.decision, Decision::Blocked(_)));
    guest.mask(false);
    guest.step(STEPS);
    assert_eq!(guest.log(), [0x40]);
}

#[test]
fn the_sti_shadow_is_seen() {
    let guest = Guest::new(FLAGS_IF);
    guest.msi(0x40);
    let mut events = guest.vcpu.get_vcpu_events().unwrap();
    events.interrupt.shadow = u8::try_from(kvm_bindings::KVM_X86_SHADOW_INT_STI).unwrap();
    events.flags = kvm_bindings::KVM_VCPUEVENT_VALID_SHADOW;
    guest.vcpu.set_vcpu_events(&events).unwrap();
    let blocked = *guest.observe().decision.blocked().unwrap();
    assert_eq!(blocked.event, fixed(0x40));
    // SVM has one bit for both shadows.
    assert_eq!(
        blocked.reasons - BlockReasons::MOV_SS_SHADOW,
        BlockReasons::STI_SHADOW
    );
}

#[test]
fn observing_changes_nothing() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.enable_pic();
    guest.mask(true);
    guest.msi(0x40);
    guest.msi(0x91);
    guest.vcpu.nmi().unwrap();
    guest.chip.set_irq_line(Gsi(5), true).unwrap();
    let first = guest.observe();
    let state = |guest: &Guest| {
        (
            guest.vcpu.get_lapic().unwrap().regs,
            guest.vcpu.get_vcpu_events().unwrap(),
            guest.vcpu.get_regs().unwrap(),
            guest.vcpu.get_sregs().unwrap(),
            guest.vcpu.get_mp_state().unwrap(),
        )
    };
    let before = state(&guest);
    for _ in 0..100 {
        assert_eq!(guest.observe(), first);
    }
    assert_eq!(state(&guest), before);
    assert_eq!(first.pending.len(), 4);
}

#[test]
fn an_application_processor_waits_for_its_sipi() {
    let guest = Guest::new(FLAGS_IF);
    let second = guest.chip.vm().create_vcpu(1).unwrap();
    second.nmi().unwrap();
    let observed = observe(&second, &guest.chip, false).unwrap();
    assert_eq!(
        observed.to_string(),
        "NMI pending; blocked: waiting for a start-up IPI"
    );
}

#[test]
fn a_message_to_an_apic_that_does_not_exist_is_reported() {
    let guest = Guest::new(FLAGS_IF);
    let message = MsiMessage {
        address: 0xfee0_7000,
        data: 0x40,
    };
    assert_eq!(
        guest.chip.signal_msi(message).unwrap(),
        MsiOutcome::NotAccepted
    );
}

#[test]
fn a_software_disabled_apic_accepts_nothing_new_and_is_seen() {
    let guest = Guest::new(FLAGS_IF);
    guest.edit_lapic(|page| put(page, 0x0f0, 0xff));
    let message = MsiMessage {
        address: 0xfee0_0000,
        data: 0x40,
    };
    let _ = guest.chip.signal_msi(message).unwrap();
    let observed = guest.observe();
    assert!(observed.apic_enabled && !observed.apic_software_enabled);
    assert_eq!(observed.decision, Decision::Idle);
}

#[test]
fn the_chips_are_made_once_and_before_the_vcpus() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let _chip = KernelIrqchip::new(&vm).unwrap();
    assert_eq!(
        KernelIrqchip::new(&vm).map(|_| ()),
        Err(CreateError::Irqchip(kvm_ioctls::Error::new(libc::EEXIST)))
    );

    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let _vcpu = vm.create_vcpu(0).unwrap();
    assert_eq!(
        KernelIrqchip::new(&vm).map(|_| ()),
        Err(CreateError::Irqchip(kvm_ioctls::Error::new(libc::EINVAL)))
    );
}
