//! The state machine: all interleavings of few calls, and random ones of many.

use std::collections::HashSet;

use proptest::prelude::*;

use super::model::{Op, World};

/// Every call that can be made of `vcpus` vCPUs.
fn ops(vcpus: u16) -> Vec<Op> {
    let mut ops = vec![
        Op::Release,
        Op::Hold(true),
        Op::Hold(false),
        Op::Start,
        Op::Interrupt,
        Op::Event(0),
        Op::Take,
    ];
    for first in 0..3 {
        for second in 0..3 {
            ops.push(Op::Resume {
                orders: [first, second, 0, 0],
                count: 2,
            });
        }
        ops.push(Op::Resume {
            orders: [first, 0, 0, 0],
            count: 1,
        });
    }
    ops.push(Op::Resume {
        orders: [0; 4],
        count: 0,
    });
    for id in 0..vcpus {
        ops.extend([
            Op::Add(id),
            Op::Remove(id),
            Op::Left(id),
            Op::Order(id),
            Op::GiveBack(id),
            Op::OwnStop(id),
            Op::Interrupted(id),
        ]);
    }
    ops
}

/// Each state that calls can lead to is met once, and each call is made in each; whatever the
/// state, an interrupt then ends it with one list.
fn explore(start: &World, ops: &[Op], depth: usize) -> usize {
    let mut seen = HashSet::from([format!("{start:?}")]);
    let mut frontier = vec![start.clone()];
    for _ in 0..depth {
        let mut next = Vec::new();
        for world in &frontier {
            for op in ops {
                let mut world = world.clone();
                world.apply(*op);
                if seen.insert(format!("{world:?}")) {
                    world.clone().settle();
                    next.push(world);
                }
            }
        }
        frontier = next;
    }
    seen.len()
}

#[test]
fn all_interleavings_of_two_vcpus_from_nothing() {
    let states = explore(&World::default(), &ops(2), 7);
    assert!(states > 500, "only {states} states");
}

#[test]
fn all_interleavings_of_three_vcpus_of_a_guest_that_runs() {
    let mut world = World::default();
    for id in 0..3 {
        world.apply(Op::Add(id));
    }
    world.apply(Op::Release);
    for id in 0..2 {
        world.apply(Op::Order(id));
    }
    let states = explore(&world, &ops(3), 4);
    assert!(states > 500, "only {states} states");
}

fn op() -> impl Strategy<Value = Op> {
    let id = 0u16..5;
    prop_oneof![
        3 => (prop::array::uniform4(0u8..3), 0u8..5)
            .prop_map(|(orders, count)| Op::Resume { orders, count }),
        2 => Just(Op::Release),
        1 => any::<bool>().prop_map(Op::Hold),
        2 => Just(Op::Start),
        2 => Just(Op::Interrupt),
        1 => id.clone().prop_map(Op::Event),
        4 => Just(Op::Take),
        4 => id.clone().prop_map(Op::Add),
        1 => id.clone().prop_map(Op::Remove),
        1 => id.clone().prop_map(Op::Left),
        10 => id.clone().prop_map(Op::Order),
        1 => id.clone().prop_map(Op::GiveBack),
        3 => id.clone().prop_map(Op::OwnStop),
        6 => id.prop_map(Op::Interrupted),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_calls_lose_and_double_nothing(ops in prop::collection::vec(op(), 0..120)) {
        let mut world = World::default();
        for op in ops {
            world.apply(op);
        }
        world.settle();
    }
}

/// One cycle after the other, as a session has them: each gives one list.
#[test]
fn each_resume_gives_one_list() {
    let mut world = World::default();
    world.apply(Op::Add(0));
    world.apply(Op::Add(1));
    for cycle in 0..100 {
        world.apply(Op::Resume {
            orders: [1, 2, 0, 0],
            count: 2,
        });
        world.apply(Op::Order(0));
        if cycle % 2 == 0 {
            world.apply(Op::Order(1));
        }
        if cycle % 3 == 0 {
            world.apply(Op::Interrupt);
        }
        world.apply(Op::OwnStop(0));
        if cycle % 2 == 0 {
            world.apply(Op::OwnStop(1));
        }
        assert!(world.apply(Op::Take), "no list after cycle {cycle}");
        assert!(!world.apply(Op::Take), "two lists after cycle {cycle}");
    }
}
