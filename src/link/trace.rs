//! Frames in words, for `--trace`: one line for each, of what its headers say.
//!
//! Looks at a copy of the first bytes, as the engine does. Nothing is checked that is not needed to
//! go on reading: what makes no sense is shown as what it is.

use crate::wire::{arp, ethernet, ipv4, ipv6, protocol, tcp, udp};
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

/// Bytes of a frame that are looked at: headers with all their options and extensions.
pub(super) const LOOKED_AT: usize = 512;

/// The first bytes of a frame, and its whole length.
pub(super) struct InWords<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) len: usize,
}

impl Display for InWords<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Ok(header) = ethernet::Header::parse(self.bytes) else {
            return write!(f, "{} bytes, less than a header", self.len);
        };
        let rest = self.bytes.get(ethernet::LEN..).unwrap_or_default();
        let available = self.len.saturating_sub(ethernet::LEN);
        let told = match header.ether_type {
            ethernet::EtherType::Arp => arp(f, rest),
            ethernet::EtherType::Ipv4 => v4(f, rest, available),
            ethernet::EtherType::Ipv6 => v6(f, rest, available),
            other => Some(write!(
                f,
                "{other:?} from {} to {}, {} bytes",
                header.src, header.dst, self.len
            )),
        };
        told.unwrap_or_else(|| {
            write!(f, "{:?} that makes no sense, {} bytes", header.ether_type, self.len)
        })
    }
}

fn arp(f: &mut Formatter<'_>, bytes: &[u8]) -> Option<fmt::Result> {
    let packet = arp::Packet::parse(bytes).ok()?;
    let arp::Packet { sender_mac, sender_addr, target_addr, .. } = packet;
    Some(match packet.operation {
        arp::Operation::Request => {
            write!(f, "ARP who has {target_addr}, tell {sender_addr} ({sender_mac})")
        }
        arp::Operation::Reply => write!(f, "ARP {sender_addr} is at {sender_mac}"),
    })
}

fn v4(f: &mut Formatter<'_>, bytes: &[u8], available: usize) -> Option<fmt::Result> {
    let header = ipv4::Header::parse(bytes, available).ok()?;
    let ends = (header.src.into(), header.dst.into());
    let (payload, len) = (bytes.get(header.header_len..)?, header.payload_len.into());
    if header.more_fragments || header.fragment_offset != 0 {
        return Some(fragment(f, ends, header.protocol, header.fragment_offset.into(), len));
    }
    Some(transport(f, ends, header.protocol, payload, len))
}

fn v6(f: &mut Formatter<'_>, bytes: &[u8], available: usize) -> Option<fmt::Result> {
    let header = ipv6::Header::parse(bytes, available).ok()?;
    let ends = (header.src.into(), header.dst.into());
    let rest = bytes.get(ipv6::LEN..)?;
    let len = usize::from(header.payload_len);
    let found = ipv6::walk_extensions(rest, header.next_header, len).ok()?;
    let len = len.saturating_sub(found.offset);
    if let Some(part) = found.fragment {
        return Some(fragment(f, ends, found.protocol, part.offset.into(), len));
    }
    Some(transport(f, ends, found.protocol, rest.get(found.offset..).unwrap_or_default(), len))
}

fn fragment(
    f: &mut Formatter<'_>,
    (src, dst): (IpAddr, IpAddr),
    number: u8,
    offset: usize,
    len: usize,
) -> fmt::Result {
    write!(f, "{src} > {dst} {} fragment at {offset}, len {len}", Name(number))
}

/// What follows all IP headers: the first bytes of `len`.
fn transport(
    f: &mut Formatter<'_>,
    (src, dst): (IpAddr, IpAddr),
    number: u8,
    bytes: &[u8],
    len: usize,
) -> fmt::Result {
    let name = Name(number);
    match number {
        protocol::TCP => {
            if let Ok(header) = tcp::Header::parse(bytes, len) {
                let tcp::Header { src_port, dst_port, seq, ack, window, .. } = header;
                let len = len.saturating_sub(header.header_len);
                return write!(
                    f,
                    "{} > {} TCP {} seq {} ack {} win {} len {len}",
                    End(src, src_port),
                    End(dst, dst_port),
                    Flags(header.flags),
                    seq.0,
                    ack.0,
                    window.0,
                );
            }
        }
        protocol::UDP => {
            if let Ok(header) = udp::Header::parse(bytes, len) {
                let (src, dst) = (End(src, header.src_port), End(dst, header.dst_port));
                return write!(f, "{src} > {dst} UDP len {}", header.payload_len());
            }
        }
        protocol::ICMPV4 | protocol::ICMPV6 => {
            if let [kind, code, _, _, i0, i1, s0, s1, ..] = bytes {
                write!(f, "{src} > {dst} {name} type {kind} code {code}")?;
                let id = u16::from_be_bytes([*i0, *i1]);
                let seq = u16::from_be_bytes([*s0, *s1]);
                let echo = matches!((number, kind), (protocol::ICMPV4, 0 | 8) | (_, 128 | 129));
                return if echo { write!(f, " id {id} seq {seq}, len {len}") } else { Ok(()) };
            }
        }
        _ => {}
    }
    write!(f, "{src} > {dst} {name}, len {len}")
}

/// Address and port.
struct End(IpAddr, u16);

impl Display for End {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.0, self.1).fmt(f)
    }
}

/// An IP protocol.
struct Name(u8);

impl Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            protocol::TCP => f.write_str("TCP"),
            protocol::UDP => f.write_str("UDP"),
            protocol::ICMPV4 => f.write_str("ICMP"),
            protocol::ICMPV6 => f.write_str("ICMPv6"),
            other => write!(f, "protocol {other}"),
        }
    }
}

/// Letters as tcpdump has them; a dot is ACK.
struct Flags(tcp::Flags);

impl Display for Flags {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let letters = [
            (tcp::Flags::FIN, "F"),
            (tcp::Flags::SYN, "S"),
            (tcp::Flags::RST, "R"),
            (tcp::Flags::PSH, "P"),
            (tcp::Flags::ACK, "."),
            (tcp::Flags::URG, "U"),
            (tcp::Flags::ECE, "E"),
            (tcp::Flags::CWR, "W"),
        ];
        f.write_str("[")?;
        for (flag, letter) in letters {
            if self.0.contains(flag) {
                f.write_str(letter)?;
            }
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests;
