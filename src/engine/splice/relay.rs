//! Datagrams between both sides.
//!
//! The first one from a peer comes to a listener. It opens an exchange of two connected sockets:
//! one beside the listener, so that replies leave from the address that the peer has used and
//! later datagrams of the peer arrive there (or keep coming to the listener); and one on the other
//! side, connected to the target and bound to the peer's port if that is to be had.
//!
//! Errors of the far side end here, ECONNREFUSED among them. A peer on loopback gets that from its
//! kernel when the port is closed, but it has sent to a port that is open: ours. To tell it, we
//! would have to write the ICMP message ourselves, on a raw socket of its side, which takes a
//! privilege that we have given away (inside) or never had (outside).

use super::Sides;
use crate::engine::counters::DropReason;
use crate::engine::datagram::{Pace, run_length, unspecified};
use crate::engine::{Ctx, Owner};
use crate::flow::deadline::Booking;
use crate::flow::table::{FlowHasher, Key, Table};
use crate::flow::{Endpoint, FlowId, FlowKey, Protocol, Side};
use crate::host::{Batch, Host, Outbound};
use crate::span::{Span, recycle};
use crate::token::{Readiness, Token};
use crate::translate::datagram::Lifetime;
use std::io::ErrorKind;

/// Batches that one socket gets before others have their turn.
const BATCHES: usize = 4;

/// Errors that are taken from a socket at a time.
const MAX_ERRORS: usize = 16;

/// How often in a row a socket may say that there is an error where none is to be found, before the
/// exchange ends: it would say so for ever.
const MAX_FRUITLESS: u8 = 16;

/// Errors in what one call has received after which the rest of it is not tried any more.
const MAX_TROUBLE: usize = 32;

/// The TTL of what we send. It does not leave the host.
const TTL: u8 = 64;

/// All exchanges of datagrams between both sides.
#[derive(Debug)]
pub(crate) struct Relays<D> {
    table: Table<Relay<D>, RelayKey>,
    batch: Batch,
    scratch: Scratch,
}

/// Memory that is reused from call to call.
#[derive(Debug, Default)]
struct Scratch {
    spans: Vec<Span<'static>>,
    messages: Vec<Outbound>,
    /// How many datagrams each message stands for.
    runs: Vec<usize>,
}

/// An exchange as it is seen on the side where it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RelayKey {
    side: Side,
    peer: Endpoint,
    local: Endpoint,
}

impl Key for RelayKey {
    fn hash(&self, hasher: &FlowHasher) -> u64 {
        let Self { side: _, peer, local } = *self;
        hasher.hash(&FlowKey { protocol: Protocol::Udp, guest: peer, remote: local })
    }
}

/// One exchange.
#[derive(Debug)]
struct Relay<D> {
    sockets: Sides<D>,
    /// Who is at the far end of each socket.
    remotes: Sides<Endpoint>,
    /// The side where it began.
    began: Side,
    life: Lifetime,
    booking: Booking,
    /// The sockets that have used up their turn and wait for the next.
    queued: Sides<bool>,
    /// UDP_SEGMENT is refused.
    no_segmentation: bool,
    /// Errors in a row that were told of and not to be found.
    fruitless: u8,
}

/// What a listener has received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    pub(crate) listener: u32,
    /// The listener's side.
    pub(crate) side: Side,
    pub(crate) peer: Endpoint,
    pub(crate) local: Endpoint,
    pub(crate) payload: &'a [u8],
}

impl<D: std::fmt::Debug> Relays<D> {
    /// No exchanges yet, at most `capacity`.
    pub(crate) fn new(capacity: usize, hasher: FlowHasher) -> Self {
        Self {
            table: Table::new(capacity, hasher),
            batch: Batch::new(),
            scratch: Scratch::default(),
        }
    }

    /// How many exchanges there are.
    pub(crate) const fn len(&self) -> usize {
        self.table.len()
    }

