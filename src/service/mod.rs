//! Services on the link: ARP, NDP, DHCP and DHCPv6. A request comes in, a reply goes out.
//!
//! Pure functions over copied frames and their [`Surroundings`]: no clock, no socket. The
//! engine asks [`is_udp_service`] and [`is_icmpv6_service`] (and takes every ARP packet) to know
//! which frames to copy whole, then calls [`answer`] with them. [`router_advertisement`],
//! [`learn_guest`] and [`RaTimer`] serve what nobody asked for; [`probed`] and [`leased`] tell
//! which address the guest is about to use. Replies are whole frames from the
//! Ethernet header on, checksums complete; padding is the link's business.

mod arp;
mod dhcpv4;
mod dhcpv6;
mod frame;
mod lesson;
mod ndp;
mod neighbours;
#[cfg(test)]
mod tests;

pub use lesson::{leased, probed};
pub use neighbours::{MAX_NEIGHBOURS, Neighbours};

use crate::config::guest::{Dns, GuestView};
use crate::time::Duration;
use crate::wire::dns::Name;
use crate::wire::ethernet::{self, EtherType};
use crate::wire::{MacAddr, Result, dhcpv4 as dhcpv4_wire, dhcpv6 as dhcpv6_wire};
use crate::wire::{ipv4, ipv6, ndp as ndp_wire, protocol, udp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the services tell the guest of.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Its network.
    pub view: &'a GuestView,
    /// Who has which Ethernet address.
    pub neighbours: &'a Neighbours,
    /// Addresses that the guest was to have earlier: their prefixes are no longer good.
    pub former: &'a [Ipv6Addr],
}

/// A frame that may be for a service.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// A copy of the whole frame, from the Ethernet header on.
    pub frame: &'a [u8],
    /// Whether the link left the checksum for someone else to complete (an
    /// `Offload::checksum` came with the frame): then it can not be verified.
    pub checksum_pending: bool,
    /// Addresses that the guest was last seen to use.
    pub seen: Seen,
}

/// Addresses that the guest was seen to use as sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6, global.
    pub v6: Option<Ipv6Addr>,
    /// IPv6, link-local.
    pub link_local: Option<Ipv6Addr>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No service's business: treat it like any other frame.
    NotForUs,
    /// Taken. If there is a reply, it goes to the guest.
    Consumed(Option<Vec<u8>>),
}

/// Whether UDP datagrams to this port may be for a service.
pub const fn is_udp_service(dst_port: u16) -> bool {
    matches!(dst_port, dhcpv4_wire::SERVER_PORT | dhcpv6_wire::SERVER_PORT)
}

/// Whether ICMPv6 messages of this type are for a service.
pub const fn is_icmpv6_service(kind: u8) -> bool {
    ndp_wire::is_ndp(kind)
}

/// Answers a frame of the guest.
///
/// Frames that are too short, too long or otherwise broken are [`Outcome::NotForUs`] when they do
/// not even get to a service, and consumed without a reply when they do.
pub fn answer(request: &Request<'_>, around: &Surroundings<'_>) -> Outcome {
    dispatch(request, around).unwrap_or(Outcome::NotForUs)
}

fn dispatch(request: &Request<'_>, around: &Surroundings<'_>) -> Result<Outcome> {
    let header = ethernet::Header::parse(request.frame)?;
    let packet = request.frame.get(ethernet::LEN..).unwrap_or_default();
    match header.ether_type {
        EtherType::Arp => Ok(Outcome::Consumed(arp::answer(packet, around, &request.seen))),
        EtherType::Ipv4 => answer_ipv4(header.src, packet, around),
        EtherType::Ipv6 => answer_ipv6(header.src, packet, request, around),
        EtherType::Other(_) => Ok(Outcome::NotForUs),
    }
}

fn answer_ipv4(from: MacAddr, packet: &[u8], around: &Surroundings<'_>) -> Result<Outcome> {
    let ip = ipv4::Header::parse(packet, packet.len())?;
    let payload = slice(packet, ip.header_len, ip.payload_len.into());
    if ip.protocol != protocol::UDP || ip.is_fragment() {
        return Ok(Outcome::NotForUs);
    }
    let header = udp::Header::parse(payload, payload.len())?;
    if header.dst_port != dhcpv4_wire::SERVER_PORT {
        return Ok(Outcome::NotForUs);
    }
    let datagram = slice(payload, udp::LEN, header.payload_len());
    Ok(dhcpv4::answer(from, ip.dst, datagram, around))
}

