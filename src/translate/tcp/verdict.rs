//! The values that go into the machine and come out of it.

use crate::time::Duration;
use crate::wire::seq::{Mss, SeqNum, UnscaledWindow, WindowScale};
use std::ops::Range;

/// Control bits of a segment but ACK, which is `Segment::ack` and `Outgoing::ack`. URG is not
/// looked at: urgent data stays in line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Synchronise sequence numbers.
    pub syn: bool,
    /// No more data from the sender.
    pub fin: bool,
    /// Reset the connection.
    pub rst: bool,
    /// Push.
    pub psh: bool,
}

/// A segment from the guest; with segmentation offload it may be 64 KiB long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first byte (or of the SYN).
    pub seq: SeqNum,
    /// The acknowledgement number, if the ACK bit is set.
    pub ack: Option<SeqNum>,
    /// The other control bits.
    pub flags: Flags,
    /// The window field.
    pub window: UnscaledWindow,
    /// Bytes of payload.
    pub payload_len: usize,
    /// The MSS option; only read in segments with SYN.
    pub mss: Option<Mss>,
    /// The window scale option; only read in segments with SYN.
    pub window_scale: Option<WindowScale>,
}

/// A segment to the guest, but its payload. Options go out exactly as given: first MSS, then one
/// NOP and the window scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Sequence number of the first byte (or of the SYN or FIN).
    pub seq: SeqNum,
    /// The acknowledgement number; sets the ACK bit.
    pub ack: Option<SeqNum>,
    /// The other control bits.
    pub flags: Flags,
    /// The window field.
    pub window: UnscaledWindow,
    /// The MSS option.
    pub mss: Option<Mss>,
    /// The window scale option.
    pub window_scale: Option<WindowScale>,
}

/// What a connection may use; the same for all connections of a link and family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The MSS that we announce: the MTU less 40 (IPv4) or 60 (IPv6).
    pub mss: Mss,
    /// The largest payload that we send in one packet, whatever the guest announces: 65 492 over
    /// IPv4, 65 472 over IPv6, less if the link's frames are smaller.
    pub max_send_mss: Mss,
    /// The largest window that we announce, in bytes; at most 16 MiB can be shown.
    pub max_window: u32,
    /// Bytes that the staging of one flow takes. Without [`Room`] from the socket this alone is the
    /// window, so that no system call is needed to know it.
    pub staging: u32,
    /// How long we try.
    pub patience: Patience,
}

/// How long a guest that does not answer is tried: as this host's kernel would try it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// SYNs (or SYN-ACKs) repeated before we give up, at most 7.
    pub syn_retries: u8,
    /// So many of these are sent a second apart before the distance doubles
    /// (`tcp_syn_linear_timeouts`).
    pub syn_linear_timeouts: u8,
    /// The longest retransmission timeout (`tcp_rto_max_ms`).
    pub max_rto: Duration,
}

impl Patience {
    /// What holds where nothing is configured, as for Linux.
    pub const DEFAULT: Self =
        Self { syn_retries: 7, syn_linear_timeouts: 4, max_rto: Duration::from_secs(120) };

    /// SYNs repeated at most.
    const MOST: u8 = 7;

