//! How long a UDP exchange or a ping lasts: there is no end to see, so silence ends it.

use crate::flow::Protocol;
use crate::time::{Duration, Instant};

/// How long silence may last before a UDP exchange ends: as connection tracking has it, whose
/// defaults these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A one-way exchange, or one request with its reply (`nf_conntrack_udp_timeout`).
    pub single: Duration,
    /// An exchange of several datagrams both ways (`nf_conntrack_udp_timeout_stream`).
    pub stream: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { single: Duration::from_secs(30), stream: Duration::from_secs(120) }
    }
}

impl Timeouts {
    /// From the text of both sysctls: seconds, of which there is at least one. The defaults, where
    /// there is no number.
    pub fn new(single: Option<&str>, stream: Option<&str>) -> Self {
        let default = Self::default();
        let or = |text: Option<&str>, default| {
            let seconds = text.and_then(|text| text.trim().parse::<u32>().ok());
            seconds.map_or(default, |n| Duration::from_secs(n.max(1).into()))
        };
        Self { single: or(single, default.single), stream: or(stream, default.stream) }
    }
}

/// Echo requests of one identifier.
pub const ECHO_TIMEOUT: Duration = Duration::from_secs(60);

/// The life of one flow of datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    protocol: Protocol,
    sent: u8,
    answered: u8,
    last: Instant,
}

impl Lifetime {
    /// A flow that begins now, with a datagram that is yet to be counted.
    pub const fn new(protocol: Protocol, now: Instant) -> Self {
        Self { protocol, sent: 0, answered: 0, last: now }
    }

    /// A datagram went the way that opened the flow.
    pub const fn on_sent(&mut self, now: Instant) {
        self.sent = self.sent.saturating_add(1);
        self.last = now;
    }

    /// A datagram came back.
    pub const fn on_answered(&mut self, now: Instant) {
        self.answered = self.answered.saturating_add(1);
        self.last = now;
    }

    /// Whether nothing has come back yet.
    pub const fn is_unanswered(&self) -> bool {
        self.answered == 0
    }

    /// When the flow ends, if nothing more comes.
    pub fn deadline(&self, timeouts: &Timeouts) -> Instant {
        let stream = self.answered > 0 && (self.sent >= 2 || self.answered >= 2);
        self.last
            + match self.protocol {
                Protocol::Echo => ECHO_TIMEOUT,
                _ if stream => timeouts.stream,
                _ => timeouts.single,
            }
    }

    /// Whether the flow has ended.
    pub fn is_over(&self, now: Instant, timeouts: &Timeouts) -> bool {
        self.deadline(timeouts) <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_lasts_as_long_as_connection_tracking_would_keep_it() {
        let later = Instant::ZERO + Duration::from_secs(1);
        let Timeouts { single, stream } = Timeouts::default();
        let timeouts = Timeouts::default();
        for (protocol, sent, answered, expected) in [
            (Protocol::Udp, 1, 0, single),
            (Protocol::Udp, 9, 0, single),
            (Protocol::Udp, 1, 1, single),
            (Protocol::Udp, 2, 1, stream),
            (Protocol::Udp, 1, 2, stream),
            (Protocol::Echo, 5, 5, ECHO_TIMEOUT),
        ] {
            let mut life = Lifetime::new(protocol, Instant::ZERO);
            (0..sent).for_each(|_| life.on_sent(later));
            (0..answered).for_each(|_| life.on_answered(later));
            assert_eq!(
                life.deadline(&timeouts),
                later + expected,
                "{protocol:?} {sent} {answered}"
            );
            assert!(!life.is_over(later, &timeouts) && life.is_over(later + expected, &timeouts));
        }
    }
    #[test]
    fn the_hosts_own_timeouts_are_taken_where_there_are_any() {
        for (single, stream, expected) in [
            (None, None, (30, 120)),
            (Some("30\n"), Some("120\n"), (30, 120)),
            (Some("5\n"), None, (5, 120)),
            (None, Some(" 3600 "), (30, 3600)),
            (Some("0\n"), Some("0"), (1, 1)),
            (Some(""), Some("soon"), (30, 120)),
            (Some("-1"), Some("99999999999"), (30, 120)),
            (Some("4294967295"), Some("1.5"), (u32::MAX, 120)),
        ] {
            let (a, b) = (Duration::from_secs(expected.0.into()), Duration::from_secs(expected.1));
            assert_eq!(Timeouts::new(single, stream), Timeouts { single: a, stream: b });
        }
        let mut life = Lifetime::new(Protocol::Udp, Instant::ZERO);
        life.on_sent(Instant::ZERO);
        let timeouts = Timeouts::new(Some("5"), Some("7"));
        assert_eq!(life.deadline(&timeouts), Instant::ZERO + Duration::from_secs(5));
        (0..2).for_each(|_| life.on_answered(Instant::ZERO));
        assert_eq!(life.deadline(&timeouts), Instant::ZERO + Duration::from_secs(7));
        let far = Instant::ZERO + Duration::from_secs(u32::MAX.into());
        let long = Timeouts::new(Some("4294967295"), None);
        assert!(Lifetime::new(Protocol::Udp, far).deadline(&long) > far);
    }
}
