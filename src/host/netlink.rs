//! What the host's kernel says of its network: interfaces, addresses, routes, by rtnetlink(7).
//!
//! Synchronous, and only at start: each dump is one question and its answer. Single messages that
//! the crate cannot decode (newer kernels say more) are left out, the rest is used.

use crate::config::facts::{Address, HostFacts, Interface, MAIN_TABLE, NextHop, Route};
use crate::config::{ports, resolv::Resolv};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Dumps that were torn by a change are asked for again, at most this often.
const ATTEMPTS: u32 = 4;

/// Messages that end a dump (netlink(7)).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// More than the kernel puts into one datagram of a dump (32 KiB).
const MAX_DATAGRAM: usize = 1 << 16;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Asks the kernel for everything that concerns us.
///
/// # Errors
/// Netlink itself does not work.
pub fn facts() -> io::Result<HostFacts> {
    let mut netlink = Netlink::open()?;
    let interfaces = netlink.interfaces()?;
    let addresses = netlink.addresses()?;
    let routes = netlink.routes()?;
    Ok(HostFacts {
        interfaces,
        addresses,
        routes,
        ipv6: true,
        resolv: Resolv::default(),
        ephemeral: ports::DEFAULT_EPHEMERAL,
    })
}

/// A connection to the kernel.
#[derive(Debug)]
struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        let answers = self.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => interface(&link),
                _ => None,
            })
            .collect())
    }

    fn addresses(&mut self) -> io::Result<Vec<Address>> {
        let answers = self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => address(&message),
                _ => None,
            })
            .collect())
    }

    fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let answers = self.dump(&RouteNetlinkMessage::GetRoute(question))?;
            routes.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => route(&message),
                _ => None,
            }));
        }
        Ok(routes)
    }

    fn dump(&mut self, question: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        for _ in 0..ATTEMPTS {
            let (found, whole) = self.dump_once(question.clone())?;
            answers = found;
            if whole {
                break;
            }
        }
        Ok(answers)
    }

    /// One dump, and whether it is consistent.
    fn dump_once(
        &mut self,
        question: RouteNetlinkMessage,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let (mut answers, mut whole) = (Vec::new(), true);
        let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
        loop {
            datagram.clear();
            match self.socket.recv(&mut datagram, 0) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            for part in Parts(&datagram) {
                if part.sequence != self.sequence {
                    continue; // the rest of a dump that was given up
                }
                // A change has torn the dump: parts of it may be missing.
                whole &= part.flags & NLM_F_DUMP_INTR == 0;
                match part.kind {
                    NLMSG_DONE => return Ok((answers, whole)),
                    NLMSG_ERROR => return Err(error(part.bytes)),
                    _ => answers.extend(decode(part.bytes)),
                }
            }
        }
    }
}

fn decode(bytes: &[u8]) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::deserialize(bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

/// The error that a message of type NLMSG_ERROR carries: a negative number behind the header.
fn error(bytes: &[u8]) -> io::Error {
    let code = bytes.get(HEADER..).and_then(<[u8]>::first_chunk).map(|b| i32::from_ne_bytes(*b));
    io::Error::from_raw_os_error(code.map_or(libc::EPROTO, i32::wrapping_neg))
}

/// The messages of a datagram.
struct Parts<'a>(&'a [u8]);

struct Part<'a> {
    bytes: &'a [u8],
    kind: u16,
    flags: u16,
    sequence: u32,
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let header: &[u8; HEADER] = self.0.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let bytes = self.0.get(..len).filter(|b| b.len() >= HEADER)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Part {
            bytes,
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        })
    }
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
    let (mut addr, mut local) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(a) => addr = Some(*a),
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Flags(all) => flags = *all,
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
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
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
        destination: (unspecified, header.destination_prefix_length),
        table: header.table.into(),
        metric: 0,
        source: None,
        hops: Vec::new(),
    };
    let (mut interface, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(addr) => found.destination.0 = ip(addr)?,
            RouteAttribute::Table(table) => found.table = *table,
            RouteAttribute::Priority(metric) => found.metric = *metric,
            RouteAttribute::PrefSource(addr) => found.source = ip(addr),
            RouteAttribute::Gateway(addr) => gateway = ip(addr),
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
        found.hops.push(NextHop { interface, gateway, weight: 1, alive });
    }
    (!found.hops.is_empty()).then_some(found)
}

fn next_hop(hop: &RouteNextHop) -> NextHop {
    let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(addr) => ip(addr),
        _ => None,
    });
    let down = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    NextHop {
        interface: hop.interface_index,
        gateway,
        weight: u16::from(hop.hops).saturating_add(1), // the kernel counts from 0
        alive: !hop.flags.intersects(down),
    }
}

#[cfg(test)]
mod tests;