    /// From the text of the sysctls `tcp_syn_retries` (to which the linear ones come on top),
    /// `tcp_syn_linear_timeouts` and `tcp_rto_max_ms`. Linux's defaults, where there is no number.
    pub fn new(retries: Option<&str>, linear: Option<&str>, rto_max: Option<&str>) -> Self {
        let or = |text: Option<&str>, default: u32| {
            text.and_then(|text| text.trim().parse().ok()).unwrap_or(default)
        };
        let (retries, linear) = (or(retries, 6), or(linear, 4).min(Self::MOST.into()));
        let all = retries.saturating_add(linear);
        let small = |n: u32| u8::try_from(n).map_or(Self::MOST, |n| n.min(Self::MOST));
        Self {
            syn_retries: small(all),
            syn_linear_timeouts: small(linear),
            // As far as the kernel lets it be set.
            max_rto: Duration::from_millis(or(rto_max, 120_000).clamp(1000, 120_000).into()),
        }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Limits {
    /// The window of a handshake as long as nothing is known of the peer's, in bytes.
    pub const HANDSHAKE_WINDOW: u16 = 14_600;

    /// The shift of the windows that we show: 8, so that a window can be 16 MiB.
    pub const WINDOW_SCALE: WindowScale = WindowScale::new(8);

    /// What holds unless something is configured, for an MTU of 65 520 over IPv4.
    pub const DEFAULT: Self = Self {
        mss: Mss(65_480),
        max_send_mss: Mss(65_492),
        max_window: 16 << 20,
        staging: 1 << 20,
        patience: Patience::DEFAULT,
    };
}

/// What the engine must do about one segment. Segments of a batch are offered one by one, and all
/// their bytes are settled together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The part of the payload that is next in order. It is taken for accepted: it goes behind all
    /// bytes that are staged or fresh already, to the socket or, as far as that takes less, to
    /// the staging.
    pub fresh: Range<usize>,
    /// A part of the payload that is ahead of what is expected, to be held; then `fresh` is empty.
    pub held: Option<Held>,
    /// So many held bytes follow `fresh` directly now: they are to be sent or staged right behind
    /// it, and settled with it.
    pub joined: usize,
    /// So many bytes the guest has newly acknowledged: discard them from the socket, before the
    /// next peek.
    pub discard: usize,
    /// The guest has probed the idle connection: switch on keepalives towards the peer.
    pub keepalive: bool,
    /// The segment does not belong to this connection: answer it with a RST as if there was no
    /// flow (RFC 9293 3.5.2 group 1). The connection goes on.
    pub reject: bool,
    /// The segment is a SYN that opens another connection on the same ports: it is to be treated as
    /// if there was no flow. This connection has ended, or goes on without the guest as long as
    /// bytes are left for the peer.
    pub makes_way: bool,
}

/// Out-of-order bytes that the engine holds. What is held is never more than the advertised window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which part of the payload.
    pub range: Range<usize>,
    /// Where it belongs: so many bytes behind the next byte expected, that is behind all bytes
    /// that were fresh or joined so far. It may overlap what is held already, with equal bytes
    /// (whoever sends unequal ones does not care).
    pub offset: usize,
}

/// What the socket can take: from [`crate::host::StreamInfo`] and the engine's own accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that the socket's send buffer takes; 0 is always honest.
    pub send_room: u32,
    /// Bytes that the flow's staging takes on top of what is in it.
    pub staging_room: u32,
    /// The peer's window; `None` on kernels that do not tell.
    pub peer_window: Option<u32>,
    /// Round-trip time to the peer: how often asking again is worth it.
    pub rtt: Duration,
}

/// Why data is sent to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// It is next in order. (After a timeout this may have been sent before.)
    Next,
    /// Three duplicate ACKs, or a partial one, ask for the first bytes in flight.
    Retransmission,
    /// The guest's window is closed, and it is time to ask.
    WindowProbe,
}

/// What to peek for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeekPlan {
    /// Bytes at the front of the socket's queue to leave out: they are in flight.
    pub skip: usize,
    /// Bytes to peek at most; at least 1.
    pub budget: usize,
    /// Payload of one packet at most (`gso_size` of a segmented frame).
    pub mss: Mss,
    /// The sequence number of the first peeked byte.
    pub seq: SeqNum,
    /// Why.
    pub sending: Sending,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_read_from_sysctls_and_bounded() {
        assert_eq!(Patience::new(None, None, None), Patience::DEFAULT);
        assert_eq!(Patience::new(Some("6\n"), Some("x"), Some("")), Patience::DEFAULT);
        let of = |retries, linear, max_rto| {
            let Patience { syn_retries, syn_linear_timeouts, max_rto } =
                Patience::new(Some(retries), Some(linear), Some(max_rto));
            (syn_retries, syn_linear_timeouts, max_rto.as_millis())
        };
        assert_eq!(of("2\n", "1\n", "5000\n"), (3, 1, 5000));
        assert_eq!(of("127", "127", "999999999"), (7, 7, 120_000));
        assert_eq!(of("1", "0", "0"), (1, 0, 1000));
        assert_eq!(of("4294967295", "4294967295", "-1"), (7, 7, 120_000));
    }
}
