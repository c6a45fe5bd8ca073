//! Orders, kicks, interrupts, INIT, lost clients and failing calls of one vCPU in any order: a
//! masked step never lands, nothing stays armed or masked after a client is gone, TF and memory are
//! as in a free run, every kick is seen, and no interrupt is lost. What is checked is in
//! `debug_stub::x86_64::simulated::Scenario`.
//!
//! Input: one byte that chooses the hypervisor, whether registers come with exits, and whether data
//! is a device's; then two bytes for each action.
#![no_main]

use std::sync::OnceLock;

use debug_stub::x86_64::simulated::{Action, Habits, Scenario, host_report};
use fuzz::Choices;
use libfuzzer_sys::fuzz_target;
use vcpu_caps::{Capability, Plan, Profile, negotiate};

fn plan(synced: bool) -> &'static Plan {
    static PLANS: [OnceLock<Plan>; 2] = [const { OnceLock::new() }; 2];
    PLANS[usize::from(synced)].get_or_init(|| {
        let absent: &[Capability] = if synced { &[] } else { &[Capability::SyncRegs] };
        negotiate(&host_report(absent), &Profile::debugger()).unwrap()
    })
}

fuzz_target!(|data: &[u8]| {
    let mut input = Choices::new(data);
    let set_up = input.byte();
    let habits = Habits::ALL[usize::from(set_up) % Habits::ALL.len()];
    let mut scenario = Scenario::new(habits, plan(set_up & 0x40 == 0), set_up & 0x80 != 0);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        scenario.act(Action::decode(input.byte(), input.byte()));
    }
    scenario.finish();
});
