//! What the host says of itself: plain values, gathered once at start by others.

use super::resolv::Resolv;
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
}

/// One way that a route may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Number of the interface.
    pub interface: u32,
    /// The router, if there is one in between.
    pub gateway: Option<IpAddr>,
    /// Share of the traffic that takes this way; 1 for a route with one way.
    pub weight: u16,
    /// Whether the kernel would use it: neither dead nor without carrier.
    pub alive: bool,
}

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
    /// The ways it may take.
    pub hops: Vec<NextHop>,
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
