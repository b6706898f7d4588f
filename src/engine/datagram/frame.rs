//! Frames of datagrams to the guest: whole, segmented by the link, cut by us, or fragmented.

use crate::engine::Ctx;
use crate::engine::headers::{self, Addresses, MAX_IP_HEADERS, Transport};
use crate::flow::{FlowKey, Protocol};
use crate::link::{LinkCaps, Offload, Refused, Segmentation, SegmentationKind, Sink, Slot};
use crate::wire::checksum::Sum;
use crate::wire::{ethernet, icmpv4, icmpv6, ipv4, ipv6, protocol, udp};
use std::net::IpAddr;

/// Bytes of the IPv6 fragment header (RFC 8200 4.5).
const FRAGMENT_HEADER: usize = 8;

/// The next-header value of the fragment header.
const NEXT_HEADER_FRAGMENT: u8 = 44;

/// What stands behind the IP header, without its checksum.
struct Message {
    header: [u8; 8],
    /// Bytes of `header` that are used.
    header_len: usize,
    protocol: u8,
    checksum_offset: u16,
}

impl Message {
    /// The UDP header of `payload`, or the whole header of an echo reply that `payload` is.
    fn new(key: &FlowKey, payload_len: usize) -> Self {
        let len = u16::try_from(udp::LEN + payload_len).unwrap_or(u16::MAX);
        let header =
            udp::Header { src_port: key.remote.port, dst_port: key.guest.port, len, checksum: 0 };
        Self {
            header: header.to_bytes(),
            header_len: udp::LEN,
            protocol: protocol::UDP,
            checksum_offset: 6,
        }
    }

    fn echo_reply(key: &FlowKey, seq: u16) -> Self {
        let (kind, code, checksum) = (icmpv4::EchoKind::Reply, 0, 0);
        let id = key.guest.port;
        let (header, protocol) = if key.guest.is_ipv4() {
            (icmpv4::Echo { kind, code, checksum, id, seq }.to_bytes(), protocol::ICMPV4)
        } else {
            (icmpv6::Echo { kind, code, checksum, id, seq }.to_bytes(), protocol::ICMPV6)
        };
        Self { header, header_len: icmpv4::LEN, protocol, checksum_offset: 2 }
    }
}

/// Sends `payload` to the guest as what `key` carries; `segment` says that it is a run of
/// datagrams of that size.
///
/// # Errors
/// Why the link takes no more, and how much of a run it has taken.
pub(super) fn deliver<H, K: Sink>(
    ctx: &mut Ctx<'_, H, K>,
    key: &FlowKey,
    payload: &[u8],
    segment: Option<u16>,
) -> Result<(), Undelivered> {
    let whole = |refused| Undelivered { refused, done: 0 };
    if key.protocol == Protocol::Echo {
        return deliver_echo(ctx, key, payload).map_err(whole);
    }
    let caps = ctx.sink.caps();
    let message = Message::new(key, payload.len());
    let Some(size) = segment.filter(|&size| usize::from(size) < payload.len()) else {
        return send(ctx, key, &caps, &message, &[payload], None).map_err(whole);
    };
    if may_segment(ctx, key, &caps, size) {
        match send(ctx, key, &caps, &message, &[payload], Some(size)) {
            // The guest's buffers may hold the datagrams that they do not hold together.
            Err(Refused::TooLarge) => {}
            outcome => return outcome.map_err(whole),
        }
    }
    let mut done = 0;
    for part in payload.chunks(usize::from(size).max(1)) {
        send(ctx, key, &caps, &Message::new(key, part.len()), &[part], None)
            .map_err(|refused| Undelivered { refused, done })?;
        done += part.len();
    }
    Ok(())
}

/// Sends datagrams of one size, but for a shorter last one, in one frame that the link will cut.
/// Returns whether it could be done: otherwise they are to be delivered one by one.
pub(super) fn deliver_run<H, K: Sink>(
    ctx: &mut Ctx<'_, H, K>,
    key: &FlowKey,
    parts: &[&[u8]],
) -> bool {
    let caps = ctx.sink.caps();
    let size = parts.first().and_then(|first| u16::try_from(first.len()).ok());
    let Some(size) = size.filter(|&size| may_segment(ctx, key, &caps, size)) else { return false };
    let len = parts.iter().map(|part| part.len()).sum();
    send(ctx, key, &caps, &Message::new(key, len), parts, Some(size)).is_ok()
}

