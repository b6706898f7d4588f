//! A TCP connection between both sides that does not pass through the link: the machine that says
//! what to move next.
//!
//! There are two sockets, one of each [`Side`], and for each direction a pipe while bytes are
//! under way. The machine knows readiness, counts and ends; it holds no socket and no pipe.
//!
//! Sockets tell of *changes* only (edges), so what was said stays true until a call would block:
//! [`Conn::on_ready`] sets it, [`Conn::on_filled`] and [`Conn::on_drained`] take it back. The owner
//! does what [`Conn::next_step`] says, reports what came of it, and asks again, until that is to wait.
//!
//! An end is passed on behind all bytes before it, whichever side ends first. Where a socket fails,
//! what its peer has sent before still goes to the other side, as it would without us; then both
//! are reset.

use crate::flow::Side;
use crate::token::Readiness;

/// Bytes that a connection moves in one turn, both directions together.
pub const TURN: usize = 1 << 20;

/// Bytes that are moved at a time: few enough to stay in the processor's caches.
pub const PIECE: usize = 1 << 18;

/// Bytes after which a direction counts as busy.
const BUSY: usize = 1 << 18;

/// What the smallest transfer counts for, so that tiny ones end a turn as well.
const LEAST: usize = 1 << 12;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Move at most so many bytes from the socket of side `from` to that direction's pipe, which is
    /// empty.
    Fill {
        /// The socket.
        from: Side,
        /// How many bytes at most.
        max: usize,
    },
    /// Move so many bytes from the pipe of the other direction to the socket of side `to`.
    Drain {
        /// The socket.
        to: Side,
        /// How many bytes there are.
        len: usize,
    },
    /// End the writing half of the socket of side `to`.
    Finish {
        /// The socket.
        to: Side,
    },
    /// Let the socket of side `to` send as fast as it can: it has much to carry.
    Hurry {
        /// The socket.
        to: Side,
    },
    /// Nothing, until a socket is ready.
    Wait,
    /// There is more to do, but others have their turn first ([`Conn::begin_turn`]).
    Yield,
    /// Close both sockets: all was passed on.
    Close,
    /// Reset both sockets.
    Reset,
}

/// What came of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many bytes were moved; none at all, when filling, is the end of the stream.
    Moved(usize),
    /// The socket has nothing, or takes nothing.
    Blocked,
    /// The socket has failed.
    Failed,
}

/// A socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    readable: bool,
    writable: bool,
    failed: bool,
}

/// A direction, named after the side that it comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Way {
    /// Bytes in the pipe.
    pending: usize,
    /// Bytes that were taken, as far as it matters: up to [`BUSY`].
    taken: usize,
    /// It was told to hurry.
    hurries: bool,
    /// All was read.
    ended: bool,
    /// The end was passed on.
    finished: bool,
}

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conn {
    ends: [End; 2],
    ways: [Way; 2],
    /// The direction that is asked first, so that they take turns.
    first: Side,
    /// What is left of this turn.
    left: usize,
}

impl Conn {
    /// A connection of which one socket was accepted and the other one is connecting. Nothing is
    /// taken from either before both have said that they are writable.
    pub const fn new() -> Self {
        let end = End { readable: false, writable: false, failed: false };
        let way = Way { pending: 0, taken: 0, hurries: false, ended: false, finished: false };
        Self { ends: [end; 2], ways: [way; 2], first: Side::Outside, left: TURN }
    }

    const fn end(&self, side: Side) -> &End {
        let [outside, inside] = &self.ends;
        match side {
            Side::Outside => outside,
            Side::Inside => inside,
        }
    }

    const fn end_mut(&mut self, side: Side) -> &mut End {
        let [outside, inside] = &mut self.ends;
        match side {
            Side::Outside => outside,
            Side::Inside => inside,
        }
    }

    const fn way(&self, from: Side) -> &Way {
        let [outside, inside] = &self.ways;
        match from {
            Side::Outside => outside,
            Side::Inside => inside,
        }
    }

    const fn way_mut(&mut self, from: Side) -> &mut Way {
        let [outside, inside] = &mut self.ways;
        match from {
            Side::Outside => outside,
            Side::Inside => inside,
        }
    }

    /// Bytes that are in the pipe of the direction from `from`.
    pub const fn pending(&self, from: Side) -> usize {
        self.way(from).pending
    }

