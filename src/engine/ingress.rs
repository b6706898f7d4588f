//! Frames from the guest: copied as far as needed, checked, and handed to who they are for.

use super::counters::DropReason;
use super::fragments::{Fragments, Outcome};
use super::packet::{self, Fragment, HeaderCopy, Ip, Packet};
use super::{Ctx, Flows, Owner, Shared};
use crate::flow::deadline::Booking;
use crate::flow::table::FlowHasher;
use crate::host::Host;
use crate::link::{
    ETHERNET_HEADER, Frame, MAX_FRAME, Offload, Refused, SegmentationKind, Sink, Source,
};
use crate::service::{self, Request};
use crate::span::{Span, gather};
use crate::time::{Duration, Instant};
use crate::wire::{MacAddr, protocol};
use std::io;

/// The largest message to a service that is looked at: more than any of them fills.
const MAX_SERVICE_FRAME: usize = 4096;

/// Handles frame `index` of the batch that `source` holds.
pub(crate) fn frame<H: Host, K: Sink, S: Source>(
    ctx: &mut Ctx<'_, H, K>,
    flows: &mut Flows<H>,
    source: &S,
    index: usize,
) {
    let mut copy = HeaderCopy::default();
    if let Err(reason) = dispatch(ctx, flows, source, index, &mut copy) {
        ctx.shared.drop(reason);
    }
}

fn dispatch<H: Host, K: Sink, S: Source>(
    ctx: &mut Ctx<'_, H, K>,
    flows: &mut Flows<H>,
    source: &S,
    index: usize,
    copy: &mut HeaderCopy,
) -> Result<(), DropReason> {
    let frame = source.frame(index);
    if !(ETHERNET_HEADER..=MAX_FRAME).contains(&frame.len) {
        return Err(DropReason::BadLength);
    }
    copy.fill(&frame);
    let (mac, packet) = packet::parse(copy.bytes(), frame.len)?;
    learn_mac(ctx.shared, mac, ctx.now);
    let ip = match packet {
        Packet::Arp => {
            check_offload(&frame, None)?;
            return serve(ctx, &frame).ok_or(DropReason::ServiceIgnored);
        }
        Packet::Ip(ip) => ip,
    };
    if !ctx.shared.settings.view.speaks(ip.src) {
        return Err(DropReason::FamilyDisabled);
    }
    check_offload(&frame, Some(&ip))?;
    if let Some(part) = &ip.fragment {
        return add_fragment(ctx, flows, source, &ip, part, &frame);
    }
    let transport = copy.bytes().get(ip.transport..).unwrap_or_default();
    if is_for_services(&ip, transport) && serve(ctx, &frame).is_some() {
        return Ok(());
    }
    ctx.shared.observed.learn(ip.src);
    let protocols = ctx.shared.settings.protocols;
    match ip.protocol {
        protocol::TCP if protocols.tcp => flows.tcp.segment(ctx, &ip, transport, source, index),
        protocol::UDP if protocols.udp => {
            flows.datagrams.udp(ctx, &ip, transport, &frame.offload, index)
        }
        protocol::ICMPV4 | protocol::ICMPV6 if protocols.icmp => {
            flows.datagrams.echo(ctx, &ip, transport, index)
        }
        protocol::TCP | protocol::UDP | protocol::ICMPV4 | protocol::ICMPV6 => {
            Err(DropReason::ProtocolDisabled)
        }
        _ => Err(DropReason::UnknownProtocol),
    }
}

/// Whether the offload fields fit the frame (`data-plane` 7.7). `header_len` is a hint only, but one
/// beyond the frame comes from nobody who means well.
fn check_offload(frame: &Frame<'_>, ip: Option<&Ip>) -> Result<(), DropReason> {
    let Offload { checksum, segmentation } = frame.offload;
    let field = checksum.map_or(0, |c| usize::from(c.start) + usize::from(c.offset) + 2);
    let cut = segmentation.is_none_or(|cut| {
        let fits = match (cut.kind, ip) {
            (_, None | Some(Ip { fragment: Some(_), .. })) => false,
            (SegmentationKind::Tcp4, Some(ip)) => ip.src.is_ipv4() && ip.protocol == protocol::TCP,
            (SegmentationKind::Tcp6, Some(ip)) => ip.src.is_ipv6() && ip.protocol == protocol::TCP,
            (SegmentationKind::Udp, Some(ip)) => ip.protocol == protocol::UDP,
        };
        fits && cut.size > 0 && usize::from(cut.header_len) <= frame.len
    });
    if cut && field <= frame.len { Ok(()) } else { Err(DropReason::BadOffload) }
}

