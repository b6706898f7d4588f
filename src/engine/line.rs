//! Those who wait for the same thing, each once, in the order in which they came.

use std::collections::BTreeMap;

/// A line of waiting `K`s. Whoever goes away leaves it, so it is never longer than those there are.
#[derive(Debug)]
pub(crate) struct Line<K> {
    turns: BTreeMap<u64, K>,
    places: BTreeMap<K, u64>,
    next: u64,
}

impl<K> Default for Line<K> {
    fn default() -> Self {
        Self { turns: BTreeMap::new(), places: BTreeMap::new(), next: 0 }
    }
}

impl<K: Copy + Ord> Line<K> {
    /// Goes to the end of the line; who stands in it already keeps its place.
    pub(crate) fn join(&mut self, who: K) {
        let next = self.next;
        let place = *self.places.entry(who).or_insert(next);
        if place == next {
            self.turns.insert(place, who);
            // 2^64 turns do not come to an end.
            self.next = next.wrapping_add(1);
        }
    }

    /// Leaves the line, wherever it stands.
    pub(crate) fn leave(&mut self, who: K) {
        if let Some(place) = self.places.remove(&who) {
            self.turns.remove(&place);
        }
    }

    /// Takes out whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<K> {
        let (_, who) = self.turns.pop_first()?;
        self.places.remove(&who);
        Some(who)
    }

    /// All who wait, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = K> {
        self.turns.values().copied()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.turns.len()
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_stands_once_and_may_leave() {
        let mut line = Line::default();
        for who in ['a', 'b', 'a', 'c', 'b'] {
            line.join(who);
        }
        assert_eq!(line.len(), 3);
        line.leave('b');
        line.leave('x');
        assert_eq!(line.pop(), Some('a'));
        line.join('a');
        assert_eq!((line.pop(), line.pop(), line.pop()), (Some('c'), Some('a'), None));
        assert!(line.is_empty() && line.places.is_empty());
    }
}
