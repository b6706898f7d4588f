//! Towards the guest: what is in flight, what its window allows, what must be sent again.

use super::verdict::{PeekPlan, Sending};
use crate::wire::seq::{Mss, SeqNum, UnscaledWindow, WindowScale};

/// The largest window of a guest's that we use.
const MAX_WINDOW: u32 = 16 << 20;

/// Duplicate ACKs that mean a loss (RFC 5681 3.2).
const DUPLICATES: u8 = 3;

/// The send sequence space (RFC 9293 3.3.1).
#[derive(Debug)]
pub(super) struct SendWindow {
    /// SND.UNA: the first byte that the guest has not acknowledged; the front of the socket.
    una: SeqNum,
    /// What is sent next. Below `max` after a rewind.
    nxt: SeqNum,
    /// RFC 9293's SND.NXT: behind the last byte (or FIN) ever sent.
    max: SeqNum,
    /// SND.WND in bytes.
    window: u32,
    /// SND.WL1 and SND.WL2: the segment that told the window last.
    wl1: SeqNum,
    wl2: SeqNum,
    /// The largest window ever told, for what is an old ACK (RFC 5961 5.2).
    max_window: u32,
    /// The guest's MSS, bounded by ours.
    pub(super) mss: Mss,
    /// The guest's shift; 0 unless both sides scale.
    pub(super) scale: WindowScale,
    /// Behind the last byte of the peer's stream, once known: the sequence number of our FIN.
    end: Option<SeqNum>,
    recovery: Recovery,
    duplicates: u8,
    /// The window is closed, and it is time to ask.
    probe_due: bool,
}

/// Whether we are repairing a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    No,
    /// Duplicate ACKs came: until `recover` is acknowledged, each partial ACK asks for the bytes
    /// behind it (RFC 6582). What follows them, the guest has kept.
    Fast {
        recover: SeqNum,
        resend: bool,
    },
    /// The timer rang: all from SND.UNA is sent again, `allowance` bytes at a time, doubling as
    /// ACKs come (RFC 5681 3.1), for it may be that only the guest slept and nothing was lost.
    GoBack {
        recover: SeqNum,
        allowance: u32,
    },
}

/// What an acknowledgement was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckOutcome {
    /// It is for bytes never sent, or older than anything the guest can mean: RFC 5961 5.2.
    Unacceptable,
    /// Nothing new.
    Nothing,
    /// Forward progress, with so many bytes of the stream (the FIN does not count).
    Progress(u32),
}

impl SendWindow {
    /// Nothing is sent yet; the SYN will have number `iss`.
    pub(super) const fn new(iss: SeqNum, window: u32, mss: Mss, scale: WindowScale) -> Self {
        Self {
            una: iss,
            nxt: iss,
            max: iss,
            window,
            wl1: iss,
            wl2: iss,
            max_window: window,
            mss,
            scale,
            end: None,
            recovery: Recovery::No,
            duplicates: 0,
            probe_due: false,
        }
    }

    /// The SYN goes out, again perhaps: its number is returned.
    pub(super) fn on_syn(&mut self) -> SeqNum {
        self.nxt = self.una + 1;
        self.max = self.nxt;
        self.una
    }

    /// Whether `ack` acknowledges our SYN and nothing else.
    pub(super) fn acks_syn(&self, ack: SeqNum) -> bool {
        ack == self.una + 1 && self.max == ack
    }

    /// The handshake is done. The window of a segment with SYN is not scaled (RFC 7323 2.2).
    pub(super) fn open(&mut self, seq: SeqNum, field: UnscaledWindow, syn: bool) {
        self.una = self.max;
        self.wl1 = seq;
        self.wl2 = self.una;
        let shift = if syn { WindowScale::default() } else { self.scale };
        self.set_window((field << shift).0);
    }

    /// Bytes (and FIN) sent and not acknowledged, as far as they need not be sent again.
    pub(super) const fn in_flight(&self) -> u32 {
        self.nxt.distance_from(self.una)
    }

