//! Time: the retransmission timeout (RFC 6298), the one timer of a connection, and the limit of
//! challenge ACKs.

use crate::time::{Duration, Instant};
use crate::wire::seq::SeqNum;

/// The shortest timeout (RFC 6298 2.4). The link loses nothing, so a shorter one would only fire
/// when the guest's CPU is taken away for a while, and cause the only retransmissions there are.
const MIN_RTO: Duration = Duration::from_secs(1);

/// The timeout after a SYN had to be repeated and nothing was measured (RFC 6298 5.7).
const RTO_AFTER_SYN_RETRY: Duration = Duration::from_secs(3);

/// The granularity of the variance term (RFC 6298 2.3).
const GRANULARITY_MICROS: u32 = 1000;

/// How long the guest takes to answer, and how long we wait for it.
#[derive(Debug, Default)]
pub(super) struct RttEstimator {
    /// What is being timed: an ACK for this or more ends the measurement. The time it was sent is
    /// in microseconds modulo 2^32, more than any timeout.
    timed: Option<(SeqNum, u32)>,
    /// SRTT and RTTVAR in microseconds.
    smoothed: Option<(u32, u32)>,
    syn_retried: bool,
}

impl RttEstimator {
    /// Bytes up to `end` were sent for the first time.
    pub(super) fn on_sent(&mut self, end: SeqNum, now: Instant) {
        if self.timed.is_none() {
            self.timed = Some((end, micros(now)));
        }
    }

    /// Something was sent again: an ACK no longer tells of which copy (Karn; RFC 6298 3).
    pub(super) fn on_retransmitted(&mut self) {
        self.timed = None;
    }

    /// The SYN was sent again.
    pub(super) fn on_syn_retried(&mut self) {
        self.on_retransmitted();
        self.syn_retried = true;
    }

    /// The guest has acknowledged all before `ack`.
    pub(super) fn on_ack(&mut self, ack: SeqNum, now: Instant) {
        let Some((end, sent)) = self.timed else { return };
        if ack.before(end) {
            return;
        }
        self.timed = None;
        let sample = micros(now).wrapping_sub(sent).min(u32::MAX / 16);
        self.smoothed = Some(match self.smoothed {
            None => (sample, sample / 2),
            Some((srtt, var)) => {
                (srtt - srtt / 8 + sample / 8, var - var / 4 + srtt.abs_diff(sample) / 4)
            }
        });
    }

    /// The timeout after `tries` timeouts in a row.
    pub(super) fn rto(&self, tries: u8, max: Duration) -> Duration {
        let first = match self.smoothed {
            Some((srtt, var)) => {
                let spread = var.saturating_mul(4).max(GRANULARITY_MICROS);
                Duration::from_micros(srtt.saturating_add(spread).into()).max(MIN_RTO)
            }
            None if self.syn_retried => RTO_AFTER_SYN_RETRY,
            None => MIN_RTO,
        };
        first.saturating_mul(1 << tries.min(16)).min(max)
    }
}

fn micros(at: Instant) -> u32 {
    (at.as_nanos() / 1000) as u32
}

/// What the timer of a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// The guest has not answered our SYN or SYN-ACK, or the socket has not connected.
    Handshake,
    /// The guest has not acknowledged what is in flight.
    Retransmit,
    /// The guest's window is closed: ask whether it still is (RFC 9293 3.8.6.1).
    Probe,
}

/// The timer: at most one alarm at a time, and how often it has rung in a row.
#[derive(Debug, Default)]
pub(super) struct Timer {
    armed: Option<Alarm>,
    /// When it rings, if it is armed.
    at: Instant,
    tries: u8,
}

impl Timer {
    pub(super) fn rings_at(&self) -> Option<Instant> {
        self.armed.map(|_| self.at)
    }

    pub(super) fn is(&self, alarm: Alarm) -> bool {
        self.armed == Some(alarm)
    }

    pub(super) const fn tries(&self) -> u8 {
        self.tries
    }

    pub(super) fn arm(&mut self, alarm: Alarm, at: Instant) {
        self.armed = Some(alarm);
        self.at = at;
    }

