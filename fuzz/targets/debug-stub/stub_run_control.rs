//! Any calls of all-stop run control, at any time: what `debug-stub/tests/run_control/model.rs` says
//! must hold. After each input the guest is interrupted: one list of stops, and nothing runs on.
//!
//! Input: bytes. Each call is one byte for its kind, then one for its vCPU if it has one; a resume
//! has one for how many orders follow, and one for each.
#![no_main]

#[path = "../../../debug-stub/tests/run_control/model.rs"]
mod model;

use fuzz::Choices;
use libfuzzer_sys::fuzz_target;
use model::{Op, World};

const VCPUS: u16 = 5;
/// A state costs as much to compare as it has vCPUs: more calls find nothing new.
const MOST_CALLS: usize = 400;

fn op(choices: &mut Choices<'_>) -> Op {
    let kind = choices.byte();
    let mut vcpu = || u16::from(choices.byte()) % VCPUS;
    match kind % 14 {
        0 => Op::Order(vcpu()),
        1 => Op::Interrupted(vcpu()),
        2 => Op::OwnStop(vcpu()),
        3 => Op::Take,
        4 => Op::Interrupt,
        5 => Op::Add(vcpu()),
        6 => Op::Remove(vcpu()),
        7 => Op::Left(vcpu()),
        8 => Op::GiveBack(vcpu()),
        9 => Op::Release,
        10 => Op::Event(vcpu()),
        12 => Op::Hold(vcpu() % 2 == 0),
        13 => Op::Start,
        _ => {
            let count = choices.byte() % 5;
            let mut orders = [0; 4];
            for order in orders.iter_mut().take(usize::from(count)) {
                *order = choices.byte();
            }
            Op::Resume { orders, count }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let mut world = World::default();
    for _ in 0..MOST_CALLS {
        if choices.is_empty() {
            break;
        }
        world.apply(op(&mut choices));
    }
    world.settle();
});
