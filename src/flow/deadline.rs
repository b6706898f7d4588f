//! Deadlines: who wants to be woken when.
//!
//! One entry per owner at most. An owner whose deadline moves to later is left where it stands:
//! it is woken early, finds nothing due and books again, which costs one wake-up per interval
//! instead of one update per packet. Nothing here costs anything while nobody is due.

use crate::time::Instant;
use std::collections::BTreeSet;

/// The deadlines of owners named by `K`.
#[derive(Debug)]
pub struct Deadlines<K> {
    entries: BTreeSet<(Instant, K)>,
}

/// An owner's own note of the wake-up that it has booked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Booking(Option<Instant>);

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self { entries: BTreeSet::new() }
    }
}

impl<K: Copy + Ord> Deadlines<K> {
    /// Books a wake-up for `owner` at `at` or earlier; `None` leaves an earlier booking to run out.
    pub fn book(&mut self, booking: &mut Booking, owner: K, at: Option<Instant>) {
        let Some(at) = at else { return };
        if let Some(booked) = booking.0 {
            if booked <= at {
                return;
            }
            self.entries.remove(&(booked, owner));
        }
        self.entries.insert((at, owner));
        booking.0 = Some(at);
    }

    /// Forgets the wake-up of `owner`, which is going away.
    pub fn cancel(&mut self, booking: &mut Booking, owner: K) {
        if let Some(booked) = booking.0.take() {
            self.entries.remove(&(booked, owner));
        }
    }

    /// The next owner whose wake-up is due. The owner must clear its booking
    /// ([`Booking::clear`]) and book anew.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let &(at, owner) = self.entries.first()?;
        if at > now {
            return None;
        }
        self.entries.pop_first();
        Some(owner)
    }

    /// When the first wake-up is due.
    pub fn next(&self) -> Option<Instant> {
        self.entries.first().map(|&(at, _)| at)
    }

    /// How many wake-ups are booked.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Booking {
    /// Nothing is booked.
    pub const fn new() -> Self {
        Self(None)
    }

    /// The wake-up has come.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u64) -> Instant {
        Instant::from_nanos(n)
    }

    #[test]
    fn an_owner_has_one_entry_and_is_woken_at_its_earliest() {
        let mut d = Deadlines::default();
        let (mut a, mut b) = (Booking::default(), Booking::default());
        d.book(&mut a, 'a', Some(at(50)));
        d.book(&mut a, 'a', Some(at(90)));
        d.book(&mut b, 'b', Some(at(60)));
        d.book(&mut a, 'a', Some(at(40)));
        assert_eq!((d.len(), d.next()), (2, Some(at(40))));
        assert_eq!(d.pop_due(at(39)), None);
        assert_eq!(d.pop_due(at(70)), Some('a'));
        a.clear();
        d.book(&mut a, 'a', Some(at(90)));
        assert_eq!(d.pop_due(at(70)), Some('b'));
        assert_eq!(d.pop_due(at(70)), None);
        d.cancel(&mut a, 'a');
        assert!(d.is_empty());
    }
}
