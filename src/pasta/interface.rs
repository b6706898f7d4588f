//! Carries out a [`NetPlan`] on the interface in a namespace, over a socket from inside.
//!
//! What the namespace cannot do without is an error; what one route or address is about costs a
//! warning, and all such have one line.

use crate::config::Tap;
use crate::config::facts::{Address, NextHop, Route};
use crate::config::namespace::QUEUE_LENGTH;
use crate::config::netplan::NetPlan;
use crate::host::netlink::channel::Channel;
use crate::sys::error_text;
use crate::wire::MacAddr;
use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

/// The number of the loopback interface in every namespace, whatever its name has become
/// (LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

/// What is named of each kind in a warning.
const NAMED: usize = 4;

/// What to tell the user, line by line; nothing of it stops the start.
pub type Warnings = Vec<String>;

/// Why the namespace's network cannot be set up.
#[derive(Debug)]
pub struct Error {
    what: String,
    error: io::Error,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Couldn't {} in the namespace: {}", self.what, error_text(&self.error))
    }
}

impl std::error::Error for Error {}

fn to(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    |error| Error { what, error }
}

/// Sets up the network of a namespace, over a NETLINK_ROUTE socket `route` that was made in it:
/// the loopback interface always, the link that `tap` is, and what `plan` says.
/// Not only the maker of the socket but its user, too, needs CAP_NET_ADMIN over the namespace.
///
/// # Errors
/// An interface cannot be found, changed or brought up.
pub fn configure(
    route: OwnedFd,
    tap: Option<&Tap>,
    plan: Option<&NetPlan>,
) -> Result<Warnings, Error> {
    let mut inside = Inside(Channel::new(route));
    inside.bring_up(LOOPBACK, Vec::new()).map_err(to("bring up the loopback interface"))?;
    let Some(tap) = tap else { return Ok(Vec::new()) };
    let mut warnings = inside.prepare(tap)?;
    if let Some(plan) = plan {
        warnings.extend(inside.carry_out(&tap.name, plan)?);
    }
    Ok(warnings)
}

/// An interface as it is.
struct Link {
    index: u32,
    mac: Option<MacAddr>,
    /// How the kernel makes its link-local address; `None` without IPv6.
    mode: Option<In6AddrGenMode>,
}

/// The namespace.
struct Inside(Channel);

impl Inside {
    /// What holds for the link whoever configures it.
    fn prepare(&mut self, tap: &Tap) -> Result<Warnings, Error> {
        let name = &tap.name;
        let index = self.link(name)?.index;
        if let Some(mac) = tap.mac {
            self.change_link(index, vec![LinkAttribute::Address(mac.0.to_vec())])
                .map_err(to(format!("set MAC address {mac} of {name}")))?;
        }
        // Advertised as well, but an advertisement cannot raise it.
        if let Some(mtu) = tap.mtu {
            self.change_link(index, vec![LinkAttribute::Mtu(mtu.into())])
                .map_err(to(format!("set MTU {mtu} of {name}")))?;
        }
        let queue = LinkAttribute::TxQueueLen(QUEUE_LENGTH.into());
        let lengthened = self.change_link(index, vec![queue]);
        let failed = |e| format!("Couldn't lengthen the queue of {name}: {}", error_text(&e));
        Ok(lengthened.err().map(failed).into_iter().collect())
    }

    fn carry_out(&mut self, name: &str, plan: &NetPlan) -> Result<Warnings, Error> {
        let link = self.link(name)?;
        let own_link_local = plan.ipv6 && link.mode.is_some();
        // The kernel would look for duplicates of the link-local address that it makes, which
        // takes a second or two; ours is usable at once.
        let mode = own_link_local.then_some(In6AddrGenMode::None);
        self.bring_up(link.index, mode.map(gen_mode).into_iter().collect())
            .map_err(to(format!("bring up {name}")))?;
        let mut trouble = Trouble::default();
        let mut ipv6 = plan.ipv6.then_some(Ok(()));
        if plan.ipv6 {
            ipv6 = Some(self.add_link_local(&link));
        }
        if let Some(mode) = link.mode.filter(|_| own_link_local) {
            // For later, when the link goes down and up again. It is up: nothing happens now.
            let _ = self.change_link(link.index, vec![gen_mode(mode)]);
        }
        if let Some(Err(e)) = &ipv6 {
            let reason = error_text(e);
            trouble.lines.push(format!("No IPv6 on {name} in the namespace: {reason}"));
        }
        let usable = |addr: IpAddr| addr.is_ipv4() || matches!(ipv6, Some(Ok(())));
        self.add_addresses(&link, plan.addresses.iter().filter(|a| usable(a.addr)), &mut trouble)?;
        self.add_routes(
            &link,
            plan.routes.iter().filter(|r| usable(r.destination.0)),
            &mut trouble,
        )?;
        Ok(trouble.lines)
    }