fn answer_ipv6(
    from: MacAddr,
    packet: &[u8],
    request: &Request<'_>,
    around: &Surroundings<'_>,
) -> Result<Outcome> {
    let ip = ipv6::Header::parse(packet, packet.len())?;
    let payload = slice(packet, ipv6::LEN, ip.payload_len.into());
    let transport = ipv6::walk_extensions(payload, ip.next_header, payload.len())?;
    let body = payload.get(transport.offset..).unwrap_or_default();
    match (transport.protocol, transport.fragment) {
        (protocol::ICMPV6, None) if body.first().is_some_and(|kind| is_icmpv6_service(*kind)) => {
            let verify = !request.checksum_pending;
            Ok(Outcome::Consumed(ndp::answer(from, &ip, body, verify, around, &request.seen)))
        }
        (protocol::UDP, None) => {
            let header = udp::Header::parse(body, body.len())?;
            if header.dst_port != dhcpv6_wire::SERVER_PORT {
                return Ok(Outcome::NotForUs);
            }
            let datagram = slice(body, udp::LEN, header.payload_len());
            Ok(dhcpv6::answer(from, ip.src, ip.dst, datagram, around))
        }
        _ => Ok(Outcome::NotForUs),
    }
}

/// The `len` bytes at `offset`; empty when they are not all there.
fn slice(bytes: &[u8], offset: usize, len: usize) -> &[u8] {
    bytes.get(offset..).and_then(|rest| rest.get(..len)).unwrap_or_default()
}

/// The search list to advertise, as far as it can be encoded. An entry may be several names, as
/// qemu passes them.
fn search_list(dns: &Dns) -> Vec<Name> {
    let entries = if dns.advertise_search { &dns.search[..] } else { &[] };
    entries.iter().flat_map(|entry| entry.split_whitespace()).filter_map(Name::new).collect()
}

/// An unsolicited router advertisement to all nodes; `None` when the view has no IPv6 or the
/// service is off.
pub fn router_advertisement(around: &Surroundings<'_>) -> Option<Vec<u8>> {
    ndp::unsolicited(around)
}

/// A router advertisement that takes back those that came from `router`, an address of ours until
/// now.
pub fn router_farewell(router: Ipv6Addr, around: &Surroundings<'_>) -> Option<Vec<u8>> {
    ndp::farewell(router, around)
}

/// Tells everyone that `addr` is to be found at `mac` (RFC 5227 3, RFC 4861 7.2.6); `None` for an
/// address of the guest's own, or of a family or service that is off.
pub fn announcement(
    addr: IpAddr,
    mac: MacAddr,
    around: &Surroundings<'_>,
    seen: &Seen,
) -> Option<Vec<u8>> {
    match addr {
        IpAddr::V4(addr) => arp::announce(addr, mac, around, seen),
        IpAddr::V6(addr) => ndp::announce(addr, mac, around, seen),
    }
}

/// Frames that make the guest show its Ethernet address early, for when a client has just
/// connected: an ARP request and a neighbour solicitation for the guest's addresses, to everyone.
pub fn learn_guest(around: &Surroundings<'_>) -> Vec<Vec<u8>> {
    [arp::learn(around), ndp::learn(around)].into_iter().flatten().collect()
}

/// When unsolicited router advertisements go out: after random 200 to 600 seconds each (RFC 4861
/// 6.2.1 with those bounds).
#[derive(Clone, Copy, Debug)]
pub struct RaTimer {
    state: u64,
}

impl RaTimer {
    const MIN: Duration = Duration::from_secs(200);
    const SPREAD_MILLIS: u64 = 400_001;

    /// A timer whose delays all follow from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The delay until the next advertisement.
    pub fn next_delay(&mut self) -> Duration {
        // SplitMix64: hosts shall not synchronise, nothing here need be hard to guess.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self::MIN.saturating_add(Duration::from_millis((z ^ (z >> 31)) % Self::SPREAD_MILLIS))
    }
}
