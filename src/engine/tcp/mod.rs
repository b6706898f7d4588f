//! TCP: the flows, and the path of their segments from the guest to sockets.
//!
//! A batch of frames is handled in two steps. [`Tcp::segment`] shows each segment to the machine
//! of its flow and notes which payload is fresh; [`Tcp::settle_batch`] then sends all fresh payload
//! of a flow with one call, straight from the guest's memory, stages what the socket did not take,
//! and lets the flow answer once. The other direction is in [`pump`], new flows are in [`open`].

mod farewell;
mod flow;
mod held;
mod open;
mod pump;
mod refuse;

use super::counters::DropReason;
use super::packet::Ip;
use super::staging::Budget;
use super::{Ctx, Owner};
use crate::flow::table::{FlowHasher, Table};
use crate::flow::{Endpoint, FlowId, FlowKey, Protocol};
use crate::host::Host;
use crate::link::{Sink, Slot, Source};
use crate::span::{Span, SpanMut, gather};
use crate::token::Readiness;
use crate::translate::tcp::{Flags, Segment, Verdict};
use crate::wire::tcp::{Header, LEN, Options};
use farewell::Farewells;
use flow::{Share, TcpFlow};

/// All TCP flows, and scratch memory that their handling reuses.
#[derive(Debug)]
pub(crate) struct Tcp<S> {
    table: Table<TcpFlow<S>>,
    /// The flow of the last segment: frames come in runs.
    last: Option<(FlowKey, FlowId)>,
    /// Flows that this batch has touched, in order.
    touched: Vec<FlowId>,
    farewells: Farewells,
    budget: Budget,
    scratch: Scratch,
}

/// What a batch collects, and vectors that are empty between calls and keep their allocations.
#[derive(Debug, Default)]
struct Scratch {
    /// Fresh payload of this batch, a linked list per flow.
    pieces: Vec<Piece>,
    payload: Vec<Span<'static>>,
    room: Vec<SpanMut<'static>>,
    slots: Vec<(Slot, usize)>,
}

/// Fresh payload in a frame of the batch.
#[derive(Clone, Copy, Debug)]
struct Piece {
    frame: usize,
    offset: usize,
    len: usize,
    next: Option<usize>,
}

/// The first and last piece of a flow.
#[derive(Clone, Copy, Debug)]
struct Pieces {
    first: usize,
    last: usize,
}

impl<S: std::fmt::Debug> Tcp<S> {
    /// No flows yet, at most `capacity`.
    pub(crate) fn new(capacity: usize, hasher: FlowHasher) -> Self {
        Self {
            table: Table::new(capacity, hasher),
            last: None,
            touched: Vec::new(),
            farewells: Farewells::new(capacity),
            budget: Budget::default(),
            scratch: Scratch::default(),
        }
    }

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Bytes staged or held for all flows.
    pub(crate) const fn staged(&self) -> usize {
        self.budget.used()
    }

    fn find(&mut self, key: &FlowKey) -> Option<FlowId> {
        if let Some((last, id)) = &self.last
            && last == key
        {
            return Some(*id);
        }
        let id = self.table.find(key)?;
        self.last = Some((*key, id));
        Some(id)
    }

