//! Flows of datagrams: UDP exchanges, and pings, which differ in their headers only.
//!
//! From the guest: [`Datagrams::udp`] and [`Datagrams::echo`] find or make the flow and note the
//! payload; [`Datagrams::settle_batch`] sends what a flow has in as few calls as possible
//! ([`send`]). To the guest: [`receive`]. Errors of the network come back as ICMP ([`report`]).

mod frame;
mod receive;
mod report;
mod room;
mod send;
#[cfg(test)]
mod tests;

use super::counters::DropReason;
use super::packet::Ip;
use super::{Ctx, Owner};
use crate::flow::deadline::Booking;
use crate::flow::table::{FlowHasher, Table};
use crate::flow::{Endpoint, FlowId, FlowKey, Protocol, Side, forward};
use crate::host::{Batch, Host, Outbound};
use crate::link::{Offload, SegmentationKind, Sink, Source};
use crate::span::Span;
use crate::token::Token;
use crate::translate::datagram::Lifetime;
use crate::wire::{icmpv4, icmpv6, protocol, udp};
use receive::Late;
pub(super) use send::{Pace, run_length};
use std::net::IpAddr;

/// Datagrams that one segmented frame stands for at most (`UDP_MAX_SEGMENTS` of Linux).
const MAX_SEGMENTS: usize = 128;

/// All flows of datagrams, and memory that their handling reuses.
#[derive(Debug)]
pub(crate) struct Datagrams<D> {
    table: Table<Flow<D>>,
    unanswered: room::Unanswered,
    /// Flows that this batch of frames has touched, in order.
    touched: Vec<FlowId>,
    /// Payload of this batch, in order of arrival.
    pieces: Vec<Piece>,
    scratch: Scratch,
    /// Listeners that wait for room or for their turn.
    queued_listeners: Vec<u32>,
    /// Received and not yet delivered, for want of room.
    late_bytes: usize,
}

/// Memory that is reused from call to call.
#[derive(Debug, Default)]
struct Scratch {
    spans: Vec<Span<'static>>,
    messages: Vec<Outbound>,
    batch: Batch,
}

/// One exchange.
#[derive(Debug)]
struct Flow<D> {
    socket: D,
    life: Lifetime,
    booking: Booking,
    /// Where the guest's datagrams go.
    target: Endpoint,
    /// Whether the guest began.
    from_guest: bool,
    /// Datagrams that found no room in the guest.
    late: Late,
    /// UDP_SEGMENT is refused on this path (the size exceeds its MTU).
    no_segmentation: bool,
    touched: bool,
    queued: bool,
    /// Errors in a row that were told of and not to be found.
    fruitless: u8,
}

/// A datagram, or a run of them, in a frame of the batch.
#[derive(Clone, Copy, Debug)]
struct Piece {
    flow: FlowId,
    frame: usize,
    offset: usize,
    len: usize,
    /// Payload of each datagram of a run.
    segment: Option<u16>,
    ttl: u8,
}

