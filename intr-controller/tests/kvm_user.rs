//! The adapter for chips in userspace on the real `/dev/kvm`: what KVM was given and the guest has not
//! taken comes back when the mask goes on, and all that arrives is delivered exactly once.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first thing that does not hold"
)]

mod real_mode;

use std::thread;
use std::time::Duration;

use intr_controller::kvm::{Observation, UserEntry, UserVcpu};
use intr_controller::{
    Acceptance, BlockReasons, Counters, DestinationFormat, Effect, Event, GeneralProtection,
    GuestTime, LapicConfig, MsiMessage, VectorSet,
};
use kvm_bindings::{
    KVM_CAP_X86_SMM, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_MAX_CPUID_ENTRIES,
    KVM_VCPUEVENT_VALID_NMI_PENDING, Msrs, kvm_guest_debug, kvm_msr_entry, kvm_vcpu_events,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use real_mode::{FLAGS, FLAGS_IF, LOOP, RealMode, in_loop, vector};

/// Steps that are enough for KVM to deliver whatever it means to.
const STEPS: usize = 200;
/// A handler says here that it is done: no guest of real mode reaches the EOI register.
const DONE_PORT: u8 = 0xe0;
/// OUT DONE_PORT, AL.
const DONE: [u8; 2] = [0xe6, DONE_PORT];
const NMI: u8 = 2;

/// Registers of the local APIC (SDM 3A, table "Local APIC Register Address Map").
const TPR: u16 = 0x080;
const EOI: u16 = 0x0b0;
const SPURIOUS: u16 = 0x0f0;
const LVT_TIMER: u16 = 0x320;
const LVT_LINT0: u16 = 0x350;
/// IA32_TIME_STAMP_COUNTER and IA32_TSC_DEADLINE.
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// IA32_APIC_BASE, with the bootstrap processor's and the enable bit.
const MSR_APIC_BASE: u32 = 0x1b;
const APIC_BASE: u64 = 0xfee0_0900;

struct Guest {
    vcpu: VcpuFd,
    user: UserVcpu,
    vm: VmFd,
    memory: RealMode,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// A step ended here.
    At(u64),
    Halted,
    /// There was nothing to run.
    Asleep,
    /// It was kicked before it began, or an interrupt window opened.
    Nothing,
    Acknowledge,
}

impl Guest {
    /// A guest in its loop, with these RFLAGS, and an APIC that software has enabled.
    fn new(rflags: u64) -> Self {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        let memory = RealMode::new(&vm, |number| if number == NMI { &[] } else { &DONE });
        let vcpu = vm.create_vcpu(0).unwrap();
        memory.start(&vcpu, rflags);
        let hz = 1000 * u64::from(vcpu.get_tsc_khz().unwrap());
        let hz = hz.try_into().unwrap();
        let mut guest = Self {
            vcpu,
            user: UserVcpu::new(LapicConfig::new(0, true, hz)),
            vm,
            memory,
        };
        guest.write(SPURIOUS, 0x1ff);
        guest
    }

    fn write(&mut self, register: u16, value: u32) {
        let lapic = self.user.lapic_mut();
        let effect = lapic.mmio_write(register, &value.to_le_bytes(), GuestTime::ZERO);
        assert!(matches!(effect, Effect::None | Effect::IdentityChanged));
    }

    /// Something arrives, as a message with this data.
    fn message(&mut self, data: u32) -> Acceptance {
        let message = MsiMessage {
            address: 0xfee0_0000,
            data,
        };
        let message = message.decode(DestinationFormat::default()).unwrap();
        self.user.lapic_mut().accept(&message)
    }

    fn arrive(&mut self, number: u8) {
        assert_eq!(self.message(number.into()), Acceptance::Accepted);
    }

    fn nmi(&mut self) {
        assert_eq!(self.message(0x400), Acceptance::Accepted);
    }

    fn prepare(&mut self, masked: bool) -> UserEntry {
        self.prepare_at(masked, GuestTime::ZERO)
    }

    fn prepare_at(&mut self, masked: bool, now: GuestTime) -> UserEntry {
        self.user
            .prepare(&mut self.vcpu, masked, now, Duration::ZERO)
            .unwrap()
    }

    /// The guest's counter, as KVM shows it.
    fn tsc(&self) -> u64 {
        let entry = kvm_msr_entry {
            index: MSR_TSC,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).unwrap();
        assert_eq!(self.vcpu.get_msrs(&mut msrs), Ok(1));
        msrs.as_slice().first().unwrap().data
    }

    /// What the guest's WRMSR writes.
    fn set_wrmsr(&self, index: u32, value: u64) {
        let mut regs = self.vcpu.get_regs().unwrap();
        (regs.rcx, regs.rax, regs.rdx) = (index.into(), value & 0xffff_ffff, value >> 32);
        self.vcpu.set_regs(&regs).unwrap();
    }

    fn window(&mut self) -> bool {
        self.vcpu.get_kvm_run().request_interrupt_window != 0
    }

    fn run(&mut self) -> Left {
        let mut done = false;
        let left = match self.vcpu.run() {
            Ok(VcpuExit::Debug(debug)) => Left::At(debug.pc),
            Ok(VcpuExit::Hlt) => {
                self.user.halt();
                Left::Halted
            }
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::Intr) => Left::Nothing,
            Ok(VcpuExit::IoOut(port, _)) => {
                assert_eq!(port, u16::from(DONE_PORT));
                done = true;
                Left::Nothing
            }
            Err(error) if error.errno() == libc::EINTR => Left::Nothing,
            other => panic!("KVM_RUN: {other:?}"),
        };
        let cr8 = self.vcpu.get_kvm_run().cr8;
        self.user.returned(cr8);
        if done {
            self.write(EOI, 0);
            // KVM completes the access.
            self.vcpu.set_kvm_immediate_exit(1);
            let left = self.run();
            self.vcpu.set_kvm_immediate_exit(0);
            return left;
        }
        left
    }

    fn enter(&mut self, masked: bool) -> Left {
        self.enter_at(masked, GuestTime::ZERO)
    }

    fn enter_at(&mut self, masked: bool, now: GuestTime) -> Left {
        match self.prepare_at(masked, now) {
            UserEntry::Run => self.run(),
            UserEntry::Wait => Left::Asleep,
            UserEntry::Acknowledge => Left::Acknowledge,
            UserEntry::Restarted => panic!("no INIT was sent"),
        }
    }

    /// Prepares an entry, and is kicked before it begins.
    fn kicked(&mut self, masked: bool) {
        assert_eq!(self.prepare(masked), UserEntry::Run);
        self.vcpu.set_kvm_immediate_exit(1);
        assert_eq!(self.run(), Left::Nothing);
        self.vcpu.set_kvm_immediate_exit(0);
    }

    fn step(&mut self, masked: bool) -> Left {
        self.step_at(masked, GuestTime::ZERO)
    }

    fn step_at(&mut self, masked: bool, now: GuestTime) -> Left {
        let debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
            ..Default::default()
        };
        self.vcpu.set_guest_debug(&debug).unwrap();
        self.enter_at(masked, now)
    }

    /// An entry without a step.
    fn free(&mut self, masked: bool) -> Left {
        self.vcpu
            .set_guest_debug(&kvm_guest_debug::default())
            .unwrap();
        self.enter(masked)
    }

    /// Runs until HLT leaves the guest, or it waits in HLT.
    fn until_halted(&mut self, masked: bool) -> Left {
        for _ in 0..STEPS {
            match self.free(masked) {
                Left::Nothing => {}
                left => return left,
            }
        }
        panic!("it is never halted");
    }

    /// Steps; answers how many of the steps ended outside the loop.
    fn steps(&mut self, masked: bool, count: usize) -> usize {
        let outside = |left| matches!(left, Left::At(pc) if !in_loop(pc));
        (0..count).filter(|_| outside(self.step(masked))).count()
    }

    /// Until KVM has said that it takes an interrupt.
    fn open(&mut self) {
        self.steps(false, 1);
        for _ in 0..STEPS {
            if self.vcpu.get_kvm_run().ready_for_interrupt_injection != 0 {
                return;
            }
            self.steps(false, 1);
        }
        panic!("KVM is never ready for an interrupt");
    }

    fn log(&self) -> Vec<u8> {
        self.memory.log(&self.vcpu)
    }

    fn events(&self) -> kvm_vcpu_events {
        self.vcpu.get_vcpu_events().unwrap()
    }

    fn observe(&self, masked: bool) -> Observation {
        self.user.observe(&self.vcpu, masked).unwrap()
    }

    fn irr(&self) -> VectorSet {
        *self.user.lapic().policy().pending().fixed()
    }

    fn counters(&self) -> Counters {
        *self.user.lapic().policy().counters()
    }

    #[track_caller]
    fn assert_counters_add_up(&self) {
        let counters = self.counters();
        let accounted =
            counters.merged + counters.delivered + counters.withdrawn + counters.dropped;
        let waiting = self.user.lapic().policy().pending().len();
        assert_eq!(counters.arrived, accounted + waiting, "{counters:?}");
    }

    fn set_flags(&mut self, rflags: u64) {
        let mut regs = self.vcpu.get_regs().unwrap();
        regs.rflags = rflags;
        self.vcpu.set_regs(&regs).unwrap();
    }
}