/// Whether the link cuts datagrams of this size for the guest, whose MTU must allow them.
fn may_segment<H, K>(ctx: &Ctx<'_, H, K>, key: &FlowKey, caps: &LinkCaps, size: u16) -> bool {
    let v4 = key.guest.is_ipv4();
    let headers = if v4 { ipv4::LEN } else { ipv6::LEN } + udp::LEN;
    let mtu = ctx.shared.settings.view.mtu.map_or(usize::MAX, usize::from);
    let can = if v4 { caps.udp4_segmentation } else { caps.udp6_segmentation };
    can && usize::from(size) + headers <= mtu
}

/// A datagram, or a run of them, for which there was no room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Undelivered {
    /// Why.
    pub(super) refused: Refused,
    /// Bytes at the front that the guest has got: whole datagrams.
    pub(super) done: usize,
}

/// An echo reply as the ping socket gives it: ICMP header first. Others are none of the guest's.
fn deliver_echo<H, K: Sink>(
    ctx: &mut Ctx<'_, H, K>,
    key: &FlowKey,
    message: &[u8],
) -> Result<(), Refused> {
    let echo = if key.guest.is_ipv4() {
        icmpv4::Echo::parse(message).map(|echo| (echo.kind, echo.seq))
    } else {
        icmpv6::Echo::parse(message).map(|echo| (echo.kind, echo.seq))
    };
    let Ok((icmpv4::EchoKind::Reply, seq)) = echo else { return Ok(()) };
    let payload = message.get(icmpv4::LEN..).unwrap_or_default();
    let caps = LinkCaps { checksum: false, ..ctx.sink.caps() };
    send(ctx, key, &caps, &Message::echo_reply(key, seq), &[payload], None)
}

/// Sends `parts`, one behind the other, as one message.
fn send<H, K: Sink>(
    ctx: &mut Ctx<'_, H, K>,
    key: &FlowKey,
    caps: &LinkCaps,
    message: &Message,
    parts: &[&[u8]],
    segment: Option<u16>,
) -> Result<(), Refused> {
    let payload_len = parts.iter().map(|part| part.len()).sum::<usize>();
    let addresses = ctx.shared.to_guest(key);
    let mut header = message.header;
    let header = header.get_mut(..message.header_len).unwrap_or_default();
    let len = addresses.header_len() + header.len() + payload_len;
    let mtu = ctx.shared.settings.view.mtu.map_or(usize::MAX, usize::from);
    let mtu = mtu.min(caps.max_frame.saturating_sub(ethernet::LEN));
    if segment.is_none() && len - ethernet::LEN > mtu {
        return fragment(ctx, &addresses, message, &parts.concat(), mtu);
    }
    let slot = ctx.sink.reserve(len)?;
    let mut at = addresses.header_len() + header.len();
    for part in parts {
        ctx.sink.write(&slot, at, part);
        at += part.len();
    }
    let header_len = u16::try_from(addresses.header_len() + header.len()).unwrap_or(u16::MAX);
    let segmentation =
        segment.map(|size| Segmentation { kind: SegmentationKind::Udp, size, header_len });
    let transport = Transport {
        protocol: message.protocol,
        checksum_offset: message.checksum_offset,
        segmentation,
    };
    // ICMPv4 has no pseudo-header: its checksum is over the message alone (RFC 792).
    if message.protocol == protocol::ICMPV4 {
        let mut sum = Sum::new();
        sum.add_bytes(header);
        sum.add_bytes(&parts.concat());
        put_checksum(header, message, sum.finish());
        let mut ip = [0; MAX_IP_HEADERS];
        let start = addresses.emit(message.protocol, header.len() + payload_len, &mut ip);
        ctx.sink.write(&slot, 0, &ip[..start]);
        ctx.sink.write(&slot, start, header);
        ctx.sink.commit(slot, len, Offload::default());
    } else {
        headers::commit(ctx.sink, caps, slot, &addresses, header, payload_len, &transport);
    }
    Ok(())
}