    fn link(&mut self, name: &str) -> Result<Link, Error> {
        let find = || format!("find interface {name}");
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.0.dump(&question).map_err(to(find()))?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        let called = |link: &LinkMessage| {
            let is = |a: &LinkAttribute| matches!(a, LinkAttribute::IfName(n) if n == name);
            link.attributes.iter().any(is)
        };
        let found = links.into_iter().find(called).as_ref().map(link);
        found.ok_or_else(|| to(find())(io::Error::from_raw_os_error(libc::ENODEV)))
    }

    fn bring_up(&mut self, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        if !attributes.is_empty() {
            self.change_link(index, attributes)?;
        }
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.0.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn change_link(&mut self, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        self.0.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn add_link_local(&mut self, link: &Link) -> io::Result<()> {
        let Some(mac) = link.mac.filter(|_| link.mode.is_some()) else {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        };
        let addr = Address::new(link.index, link_local(mac).into(), 64);
        // Whatever is there already becomes usable, too.
        self.0.change(address(link.index, &addr), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn add_addresses<'a>(
        &mut self,
        link: &Link,
        wanted: impl Iterator<Item = &'a Address>,
        trouble: &mut Trouble,
    ) -> Result<(), Error> {
        let wanted: Vec<_> = wanted.collect();
        let mut failed = Failed::default();
        let messages = wanted.iter().map(|a| address(link.index, a));
        self.0
            .change_all(messages, NLM_F_CREATE, |n, outcome| {
                if let (Err(e), Some(a)) = (refused(outcome), wanted.get(n)) {
                    failed.add(&format_args!("{}/{}", a.addr, a.prefix_len), &e);
                }
            })
            .map_err(to("add addresses"))?;
        trouble.lines.extend(failed.line("addresses"));
        Ok(())
    }

    /// Adds routes. Those that the kernel refuses are tried once more when all others are there,
    /// with routers that are taken to be on the link: on a tap, everything is.
    fn add_routes<'a>(
        &mut self,
        link: &Link,
        wanted: impl Iterator<Item = &'a Route>,
        trouble: &mut Trouble,
    ) -> Result<(), Error> {
        let wanted: Vec<_> = wanted.collect();
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        let mut again = Vec::new();
        let messages = wanted.iter().map(|r| route(link.index, r, false));
        self.0
            .change_all(messages, flags, |n, outcome| {
                if refused(outcome).is_err() {
                    again.extend(wanted.get(n).copied());
                }
            })
            .map_err(to("add routes"))?;
        let mut failed = Failed::default();
        let messages = again.iter().map(|r| route(link.index, r, true));
        self.0
            .change_all(messages, flags, |n, outcome| {
                if let (Err(e), Some(r)) = (refused(outcome), again.get(n)) {
                    failed.add(r, &e);
                }
            })
            .map_err(to("add routes"))?;
        trouble.lines.extend(failed.line("routes"));
        Ok(())
    }
}

/// What is there already is fine.
fn refused(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        outcome => outcome,
    }
}

/// What did not work, for the user.
#[derive(Default)]
struct Trouble {
    lines: Warnings,
}

/// Things of one kind that the kernel does not want.
#[derive(Default)]
struct Failed {
    named: Vec<String>,
    count: usize,
}

impl Failed {
    fn add(&mut self, what: &dyn fmt::Display, error: &io::Error) {
        if self.named.len() < NAMED {
            self.named.push(format!("{what} ({})", error_text(error)));
        }
        self.count = self.count.saturating_add(1);
    }

