//! Datagrams from sockets to the guest.
//!
//! They wait in the socket while the guest gives no room. Those of a batch that had been received
//! when the room ended wait with the flow, within bounds, and are delivered first.
//!
//! What has waited for a second or more for a guest that is not there is dropped when one comes:
//! nobody waits for an answer any more, and it may be another guest. A ring that is stopped for a
//! moment, or has no buffers, loses nothing.

use super::frame::{Undelivered, deliver, deliver_run};
use super::send::{MAX_RUN, run_length};
use super::{Datagrams, Flow, check_ends};
use crate::engine::counters::DropReason;
use crate::engine::splice::relay::{Received, Relays};
use crate::engine::{Ctx, Owner};
use crate::flow::forward::{Arrival, Destination};
use crate::flow::{Endpoint, FlowId, FlowKey, Protocol, Side};
use crate::host::{Batch, Host};
use crate::link::{ETHERNET_HEADER, Refused, Sink};
use crate::token::{Readiness, Token};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};

/// Batches that one socket delivers before others get their turn.
const BATCHES: usize = 4;

/// Bytes that all flows may keep for want of room in the guest.
const MAX_LATE: usize = 8 << 20;

/// Batches that are dropped at a time: more than a socket holds of the shortest datagrams.
const MAX_STALE: usize = 128;

/// A frame of the least length: if there is no room for this, there is none.
const LEAST_FRAME: usize = ETHERNET_HEADER + 46;

/// What keeping a datagram costs besides its bytes, so that empty ones are bounded as well.
const OVERHEAD: usize = 64;

/// How often in a row a socket may say that there is an error where none is to be found, before it
/// is closed: it would say so for ever.
const MAX_FRUITLESS: u8 = 16;

/// How often there may be room, but not enough for a datagram, before it is dropped: the guest's
/// ring may never hold it.
const TRIES: u8 = 64;

/// Datagrams that found no room in the guest, in order.
#[derive(Debug, Default)]
pub(super) struct Late {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

/// A datagram, or a run of them.
#[derive(Debug)]
struct Waiting {
    payload: Vec<u8>,
    segment: Option<u16>,
    tries: u8,
}

impl Late {
    /// Bytes that wait, their keeping included.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The listener that has received something.
#[derive(Clone, Copy, Debug)]
struct Origin {
    listener: u32,
    side: Side,
    /// The number of its rule.
    rule: usize,
}

/// Whether a socket is to be read again.
#[derive(PartialEq, Eq)]
enum Next {
    /// It is empty: an event will come.
    Idle,
    /// It has had its share of this turn.
    Again,
    /// The guest gives no room.
    Wait,
}

impl<D: std::fmt::Debug> Datagrams<D> {
    /// The socket of flow `id` is ready.
    pub(crate) fn on_socket<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        ready: Readiness,
    ) {
        let Some((key, flow)) = self.table.get_mut(id) else { return };
        let key = *key;
        if ready.error {
            let found = flow.report_errors(ctx, &key);
            flow.fruitless = if found == 0 { flow.fruitless.saturating_add(1) } else { 0 };
            if flow.fruitless > MAX_FRUITLESS {
                return self.close(ctx, id);
            }
        }
        if !flow.queued {
            self.resume(ctx, id);
        }
    }

    /// Flow `id` reads its socket: on an event, in its turn, or when there is room again.
    pub(crate) fn resume<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
    ) {
        let Some((key, flow)) = self.table.get_mut(id) else { return };
        let key = *key;
        flow.queued = false;
        let next = flow.receive(ctx, &key, &mut self.scratch.batch, &mut self.late_bytes);
        // Input that has to wait would be reported again and again.
        ctx.host.pause(&mut flow.socket, next == Next::Wait);
        match next {
            Next::Idle => {}
            Next::Again => {
                flow.queued = true;
                ctx.shared.make_ready(Owner::Datagram(id));
            }
            Next::Wait => {
                flow.queued = true;
                ctx.shared.wait_for_room(Owner::Datagram(id));
            }
        }
    }