fn put_checksum(header: &mut [u8], message: &Message, checksum: u16) {
    let at = usize::from(message.checksum_offset);
    if let Some(place) = header.get_mut(at..at + 2) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Sends a datagram that exceeds the guest's MTU in fragments, with its checksum in full.
fn fragment<H, K: Sink>(
    ctx: &mut Ctx<'_, H, K>,
    addresses: &Addresses,
    message: &Message,
    payload: &[u8],
    mtu: usize,
) -> Result<(), Refused> {
    let mut whole = Vec::with_capacity(message.header_len + payload.len());
    whole.extend_from_slice(message.header.get(..message.header_len).unwrap_or_default());
    whole.extend_from_slice(payload);
    let mut sum = match message.protocol {
        protocol::ICMPV4 => Sum::new(),
        protocol => addresses.pseudo_header(protocol, whole.len()),
    };
    sum.add_bytes(&whole);
    let checksum = if message.protocol == protocol::UDP { sum.finish_udp() } else { sum.finish() };
    put_checksum(&mut whole, message, checksum);

    let extra = if addresses.src.is_ipv4() { 0 } else { FRAGMENT_HEADER };
    let overhead = addresses.header_len() - ethernet::LEN + extra;
    let size = mtu.saturating_sub(overhead) / 8 * 8;
    if size == 0 {
        return Err(Refused::TooLarge);
    }
    let slots = reserve_all(
        ctx.sink,
        whole.chunks(size).map(|part| addresses.header_len() + extra + part.len()),
    )?;
    let id = ctx.shared.next_fragment_id();
    for (index, (part, slot)) in whole.chunks(size).zip(slots).enumerate() {
        let offset = index * size;
        let more = offset + part.len() < whole.len();
        let (headers, len) = fragment_headers(addresses, message.protocol, id, offset, more, part);
        ctx.sink.write(&slot, 0, headers.get(..len).unwrap_or_default());
        ctx.sink.write(&slot, len, part);
        ctx.sink.commit(slot, len + part.len(), Offload::default());
    }
    Ok(())
}

/// Slots for frames of these lengths, or none: a datagram without one of its fragments is nothing.
fn reserve_all<K: Sink>(
    sink: &mut K,
    lens: impl Iterator<Item = usize>,
) -> Result<Vec<Slot>, Refused> {
    let mut slots = Vec::new();
    for len in lens {
        match sink.reserve(len) {
            Ok(slot) => slots.push(slot),
            Err(refused) => {
                slots.into_iter().for_each(|slot| sink.cancel(slot));
                return Err(refused);
            }
        }
    }
    Ok(slots)
}

/// All headers of one fragment, and how long they are.
fn fragment_headers(
    addresses: &Addresses,
    protocol: u8,
    id: u32,
    offset: usize,
    more: bool,
    part: &[u8],
) -> ([u8; MAX_IP_HEADERS + FRAGMENT_HEADER], usize) {
    let mut out = [0; MAX_IP_HEADERS + FRAGMENT_HEADER];
    let mut ip = [0; MAX_IP_HEADERS];
    let offset = u16::try_from(offset).unwrap_or(u16::MAX);
    let len = match (addresses.src, addresses.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = addresses.emit(protocol, part.len(), &mut ip);
            let payload_len = u16::try_from(part.len()).unwrap_or(u16::MAX);
            let header = ipv4::Header {
                identification: id as u16,
                dont_fragment: false,
                more_fragments: more,
                fragment_offset: offset,
                ..ipv4::Header::new(src, dst, protocol, payload_len)
            };
            header.emit(&mut ip[ethernet::LEN..]);
            len
        }
        _ => {
            let len = addresses.emit(NEXT_HEADER_FRAGMENT, part.len() + FRAGMENT_HEADER, &mut ip);
            let [o0, o1] = (offset | u16::from(more)).to_be_bytes();
            let [i0, i1, i2, i3] = id.to_be_bytes();
            let header = [protocol, 0, o0, o1, i0, i1, i2, i3];
            out[ethernet::LEN + ipv6::LEN..].copy_from_slice(&header);
            len + FRAGMENT_HEADER
        }
    };
    out[..MAX_IP_HEADERS.min(len)].copy_from_slice(&ip[..MAX_IP_HEADERS.min(len)]);
    (out, len)
}
