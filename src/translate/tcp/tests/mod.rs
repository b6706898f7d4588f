//! Scripts: one segment a line, and nothing else was sent.
//!
//! Numbers in scripts are relative: sequence 0 is the byte behind the sender's SYN.

mod appendix;
mod close;
mod data;
mod handshake;
mod hostile;
mod inbound;
mod random;

use super::*;
use crate::time::{Duration, Instant};
use crate::wire::seq::{Mss, SeqNum, UnscaledWindow, WindowScale};

/// The guest's initial sequence number; ours. Both wrap soon.
const IRS: SeqNum = SeqNum(u32::MAX - 700);
const ISS: SeqNum = SeqNum(u32::MAX - 300);

const GUEST_MSS: u16 = 1460;

/// The guest's window field, and the bytes that it stands for with its shift of 7.
const FIELD: UnscaledWindow = UnscaledWindow(500);
const GUEST_WINDOW: usize = 500 << 7;

const STAGING: u32 = 100_000;

fn limits() -> Limits {
    Limits { mss: Mss(1460), staging: STAGING, ..Limits::DEFAULT }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A segment that went to the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sent {
    flags: &'static str,
    seq: u32,
    ack: Option<u32>,
    len: usize,
}

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} seq {} ack {:?} len {}", self.flags, self.seq as i32, self.ack, self.len)
    }
}

fn to_guest(flags: &'static str, seq: i64, ack: u32, len: usize) -> Sent {
    Sent { flags, seq: seq as u32, ack: Some(ack), len }
}

/// Expected segments: `ack` is what it acknowledges.
fn sent_ack(seq: i64, ack: u32) -> Sent {
    to_guest("A", seq, ack, 0)
}

fn sent_data(seq: i64, len: usize, ack: u32) -> Sent {
    to_guest("A", seq, ack, len)
}

fn sent_fin(seq: i64, ack: u32) -> Sent {
    to_guest("FA", seq, ack, 0)
}

fn sent_rst(seq: i64, ack: u32) -> Sent {
    to_guest("RA", seq, ack, 0)
}

/// Segments of the guest's.
fn ack(seq: u32, ack: u32) -> Segment {
    Segment {
        seq: IRS + 1 + seq,
        ack: Some(ISS + 1 + ack),
        flags: Flags::default(),
        window: FIELD,
        payload_len: 0,
        mss: None,
        window_scale: None,
    }
}

fn data(seq: u32, len: usize, acked: u32) -> Segment {
    Segment { payload_len: len, ..ack(seq, acked) }
}

fn fin(seq: u32, acked: u32) -> Segment {
    Segment { flags: Flags { fin: true, ..Flags::default() }, ..ack(seq, acked) }
}

fn rst(seq: u32) -> Segment {
    let flags = Flags { rst: true, ..Flags::default() };
    Segment { flags, ack: None, ..ack(seq, 0) }
}

fn syn() -> Segment {
    Segment {
        seq: IRS,
        ack: None,
        flags: Flags { syn: true, ..Flags::default() },
        window: UnscaledWindow(64_240),
        payload_len: 0,
        mss: Some(Mss(GUEST_MSS)),
        window_scale: Some(WindowScale::new(7)),
    }
}

fn syn_ack() -> Segment {
    Segment { ack: Some(ISS + 1), ..syn() }
}

/// The machine with the least of an engine around it, a socket and a link that are numbers.
struct Script {
    conn: Conn,
    now: Instant,
    /// What the socket takes before it says WouldBlock.
    send_room: usize,
    /// What was sent on the socket.
    forwarded: usize,
    /// Bytes in the staging.
    staged: usize,
    /// Bytes in the socket's receive queue, and whether the peer's FIN is behind them.
    readable: usize,
    eof: bool,
    /// Bytes that may be held ahead of their turn.
    hold: usize,
    /// Frames that the link takes.
    ring: usize,
    shut: bool,
    keepalive: bool,
    /// The last segment to the guest, as it was.
    last: Option<Outgoing>,
}

impl Script {
    fn new(conn: Conn) -> Self {
        Self {
            conn,
            now: Instant::ZERO + Duration::from_secs(1000),
            send_room: usize::MAX,
            forwarded: 0,
            staged: 0,
            readable: 0,
            eof: false,
            hold: usize::MAX,
            ring: usize::MAX,
            shut: false,
            keepalive: false,
            last: None,
        }
    }

    fn connecting(syn: Segment) -> Self {
        let now = Instant::ZERO + Duration::from_secs(1000);
        Self::new(Conn::guest_opens(&syn, ISS, &limits(), now))
    }

    fn peer_opens() -> Self {
        let now = Instant::ZERO + Duration::from_secs(1000);
        Self::new(Conn::peer_opens(ISS, &limits(), now))
    }

    /// The guest has opened, and its window is [`GUEST_WINDOW`].
    fn established() -> Self {
        let mut s = Self::connecting(syn());
        s.conn.on_connected(s.now);
        s.expect(&[to_guest("SA", -1, 0, 0)]);
        s.offer(ack(0, 0));
        s.expect(&[]);
        s
    }

    /// As [`Self::established`], and the guest knows the whole window of `STAGING` bytes.
    fn open() -> Self {
        let mut s = Self::established();
        s.offer(data(0, 1, 0));
        s.expect(&[sent_ack(0, 1)]);
        s
    }

