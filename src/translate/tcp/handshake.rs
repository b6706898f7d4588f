//! How connections begin: the guest's SYN answered once the peer has answered, and a peer's
//! connection offered to the guest.

use super::conn::{Conn, End, State};
use super::send::SendWindow;
use super::{Limits, Segment, Verdict};
use crate::time::Instant;
use crate::wire::seq::{Mss, SeqNum, WindowScale};

/// The smallest MSS that we honour (Linux has the same, `tcp_min_snd_mss`): a guest that announces
/// less wants a frame for every few bytes.
const MIN_MSS: u16 = 48;

impl Conn {
    /// The guest has sent `syn`: SYN set, ACK, FIN and RST clear. The socket is connecting. Payload
    /// is left for the guest to send again.
    pub fn guest_opens(syn: &Segment, isn: SeqNum, limits: &Limits, now: Instant) -> Self {
        let window = u32::from(syn.window.0);
        let send = SendWindow::new(
            isn,
            window,
            send_mss(syn.mss, limits.max_send_mss),
            WindowScale::default(),
        );
        let mut conn = Self::new(State::Connecting, send, limits, now);
        conn.recv.open(syn.seq);
        conn.take_scale(syn.window_scale);
        conn.arm_connecting(now);
        conn
    }

    /// A listener has accepted a peer: a SYN to the guest is due.
    pub fn peer_opens(isn: SeqNum, limits: &Limits, now: Instant) -> Self {
        let window = u32::from(Limits::HANDSHAKE_WINDOW);
        let send = SendWindow::new(
            isn,
            window,
            send_mss(None, limits.max_send_mss),
            WindowScale::default(),
        );
        let mut conn = Self::new(State::SynSent, send, limits, now);
        conn.due.syn = true;
        conn.arm_handshake(now);
        conn
    }

    /// The socket is connected: the SYN-ACK to the guest is due. (Call [`Self::on_room`] before, if
    /// the peer's window is known.)
    pub fn on_connected(&mut self, now: Instant) {
        if self.state == State::Connecting {
            self.state = State::SynAckSent;
            self.due.syn = true;
            self.arm_handshake(now);
        }
    }

    /// The socket could not connect: RST to the guest.
    pub fn on_connect_failed(&mut self) {
        self.on_socket_error();
    }

    /// Scaling is for both or for none (RFC 7323 2.2).
    fn take_scale(&mut self, theirs: Option<WindowScale>) {
        if let Some(scale) = theirs {
            self.send.scale = scale;
            self.recv.scale = Limits::WINDOW_SCALE;
        }
    }

    /// A segment while the socket is still connecting. We have said nothing yet, so there is
    /// nothing that it could acknowledge.
    pub(super) fn offer_connecting(&mut self, segment: &Segment) -> Verdict {
        let same_syn = segment.seq + 1 == self.recv.nxt();
        match segment {
            Segment { flags, .. } if flags.rst => {
                if segment.seq == self.recv.nxt() || (same_syn && segment.ack.is_none()) {
                    self.state = State::Closed(End::ByGuest);
                }
                Verdict::default()
            }
            Segment { flags, ack: None, .. } if flags.syn && same_syn => Verdict::default(),
            Segment { flags, ack: None, .. } if flags.syn => self.make_way(segment),
            _ => Verdict { reject: true, ..Verdict::default() },
        }
    }