/// Whether one of our services may want to answer: NDP, DHCP, DHCPv6.
fn is_for_services(ip: &Ip, transport: &[u8]) -> bool {
    match (ip.protocol, transport) {
        (protocol::UDP, [_, _, d0, d1, ..]) => {
            service::is_udp_service(u16::from_be_bytes([*d0, *d1]))
        }
        (protocol::ICMPV6, [kind, ..]) => service::is_icmpv6_service(*kind),
        _ => false,
    }
}

/// Any frame teaches us the guest's Ethernet address (`data-plane` 7.1).
fn learn_mac(shared: &mut Shared, mac: MacAddr, now: Instant) {
    if mac != shared.guest_mac && !mac.is_multicast() && mac != MacAddr::default() {
        crate::log::limited!(now, log::Level::Info, "guest MAC address: {mac}");
        shared.guest_mac = mac;
    }
}

/// Hands a frame to the services; `None` if it is not for them.
fn serve<H, K: Sink>(ctx: &mut Ctx<'_, H, K>, frame: &Frame<'_>) -> Option<()> {
    let mut bytes = [0; MAX_SERVICE_FRAME];
    let n = gather(frame.spans, 0, &mut bytes);
    let request = Request {
        frame: bytes.get(..n)?,
        checksum_pending: frame.offload.checksum.is_some(),
        seen: ctx.shared.seen(),
    };
    let view = &ctx.shared.settings.view;
    let outcome = service::answer(&request, &ctx.shared.surroundings());
    if let Some(target) = service::probed(&request) {
        ctx.shared.observed.learn_probe(target);
    }
    match outcome {
        service::Outcome::NotForUs => return None,
        service::Outcome::Consumed(Some(reply)) => {
            if let Some(addr) = service::leased(&reply, view) {
                ctx.shared.observed.learn_lease(addr);
            }
            ctx.send_frame(&reply);
        }
        service::Outcome::Consumed(None) => ctx.shared.drop(DropReason::ServiceIgnored),
    }
    Some(())
}

/// On a new client: asks for the guest's addresses, to learn its MAC early (`data-plane` 7.1). A
/// driver posts its first buffers a moment after it starts the ring: then this waits for them.
pub(crate) fn greet<H, K: Sink>(ctx: &mut Ctx<'_, H, K>) {
    for frame in service::learn_guest(&ctx.shared.surroundings()) {
        match ctx.reserve(frame.len()) {
            Ok(slot) => {
                ctx.sink.write(&slot, 0, &frame);
                ctx.sink.commit(slot, frame.len(), Offload::default());
            }
            Err(Refused::Full) => return ctx.shared.wait_for_room(Owner::Greeting),
            Err(_) => return,
        }
    }
}

/// When the next unsolicited router advertisement is due (RFC 4861 6.2.4).
#[derive(Debug)]
pub(crate) struct RaTimer {
    booking: Booking,
    delays: service::RaTimer,
    /// Advertisements that follow soon: one alone may get lost.
    urgent: u8,
}

/// Advertisements of something new, and what lies between them (RFC 4861 10, halved twice: there is
/// but one host to hear them).
const URGENT: u8 = 3;
const URGENT_PAUSE: Duration = Duration::from_secs(4);

impl RaTimer {
    pub(crate) fn new(hasher: FlowHasher) -> Self {
        let seed = u64::from(hasher.counter_seed());
        Self { booking: Booking::new(), delays: service::RaTimer::new(seed), urgent: 0 }
    }

    pub(crate) fn book(&mut self, shared: &mut Shared, now: Instant) {
        if shared.settings.view.services.ra && shared.settings.view.v6.is_some() {
            let urgent = self.urgent > 0;
            let delay = if urgent { URGENT_PAUSE } else { self.delays.next_delay() };
            let at = now + delay;
            shared.deadlines.book(&mut self.booking, Owner::RouterAdvertisement, Some(at));
        }
    }