#[test]
fn without_the_mask_the_interrupt_is_delivered_once() {
    let mut guest = Guest::new(FLAGS_IF);
    assert_eq!(guest.steps(false, STEPS), 0);
    guest.arrive(0x40);
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x40]);
    assert_eq!(*guest.user.lapic().in_service(), VectorSet::EMPTY);
    assert_eq!(guest.counters().delivered, 1);
    guest.assert_counters_add_up();
}

#[test]
fn an_interrupt_that_kvm_has_and_the_guest_has_not_comes_back_under_the_mask() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.open();
    guest.arrive(0x40);
    guest.kicked(false);
    let lent = guest.events().interrupt;
    assert_eq!((lent.injected, lent.nr), (1, 0x40));
    assert_eq!(guest.irr(), VectorSet::EMPTY);

    assert_eq!(guest.prepare(true), UserEntry::Run);
    assert_eq!(guest.events().interrupt.injected, 0);
    assert_eq!(guest.irr(), VectorSet::from_iter([vector(0x40)]));
    assert_eq!(*guest.user.lapic().in_service(), VectorSet::EMPTY);
    guest.assert_counters_add_up();
    assert_eq!(guest.steps(true, STEPS), 0);
    assert_eq!(guest.log(), []);

    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x40]);
    let counters = guest.counters();
    assert_eq!((counters.arrived, counters.delivered), (1, 1));
    guest.assert_counters_add_up();
}

