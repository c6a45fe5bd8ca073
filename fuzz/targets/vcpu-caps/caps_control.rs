//! Any sequence of requests to one vCPU's switches, beside a plain model of what is asked for. The
//! model counts holds in a list, and checks the composed state against constants of its own.
//!
//! Input: a byte for the irqchip, a byte of abilities that the host lacks, and then operations: a
//! byte each, with a byte or two of operands.
#![no_main]

use std::collections::BTreeSet;

use fuzz::Choices;
use libfuzzer_sys::fuzz_target;
use vcpu_caps::{
    Capability, Finding, GuestDebug, GuestDebugFlags, HostFacts, HostReport, HwBreakpoint,
    HwBreakpointKind, Inject, IrqchipMode, Mechanism, Minimum, Owner, Profile, VcpuControl, VcpuId,
    negotiate,
};

use Capability::{
    BptExit, HaltExit, HwBreakpoint as HwBreakpoints, InjectBp, InjectDb, MaskHwintr, SingleStep,
    UserIrqchip, Watchpoint,
};

const ABILITIES: [Capability; 7] = [
    MaskHwintr,
    SingleStep,
    BptExit,
    HwBreakpoints,
    Watchpoint,
    InjectBp,
    InjectDb,
];
/// The last cannot be switched.
const SWITCHES: [Capability; 4] = [MaskHwintr, SingleStep, BptExit, HaltExit];
const OWNERS: [Owner; 3] = [
    Owner::new("debugger"),
    Owner::new("snapshot"),
    Owner::instance("debugger", 2),
];
const ADDRESSES: [u64; 6] = [0, 0x1000, 0x1001, 0x1008, u64::MAX, 0xffff_8000_0000_0000];

/// api.rst 4.87; a separate copy of the constants.
mod control {
    pub const ENABLE: u32 = 1;
    pub const SINGLESTEP: u32 = 2;
    pub const USE_SW_BP: u32 = 0x1_0000;
    pub const USE_HW_BP: u32 = 0x2_0000;
    pub const INJECT_DB: u32 = 0x4_0000;
    pub const INJECT_BP: u32 = 0x8_0000;
    pub const BLOCKIRQ: u32 = 0x10_0000;
}

#[derive(Clone, Debug, PartialEq)]
struct Model {
    mask: Option<Mechanism>,
    breakpoints: Option<Mechanism>,
    has: BTreeSet<Capability>,
    switched_on: BTreeSet<Capability>,
    held: Vec<(Owner, Capability)>,
    hardware: Vec<HwBreakpoint>,
    step: bool,
    /// A step was asked for since the last request was accepted.
    arm_step: bool,
    inject: Option<Inject>,
    /// `None` if it is not known.
    in_force: Option<GuestDebug>,
}

impl Model {
    fn is_switch(&self, capability: Capability) -> bool {
        match capability {
            MaskHwintr => self.mask.is_some(),
            SingleStep => self.has.contains(&SingleStep),
            BptExit => self.breakpoints == Some(Mechanism::HOST),
            _ => false,
        }
    }

    fn is_on(&self, capability: Capability) -> bool {
        match capability {
            SingleStep => self.step,
            _ => {
                self.switched_on.contains(&capability)
                    || self.held.iter().any(|hold| hold.1 == capability)
            }
        }
    }

    /// Returns `true` if the plan lets a debug register hold this.
    fn provides(&self, breakpoint: &HwBreakpoint) -> bool {
        match breakpoint.kind() {
            HwBreakpointKind::Execute => {
                self.has.contains(&HwBreakpoints)
                    || self.breakpoints == Some(Mechanism::HARDWARE_SLOT)
            }
            _ => self.has.contains(&Watchpoint),
        }
    }

