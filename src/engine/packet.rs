//! A guest's frame, taken apart: where its transport header is, and who sends to whom.
//!
//! Works on a copy of the frame's first bytes, made once: the guest may change the original while
//! we look. Knows wire formats only.

use super::counters::DropReason;
use crate::link::Frame;
use crate::span::gather;
use crate::wire::{MacAddr, ethernet, ipv4, ipv6, protocol};
use std::net::IpAddr;

/// Bytes of a frame that are copied for parsing: Ethernet, IPv6, 256 bytes of extension headers
/// and a TCP header with all options.
pub const HEADER_COPY: usize = 512;

/// What most frames need: Ethernet, IPv4 and TCP with all their options fit 134 bytes.
const SHORT_COPY: usize = 136;

/// A copy of the first bytes of a frame.
#[derive(Debug)]
pub struct HeaderCopy {
    bytes: [u8; HEADER_COPY],
    len: usize,
}

impl Default for HeaderCopy {
    /// Room for a copy.
    fn default() -> Self {
        Self { bytes: [0; HEADER_COPY], len: 0 }
    }
}

impl HeaderCopy {
    /// Copies from `frame`: as many bytes as an ordinary frame needs, or all there is room for
    /// when it has extension headers.
    pub fn fill(&mut self, frame: &Frame<'_>) {
        self.len = gather(frame.spans, 0, &mut self.bytes[..SHORT_COPY]);
        let extended = matches!(self.bytes[12..14], [0x86, 0xdd])
            && !matches!(self.bytes[20], protocol::TCP | protocol::UDP | protocol::ICMPV6);
        if extended && self.len == SHORT_COPY {
            self.len += gather(frame.spans, SHORT_COPY, &mut self.bytes[SHORT_COPY..]);
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A frame, as far as its Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// ARP.
    Arp,
    /// IPv4 or IPv6.
    Ip(Ip),
}

/// An IP packet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IP protocol number of what follows all IP headers.
    pub protocol: u8,
    /// Where that begins, in bytes from the start of the frame.
    pub transport: usize,
    /// How many bytes it has, padding of the frame left out.
    pub transport_len: usize,
    /// Set when this is a part of a datagram only.
    pub fragment: Option<Fragment>,
}

/// Which part of a datagram a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Which datagram (16 bits for IPv4).
    pub id: u32,
    /// Where this part belongs, in bytes.
    pub offset: usize,
    /// Whether another part follows.
    pub more: bool,
}

/// Takes a frame of `frame_len` bytes apart whose first bytes are `bytes`; also returns the
/// sender's Ethernet address.
pub fn parse(bytes: &[u8], frame_len: usize) -> Result<(MacAddr, Packet), DropReason> {
    let eth = ethernet::Header::parse(bytes).map_err(|_| DropReason::BadLength)?;
    let rest = bytes.get(ethernet::LEN..).unwrap_or_default();
    let available = frame_len.saturating_sub(ethernet::LEN);
    let packet = match eth.ether_type {
        ethernet::EtherType::Arp => Packet::Arp,
        ethernet::EtherType::Ipv4 => Packet::Ip(parse_v4(rest, available)?),
        ethernet::EtherType::Ipv6 => Packet::Ip(parse_v6(rest, available)?),
        _ => return Err(DropReason::UnknownEtherType),
    };
    Ok((eth.src, packet))
}

fn parse_v4(bytes: &[u8], available: usize) -> Result<Ip, DropReason> {
    let header = ipv4::Header::parse(bytes, available).map_err(|_| DropReason::BadIpHeader)?;
    if header.src.is_loopback() || header.dst.is_loopback() {
        return Err(DropReason::Loopback);
    }
    let offset = usize::from(header.fragment_offset);
    let fragment = (header.more_fragments || offset != 0).then_some(Fragment {
        id: u32::from(header.identification),
        offset,
        more: header.more_fragments,
    });
    Ok(Ip {
        src: header.src.into(),
        dst: header.dst.into(),
        ttl: header.ttl,
        protocol: header.protocol,
        transport: ethernet::LEN + header.header_len,
        transport_len: usize::from(header.payload_len),
        fragment,
    })
}

fn parse_v6(bytes: &[u8], available: usize) -> Result<Ip, DropReason> {
    let header = ipv6::Header::parse(bytes, available).map_err(|_| DropReason::BadIpHeader)?;
    if header.src.is_loopback() || header.dst.is_loopback() {
        return Err(DropReason::Loopback);
    }
    let rest = bytes.get(ipv6::LEN..).unwrap_or_default();
    let transport =
        ipv6::walk_extensions(rest, header.next_header, usize::from(header.payload_len))
            .map_err(|_| DropReason::BadIpHeader)?;
    Ok(Ip {
        src: header.src.into(),
        dst: header.dst.into(),
        ttl: header.hop_limit,
        protocol: transport.protocol,
        transport: ethernet::LEN + ipv6::LEN + transport.offset,
        transport_len: usize::from(header.payload_len).saturating_sub(transport.offset),
        fragment: transport.fragment.map(|f| Fragment {
            id: f.id,
            offset: usize::from(f.offset),
            more: f.more,
        }),
    })
}