/// The mask may have changed since, and the vCPU not been entered.
#[test]
fn what_is_observed_is_under_the_mask_of_now_and_not_of_the_last_entry() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.open();
    guest.arrive(0x40);
    let reports_mask = |guest: &Guest, masked| {
        let decision = guest.observe(masked).decision;
        let blocked = decision.blocked();
        blocked.is_some_and(|blocked| blocked.reasons.contains(BlockReasons::MASKED))
    };
    for last in [false, true] {
        if last {
            guest.kicked(true);
        }
        assert!(reports_mask(&guest, true), "entered masked: {last}");
        assert!(!reports_mask(&guest, false), "entered masked: {last}");
    }
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x40]);
}

#[test]
fn one_that_arrives_again_merges_with_the_one_that_comes_back() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.open();
    guest.arrive(0x40);
    guest.kicked(false);
    guest.arrive(0x40);
    assert_eq!(guest.steps(true, STEPS), 0);
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x40]);
    let counters = guest.counters();
    assert_eq!(
        (counters.arrived, counters.merged, counters.delivered),
        (2, 1, 1)
    );
}

#[test]
fn an_nmi_that_kvm_has_and_the_guest_has_not_comes_back_under_the_mask() {
    let mut guest = Guest::new(FLAGS);
    guest.steps(false, 1);
    guest.nmi();
    guest.kicked(false);
    assert_eq!(guest.user.lapic().policy().pending().nmis(), 0);
    assert_eq!(guest.events().nmi.pending, 1);

    assert_eq!(guest.prepare(true), UserEntry::Run);
    assert_eq!(guest.events().nmi.pending, 0);
    assert_eq!(guest.user.lapic().policy().pending().nmis(), 1);
    assert_eq!(guest.steps(true, STEPS), 0);
    assert_eq!(guest.log(), []);

    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [NMI]);
    assert_eq!(guest.counters().delivered, 1);
    guest.assert_counters_add_up();
}

