//! How many messages a place in the code may log. Pure: `now` comes in.

use crate::time::{Duration, Instant};
use std::sync::{Mutex, PoisonError};

/// The length of a window.
const WINDOW: Duration = Duration::from_secs(1);

/// Messages that pass in a window.
const BURST: u32 = 5;

/// Lets five messages a second pass, and counts the others.
#[derive(Debug)]
pub struct Limiter {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the current window began; `None` before the first message.
    began: Option<Instant>,
    passed: u32,
    refused: u64,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Log it.
    Passed,
    /// Log it, and say that so many before it were not.
    PassedAfter(u64),
    /// Do not log it.
    Refused,
}

impl Limiter {
    /// A limiter that has seen nothing.
    pub const fn new() -> Self {
        Self { state: Mutex::new(State { began: None, passed: 0, refused: 0 }) }
    }

    /// Decides on a message at `now`.
    pub fn admit(&self, now: Instant) -> Admission {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.began.is_none_or(|began| now.since(began) >= WINDOW) {
            state.began = Some(now);
            state.passed = 0;
        }
        if state.passed >= BURST {
            state.refused = state.refused.saturating_add(1);
            return Admission::Refused;
        }
        state.passed += 1;
        match std::mem::take(&mut state.refused) {
            0 => Admission::Passed,
            n => Admission::PassedAfter(n),
        }
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn five_pass_a_second_and_the_next_window_says_how_many_did_not() {
        let limiter = Limiter::new();
        for _ in 0..5 {
            assert_eq!(limiter.admit(at(100)), Admission::Passed);
        }
        for _ in 0..7 {
            assert_eq!(limiter.admit(at(1099)), Admission::Refused);
        }
        assert_eq!(limiter.admit(at(1100)), Admission::PassedAfter(7));
        assert_eq!(limiter.admit(at(1100)), Admission::Passed);
    }

    #[test]
    fn a_clock_that_steps_back_lets_nothing_more_through() {
        let limiter = Limiter::new();
        for _ in 0..5 {
            assert_eq!(limiter.admit(at(5000)), Admission::Passed);
        }
        assert_eq!(limiter.admit(at(0)), Admission::Refused);
    }
}