    /// UDP listener `listener` has datagrams.
    pub(crate) fn on_listener<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        relays: &mut Relays<D>,
        listener: u32,
    ) {
        if !self.queued_listeners.contains(&listener) {
            self.serve_listener(ctx, relays, listener);
        }
    }

    /// The turn of UDP listener `listener` has come, or there is room again.
    pub(crate) fn resume_listener<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        relays: &mut Relays<D>,
        listener: u32,
    ) {
        self.queued_listeners.retain(|&queued| queued != listener);
        self.serve_listener(ctx, relays, listener);
    }

    fn serve_listener<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        relays: &mut Relays<D>,
        listener: u32,
    ) {
        let side = ctx.host.listener_side(listener);
        // What cannot go to the guest does not wait for it.
        let to_guest = side == Side::Outside && !ctx.shared.settings.splicing.only;
        for _ in 0..BATCHES {
            let full = to_guest && room(ctx).is_err();
            ctx.host.pause_listener(listener, full);
            if full {
                self.queued_listeners.push(listener);
                return ctx.shared.wait_for_room(Owner::UdpListener(listener));
            }
            let mut batch = std::mem::take(&mut self.scratch.batch);
            let received = ctx.host.receive_listener(listener, &mut batch);
            if let Ok((rule, count)) = &received {
                for index in 0..*count {
                    let origin = Origin { listener, side, rule: *rule };
                    if let Err(reason) = self.take_in(ctx, relays, origin, &batch, index) {
                        ctx.shared.drop(reason);
                    }
                }
            }
            self.scratch.batch = batch;
            match received {
                Ok(_) => {}
                // Empty; or no rule wants the listener any more.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotFound) => return,
                Err(_) => return ctx.shared.drop(DropReason::NoSocket),
            }
        }
        self.queued_listeners.push(listener);
        ctx.shared.make_ready(Owner::UdpListener(listener));
    }

    /// Drops what waits for room towards the guest, in our memory and in sockets.
    pub(crate) fn drop_waiting<H: Host<Datagram = D>, K>(&mut self, ctx: &mut Ctx<'_, H, K>) {
        for owner in ctx.shared.waiting() {
            let mut batch = std::mem::take(&mut self.scratch.batch);
            match owner {
                Owner::Datagram(id) => {
                    if let Some((_, flow)) = self.table.get_mut(id) {
                        flow.drop_waiting(ctx, &mut batch, &mut self.late_bytes);
                    }
                }
                Owner::UdpListener(listener) => drop_all(ctx, |ctx| {
                    ctx.host.receive_listener(listener, &mut batch).map(|(_, count)| count)
                }),
                _ => {}
            }
            self.scratch.batch = batch;
        }
    }

    /// Message `index` of `batch` came to a listener.
    fn take_in<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        relays: &mut Relays<D>,
        Origin { listener, side, rule }: Origin,
        batch: &Batch,
        index: usize,
    ) -> Result<(), DropReason> {
        let (message, payload) = batch.get(index).ok_or(DropReason::BadLength)?;
        let (Some(from), Some(to)) = (message.from, message.to) else {
            return Err(DropReason::BadEndpoint);
        };
        let rule = ctx.shared.settings.rules.get(rule).ok_or(DropReason::Refused)?;
        let arrival = Arrival { side, rule, peer: from, local: to };
        let key = match ctx.shared.destination(&arrival).map_err(|_| DropReason::Refused)? {
            Destination::Link(key) => key,
            Destination::Splice(target) => {
                let received = Received { listener, side, peer: from, local: to, payload };
                return relays.take_in(ctx, &received, target);
            }
        };
        check_ends(&key)?;
        let id = match self.table.find(&key) {
            Some(id) => id,
            None => {
                let opened = self.open_with_room(ctx, |ctx, id| {
                    ctx.host.open_beside(listener, to, from, Token::Datagram(id))
                })?;
                let socket = opened.map_err(|_| DropReason::NoSocket)?;
                self.insert(ctx, key, socket, from, false)?
            }
        };
        let Some((_, flow)) = self.table.get_mut(id) else { return Err(DropReason::TableFull) };
        if flow.from_guest {
            flow.life.on_answered(ctx.now)
        } else {
            flow.life.on_sent(ctx.now)
        }
        let late = &mut self.late_bytes;
        if flow.take(ctx, &key, payload, message.segment, late) == Next::Wait && !flow.queued {
            flow.queued = true;
            ctx.host.pause(&mut flow.socket, true);
            ctx.shared.wait_for_room(Owner::Datagram(id));
        }
        Ok(())
    }
}

