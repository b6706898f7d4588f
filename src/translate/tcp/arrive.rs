//! Segments of an established connection (RFC 9293 3.10.7.4, with RFC 5961).

use super::conn::{Conn, End, Receiving, State, saturate};
use super::send::AckOutcome;
use super::{Held, Segment, Verdict};
use crate::time::Instant;
use crate::wire::seq::SeqNum;
use std::ops::Range;

impl Conn {
    /// Judges one segment of the guest's. `hold`: bytes that the engine may hold ahead of their turn.
    pub fn offer(&mut self, segment: &Segment, hold: usize, now: Instant) -> Verdict {
        match self.state {
            State::Connecting => self.offer_connecting(segment),
            State::SynAckSent => self.offer_syn_ack_sent(segment, hold, now),
            State::SynSent => self.offer_syn_sent(segment, now),
            State::Established(_) => self.offer_established(segment, hold, now),
            State::Closed(_) => Verdict::default(),
        }
    }

    pub(super) fn offer_established(
        &mut self,
        segment: &Segment,
        hold: usize,
        now: Instant,
    ) -> Verdict {
        if segment.flags.rst {
            self.take_rst(segment.seq, now);
            return Verdict::default();
        }
        if segment.flags.syn && segment.ack.is_none() && self.guest_is_done() {
            return self.make_way(segment);
        }
        if segment.flags.syn {
            self.challenge(now);
            return Verdict::default();
        }
        let Some(ack) = segment.ack else { return Verdict::default() };
        self.heard = now;
        self.unanswered = 0;
        self.due.keepalive = false;
        if !self.is_acceptable(segment) {
            self.challenge(now);
            return Verdict { keepalive: self.is_probe(segment), ..Verdict::default() };
        }
        let mut verdict = Verdict::default();
        let plain = segment.payload_len == 0 && !segment.flags.fin;
        match self.send.on_ack(segment.seq, ack, segment.window, plain) {
            AckOutcome::Unacceptable => {
                self.challenge(now);
                return verdict;
            }
            AckOutcome::Nothing => {}
            AckOutcome::Progress(bytes) => {
                verdict.discard = bytes as usize;
                self.rtt.on_ack(ack, now);
                self.timer.forgive();
                self.timer.disarm();
            }
        }
        self.rearm(now);
        if !plain {
            self.take_payload(segment, hold, &mut verdict);
        }
        self.close_if_done();
        verdict
    }

    /// The acceptance test of RFC 9293 3.10.7.4: whether any part lies in the window, the farthest
    /// that was ever shown (RFC 7323 2.4). At the right edge a segment without payload is
    /// acceptable: its sender has filled the window.
    fn is_acceptable(&self, segment: &Segment) -> bool {
        let (nxt, edge) = (self.recv.nxt(), self.recv.edge());
        let end = segment.seq + saturate(segment.payload_len) + u32::from(segment.flags.fin);
        if end == segment.seq {
            segment.seq.after_or_eq(nxt) && segment.seq.before_or_eq(edge)
        } else if nxt == edge {
            // The window is closed. What the guest sends all the same is cut off, but its
            // acknowledgement counts.
            segment.seq == nxt
        } else {
            segment.seq.before(edge) && end.after(nxt)
        }
    }

    /// A keepalive probe: the byte before the next one expected, or none. With our window closed
    /// it is a window probe in the form that Linux sends.
    fn is_probe(&self, segment: &Segment) -> bool {
        segment.seq + 1 == self.recv.nxt()
            && segment.payload_len <= 1
            && !segment.flags.fin
            && self.recv.remaining() > 0
    }

    /// A reset counts at exactly the next number; inside the window it is asked for again with the
    /// right one (RFC 5961 3.2).
    fn take_rst(&mut self, seq: SeqNum, now: Instant) {
        let (nxt, edge) = (self.recv.nxt(), self.recv.edge());
        if self.guest_is_done() {
            // It answers a late ACK of ours; what it has sent still goes to the peer.
        } else if seq == nxt && self.guest_has_finished() && self.send.only_fin_left() {
            // LAST-ACK, CLOSING (RFC 9293 3.10.7.4): its ACK of our FIN was lost, and it has
            // forgotten the connection since. Nothing is.
            self.send.forgo_fin_ack();
            self.timer.disarm();
            self.close_if_done();
        } else if seq == nxt {
            self.state = State::Closed(End::ByGuest);
        } else if seq.after(nxt) && seq.before(edge) {
            self.challenge(now);
        }
    }

    /// An ACK in answer to what may be forged or stale; only so many a second.
    fn challenge(&mut self, now: Instant) {
        self.due.ack |= self.challenge.allows(now);
    }

    fn take_payload(&mut self, segment: &Segment, hold: usize, verdict: &mut Verdict) {
        let State::Established(receiving) = self.state else { return };
        let fin_at = match receiving {
            Receiving::Open => None,
            Receiving::FinAhead(at) => Some(at),
            // There is nothing behind a FIN (RFC 9293 3.10.7.4): ignore it, but acknowledge.
            Receiving::Finished | Receiving::ShutDown => {
                self.due.ack = true;
                return;
            }
        };
        let len = saturate(segment.payload_len);
        let part = self.part_in_window(segment.seq, len);
        if segment.seq.after(self.recv.nxt()) {
            let part = part.start..part.end.min(saturate(hold));
            self.take_ahead(segment.seq, part, verdict);
        } else if !part.is_empty() {
            let fresh = part.end - part.start;
            self.recv.accept(fresh);
            let joined = self.reassembly.join(self.recv.nxt());
            self.recv.accept(joined);
            verdict.fresh = part.start as usize..part.end as usize;
            verdict.joined = joined as usize;
            if self.reassembly.is_empty() {
                self.due.duplicates = 0;
            }
        } else if len > 0 {
            // All of it is old, or the window is closed.
            self.due.ack = true;
        }
        let fin_at = segment.flags.fin.then_some(segment.seq + len).or(fin_at);
        if let Some(at) = fin_at {
            self.take_fin(at);
        }
    }

    /// Which part of a payload of `len` bytes at `seq` lies in the window.
    fn part_in_window(&self, seq: SeqNum, len: u32) -> Range<u32> {
        let (nxt, edge) = (self.recv.nxt(), self.recv.edge());
        let start = if seq.before(nxt) { nxt.distance_from(seq).min(len) } else { 0 };
        let room = if edge.after(seq) { edge.distance_from(seq) } else { 0 };
        start..len.min(room).max(start)
    }

    /// Bytes ahead of what is expected: they are held if this flow's staging has room for them, so
    /// that the guest need not send them again, and the guest is told what is missing.
    fn take_ahead(&mut self, seq: SeqNum, part: Range<u32>, verdict: &mut Verdict) {
        self.want_duplicate();
        let offset = seq.distance_from(self.recv.nxt());
        let room = self.recv.staging_room().saturating_sub(offset);
        let end = part.end.min(room);
        if end > 0 && self.reassembly.hold(seq, seq + end) {
            verdict.held = Some(Held { range: 0..end as usize, offset: offset as usize });
        }
    }

    /// The guest's FIN has number `at`.
    fn take_fin(&mut self, at: SeqNum) {
        self.state = State::Established(if at == self.recv.nxt() {
            self.recv.accept_fin();
            self.due.ack = true;
            Receiving::Finished
        } else if at.after(self.recv.nxt()) && at.before_or_eq(self.recv.edge()) {
            Receiving::FinAhead(at)
        } else {
            self.due.ack = true;
            Receiving::Open
        });
    }
}
