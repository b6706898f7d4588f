//! The event loop: the only place that waits, and the only one that reads a clock.
//!
//! Knows the engine, the seams and epoll; nothing of protocols or of any one link.

pub mod host_watch;
pub mod resolv;
pub mod statistics;
pub mod worker;

use crate::time::Instant;

/// The monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: std::time::Instant,
}

impl Clock {
    /// A clock that starts a second from zero, so that subtracting a little never saturates.
    #[must_use]
    pub fn start() -> Self {
        Self { epoch: std::time::Instant::now() }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Instant {
        const HEAD_START: u64 = 1_000_000_000;
        let nanos = self.epoch.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).saturating_add(HEAD_START))
    }
}

/// The time of day, for captures: seconds since 1970 and microseconds.
#[must_use]
pub fn time_of_day() -> (u64, u32) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or((0, 0), |since| (since.as_secs(), since.subsec_micros()))
}
