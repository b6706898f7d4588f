//! The connection: its states, and what it has to say to the engine and the guest.

use super::reassembly::Reassembly;
use super::send::SendWindow;
use super::timer::{Alarm, ChallengeLimit, RttEstimator, Timer, probe_interval, syn_interval};
use super::window::RecvWindow;
use super::{Flags, Limits, Outgoing, PeekPlan, Room, Sending};
use crate::time::{Duration, Instant};
use crate::token::Interest;
use crate::wire::seq::{Mss, SeqNum, UnscaledWindow};

/// Timeouts in a row after which a connection is given up: about 247 s.
const RETRIES: u8 = 7;

/// Window probes in a row without an answer after which it is, about 282 s: some virtual machines
/// are asleep for long.
const PROBES: u8 = 10;

/// An idle guest is asked this often whether it still knows the connection.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A guest that says nothing for so long is gone (RFC 5382 asks for 2 h 4 min at least when
/// connections are forgotten without asking; we ask).
const INACTIVITY: Duration = Duration::from_secs(7200);

/// A socket that is still connecting after so long is given up, as a SYN is (RFC 9293 3.8.3, R2).
/// The kernel's own limit (`tcp_syn_retries`) is shorter unless someone has raised it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(180);

/// Duplicate ACKs of one batch: what a guest needs to see a loss, and no more.
const MOST_DUPLICATES: u8 = 3;

/// A socket whose peer is so far away, or farther, is tried again before it says that it has room.
/// The kernel says so when a third of the send buffer is free: on a long way that is much of what
/// could be on it.
const FAR_MICROS: u32 = 20_000;

/// Into so many parts such a round-trip time is divided for that.
const TRIES_PER_ROUND_TRIP: u32 = 8;

/// So many accepted bytes make asking the kernel for room worth it before its time.
const ROOM_AFTER_BYTES: u32 = 64 << 10;

/// One TCP connection between the guest and a socket. See the [module](super) for its use.
#[derive(Debug)]
pub struct Conn {
    pub(super) state: State,
    pub(super) send: SendWindow,
    pub(super) recv: RecvWindow,
    pub(super) reassembly: Reassembly,
    pub(super) rtt: RttEstimator,
    pub(super) timer: Timer,
    pub(super) challenge: ChallengeLimit,
    pub(super) due: DueFlags,
    /// When the guest was last heard.
    pub(super) heard: Instant,
    /// When to look whether it was heard lately.
    look: Instant,
    room: RoomInfo,
    /// When to see whether the socket takes more of what is staged; zero for never.
    try_at: Instant,
    /// Window probes without any answer.
    pub(super) unanswered: u8,
    /// The guest uses the ports for another connection: nothing is said to it in this one's name.
    pub(super) has_made_way: bool,
    pub(super) limits: Kept,
}

/// What is kept of [`Limits`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    mss: Mss,
    pub(super) max_send_mss: Mss,
    syn_retries: u8,
    syn_linear_timeouts: u8,
    max_rto_millis: u32,
}

/// The state of a connection, as far as segments tell. A state that is not here (CLOSE-WAIT,
/// FIN-WAIT-1, …) is a pair of half states of `Established`: [`Receiving`] and what
/// [`SendWindow`] knows of the end of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// SYN from the guest; the socket is connecting.
    Connecting,
    /// SYN-RECEIVED: the socket is connected, the SYN-ACK is on its way.
    SynAckSent,
    /// A SYN to the guest is on its way; the peer waits in an accepted socket.
    SynSent,
    /// Both sides are connected.
    Established(Receiving),
    /// It has ended.
    Closed(End),
}

/// The half of a connection that the guest sends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Data may come.
    Open,
    /// A FIN lies behind bytes that are still missing, at this number.
    FinAhead(SeqNum),
    /// The FIN is taken; the socket is still to be shut down behind the last byte.
    Finished,
    /// The socket's writing half is shut down.
    ShutDown,
}

/// How a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both FINs are acknowledged.
    Orderly,
    /// The guest has sent a RST; only the peer is to be told.
    ByGuest,
    /// We or the peer's side: the guest gets a RST, and so does the peer.
    Failed,
}

