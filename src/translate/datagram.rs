//! How long a UDP exchange or a ping lasts: there is no end to see, so silence ends it.

use crate::flow::Protocol;
use crate::time::{Duration, Instant};

/// A one-way exchange, or one request with its reply (`nf_conntrack_udp_timeout`).
pub const UDP_TIMEOUT: Duration = Duration::from_secs(30);

/// An exchange of several datagrams both ways (`nf_conntrack_udp_timeout_stream`).
pub const UDP_STREAM_TIMEOUT: Duration = Duration::from_secs(120);

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

    /// When the flow ends, if nothing more comes.
    pub fn deadline(&self) -> Instant {
        let stream = self.answered > 0 && (self.sent >= 2 || self.answered >= 2);
        self.last
            + match self.protocol {
                Protocol::Echo => ECHO_TIMEOUT,
                _ if stream => UDP_STREAM_TIMEOUT,
                _ => UDP_TIMEOUT,
            }
    }

    /// Whether the flow has ended.
    pub fn is_over(&self, now: Instant) -> bool {
        self.deadline() <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_lasts_as_long_as_connection_tracking_would_keep_it() {
        let later = Instant::ZERO + Duration::from_secs(1);
        for (protocol, sent, answered, expected) in [
            (Protocol::Udp, 1, 0, UDP_TIMEOUT),
            (Protocol::Udp, 9, 0, UDP_TIMEOUT),
            (Protocol::Udp, 1, 1, UDP_TIMEOUT),
            (Protocol::Udp, 2, 1, UDP_STREAM_TIMEOUT),
            (Protocol::Udp, 1, 2, UDP_STREAM_TIMEOUT),
            (Protocol::Echo, 5, 5, ECHO_TIMEOUT),
        ] {
            let mut life = Lifetime::new(protocol, Instant::ZERO);
            (0..sent).for_each(|_| life.on_sent(later));
            (0..answered).for_each(|_| life.on_answered(later));
            assert_eq!(life.deadline(), later + expected, "{protocol:?} {sent} {answered}");
            assert!(!life.is_over(later) && life.is_over(later + expected));
        }
    }
}