    /// Whether the guest has acknowledged all that was ever sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.una == self.max
    }

    pub(super) const fn is_closed_window(&self) -> bool {
        self.window == 0
    }

    /// Whether the end of the stream is known.
    pub(super) const fn has_end(&self) -> bool {
        self.end.is_some()
    }

    /// Whether our FIN was sent and need not be sent again.
    pub(super) fn fin_sent(&self) -> bool {
        self.end.is_some_and(|end| self.nxt.after(end))
    }

    /// Whether the guest has acknowledged our FIN.
    pub(super) fn fin_acked(&self) -> bool {
        self.end.is_some_and(|end| self.una.after(end))
    }

    /// Whether our FIN was sent, now or before, and is all that is not acknowledged.
    pub(super) fn only_fin_left(&self) -> bool {
        self.end == Some(self.una) && self.max.after(self.una)
    }

    /// The FIN counts as acknowledged: nobody is left to do it.
    pub(super) fn forgo_fin_ack(&mut self) {
        self.una = self.max;
        self.nxt = self.max;
    }

    /// The number for a segment without payload: SND.NXT, or what lies in the window of a guest
    /// that has taken its window back.
    pub(super) fn ack_seq(&self) -> SeqNum {
        let sent = self.max.distance_from(self.una);
        self.una + sent.min(self.window.max(self.in_flight()))
    }

    /// The number for a reset: the guest takes it only at exactly what it expects (RFC 5961 3), and
    /// it has all that was sent.
    pub(super) const fn reset_seq(&self) -> SeqNum {
        self.max
    }

    /// The number of a keepalive: one the guest has seen (RFC 9293 3.8.4).
    pub(super) fn keepalive_seq(&self) -> SeqNum {
        self.una - 1
    }

    /// Takes the acknowledgement and window of a segment with sequence number `seq`. `plain`: the
    /// segment has no payload, SYN or FIN.
    pub(super) fn on_ack(
        &mut self,
        seq: SeqNum,
        ack: SeqNum,
        field: UnscaledWindow,
        plain: bool,
    ) -> AckOutcome {
        let too_old = self.una - self.max_window;
        if ack.after(self.max) || ack.before(too_old) {
            return AckOutcome::Unacceptable;
        }
        let window = (field << self.scale).0.min(MAX_WINDOW);
        let outcome = if ack.after(self.una) {
            AckOutcome::Progress(self.advance(ack))
        } else {
            let duplicate = ack == self.una && plain && window == self.window && window > 0;
            if duplicate && self.in_flight() > 0 {
                self.on_duplicate();
            }
            AckOutcome::Nothing
        };
        if self.wl1.before(seq) || (self.wl1 == seq && self.wl2.before_or_eq(ack)) {
            self.wl1 = seq;
            self.wl2 = ack;
            self.set_window(window);
        }
        outcome
    }

    /// The guest has acknowledged all before `ack`; returns how many bytes of the stream are new.
    fn advance(&mut self, ack: SeqNum) -> u32 {
        let acked = ack.distance_from(self.una);
        let fin = u32::from(self.end.is_some_and(|end| ack.after(end)));
        self.una = ack;
        self.nxt = self.nxt.max(ack);
        self.duplicates = 0;
        match &mut self.recovery {
            Recovery::Fast { recover, .. } | Recovery::GoBack { recover, .. }
                if ack.after_or_eq(*recover) =>
            {
                self.recovery = Recovery::No;
            }
            Recovery::Fast { .. } => self.resend_first(),
            Recovery::GoBack { allowance, .. } => *allowance = allowance.saturating_add(acked),
            Recovery::No => {}
        }
        acked.saturating_sub(fin)
    }

    fn on_duplicate(&mut self) {
        self.duplicates = self.duplicates.saturating_add(1);
        if self.duplicates == DUPLICATES && self.recovery == Recovery::No {
            self.recovery = Recovery::Fast { recover: self.max, resend: false };
            self.resend_first();
        }
    }

    /// The first bytes in flight are to be sent again; if it is the FIN, that. With none in flight
    /// they are what is sent next anyhow, though they were sent before a window was taken back.
    fn resend_first(&mut self) {
        let only_fin = self.end == Some(self.una);
        if only_fin {
            self.nxt = self.una;
        }
        let any = self.in_flight() > 0;
        if let Recovery::Fast { resend, .. } = &mut self.recovery {
            *resend = any && !only_fin;
        }
    }

    /// A window of zero with data in flight takes back what was granted: the guest has run out of
    /// memory and dropped it. It is sent again once the window opens, unless it is acknowledged
    /// first. A window that opens does the same with a probe: since Linux 6.17 a guest drops the
    /// byte beyond its window unless it has read everything, and what followed would leave a gap.
    fn set_window(&mut self, window: u32) {
        let was_closed = self.is_closed_window();
        self.window = window.min(MAX_WINDOW);
        self.max_window = self.max_window.max(self.window);
        if window == 0 || was_closed {
            self.nxt = self.una;
            self.duplicates = 0;
            self.recovery = Recovery::No;
        }
        if window > 0 {
            self.probe_due = false;
        }
    }

    /// The timer rang: what is in flight counts as lost.
    pub(super) fn rewind(&mut self) {
        self.nxt = self.una;
        self.duplicates = 0;
        self.recovery = Recovery::GoBack { recover: self.max, allowance: self.mss.0.into() };
    }

    /// It is time to ask whether the window is still closed.
    pub(super) fn probe(&mut self) {
        self.nxt = self.una;
        self.probe_due = true;
    }

    /// There is nothing to ask with.
    pub(super) fn on_drained(&mut self) {
        self.probe_due = false;
    }

    /// The stream ends at what is sent next; `false` if more than that was sent before.
    pub(super) fn on_end(&mut self) -> bool {
        let whole = self.nxt == self.max;
        if whole {
            self.end.get_or_insert(self.nxt);
        }
        whole
    }

    /// Whether the FIN is due: all before it is sent, and it fits the window or asks for one.
    pub(super) fn fin_due(&self) -> bool {
        self.end == Some(self.nxt) && (self.probe_due || self.in_flight() < self.window)
    }

    /// The FIN goes out: its number, and whether it does for the first time.
    pub(super) fn on_fin(&mut self) -> (SeqNum, bool) {
        let seq = self.nxt;
        self.nxt = seq + 1;
        let first = self.nxt.after(self.max);
        self.max = self.max.max(self.nxt);
        self.probe_due = false;
        (seq, first)
    }

    /// What to peek next.
    pub(super) fn plan(&self) -> Option<PeekPlan> {
        if let Recovery::Fast { resend: true, .. } = self.recovery {
            let flight = self.in_flight().saturating_sub(self.fin_sent().into());
            return self.plan_from(
                self.una,
                flight.min(self.mss.0.into()),
                Sending::Retransmission,
            );
        }
        let left = self.end.map_or(u32::MAX, |end| {
            if self.nxt.before(end) { end.distance_from(self.nxt) } else { 0 }
        });
        if self.probe_due {
            return self.plan_from(self.una, left.min(1), Sending::WindowProbe);
        }
        let usable = self.window.saturating_sub(self.in_flight());
        // Sender's silly window avoidance (RFC 9293 3.8.6.2.1): wait for ACKs rather than send
        // crumbs. Nothing can wait forever, for something is in flight.
        let crumb = u32::from(self.mss.0).min(self.window / 4);
        if self.in_flight() > 0 && usable < crumb && usable < left {
            return None;
        }
        let allowed = match self.recovery {
            Recovery::GoBack { allowance, .. } => allowance.saturating_sub(self.in_flight()),
            Recovery::No | Recovery::Fast { .. } => u32::MAX,
        };
        self.plan_from(self.nxt, usable.min(allowed).min(left), Sending::Next)
    }

    fn plan_from(&self, seq: SeqNum, budget: u32, sending: Sending) -> Option<PeekPlan> {
        (budget > 0).then(|| PeekPlan {
            skip: seq.distance_from(self.una) as usize,
            budget: budget as usize,
            mss: self.mss,
            seq,
            sending,
        })
    }

    /// `n` bytes of `plan` went out; whether all of them did for the first time. A plan that has
    /// become stale, because the guest was heard in between, changes nothing that is still true.
    pub(super) fn on_peeked(&mut self, plan: &PeekPlan, n: u32) -> bool {
        let end = plan.seq + n;
        let first = plan.seq.after_or_eq(self.max);
        match plan.sending {
            Sending::Retransmission => {
                if let Recovery::Fast { resend, .. } = &mut self.recovery {
                    *resend = false;
                }
            }
            Sending::WindowProbe | Sending::Next => {
                self.probe_due = false;
                self.nxt = self.nxt.max(end);
                self.max = self.max.max(end);
            }
        }
        first
    }
}
