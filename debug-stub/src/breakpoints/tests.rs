use super::*;
use proptest::prelude::*;
use std::cell::RefCell;

use crate::x86_64::X86_64;

struct Ram(RefCell<[u8; 32]>);

impl GuestMemory for Ram {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        let at = usize::try_from(address.0).unwrap();
        data[0] = self.0.borrow()[at];
        1
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        let at = usize::try_from(address.0).unwrap();
        self.0.borrow_mut()[at] = data[0];
        1
    }
}

fn points() -> impl Strategy<Value = Point> {
    let kind = prop_oneof![
        Just(PointKind::Software),
        Just(PointKind::Hardware),
        Just(PointKind::Watch(WatchAccess::Write)),
        Just(PointKind::Watch(WatchAccess::ReadWrite)),
    ];
    (kind, 0u64..32, 0u64..20).prop_map(|(kind, address, length)| match kind {
        PointKind::Watch(access) => Point::watch(access, address, length),
        kind => Point::breakpoint(kind, address),
    })
}

proptest! {
    #[test]
    fn whatever_comes_and_goes_nothing_is_left_and_memory_is_whole(
        operations in proptest::collection::vec((any::<bool>(), points()), 0..60),
    ) {
        let original: [u8; 32] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let ram = Ram(RefCell::new(original));
        let mut table = Breakpoints::<X86_64>::default();
        let mut set = std::collections::BTreeSet::new();
        for (insert, point) in operations {
            if insert {
                // The lower half of memory can be written.
                let placed = table.insert(point, HitProgram::default(), true, |at| {
                    (at < 16).then_some(GuestPhysAddr(at)).ok_or(NoRoom {
                        why: "read-only",
                        may_come: false,
                    })
                });
                if placed.is_ok() {
                    set.insert(point);
                }
            } else {
                prop_assert_eq!(table.remove(point), set.remove(&point));
            }
            table.write_instructions(&ram, None).unwrap();
            for at in &table.arm_for_resume().software {
                prop_assert_eq!(ram.0.borrow()[usize::try_from(at.0).unwrap()], 0xcc);
            }
            table.restore_memory(&ram);
            prop_assert_eq!(*ram.0.borrow(), original);
        }
        for point in set {
            prop_assert!(table.remove(point));
        }
        prop_assert_eq!(&*table.arm_for_resume(), &Armed::default());
    }
}

#[test]
fn addresses_that_are_one_in_memory_count_each() {
    let mut table = Breakpoints::<X86_64>::default();
    let mut insert = |address: u64| {
        let point = Point::breakpoint(PointKind::Software, address);
        table.insert(point, HitProgram::default(), true, |_| {
            Ok(GuestPhysAddr(0x1000))
        })
    };
    let accepted = (0..100_000).take_while(|&page| insert(page << 12).is_ok());
    assert_eq!(accepted.count(), 4096);
    assert_eq!(insert(u64::MAX), Err(PointError::TooMany));
    // What is there is no new one.
    assert_eq!(insert(0), Ok(Placed::AsAsked));
}
