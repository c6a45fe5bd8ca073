//! A VMM on a hypervisor that is not KVM: it adds its own mechanisms, and an obstacle of its own.
//!
//! The hypervisor of this example has no flag that withholds interrupts. The VMM writes an
//! interrupt shadow before each entry, which withholds them for one instruction. It steps by
//! RFLAGS.TF, which it sets by hand. No type of this crate changes for that.
//!
//! `cargo run -p vcpu-caps --no-default-features --example other_hypervisor`

use std::error::Error;

use vcpu_caps::{
    Candidate, Capability, Finding, HostFacts, HostReport, IrqchipMode, Mechanism, MechanismSet,
    Minimum, Owner, Plan, Profile, RestsOn, VcpuControl, VcpuId, negotiate,
};

/// Rests on no ability in the vocabulary: the report has a finding for the mechanism.
const INTERRUPT_SHADOW: Mechanism = Mechanism::new("interrupt_shadow", RestsOn::Itself);
/// Rests on the host's finding for `single_step`.
const TRAP_FLAG: Mechanism = Mechanism::new("trap_flag", RestsOn::SameAbility);

fn mechanisms() -> MechanismSet {
    let shadow = Candidate::new(INTERRUPT_SHADOW).except(
        IrqchipMode::User,
        "the hypervisor clears the shadow when the VMM injects",
    );
    MechanismSet::host_only()
        .with_ladder(
            Capability::MaskHwintr,
            [shadow, Mechanism::INJECTION_POLICY.into()],
        )
        .with_ladder(Capability::SingleStep, [TRAP_FLAG.into()])
}

/// What this VMM's own probe has found.
fn report() -> HostReport {
    let mut report = HostReport::new("example_hypervisor", HostFacts::default());
    report.record(Capability::SingleStep, Finding::verified("stepped by TF"));
    report.record(Capability::UserIrqchip, Finding::verified(""));
    report.record_mechanism(
        &INTERRUPT_SHADOW,
        Finding::verified("8 steps beside a pending interrupt stayed in the loop"),
    );
    report
}

fn plan(irqchip: IrqchipMode) -> Result<Plan, Box<dyn Error>> {
    let profile = Profile::builder()
        .mechanisms(mechanisms())
        .irqchip(irqchip)
        .require(Capability::SingleStep, Minimum::Verified)
        .require(Capability::MaskHwintr, Minimum::Verified)
        .build()?;
    Ok(negotiate(&report(), &profile)?)
}

/// Before each entry: what the VMM's run loop does with the switches.
fn before_entry(plan: &Plan, vcpu: &VcpuControl) {
    if vcpu.is_masked() && plan.is_provided_by(Capability::MaskHwintr, &INTERRUPT_SHADOW) {
        println!("  set the interrupt shadow");
    }
    if vcpu.withhold_interrupts() {
        println!("  inject nothing");
    }
    let steps = vcpu.get(Capability::SingleStep) == Ok(true);
    if steps && plan.is_provided_by(Capability::SingleStep, &TRAP_FLAG) {
        println!("  set RFLAGS.TF");
    }
    if let Some(state) = vcpu.pending() {
        println!("  set the debug state: {state:?}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    for irqchip in [IrqchipMode::Kernel, IrqchipMode::User] {
        let plan = plan(irqchip)?;
        println!("{plan}\n\nbefore a masked step:");
        let mut vcpu = VcpuControl::new(VcpuId(0), &plan);
        vcpu.hold(Owner::new("debugger"), Capability::MaskHwintr)?;
        vcpu.step()?;
        before_entry(&plan, &vcpu);
        println!();
    }
    Ok(())
}
