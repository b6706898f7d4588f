//! From what was typed and what the host has to what the guest shall see: pure.

use super::facts::HostFacts;
use super::guest::{
    DEFAULT_MAC, DEFAULT_MTU, Dns, GuestV4, GuestV6, GuestView, Nat, Services, Translation,
};
use super::options::{PerFamily, Typed};
use super::resolv::Resolv;
use super::template::{Template, in_subnet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The guest's IPv4 address when the host has none (RFC 3927 range).
pub const LOCAL_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);

/// Our IPv4 address, and the gateway's, when the host has none.
pub const LOCAL_V4_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 2);

/// Prefix length of [`LOCAL_V4`].
pub const LOCAL_V4_PREFIX: u8 = 16;

/// Our link-local IPv6 address, and the gateway's, when the host has none.
pub const LOCAL_V6_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Resolvers advertised at most, of each family.
const MAX_SERVERS: usize = 3;

/// The templates of both families; `None` is local mode. A family that is off is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    /// IPv4.
    pub v4: Option<Template>,
    /// IPv6.
    pub v6: Option<Template>,
}

/// Which families are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enabled {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// The guest's network, and how its addresses are translated.
pub fn plan(
    typed: &Typed,
    facts: &HostFacts,
    templates: &Templates,
    enabled: Enabled,
) -> (GuestView, Translation) {
    let v4 = enabled.v4.then(|| guest_v4(typed, facts, templates.v4.as_ref()));
    let v6 = enabled.v6.then(|| guest_v6(typed, templates.v6.as_ref()));
    let mut translation = Translation {
        v4: nat(&typed.v4, v4.as_ref().and_then(|v4| v4.gateway), typed.no_map_gw),
        v6: nat(&typed.v6, v6.as_ref().and_then(|v6| v6.gateway), typed.no_map_gw),
    };
    let (mut servers4, mut servers6) = (Vec::new(), Vec::new());
    if v4.is_some() {
        servers4 = resolvers(typed, &facts.resolv, &mut translation.v4, as_v4);
    }
    if v6.is_some() {
        servers6 = resolvers(typed, &facts.resolv, &mut translation.v6, as_v6);
    }
    let services = services(typed, v4.is_some(), v6.as_ref());
    let guest = GuestView {
        our_mac: typed.mac.unwrap_or(DEFAULT_MAC),
        mtu: Some(typed.mtu.unwrap_or(DEFAULT_MTU)).filter(|mtu| *mtu != 0),
        v4,
        v6,
        dns: Dns {
            v4: servers4,
            v6: servers6,
            search: search_list(typed, &facts.resolv),
            hostname: typed.hostname.clone(),
            fqdn: typed.fqdn.clone(),
            advertise_servers: !typed.no_dhcp_dns,
            advertise_search: !typed.no_dhcp_search,
        },
        services,
    };
    (guest, translation)
}

pub(super) const fn as_v4(addr: IpAddr) -> Option<Ipv4Addr> {
    match addr {
        IpAddr::V4(a) => Some(a),
        IpAddr::V6(_) => None,
    }
}

pub(super) const fn as_v6(addr: IpAddr) -> Option<Ipv6Addr> {
    match addr {
        IpAddr::V6(a) => Some(a),
        IpAddr::V4(_) => None,
    }
}

fn guest_v4(typed: &Typed, facts: &HostFacts, template: Option<&Template>) -> GuestV4 {
    let (addr, own_len) = match typed.v4.address {
        Some((addr, len)) => (addr, len.unwrap_or_else(|| class_prefix(addr))),
        None => template
            .and_then(|t| Some((as_v4(t.addr)?, t.prefix_len)))
            .unwrap_or((LOCAL_V4, LOCAL_V4_PREFIX)),
    };
    let prefix_len = typed.netmask.unwrap_or(own_len).min(32);
    let host_gateway = template.and_then(|t| t.gateway).and_then(as_v4);
    let gateway = typed
        .v4
        .gateway
        .or(host_gateway)
        .unwrap_or_else(|| made_up_gateway(addr, prefix_len, facts));
    let fixed = typed.v4.address.is_some();
    GuestV4 { addr, prefix_len, gateway: Some(gateway), our_addr: gateway, fixed }
}

/// The prefix length of an address's class, as before CIDR.
const fn class_prefix(addr: Ipv4Addr) -> u8 {
    match addr.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        192..=223 => 24,
        _ => 32,
    }
}