    /// A segment in answer to our SYN-ACK.
    pub(super) fn offer_syn_ack_sent(
        &mut self,
        segment: &Segment,
        hold: usize,
        now: Instant,
    ) -> Verdict {
        let ahead = segment.seq.distance_from(self.recv.nxt());
        let in_window = ahead <= self.recv.remaining();
        match (segment.flags.rst, segment.flags.syn, segment.ack) {
            (true, _, _) => {
                if ahead == 0 {
                    self.state = State::Closed(End::ByGuest);
                }
                Verdict::default()
            }
            (false, true, ack) if segment.seq + 1 == self.recv.nxt() => {
                if ack.is_some_and(|ack| self.send.acks_syn(ack)) {
                    // Both have opened at once (RFC 9293 3.5): this answers our SYN.
                    self.enter_established(segment, now);
                } else {
                    // Our SYN-ACK was lost.
                    self.due.syn = self.challenge.allows(now);
                }
                Verdict::default()
            }
            (false, true, None) => self.make_way(segment),
            (false, true, Some(_)) => {
                self.due.syn = self.challenge.allows(now);
                Verdict::default()
            }
            (false, false, None) => Verdict::default(),
            (false, false, Some(ack)) if !self.send.acks_syn(ack) => {
                Verdict { reject: true, ..Verdict::default() }
            }
            (false, false, Some(_)) if !in_window => {
                self.due.syn = self.challenge.allows(now);
                Verdict::default()
            }
            (false, false, Some(_)) => {
                self.enter_established(segment, now);
                self.offer_established(segment, hold, now)
            }
        }
    }

    /// A segment in answer to our SYN (RFC 9293 3.10.7.3).
    pub(super) fn offer_syn_sent(&mut self, segment: &Segment, now: Instant) -> Verdict {
        let acks_syn = segment.ack.map(|ack| self.send.acks_syn(ack));
        match (acks_syn, segment.flags.rst) {
            (Some(false), false) => {
                // It is half open, or in TIME-WAIT. The reset ends that: then it takes our SYN.
                self.due.syn |= self.challenge.allows(now);
                Verdict { reject: true, ..Verdict::default() }
            }
            (Some(false), true) => Verdict::default(),
            (Some(true), true) => {
                self.state = State::Closed(End::ByGuest);
                Verdict::default()
            }
            (Some(true), false) if segment.flags.syn && segment.flags.fin => {
                self.on_socket_error();
                Verdict::default()
            }
            (Some(true), false) if segment.flags.syn => {
                self.take_syn(segment);
                self.enter_established(segment, now);
                self.due.ack = true;
                Verdict::default()
            }
            (None, false) if segment.flags.syn && !segment.flags.fin => {
                // Both have opened at once: our SYN goes out again as a SYN-ACK.
                self.take_syn(segment);
                self.state = State::SynAckSent;
                self.due.syn = true;
                Verdict::default()
            }
            (Some(true) | None, _) => Verdict::default(),
        }
    }

    /// A SYN of the guest's that is not the one which has opened this connection: the guest has
    /// forgotten that, and this is back in LISTEN (RFC 9293 3.10.7.4) or in TIME-WAIT (3.6.1). No
    /// old SYN can be mistaken for a new one, for the link neither delays nor repeats any, and
    /// who gets the answer to a SYN that it has not sent resets the connection.
    pub(super) fn make_way(&mut self, syn: &Segment) -> Verdict {
        if syn.flags.fin {
            return Verdict::default();
        }
        self.has_made_way = true;
        if !self.guest_is_done() {
            self.state = State::Closed(End::ByGuest);
        }
        Verdict { makes_way: true, ..Verdict::default() }
    }

    fn take_syn(&mut self, syn: &Segment) {
        self.recv.open(syn.seq);
        self.send.mss = send_mss(syn.mss, self.limits.max_send_mss);
        self.take_scale(syn.window_scale);
    }

    fn enter_established(&mut self, segment: &Segment, now: Instant) {
        if let Some(ack) = segment.ack {
            self.rtt.on_ack(ack, now);
        }
        self.send.open(segment.seq, segment.window, segment.flags.syn);
        self.establish(now);
    }
}

/// The payload that we put into one packet at most.
fn send_mss(announced: Option<Mss>, most: Mss) -> Mss {
    let theirs = match announced {
        None | Some(Mss(0)) => Mss::DEFAULT,
        Some(mss) => mss,
    };
    Mss(theirs.0.min(most.0).max(MIN_MSS))
}