fn room<H, K: Sink>(ctx: &mut Ctx<'_, H, K>) -> Result<(), Refused> {
    let slot = ctx.reserve(LEAST_FRAME).inspect_err(|&why| ctx.shared.note(why, ctx.now))?;
    ctx.sink.cancel(slot);
    Ok(())
}

/// Takes messages until there are no more, and drops them.
fn drop_all<H, K>(
    ctx: &mut Ctx<'_, H, K>,
    mut receive: impl FnMut(&mut Ctx<'_, H, K>) -> io::Result<usize>,
) {
    for _ in 0..MAX_STALE {
        let Ok(count) = receive(ctx) else { return };
        (0..count).for_each(|_| ctx.shared.drop(DropReason::Stale));
    }
}

impl<D: std::fmt::Debug> Flow<D> {
    fn drop_waiting<H: Host<Datagram = D>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        batch: &mut Batch,
        late_bytes: &mut usize,
    ) {
        self.late.waiting.drain(..).for_each(|_| ctx.shared.drop(DropReason::Stale));
        *late_bytes = late_bytes.saturating_sub(std::mem::take(&mut self.late.bytes));
        drop_all(ctx, |ctx| ctx.host.receive_messages(&mut self.socket, batch, false));
    }

    fn receive<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        batch: &mut Batch,
        late_bytes: &mut usize,
    ) -> Next {
        if self.deliver_late(ctx, key, late_bytes) == Next::Wait {
            return Next::Wait;
        }
        let caps = ctx.sink.caps();
        let coalesce =
            if key.guest.is_ipv4() { caps.udp4_segmentation } else { caps.udp6_segmentation };
        for _ in 0..BATCHES {
            if room(ctx).is_err() {
                return Next::Wait;
            }
            let count = match ctx.host.receive_messages(&mut self.socket, batch, coalesce) {
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Next::Idle,
                Err(_) => {
                    self.report_errors(ctx, key);
                    return Next::Idle;
                }
            };
            if self.deliver_batch(ctx, key, batch, count, late_bytes) == Next::Wait {
                return Next::Wait;
            }
            if count < Batch::MESSAGES {
                return Next::Idle;
            }
        }
        Next::Again
    }

    fn deliver_batch<H, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        batch: &Batch,
        count: usize,
        late_bytes: &mut usize,
    ) -> Next {
        let mut next = Next::Idle;
        let mut done = 0;
        while done < count {
            let index = done;
            let run = self.deliver_equal(ctx, key, batch, index, count);
            done += run.max(1);
            if run > 0 {
                continue;
            }
            let Some((message, payload)) = batch.get(index) else { break };
            if message.from.is_some_and(|from| !self.is_remote(key, from)) {
                ctx.shared.drop(DropReason::Stranger);
                continue;
            }
            if self.from_guest {
                self.life.on_answered(ctx.now)
            } else {
                self.life.on_sent(ctx.now)
            }
            next = self.take(ctx, key, payload, message.segment, late_bytes);
        }
        next
    }

    /// Delivers datagrams of one size that follow each other, from `index` on, as one frame, where
    /// there are such and the link can do it; returns how many.
    fn deliver_equal<H, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        batch: &Batch,
        index: usize,
        count: usize,
    ) -> usize {
        if key.protocol == Protocol::Echo || !self.late.waiting.is_empty() {
            return 0;
        }
        let alone = |index: usize| {
            let (message, payload) = batch.get(index).filter(|_| index < count)?;
            let ours = message.from.is_none_or(|from| self.is_remote(key, from));
            (ours && message.segment.is_none()).then_some(payload)
        };
        let mut parts = [&[][..]; MAX_RUN];
        let mut lens = 0;
        for (place, payload) in parts.iter_mut().zip((index..).map_while(alone)) {
            *place = payload;
            lens += 1;
        }
        let run = run_length(parts.iter().take(lens).map(|part| part.len()));
        let Some(parts) = parts.get(..run).filter(|_| run > 1) else { return 0 };
        if !deliver_run(ctx, key, parts) {
            return 0;
        }
        for _ in 0..run {
            if self.from_guest {
                self.life.on_answered(ctx.now);
            } else {
                self.life.on_sent(ctx.now);
            }
        }
        run
    }

    /// Delivers a datagram, or keeps it behind those that wait already.
    fn take<H, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        payload: &[u8],
        segment: Option<u16>,
        late_bytes: &mut usize,
    ) -> Next {
        let mut done = 0;
        if self.late.waiting.is_empty() {
            match deliver(ctx, key, payload, segment) {
                Ok(()) => return Next::Idle,
                Err(Undelivered { refused: Refused::TooLarge, .. }) => {
                    ctx.shared.drop(DropReason::TooLarge);
                    return Next::Idle;
                }
                Err(undelivered) => {
                    ctx.shared.note(undelivered.refused, ctx.now);
                    done = undelivered.done;
                }
            }
        }
        let payload = payload.get(done..).unwrap_or_default().to_vec();
        let cost = payload.len().saturating_add(OVERHEAD);
        if late_bytes.saturating_add(cost) > MAX_LATE {
            ctx.shared.drop(DropReason::NoRoom);
        } else {
            *late_bytes += cost;
            self.late.bytes += cost;
            self.late.waiting.push_back(Waiting { payload, segment, tries: 0 });
        }
        Next::Wait
    }

    /// Whether a message from `from` is one of this flow's.
    fn is_remote(&self, key: &FlowKey, from: Endpoint) -> bool {
        let port = key.protocol == Protocol::Echo || from.port == self.target.port;
        port && from.addr == self.target.addr
    }

    fn deliver_late<H, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        late_bytes: &mut usize,
    ) -> Next {
        while let Some(first) = self.late.waiting.front_mut() {
            let cost = first.payload.len().saturating_add(OVERHEAD);
            let mut left = 0;
            match deliver(ctx, key, &first.payload, first.segment) {
                Ok(()) => {}
                Err(Undelivered { refused: Refused::TooLarge, .. }) => {
                    ctx.shared.drop(DropReason::TooLarge);
                }
                Err(Undelivered { done: 0, .. }) if first.tries >= TRIES => {
                    ctx.shared.drop(DropReason::NoRoom);
                }
                Err(Undelivered { done, refused }) => {
                    ctx.shared.note(refused, ctx.now);
                    first.tries = if done == 0 { first.tries + 1 } else { 0 };
                    first.payload.drain(..done.min(first.payload.len()));
                    left = first.payload.len().saturating_add(OVERHEAD);
                }
            }
            let freed = cost.saturating_sub(left);
            *late_bytes = late_bytes.saturating_sub(freed);
            self.late.bytes = self.late.bytes.saturating_sub(freed);
            if left > 0 {
                return Next::Wait;
            }
            self.late.waiting.pop_front();
        }
        Next::Idle
    }
}
