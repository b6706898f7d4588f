//! The table of `--stats`: which counters there are, and when they are shown.
//!
//! It is made from counters that are kept anyway, and only when something has happened: an idle
//! process is not woken for it. Knows nothing of where it is printed.

use crate::time::{Duration, Instant};
use crate::token::Token;
use std::fmt::Write as _;

/// A counter: what it counts, and how often that has happened or is the case.
pub type Counter = (&'static str, u64);

/// What the loop itself counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Events {
    link: u64,
    listeners: u64,
    tcp: u64,
    datagrams: u64,
    frames: u64,
}

/// Counters between two tables.
#[derive(Debug)]
pub struct Statistics {
    every: Duration,
    /// No table before this.
    earliest: Instant,
    /// Something has happened since the last table: the next is due then.
    due: Option<Instant>,
    events: Events,
    shown: Vec<Counter>,
}

impl Statistics {
    /// A table at most every so often; the first one as soon as something happens.
    pub const fn new(every: Duration) -> Self {
        let events = Events { link: 0, listeners: 0, tcp: 0, datagrams: 0, frames: 0 };
        Self { every, earliest: Instant::ZERO, due: None, events, shown: Vec::new() }
    }

    /// Counts an event.
    pub(super) const fn event(&mut self, token: Token) {
        let count = match token {
            Token::Link(_) => &mut self.events.link,
            Token::Listener(_) => &mut self.events.listeners,
            Token::Tcp(_) | Token::Splice(..) => &mut self.events.tcp,
            Token::Datagram(_) | Token::Relay(..) => &mut self.events.datagrams,
            Token::Signal | Token::Runtime(_) => return,
        };
        *count = count.wrapping_add(1);
    }

    /// Counts frames from the guest.
    pub(super) const fn frames(&mut self, n: usize) {
        self.events.frames = self.events.frames.wrapping_add(n as u64);
    }

    /// When [`Statistics::turn`] wants to be called at the latest.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A turn of the loop has ended. Returns a table, if it is time for one and what `gather` adds
    /// to our own counters differs from the last one.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        gather: impl FnOnce(&mut Vec<Counter>),
    ) -> Option<String> {
        let due = *self.due.get_or_insert(self.earliest);
        if due > now {
            return None;
        }
        self.due = None;
        let Events { link, listeners, tcp, datagrams, frames } = self.events;
        let mut counters = vec![
            ("events of the link", link),
            ("events of listeners", listeners),
            ("events of TCP sockets", tcp),
            ("events of UDP and ping sockets", datagrams),
            ("frames from the guest", frames),
        ];
        gather(&mut counters);
        if counters == self.shown {
            return None;
        }
        self.earliest = now + self.every;
        let table = table(&counters, &self.shown);
        self.shown = counters;
        Some(table)
    }
}

/// A line for each counter that is not zero, or was not: its change, its value and its name.
fn table(counters: &[Counter], before: &[Counter]) -> String {
    let mut text = "      change        value  counter\n".to_owned();
    for &(name, value) in counters {
        let old = before.iter().find(|(n, _)| *n == name).map_or(0, |(_, value)| *value);
        if value == 0 && old == 0 {
            continue;
        }
        let change = i128::from(value) - i128::from(old);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{change:>+12} {value:>12}  {name}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn nothing(_: &mut Vec<Counter>) {}

    #[test]
    fn the_first_table_comes_at_once_and_the_next_ones_after_the_delay() {
        let mut statistics = Statistics::new(Duration::from_secs(5));
        assert_eq!(statistics.due(), None);
        statistics.event(Token::Link(0));
        assert!(statistics.turn(at(1), nothing).is_some());
        assert_eq!(statistics.due(), None, "nobody is woken for nothing");
        statistics.event(Token::Link(0));
        assert_eq!(statistics.turn(at(2), |_| panic!("is not asked")), None);
        statistics.event(Token::Link(0));
        assert_eq!(statistics.turn(at(5), |_| panic!("is not asked")), None);
        assert_eq!(statistics.due(), Some(at(6)));
        let table = statistics.turn(at(6), nothing).unwrap();
        assert!(table.contains("          +2            3  events of the link\n"), "{table}");
        assert!(statistics.due().is_none());
    }

    #[test]
    fn what_has_not_changed_is_not_shown_again() {
        let mut statistics = Statistics::new(Duration::from_secs(5));
        statistics.frames(7);
        assert!(statistics.turn(at(1), nothing).is_some());
        for second in 2..20 {
            assert_eq!(statistics.turn(at(second), nothing), None);
        }
        statistics.frames(1);
        assert!(statistics.turn(at(20), nothing).is_some());
    }

    #[test]
    fn the_table_has_a_line_for_what_is_or_was_and_changes_may_be_negative() {
        let mut statistics = Statistics::new(Duration::ZERO);
        let flows = |n| move |counters: &mut Vec<Counter>| counters.push(("TCP flows", n));
        let table = statistics.turn(at(1), flows(2)).unwrap();
        assert_eq!(
            table,
            "      change        value  counter\n          +2            2  TCP flows\n"
        );
        let table = statistics.turn(at(2), flows(0)).unwrap();
        assert!(table.ends_with("          -2            0  TCP flows\n"), "{table}");
        assert_eq!(statistics.turn(at(3), flows(0)), None);
    }
}
