//! From the guest: what was accepted, what the window promises, where accepted bytes are.

use super::verdict::{Limits, Room};
use crate::wire::seq::{SeqNum, UnscaledWindow, WindowScale, WindowSize};

/// The window never mirrors less of the peer's than this: a peer that does not read fills the
/// socket and the staging, which closes the window by itself and opens it with an event. To mirror
/// a small window we would have to poll for it. It is also what the guest fills between two of our
/// turns, so less would slow it down on the way to a fast peer whose window still grows.
const LEAST_MIRRORED: u32 = 256 << 10;

/// The receive sequence space (RFC 9293 3.3.1), and the room behind it.
#[derive(Debug)]
pub(super) struct RecvWindow {
    /// RCV.NXT: the next byte expected. What lies before it was accepted.
    nxt: SeqNum,
    /// The right edge of the window, the farthest ever shown: it is never retracted.
    edge: SeqNum,
    /// The acknowledgement number last sent.
    acked: SeqNum,
    /// Accepted bytes that the engine has not yet put anywhere.
    unsettled: u32,
    /// Accepted bytes in the staging.
    staged: u32,
    /// Bytes that the socket takes, as far as known.
    send_room: u32,
    /// Bytes that the staging takes.
    staging_room: u32,
    /// No window is larger than this.
    cap: u32,
    max_window: u32,
    /// Our announced MSS: the step in which the edge moves.
    mss: u32,
    /// Our shift; 0 unless both sides scale.
    pub(super) scale: WindowScale,
    /// Whether the peer's window is known.
    mirrored: bool,
    /// Whether the guest's SYN has come.
    open: bool,
    /// Whether the guest has sent anything: before that, no window needs to be updated.
    used: bool,
    /// Whether the guest's FIN is counted in `nxt`.
    fin: bool,
}

impl RecvWindow {
    pub(super) fn new(limits: &Limits) -> Self {
        // What a window field can show with our shift.
        let max_window = limits.max_window.min(u32::from(u16::MAX) << Limits::WINDOW_SCALE.get());
        Self {
            nxt: SeqNum(0),
            edge: SeqNum(0),
            acked: SeqNum(0),
            unsettled: 0,
            staged: 0,
            send_room: 0,
            staging_room: limits.staging,
            cap: max_window,
            max_window,
            mss: limits.mss.0.into(),
            scale: WindowScale::default(),
            mirrored: false,
            open: false,
            used: false,
            fin: false,
        }
    }

    /// The guest's SYN had number `irs`. What our SYN has promised counts from there.
    pub(super) fn open(&mut self, irs: SeqNum) {
        let promised = self.remaining();
        self.nxt = irs + 1;
        self.edge = self.nxt + promised;
        self.acked = self.nxt;
        self.open = true;
    }

    pub(super) const fn is_open(&self) -> bool {
        self.open
    }

    pub(super) const fn nxt(&self) -> SeqNum {
        self.nxt
    }

    pub(super) const fn edge(&self) -> SeqNum {
        self.edge
    }

    /// What may be acknowledged: all bytes that have their place, and the FIN behind the last.
    pub(super) fn ack(&self) -> SeqNum {
        let fin_waits = u32::from(self.fin && self.unsettled > 0);
        self.nxt - self.unsettled - fin_waits
    }

    /// Whether the guest does not know yet of all that was accepted.
    pub(super) fn ack_is_news(&self) -> bool {
        self.ack() != self.acked
    }

    /// Bytes of the window that are not used up.
    pub(super) const fn remaining(&self) -> u32 {
        self.edge.distance_from(self.nxt)
    }

    pub(super) const fn staged(&self) -> u32 {
        self.staged
    }

    /// Whether every accepted byte is in the socket.
    pub(super) const fn is_drained(&self) -> bool {
        self.staged == 0 && self.unsettled == 0
    }

    pub(super) const fn staging_room(&self) -> u32 {
        self.staging_room
    }

    /// `n` bytes are accepted; the engine will settle them.
    pub(super) fn accept(&mut self, n: u32) {
        self.nxt += n;
        self.used = true;
        self.unsettled = self.unsettled.saturating_add(n);
    }