    /// The expected `kvm_guest_debug`.
    fn check(&self, debug: &GuestDebug) {
        let mut expected = 0;
        let mut flag = |wanted: bool, bit| expected |= if wanted { bit } else { 0 };
        flag(self.step, control::SINGLESTEP);
        flag(
            self.mask == Some(Mechanism::HOST) && self.is_on(MaskHwintr),
            control::BLOCKIRQ,
        );
        flag(self.is_on(BptExit), control::USE_SW_BP);
        flag(!self.hardware.is_empty(), control::USE_HW_BP);
        let lasting = expected != 0;
        let mut flag = |wanted: bool, bit| expected |= if wanted { bit } else { 0 };
        flag(lasting, control::ENABLE);
        flag(self.inject == Some(Inject::Debug), control::INJECT_DB);
        flag(self.inject == Some(Inject::Breakpoint), control::INJECT_BP);
        assert_eq!(debug.control.bits(), expected, "{self:?}");

        let [dr0, dr1, dr2, dr3, dr4, dr5, dr6, dr7] = debug.debugreg;
        assert_eq!([dr4, dr5, dr6], [0; 3]);
        let mut rest = dr7;
        for (slot, address) in [dr0, dr1, dr2, dr3].into_iter().enumerate() {
            let enabled = dr7 >> (2 * slot) & 0b11;
            let kind = dr7 >> (16 + 4 * slot) & 0b11;
            let length = dr7 >> (18 + 4 * slot) & 0b11;
            rest &= !(0b11 << (2 * slot) | 0b1111 << (16 + 4 * slot));
            let Some(wanted) = self.hardware.get(slot) else {
                assert_eq!((address, enabled, kind, length), (0, 0, 0, 0));
                continue;
            };
            assert_eq!(address, wanted.address());
            assert_eq!(
                enabled, 0b10,
                "globally: a task switch clears a local enable"
            );
            assert_eq!(
                kind,
                match wanted.kind() {
                    HwBreakpointKind::Execute => 0b00,
                    HwBreakpointKind::Write => 0b01,
                    HwBreakpointKind::ReadWrite => 0b11,
                }
            );
            // SDM 3B 19.2.4: 1, 2, 8 and 4 bytes.
            assert_eq!(
                [1, 2, 8, 4][usize::try_from(length).unwrap()],
                wanted.length()
            );
        }
        let fixed = if self.hardware.is_empty() { 0 } else { 0x600 };
        assert_eq!(rest, fixed);
    }
}

/// The state without its one-shot flags.
fn lasting(debug: GuestDebug) -> GuestDebug {
    let one_shot = control::INJECT_DB | control::INJECT_BP;
    let lasting = GuestDebug {
        control: GuestDebugFlags::from_bits_retain(debug.control.bits() & !one_shot),
        ..debug
    };
    assert_eq!(debug.lasting(), lasting);
    lasting
}

