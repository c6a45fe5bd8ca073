//! 256-bit registers: IRR, ISR, TMR.

use core::fmt;

use crate::Vector;

/// A set of legal vectors, laid out as the local APIC's IRR, ISR and TMR.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct VectorSet {
    /// Vector `n` is bit `n % 64` of word `n / 64`. Bits 0 to 15 are always clear.
    words: [u64; 4],
}

/// The bits of the first word that no APIC sets.
const ILLEGAL: u64 = 0xffff;

impl VectorSet {
    /// No vector.
    pub const EMPTY: Self = Self { words: [0; 4] };

    /// From raw words, lowest vectors first. `None` if a bit below 16 is set.
    #[must_use]
    pub const fn from_words(words: [u64; 4]) -> Option<Self> {
        let [first, ..] = words;
        if first & ILLEGAL != 0 {
            return None;
        }
        Some(Self { words })
    }

    /// Like [`Self::from_words`], without the bits below 16.
    #[must_use]
    pub const fn from_words_truncate(words: [u64; 4]) -> Self {
        let [first, second, third, fourth] = words;
        Self {
            words: [first & !ILLEGAL, second, third, fourth],
        }
    }

    /// The raw words, lowest vectors first.
    #[must_use]
    pub const fn words(&self) -> [u64; 4] {
        self.words
    }

    const fn position(vector: Vector) -> (usize, u64) {
        let vector = vector.get();
        ((vector >> 6) as usize, 1 << (vector & 63))
    }

    /// Whether the set holds the vector.
    #[must_use]
    pub fn contains(&self, vector: Vector) -> bool {
        let (word, bit) = Self::position(vector);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Adds the vector; whether it was absent.
    pub fn insert(&mut self, vector: Vector) -> bool {
        let (word, bit) = Self::position(vector);
        self.words.get_mut(word).is_some_and(|word| {
            let absent = *word & bit == 0;
            *word |= bit;
            absent
        })
    }

    /// Removes the vector; whether it was present.
    pub fn remove(&mut self, vector: Vector) -> bool {
        let (word, bit) = Self::position(vector);
        self.words.get_mut(word).is_some_and(|word| {
            let present = *word & bit != 0;
            *word &= !bit;
            present
        })
    }

    /// Adds the vector, or removes it.
    pub(crate) fn toggle(&mut self, vector: Vector) {
        let (word, bit) = Self::position(vector);
        if let Some(word) = self.words.get_mut(word) {
            *word ^= bit;
        }
    }

    /// The highest vector, which is the most urgent one.
    #[must_use]
    pub fn highest(&self) -> Option<Vector> {
        let [first, second, third, fourth] = self.words;
        let (base, word) = if fourth != 0 {
            (192, fourth)
        } else if third != 0 {
            (128, third)
        } else if second != 0 {
            (64, second)
        } else {
            (0, first)
        };
        let bit = u8::try_from(word.checked_ilog2()?).ok()?;
        Vector::new(base | bit).ok()
    }

    /// How many vectors the set holds.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether the set holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words == [0; 4]
    }

    /// The vectors, most urgent first.
    pub fn iter(&self) -> impl Iterator<Item = Vector> + use<> {
        let mut rest = *self;
        core::iter::from_fn(move || {
            let vector = rest.highest()?;
            rest.remove(vector);
            Some(vector)
        })
    }
}

impl fmt::Debug for VectorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl FromIterator<Vector> for VectorSet {
    fn from_iter<I: IntoIterator<Item = Vector>>(vectors: I) -> Self {
        let mut set = Self::EMPTY;
        for vector in vectors {
            set.insert(vector);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_legal_vector_is_its_own_bit() {
        for number in 16..=255 {
            let vector = Vector::new(number).unwrap();
            let mut set = VectorSet::EMPTY;
            assert!(set.insert(vector));
            assert!(!set.insert(vector));
            assert_eq!((set.highest(), set.len()), (Some(vector), 1));
            let mut expected = [0; 4];
            expected[usize::from(number) / 64] = 1 << (number % 64);
            assert_eq!(set.words(), expected);
            assert!(set.remove(vector));
            assert!(!set.remove(vector));
            assert!(set.is_empty());
        }
    }

    #[test]
    fn illegal_bits_are_refused_or_dropped() {
        for bit in 0..16 {
            assert_eq!(VectorSet::from_words([1 << bit, 0, 0, 1]), None);
            let set = VectorSet::from_words_truncate([1 << bit | 1 << 16, 0, 0, 1]);
            assert_eq!(set.words(), [1 << 16, 0, 0, 1]);
        }
        assert!(VectorSet::from_words([1 << 16, 0, 0, 0]).is_some());
    }

    proptest! {
        #[test]
        fn iterates_a_sorted_set_downwards(numbers in proptest::collection::btree_set(16u8.., 0..40)) {
            let set: VectorSet = numbers.iter().map(|n| Vector::new(*n).unwrap()).collect();
            let listed: Vec<u8> = set.iter().map(Vector::get).collect();
            let sorted: Vec<u8> = numbers.iter().rev().copied().collect();
            prop_assert_eq!(listed, sorted);
            prop_assert_eq!(set.len() as usize, numbers.len());
            let held: BTreeSet<u8> = (16..=255).filter(|n| set.contains(Vector::new(*n).unwrap())).collect();
            prop_assert_eq!(held, numbers);
        }
    }
}
