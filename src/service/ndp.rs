//! NDP: we are the router, and stand for every IPv6 address but the guest's own.

use super::frame::{self, Route};
use super::{Seen, Surroundings, dhcpv6};
use crate::config::guest::GuestV6;
use crate::wire::ndp::{
    self, ALL_NODES, HOP_LIMIT, INFINITE, Message, Prefix, RouterAdvertisement,
};
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
    around: &Surroundings<'_>,
    seen: &Seen,
) -> Option<Vec<u8>> {
    let guest = around.view.v6.as_ref()?;
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
            let route = route(around, guest.our_link_local, from, dst);
            advertise_router(&route, around, guest, ROUTER_LIFETIME)
        }
        Message::NeighborSolicitation { target, source_mac } => {
            let nameless = ip.src.is_unspecified();
            // RFC 4861 7.1.1: only a search for duplicates has no source.
            let odd = nameless && (source_mac.is_some() || !ip.dst.is_multicast());
            if odd || !stands_for(target, nameless, guest, seen) {
                return None;
            }
            let dst = if nameless { ALL_NODES } else { ip.src };
            // As the owner of the address would, which is what tools like ndisc6 wait for.
            let route = route(around, target, from, dst);
            let reply = Message::NeighborAdvertisement {
                router: true,
                solicited: !nameless,
                override_cache: true,
                target,
                target_mac: Some(route.src_mac),
            };
            frame::ndp(&route, &reply)
        }
        Message::RouterAdvertisement(_) | Message::NeighborAdvertisement { .. } => None,
    }
    .filter(|_| around.view.services.ndp)
}

/// Whether we answer for `target`. A search for duplicates is only told of addresses that are
/// really taken, ours; any other solicitation may be for anyone but the guest itself.
fn stands_for(target: Ipv6Addr, duplicates: bool, guest: &GuestV6, seen: &Seen) -> bool {
    let sensible = !target.is_multicast() && !target.is_unspecified();
    sensible && (is_ours(target, guest) || !duplicates && !is_theirs(target, guest, seen))
}

fn is_ours(addr: Ipv6Addr, guest: &GuestV6) -> bool {
    addr == guest.our_link_local || Some(addr) == guest.gateway
}

fn is_theirs(addr: Ipv6Addr, guest: &GuestV6, seen: &Seen) -> bool {
    [guest.addr, seen.v6, seen.link_local].contains(&Some(addr))
}

/// The way of a message from `src`, for which we stand; groups have Ethernet addresses of their
/// own.
fn route(
    around: &Surroundings<'_>,
    src: Ipv6Addr,
    guest_mac: MacAddr,
    dst: Ipv6Addr,
) -> Route<Ipv6Addr> {
    let dst_mac = if dst.is_multicast() { MacAddr::of_ipv6_multicast(dst) } else { guest_mac };
    Route { src_mac: around.neighbours.mac(src.into()), dst_mac, src, dst }
}

/// A router advertisement to all nodes, unless they are switched off.
pub(super) fn unsolicited(around: &Surroundings<'_>) -> Option<Vec<u8>> {
    let guest = around.view.v6.as_ref().filter(|_| around.view.services.ndp)?;
    let route = route(around, guest.our_link_local, MacAddr::BROADCAST, ALL_NODES);
    advertise_router(&route, around, guest, ROUTER_LIFETIME)
}

/// Tells all nodes that `router` is none any more.
pub(super) fn farewell(router: Ipv6Addr, around: &Surroundings<'_>) -> Option<Vec<u8>> {
    let guest = around.view.v6.as_ref().filter(|_| around.view.services.ndp)?;
    let route = route(around, router, MacAddr::BROADCAST, ALL_NODES);
    advertise_router(&route, around, guest, 0)
}

fn advertise_router(
    route: &Route<Ipv6Addr>,
    around: &Surroundings<'_>,
    guest: &GuestV6,
    lifetime: u16,
) -> Option<Vec<u8>> {
    let Surroundings { view, former, .. } = around;
    if !view.services.ra {
        return None;
    }
    let dns = &view.dns;
    // In local mode there is no prefix: the guest has its link-local address already.
    let current = guest.addr.map(|addr| prefix(addr, guest.prefix_len, INFINITE));
    let mut prefixes = Vec::from_iter(current);
    for addr in *former {
        let gone = prefix(*addr, guest.prefix_len, 0);
        if prefixes.iter().all(|known| known.addr != gone.addr) {
            prefixes.push(gone);
        }
    }
    let advertisement = RouterAdvertisement {
        hop_limit: HOP_LIMIT,
        managed: dhcpv6::is_on(view),
        other: false,
        lifetime,
        source_mac: Some(route.src_mac),
        mtu: view.mtu.filter(|mtu| *mtu >= MIN_MTU).map(u32::from),
        prefixes,
        resolvers: if dns.advertise_servers { dns.v6.clone() } else { Vec::new() },
        search: super::search_list(dns),
    };
    frame::ndp(route, &Message::RouterAdvertisement(advertisement))
}

/// The prefix of `addr`, for hosts to make addresses under.
fn prefix(addr: Ipv6Addr, len: u8, lifetime: u32) -> Prefix {
    let len = len.min(128);
    let mask = u128::MAX.checked_shl(u32::from(128 - len)).unwrap_or(0);
    let addr = Ipv6Addr::from_bits(addr.to_bits() & mask);
    Prefix { addr, len, on_link: true, autonomous: true, valid: lifetime, preferred: lifetime }
}

/// Asks everyone for the guest's address; in local mode it has none that we know.
pub(super) fn learn(around: &Surroundings<'_>) -> Option<Vec<u8>> {
    let guest = around.view.v6.as_ref().filter(|_| around.view.services.ndp)?;
    let target = guest.addr?;
    let dst = ndp::solicited_node(target);
    let route = route(around, guest.our_link_local, MacAddr::BROADCAST, dst);
    let message = Message::NeighborSolicitation { target, source_mac: Some(route.src_mac) };
    frame::ndp(&route, &message)
}

/// Tells all nodes who has `addr`.
pub(super) fn announce(
    addr: Ipv6Addr,
    mac: MacAddr,
    around: &Surroundings<'_>,
    seen: &Seen,
) -> Option<Vec<u8>> {
    let guest = around.view.v6.as_ref().filter(|_| around.view.services.ndp)?;
    if is_theirs(addr, guest, seen) && !is_ours(addr, guest) {
        return None;
    }
    let route = Route { src_mac: mac, ..route(around, addr, MacAddr::BROADCAST, ALL_NODES) };
    let message = Message::NeighborAdvertisement {
        router: true,
        solicited: false,
        override_cache: true,
        target: addr,
        target_mac: Some(mac),
    };
    frame::ndp(&route, &message)
}
