//! What the host says of itself: plain values, gathered once at start by others.

use super::resolv::Resolv;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// The table that routes are in unless policy says otherwise (RT_TABLE_MAIN).
pub const MAIN_TABLE: u32 = 254;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Its MTU, if it has one.
    pub mtu: Option<u32>,
}

/// An address of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Number of the interface that has it.
    pub interface: u32,
    /// The address.
    pub addr: IpAddr,
    /// Length of its prefix.
    pub prefix_len: u8,
    /// Whether it is valid everywhere, not on its link or host only (RT_SCOPE_UNIVERSE).
    pub global: bool,
    /// Whether it is to be used: not deprecated, duplicate, or under test for duplicates.
    pub usable: bool,
    /// Whether it stands behind another of its subnet, or is temporary (RFC 8981).
    pub secondary: bool,
    /// The address at the other end of a point-to-point link; the prefix is then that one's.
    pub peer: Option<IpAddr>,
    /// Metric of the route to its prefix, where one was asked for (IFA_RT_PRIORITY).
    pub metric: Option<u32>,
    /// Whether the kernel makes a route to its prefix (no IFA_F_NOPREFIXROUTE).
    pub connects: bool,
}

impl Address {
    /// An address like most are: global, usable, with a route to its prefix.
    pub const fn new(interface: u32, addr: IpAddr, prefix_len: u8) -> Self {
        Self {
            interface,
            addr,
            prefix_len,
            global: true,
            usable: true,
            secondary: false,
            peer: None,
            metric: None,
            connects: true,
        }
    }
}

/// One way that a route may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Number of the interface.
    pub interface: u32,
    /// The router, if there is one in between; for IPv4, it may be one of IPv6 (RTA_VIA).
    pub gateway: Option<IpAddr>,
    /// Whether the router is on the link though no route says so.
    pub onlink: bool,
    /// Share of the traffic that takes this way; 1 for a route with one way.
    pub weight: u16,
    /// Whether the kernel would use it: neither dead nor without carrier.
    pub alive: bool,
}

impl NextHop {
    /// The only way of a route, by `interface`.
    pub const fn new(interface: u32, gateway: Option<IpAddr>) -> Self {
        Self { interface, gateway, onlink: false, weight: 1, alive: true }
    }
}

/// Who makes a route: the kernel, for an address of its own (RTPROT_KERNEL).
pub const BY_KERNEL: u8 = 2;

/// Who makes a route: someone at start (RTPROT_BOOT), as ip-route(8) has it unless told otherwise.
pub const AT_BOOT: u8 = 3;

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destination, and the length of its prefix: 0 is a default route.
    pub destination: (IpAddr, u8),
    /// Its table.
    pub table: u32,
    /// The smaller, the better.
    pub metric: u32,
    /// The source address it asks for (RTA_PREFSRC).
    pub source: Option<IpAddr>,
    /// The type of service it is for; 0 is any.
    pub tos: u8,
    /// Who has made it (RTPROT_*).
    pub protocol: u8,
    /// How far its destination is (RT_SCOPE_*): 0 is anywhere.
    pub scope: u8,
    /// Limits and hints for those who use it: RTAX_* and values.
    pub metrics: Vec<(u16, u32)>,
    /// The ways it may take.
    pub hops: Vec<NextHop>,
}

impl Route {
    /// A route of the main table, for everything to `destination`.
    pub const fn new(destination: (IpAddr, u8), hops: Vec<NextHop>) -> Self {
        Self {
            destination,
            table: MAIN_TABLE,
            metric: 0,
            source: None,
            tos: 0,
            protocol: AT_BOOT,
            scope: 0,
            metrics: Vec::new(),
            hops,
        }
    }
}

/// `192.0.2.0/24 via 192.0.2.1`, or without a router `192.0.2.0/24`; of several ways, the first.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (addr, len) = self.destination;
        write!(f, "{addr}/{len}")?;
        match self.hops.iter().find_map(|hop| hop.gateway) {
            Some(gateway) => write!(f, " via {gateway}"),
            None => Ok(()),
        }
    }
}

/// What the host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// All addresses, in the kernel's order.
    pub addresses: Vec<Address>,
    /// All unicast routes, in the kernel's order.
    pub routes: Vec<Route>,
    /// Whether the kernel has IPv6.
    pub ipv6: bool,
    /// `/etc/resolv.conf`.
    pub resolv: Resolv,
    /// Ports that the kernel gives to clients.
    pub ephemeral: RangeInclusive<u16>,
}

impl HostFacts {
    /// The interface called `name`.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name)
    }

    /// Whether `index` is a loopback interface, or none that is known.
    pub fn is_loopback(&self, index: u32) -> bool {
        self.interfaces.iter().find(|i| i.index == index).is_none_or(|i| i.loopback)
    }
}