    /// The guest's FIN is accepted.
    pub(super) fn accept_fin(&mut self) {
        self.nxt += 1;
        self.edge = self.edge.max(self.nxt);
        self.fin = true;
    }

    /// The socket took `n` bytes, staged ones first.
    pub(super) fn on_forwarded(&mut self, n: u32) {
        let from_staging = n.min(self.staged);
        self.staged -= from_staging;
        self.staging_room = self.staging_room.saturating_add(from_staging);
        self.unsettled = self.unsettled.saturating_sub(n - from_staging);
        self.send_room = self.send_room.saturating_sub(n);
    }

    /// The staging took `n` bytes.
    pub(super) fn on_staged(&mut self, n: u32) {
        let n = n.min(self.unsettled);
        self.unsettled -= n;
        self.staged = self.staged.saturating_add(n);
        self.staging_room = self.staging_room.saturating_sub(n);
    }

    pub(super) fn on_room(&mut self, room: &Room) {
        self.send_room = room.send_room;
        self.staging_room = room.staging_room;
        self.mirrored = room.peer_window.is_some();
        self.cap = match room.peer_window {
            Some(window) => window.max(LEAST_MIRRORED).min(self.max_window),
            None => self.max_window,
        };
    }

    /// The window that could be promised now, in bytes behind [`Self::ack`]: no more than a field
    /// can show, or there would always be more to tell.
    fn target(&self) -> u32 {
        let shown = u32::from(u16::MAX) << self.scale.get();
        self.send_room.saturating_add(self.staging_room).min(self.cap).min(shown)
    }

    /// Whether less than a quarter of the window is left, or the socket does not keep up.
    pub(super) fn is_scarce(&self) -> bool {
        self.staged > 0 || self.remaining() < self.target() / 4
    }

    /// The step below which the edge does not move (receiver's silly window avoidance, RFC 9293
    /// 3.8.6.2.2). With nothing staged there may be no event that tells of more room: then the
    /// window opens by what there is.
    fn step(&self) -> u32 {
        let most = if self.staged == 0 { self.target() } else { self.cap };
        self.mss.min(most / 2).max(1)
    }

    /// Whether the window has opened so far that the guest should be told: at once when it was
    /// closed, else by two segments, if the guest has used up half of what it knows of.
    pub(super) fn update_due(&self) -> bool {
        let (target, known) = (self.target(), self.edge.distance_from(self.ack()));
        let grown = target.saturating_sub(known);
        let closed = known >> self.scale.get() == 0;
        let enough = if closed { self.step() } else { self.step().saturating_mul(2) };
        self.used && !self.fin && grown >= enough.min(self.cap / 2).max(1) && known <= target / 2
    }

    /// Acknowledges: the number and the window field for a segment that goes out now.
    pub(super) fn advertise(&mut self) -> (SeqNum, UnscaledWindow) {
        let ack = self.ack();
        let (target, known) = (self.target(), self.edge.distance_from(ack));
        let window = if target >= known.saturating_add(self.step()) { target } else { known };
        // A field counts in units: rounded down it would show less than was promised. That is
        // allowed (RFC 7323 2.4) and nothing is refused for it, but better is one unit more, if
        // there is room for it.
        let unit = 1 << self.scale.get();
        let up = window.next_multiple_of(unit);
        let field = WindowSize(if up <= target { up } else { window }) >> self.scale;
        self.edge = self.edge.max(ack + (field << self.scale).0);
        self.acked = ack;
        (ack, field)
    }

    /// The window of a segment with SYN, which is not scaled (RFC 7323 2.2).
    pub(super) fn advertise_syn(&mut self) -> UnscaledWindow {
        let most = if self.mirrored { u16::MAX } else { Limits::HANDSHAKE_WINDOW };
        let promised = self.remaining().min(u16::MAX.into());
        let window = self.target().min(most.into()).max(promised);
        self.edge = self.edge.max(self.nxt + window);
        self.acked = self.nxt;
        WindowSize(window) >> WindowScale::default()
    }
}