/// What must be said to the guest, besides what the windows tell.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DueFlags {
    /// SYN or SYN-ACK.
    pub(super) syn: bool,
    /// RST.
    pub(super) rst: bool,
    /// An ACK, though it may say nothing new.
    pub(super) ack: bool,
    /// Identical ACKs behind that.
    pub(super) duplicates: u8,
    /// A keepalive probe.
    pub(super) keepalive: bool,
}

/// What has gone by since the kernel was asked for room.
#[derive(Debug)]
struct RoomInfo {
    asked: Instant,
    rtt_micros: u32,
    accepted: u32,
}

/// A segment without payload that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Rst,
    Syn,
    SynAck,
    Fin,
    Ack,
    Keepalive,
}

impl Conn {
    pub(super) fn new(state: State, send: SendWindow, limits: &Limits, now: Instant) -> Self {
        Self {
            state,
            send,
            recv: RecvWindow::new(limits),
            reassembly: Reassembly::default(),
            rtt: RttEstimator::default(),
            timer: Timer::default(),
            challenge: ChallengeLimit::default(),
            due: DueFlags::default(),
            heard: now,
            look: now,
            room: RoomInfo { asked: now, rtt_micros: 0, accepted: 0 },
            try_at: Instant::ZERO,
            unanswered: 0,
            has_made_way: false,
            limits: Kept {
                mss: limits.mss,
                max_send_mss: limits.max_send_mss,
                syn_retries: limits.patience.syn_retries,
                syn_linear_timeouts: limits.patience.syn_linear_timeouts,
                max_rto_millis: u32::try_from(limits.patience.max_rto.as_millis())
                    .unwrap_or(u32::MAX),
            },
        }
    }

    /// The socket has failed, or the engine gives the flow up: RST to both sides, but for a guest
    /// that is done with the connection and may use the ports for another.
    pub fn on_socket_error(&mut self) {
        if !self.is_closed() {
            self.due = DueFlags { rst: !self.guest_is_done(), ..DueFlags::default() };
            self.state = State::Closed(End::Failed);
        }
    }

    /// The socket took `n` bytes: first out of the staging, then fresh and joined ones, in order.
    pub fn on_forwarded(&mut self, n: usize, now: Instant) {
        let n = saturate(n);
        if n > 0 {
            // Bytes move. If none do until then, only the socket knows when they will.
            let part = self.room.rtt_micros / TRIES_PER_ROUND_TRIP;
            let far = self.room.rtt_micros >= FAR_MICROS;
            self.try_at =
                if far { now + Duration::from_micros(part.into()) } else { Instant::ZERO };
        }
        self.recv.on_forwarded(n);
        self.room.accepted = self.room.accepted.saturating_add(n);
    }

    /// `n` fresh or joined bytes went into the staging. (The guest may be told as soon as fresh
    /// bytes are settled: into the socket or into the staging.)
    pub fn on_staged(&mut self, n: usize, _now: Instant) {
        self.recv.on_staged(saturate(n));
    }

    /// What the socket and the staging can take now.
    pub fn on_room(&mut self, room: &Room, now: Instant) {
        self.recv.on_room(room);
        let rtt_micros = u32::try_from(room.rtt.as_micros()).unwrap_or(u32::MAX);
        self.room = RoomInfo { asked: now, rtt_micros, accepted: 0 };
    }

    /// Whether asking the kernel for [`Room`] is worth a system call now: at most once per RTT/4 or
    /// 64 KiB, and only if the window is used up by three quarters or the socket does not keep up.
    pub fn wants_room_info(&self, now: Instant) -> bool {
        let quarter = Duration::from_micros(u64::from(self.room.rtt_micros) / 4);
        let waited =
            now.since(self.room.asked) >= quarter || self.room.accepted >= ROOM_AFTER_BYTES;
        self.is_established() && self.room.accepted > 0 && waited && self.recv.is_scarce()
    }

    /// What to peek next for the guest, if anything may be sent.
    pub fn peek_plan(&self) -> Option<PeekPlan> {
        if self.is_established() { self.send.plan() } else { None }
    }

