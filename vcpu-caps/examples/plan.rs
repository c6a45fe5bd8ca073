//! A custom profile, negotiated with a report that was not probed here: no KVM is needed.
//!
//! `cargo run -p vcpu-caps --no-default-features --example plan`

use std::error::Error;

use vcpu_caps::{
    Capability, Finding, HostFacts, HostReport, IrqchipMode, Minimum, Profile, negotiate,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut report = HostReport::new("kvm_example", HostFacts::default());
    report.record(Capability::SingleStep, Finding::verified("stepped"));
    report.record(Capability::BptExit, Finding::refuted("INT3 went astray"));
    report.record(Capability::HwBreakpoint, Finding::verified("hit"));
    report.record(Capability::UserIrqchip, Finding::claimed(""));

    let profile = Profile::builder()
        .require(Capability::SingleStep, Minimum::Verified)
        .prefer(Capability::MaskHwintr, Minimum::Claimed)
        .prefer(Capability::BptExit, Minimum::Verified)
        .forbid(Capability::Watchpoint)
        .irqchip(IrqchipMode::User)
        .build()?;
    println!("{}", negotiate(&report, &profile)?);
    Ok(())
}