    /// There is something new to advertise: at once, and soon again.
    pub(crate) fn hurry(&mut self, shared: &mut Shared, now: Instant) {
        if shared.settings.view.services.ra && shared.settings.view.v6.is_some() {
            self.urgent = URGENT;
            shared.deadlines.book(&mut self.booking, Owner::RouterAdvertisement, Some(now));
        }
    }

    pub(crate) fn on_deadline<H, K: Sink>(&mut self, ctx: &mut Ctx<'_, H, K>) {
        self.booking.clear();
        self.urgent = self.urgent.saturating_sub(1);
        if let Some(frame) = service::router_advertisement(&ctx.shared.surroundings()) {
            ctx.send_frame(&frame);
        }
        self.book(ctx.shared, ctx.now);
    }
}

/// The guest's fragments on their way to be datagrams.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    fragments: Fragments,
    booking: Booking,
    /// Of [`Fragments::expired`], so many are counted already.
    counted: u64,
}

impl Reassembly {
    pub(crate) fn on_deadline<H, K>(&mut self, ctx: &mut Ctx<'_, H, K>) {
        self.booking.clear();
        self.look_after(ctx.shared, ctx.now);
    }

    /// Counts datagrams that will never be complete, and books for those that may still be.
    fn look_after(&mut self, shared: &mut Shared, now: Instant) {
        let next = self.fragments.expire(now);
        shared.deadlines.book(&mut self.booking, Owner::Fragments, next);
        while self.counted < self.fragments.expired() {
            self.counted += 1;
            shared.drop(DropReason::Fragment);
        }
    }
}

/// Keeps a fragment; the last missing one makes a datagram, which goes the way of all others.
fn add_fragment<H: Host, K: Sink, S: Source>(
    ctx: &mut Ctx<'_, H, K>,
    flows: &mut Flows<H>,
    source: &S,
    ip: &Ip,
    part: &Fragment,
    frame: &Frame<'_>,
) -> Result<(), DropReason> {
    let mut bytes = vec![0; ip.transport_len];
    let n = gather(frame.spans, ip.transport, &mut bytes);
    bytes.truncate(n);
    let reassembly = &mut flows.fragments;
    let outcome = reassembly.fragments.add(ip, part, &bytes, ctx.now);
    reassembly.look_after(ctx.shared, ctx.now);
    let (payload, ttl) = match outcome {
        Outcome::Kept => return Ok(()),
        Outcome::Refused => return Err(DropReason::Fragment),
        Outcome::Complete(payload, ttl) => (payload, ttl),
    };
    // What stands in the batch so far came first.
    flows.datagrams.settle_batch(ctx, source);
    let whole = Whole { spans: [Span::from_slice(&payload)] };
    let ip = Ip { ttl, transport: 0, transport_len: payload.len(), fragment: None, ..*ip };
    ctx.shared.observed.learn(ip.src);
    let protocols = ctx.shared.settings.protocols;
    match ip.protocol {
        protocol::UDP if protocols.udp => {
            flows.datagrams.udp(ctx, &ip, &payload, &Offload::default(), 0)?;
        }
        protocol::ICMPV4 | protocol::ICMPV6 if protocols.icmp => {
            flows.datagrams.echo(ctx, &ip, &payload, 0)?;
        }
        // TCP sizes its segments to the path; who fragments them is up to no good.
        _ => return Err(DropReason::Fragment),
    }
    flows.datagrams.settle_batch(ctx, &whole);
    Ok(())
}

/// A batch of one: the payload of a reassembled datagram.
struct Whole<'a> {
    spans: [Span<'a>; 1],
}

impl Source for Whole<'_> {
    fn receive(&mut self) -> io::Result<usize> {
        Ok(0)
    }

    fn frame(&self, _: usize) -> Frame<'_> {
        Frame {
            spans: &self.spans,
            len: crate::span::total(&self.spans),
            offload: Offload::default(),
        }
    }

    fn release(&mut self) {}
}
