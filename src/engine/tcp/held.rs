//! Bytes that arrived ahead of their turn.
//!
//! Runs of bytes with holes between them, which cost nothing. The machine knows the same runs and
//! allows only a few; how many bytes they have in all is bounded by [`Budget`].

use crate::engine::staging::Budget;
use std::collections::VecDeque;

/// Held bytes of one flow.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Disjoint, none touching another.
    runs: Vec<Run>,
    /// How many bytes of the stream have come since the first were held.
    passed: u64,
}

/// Bytes from number `start` on, counted as [`Held::passed`] is.
#[derive(Debug)]
struct Run {
    start: u64,
    bytes: VecDeque<u8>,
}

impl Run {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn touches(&self, other: &Self) -> bool {
        self.start <= other.end() && other.start <= self.end()
    }

    /// The union with a run that this one touches. The longer one takes the other in, so that bytes
    /// are moved seldom, in whatever order they come.
    fn merge(self, other: Self) -> Self {
        let (mut first, mut second) =
            if self.start <= other.start { (self, other) } else { (other, self) };
        let common = usize::try_from(first.end() - second.start).unwrap_or(usize::MAX);
        if first.bytes.len() >= second.bytes.len() {
            first.bytes.extend(second.bytes.range(common.min(second.bytes.len())..));
            return first;
        }
        first.bytes.truncate(first.bytes.len().saturating_sub(common));
        while let Some(byte) = first.bytes.pop_back() {
            second.bytes.push_front(byte);
        }
        second.start = first.start;
        second
    }

    /// Drops what lies before number `at`.
    fn cut(&mut self, at: u64) {
        let n = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        self.bytes.drain(..n.min(self.bytes.len()));
        self.start = self.start.max(at);
    }
}

impl Held {
    /// Bytes that are held.
    pub(super) fn len(&self) -> usize {
        self.runs.iter().map(|run| run.bytes.len()).sum()
    }

    /// Puts `bytes` at `offset` behind the next expected byte.
    pub(super) fn put(&mut self, offset: usize, bytes: Vec<u8>, budget: &mut Budget) {
        if bytes.is_empty() {
            return;
        }
        let mut new = Run { start: self.passed + offset as u64, bytes: bytes.into() };
        while let Some(at) = self.runs.iter().position(|run| run.touches(&new)) {
            let old = self.runs.swap_remove(at);
            budget.give(old.bytes.len());
            new = new.merge(old);
        }
        budget.take(new.bytes.len());
        self.runs.push(new);
    }

    /// The next `n` expected bytes have come: what stands in their place is not needed.
    pub(super) fn skip(&mut self, n: usize, budget: &mut Budget) {
        self.passed = self.passed.saturating_add(n as u64);
        let before = self.len();
        self.runs.iter_mut().for_each(|run| run.cut(self.passed));
        self.runs.retain(|run| !run.bytes.is_empty());
        budget.give(before - self.len());
    }

    /// Takes the next `n` bytes out, which the machine says are all there.
    pub(super) fn take(&mut self, n: usize, budget: &mut Budget) -> Vec<u8> {
        let next = self.runs.iter().find(|run| run.start == self.passed);
        let bytes = next.map(|run| run.bytes.iter().take(n).copied().collect());
        self.skip(n, budget);
        bytes.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_in_any_order() {
        let (mut held, mut budget) = (Held::default(), Budget::default());
        held.put(4, b"ef".into(), &mut budget);
        assert_eq!((held.len(), budget.used()), (2, 2), "holes cost nothing");
        held.put(2, b"cde".into(), &mut budget);
        assert_eq!((held.len(), budget.used()), (4, 4));
        held.skip(2, &mut budget);
        assert_eq!(held.take(4, &mut budget), b"cdef");
        assert_eq!((held.len(), budget.used()), (0, 0));
        held.skip(9, &mut budget);
        assert!(held.take(1, &mut budget).is_empty());
    }

    #[test]
    fn runs_agree_with_a_plain_array_however_they_overlap() {
        let stream: Vec<u8> = (0..60).collect();
        // All pairs of pieces, in both orders, and a third between or over them.
        for (a, b) in (0..400usize).map(|n| (n / 20, n % 20)) {
            for (from, len) in [(a.min(b), a.max(b) + 3 - a.min(b)), (10, 5), (0, 40)] {
                let (mut held, mut budget) = (Held::default(), Budget::default());
                let mut good = [false; 60];
                for (from, len) in [(a, 7), (b, 4), (from, len)] {
                    held.put(from, stream[from..from + len].into(), &mut budget);
                    good[from..from + len].fill(true);
                    let count = good.iter().filter(|good| **good).count();
                    assert_eq!((held.len(), budget.used()), (count, count), "{a} {b} {from} {len}");
                }
                let first = good.iter().position(|good| *good).unwrap();
                let n = good[first..].iter().position(|good| !good).unwrap();
                held.skip(first, &mut budget);
                assert_eq!(held.take(n, &mut budget), stream[first..first + n]);
                held.skip(60, &mut budget);
                assert_eq!((held.len(), budget.used()), (0, 0));
            }
        }
    }
}
