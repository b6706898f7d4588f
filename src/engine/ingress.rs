//! Frames from the guest: copied as far as needed, checked, and handed to who they are for.

use super::counters::DropReason;
use super::packet::{
    self, HeaderCopy, Ip, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet,
};
use super::{Ctx, Owner, Shared, tcp};
use crate::flow::deadline::Booking;
use crate::flow::table::FlowHasher;
use crate::host::Host;
use crate::link::{ETHERNET_HEADER, Frame, MAX_FRAME, Sink, Source};
use crate::service;
use crate::span::gather;
use crate::time::Instant;
use crate::wire::{self, MacAddr};

/// The largest message to a service that is looked at: more than any of them fills.
const MAX_SERVICE_FRAME: usize = 4096;

/// Handles frame `index` of the batch that `source` holds.
pub(crate) fn frame<H: Host, K: Sink, S: Source>(
    ctx: &mut Ctx<'_, H, K>,
    tcp: &mut tcp::Tcp<H::Stream>,
    source: &S,
    index: usize,
) {
    let mut copy = HeaderCopy::new();
    if let Err(reason) = dispatch(ctx, tcp, source, index, &mut copy) {
        ctx.shared.drop(reason);
    }
}

fn dispatch<H: Host, K: Sink, S: Source>(
    ctx: &mut Ctx<'_, H, K>,
    tcp: &mut tcp::Tcp<H::Stream>,
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
    learn_mac(ctx.shared, mac);
    let ip = match packet {
        Packet::Arp => return serve(ctx, &frame),
        Packet::Ip(ip) => ip,
    };
    if !ctx.shared.settings.view.speaks(ip.src) {
        return Err(DropReason::FamilyDisabled);
    }
    if ip.fragment.is_some() {
        return Err(DropReason::Fragment);
    }
    let transport = copy.bytes().get(ip.transport..).unwrap_or_default();
    match ip.protocol {
        PROTOCOL_TCP if !ctx.shared.settings.protocols.tcp => Err(DropReason::ProtocolDisabled),
        PROTOCOL_TCP => {
            ctx.shared.observed.learn(ip.src);
            tcp.segment(ctx, &ip, transport, source, index)
        }
        PROTOCOL_UDP | PROTOCOL_ICMPV6 | PROTOCOL_ICMP => serve(ctx, &frame),
        _ => Err(DropReason::UnknownProtocol),
    }
}

/// Any frame teaches us the guest's Ethernet address (`data-plane` 7.1).
fn learn_mac(shared: &mut Shared, mac: MacAddr) {
    if mac != shared.guest_mac && !mac.is_multicast() && mac != MacAddr::default() {
        shared.guest_mac = mac;
    }
}

/// Hands a frame to the services.
fn serve<H, K: Sink>(ctx: &mut Ctx<'_, H, K>, frame: &Frame<'_>) -> Result<(), DropReason> {
    let mut bytes = [0; MAX_SERVICE_FRAME];
    let n = gather(frame.spans, 0, &mut bytes);
    Err(DropReason::ServiceIgnored)
}

/// On a new client: asks for the guest's addresses, to learn its MAC early (`data-plane` 7.1).
pub(crate) fn learn_guest<H, K: Sink>(ctx: &mut Ctx<'_, H, K>) {}

/// When the next unsolicited router advertisement is due.
#[derive(Debug)]
pub(crate) struct RaTimer {
    booking: Booking,
    hasher: FlowHasher,
}

impl RaTimer {
    pub(crate) const fn new(hasher: FlowHasher) -> Self {
        Self { booking: Booking::new(), hasher }
    }

    pub(crate) fn book(&mut self, shared: &mut Shared, now: Instant) {}

    pub(crate) fn on_deadline<H, K: Sink>(&mut self, ctx: &mut Ctx<'_, H, K>) {
        self.booking.clear();
    }
}