    /// Offers a segment and settles it at once, as far as the socket takes it.
    fn offer(&mut self, segment: Segment) -> Verdict {
        self.offer_all(&[segment]).remove(0)
    }

    /// Offers a batch and settles it as one.
    fn offer_all(&mut self, segments: &[Segment]) -> Vec<Verdict> {
        let verdicts: Vec<Verdict> =
            segments.iter().map(|segment| self.conn.offer(segment, self.hold, self.now)).collect();
        let discard: usize = verdicts.iter().map(|v| v.discard).sum();
        self.readable = self.readable.checked_sub(discard).expect("more discarded than there is");
        self.keepalive |= verdicts.iter().any(|v| v.keepalive);
        let fresh = verdicts.iter().map(|v| v.fresh.len() + v.joined).sum();
        self.settle(fresh);
        verdicts
    }

    fn settle(&mut self, fresh: usize) {
        let n = (self.staged + fresh).min(self.send_room);
        self.send_room -= n;
        self.forwarded += n;
        if n > 0 {
            self.conn.on_forwarded(n, self.now);
        }
        let left = self.staged + fresh - n;
        let newly_staged = left.saturating_sub(self.staged.saturating_sub(n));
        if newly_staged > 0 {
            self.conn.on_staged(newly_staged, self.now);
        }
        self.staged = left;
        assert_eq!(self.conn.staged(), self.staged);
    }

    /// The guest fills the window that it sees; returns its next number.
    fn fill(&mut self) -> u32 {
        let mut at = 1;
        while self.window() > 0 {
            let len = self.window().min(10_000) as usize;
            assert_eq!(self.offer(data(at, len, 0)).fresh, 0..len);
            at += len as u32;
            self.expect(&[sent_ack(0, at)]);
        }
        at
    }

    /// The socket takes `n` more bytes.
    fn writable(&mut self, n: usize) {
        self.send_room = n;
        self.settle(0);
    }

    /// The peer sends.
    fn peer(&mut self, n: usize) {
        self.readable += n;
    }

    /// What the engine does after every event, and what the guest gets by it.
    fn turn(&mut self) -> Vec<Sent> {
        if self.conn.wants_shutdown() {
            assert!(!self.shut, "shut down twice");
            self.shut = true;
            self.conn.on_shutdown();
        }
        let mut sent = Vec::new();
        while let Some(plan) = self.conn.peek_plan() {
            let there = self.readable.checked_sub(plan.skip).expect("in flight but not there");
            let n = there.min(plan.budget).min(self.ring.saturating_mul(plan.mss.0.into()));
            if n == 0 {
                match (self.ring, self.eof) {
                    (0, _) => {}
                    (_, true) => self.conn.on_end_of_stream(),
                    (_, false) => self.conn.on_drained(),
                }
                break;
            }
            let mss = usize::from(plan.mss.0);
            for offset in (0..n).step_by(mss) {
                let len = mss.min(n - offset);
                let header = self.conn.data_header(plan.seq + offset as u32, offset + len == n);
                sent.push(self.note(header, len));
                self.ring -= 1;
            }
            self.conn.on_peeked(&plan, n, self.now);
        }
        while self.ring > 0 && self.conn.segment_due() {
            let segment = self.conn.poll_segment(self.now).expect("was due");
            self.ring -= 1;
            sent.push(self.note(segment, 0));
        }
        sent
    }

    fn note(&mut self, out: Outgoing, len: usize) -> Sent {
        self.last = Some(out);
        let Flags { syn, fin, rst, .. } = out.flags;
        Sent {
            flags: match (syn, fin, rst, out.ack.is_some()) {
                (true, false, false, false) => "S",
                (true, false, false, true) => "SA",
                (false, true, false, true) => "FA",
                (false, false, true, true) => "RA",
                (false, false, true, false) => "R",
                (false, false, false, true) => "A",
                other => panic!("strange flags {other:?}"),
            },
            seq: out.seq.distance_from(ISS + 1),
            ack: out.ack.map(|ack| ack.distance_from(IRS + 1)),
            len,
        }
    }

    #[track_caller]
    fn expect(&mut self, expected: &[Sent]) {
        assert_eq!(self.turn(), expected);
    }

    /// Bytes of the window in the last segment.
    fn window(&self) -> u32 {
        let out = self.last.expect("nothing was sent");
        (out.window << if out.flags.syn { WindowScale::default() } else { WindowScale::new(8) }).0
    }

    /// Time goes to the next deadline, if that is within `limit`; whether it was.
    fn sleep(&mut self, limit: Duration) -> bool {
        let until = self.now + limit;
        match self.conn.deadline() {
            Some(at) if at <= until => {
                self.now = self.now.max(at);
                self.conn.on_deadline(self.now);
                true
            }
            Some(_) | None => {
                self.now = until;
                false
            }
        }
    }

    /// Lets `time` pass with all deadlines in it; what was sent when, in milliseconds from now.
    fn pass(&mut self, time: Duration) -> Vec<(u64, Sent)> {
        let start = self.now;
        let mut sent = Vec::new();
        for _ in 0..1000 {
            let left = (start + time).since(self.now);
            if !self.sleep(left) {
                return sent;
            }
            let at = self.now.since(start).as_millis() as u64;
            sent.extend(self.turn().into_iter().map(|s| (at, s)));
        }
        panic!("deadlines without end");
    }
}

#[test]
fn a_connection_is_small() {
    assert!(size_of::<Conn>() <= 256, "{}", size_of::<Conn>());
}
