//! What the guest shall see of the network: plain values, made once at start (or when the host's
//! network changes) and only read by everyone else.

use crate::wire::MacAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Our address on the link unless `--mac-addr` says otherwise.
pub const DEFAULT_MAC: MacAddr = MacAddr([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);

/// The MTU we advertise unless `--mtu` says otherwise.
pub const DEFAULT_MTU: u16 = 65_520;

/// The guest's view of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestView {
    /// Our Ethernet address on the link.
    pub our_mac: MacAddr,
    /// The MTU to advertise; `None` (`--mtu 0`) advertises nothing.
    pub mtu: Option<u16>,
    /// IPv4, unless disabled.
    pub v4: Option<GuestV4>,
    /// IPv6, unless disabled.
    pub v6: Option<GuestV6>,
    /// Resolvers and names.
    pub dns: Dns,
    /// Which services answer.
    pub services: Services,
}

/// The guest's IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestV4 {
    /// The guest's address.
    pub addr: Ipv4Addr,
    /// Length of its prefix, 0 to 32.
    pub prefix_len: u8,
    /// The default gateway that the guest is told, if the host has one or one was made up.
    pub gateway: Option<Ipv4Addr>,
    /// The address that is ours on the link (DHCP server, substitute source); the gateway's unless
    /// there is none.
    pub our_addr: Ipv4Addr,
    /// Whether `--address` fixed [`Self::addr`]; otherwise the guest's source addresses teach us.
    pub fixed: bool,
}

/// The guest's IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestV6 {
    /// The guest's global address; `None` in local mode.
    pub addr: Option<Ipv6Addr>,
    /// Length of its prefix: 64 towards the guest.
    pub prefix_len: u8,
    /// The default gateway.
    pub gateway: Option<Ipv6Addr>,
    /// Our link-local address on the link: source of RAs, NAs and DHCPv6.
    pub our_link_local: Ipv6Addr,
    /// Whether `--address` fixed [`Self::addr`].
    pub fixed: bool,
}

/// Resolvers and names for the guest, and the mapping of one resolver address to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Resolvers to advertise, IPv4 (at most 3).
    pub v4: Vec<Ipv4Addr>,
    /// Resolvers to advertise, IPv6 (at most 3).
    pub v6: Vec<Ipv6Addr>,
    /// Search domains to advertise.
    pub search: Vec<String>,
    /// The guest's host name (DHCP option 12).
    pub hostname: Option<String>,
    /// The guest's fully qualified name (DHCP 81, DHCPv6 39).
    pub fqdn: Option<String>,
    /// Whether resolvers are handed out at all.
    pub advertise_servers: bool,
    /// Whether the search list is handed out at all.
    pub advertise_search: bool,
}

/// Which services on the link answer (`control-plane` 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    /// DHCPv4.
    pub dhcp: bool,
    /// DHCPv6.
    pub dhcpv6: bool,
    /// Neighbour solicitations.
    pub ndp: bool,
    /// Router solicitations and unsolicited router advertisements.
    pub ra: bool,
}

/// Address translation of one family, as asked for on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat<A> {
    /// The guest's name for the host's loopback address (`--map-host-loopback`).
    pub host_loopback: Option<A>,
    /// The guest's name for its own address on the host (`--map-guest-addr`).
    pub guest_addr: Option<A>,
    /// The host's address that [`Self::guest_addr`] stands for, where that is another than the one
    /// that the guest was configured with.
    pub host_addr: Option<A>,
    /// Where the guest sends queries that are to be redirected (`--dns-forward`).
    pub dns_forward: Option<A>,
    /// The host's resolver for those (`--dns-host`, else the first of `resolv.conf`).
    pub dns_host: Option<A>,
    /// Source address of outgoing sockets (`--outbound`).
    pub outbound: Option<A>,
}

impl<A> Default for Nat<A> {
    fn default() -> Self {
        Self {
            host_loopback: None,
            guest_addr: None,
            host_addr: None,
            dns_forward: None,
            dns_host: None,
            outbound: None,
        }
    }
}

/// Everything that address translation needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// IPv4.
    pub v4: Nat<Ipv4Addr>,
    /// IPv6.
    pub v6: Nat<Ipv6Addr>,
}

impl GuestView {
    /// Whether `addr` is of a family that is switched on.
    pub const fn speaks(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(_) => self.v4.is_some(),
            IpAddr::V6(_) => self.v6.is_some(),
        }
    }
}