    /// A listener has received what goes to `to` on the other side.
    pub(crate) fn take_in<H: Host<Datagram = D>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        received: &Received<'_>,
        to: Endpoint,
    ) -> Result<(), DropReason> {
        let Received { listener, side, peer, local, payload } = *received;
        let key = RelayKey { side, peer, local };
        let id = match self.table.find(&key) {
            Some(id) => id,
            None => self.open(ctx, listener, key, to)?,
        };
        let Some((_, relay)) = self.table.get_mut(id) else { return Err(DropReason::TableFull) };
        relay.life.on_sent(ctx.now);
        relay.send(ctx, side.other(), &[payload], &mut self.scratch);
        Ok(())
    }

    fn open<H: Host<Datagram = D>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        listener: u32,
        key: RelayKey,
        to: Endpoint,
    ) -> Result<FlowId, DropReason> {
        let RelayKey { side, peer, local } = key;
        if peer.port == 0 || to.port == 0 || peer.addr.is_multicast() {
            return Err(DropReason::BadEndpoint);
        }
        let id = self.table.next_id().ok_or(DropReason::TableFull)?;
        let (there, any) = (side.other(), Endpoint::new(unspecified(to.addr), peer.port));
        let here = ctx.host.open_beside(listener, local, peer, Token::Relay(id, side));
        let here = here.map_err(|_| DropReason::NoSocket)?;
        let opened = ctx.host.open_udp(there, any, to, Token::Relay(id, there));
        let (there, _) = opened.map_err(|_| DropReason::NoSocket)?;
        let relay = Relay {
            sockets: Sides::new(side, here, there),
            remotes: Sides::new(side, peer, to),
            began: side,
            life: Lifetime::new(Protocol::Udp, ctx.now),
            booking: Booking::new(),
            queued: Sides { outside: false, inside: false },
            no_segmentation: false,
            fruitless: 0,
        };
        let id = self.table.insert(key, relay).ok_or(DropReason::TableFull)?;
        self.book(ctx, id);
        Ok(id)
    }

    fn book<H, K>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId) {
        if let Some((_, relay)) = self.table.get_mut(id) {
            let at = relay.life.deadline(&ctx.shared.settings.timeouts);
            ctx.shared.deadlines.book(&mut relay.booking, Owner::Relay(id), Some(at));
        }
    }

    /// The socket of `side` of exchange `id` is ready.
    pub(crate) fn on_socket<H: Host<Datagram = D>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        side: Side,
        ready: Readiness,
    ) {
        let Some((_, relay)) = self.table.get_mut(id) else { return };
        if ready.error {
            let found = relay.take_errors(ctx.host, side);
            relay.fruitless = if found == 0 { relay.fruitless.saturating_add(1) } else { 0 };
            if relay.fruitless > MAX_FRUITLESS {
                return self.close(ctx, id);
            }
        }
        if !*relay.queued.of(side) {
            self.run(ctx, id, side);
        }
    }

    /// The next turn of exchange `id`.
    pub(crate) fn resume<H: Host<Datagram = D>, K>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId) {
        for side in [Side::Outside, Side::Inside] {
            if let Some((_, relay)) = self.table.get_mut(id)
                && std::mem::take(relay.queued.of(side))
            {
                self.run(ctx, id, side);
            }
        }
    }

    fn run<H: Host<Datagram = D>, K>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId, side: Side) {
        let Some((_, relay)) = self.table.get_mut(id) else { return };
        if relay.forward(ctx, side, &mut self.batch, &mut self.scratch) {
            *relay.queued.of(side) = true;
            ctx.shared.make_ready(Owner::Relay(id));
        }
    }

    /// The deadline that exchange `id` has booked is due.
    pub(crate) fn on_deadline<H: Host<Datagram = D>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
    ) {
        let Some((_, relay)) = self.table.get_mut(id) else { return };
        relay.booking.clear();
        if relay.life.is_over(ctx.now, &ctx.shared.settings.timeouts) {
            self.close(ctx, id);
        } else {
            self.book(ctx, id);
        }
    }

    fn close<H, K>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId) {
        let Some((_, mut relay)) = self.table.remove(id) else { return };
        ctx.shared.deadlines.cancel(&mut relay.booking, Owner::Relay(id));
        ctx.shared.forget(Owner::Relay(id));
    }
}

