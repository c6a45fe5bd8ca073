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
    assert_eq!(PHYSICAL.search(&ram, 0, 1 << 20, &pattern), Ok(None));
}

#[test]
fn a_write_beyond_ram_changes_nothing() {
    let ram = Ram(RefCell::new(vec![0; 16]));
    assert!(!PHYSICAL.write(&ram, 14, &[1, 2, 3]));
    assert_eq!(*ram.0.borrow(), [0; 16]);
    assert!(PHYSICAL.write(&ram, 14, &[1, 2]));
}

proptest! {
    #[test]
    fn a_search_finds_what_a_naive_one_finds(
        text in proptest::collection::vec(0u8..3, 0..200),
        pattern in proptest::collection::vec(0u8..3, 1..8),
    ) {
        let length = u64::try_from(text.len()).unwrap();
        let expected = naive(&text, &pattern);
        let ram = Ram(RefCell::new(text));
        prop_assert_eq!(PHYSICAL.search(&ram, 0, length, &pattern), Ok(expected));
    }
}
