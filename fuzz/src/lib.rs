//! What the fuzz targets share.

/// A target's input as a sequence of small choices, one byte each. It never ends: zeros follow the
/// last byte. So every input is valid, and a seed can be short.
///
/// For targets whose seeds are written by hand: a byte at a known place is one choice, which a derived
/// `Arbitrary` does not give.
#[derive(Clone, Debug)]
pub struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    /// Reads `data` from its start.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Returns `true` if only the zeros are left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What was not read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((&first, rest)) => {
                self.rest = rest;
                first
            }
            None => 0,
        }
    }

    /// The next byte as a signed distance.
    pub fn distance(&mut self) -> i64 {
        i64::from(i8::from_ne_bytes([self.byte()]))
    }

    /// The next bit 0.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// One of `options`, of which there is at least one.
    pub fn one_of<T: Copy>(&mut self, options: &[T]) -> T {
        options[usize::from(self.byte()) % options.len()]
    }

    /// Two bytes, the lower first.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Eight bytes, the lowest first.
    pub fn quad(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

/// Where two memories of the same size differ. Quick where they are the same.
#[must_use]
pub fn differences(one: &[u8], other: &[u8]) -> Vec<usize> {
    const CHUNK: usize = 256;
    assert_eq!(one.len(), other.len());
    let mut found = Vec::new();
    for (index, (one, other)) in one.chunks(CHUNK).zip(other.chunks(CHUNK)).enumerate() {
        if one != other {
            let places = (0..one.len()).filter(|at| one[*at] != other[*at]);
            found.extend(places.map(|at| index * CHUNK + at));
        }
    }
    found
}