impl<D: std::fmt::Debug> Relay<D> {
    /// Passes on what waits in the socket of `side`; whether there may be more.
    fn forward<H: Host<Datagram = D>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        side: Side,
        batch: &mut Batch,
        scratch: &mut Scratch,
    ) -> bool {
        let remote = *self.remotes.of(side);
        for _ in 0..BATCHES {
            let coalesce = !self.no_segmentation;
            let count = match ctx.host.receive_messages(self.sockets.of(side), batch, coalesce) {
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.take_errors(ctx.host, side);
                    return false;
                }
            };
            let mut datagrams = Vec::with_capacity(count);
            for (message, payload) in (0..count).map_while(|index| batch.get(index)) {
                if message.from.is_some_and(|from| from != remote) {
                    ctx.shared.drop(DropReason::Stranger);
                    continue;
                }
                if side == self.began {
                    self.life.on_sent(ctx.now);
                } else {
                    self.life.on_answered(ctx.now);
                }
                datagrams.extend(split(payload, message.segment));
            }
            self.send(ctx, side.other(), &datagrams, scratch);
            if count < Batch::MESSAGES {
                return false;
            }
        }
        true
    }

    /// Sends `datagrams` on the socket of `side`.
    fn send<H: Host<Datagram = D>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        side: Side,
        datagrams: &[&[u8]],
        scratch: &mut Scratch,
    ) {
        let mut rest = datagrams;
        let mut pace = Pace::new();
        let mut errors = 0;
        // Each round settles at least one datagram, or rules segmentation out.
        while !rest.is_empty() {
            let now = rest.get(..pace.most()).unwrap_or(rest);
            let Round { sent, troubled } = self.send_some(ctx, side, now, scratch);
            let settled = match sent {
                Sent::Taken(n) => n.max(1),
                Sent::Refused(n) => {
                    (0..n).for_each(|_| ctx.shared.drop(DropReason::NotSent));
                    n.max(1)
                }
                Sent::WithoutSegmentation => {
                    self.no_segmentation = true;
                    continue;
                }
            };
            rest = rest.get(settled..).unwrap_or_default();
            pace.on_round(troubled);
            errors += usize::from(troubled);
            if errors > MAX_TROUBLE {
                rest.iter().for_each(|_| ctx.shared.drop(DropReason::NotSent));
                return;
            }
        }
    }

    /// Sends `datagrams` as far as the socket goes along: those of one size as one message.
    fn send_some<H: Host<Datagram = D>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        side: Side,
        datagrams: &[&[u8]],
        scratch: &mut Scratch,
    ) -> Round {
        let mut spans: Vec<Span<'_>> = recycle(std::mem::take(&mut scratch.spans));
        let Scratch { messages, runs, .. } = scratch;
        messages.clear();
        runs.clear();
        let mut rest = datagrams;
        while let Some(first) = rest.first() {
            let lens = rest.iter().map(|datagram| datagram.len());
            let run = if self.no_segmentation { 1 } else { run_length(lens) };
            let (own, others) = rest.split_at(run.min(rest.len()));
            spans.extend(own.iter().map(|datagram| Span::from_slice(datagram)));
            let segment = (run > 1).then(|| u16::try_from(first.len()).ok()).flatten();
            messages.push(Outbound { spans: own.len(), segment });
            runs.push(own.len());
            rest = others;
        }
        let socket = self.sockets.of(side);
        let mut result = ctx.host.send_messages(socket, messages, &spans, TTL);
        let troubled = result.as_ref().is_err_and(|e| e.kind() != ErrorKind::WouldBlock);
        if troubled {
            // It may be an error of an earlier datagram, which nobody is there to be told.
            self.take_errors(ctx.host, side);
            let socket = self.sockets.of(side);
            result = ctx.host.send_messages(socket, messages, &spans, TTL);
        }
        scratch.spans = recycle(spans);
        let sum = |n: usize| scratch.runs.iter().take(n).sum::<usize>();
        let segmented = scratch.messages.first().is_some_and(|first| first.segment.is_some());
        let sent = match result {
            Ok(0) => Sent::Refused(sum(1)),
            Ok(n) => Sent::Taken(sum(n)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Sent::Refused(datagrams.len()),
            Err(_) if segmented => Sent::WithoutSegmentation,
            Err(_) => Sent::Refused(1),
        };
        Round { sent, troubled }
    }

    /// Takes the errors that wait on the socket of `side`; returns how many there were.
    fn take_errors<H: Host<Datagram = D>>(&mut self, host: &mut H, side: Side) -> usize {
        let socket = self.sockets.of(side);
        (0..MAX_ERRORS).take_while(|_| host.next_error(socket).is_some()).count()
    }
}

/// A call for datagrams to be sent.
struct Round {
    sent: Sent,
    /// There was an error, be it one of an earlier datagram.
    troubled: bool,
}

/// What came of sending.
enum Sent {
    /// So many datagrams are gone.
    Taken(usize),
    /// So many datagrams will not go.
    Refused(usize),
    /// The same again, one by one.
    WithoutSegmentation,
}

/// The datagrams of a message: one, or those of a run.
fn split(payload: &[u8], segment: Option<u16>) -> impl Iterator<Item = &[u8]> {
    let size = segment.map_or(payload.len(), usize::from).max(1);
    let empty = payload.is_empty().then_some(payload);
    empty.into_iter().chain(payload.chunks(size))
}
