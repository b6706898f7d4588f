//! From sockets to the guest: data is peeked straight into the guest's buffers, behind room for
//! headers, and stays in the socket until the guest acknowledges it.

use super::Scratch;
use super::flow::TcpFlow;
use crate::engine::counters::DropReason;
use crate::engine::headers::{self, Transport};
use crate::engine::{Ctx, Owner};
use crate::flow::{FlowId, FlowKey};
use crate::host::{Host, MAX_ROOM};
use crate::link::{
    ETHERNET_HEADER, LinkCaps, MAX_FRAME, Refused, Segmentation, SegmentationKind, Sink, Slot,
};
use crate::span::{SpanMut, recycle_mut, total_mut};
use crate::translate::tcp::{Outgoing, PeekPlan, Sending};
use crate::wire::seq::{Mss, SeqNum};
use crate::wire::tcp::{CHECKSUM_OFFSET, Flags, Header, LEN, Options};
use crate::wire::{ipv4, ipv6, protocol};
use std::io::ErrorKind;

/// Bytes that one flow may move towards the guest before others get their turn.
const SHARE: usize = 1 << 20;

/// Frames of one peek at most.
const MAX_SLOTS: usize = 256;

/// Room that a peek gets at least, if the window allows.
const MIN_APPETITE: usize = 64 << 10;

/// A TCP header with the options of a SYN.
const MAX_HEADER: usize = LEN + 8;

/// How data of one flow is cut into frames.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Bytes of all headers.
    headers: usize,
    /// Payload of one frame at most.
    chunk: usize,
    mss: Mss,
    /// Set if frames may be larger than `mss`.
    kind: Option<SegmentationKind>,
}

impl Layout {
    fn new(key: &FlowKey, caps: &LinkCaps, mss: Mss) -> Self {
        let v4 = key.guest.is_ipv4();
        let headers = ETHERNET_HEADER + if v4 { ipv4::LEN } else { ipv6::LEN } + LEN;
        let room = caps.max_frame.min(MAX_FRAME).saturating_sub(headers).max(1);
        let one = usize::from(mss.0).clamp(1, room);
        let kind = if v4 {
            caps.tcp4_segmentation.then_some(SegmentationKind::Tcp4)
        } else {
            caps.tcp6_segmentation.then_some(SegmentationKind::Tcp6)
        };
        // Whole segments only, so that no short one stands in mid-stream.
        let chunk = if kind.is_some() { room - room % one } else { one };
        Self { headers, chunk, mss, kind }
    }

    /// What to try where a frame with `payload` bytes was refused: whole segments, if there is no
    /// room just now, and less than that, if a frame of this size will never fit.
    fn smaller(&self, payload: usize, refused: Refused) -> Option<usize> {
        let mss = usize::from(self.mss.0).max(1);
        let half = payload / 2;
        match refused {
            Refused::Down => None,
            _ if payload > mss => Some((half - half % mss).max(mss)),
            Refused::TooLarge => Some(half).filter(|&half| half > 0),
            Refused::Full => None,
        }
    }

    fn segmentation(&self, payload: usize) -> Option<Segmentation> {
        let kind = self.kind.filter(|_| payload > usize::from(self.mss.0))?;
        let header_len = u16::try_from(self.headers).ok()?;
        Some(Segmentation { kind, size: self.mss.0, header_len })
    }
}

/// What came of one peek.
enum Outcome {
    /// There may be more.
    More(usize),
    /// Nothing more at present, or no room.
    Pause,
}