    /// One segment of the guest's: frame `index` of the batch in `source`, whose transport header
    /// is at the start of `transport`.
    pub(crate) fn segment<H: Host<Stream = S>, K: Sink, Src: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        ip: &Ip,
        transport: &[u8],
        source: &Src,
        index: usize,
    ) -> Result<(), DropReason> {
        let header = Header::parse(transport, ip.transport_len)
            .map_err(|_| DropReason::BadTransportHeader)?;
        let segment = segment_of(&header, transport, ip.transport_len);
        let key = FlowKey {
            protocol: Protocol::Tcp,
            guest: Endpoint::new(ip.src, header.src_port),
            remote: Endpoint::new(ip.dst, header.dst_port),
        };
        let Segment { flags, ack, .. } = segment;
        let opens = flags.syn && !flags.fin && !flags.rst && ack.is_none();
        let mut found = self.find(&key);
        if opens && let Some(id) = found.filter(|&id| self.has_ended(id)) {
            // Earlier in this batch.
            self.make_way(ctx, id, source);
            found = None;
        }
        let Some(id) = found else {
            if opens {
                return self.open_from_guest(ctx, key, &segment);
            }
            refuse::answer(ctx, &key, &segment);
            return Err(DropReason::NoFlow);
        };
        let Some((_, flow)) = self.table.get_mut(id) else { return Err(DropReason::NoFlow) };
        let verdict = flow.conn.offer(&segment, self.budget.left(), ctx.now);
        if !flow.touched {
            flow.touched = true;
            self.touched.push(id);
        }
        if verdict.makes_way {
            self.make_way(ctx, id, source);
            return self.open_from_guest(ctx, key, &segment);
        }
        if verdict.reject {
            refuse::answer(ctx, &key, &segment);
        }
        self.carry_out(ctx, id, &verdict, source, index, ip.transport + header.header_len);
        Ok(())
    }

    fn has_ended(&self, id: FlowId) -> bool {
        self.table.get(id).is_none_or(|(_, flow)| flow.conn.is_closed())
    }

    /// Flow `id` leaves its ports to a new connection. What it has for its peer still goes there.
    fn make_way<H: Host<Stream = S>, K: Sink, Src: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        source: &Src,
    ) {
        self.last = None;
        self.table.unlist(id);
        if let Some((_, flow)) = self.table.get_mut(id) {
            flow.forward(ctx, Some(source), &mut self.scratch, &mut self.budget);
            self.advance(ctx, id);
        }
    }

    /// Does what the verdict on one segment asks for, but sending, which waits for the batch.
    fn carry_out<H: Host<Stream = S>, K, Src: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        verdict: &Verdict,
        source: &Src,
        index: usize,
        payload: usize,
    ) {
        let Some((_, flow)) = self.table.get_mut(id) else { return };
        if verdict.keepalive {
            ctx.host.keepalive(&mut flow.stream);
        }
        flow.to_discard += verdict.discard;
        if !verdict.fresh.is_empty() {
            let piece = Piece {
                frame: index,
                offset: payload + verdict.fresh.start,
                len: verdict.fresh.len(),
                next: None,
            };
            flow.add_piece(piece, &mut self.scratch.pieces);
        }
        if verdict.held.is_some() || flow.held.is_some() {
            self.hold(ctx, id, verdict, source, index, payload);
        }
    }

    /// The rare path: something came out of order, or is no longer.
    fn hold<H: Host<Stream = S>, K, Src: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        verdict: &Verdict,
        source: &Src,
        index: usize,
        payload: usize,
    ) {
        let Some((_, flow)) = self.table.get_mut(id) else { return };
        let held = flow.held.get_or_insert_default();
        held.skip(verdict.fresh.len(), &mut self.budget);
        let joined = held.take(verdict.joined, &mut self.budget);
        if let Some(part) = &verdict.held {
            let mut bytes = vec![0; part.range.len()];
            let spans = source.frame(index).spans;
            let n = gather(spans, payload + part.range.start, &mut bytes);
            bytes.truncate(n);
            held.put(part.offset, bytes, &mut self.budget);
        }
        if held.len() == 0 {
            flow.held = None;
        }
        if !joined.is_empty() {
            // Keeps the order: what was fresh before goes first, then these.
            flow.forward(ctx, Some(source), &mut self.scratch, &mut self.budget);
            flow.staging.extend(&joined, &mut self.budget);
            flow.conn.on_staged(joined.len(), ctx.now);
        }
    }

    /// The batch has ended: each flow that it touched sends, reads and answers.
    pub(crate) fn settle_batch<H: Host<Stream = S>, K: Sink, Src: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        source: &Src,
    ) {
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            let Some((_, flow)) = self.table.get_mut(id) else { continue };
            flow.touched = false;
            flow.forward(ctx, Some(source), &mut self.scratch, &mut self.budget);
            self.advance(ctx, id);
        }
        self.touched = touched;
        self.scratch.pieces.clear();
    }

    /// Everything that may follow a change: see the steps in [`crate::translate::tcp`].
    fn advance<H: Host<Stream = S>, K: Sink>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId) {
        let share = Share { budget: &self.budget, flows: self.table.len() };
        let Some((key, flow)) = self.table.get_mut(id) else { return };
        let key = *key;
        if flow.advance(ctx, id, &key, &mut self.scratch, share) {
            while let Some(outgoing) = flow.conn.poll_segment(ctx.now) {
                self.farewells.bid(ctx, key, outgoing);
            }
            self.close(ctx, id);
        }
    }

    /// The guest has given room for last words.
    pub(crate) fn say_farewell<H, K: Sink>(&mut self, ctx: &mut Ctx<'_, H, K>) {
        self.farewells.say(ctx);
    }

    fn close<H: Host<Stream = S>, K>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId) {
        self.last = None;
        let Some((_, mut flow)) = self.table.remove(id) else { return };
        flow.give_back(&mut self.budget);
        ctx.shared.deadlines.cancel(&mut flow.booking, Owner::Tcp(id));
        ctx.shared.forget(Owner::Tcp(id));
        if flow.conn.wants_reset() {
            ctx.host.reset(flow.stream);
        }
    }

    /// The socket of flow `id` is ready.
    pub(crate) fn on_socket<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        ready: Readiness,
    ) {
        let share = Share { budget: &self.budget, flows: self.table.len() };
        let Some((_, flow)) = self.table.get_mut(id) else { return };
        flow.on_ready(ctx, ready, share);
        flow.forward(ctx, None::<&NoFrames>, &mut self.scratch, &mut self.budget);
        self.advance(ctx, id);
    }

    /// Flow `id` has waited for room or for its turn.
    pub(crate) fn resume<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
    ) {
        self.advance(ctx, id);
    }

    /// The deadline that flow `id` has booked is due.
    pub(crate) fn on_deadline<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
    ) {
        let Some((_, flow)) = self.table.get_mut(id) else { return };
        flow.booking.clear();
        flow.conn.on_deadline(ctx.now);
        flow.forward(ctx, None::<&NoFrames>, &mut self.scratch, &mut self.budget);
        self.advance(ctx, id);
    }
}

/// A source without frames, for sends that only drain the staging.
#[derive(Debug)]
enum NoFrames {}

impl Source for NoFrames {
    fn receive(&mut self) -> std::io::Result<usize> {
        match *self {}
    }

    fn frame(&self, _: usize) -> crate::link::Frame<'_> {
        match *self {}
    }

    fn release(&mut self) {
        match *self {}
    }
}

/// The machine's view of a segment with this header and `len` bytes in all.
fn segment_of(header: &Header, transport: &[u8], len: usize) -> Segment {
    let options = if header.flags.syn() {
        Options::parse(transport.get(LEN..header.header_len).unwrap_or_default())
    } else {
        Options::default()
    };
    Segment {
        seq: header.seq,
        ack: header.flags.ack().then_some(header.ack),
        flags: Flags {
            syn: header.flags.syn(),
            fin: header.flags.fin(),
            rst: header.flags.rst(),
            psh: header.flags.psh(),
        },
        window: header.window,
        payload_len: len.saturating_sub(header.header_len),
        mss: options.mss,
        window_scale: options.window_scale,
    }
}
