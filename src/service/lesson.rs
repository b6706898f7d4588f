//! What frames between the guest and us say of the guest's addresses before it sends from them.

use super::Request;
use crate::config::guest::GuestView;
use crate::wire::dhcpv6::{self as dhcpv6_wire, Ia, IaKind, MessageType};
use crate::wire::ethernet::{self, EtherType};
use crate::wire::ndp::{HOP_LIMIT, Message};
use crate::wire::{icmpv6, ipv6, protocol, udp};
use std::net::Ipv6Addr;

/// The address that the guest searches for duplicates of, before it takes it (RFC 4862 5.4): a
/// neighbour solicitation without source.
pub fn probed(request: &Request<'_>) -> Option<Ipv6Addr> {
    let (ip, body) = transport(request.frame, protocol::ICMPV6)?;
    let valid = ip.hop_limit == HOP_LIMIT && ip.src.is_unspecified() && ip.dst.is_multicast();
    if !valid || !request.checksum_pending && icmpv6::checksum(ip.src, ip.dst, body) != 0 {
        return None;
    }
    match Message::parse(body).ok()? {
        Message::NeighborSolicitation { target, source_mac: None } => Some(target),
        _ => None,
    }
}

/// The address that `reply`, a frame of ours, gives the guest by DHCPv6 for good.
pub fn leased(reply: &[u8], view: &GuestView) -> Option<Ipv6Addr> {
    let addr = view.v6.as_ref()?.addr?;
    let (_, body) = transport(reply, protocol::UDP)?;
    let header = udp::Header::parse(body, body.len()).ok()?;
    let message = dhcpv6_wire::Message::parse(body.get(udp::LEN..)?).ok()?;
    let to_client = header.src_port == dhcpv6_wire::SERVER_PORT;
    if !to_client || message.kind != MessageType::Reply {
        return None;
    }
    let ias = message.options.iter().filter_map(|(code, value)| Ia::parse(code, value).ok()?);
    ias.filter(|ia| ia.kind == IaKind::NonTemporary)
        .any(|ia| ia.addrs().any(|given| given == addr))
        .then_some(addr)
}

/// The IPv6 header of a frame, and what follows all headers if that is of `wanted`.
fn transport(frame: &[u8], wanted: u8) -> Option<(ipv6::Header, &[u8])> {
    if ethernet::Header::parse(frame).ok()?.ether_type != EtherType::Ipv6 {
        return None;
    }
    let packet = frame.get(ethernet::LEN..)?;
    let ip = ipv6::Header::parse(packet, packet.len()).ok()?;
    let payload = packet.get(ipv6::LEN..)?.get(..ip.payload_len.into())?;
    let found = ipv6::walk_extensions(payload, ip.next_header, payload.len()).ok()?;
    let whole = found.protocol == wanted && found.fragment.is_none();
    whole.then_some((ip, payload.get(found.offset..)?))
}
