//! Frames around replies: Ethernet, IP and UDP headers as we send them.

use crate::wire::ethernet::{self, EtherType};
use crate::wire::{MacAddr, checksum, ipv4, ipv6, ndp, protocol, udp};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Between whom a frame goes: Ethernet addresses and those of the layer above.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route<A> {
    pub(super) src_mac: MacAddr,
    pub(super) dst_mac: MacAddr,
    pub(super) src: A,
    pub(super) dst: A,
}

/// A frame with this payload.
pub(super) fn ethernet(
    src: MacAddr,
    dst: MacAddr,
    ether_type: EtherType,
    payload: &[&[u8]],
) -> Vec<u8> {
    let header = ethernet::Header { dst, src, ether_type }.to_bytes();
    std::iter::once(&header[..]).chain(payload.iter().copied()).flatten().copied().collect()
}

/// A UDP datagram over IPv4; `None` when it would not fit a packet.
pub(super) fn udp4(
    route: &Route<Ipv4Addr>,
    src_port: u16,
    dst_port: u16,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let len = u16::try_from(payload.len().checked_add(udp::LEN)?).ok()?;
    len.checked_add(20)?;
    let mut header = udp::Header { src_port, dst_port, len, checksum: 0 };
    let mut sum = checksum::pseudo_v4(route.src, route.dst, protocol::UDP, len.into());
    sum.add_bytes(&header.to_bytes());
    sum.add_bytes(payload);
    header.checksum = sum.finish_udp();
    let ip = ipv4::Header::new(route.src, route.dst, protocol::UDP, len).to_bytes();
    let parts = [&ip[..], &header.to_bytes(), payload];
    Some(ethernet(route.src_mac, route.dst_mac, EtherType::Ipv4, &parts))
}

/// A UDP datagram over IPv6; `None` when it would not fit a packet.
pub(super) fn udp6(
    route: &Route<Ipv6Addr>,
    flow_label: u32,
    src_port: u16,
    dst_port: u16,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let len = u16::try_from(payload.len().checked_add(udp::LEN)?).ok()?;
    let mut header = udp::Header { src_port, dst_port, len, checksum: 0 };
    let mut sum = checksum::pseudo_v6(route.src, route.dst, protocol::UDP, len.into());
    sum.add_bytes(&header.to_bytes());
    sum.add_bytes(payload);
    header.checksum = sum.finish_udp();
    let ip = ipv6_header(route, protocol::UDP, flow_label, len);
    let parts = [&ip[..], &header.to_bytes(), payload];
    Some(ethernet(route.src_mac, route.dst_mac, EtherType::Ipv6, &parts))
}

/// A message of neighbour discovery; `None` when it would not fit a packet.
pub(super) fn ndp(route: &Route<Ipv6Addr>, message: &ndp::Message) -> Option<Vec<u8>> {
    let message = message.to_bytes(route.src, route.dst);
    let len = u16::try_from(message.len()).ok()?;
    let ip = ipv6_header(route, protocol::ICMPV6, 0, len);
    Some(ethernet(route.src_mac, route.dst_mac, EtherType::Ipv6, &[&ip, &message]))
}

fn ipv6_header(
    route: &Route<Ipv6Addr>,
    next_header: u8,
    flow_label: u32,
    payload_len: u16,
) -> [u8; ipv6::LEN] {
    let (src, dst) = (route.src, route.dst);
    let hop_limit = ndp::HOP_LIMIT;
    ipv6::Header { src, dst, next_header, hop_limit, flow_label, payload_len }.to_bytes()
}