impl<S: std::fmt::Debug> TcpFlow<S> {
    /// Moves what the socket has to the guest, as far as its window, its buffers and the flow's
    /// share of this turn allow.
    pub(super) fn pump<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        key: &FlowKey,
        scratch: &mut Scratch,
    ) {
        let mut share = SHARE;
        while let Some(plan) = self.conn.peek_plan() {
            if plan.sending == Sending::Next && self.empty_at == Some(plan.seq) {
                return;
            }
            if share == 0 {
                return ctx.shared.make_ready(Owner::Tcp(id));
            }
            match self.peek_once(ctx, id, key, &plan, share, scratch) {
                Outcome::More(n) => share = share.saturating_sub(n),
                Outcome::Pause => return,
            }
        }
    }

    fn peek_once<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        key: &FlowKey,
        plan: &PeekPlan,
        share: usize,
        scratch: &mut Scratch,
    ) -> Outcome {
        let caps = ctx.sink.caps();
        let layout = Layout::new(key, &caps, plan.mss);
        let want = plan.budget.min(share).min(self.appetite.max(MIN_APPETITE));
        if let Err(refused) = reserve(ctx.sink, &layout, want, &mut scratch.slots) {
            if self.failed && self.is_empty(ctx, plan.skip) {
                // Nothing is left but to say so: that takes no socket.
                self.conn.on_socket_error();
            }
            self.on_refused(ctx, id, refused);
            return Outcome::Pause;
        }
        let mut room = recycle_mut(std::mem::take(&mut scratch.room));
        for (slot, _) in &scratch.slots {
            ctx.sink.room(slot, layout.headers, &mut room);
        }
        // What does not fit one peek waits for the next, or it would seem to find too little.
        room.truncate(MAX_ROOM);
        let asked = total_mut(&room);
        let result = ctx.host.peek(&mut self.stream, plan.skip, &room);
        scratch.room = recycle_mut(room);
        let n = match result {
            Ok(n) if n > 0 => n.min(asked),
            other => {
                scratch.slots.drain(..).for_each(|(slot, _)| ctx.sink.cancel(slot));
                match other {
                    Err(e) if self.may_be_marked(&e, plan.skip) => self.drained(plan.seq),
                    _ if self.failed => self.conn.on_socket_error(),
                    Ok(_) => self.conn.on_end_of_stream(),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => self.drained(plan.seq),
                    Err(_) => self.conn.on_socket_error(),
                }
                return Outcome::Pause;
            }
        };
        self.send_data(ctx, key, &caps, &layout, plan, n, scratch);
        self.conn.on_peeked(plan, n, ctx.now);
        self.appetite = n.saturating_mul(2).max(self.appetite - self.appetite / 4).min(SHARE);
        if n >= MIN_APPETITE && !self.widened {
            self.widened = true;
            ctx.host.widen(&mut self.stream);
        }
        if n < asked && !self.peer_closed && !self.urgent {
            self.drained(plan.seq + u32::try_from(n).unwrap_or(0));
            return Outcome::Pause;
        }
        Outcome::More(n)
    }

    /// Whether the socket, which has failed, has nothing behind its first `skip` bytes.
    fn is_empty<H: Host<Stream = S>, K>(&mut self, ctx: &mut Ctx<'_, H, K>, skip: usize) -> bool {
        let mut byte = [0];
        let room = [SpanMut::from_slice(&mut byte)];
        match ctx.host.peek(&mut self.stream, skip, &room) {
            Ok(n) => n == 0,
            Err(e) => !self.may_be_marked(&e, skip),
        }
    }

    /// Whether an urgent byte among those that are skipped may be all that ended a peek: then there
    /// is more to be had once the guest has acknowledged what stands before it.
    fn may_be_marked(&self, error: &std::io::Error, skip: usize) -> bool {
        self.urgent && skip > 0 && error.kind() == ErrorKind::WouldBlock
    }

    /// The socket has nothing from `seq` on: an event will tell of more.
    fn drained(&mut self, seq: SeqNum) {
        self.empty_at = Some(seq);
        self.conn.on_drained();
    }

    /// Writes the headers of `n` peeked bytes and gives back the slots that they did not reach.
    #[expect(clippy::too_many_arguments, reason = "one step of `peek_once`, cut out to be read")]
    fn send_data<H, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        caps: &LinkCaps,
        layout: &Layout,
        plan: &PeekPlan,
        n: usize,
        scratch: &mut Scratch,
    ) {
        let mut done = 0;
        for (slot, room) in scratch.slots.drain(..) {
            let payload = room.min(n - done);
            if payload == 0 {
                ctx.sink.cancel(slot);
                continue;
            }
            let seq = plan.seq + u32::try_from(done).unwrap_or(0);
            done += payload;
            let outgoing = self.conn.data_header(seq, done == n);
            let cut = layout.segmentation(payload);
            write_segment(ctx, caps, slot, key, &outgoing, payload, cut);
        }
    }

    /// Sends what is due without payload, as far as there is room.
    pub(super) fn send_segments<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        key: &FlowKey,
    ) {
        if !self.conn.segment_due() {
            return;
        }
        let caps = ctx.sink.caps();
        let headers = ETHERNET_HEADER + if key.guest.is_ipv4() { ipv4::LEN } else { ipv6::LEN };
        while self.conn.segment_due() {
            // Room comes first: what the machine has said once, it does not say again.
            let slot = match ctx.sink.reserve(headers + MAX_HEADER) {
                Ok(slot) => slot,
                Err(refused) => return self.on_refused(ctx, id, refused),
            };
            let Some(outgoing) = self.conn.poll_segment(ctx.now) else {
                ctx.sink.cancel(slot);
                break;
            };
            write_segment(ctx, &caps, slot, key, &outgoing, 0, None);
        }
    }

    /// The link gives no slot: the flow waits for one, or ends if there will never be one.
    fn on_refused<H, K>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId, refused: Refused) {
        match refused {
            // Last words wait without the flow.
            _ if self.conn.is_closed() => {}
            Refused::Full | Refused::Down => ctx.shared.wait_for_room(Owner::Tcp(id)),
            Refused::TooLarge => {
                // Not even the smallest frame fits the guest's buffers.
                ctx.shared.drop(DropReason::TooLarge);
                self.conn.on_socket_error();
            }
        }
    }
}