/// As an exit in the middle of a delivery leaves it, a page of the stack that is not mapped: KVM has
/// it as injected and means to do so again.
#[test]
fn an_nmi_whose_delivery_was_interrupted_comes_back_under_the_mask() {
    let mut guest = Guest::new(FLAGS);
    guest.steps(false, 1);
    guest.nmi();
    assert_eq!(guest.prepare(false), UserEntry::Run);
    let mut events = guest.events();
    events.nmi.pending = 0;
    events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
    (events.nmi.injected, events.nmi.masked) = (1, 1);
    guest.vcpu.set_vcpu_events(&events).unwrap();

    assert_eq!(guest.prepare(true), UserEntry::Run);
    let nmi = guest.events().nmi;
    assert_eq!((nmi.injected, nmi.pending, nmi.masked), (0, 0, 0));
    assert_eq!(guest.steps(true, STEPS), 0);
    assert_eq!(guest.log(), []);

    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [NMI]);
    guest.assert_counters_add_up();
}

#[test]
fn an_smi_that_kvm_has_and_the_guest_has_not_comes_back_under_the_mask() {
    let mut guest = Guest::new(FLAGS);
    let smm = guest.vm.check_extension_raw(KVM_CAP_X86_SMM.into()) != 0;
    guest.steps(false, 1);
    assert_eq!(guest.message(0x200), Acceptance::Accepted);
    assert_eq!(guest.prepare(false), UserEntry::Run);
    assert_eq!(guest.events().smi.pending, smm.into());

    assert_eq!(guest.prepare(true), UserEntry::Run);
    assert_eq!(guest.events().smi.pending, 0);
    // Without SMM no handler takes it.
    assert_eq!(guest.user.lapic().policy().pending().smi(), smm);
    assert_eq!(guest.steps(true, STEPS), 0);
    guest.assert_counters_add_up();

    assert_eq!(guest.prepare(false), UserEntry::Run);
    assert_eq!(guest.events().smi.pending, smm.into());
}

#[test]
fn an_ext_int_that_kvm_has_and_the_guest_has_not_is_kept_under_the_mask() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.write(LVT_LINT0, 0x700);
    guest.open();
    let _ = guest.user.lapic_mut().set_lint0(true);
    assert_eq!(guest.enter(false), Left::Acknowledge);
    guest.user.inject_ext_int(&mut guest.vcpu, 0x71).unwrap();
    let _ = guest.user.lapic_mut().set_lint0(false);
    guest.kicked(false);
    assert_eq!(guest.events().interrupt.injected, 1);

    assert_eq!(guest.prepare(true), UserEntry::Run);
    assert_eq!(guest.events().interrupt.injected, 0);
    let seen = guest.observe(true);
    assert!(seen.pending.ext_int());
    let blocked = seen.decision.blocked().expect("it does not enter");
    assert_eq!(blocked.event, Event::ExtInt);
    assert!(blocked.reasons.contains(BlockReasons::MASKED));
    assert_eq!(guest.steps(true, STEPS), 0);
    assert_eq!(guest.log(), []);
    assert!(!guest.window());

    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x71]);
    assert!(!guest.observe(false).pending.ext_int());
    guest.steps(true, STEPS);
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x71]);
}

#[test]
fn an_ext_int_is_not_taken_for_the_fixed_interrupt_of_the_same_number() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.arrive(0x71);
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x71]);

    guest.write(LVT_LINT0, 0x700);
    guest.open();
    let _ = guest.user.lapic_mut().set_lint0(true);
    assert_eq!(guest.enter(false), Left::Acknowledge);
    guest.user.inject_ext_int(&mut guest.vcpu, 0x71).unwrap();
    let _ = guest.user.lapic_mut().set_lint0(false);
    guest.kicked(false);
    assert_eq!(guest.prepare(true), UserEntry::Run);
    assert_eq!(guest.irr(), VectorSet::EMPTY);
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x71, 0x71]);
    assert_eq!(*guest.user.lapic().in_service(), VectorSet::EMPTY);
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % end
    }
}

