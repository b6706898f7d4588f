//! What the host's kernel says of its network: interfaces, addresses, routes, by rtnetlink(7).
//!
//! Synchronous, and only at start ([`monitor`] is for later): each dump is one question and its answer. Single messages that
//! the crate cannot decode (newer kernels say more) are left out, the rest is used.

pub mod channel;
pub mod monitor;

use crate::config::facts::{Address, HostFacts, Interface, MAIN_TABLE, NextHop, Route};
use crate::config::{ports, resolv::Resolv};
use channel::Channel;
use netlink_packet_core::Nla as _;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Asks the kernel for everything that concerns us.
///
/// # Errors
/// Netlink itself does not work.
pub fn facts() -> io::Result<HostFacts> {
    let mut channel = Channel::open()?;
    Ok(HostFacts {
        interfaces: interfaces(&mut channel)?,
        addresses: addresses(&mut channel)?,
        routes: routes(&mut channel)?,
        ipv6: true,
        resolv: Resolv::default(),
        ephemeral: ports::DEFAULT_EPHEMERAL,
    })
}

fn interfaces(channel: &mut Channel) -> io::Result<Vec<Interface>> {
    let answers = channel.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => interface(&link),
            _ => None,
        })
        .collect())
}

fn addresses(channel: &mut Channel) -> io::Result<Vec<Address>> {
    let answers = channel.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => address(&message),
            _ => None,
        })
        .collect())
}

fn routes(channel: &mut Channel) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let answers = channel.dump(&RouteNetlinkMessage::GetRoute(question))?;
        routes.extend(answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => route(&message),
            _ => None,
        }));
    }
    Ok(routes)
}

fn interface(link: &LinkMessage) -> Option<Interface> {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let loopback = link.header.flags.contains(LinkFlags::Loopback);
    Some(Interface { index: link.header.index, name, loopback, mtu })
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut addr, mut local, mut metric) = (None, None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(a) => addr = Some(*a),
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::RoutePriority(asked) => metric = Some(*asked),
            _ => {}
        }
    }
    let unusable = AddressFlags::Deprecated | AddressFlags::Dadfailed | AddressFlags::Tentative;
    let optimistic = flags.contains(AddressFlags::Optimistic);
    Some(Address {
        interface: message.header.index,
        // On point-to-point links, the address is the peer's and the local one is ours.
        addr: local.or(addr)?,
        prefix_len: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        usable: optimistic || !flags.intersects(unusable),
        secondary: flags.contains(AddressFlags::Secondary),
        peer: local.and(addr).filter(|addr| local != Some(*addr)),
        metric,
        connects: !flags.contains(AddressFlags::Noprefixroute),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

const fn via(address: &RouteVia) -> Option<IpAddr> {
    match address {
        RouteVia::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteVia::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

/// The number and value of a metric that is a number, as all are but for one.
fn limit(metric: &RouteMetric) -> Option<(u16, u32)> {
    let mut bytes = [0; 4];
    if metric.value_len() != bytes.len() || matches!(metric, RouteMetric::CcAlgo(_)) {
        return None;
    }
    metric.emit_value(&mut bytes);
    Some((metric.kind(), u32::from_ne_bytes(bytes)))
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut found = Route {
        table: header.table.into(),
        tos: header.tos,
        protocol: header.protocol.into(),
        scope: header.scope.into(),
        ..Route::new((unspecified, header.destination_prefix_length), Vec::new())
    };
    let (mut interface, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(addr) => found.destination.0 = ip(addr)?,
            RouteAttribute::Table(table) => found.table = *table,
            RouteAttribute::Priority(metric) => found.metric = *metric,
            RouteAttribute::PrefSource(addr) => found.source = ip(addr),
            RouteAttribute::Metrics(metrics) => {
                found.metrics.extend(metrics.iter().filter_map(limit))
            }
            RouteAttribute::Gateway(addr) => gateway = ip(addr),
            RouteAttribute::Via(addr) => gateway = via(addr),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::MultiPath(hops) => found.hops.extend(hops.iter().map(next_hop)),
            _ => {}
        }
    }
    if found.table == 0 {
        found.table = MAIN_TABLE;
    }
    if let Some(interface) = interface.filter(|_| found.hops.is_empty()) {
        // Routes carry the flags of their only next hop in the header.
        let down = RouteFlags::Dead | RouteFlags::Linkdown;
        let alive = !header.flags.intersects(down);
        let onlink = header.flags.contains(RouteFlags::Onlink);
        found.hops.push(NextHop { onlink, alive, ..NextHop::new(interface, gateway) });
    }
    (!found.hops.is_empty()).then_some(found)
}

fn next_hop(hop: &RouteNextHop) -> NextHop {
    let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(addr) => ip(addr),
        RouteAttribute::Via(addr) => via(addr),
        _ => None,
    });
    let down = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    NextHop {
        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
        weight: u16::from(hop.hops).saturating_add(1), // the kernel counts from 0
        alive: !hop.flags.intersects(down),
        ..NextHop::new(hop.interface_index, gateway)
    }
}

#[cfg(test)]
mod tests;