    /// The header of a data segment whose first byte is `seq` (that of the plan, plus the bytes
    /// before it). It carries the acknowledgement and the window: no bare ACK is due any more.
    pub fn data_header(&mut self, seq: SeqNum, push: bool) -> Outgoing {
        self.segment(seq, Flags { psh: push, ..Flags::default() })
    }

    /// `n` bytes of `plan` were peeked and are on their way to the guest.
    pub fn on_peeked(&mut self, plan: &PeekPlan, n: usize, now: Instant) {
        let n = saturate(n.min(plan.budget));
        if n == 0 || !self.is_established() {
            return;
        }
        if plan.sending == Sending::WindowProbe {
            self.unanswered = self.unanswered.saturating_add(1);
        }
        if self.send.on_peeked(plan, n) {
            self.rtt.on_sent(plan.seq + n, now);
        } else {
            self.rtt.on_retransmitted();
        }
        self.rearm(now);
    }

    /// The peek found nothing new (`WouldBlock`).
    pub fn on_drained(&mut self) {
        self.send.on_drained();
    }

    /// The peek found the end of the peer's stream (0 bytes into room that was not empty): a FIN to
    /// the guest follows the data. Should the socket have lost what is in flight, both are reset.
    pub fn on_end_of_stream(&mut self) {
        if self.is_established() && !self.send.on_end() {
            self.on_socket_error();
        }
    }

    /// Whether [`Self::poll_segment`] has something: reserve room for it first.
    pub fn segment_due(&self) -> bool {
        self.next_due().is_some()
    }

    /// The next segment without payload that is due: SYN, SYN-ACK, FIN, RST, ACK. It counts as
    /// sent: without room for it, do not ask.
    pub fn poll_segment(&mut self, now: Instant) -> Option<Outgoing> {
        let due = self.next_due()?;
        Some(match due {
            Due::Rst => {
                self.due.rst = false;
                let ack = self.recv.is_open().then(|| self.recv.ack());
                let flags = Flags { rst: true, ..NONE };
                Outgoing { ack, ..bare(self.send.reset_seq(), flags) }
            }
            Due::Syn => self.syn(false, now),
            Due::SynAck => self.syn(true, now),
            Due::Fin => {
                if self.send.is_closed_window() {
                    self.unanswered = self.unanswered.saturating_add(1);
                }
                let (seq, first) = self.send.on_fin();
                if first {
                    self.rtt.on_sent(seq + 1, now);
                } else {
                    self.rtt.on_retransmitted();
                }
                self.rearm(now);
                self.segment(seq, Flags { fin: true, ..NONE })
            }
            Due::Ack => {
                let duplicates = self.due.duplicates;
                let plain = !self.due.ack && !self.recv.ack_is_news() && !self.recv.update_due();
                let ack = self.segment(self.send.ack_seq(), NONE);
                self.due.duplicates = if plain { duplicates.saturating_sub(1) } else { duplicates };
                ack
            }
            Due::Keepalive => {
                self.due.keepalive = false;
                self.segment(self.send.keepalive_seq(), NONE)
            }
        })
    }

    fn next_due(&self) -> Option<Due> {
        match self.state {
            _ if self.has_made_way => None,
            State::Connecting => None,
            State::SynSent => self.due.syn.then_some(Due::Syn),
            State::SynAckSent => self.due.syn.then_some(Due::SynAck),
            State::Established(_) if self.send.fin_due() => Some(Due::Fin),
            State::Established(_) if self.ack_due() => Some(Due::Ack),
            State::Established(_) => self.due.keepalive.then_some(Due::Keepalive),
            State::Closed(End::Orderly) => self.ack_due().then_some(Due::Ack),
            State::Closed(End::ByGuest | End::Failed) => self.due.rst.then_some(Due::Rst),
        }
    }

    fn ack_due(&self) -> bool {
        self.due.ack || self.due.duplicates > 0 || self.recv.ack_is_news() || self.recv.update_due()
    }