    /// The socket of `side` is ready. Hang-ups say nothing that the next transfer does not say.
    pub const fn on_ready(&mut self, side: Side, ready: Readiness) {
        let gone = ready.hung_up || ready.error;
        let end = self.end_mut(side);
        end.readable |= ready.readable || ready.read_closed || gone;
        end.writable |= ready.writable || gone;
        end.failed |= ready.error;
    }

    /// The connection has its turn again.
    pub const fn begin_turn(&mut self) {
        self.left = TURN;
    }

    /// What to do next.
    pub fn next_step(&mut self) -> Step {
        match self.step() {
            Some(Step::Fill { .. }) if self.left == 0 => return Step::Yield,
            Some(Step::Fill { from, max }) => {
                let way = self.way_mut(from);
                if way.taken >= BUSY && !way.hurries {
                    way.hurries = true;
                    return Step::Hurry { to: from.other() };
                }
                self.first = from.other();
                return Step::Fill { from, max };
            }
            Some(step) => return step,
            None => {}
        }
        let [outside, inside] = &self.ways;
        if outside.finished && inside.finished {
            return Step::Close;
        }
        if self.is_dead() { Step::Reset } else { Step::Wait }
    }

    /// Whether a socket has failed and nothing of its peer is left that the other could take.
    fn is_dead(&self) -> bool {
        let [outside, inside] = &self.ends;
        let is_exhausted = |side| {
            let (end, way) = (self.end(side), self.way(side));
            end.failed && way.pending == 0 && (way.ended || !end.readable)
        };
        (outside.failed && inside.failed)
            || is_exhausted(Side::Outside)
            || is_exhausted(Side::Inside)
    }

    /// What is under way goes first, so that pipes get empty.
    fn step(&self) -> Option<Step> {
        let order = [self.first, self.first.other()];
        let deliver = order.into_iter().find_map(|from| self.deliver(from));
        deliver.or_else(|| order.into_iter().find_map(|from| self.fetch(from)))
    }

    /// What the direction from `from` can pass on.
    fn deliver(&self, from: Side) -> Option<Step> {
        let (to, way) = (from.other(), self.way(from));
        let target = self.end(to);
        if target.failed {
            // Nobody is there to take it.
            None
        } else if way.pending > 0 {
            target.writable.then_some(Step::Drain { to, len: way.pending })
        } else {
            (way.ended && !way.finished).then_some(Step::Finish { to })
        }
    }

    /// What the direction from `from` can take: nothing that could not be passed on.
    fn fetch(&self, from: Side) -> Option<Step> {
        let (way, source, target) = (self.way(from), self.end(from), self.end(from.other()));
        let idle = way.pending == 0 && !way.ended;
        let able = source.readable && target.writable && !target.failed;
        (idle && able).then_some(Step::Fill { from, max: self.left.clamp(LEAST, PIECE) })
    }

    /// What came of [`Step::Fill`].
    pub fn on_filled(&mut self, from: Side, outcome: Outcome) {
        match outcome {
            Outcome::Moved(0) => self.way_mut(from).ended = true,
            Outcome::Moved(n) => {
                let way = self.way_mut(from);
                way.pending = n;
                way.taken = way.taken.saturating_add(n).min(BUSY);
                self.left = self.left.saturating_sub(n.max(LEAST));
            }
            Outcome::Blocked => self.end_mut(from).readable = false,
            Outcome::Failed => self.fail(from),
        }
    }

    /// What came of [`Step::Drain`].
    pub fn on_drained(&mut self, to: Side, outcome: Outcome) {
        match outcome {
            Outcome::Moved(n) => {
                let way = self.way_mut(to.other());
                way.pending = way.pending.saturating_sub(n);
            }
            Outcome::Blocked => self.end_mut(to).writable = false,
            Outcome::Failed => self.fail(to),
        }
    }

    /// What came of [`Step::Finish`].
    pub const fn on_finished(&mut self, to: Side, done: bool) {
        if done {
            self.way_mut(to.other()).finished = true;
        } else {
            self.end_mut(to).failed = true;
        }
    }

    /// The socket of `side` has said so: nothing is to be read there any more.
    const fn fail(&mut self, side: Side) {
        let end = self.end_mut(side);
        end.failed = true;
        end.readable = false;
    }
}

impl Default for Conn {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