#[test]
fn over_random_masks_and_arrivals_each_vector_is_delivered_once_for_each_acceptance() {
    const VECTORS: [u8; 7] = [0x31, 0x38, 0x40, 0x41, 0x6f, 0xd0, 0xff];
    for seed in 1..=12 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut guest = Guest::new(FLAGS_IF);
        let mut accepted = [0_usize; 256];
        let mut masked = false;
        // The loop was left before the mask went on: a handler goes on.
        let mut in_handler = false;
        for _ in 0..400 {
            match random.below(8) {
                0..=2 => {
                    let number = VECTORS[usize::try_from(random.below(7)).unwrap()];
                    let acceptance = guest.message(number.into());
                    accepted[usize::from(number)] +=
                        usize::from(acceptance == Acceptance::Accepted);
                }
                3 if random.below(4) == 0 => {
                    let acceptance = guest.message(0x400);
                    accepted[usize::from(NMI)] += usize::from(acceptance == Acceptance::Accepted);
                }
                4 => {
                    masked = !masked;
                    in_handler = !in_loop(guest.vcpu.get_regs().unwrap().rip);
                    let lent = guest.events().interrupt;
                    if masked && lent.injected != 0 && guest.irr().contains(vector(lent.nr)) {
                        // It comes back, and the same vector has arrived since.
                        accepted[usize::from(lent.nr)] -= 1;
                    }
                    guest.kicked(masked);
                }
                5 => guest.kicked(masked),
                _ => {
                    let before = guest.log().len();
                    let count = usize::try_from(random.below(6)).unwrap();
                    let outside = guest.steps(masked, count);
                    if masked && !in_handler {
                        assert_eq!(outside, 0, "seed {seed}");
                        assert_eq!(guest.log().len(), before, "seed {seed}");
                    }
                }
            }
            guest.assert_counters_add_up();
        }
        guest.steps(false, 4 * STEPS);
        assert!(guest.user.lapic().policy().pending().is_empty());
        assert_eq!(*guest.user.lapic().in_service(), VectorSet::EMPTY);
        let log = guest.log();
        let ran = |number| log.iter().filter(|ran| **ran == number).count();
        for number in VECTORS {
            let accepted = accepted[usize::from(number)];
            assert_eq!(ran(number), accepted, "seed {seed}: {number:#x}");
        }
        // KVM merges those that come while the handler runs.
        assert!(ran(NMI) <= accepted[usize::from(NMI)], "seed {seed}");
        assert_eq!(
            ran(NMI) == 0,
            accepted[usize::from(NMI)] == 0,
            "seed {seed}"
        );
        assert!(log.len() > 20, "seed {seed}: {log:x?}");
    }
}

/// HLT; JMP back.
const HLT_LOOP: [u8; 3] = [0xf4, 0xeb, 0xfd];

#[test]
fn a_masked_hlt_ends_and_what_ended_it_waits_on() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.memory.write(LOOP, &HLT_LOOP);
    assert_eq!(guest.until_halted(true), Left::Halted);
    assert!(guest.user.is_halted());
    assert_eq!(guest.step(true), Left::Asleep);

    guest.arrive(0x40);
    assert_eq!(guest.prepare(true), UserEntry::Run);
    assert!(!guest.user.is_halted());
    assert_eq!(guest.irr(), VectorSet::from_iter([vector(0x40)]));
    assert_eq!(guest.step(true), Left::At(LOOP), "the JMP behind it");
    for _ in 0..3 {
        assert_eq!(guest.until_halted(true), Left::Halted);
        assert_eq!(guest.step(true), Left::At(LOOP), "it waits still");
    }
    assert_eq!(guest.log(), []);
    assert_eq!(guest.until_halted(false), Left::Halted);
    assert_eq!(guest.log(), [0x40]);
    assert_eq!(guest.until_halted(false), Left::Asleep);
}

/// Where the host's TSC is unstable (in the rig vmx it is), KVM shows a vCPU's counter as it stood at the last
/// exit, and lets it catch up at the next entry (x86.c, `kvm_arch_vcpu_load`, `tsc_catchup`): read
/// while the vCPU waits, it never reaches the deadline.
#[test]
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the counter is the host's, and so is the time that goes with it"
)]
fn a_halted_vcpu_is_woken_by_its_deadline_on_any_host() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.memory.write(LOOP, &HLT_LOOP);
    assert_eq!(guest.until_halted(false), Left::Halted);
    guest.write(LVT_TIMER, 0x4_0041);
    let begun = std::time::Instant::now();
    let now = || GuestTime::ZERO.saturating_add(begun.elapsed());
    for _ in 0..3 {
        let hz = guest.user.lapic().config().tsc.hz().get();
        let deadline = guest.tsc() + hz / 50;
        let armed = guest
            .user
            .write_msr(&guest.vcpu, MSR_TSC_DEADLINE, deadline, now());
        assert_eq!(armed, Ok(Effect::None));
        let mut looks = 0;
        while guest.prepare_at(false, now()) == UserEntry::Wait {
            looks += 1;
            assert!(looks < 20, "it is never woken");
            let at = guest.user.lapic().next_deadline(now()).unwrap();
            thread::sleep(at.saturating_since(now()));
        }
        assert_eq!(guest.run(), Left::Nothing, "its handler's end");
        assert_eq!(guest.until_halted(false), Left::Halted);
        assert!(guest.tsc() >= deadline);
    }
    assert_eq!(guest.log(), [0x41; 3]);
}

