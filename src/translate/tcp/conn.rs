//! The connection: its states, and the calls of the engine.

use super::{Limits, Outgoing, PeekPlan, Room, Segment, Verdict};
use crate::time::Instant;
use crate::token::Interest;
use crate::wire::seq::SeqNum;

/// One TCP connection between the guest and a socket. See the [module](super) for its use.
#[derive(Debug)]
pub struct Conn {}

impl Conn {
    /// The guest has sent `syn`: SYN set, ACK, FIN and RST clear. The socket is connecting.
    pub fn guest_opens(syn: &Segment, isn: SeqNum, limits: &Limits, now: Instant) -> Self {
        let _ = (syn, isn, limits, now);
        Self {}
    }

    /// A listener has accepted a peer: a SYN to the guest is due.
    pub fn peer_opens(isn: SeqNum, limits: &Limits, now: Instant) -> Self {
        let _ = (isn, limits, now);
        Self {}
    }

    /// The socket is connected: the SYN-ACK to the guest is due. (Call [`Self::on_room`] before, if
    /// the peer's window is known.)
    pub fn on_connected(&mut self, now: Instant) {
        let _ = now;
    }

    /// The socket could not connect: RST to the guest.
    pub fn on_connect_failed(&mut self) {}

    /// The socket has failed, or the engine gives the flow up: RST to both sides.
    pub fn on_socket_error(&mut self) {}

    /// Judges one segment of the guest's.
    pub fn offer(&mut self, segment: &Segment, now: Instant) -> Verdict {
        let _ = (segment, now);
        Verdict::default()
    }

    /// The socket took `n` bytes: first out of the staging, then fresh and joined ones, in order.
    pub fn on_forwarded(&mut self, n: usize, now: Instant) {
        let _ = (n, now);
    }

    /// `n` fresh or joined bytes went into the staging.
    pub fn on_staged(&mut self, n: usize, now: Instant) {
        let _ = (n, now);
    }

    /// What the socket and the staging can take now.
    pub fn on_room(&mut self, room: &Room, now: Instant) {
        let _ = (room, now);
    }

    /// Whether asking the kernel for [`Room`] is worth a system call now.
    pub fn wants_room_info(&self, now: Instant) -> bool {
        let _ = now;
        false
    }

    /// What to peek next for the guest, if anything may be sent.
    pub fn peek_plan(&self) -> Option<PeekPlan> {
        None
    }

    /// The header of a data segment whose first byte is `seq` (that of the plan, plus the bytes
    /// before it). It carries the acknowledgement and the window: no bare ACK is due any more.
    pub fn data_header(&mut self, seq: SeqNum, push: bool) -> Outgoing {
        let _ = (seq, push);
        Outgoing {
            seq,
            ack: None,
            flags: super::Flags::default(),
            window: crate::wire::seq::UnscaledWindow(0),
            mss: None,
            window_scale: None,
        }
    }

    /// `n` bytes of `plan` were peeked and are on their way to the guest.
    pub fn on_peeked(&mut self, plan: &PeekPlan, n: usize, now: Instant) {
        let _ = (plan, n, now);
    }

    /// The peek found nothing new (`WouldBlock`).
    pub fn on_drained(&mut self) {}

    /// The peek found the end of the peer's stream (0 bytes into room that was not empty): a FIN to
    /// the guest follows the data.
    pub fn on_end_of_stream(&mut self) {}

    /// The next segment without payload that is due: SYN, SYN-ACK, FIN, RST, ACK.
    pub fn poll_segment(&mut self, now: Instant) -> Option<Outgoing> {
        let _ = now;
        None
    }

    /// When [`Self::on_deadline`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Time has passed. Early and stale calls do nothing.
    pub fn on_deadline(&mut self, now: Instant) {
        let _ = now;
    }

    /// What the socket is to be watched for. Always edge-triggered: unread data stays in the socket
    /// on purpose. So pump until there is no plan, nothing to peek or no room in the ring; what
    /// ends each of these (an ACK, new data, ring room) is an event of its own.
    pub fn interest(&self) -> Interest {
        Interest::default()
    }

    /// Whether handshakes are done on both sides and the connection has not ended.
    pub fn is_established(&self) -> bool {
        false
    }

    /// Whether it has ended: all that was due has been said once [`Self::poll_segment`] is `None`.
    pub fn is_closed(&self) -> bool {
        false
    }

    /// Whether the peer gets a RST when the socket is closed.
    pub fn wants_reset(&self) -> bool {
        false
    }

    /// Whether the guest has sent its FIN and the socket has taken all bytes before it: shut its
    /// writing half down, then call [`Self::on_shutdown`].
    pub fn wants_shutdown(&self) -> bool {
        false
    }

    /// The socket's writing half has been shut down.
    pub fn on_shutdown(&mut self) {}

    /// Bytes that the staging holds in order (not counting held ones).
    pub fn staged(&self) -> usize {
        0
    }
}