fn breakpoint(input: &mut Choices<'_>) -> Option<HwBreakpoint> {
    let kind = input.byte();
    let address = input.one_of(&ADDRESSES);
    let length = u64::from(kind >> 4);
    match kind % 3 {
        0 => Some(HwBreakpoint::execute(address)),
        n => {
            let kind = if n == 1 {
                HwBreakpointKind::Write
            } else {
                HwBreakpointKind::ReadWrite
            };
            let made = HwBreakpoint::watch(address, length, kind);
            let legal = matches!(length, 1 | 2 | 4 | 8) && address.is_multiple_of(length);
            assert_eq!(
                made.check_x86().is_ok(),
                legal,
                "{length} bytes at {address:#x}"
            );
            legal.then_some(made)
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Choices::new(data);
    let irqchip = input.one_of(&[IrqchipMode::Kernel, IrqchipMode::User, IrqchipMode::Split]);
    let lacks = input.byte();
    let mut report = HostReport::new("fuzz", HostFacts::default());
    let mut builder = Profile::builder().irqchip(irqchip);
    report.record(UserIrqchip, Finding::verified(""));
    report.record(Capability::SplitIrqchip, Finding::verified(""));
    for (index, capability) in ABILITIES.into_iter().enumerate() {
        if lacks >> index & 1 == 0 {
            report.record(capability, Finding::verified(""));
        }
        builder = builder.prefer(capability, Minimum::Verified);
    }
    let plan = negotiate(&report, &builder.build().expect("no contradiction"))
        .expect("nothing is required but what is there");
    let mut vcpu = VcpuControl::new(VcpuId(0), &plan);
    let mut model = Model {
        mask: plan.mechanism(MaskHwintr).cloned(),
        breakpoints: plan.mechanism(BptExit).cloned(),
        has: ABILITIES.into_iter().filter(|c| plan.has(*c)).collect(),
        switched_on: BTreeSet::new(),
        held: Vec::new(),
        hardware: Vec::new(),
        step: false,
        arm_step: false,
        inject: None,
        in_force: Some(GuestDebug::OFF),
    };

    while !input.is_empty() {
        let before = model.clone();
        // `true` if the model accepts the request, and if the vCPU does.
        let (expected, done) = match input.byte() % 11 {
            0 => {
                let (capability, on) = (input.one_of(&SWITCHES), input.flag());
                let legal = model.is_switch(capability);
                if legal && capability == SingleStep {
                    (model.step, model.arm_step) = (on, on);
                } else if legal && on {
                    model.switched_on.insert(capability);
                } else if legal {
                    model.switched_on.remove(&capability);
                }
                (legal, vcpu.set(capability, on).is_ok())
            }
            1 => {
                let (owner, capability) = (input.one_of(&OWNERS), input.one_of(&SWITCHES));
                let legal = capability != SingleStep && model.is_switch(capability);
                let switched = !model.is_on(capability);
                if legal {
                    model.held.push((owner, capability));
                }
                let taken = vcpu.hold(owner, capability);
                assert!(!legal || taken == Ok(switched));
                (legal, taken.is_ok())
            }
            2 => {
                let hold = (input.one_of(&OWNERS), input.one_of(&SWITCHES));
                let place = model.held.iter().position(|held| *held == hold);
                let released = vcpu.release(hold.0, hold.1);
                if let Some(place) = place {
                    model.held.swap_remove(place);
                    assert_eq!(released, Ok(!model.is_on(hold.1)));
                }
                (place.is_some(), released.is_ok())
            }
            3 => {
                let owner = input.one_of(&OWNERS);
                model.held.retain(|hold| hold.0 != owner);
                let count = before.held.len() - model.held.len();
                assert_eq!(usize::try_from(vcpu.drop_owner(owner)), Ok(count));
                (true, true)
            }
            4 => {
                let legal = model.has.contains(&SingleStep);
                if legal {
                    (model.step, model.arm_step) = (true, true);
                }
                (legal, vcpu.step().is_ok())
            }
            5 => {
                let legal = model.has.contains(&SingleStep);
                if legal {
                    (model.step, model.arm_step) = (false, false);
                }
                (legal, vcpu.end_step().is_ok())
            }
            6 => {
                let count = input.byte() % 6;
                let all: Vec<_> = (0..count).filter_map(|_| breakpoint(&mut input)).collect();
                let legal = all.len() <= 4 && all.iter().all(|wanted| model.provides(wanted));
                if legal {
                    model.hardware.clone_from(&all);
                }
                (legal, vcpu.set_hardware(&all).is_ok())
            }
            7 => {
                let inject = input.one_of(&[Inject::Debug, Inject::Breakpoint]);
                let legal = model.has.contains(match inject {
                    Inject::Debug => &InjectDb,
                    Inject::Breakpoint => &InjectBp,
                });
                if legal {
                    model.inject = Some(inject);
                }
                (legal, vcpu.inject(inject).is_ok())
            }
            8 => {
                assert_eq!(vcpu.cancel_injection(), model.inject.take());
                (true, true)
            }
            9 => {
                vcpu.forget_applied();
                model.in_force = None;
                (true, true)
            }
            _ => {
                if let Some(debug) = vcpu.pending() {
                    vcpu.applied(&debug);
                    model.in_force = Some(lasting(debug));
                    (model.arm_step, model.inject) = (false, None);
                    assert_eq!(
                        vcpu.pending(),
                        None,
                        "what was accepted is not asked for again"
                    );
                }
                (true, true)
            }
        };
        assert_eq!(done, expected);
        if !expected {
            assert_eq!(model, before, "a refused request changes nothing");
        }

        let wanted = GuestDebug::compose(&vcpu.intent());
        model.check(&wanted);
        let needed =
            model.arm_step || model.inject.is_some() || model.in_force != Some(lasting(wanted));
        assert_eq!(vcpu.pending(), needed.then_some(wanted));
        for capability in SWITCHES {
            let shown = model.is_switch(capability).then(|| model.is_on(capability));
            assert_eq!(vcpu.get(capability).ok(), shown, "{capability}");
            let held = model.held.iter().any(|hold| hold.1 == capability);
            assert_eq!(vcpu.holds().is_held(capability), held);
        }
        let masked = model.is_on(MaskHwintr);
        assert_eq!(vcpu.is_masked(), masked);
        let by_policy = model.mask == Some(Mechanism::INJECTION_POLICY);
        assert_eq!(vcpu.withhold_interrupts(), by_policy && masked);
    }
});