/// Reserves slots for `want` bytes, or as many as there is room for.
///
/// # Errors
/// Why there is not even one slot. Where a large frame finds no room, a smaller one may: guests
/// refill their rings only when enough is used up, which would never be if we waited.
fn reserve<K: Sink>(
    sink: &mut K,
    layout: &Layout,
    mut want: usize,
    slots: &mut Vec<(Slot, usize)>,
) -> Result<(), Refused> {
    let mut chunk = layout.chunk;
    while want > 0 && slots.len() < MAX_SLOTS {
        let payload = chunk.min(want);
        match sink.reserve(layout.headers + payload) {
            Ok(slot) => {
                slots.push((slot, payload));
                want -= payload;
            }
            Err(_) if !slots.is_empty() => break,
            Err(refused) => chunk = layout.smaller(payload, refused).ok_or(refused)?,
        }
    }
    Ok(())
}

/// Writes the headers of one segment and commits its frame.
pub(super) fn write_segment<H, K: Sink>(
    ctx: &mut Ctx<'_, H, K>,
    caps: &LinkCaps,
    slot: Slot,
    key: &FlowKey,
    outgoing: &Outgoing,
    payload: usize,
    segmentation: Option<Segmentation>,
) {
    let options =
        Options { mss: outgoing.mss, window_scale: outgoing.window_scale, sack_permitted: false };
    let mut flags = if outgoing.ack.is_some() { Flags::ACK } else { Flags::NONE };
    for (set, flag) in [
        (outgoing.flags.syn, Flags::SYN),
        (outgoing.flags.fin, Flags::FIN),
        (outgoing.flags.rst, Flags::RST),
        (outgoing.flags.psh, Flags::PSH),
    ] {
        if set {
            flags = flags.with(flag);
        }
    }
    let header = Header {
        src_port: key.remote.port,
        dst_port: key.guest.port,
        seq: outgoing.seq,
        ack: outgoing.ack.unwrap_or_default(),
        flags,
        window: outgoing.window,
        checksum: 0,
        urgent: 0,
        header_len: LEN + options.len(),
    };
    let mut bytes = [0; MAX_HEADER];
    header.emit(&mut bytes);
    options.emit(&mut bytes[LEN..]);
    let addresses = ctx.shared.to_guest(key);
    let transport =
        Transport { protocol: protocol::TCP, checksum_offset: CHECKSUM_OFFSET, segmentation };
    let tcp = &mut bytes[..header.header_len];
    headers::commit(ctx.sink, caps, slot, &addresses, tcp, payload, &transport);
}