impl<D: std::fmt::Debug> Datagrams<D> {
    /// No flows yet, at most `capacity`.
    pub(crate) fn new(capacity: usize, hasher: FlowHasher) -> Self {
        Self {
            table: Table::new(capacity, hasher),
            unanswered: room::Unanswered::default(),
            touched: Vec::new(),
            pieces: Vec::new(),
            scratch: Scratch::default(),
            queued_listeners: Vec::new(),
            late_bytes: 0,
        }
    }

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// A UDP datagram of the guest's, or a run of them: frame `index` of the batch.
    pub(crate) fn udp<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        ip: &Ip,
        transport: &[u8],
        offload: &Offload,
        index: usize,
    ) -> Result<(), DropReason> {
        let header = udp::Header::parse(transport, ip.transport_len)
            .map_err(|_| DropReason::BadTransportHeader)?;
        let segment = match offload.segmentation {
            Some(cut) if cut.kind != SegmentationKind::Udp => return Err(DropReason::BadOffload),
            Some(cut) => Some(cut.size).filter(|&size| usize::from(size) < header.payload_len()),
            None => None,
        };
        if segment.is_some_and(|size| header.payload_len() > MAX_SEGMENTS * usize::from(size)) {
            return Err(DropReason::BadOffload);
        }
        let key = FlowKey {
            protocol: Protocol::Udp,
            guest: Endpoint::new(ip.src, header.src_port),
            remote: Endpoint::new(ip.dst, header.dst_port),
        };
        let payload = transport.get(udp::LEN..).unwrap_or_default();
        let quoted = payload.get(..header.payload_len()).unwrap_or(payload);
        let flow = self.flow_of_guest(ctx, key, quoted)?;
        self.add(Piece {
            flow,
            frame: index,
            offset: ip.transport + udp::LEN,
            len: header.payload_len(),
            segment,
            ttl: ip.ttl,
        });
        Ok(())
    }

    /// An echo request of the guest's: frame `index` of the batch.
    pub(crate) fn echo<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        ip: &Ip,
        transport: &[u8],
        index: usize,
    ) -> Result<(), DropReason> {
        let identifier = echo_request(ip, transport).ok_or(DropReason::UnknownProtocol)?;
        let key = FlowKey {
            protocol: Protocol::Echo,
            guest: Endpoint::new(ip.src, identifier),
            remote: Endpoint::new(ip.dst, identifier),
        };
        let quoted = transport.get(..ip.transport_len).unwrap_or(transport);
        let flow = self.flow_of_guest(ctx, key, quoted)?;
        self.add(Piece {
            flow,
            frame: index,
            offset: ip.transport,
            len: ip.transport_len,
            segment: None,
            ttl: ip.ttl,
        });
        Ok(())
    }

    fn add(&mut self, piece: Piece) {
        self.pieces.push(piece);
        if let Some((_, flow)) = self.table.get_mut(piece.flow)
            && !flow.touched
        {
            flow.touched = true;
            self.touched.push(piece.flow);
        }
    }

    /// The flow with this key, made if there is none. `quoted` is what the guest is told of its
    /// message if that fails.
    fn flow_of_guest<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: FlowKey,
        quoted: &[u8],
    ) -> Result<FlowId, DropReason> {
        if let Some(id) = self.table.find(&key) {
            return Ok(id);
        }
        check_ends(&key)?;
        let settings = &ctx.shared.settings;
        let target =
            forward::outbound(&settings.view, &settings.translation, key.protocol, key.remote)
                .map_err(|_| DropReason::NoTarget)?;
        let opened = self.open_with_room(ctx, |ctx, id| match key.protocol {
            Protocol::Echo => ctx.host.open_echo(target.addr, key.guest.port, id),
            _ => {
                let local = Endpoint::new(unspecified(target.addr), key.guest.port);
                let opened = ctx.host.open_udp(Side::Outside, local, target, Token::Datagram(id));
                opened.map(|(socket, _)| socket)
            }
        })?;
        let socket = opened.map_err(|error| {
            report::refuse(ctx, &key, &error, quoted);
            DropReason::NoSocket
        })?;
        self.insert(ctx, key, socket, target, true)
    }

    fn insert<H, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: FlowKey,
        socket: D,
        target: Endpoint,
        from_guest: bool,
    ) -> Result<FlowId, DropReason> {
        let flow = Flow {
            socket,
            life: Lifetime::new(key.protocol, ctx.now),
            booking: Booking::new(),
            target,
            from_guest,
            late: Late::default(),
            no_segmentation: false,
            touched: false,
            queued: false,
            fruitless: 0,
        };
        let id = self.table.insert(key, flow).ok_or(DropReason::TableFull)?;
        self.unanswered.add(id, &self.table);
        self.book(ctx, id);
        Ok(id)
    }

    fn book<H, K>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId) {
        if let Some((_, flow)) = self.table.get_mut(id) {
            let at = flow.life.deadline(&ctx.shared.settings.timeouts);
            ctx.shared.deadlines.book(&mut flow.booking, Owner::Datagram(id), Some(at));
        }
    }

    /// The batch of frames has ended: each flow that it touched sends.
    pub(crate) fn settle_batch<H: Host<Datagram = D>, K: Sink, S: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        source: &S,
    ) {
        if self.touched.is_empty() {
            return;
        }
        let mut touched = std::mem::take(&mut self.touched);
        // The sort is stable: within a flow the order of arrival stays.
        self.pieces.sort_by_key(|piece| piece.flow);
        for id in touched.drain(..) {
            let first = self.pieces.partition_point(|piece| piece.flow < id);
            let last = self.pieces.partition_point(|piece| piece.flow <= id);
            let pieces = self.pieces.get(first..last).unwrap_or_default();
            if let Some((key, flow)) = self.table.get_mut(id) {
                let key = *key;
                flow.touched = false;
                flow.send(ctx, &key, pieces, source, &mut self.scratch);
            }
        }
        self.touched = touched;
        self.pieces.clear();
    }

    /// The deadline that flow `id` has booked is due.
    pub(crate) fn on_deadline<H: Host<Datagram = D>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
    ) {
        let Some((_, flow)) = self.table.get_mut(id) else { return };
        flow.booking.clear();
        if flow.life.is_over(ctx.now, &ctx.shared.settings.timeouts) {
            self.close(ctx, id);
        } else {
            self.book(ctx, id);
        }
    }

    /// Forgets flow `id`, and closes its socket.
    fn close<H, K>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId) {
        let Some((_, mut flow)) = self.table.remove(id) else { return };
        self.late_bytes = self.late_bytes.saturating_sub(flow.late.bytes());
        ctx.shared.deadlines.cancel(&mut flow.booking, Owner::Datagram(id));
        ctx.shared.forget(Owner::Datagram(id));
    }
}

/// The identifier of an echo request of either family.
fn echo_request(ip: &Ip, transport: &[u8]) -> Option<u16> {
    if ip.transport_len < icmpv4::LEN {
        return None;
    }
    let (kind, id) = match (ip.src, ip.protocol) {
        (IpAddr::V4(_), protocol::ICMPV4) => {
            icmpv4::Echo::parse(transport).map(|echo| (echo.kind, echo.id)).ok()?
        }
        (IpAddr::V6(_), protocol::ICMPV6) => {
            icmpv6::Echo::parse(transport).map(|echo| (echo.kind, echo.id)).ok()?
        }
        _ => return None,
    };
    (kind == icmpv4::EchoKind::Request).then_some(id)
}

/// Whether a flow may have these ends: a unicast guest; ports, for UDP; a destination that is
/// someone (multicast for UDP, not the limited broadcast, for there is no one network to send to).
fn check_ends(key: &FlowKey) -> Result<(), DropReason> {
    let broadcast = |addr| matches!(addr, IpAddr::V4(a) if a.is_broadcast());
    let (guest, remote) = (key.guest, key.remote);
    let bad_guest =
        guest.addr.is_unspecified() || guest.addr.is_multicast() || broadcast(guest.addr);
    let bad_remote = remote.addr.is_unspecified()
        || broadcast(remote.addr)
        || (key.protocol == Protocol::Echo && remote.addr.is_multicast());
    let bad_port = key.protocol == Protocol::Udp && (guest.port == 0 || remote.port == 0);
    if bad_guest || bad_remote || bad_port { Err(DropReason::BadEndpoint) } else { Ok(()) }
}

/// "Any address" of the family of `addr`.
pub(super) const fn unspecified(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}