    /// SYN, or SYN-ACK.
    fn syn(&mut self, answer: bool, now: Instant) -> Outgoing {
        self.due.syn = false;
        let seq = self.send.on_syn();
        if self.timer.tries() == 0 {
            self.rtt.on_sent(seq + 1, now);
        }
        self.arm_handshake(now);
        let window = self.recv.advertise_syn();
        // Only who was offered a scale may answer with one (RFC 7323 2.2).
        let scaled = !answer || self.recv.scale == Limits::WINDOW_SCALE;
        Outgoing {
            ack: answer.then(|| self.recv.nxt()),
            window,
            mss: Some(self.limits.mss),
            window_scale: scaled.then_some(Limits::WINDOW_SCALE),
            ..bare(seq, Flags { syn: true, ..NONE })
        }
    }

    /// A segment of an established connection; it acknowledges all that is to be acknowledged.
    fn segment(&mut self, seq: SeqNum, flags: Flags) -> Outgoing {
        let (ack, window) = self.recv.advertise();
        self.due.ack = false;
        Outgoing { ack: Some(ack), window, ..bare(seq, flags) }
    }

    /// An ACK is due behind one that may be identical: out-of-order data has come.
    pub(super) fn want_duplicate(&mut self) {
        self.due.duplicates = (self.due.duplicates + 1).min(MOST_DUPLICATES);
    }