/// An address for us where the host has no gateway (point-to-point links, closed networks): one in
/// the guest's subnet, for clients that take no other, but none of the host's own. From the top,
/// where others seldom are.
fn made_up_gateway(guest: Ipv4Addr, prefix_len: u8, facts: &HostFacts) -> Ipv4Addr {
    let in_local = in_subnet(guest.into(), LOCAL_V4_GATEWAY.into(), LOCAL_V4_PREFIX);
    if in_local && prefix_len <= LOCAL_V4_PREFIX && guest != LOCAL_V4_GATEWAY {
        return LOCAL_V4_GATEWAY;
    }
    let host_bits = u32::from(32u8.saturating_sub(prefix_len));
    let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
    let (network, broadcast) = (guest.to_bits() & mask, guest.to_bits() | !mask);
    let taken = |bits: u32| {
        let addr = Ipv4Addr::from_bits(bits);
        addr == guest || facts.addresses.iter().any(|a| a.addr == IpAddr::V4(addr))
    };
    let found = match prefix_len {
        32.. => None,
        31 => Some(guest.to_bits() ^ 1),
        _ => (network.saturating_add(1)..broadcast).rev().take(256).find(|bits| !taken(*bits)),
    };
    found.map_or(LOCAL_V4_GATEWAY, Ipv4Addr::from_bits)
}

fn guest_v6(typed: &Typed, template: Option<&Template>) -> GuestV6 {
    let host_gateway = template.and_then(|t| t.gateway).and_then(as_v6);
    let gateway = typed.v6.gateway.or(host_gateway);
    let our_link_local = gateway
        .filter(Ipv6Addr::is_unicast_link_local)
        .or_else(|| template.and_then(|t| t.link_local).and_then(as_v6))
        .unwrap_or(LOCAL_V6_GATEWAY);
    GuestV6 {
        addr: match typed.v6.address {
            Some((addr, _)) => Some(addr),
            None => template.and_then(|t| as_v6(t.addr)),
        },
        prefix_len: 64,
        gateway: gateway.or(Some(our_link_local)),
        our_link_local,
        fixed: typed.v6.address.is_some(),
    }
}

fn nat<A: Copy>(typed: &PerFamily<A>, gateway: Option<A>, no_map_gw: bool) -> Nat<A> {
    let default = gateway.filter(|_| !no_map_gw);
    Nat {
        host_loopback: typed.map_host_loopback.or(default),
        guest_addr: typed.map_guest_addr,
        host_addr: None,
        dns_forward: typed.dns_forward,
        dns_host: typed.dns_host,
        outbound: typed.outbound,
    }
}

/// The resolvers to advertise in one family; fills in what `nat` does not know about resolvers.
///
/// A resolver that the guest cannot reach as it is (on the host's loopback, or at the address that
/// stands for it) is advertised as the address from which queries are redirected. Without such an
/// address it is left out, and without a resolver behind it `dns_host` stays `None`: redirected
/// queries are then dropped, never sent to the host's loopback.
fn resolvers<A: Copy + PartialEq>(
    typed: &Typed,
    resolv: &Resolv,
    nat: &mut Nat<A>,
    family: fn(IpAddr) -> Option<A>,
) -> Vec<A>
where
    IpAddr: From<A>,
{
    if typed.no_dns {
        return Vec::new();
    }
    let given: Vec<_> = typed.dns.iter().filter_map(|a| family(*a)).collect();
    let host: Vec<_> = resolv.servers.iter().filter_map(|a| family(*a)).collect();
    if !given.is_empty() {
        nat.dns_host = nat.dns_host.or_else(|| host.iter().chain(&given).next().copied());
        return given;
    }
    let mut advertised = Vec::new();
    for server in &host {
        let reachable = !IpAddr::from(*server).is_loopback() && Some(*server) != nat.host_loopback;
        let seen = if reachable {
            *server
        } else if let Some(forward) = nat.dns_forward {
            forward
        } else if let Some(loopback) = nat.host_loopback {
            nat.dns_forward = Some(loopback);
            nat.dns_host = nat.dns_host.or(Some(*server));
            loopback
        } else {
            continue;
        };
        if !advertised.contains(&seen) && advertised.len() < MAX_SERVERS {
            advertised.push(seen);
        }
    }
    nat.dns_host = nat.dns_host.or_else(|| host.first().copied());
    advertised
}

fn search_list(typed: &Typed, resolv: &Resolv) -> Vec<String> {
    if typed.no_search {
        Vec::new()
    } else if typed.search.is_empty() {
        resolv.search.clone()
    } else {
        typed.search.clone()
    }
}

fn services(typed: &Typed, v4: bool, v6: Option<&GuestV6>) -> Services {
    let ndp = v6.is_some() && !typed.no_ndp && !typed.no_icmp;
    Services {
        dhcp: v4 && !typed.no_dhcp,
        dhcpv6: v6.is_some_and(|v6| v6.addr.is_some()) && !typed.no_dhcpv6,
        ndp,
        ra: ndp && !typed.no_ra,
    }
}

#[cfg(test)]
mod tests;
