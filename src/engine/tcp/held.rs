//! Bytes that arrived ahead of their turn.
//!
//! One run of bytes that begins at the next expected one, with holes; which parts of it are good
//! is known to the machine, which also bounds it by the window that it advertises.

use crate::engine::staging::Budget;
use std::collections::VecDeque;

/// Held bytes of one flow.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: VecDeque<u8>,
}

impl Held {
    /// Bytes that memory is kept for, holes among them.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Puts `bytes` at `offset` behind the next expected byte.
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8], budget: &mut Budget) {
        let end = offset.saturating_add(bytes.len());
        if end > self.bytes.len() {
            budget.take(end - self.bytes.len());
            self.bytes.resize(end, 0);
        }
        for (to, from) in self.bytes.range_mut(offset..end).zip(bytes) {
            *to = *from;
        }
    }

    /// The next `n` expected bytes have come: what stands in their place is not needed.
    pub(super) fn skip(&mut self, n: usize, budget: &mut Budget) {
        let n = n.min(self.bytes.len());
        self.bytes.drain(..n);
        budget.give(n);
    }

    /// Takes the next `n` bytes out, which the machine says are all there.
    pub(super) fn take(&mut self, n: usize, budget: &mut Budget) -> Vec<u8> {
        let n = n.min(self.bytes.len());
        budget.give(n);
        self.bytes.drain(..n).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_in_any_order() {
        let (mut held, mut budget) = (Held::default(), Budget::default());
        held.put(4, b"ef", &mut budget);
        held.put(2, b"cde", &mut budget);
        assert_eq!((held.len(), budget.used()), (6, 6));
        held.skip(2, &mut budget);
        assert_eq!(held.take(4, &mut budget), b"cdef");
        assert_eq!((held.len(), budget.used()), (0, 0));
        held.skip(9, &mut budget);
        assert!(held.take(1, &mut budget).is_empty());
    }
}
