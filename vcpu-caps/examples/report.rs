//! Prints what this host can do for a vCPU, and the plan of a debugger.
//!
//! `cargo run -p vcpu-caps --example report`. With `--features serde` it also prints JSON.

use std::error::Error;
use std::time::Instant;

use vcpu_caps::{Profile, kvm, negotiate};

#[expect(
    clippy::disallowed_methods,
    reason = "it prints how long verification took"
)]
fn main() -> Result<(), Box<dyn Error>> {
    let kvm = kvm::open()?;
    let begin = Instant::now();
    let mut report = kvm::probe(&kvm);
    let probed = Instant::now();
    kvm::verify(&kvm, &mut report)?;
    let verified = Instant::now();
    println!("{report}\n");

    // A refusal still carries a plan without what is missing.
    let plan = match negotiate(&report, &Profile::debugger()) {
        Ok(plan) => plan,
        Err(refusal) => {
            println!("{refusal}\n");
            refusal.into_plan()
        }
    };
    println!("{plan}\n");
    #[cfg(feature = "serde")]
    {
        println!("{}", serde_json::to_string_pretty(&report)?);
        println!("{}", serde_json::to_string_pretty(&plan)?);
    }
    println!(
        "probed in {:?}, verified in {:?}",
        probed - begin,
        verified - probed
    );
    Ok(())
}