    fn line(&self, what: &str) -> Option<String> {
        let more = match self.count.checked_sub(self.named.len())? {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = self.named.join(", ");
        (self.count > 0)
            .then(|| format!("Skipped {what} that the namespace refuses: {named}{more}"))
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, mac: None, mode: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => {
                link.mac = mac.as_slice().try_into().ok().map(MacAddr);
            }
            LinkAttribute::AfSpecUnspec(families) => link.mode = families.iter().find_map(mode),
            _ => {}
        }
    }
    link
}

fn mode(family: &AfSpecUnspec) -> Option<In6AddrGenMode> {
    let AfSpecUnspec::Inet6(attributes) = family else { return None };
    attributes.iter().find_map(|attribute| match attribute {
        AfSpecInet6::AddrGenMode(mode) => Some(*mode),
        _ => None,
    })
}

fn gen_mode(mode: In6AddrGenMode) -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])])
}

/// The link-local address of `mac` (RFC 4291 2.5.1, RFC 2464 4).
fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The message that adds an address for good, without a search for duplicates.
fn address(index: u32, address: &Address) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len;
    message.header.family = family(address.addr);
    let mut flags = AddressFlags::Permanent | AddressFlags::Nodad;
    if !address.connects {
        flags |= AddressFlags::Noprefixroute;
    }
    message.attributes = vec![
        AddressAttribute::Local(address.addr),
        AddressAttribute::Address(address.peer.unwrap_or(address.addr)),
        AddressAttribute::Flags(flags),
    ];
    message.attributes.extend(address.metric.map(AddressAttribute::RoutePriority));
    message.attributes.extend(broadcast(address).map(AddressAttribute::Broadcast));
    RouteNetlinkMessage::NewAddress(message)
}

fn broadcast(address: &Address) -> Option<Ipv4Addr> {
    let IpAddr::V4(addr) = address.addr else { return None };
    let host_bits = u32::MAX.checked_shr(address.prefix_len.into())?;
    let subnet = address.peer.is_none() && address.prefix_len < 31;
    subnet.then(|| Ipv4Addr::from_bits(addr.to_bits() | host_bits))
}

const fn family(addr: IpAddr) -> AddressFamily {
    match addr {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The message that adds a route by interface `index`; all its routers are on the link if `force`.
fn route(index: u32, route: &Route, force: bool) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination.0);
    header.destination_prefix_length = route.destination.1;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.kind = RouteType::Unicast;
    (header.tos, header.protocol) = (route.tos, route.protocol.into());
    let mut attributes = vec![RouteAttribute::Destination(route.destination.0.into())];
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    if !route.metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(route.metrics.iter().map(metric).collect()));
    }
    match route.hops.as_slice() {
        [hop] => {
            attributes.push(RouteAttribute::Oif(index));
            attributes.extend(gateway(route, hop));
            if on_link(hop, force) {
                header.flags |= netlink_packet_route::route::RouteFlags::Onlink;
            }
        }
        hops => {
            let hops = hops.iter().map(|hop| next_hop(index, route, hop, force));
            attributes.push(RouteAttribute::MultiPath(hops.collect()));
        }
    }
    header.scope = scope(route).into();
    message.attributes = attributes;
    RouteNetlinkMessage::NewRoute(message)
}

/// What is reached without a router is on the link, and nothing else.
fn scope(route: &Route) -> u8 {
    const UNIVERSE: u8 = 0;
    if route.hops.iter().any(|hop| hop.gateway.is_some()) { UNIVERSE } else { route.scope }
}

const fn on_link(hop: &NextHop, force: bool) -> bool {
    hop.gateway.is_some() && (hop.onlink || force)
}

fn gateway(route: &Route, hop: &NextHop) -> Option<RouteAttribute> {
    let gateway = hop.gateway?;
    Some(if gateway.is_ipv4() == route.destination.0.is_ipv4() {
        RouteAttribute::Gateway(gateway.into())
    } else {
        RouteAttribute::Via(RouteVia::from(gateway))
    })
}

fn next_hop(index: u32, route: &Route, hop: &NextHop, force: bool) -> RouteNextHop {
    let mut next = RouteNextHop::default();
    next.interface_index = index;
    next.hops = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    if on_link(hop, force) {
        next.flags |= RouteNextHopFlags::Onlink;
    }
    next.attributes.extend(gateway(route, hop));
    next
}

fn metric(&(kind, value): &(u16, u32)) -> RouteMetric {
    RouteMetric::Other(DefaultNla::new(kind, value.to_ne_bytes().to_vec()))
}