    /// When [`Self::on_deadline`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Closed(_) => None,
            State::Connecting | State::SynAckSent | State::SynSent => self.timer.rings_at(),
            State::Established(_) => {
                let tries = self.recv.staged() > 0 && self.try_at > Instant::ZERO;
                let try_at = tries.then_some(self.try_at);
                [self.timer.rings_at(), try_at].into_iter().flatten().chain([self.look]).min()
            }
        }
    }

    /// Time has passed: what is staged was sent before as far as the socket took it. Early and stale
    /// calls do nothing.
    pub fn on_deadline(&mut self, now: Instant) {
        if self.try_at <= now {
            self.try_at = Instant::ZERO;
        }
        if self.is_closed() {
            return;
        }
        match self.timer.take_due(now) {
            Some(Alarm::Handshake) if self.state == State::Connecting => self.on_socket_error(),
            Some(Alarm::Handshake) => self.on_handshake_alarm(now),
            Some(Alarm::Retransmit) if self.timer.tries() > RETRIES => self.on_socket_error(),
            Some(Alarm::Retransmit) => {
                self.send.rewind();
                self.rtt.on_retransmitted();
            }
            Some(Alarm::Probe) if self.unanswered > PROBES => self.on_socket_error(),
            Some(Alarm::Probe) => {
                self.send.probe();
                self.rearm(now);
            }
            None => {}
        }
        if self.is_established() && now >= self.look {
            self.look_for_guest(now);
        }
    }

    fn on_handshake_alarm(&mut self, now: Instant) {
        if self.timer.tries() > self.limits.syn_retries {
            self.on_socket_error();
            return;
        }
        self.due.syn = true;
        self.rtt.on_syn_retried();
        self.arm_handshake(now);
    }

    /// The socket has begun to connect.
    pub(super) fn arm_connecting(&mut self, now: Instant) {
        self.timer.arm(Alarm::Handshake, now + CONNECT_TIMEOUT);
    }

    /// Armed when the SYN falls due and again when it goes out: a link that is down does not keep
    /// the peer waiting forever.
    pub(super) fn arm_handshake(&mut self, now: Instant) {
        let interval = syn_interval(self.timer.tries(), self.limits.syn_linear_timeouts);
        self.timer.arm(Alarm::Handshake, now + interval);
    }

    /// Is the guest still there? Only an idle connection is asked; where something is in flight or
    /// the window is closed, the timer asks.
    fn look_for_guest(&mut self, now: Instant) {
        let silent = now.since(self.heard);
        if silent >= INACTIVITY {
            self.on_socket_error();
        } else if silent >= KEEPALIVE {
            self.due.keepalive =
                self.send.is_quiet() && !self.send.is_closed_window() && !self.guest_is_done();
            self.look = now + KEEPALIVE;
        } else {
            self.look = self.heard + KEEPALIVE;
        }
    }

    /// Sees to it that the timer is armed for what is being waited for. An alarm that is armed for
    /// it already keeps its time.
    pub(super) fn rearm(&mut self, now: Instant) {
        let max_rto = Duration::from_millis(self.limits.max_rto_millis.into());
        let (alarm, after) = if self.send.is_closed_window() {
            if self.timer.is(Alarm::Retransmit) {
                self.timer.forgive();
            }
            (Alarm::Probe, probe_interval(self.timer.tries()))
        } else if self.send.in_flight() > 0 {
            if self.timer.is(Alarm::Probe) {
                self.timer.forgive();
            }
            (Alarm::Retransmit, self.rtt.rto(self.timer.tries(), max_rto))
        } else {
            self.timer.disarm();
            return;
        };
        if !self.timer.is(alarm) {
            self.timer.arm(alarm, now + after);
        }
    }

    /// Both sides are connected.
    pub(super) fn establish(&mut self, now: Instant) {
        self.state = State::Established(Receiving::Open);
        self.due.syn = false;
        self.timer = Timer::default();
        self.look = now + KEEPALIVE;
        self.rearm(now);
    }

    /// Whether both FINs are acknowledged, as far as the guest is concerned: it has forgotten the
    /// connection, and only bytes for the peer are left.
    pub(super) fn guest_is_done(&self) -> bool {
        self.guest_has_finished() && self.send.fin_acked()
    }

    /// Whether the guest's FIN is taken.
    pub(super) const fn guest_has_finished(&self) -> bool {
        matches!(self.state, State::Established(Receiving::Finished | Receiving::ShutDown))
    }

    /// Both directions may be done.
    pub(super) fn close_if_done(&mut self) {
        if self.state == State::Established(Receiving::ShutDown) && self.send.fin_acked() {
            self.state = State::Closed(End::Orderly);
        }
    }

    /// What the socket is to be watched for. Always edge-triggered: unread data stays in the socket
    /// on purpose. So pump until there is no plan, nothing to peek or no room in the ring; what
    /// ends each of these (an ACK, new data, ring room) is an event of its own.
    pub fn interest(&self) -> Interest {
        match self.state {
            State::Closed(_) => Interest::default(),
            State::Connecting => {
                Interest { writable: true, read_closed: true, edge: true, readable: false }
            }
            // What the peer sends before the guest has answered waits in the socket.
            State::SynAckSent | State::SynSent => {
                Interest { read_closed: true, edge: true, ..Interest::default() }
            }
            State::Established(_) => {
                let reading = !self.send.has_end();
                Interest {
                    readable: reading,
                    read_closed: reading,
                    writable: self.recv.staged() > 0,
                    edge: true,
                }
            }
        }
    }

    /// Whether handshakes are done on both sides and the connection has not ended.
    pub const fn is_established(&self) -> bool {
        matches!(self.state, State::Established(_))
    }

    /// Whether it has ended. What is still due ([`Self::segment_due`]) should be sent; then the
    /// socket is closed and the flow forgotten.
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// Whether the peer gets a RST when the socket is closed.
    pub const fn wants_reset(&self) -> bool {
        matches!(self.state, State::Closed(End::ByGuest | End::Failed))
    }

    /// Whether the guest has sent its FIN and the socket has taken all bytes before it: shut its
    /// writing half down, then call [`Self::on_shutdown`].
    pub fn wants_shutdown(&self) -> bool {
        self.state == State::Established(Receiving::Finished) && self.recv.is_drained()
    }

    /// The socket's writing half has been shut down.
    pub fn on_shutdown(&mut self) {
        if self.wants_shutdown() {
            self.state = State::Established(Receiving::ShutDown);
            self.close_if_done();
        }
    }

    /// Bytes that the staging holds in order (not counting held ones).
    pub const fn staged(&self) -> usize {
        self.recv.staged() as usize
    }
}

const fn bare(seq: SeqNum, flags: Flags) -> Outgoing {
    let window = UnscaledWindow(0);
    Outgoing { seq, ack: None, flags, window, mss: None, window_scale: None }
}

const NONE: Flags = Flags { syn: false, fin: false, rst: false, psh: false };

/// Lengths of one batch fit 32 bits; one that does not is cut.
pub(super) fn saturate(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
