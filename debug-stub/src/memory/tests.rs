use super::*;
use proptest::prelude::*;
use std::cell::RefCell;

use crate::x86_64::X86_64;

const PHYSICAL: Space<X86_64> = Space::Physical;

struct Ram(RefCell<Vec<u8>>);

impl GuestMemory for Ram {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        let ram = self.0.borrow();
        let from = ram
            .get(usize::try_from(address.0).unwrap()..)
            .unwrap_or_default();
        let length = from.len().min(data.len());
        data[..length].copy_from_slice(&from[..length]);
        length
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        let mut ram = self.0.borrow_mut();
        let at = usize::try_from(address.0).unwrap();
        let to = ram.get_mut(at..).unwrap_or_default();
        let length = to.len().min(data.len());
        to[..length].copy_from_slice(&data[..length]);
        length
    }
}

/// Searches in slices of this many bytes.
fn search(ram: &Ram, length: u64, pattern: &[u8], slice: u64) -> Scanned {
    let mut scan = Scan::search(PHYSICAL, 0, length, pattern.to_vec());
    loop {
        if let Some(scanned) = scan.go_on(ram, slice) {
            return scanned;
        }
    }
}

fn naive(text: &[u8], pattern: &[u8]) -> Option<u64> {
    text.windows(pattern.len())
        .position(|window| window == pattern)
        .map(|at| u64::try_from(at).unwrap())
}

#[test]
fn a_pattern_that_nearly_matches_everywhere_costs_no_more_than_any_other() {
    // The naive way would make 64 Gi comparisons here, and this test not end.
    let ram = Ram(RefCell::new(vec![b'a'; 1 << 20]));
    let mut pattern = vec![b'a'; 64 << 10];
    pattern.push(b'b');
    assert_eq!(search(&ram, 1 << 20, &pattern, SLICE), Scanned::NotFound);
}

#[test]
fn a_write_beyond_ram_changes_nothing() {
    let ram = Ram(RefCell::new(vec![0; 16]));
    assert!(!PHYSICAL.write(&ram, 14, &[1, 2, 3]));
    assert_eq!(*ram.0.borrow(), [0; 16]);
    assert!(PHYSICAL.write(&ram, 14, &[1, 2]));
}

#[test]
fn a_range_that_ends_with_the_address_space_ends_there() {
    // Nothing is there, and nothing wraps.
    let ram = Ram(RefCell::new(vec![0; 16]));
    let mut scan = Scan::crc(PHYSICAL, u64::MAX - 8, u64::MAX);
    assert_eq!(
        scan.go_on(&ram, SLICE),
        Some(Scanned::Unreadable(u64::MAX - 8))
    );
    let mut scan = Scan::crc(PHYSICAL, 8, 9);
    assert_eq!(scan.go_on(&ram, SLICE), Some(Scanned::Unreadable(16)));
    let mut scan = Scan::crc(PHYSICAL, 8, 0);
    assert_eq!(scan.go_on(&ram, SLICE), Some(Scanned::Crc(u32::MAX)));
}

proptest! {
    #[test]
    fn a_search_finds_what_a_naive_one_finds(
        text in proptest::collection::vec(0u8..3, 0..200),
        pattern in proptest::collection::vec(0u8..3, 1..8),
        slice in 1u64..9,
    ) {
        let length = u64::try_from(text.len()).unwrap();
        let expected = naive(&text, &pattern);
        let ram = Ram(RefCell::new(text));
        let expected = expected.map_or(Scanned::NotFound, Scanned::Found);
        prop_assert_eq!(search(&ram, length, &pattern, slice), expected);
    }
}
