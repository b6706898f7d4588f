//! Staging: bytes that the guest was promised room for and the socket has not taken yet.
//!
//! Made on demand, freed when empty, bounded per flow by the window that the machine advertises
//! (never more than [`PER_FLOW`] ahead) and in all by [`Budget`]. More than [`IN_ALL`] is only in use
//! when flows send in order what they were promised while there were fewer of them.

use crate::span::Span;
use std::collections::VecDeque;

/// Bytes that one flow may have staged.
pub const PER_FLOW: usize = 1 << 20;

/// Bytes that all flows may have staged before windows close.
pub const IN_ALL: usize = 64 << 20;

/// Bytes that a flow may have staged however little is left: without any, it might be promised
/// nothing at a time when no event would ever tell that there is room again.
const LEAST: usize = 4 << 10;

/// Flows that get [`PER_FLOW`] each; of more, each gets its part of [`IN_ALL`].
const FEW: usize = IN_ALL / PER_FLOW;

/// How much of [`IN_ALL`] is in use.
#[derive(Debug, Default)]
pub struct Budget {
    used: usize,
}

impl Budget {
    /// Bytes that one of `flows` flows, with `staged` bytes, may be promised room for. A promise is
    /// never taken back, so it is small where many could be made, and where much is in use.
    pub fn room(&self, staged: usize, flows: usize) -> usize {
        let free = IN_ALL.saturating_sub(self.used);
        let part = (IN_ALL / flows.max(FEW)).saturating_sub(staged).min(free / 8);
        part.max(LEAST.saturating_sub(staged))
    }

    /// Bytes that may be held ahead of their turn: nobody was promised room for them.
    pub const fn left(&self) -> usize {
        IN_ALL.saturating_sub(self.used)
    }

    /// `n` more bytes are in use.
    pub(super) const fn take(&mut self, n: usize) {
        self.used = self.used.saturating_add(n);
    }

    /// `n` bytes are free again.
    pub(super) const fn give(&mut self, n: usize) {
        self.used = self.used.saturating_sub(n);
    }

    /// Bytes in use.
    pub const fn used(&self) -> usize {
        self.used
    }
}

/// The staged bytes of one flow, in order.
#[derive(Debug, Default)]
pub struct Staging {
    bytes: VecDeque<u8>,
}

impl Staging {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Copies bytes `skip..` of `spans` behind those that are here.
    pub fn push(&mut self, spans: &[Span<'_>], mut skip: usize, budget: &mut Budget) {
        let mut chunk = [0; 4096];
        for span in spans {
            let mut rest = span.skip(skip);
            skip = skip.saturating_sub(span.len());
            while !rest.is_empty() {
                let n = rest.read(0, &mut chunk);
                self.extend(&chunk[..n], budget);
                rest = rest.skip(n);
            }
        }
    }

    /// Copies `bytes` behind those that are here.
    pub fn extend(&mut self, bytes: &[u8], budget: &mut Budget) {
        self.bytes.extend(bytes);
        budget.take(bytes.len());
    }

    /// The bytes, as two runs.
    pub fn spans(&self) -> [Span<'_>; 2] {
        let (a, b) = self.bytes.as_slices();
        [Span::from_slice(a), Span::from_slice(b)]
    }

    /// Forgets the first `n` bytes, and the memory with the last of them.
    pub fn consume(&mut self, n: usize, budget: &mut Budget) {
        let n = n.min(self.bytes.len());
        self.bytes.drain(..n);
        budget.give(n);
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_memory_goes_with_the_last() {
        let (mut staging, mut budget) = (Staging::default(), Budget::default());
        staging.push(&[Span::from_slice(b"xxab"), Span::from_slice(b"cd")], 2, &mut budget);
        staging.push(&[Span::from_slice(b"zz"), Span::from_slice(b"yef")], 3, &mut budget);
        assert_eq!((staging.len(), budget.used()), (6, 6));
        let mut out = [0; 8];
        assert_eq!(crate::span::gather(&staging.spans(), 0, &mut out), 6);
        assert_eq!(&out[..6], b"abcdef");
        staging.consume(4, &mut budget);
        assert_eq!((staging.len(), budget.used()), (2, 2));
        staging.consume(9, &mut budget);
        assert_eq!((staging.bytes.capacity(), budget.used()), (0, 0));
    }

    #[test]
    fn promises_shrink_as_the_budget_fills_and_flows_are_many() {
        let mut budget = Budget::default();
        assert_eq!(budget.room(0, 1), PER_FLOW);
        assert_eq!(budget.room(PER_FLOW - 7, 64), 7);
        assert_eq!(budget.room(0, 128), PER_FLOW / 2);
        budget.used = IN_ALL - 80_000;
        assert_eq!(budget.room(0, 1), 10_000);
        budget.used = IN_ALL + 1;
        assert_eq!(budget.room(0, 1), LEAST);
        assert_eq!(budget.room(LEAST - 1, 1), 1);
        assert_eq!(budget.room(LEAST, 1), 0);
        assert_eq!(Budget::default().room(0, 1 << 20), LEAST);
    }
}
