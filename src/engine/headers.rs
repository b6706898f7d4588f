//! Headers of frames to the guest, and their checksums: in full, or partial where the link can
//! complete them.

use crate::flow::FlowKey;
use crate::link::{LinkCaps, Offload, PartialChecksum, Segmentation, Sink, Slot};
use crate::wire::checksum::{self, Sum};
use crate::wire::{MacAddr, ethernet, ipv4, ipv6, protocol};
use std::net::IpAddr;

/// TTL and hop limit of what we send (`data-plane` 3.13).
const TTL: u8 = 255;

/// The longest Ethernet and IP headers that we write.
pub const MAX_IP_HEADERS: usize = ethernet::LEN + ipv6::LEN;

/// Who a frame is from and to, below the transport.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Ethernet source: ours, or a neighbour's.
    pub src_mac: MacAddr,
    /// Ethernet destination: the guest's.
    pub dst_mac: MacAddr,
    /// IP source.
    pub src: IpAddr,
    /// IP destination, of the same family.
    pub dst: IpAddr,
    /// IPv6 flow label, 20 bits.
    pub flow_label: u32,
}

impl Addresses {
    /// From the flow's remote end to the guest.
    pub const fn to_guest(key: &FlowKey, ours: MacAddr, guest: MacAddr, flow_label: u32) -> Self {
        Self {
            src_mac: ours,
            dst_mac: guest,
            src: key.remote.addr,
            dst: key.guest.addr,
            flow_label,
        }
    }

    /// Bytes of Ethernet and IP headers.
    pub const fn header_len(&self) -> usize {
        ethernet::LEN + if self.src.is_ipv4() { ipv4::LEN } else { ipv6::LEN }
    }

    /// Writes Ethernet and IP headers for `payload_len` bytes of `protocol` and returns how long
    /// they are.
    pub fn emit(&self, protocol: u8, payload_len: usize, out: &mut [u8; MAX_IP_HEADERS]) -> usize {
        let ether_type = match self.src {
            IpAddr::V4(_) => ethernet::EtherType::Ipv4,
            IpAddr::V6(_) => ethernet::EtherType::Ipv6,
        };
        ethernet::Header { dst: self.dst_mac, src: self.src_mac, ether_type }.emit(out);
        // Callers never go beyond what an IP packet holds: slots are no larger.
        let length = u16::try_from(payload_len).unwrap_or(u16::MAX);
        let ip = &mut out[ethernet::LEN..];
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                ipv4::Header::new(src, dst, protocol, length).emit(ip);
                ethernet::LEN + ipv4::LEN
            }
            (src, dst) => {
                let header = ipv6::Header {
                    src: to_v6(src),
                    dst: to_v6(dst),
                    next_header: protocol,
                    hop_limit: TTL,
                    flow_label: self.flow_label,
                    payload_len: length,
                };
                header.emit(ip);
                ethernet::LEN + ipv6::LEN
            }
        }
    }

    /// The sum of the pseudo-header for `len` bytes of `protocol`.
    pub fn pseudo_header(&self, protocol: u8, len: usize) -> Sum {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        checksum::pseudo(self.src, self.dst, protocol, len).unwrap_or_default()
    }
}

/// Flows never mix families; if one did, it would get a v4-mapped address and no answer.
const fn to_v6(addr: IpAddr) -> std::net::Ipv6Addr {
    match addr {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    }
}

/// A transport header whose checksum is to be filled in.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// IP protocol number.
    pub protocol: u8,
    /// Where the checksum field stands in the transport header.
    pub checksum_offset: u16,
    /// How the link shall cut the frame.
    pub segmentation: Option<Segmentation>,
}

/// Completes and commits a frame: writes the headers in front of `payload_len` bytes that stand
/// in the slot already, with `transport` (checksum field zero) as the transport header.
pub fn commit<K: Sink>(
    sink: &mut K,
    caps: &LinkCaps,
    slot: Slot,
    addresses: &Addresses,
    header: &mut [u8],
    payload_len: usize,
    transport: &Transport,
) {
    let transport_len = header.len() + payload_len;
    let mut ip = [0; MAX_IP_HEADERS];
    let start = addresses.emit(transport.protocol, transport_len, &mut ip);
    let mut sum = addresses.pseudo_header(transport.protocol, transport_len);
    let mut offload = Offload { checksum: None, segmentation: transport.segmentation };
    let at = usize::from(transport.checksum_offset);
    let field = if caps.checksum {
        offload.checksum = u16::try_from(start)
            .ok()
            .map(|start| PartialChecksum { start, offset: transport.checksum_offset });
        sum.partial()
    } else {
        sum.add_bytes(header);
        add_payload(sink, &slot, start + header.len(), payload_len, &mut sum);
        if transport.protocol == protocol::UDP { sum.finish_udp() } else { sum.finish() }
    };
    if let Some(place) = header.get_mut(at..at + 2) {
        place.copy_from_slice(&field.to_be_bytes());
    }
    sink.write(&slot, 0, &ip[..start]);
    sink.write(&slot, start, header);
    sink.commit(slot, start + transport_len, offload);
}

/// Adds `len` bytes that stand in the slot from `from` on.
fn add_payload<K: Sink>(sink: &mut K, slot: &Slot, from: usize, len: usize, sum: &mut Sum) {
    if let Some(bytes) = sink.bytes(slot, from, len) {
        sum.add_bytes(bytes);
        return;
    }
    let mut chunk = [0; 4096];
    let mut done = 0;
    while done < len {
        let want = chunk.len().min(len - done);
        let n = sink.read(slot, from + done, &mut chunk[..want]);
        if n == 0 {
            break;
        }
        sum.add_bytes(&chunk[..n]);
        done += n;
    }
}
