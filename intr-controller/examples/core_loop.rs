//! The core alone, with a host of ten lines: the loop of a vCPU thread around the policy, and a
//! debugger that masks for a while. `cargo run --example core_loop --no-default-features`.

use intr_controller::{
    Decision, Event, IllegalVector, InjectionPolicy, ProcessorPriority, Readiness, Vector,
};

/// What `KVM_INTERRUPT` and the guest's IRET would do.
#[derive(Default)]
struct Host {
    window_requested: bool,
    delivering: bool,
}

/// What a vCPU thread does before each entry.
fn before_entry(policy: &mut InjectionPolicy, host: &mut Host, masked: bool) {
    loop {
        let vcpu = Readiness {
            event_in_flight: host.delivering,
            masked,
            ..Readiness::OPEN
        };
        let decision = policy.decide(&vcpu, ProcessorPriority::ZERO);
        println!("  {decision}");
        match decision {
            Decision::Inject(event) => {
                // First the host call, which can fail; then the policy's record of it.
                host.delivering = true;
                if let Err(error) = policy.injected(event) {
                    println!("  {error}");
                }
            }
            Decision::OpenWindow(..) => {
                host.window_requested = true;
                return;
            }
            Decision::Wake(_) | Decision::Blocked(_) | Decision::Idle => {
                host.window_requested = false;
                return;
            }
        }
    }
}

fn main() -> Result<(), IllegalVector> {
    let timer = Event::Fixed(Vector::new(0xec)?);
    let disk = Event::Fixed(Vector::new(0x31)?);
    let mut policy = InjectionPolicy::new();
    let mut host = Host::default();

    println!("The debugger masks; the timer ticks three times and the disk completes:");
    for event in [timer, disk, timer, timer] {
        println!("  {event}: {:?}", policy.arrive(event));
    }
    before_entry(&mut policy, &mut host, true);

    println!("The debugger lifts the mask:");
    before_entry(&mut policy, &mut host, false);
    while host.window_requested {
        println!("The guest's handler has started, and the window opens:");
        host.delivering = false;
        before_entry(&mut policy, &mut host, false);
    }
    println!("{:?}", policy.counters());
    Ok(())
}