    pub(super) fn disarm(&mut self) {
        self.armed = None;
    }

    /// The guest has made progress.
    pub(super) fn forgive(&mut self) {
        self.tries = 0;
    }

    /// The alarm that is due, disarmed and counted. The caller arms it again when something was
    /// sent for it: no timeout counts as long as the link takes nothing.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Alarm> {
        if now < self.at {
            return None;
        }
        let alarm = self.armed.take()?;
        self.tries = self.tries.saturating_add(1);
        Some(alarm)
    }
}

/// How long we wait before window probe `tries`, counted from 0. Short at first: the update is
/// never lost on the way, but some kernels forget to send it after they ran out of memory.
pub(super) fn probe_interval(tries: u8) -> Duration {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(60);
    FIRST.saturating_mul(1 << tries.min(16)).min(LONGEST)
}

/// When SYN number `tries`, counted from 0, has had no answer for long enough: so many a second
/// apart, then doubling.
pub(super) fn syn_interval(tries: u8, linear: u8) -> Duration {
    Duration::from_secs(1 << tries.saturating_sub(linear).min(6))
}

/// Limits answers to segments that may be forged: 10 a second (RFC 5961 7).
#[derive(Debug, Default)]
pub(super) struct ChallengeLimit {
    second: u32,
    count: u8,
}

impl ChallengeLimit {
    const PER_SECOND: u8 = 10;

    /// Whether one more may be sent now.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let second = (now.as_nanos() / 1_000_000_000) as u32;
        if second != self.second {
            *self = Self { second, count: 0 };
        }
        let allowed = self.count < Self::PER_SECOND;
        self.count += u8::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(120);

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn the_timeout_follows_the_measured_time_and_has_a_floor() {
        let mut rtt = RttEstimator::default();
        assert_eq!(rtt.rto(0, MAX), Duration::from_secs(1));
        rtt.on_sent(SeqNum(10), at(0));
        rtt.on_ack(SeqNum(9), at(5));
        rtt.on_ack(SeqNum(10), at(2000));
        assert_eq!(rtt.rto(0, MAX), Duration::from_secs(2 + 4));
        rtt.on_sent(SeqNum(20), at(3000));
        rtt.on_ack(SeqNum(20), at(5000));
        assert_eq!(rtt.rto(0, MAX), Duration::from_secs(2 + 3));
        assert_eq!(rtt.rto(1, MAX), Duration::from_secs(10));
        assert_eq!(rtt.rto(250, MAX), MAX);
    }

    #[test]
    fn what_was_sent_twice_is_not_measured() {
        let mut rtt = RttEstimator::default();
        rtt.on_sent(SeqNum(10), at(0));
        rtt.on_retransmitted();
        rtt.on_ack(SeqNum(10), at(9000));
        assert_eq!(rtt.rto(0, MAX), Duration::from_secs(1));
        rtt.on_syn_retried();
        assert_eq!(rtt.rto(0, MAX), Duration::from_secs(3));
    }

    #[test]
    fn a_very_long_time_does_not_overflow() {
        let mut rtt = RttEstimator::default();
        for _ in 0..100 {
            rtt.on_sent(SeqNum(1), Instant::ZERO);
            rtt.on_ack(SeqNum(1), Instant::from_nanos(u64::MAX));
        }
        assert_eq!(rtt.rto(0, MAX), MAX);
    }

    #[test]
    fn an_alarm_rings_once() {
        let mut timer = Timer::default();
        timer.arm(Alarm::Retransmit, at(10));
        assert_eq!(timer.take_due(at(9)), None);
        assert!(timer.is(Alarm::Retransmit) && !timer.is(Alarm::Probe));
        assert_eq!(timer.take_due(at(10)), Some(Alarm::Retransmit));
        assert_eq!((timer.take_due(at(10)), timer.rings_at(), timer.tries()), (None, None, 1));
    }

    #[test]
    fn challenges_are_limited_per_second() {
        let mut limit = ChallengeLimit::default();
        assert_eq!((0..50).filter(|_| limit.allows(at(5000))).count(), 10);
        assert!(!limit.allows(at(5999)));
        assert!(limit.allows(at(6000)));
    }
}
