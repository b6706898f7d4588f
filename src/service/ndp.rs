//! NDP: we are the router, and stand for every IPv6 address but the guest's own.

use super::frame::{self, Route};
use super::{Seen, dhcpv6};
use crate::config::guest::{GuestV6, GuestView};
use crate::wire::ndp::{self, ALL_NODES, HOP_LIMIT, Message, Prefix, RouterAdvertisement};
use crate::wire::{MacAddr, icmpv6, ipv6};
use std::net::Ipv6Addr;

/// We are a default router for as long as the field can say: there is no other (RFC 8319 4).
const ROUTER_LIFETIME: u16 = u16::MAX;

/// IPv6 knows no smaller MTU (RFC 8200 5); hosts complain about one.
const MIN_MTU: u16 = 1280;

/// The reply to an ICMPv6 message of neighbour discovery, if it deserves one. What has crossed a
/// router, or has a wrong checksum, does not (RFC 4861 6.1, 7.1).
pub(super) fn answer(
    from: MacAddr,
    ip: &ipv6::Header,
    message: &[u8],
    verify_checksum: bool,
    view: &GuestView,
    seen: &Seen,
) -> Option<Vec<u8>> {
    let guest = view.v6.as_ref()?;
    if ip.hop_limit != HOP_LIMIT || from.is_multicast() || ip.src.is_multicast() {
        return None;
    }
    if verify_checksum && icmpv6::checksum(ip.src, ip.dst, message) != 0 {
        return None;
    }
    match Message::parse(message).ok()? {
        Message::RouterSolicitation { source_mac } => {
            let nameless = ip.src.is_unspecified();
            if nameless && source_mac.is_some() {
                return None;
            }
            let dst = if nameless { ALL_NODES } else { ip.src };
            advertise_router(&route(view, guest, from, dst), view, guest)
        }
        Message::NeighborSolicitation { target, source_mac } => {
            let nameless = ip.src.is_unspecified();
            // RFC 4861 7.1.1: only a search for duplicates has no source.
            let odd = nameless && (source_mac.is_some() || !ip.dst.is_multicast());
            if odd || !stands_for(target, nameless, guest, seen) {
                return None;
            }
            let dst = if nameless { ALL_NODES } else { ip.src };
            let reply = Message::NeighborAdvertisement {
                router: true,
                solicited: !nameless,
                override_cache: true,
                target,
                target_mac: Some(view.our_mac),
            };
            // As the owner of the address would, which is what tools like ndisc6 wait for.
            let route = Route { src: target, ..route(view, guest, from, dst) };
            frame::ndp(&route, &reply)
        }
        Message::RouterAdvertisement(_) | Message::NeighborAdvertisement { .. } => None,
    }
    .filter(|_| view.services.ndp)
}

/// Whether we answer for `target`. A search for duplicates is only told of addresses that are
/// really taken, ours; any other solicitation may be for anyone but the guest itself.
fn stands_for(target: Ipv6Addr, duplicates: bool, guest: &GuestV6, seen: &Seen) -> bool {
    let target = Some(target);
    let ours = target == Some(guest.our_link_local) || target == guest.gateway;
    let theirs = target == guest.addr || target == seen.v6 || target == seen.link_local;
    let sensible = target.is_some_and(|a| !a.is_multicast() && !a.is_unspecified());
    sensible && (ours || !duplicates && !theirs)
}

/// The way of a message of ours; groups have Ethernet addresses of their own.
fn route(view: &GuestView, guest: &GuestV6, guest_mac: MacAddr, dst: Ipv6Addr) -> Route<Ipv6Addr> {
    let dst_mac = if dst.is_multicast() { MacAddr::of_ipv6_multicast(dst) } else { guest_mac };
    Route { src_mac: view.our_mac, dst_mac, src: guest.our_link_local, dst }
}

/// A router advertisement to all nodes, unless they are switched off.
pub(super) fn unsolicited(view: &GuestView) -> Option<Vec<u8>> {
    let guest = view.v6.as_ref()?;
    advertise_router(&route(view, guest, MacAddr::BROADCAST, ALL_NODES), view, guest)
        .filter(|_| view.services.ndp)
}

fn advertise_router(route: &Route<Ipv6Addr>, view: &GuestView, guest: &GuestV6) -> Option<Vec<u8>> {
    if !view.services.ra {
        return None;
    }
    let dns = &view.dns;
    let advertisement = RouterAdvertisement {
        hop_limit: HOP_LIMIT,
        managed: dhcpv6::is_on(view),
        other: false,
        lifetime: ROUTER_LIFETIME,
        source_mac: Some(view.our_mac),
        mtu: view.mtu.filter(|mtu| *mtu >= MIN_MTU).map(u32::from),
        // In local mode there is no prefix: the guest has its link-local address already.
        prefix: guest.addr.map(|addr| prefix(addr, guest.prefix_len)),
        resolvers: if dns.advertise_servers { dns.v6.clone() } else { Vec::new() },
        search: super::search_list(dns),
    };
    frame::ndp(route, &Message::RouterAdvertisement(advertisement))
}

/// The prefix of `addr`, for hosts to make addresses under.
fn prefix(addr: Ipv6Addr, len: u8) -> Prefix {
    let len = len.min(128);
    let mask = u128::MAX.checked_shl(u32::from(128 - len)).unwrap_or(0);
    let addr = Ipv6Addr::from_bits(addr.to_bits() & mask);
    Prefix { addr, len, on_link: true, autonomous: true }
}

/// Asks everyone for the guest's address; in local mode it has none that we know.
pub(super) fn learn(view: &GuestView) -> Option<Vec<u8>> {
    let guest = view.v6.as_ref().filter(|_| view.services.ndp)?;
    let target = guest.addr?;
    let dst = ndp::solicited_node(target);
    let message = Message::NeighborSolicitation { target, source_mac: Some(view.our_mac) };
    frame::ndp(&route(view, guest, MacAddr::BROADCAST, dst), &message)
}