/// HLT; WRMSR; JMP back to HLT.
const HLT_WRMSR_LOOP: [u8; 5] = [0xf4, 0x0f, 0x30, 0xeb, 0xfb];

/// KVM does not report that a guest has written its counter. Forwards, an armed deadline comes when it would
/// have come without; back, not before the counter has reached it, for which the vCPU sleeps on. (Where
/// the TSC is unstable, KVM forgets the write at the next entry.)
#[test]
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the counter is the host's, and so is the time that goes with it"
)]
fn a_halted_vcpu_that_has_written_its_counter_is_woken_once_that_has_reached_the_deadline() {
    let begun = std::time::Instant::now();
    let now = || GuestTime::ZERO.saturating_add(begun.elapsed());
    // Longer than what comes before the look at the log takes on a busy rig.
    let wait = Duration::from_millis(200);
    for back in [false, true] {
        let mut guest = Guest::new(FLAGS_IF);
        guest.memory.write(LOOP, &HLT_WRMSR_LOOP);
        assert_eq!(guest.until_halted(false), Left::Halted);
        guest.write(LVT_TIMER, 0x4_0041);
        let hz = guest.user.lapic().config().tsc.hz().get();
        let counter = guest.tsc();
        let deadline = counter + hz / 5;
        let armed = guest
            .user
            .write_msr(&guest.vcpu, MSR_TSC_DEADLINE, deadline, now());
        assert_eq!(armed, Ok(Effect::None));
        // The counter of a new vCPU is not far from 0.
        let (written, longest) = if back {
            (counter - (counter / 2).min(hz / 5), 2 * wait)
        } else {
            (deadline + hz / 5, wait)
        };
        guest.set_wrmsr(MSR_TSC, written);
        guest.arrive(0x42);
        while guest.prepare_at(false, now()) == UserEntry::Run {
            guest.run();
        }
        assert!(guest.user.is_halted());
        assert_eq!(guest.log(), [0x42]);

        let (mut looks, mut slept) = (0, Duration::ZERO);
        while guest.prepare_at(false, now()) == UserEntry::Wait {
            looks += 1;
            assert!(looks < 20, "it is never woken");
            let at = guest.user.lapic().next_deadline(now()).unwrap();
            let left = at.saturating_since(now());
            slept += left;
            thread::sleep(left);
        }
        assert!(slept <= longest + Duration::from_millis(1), "{slept:?}");
        assert_eq!(guest.run(), Left::Nothing, "its handler's end");
        assert!(guest.tsc() >= deadline, "back: {back}");
        assert_eq!(guest.log(), [0x42, 0x41]);
    }
}

/// WRMSR; JMP to itself.
const WRMSR_LOOP: [u8; 4] = [0x0f, 0x30, 0xeb, 0xfe];

/// It takes nothing, but will take what has become pending.
#[test]
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the counter is the host's, and so is the time that goes with it"
)]
fn under_the_mask_too_a_deadline_waits_for_the_counter_that_the_guest_has_written_back() {
    let mut guest = Guest::new(FLAGS_IF);
    guest.memory.write(LOOP, &WRMSR_LOOP);
    guest.write(LVT_TIMER, 0x4_0041);
    let begun = std::time::Instant::now();
    let now = || GuestTime::ZERO.saturating_add(begun.elapsed());
    let hz = guest.user.lapic().config().tsc.hz().get();
    // The counter of a new vCPU is not far from 0. (Where the TSC is unstable it stays there: KVM forgets
    // the write at the next entry.)
    guest.set_wrmsr(MSR_TSC, hz / 2);
    // On vmx the first step ends where it began.
    let wrote = (0..3).any(|_| guest.step_at(true, now()) == Left::At(LOOP + 2));
    assert!(wrote);
    let deadline = guest.tsc() + hz / 100;
    let armed = guest
        .user
        .write_msr(&guest.vcpu, MSR_TSC_DEADLINE, deadline, now());
    assert_eq!(armed, Ok(Effect::None));
    guest.set_wrmsr(MSR_TSC, guest.tsc().saturating_sub(hz / 50));
    let mut regs = guest.vcpu.get_regs().unwrap();
    regs.rip = LOOP;
    guest.vcpu.set_regs(&regs).unwrap();
    loop {
        guest.step_at(true, now());
        let fired = guest.irr().contains(vector(0x41));
        assert!(!fired || guest.tsc() >= deadline, "at {}", now());
        if fired {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it never fires");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(guest.log(), []);
    guest.step_at(false, now());
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x41]);
}

