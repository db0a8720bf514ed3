//! The tokens of a text, in memory or in mapped files.

use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

/// Tokens that are only read; copies share them.
#[derive(Clone, Debug)]
pub struct Tokens(Store);

#[derive(Clone, Debug)]
enum Store {
    Memory(Arc<[u16]>),
    Wide(Arc<[u32]>),
    Mapped(Arc<[Shard]>),
}

/// A file of tokens.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) map: Mmap,
    /// Bytes before the first token.
    pub(crate) header: usize,
    /// Bytes of a token: 1, 2 or 4.
    pub(crate) width: usize,
    /// Number of its first token in the whole.
    pub(crate) first: usize,
    /// Tokens in it, at least one.
    pub(crate) count: usize,
}

impl Shard {
    fn get(&self, index: usize) -> u32 {
        let at = self.header + index * self.width;
        match self.width {
            1 => u32::from(self.map[at]),
            2 => u32::from(u16::from_le_bytes([self.map[at], self.map[at + 1]])),
            _ => u32::from_le_bytes([0, 1, 2, 3].map(|n| self.map[at + n])),
        }
    }
}

impl From<Arc<[u16]>> for Tokens {
    fn from(tokens: Arc<[u16]>) -> Self {
        Self(Store::Memory(tokens))
    }
}

impl From<Vec<u16>> for Tokens {
    fn from(tokens: Vec<u16>) -> Self {
        Self(Store::Memory(tokens.into()))
    }
}

impl From<Vec<u32>> for Tokens {
    fn from(tokens: Vec<u32>) -> Self {
        // Half the memory, where they fit.
        let narrow: Option<Vec<u16>> = tokens.iter().map(|&token| token.try_into().ok()).collect();
        match narrow {
            Some(narrow) => narrow.into(),
            None => Self(Store::Wide(tokens.into())),
        }
    }
}

impl Tokens {
    /// The tokens of shards, which follow one another without a gap.
    pub(crate) fn mapped(shards: Vec<Shard>) -> Self {
        Self(Store::Mapped(shards.into()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Store::Memory(tokens) => tokens.len(),
            Store::Wide(tokens) => tokens.len(),
            Store::Mapped(shards) => shards.last().map_or(0, |shard| shard.first + shard.count),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends those of a range to a list.
    ///
    /// # Panics
    /// If the range goes beyond the last one.
    pub fn extend(&self, range: Range<usize>, list: &mut Vec<u32>) {
        assert!(range.end <= self.len(), "tokens {range:?} of {}", self.len());
        match &self.0 {
            Store::Memory(tokens) => {
                list.extend(tokens[range].iter().map(|&token| u32::from(token)));
            }
            Store::Wide(tokens) => list.extend_from_slice(&tokens[range]),
            Store::Mapped(shards) => {
                let mut at =
                    shards.partition_point(|shard| shard.first + shard.count <= range.start);
                let mut next = range.start;
                while next < range.end {
                    let shard = &shards[at];
                    let end = range.end.min(shard.first + shard.count);
                    list.extend((next - shard.first..end - shard.first).map(|n| shard.get(n)));
                    next = end;
                    at += 1;
                }
            }
        }
    }

    /// All of them, for tests and tools.
    pub fn to_vec(&self) -> Vec<u32> {
        let mut list = Vec::with_capacity(self.len());
        self.extend(0..self.len(), &mut list);
        list
    }
}
