//! Which bytes ahead of the next expected one are held by the engine. The bytes are the engine's.

use crate::wire::seq::SeqNum;

/// Disjoint runs of held bytes, none touching another; a bounded number, so that a guest that
/// sends every other byte costs nothing. What finds no place is not held and is sent again.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    runs: [Run; Self::MAX_RUNS],
}

/// Bytes from `start` up to `end`; unused when empty.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    start: SeqNum,
    end: SeqNum,
}

impl Run {
    fn is_empty(self) -> bool {
        self.start == self.end
    }
}

impl Reassembly {
    const MAX_RUNS: usize = 4;

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.iter().all(|run| run.is_empty())
    }

    /// Notes that bytes from `start` up to `end` are held; `false` when there is no place for one
    /// more run. All runs lie within 2^31 of each other, for they lie in one window.
    pub(super) fn hold(&mut self, start: SeqNum, end: SeqNum) -> bool {
        let touches = |run: &Run| {
            !run.is_empty() && start.before_or_eq(run.end) && run.start.before_or_eq(end)
        };
        let mut merged = Run { start, end };
        for run in self.runs.iter_mut().filter(|run| touches(run)) {
            merged.start = merged.start.min(run.start);
            merged.end = merged.end.max(run.end);
            *run = Run::default();
        }
        let free = self.runs.iter_mut().find(|run| run.is_empty());
        free.map(|place| *place = merged).is_some()
    }

    /// The next expected byte is `next`: forgets what lies before it, and returns how many held
    /// bytes follow it directly, which are forgotten too.
    pub(super) fn join(&mut self, next: SeqNum) -> u32 {
        let mut joined = 0;
        for run in self.runs.iter_mut().filter(|run| !run.is_empty()) {
            if run.start.before_or_eq(next) {
                if run.end.after(next) {
                    joined = run.end.distance_from(next);
                }
                *run = Run::default();
            }
        }
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(r: &mut Reassembly, start: u32, end: u32) -> bool {
        r.hold(SeqNum(start), SeqNum(end))
    }

    #[test]
    fn runs_join_when_the_hole_is_filled() {
        let mut r = Reassembly::default();
        assert!(r.is_empty());
        assert!(hold(&mut r, 20, 30) && hold(&mut r, 40, 50) && hold(&mut r, 30, 40));
        assert_eq!(r.join(SeqNum(10)), 0);
        assert_eq!(r.join(SeqNum(20)), 30);
        assert!(r.is_empty());
    }

    #[test]
    fn what_fresh_bytes_cover_is_forgotten() {
        let mut r = Reassembly::default();
        assert!(hold(&mut r, 20, 30) && hold(&mut r, 40, 50) && hold(&mut r, 60, 70));
        assert_eq!(r.join(SeqNum(45)), 5);
        assert_eq!(r.join(SeqNum(60)), 10);
    }

    #[test]
    fn runs_are_bounded_and_wrap() {
        let mut r = Reassembly::default();
        let base = SeqNum(u32::MAX - 3);
        for i in 0..4 {
            assert!(r.hold(base + 10 * i, base + (10 * i + 5)));
        }
        assert!(!r.hold(base + 100, base + 105));
        assert!(r.hold(base + 33, base + 50), "one that touches a run needs no place");
        assert!(r.hold(base, base + 50));
        assert_eq!(r.join(base), 50);
    }
}
