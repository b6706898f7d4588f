//! One TCP connection: its machine, its socket, and what waits between them.

use super::held::Held;
use super::{Piece, Pieces, Scratch};
use crate::engine::staging::{Budget, Staging};
use crate::engine::{Ctx, Owner};
use crate::flow::deadline::Booking;
use crate::flow::{FlowId, FlowKey};
use crate::host::{Connect, Host};
use crate::link::{Sink, Source};
use crate::span::{self, Span, recycle};
use crate::token::{Readiness, Token};
use crate::translate::tcp::{Conn, Room};
use crate::wire::seq::SeqNum;
use std::io::ErrorKind;

/// Spans that one send may name (IOV_MAX).
const MAX_SPANS: usize = 1024;

/// What a flow may ask about the memory that all share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share<'a> {
    pub(super) budget: &'a Budget,
    pub(super) flows: usize,
}

impl Share<'_> {
    /// Bytes of staging that a flow which has `staged` may be promised.
    pub(super) fn room(self, staged: usize) -> u32 {
        u32::try_from(self.budget.room(staged, self.flows)).unwrap_or(u32::MAX)
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct TcpFlow<S> {
    pub(super) conn: Conn,
    pub(super) stream: S,
    pub(super) staging: Staging,
    pub(super) held: Option<Box<Held>>,
    pub(super) booking: Booking,
    /// Fresh payload of the batch being handled.
    pieces: Option<Pieces>,
    /// Bytes that the guest has acknowledged and the socket still holds.
    pub(super) to_discard: usize,
    /// How much room the next peek gets at least: twice what the last one brought.
    pub(super) appetite: usize,
    /// The socket was told that there is much to carry.
    pub(super) widened: bool,
    /// The sequence number at which the socket had nothing more, and has not been ready since: to
    /// peek there again would be a system call for nothing.
    pub(super) empty_at: Option<SeqNum>,
    /// The socket's connect has not ended.
    connecting: bool,
    /// The peer has sent its FIN: peek until it is seen.
    pub(super) peer_closed: bool,
    /// There is or was urgent data, at which a peek ends though there is more behind it.
    pub(super) urgent: bool,
    /// The socket has failed: what the peer sent before goes to the guest, then it is told.
    pub(super) failed: bool,
    /// In the list of flows that the batch has touched.
    pub(super) touched: bool,
}

impl<S: std::fmt::Debug> TcpFlow<S> {
    pub(super) fn new(conn: Conn, stream: S, connect: Connect) -> Self {
        Self {
            conn,
            stream,
            staging: Staging::default(),
            held: None,
            booking: Booking::default(),
            pieces: None,
            to_discard: 0,
            appetite: 0,
            widened: false,
            empty_at: None,
            connecting: connect == Connect::InProgress,
            peer_closed: false,
            urgent: false,
            failed: false,
            touched: false,
        }
    }

    /// Adds fresh payload of the batch.
    pub(super) fn add_piece(&mut self, piece: Piece, pieces: &mut Vec<Piece>) {
        let index = pieces.len();
        pieces.push(piece);
        match &mut self.pieces {
            Some(mine) => {
                if let Some(last) = pieces.get_mut(mine.last) {
                    last.next = Some(index);
                }
                mine.last = index;
            }
            none => *none = Some(Pieces { first: index, last: index }),
        }
    }

    /// Sends what is staged and what is fresh; stages what the socket does not take.
    pub(super) fn forward<H: Host<Stream = S>, K, Src: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        source: Option<&Src>,
        scratch: &mut Scratch,
        budget: &mut Budget,
    ) {
        let fresh = self.pieces.take();
        if self.staging.is_empty() && fresh.is_none() {
            return;
        }
        let mut payload = recycle(std::mem::take(&mut scratch.payload));
        payload.extend(self.staging.spans().into_iter().filter(|span| !span.is_empty()));
        collect(source, fresh, &scratch.pieces, &mut payload);
        let all = span::total(&payload);
        let sent = send_all(ctx.host, &mut self.stream, &payload);
        scratch.payload = recycle(payload);
        let sent = sent.unwrap_or_else(|_| {
            // Nobody will read it: it is as good as sent.
            self.fail();
            all
        });
        let staged = self.staging.len();
        self.staging.consume(sent, budget);
        if let Some(fresh) = fresh {
            let mut rest = recycle(std::mem::take(&mut scratch.payload));
            collect(source, Some(fresh), &scratch.pieces, &mut rest);
            let before = self.staging.len();
            self.staging.push(&rest, sent.saturating_sub(staged), budget);
            scratch.payload = recycle(rest);
            self.conn.on_forwarded(sent, ctx.now);
            self.conn.on_staged(self.staging.len() - before, ctx.now);
        } else {
            self.conn.on_forwarded(sent, ctx.now);
        }
    }

    /// The socket is ready for `ready`.
    pub(super) fn on_ready<H: Host<Stream = S>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        ready: Readiness,
        share: Share<'_>,
    ) {
        self.peer_closed |= ready.read_closed || ready.hung_up;
        self.urgent |= ready.urgent;
        if ready.readable || ready.read_closed || ready.hung_up || ready.error {
            self.empty_at = None;
        }
        if self.connecting {
            if !(ready.writable || ready.error || ready.hung_up) {
                return;
            }
            self.connecting = false;
            match ctx.host.connect_result(&self.stream) {
                Ok(()) => {
                    self.ask_room(ctx, share);
                    self.conn.on_connected(ctx.now);
                }
                Err(_) => self.conn.on_connect_failed(),
            }
        } else if ready.error || (ready.hung_up && ctx.host.take_error(&self.stream).is_some()) {
            self.fail();
        }
    }

    /// Whether the kernel has forgotten the connection.
    pub(super) fn is_over<H: Host<Stream = S>>(&self, host: &mut H) -> bool {
        !self.connecting && host.info(&self.stream).is_ok_and(|info| !info.established)
    }

    /// The socket has failed. A guest's own kernel would still let it read what came before: so
    /// the reset waits until that is delivered, however often the socket fails meanwhile, unless
    /// nothing more is to come or to be had. It comes with the first peek that finds nothing, and
    /// peeks come with the guest's ACKs; a guest that does not acknowledge is given up.
    fn fail(&mut self) {
        if !self.conn.interest().readable {
            self.conn.on_socket_error();
        }
        self.failed = true;
        self.peer_closed = true;
        self.empty_at = None;
    }

    /// Steps 2 to 5 of [`crate::translate::tcp`]; returns whether the flow is to be forgotten. What
    /// is due to the guest then has found no room.
    pub(super) fn advance<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        key: &FlowKey,
        scratch: &mut Scratch,
        share: Share<'_>,
    ) -> bool {
        self.discard(ctx);
        if self.conn.wants_shutdown() {
            match ctx.host.shutdown(&mut self.stream) {
                Ok(()) => self.conn.on_shutdown(),
                Err(_) => {
                    // There is no peer to be told; what it sent before may still be on its way.
                    self.fail();
                    self.conn.on_shutdown();
                }
            }
        }
        if self.conn.wants_room_info(ctx.now) {
            self.ask_room(ctx, share);
        }
        self.pump(ctx, id, key, scratch);
        self.send_segments(ctx, id, key);
        if self.conn.is_closed() {
            return true;
        }
        if ctx.host.watch(&mut self.stream, Token::Tcp(id), self.conn.interest()).is_err() {
            self.conn.on_socket_error();
            self.send_segments(ctx, id, key);
            return true;
        }
        ctx.shared.deadlines.book(&mut self.booking, Owner::Tcp(id), self.conn.deadline());
        false
    }

    /// Drops from the socket what the guest has acknowledged.
    fn discard<H: Host<Stream = S>, K>(&mut self, ctx: &mut Ctx<'_, H, K>) {
        if self.to_discard > 0 && (self.urgent || self.peer_closed) {
            // That may have stood before an urgent byte. No event tells what is behind it.
            self.empty_at = None;
        }
        while self.to_discard > 0 {
            match ctx.host.discard(&mut self.stream, self.to_discard) {
                Ok(n) if n > 0 => self.to_discard = self.to_discard.saturating_sub(n),
                // The bytes were peeked before, so they are there, unless the socket has failed.
                _ => {
                    self.conn.on_socket_error();
                    self.to_discard = 0;
                }
            }
        }
    }

    fn ask_room<H: Host<Stream = S>, K>(&mut self, ctx: &mut Ctx<'_, H, K>, share: Share<'_>) {
        let Ok(info) = ctx.host.info(&self.stream) else { return };
        let staged = self.staging.len();
        let room = Room {
            send_room: if staged == 0 { info.send_room } else { 0 },
            staging_room: share.room(staged),
            peer_window: info.peer_window,
            rtt: info.rtt,
        };
        self.conn.on_room(&room, ctx.now);
    }

    /// Returns the memory of a flow that ends.
    pub(super) fn give_back(&mut self, budget: &mut Budget) {
        self.staging.consume(usize::MAX, budget);
        if let Some(held) = &mut self.held {
            held.skip(usize::MAX, budget);
        }
    }
}

/// Appends the spans of a flow's fresh payload.
fn collect<'a, Src: Source>(
    source: Option<&'a Src>,
    fresh: Option<Pieces>,
    pieces: &[Piece],
    out: &mut Vec<Span<'a>>,
) {
    let (Some(source), Some(fresh)) = (source, fresh) else { return };
    let mut next = Some(fresh.first);
    while let Some(piece) = next.and_then(|index| pieces.get(index)) {
        span::slice_into(source.frame(piece.frame).spans, piece.offset, piece.len, out);
        next = piece.next;
    }
}

/// Sends until the socket takes no more; returns how much it took.
fn send_all<H: Host>(
    host: &mut H,
    stream: &mut H::Stream,
    payload: &[Span<'_>],
) -> std::io::Result<usize> {
    let mut sent = 0usize;
    for chunk in payload.chunks(MAX_SPANS) {
        match host.send(stream, chunk) {
            Ok(n) => {
                sent = sent.saturating_add(n);
                if n < span::total(chunk) {
                    break;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(sent)
}