#[test]
fn with_if_0_a_halted_vcpu_sleeps_on() {
    let mut guest = Guest::new(FLAGS);
    guest.memory.write(LOOP, &HLT_LOOP);
    assert_eq!(guest.until_halted(false), Left::Halted);
    guest.arrive(0x40);
    assert_eq!(guest.until_halted(false), Left::Asleep);
    guest.nmi();
    assert_eq!(guest.until_halted(false), Left::Halted);
    assert_eq!(guest.log(), [NMI]);
    assert_eq!(guest.until_halted(false), Left::Asleep);
    assert_eq!(guest.irr(), VectorSet::from_iter([vector(0x40)]));
}

#[test]
fn a_window_is_asked_for_only_while_something_waits_for_it() {
    let mut guest = Guest::new(FLAGS);
    for masked in [false, true, false] {
        for _ in 0..20 {
            guest.step(masked);
            assert!(!guest.window());
        }
    }
    guest.arrive(0x40);
    for _ in 0..20 {
        guest.step(false);
        assert!(guest.window());
    }
    for _ in 0..20 {
        guest.step(true);
        assert!(
            !guest.window(),
            "there is nothing to wait for under the mask"
        );
    }
    guest.set_flags(FLAGS_IF);
    guest.steps(true, STEPS);
    assert_eq!(guest.log(), []);
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x40]);
    assert!(!guest.window());

    // Below the task priority: its end shows by itself.
    guest.write(TPR, 0x40);
    guest.arrive(0x4f);
    guest.steps(false, STEPS);
    assert!(!guest.window());
    assert_eq!(guest.log(), [0x40]);
    guest.write(TPR, 0);
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x40, 0x4f]);
}

#[test]
fn an_smi_that_kvm_has_no_use_for_does_not_end_the_guest() {
    let mut guest = Guest::new(FLAGS_IF);
    if guest.vm.check_extension_raw(KVM_CAP_X86_SMM.into()) != 0 {
        // It would run what is at 0x38000.
        return;
    }
    assert_eq!(guest.message(0x200), Acceptance::Accepted);
    guest.arrive(0x40);
    guest.steps(false, STEPS);
    assert_eq!(guest.log(), [0x40]);
    assert!(guest.user.lapic().policy().pending().is_empty());
}

#[test]
fn a_base_address_that_kvm_refuses_is_gp_and_nothing_else() {
    let mut guest = Guest::new(FLAGS_IF);
    let mut cpuid = Kvm::new()
        .unwrap()
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .unwrap();
    for entry in cpuid.as_mut_slice() {
        if entry.function == 0x8000_0008 {
            // MAXPHYADDR is 36.
            entry.eax = entry.eax & !0xff | 36;
        }
    }
    guest.vcpu.set_cpuid2(&cpuid).unwrap();
    let before = guest.user.lapic().clone();
    let value = APIC_BASE | 1 << 40;
    let written = guest
        .user
        .write_msr(&guest.vcpu, MSR_APIC_BASE, value, GuestTime::ZERO);
    assert_eq!(written, Err(GeneralProtection));
    assert_eq!(*guest.user.lapic(), before);
    assert_eq!(guest.steps(false, STEPS), 0);
    let moved = APIC_BASE - 0x20_0000;
    guest
        .user
        .write_msr(&guest.vcpu, MSR_APIC_BASE, moved, GuestTime::ZERO)
        .map(|effect| assert_eq!(effect, Effect::IdentityChanged))
        .unwrap();
    assert_eq!(guest.vcpu.get_sregs().unwrap().apic_base, moved);
}
